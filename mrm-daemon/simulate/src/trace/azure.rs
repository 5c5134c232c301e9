//! Azure Functions 2021 as Microsoft publishes it: one line for each invocation, by its end.

use super::{Asked, Builder, Trace, TraceOptions};
use crate::catalogue::BadInput;
use crate::text::{Lines, seconds_us};
use mrm_core::id::Time;

pub(super) fn read(mut lines: Lines<'_>, options: &TraceOptions) -> Result<Trace, BadInput> {
    let mut builder = Builder::new(options);
    while let Some(line) = lines.next_line()? {
        add(&mut builder, line).map_err(|what| lines.wrong(what))?;
    }
    let mut trace = builder.trace;
    // They are listed by their ends.
    trace.requests.sort_by_key(|request| request.at);
    trace.anonymous = true;
    Ok(trace)
}

fn add(builder: &mut Builder, line: &str) -> Result<(), String> {
    let fields: Vec<&str> = line.split(',').collect();
    let [app, func, end, duration] = fields[..] else {
        return Err(format!(
            "{} fields instead of app,func,end_timestamp,duration",
            fields.len()
        ));
    };
    let end_us = seconds_us("end_timestamp", end)?;
    let exec_us = seconds_us("duration", duration)?;
    let name = builder.name(&format!("{app}/{func}"))?;
    // What was under way when the recording began, began with it.
    builder.push(Asked {
        at: Time(end_us.saturating_sub(exec_us)),
        name,
        exec_us: Some(exec_us),
    })
}
