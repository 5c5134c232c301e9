//! `t_s,model`: one line for each request.

use super::{Asked, Builder, Trace, TraceOptions};
use crate::catalogue::BadInput;
use crate::text::{Lines, seconds_us};
use mrm_core::id::Time;

pub(super) fn read(mut lines: Lines<'_>, options: &TraceOptions) -> Result<Trace, BadInput> {
    let mut builder = Builder::new(options);
    let mut last = Time(0);
    while let Some(line) = lines.next_line()? {
        let added = add(&mut builder, line, last);
        last = added.map_err(|what| lines.wrong(what))?;
    }
    Ok(builder.trace)
}

fn add(builder: &mut Builder, line: &str, last: Time) -> Result<Time, String> {
    let (at, model) = line
        .split_once(',')
        .ok_or("one field instead of t_s,model")?;
    if model.contains(',') {
        return Err("more fields than t_s,model".to_owned());
    }
    let now = Time(seconds_us("t_s", at)?);
    if now < last {
        return Err(format!(
            "time goes back to {at} s, from {} s: sort the trace by its time",
            last.0 as f64 / 1e6
        ));
    }
    let name = builder.name(model)?;
    builder.push(Asked {
        at: now,
        name,
        exec_us: None,
    })?;
    Ok(now)
}
