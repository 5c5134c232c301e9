//! Requests that are counted by the minute: `minute,func,count`, and the files of Azure Functions
//! 2019 as Microsoft publishes them (`invocations_per_function_md.anon.dNN.csv`), with a line for
//! each function and a column for each minute of the day.

use super::{Asked, Builder, Trace, TraceOptions};
use crate::catalogue::BadInput;
use crate::random::Random;
use crate::text::{Lines, whole};
use mrm_core::id::Time;
use std::collections::BTreeMap;

const MINUTE_US: u64 = 60_000_000;
/// A thousand years.
const MINUTES_MAX: u64 = 525_600_000;

/// Who was asked for how often, by minute.
type Counts = BTreeMap<u64, Vec<(u32, u64)>>;

pub(super) fn read(mut lines: Lines<'_>, options: &TraceOptions) -> Result<Trace, BadInput> {
    let mut builder = Builder::new(options);
    let (mut counts, mut sum) = (Counts::new(), 0u64);
    while let Some(line) = lines.next_line()? {
        let added = (|| {
            let fields: Vec<&str> = line.split(',').collect();
            let [minute, func, count] = fields[..] else {
                return Err(format!(
                    "{} fields instead of minute,func,count",
                    fields.len()
                ));
            };
            let minute = whole("minute", minute)?;
            let count = whole("count", count)?;
            let name = builder.name(func)?;
            note(&mut counts, (minute, name, count))?;
            sum = sum.saturating_add(count);
            builder.room_for(sum)
        })();
        added.map_err(|what| lines.wrong(what))?;
    }
    spread(&mut builder, counts, options.seed).map_err(|what| lines.wrong(what))?;
    Ok(builder.trace)
}

pub(super) fn read_published(
    mut lines: Lines<'_>,
    options: &TraceOptions,
) -> Result<Trace, BadInput> {
    let mut builder = Builder::new(options);
    let (mut counts, mut sum) = (Counts::new(), 0u64);
    while let Some(line) = lines.next_line()? {
        let added = (|| {
            let mut fields = line.split(',');
            let (_owner, app, func) = (fields.next(), fields.next(), fields.next());
            let (Some(app), Some(func), Some(_trigger)) = (app, func, fields.next()) else {
                return Err("fewer fields than HashOwner,HashApp,HashFunction,Trigger".to_owned());
            };
            let name = builder.name(&format!("{app}/{func}"))?;
            for (minute, count) in (0..).zip(fields) {
                let count = whole("count", count)?;
                note(&mut counts, (minute, name, count))?;
                sum = sum.saturating_add(count);
            }
            builder.room_for(sum)
        })();
        added.map_err(|what| lines.wrong(what))?;
    }
    spread(&mut builder, counts, options.seed).map_err(|what| lines.wrong(what))?;
    builder.trace.anonymous = true;
    Ok(builder.trace)
}

fn note(counts: &mut Counts, (minute, name, count): (u64, u32, u64)) -> Result<(), String> {
    if minute > MINUTES_MAX {
        return Err(format!("minute {minute} is more than a thousand years on"));
    }
    if count > 0 {
        counts.entry(minute).or_default().push((name, count));
    }
    Ok(())
}

/// A minute's requests in random order, evenly spaced.
fn spread(builder: &mut Builder, counts: Counts, seed: u64) -> Result<(), String> {
    let mut random = Random::new(seed);
    let mut names = Vec::new();
    for (minute, counted) in counts {
        names.clear();
        for (name, count) in counted {
            names.extend((0..count).map(|_| name));
        }
        random.shuffle(&mut names);
        let all = names.len().max(1) as u64;
        for (place, name) in (0..).zip(&names) {
            let at = Time(minute * MINUTE_US + MINUTE_US * place / all);
            builder.push(Asked {
                at,
                name: *name,
                exec_us: None,
            })?;
        }
    }
    Ok(())
}
