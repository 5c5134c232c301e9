//! `mrm simulate`: what another policy or another size would have meant for a recorded day.

use super::block_on;
use crate::args;
use crate::failure::Failure;
use crate::http::Api;
use crate::out::Out;
use crate::progress::Progress;
use crate::table::{Align, Cell, Table};
use crate::units;
use mrm_simulate::catalogue::{BadInput, Catalogue};
use mrm_simulate::contender::Contenders;
use mrm_simulate::engine::Oversize;
use mrm_simulate::figures::Row;
use mrm_simulate::plot::{against_memory, residency};
use mrm_simulate::size::{Extent, Sizes};
use mrm_simulate::study::{Options, Study, study};
use mrm_simulate::trace::{Recorded, Trace, TraceOptions};
use mrm_simulate::workload::{Binding, Unknown, Workload};
use serde_json::json;
use std::fs::{self, File};
use std::io;
use std::path::Path;
use std::sync::{Mutex, PoisonError};

/// What is compared where nothing is named.
const POLICIES: &str = "lru,gdsf,gc,mix";
const SIZES: &str = "5%..75%";
/// What a daemon's own day is compared at: half, all, twice and four times its budget.
const OF_BUDGET: [(u64, u64); 4] = [(1, 2), (1, 1), (2, 1), (4, 1)];

/// Reads, runs, prints and draws.
pub(super) fn run(
    args: &args::Simulate,
    api: impl FnOnce() -> Result<Api, Failure>,
    out: Out,
) -> Result<(), Failure> {
    let trace = match &args.trace {
        Some(path) => read_trace(path, open(path)?, args)?,
        None => {
            let mut bytes = Vec::new();
            let sink = |more: &[u8]| {
                bytes.extend_from_slice(more);
                Ok(())
            };
            let api = api()?;
            block_on(api.download("/v1/journal", sink))?;
            read_trace("the daemon's journal".as_ref(), &*bytes, args)?
        }
    };
    for note in &trace.notes {
        out.note(note);
    }
    let workload = join(args, &trace, out)?;
    let options = options(args, trace.recorded.as_ref())?;
    warn_of_large(&workload, &options, out);
    let progress = Mutex::new(Progress::counting(out, "simulating"));
    let done = study(&workload, &options, &|done, all| {
        let mut progress = progress.lock().unwrap_or_else(PoisonError::into_inner);
        progress.update(done, all);
    });
    drop(progress);
    let done = done.map_err(|error| Failure::System(error.to_string()))?;
    match out.json {
        true => out.document(&json!(done.rows))?,
        false => out.text(&table(&done.rows).render(out.look))?,
    }
    match &args.plot {
        Some(dir) => draw(dir, &workload, (&options, &done), out),
        None => Ok(()),
    }
}

fn open(path: &Path) -> Result<File, Failure> {
    File::open(path).map_err(|cause| {
        let what = format!("{}: {cause}", path.display());
        let kind = cause.kind();
        if kind == io::ErrorKind::NotFound {
            Failure::NotFound(what)
        } else if kind == io::ErrorKind::PermissionDenied {
            Failure::NotPermitted(what)
        } else {
            Failure::System(what)
        }
    })
}

fn bad(error: BadInput) -> Failure {
    Failure::Usage(error.to_string())
}

fn read_trace(path: &Path, from: impl io::Read, args: &args::Simulate) -> Result<Trace, Failure> {
    let options = TraceOptions {
        seed: args.seed,
        trim: args.trim,
        ..TraceOptions::default()
    };
    Trace::read(path, from, &options).map_err(bad)
}

/// The trace with its models: the file's, or those that the journal knows.
fn join(args: &args::Simulate, trace: &Trace, out: Out) -> Result<Workload, Failure> {
    let from_file = match &args.models {
        Some(path) => Some(Catalogue::read(path, open(path)?).map_err(bad)?),
        None => None,
    };
    let recorded = trace.recorded.as_ref().map(|recorded| &recorded.models);
    let Some(models) = from_file.as_ref().or(recorded) else {
        return Err(Failure::Usage(
            "this trace does not tell how large its models are: name a file of \
             `model,bytes,load_s,exec_s` with --models"
                .into(),
        ));
    };
    let binding = Binding {
        unknown: match (args.skip_unknown, args.draw) {
            (true, _) => Unknown::Skip,
            (false, true) => Unknown::Draw,
            (false, false) => Unknown::Refuse,
        },
        seed: args.seed,
    };
    let joined = Workload::of(trace, models, &binding);
    let (workload, notes) = joined.map_err(|error| Failure::Usage(error.to_string()))?;
    for note in notes {
        out.note(&note);
    }
    if workload.requests.is_empty() {
        return Err(Failure::Usage(
            "no request is left: the trace and the models have no name in common".into(),
        ));
    }
    Ok(workload)
}

fn options(args: &args::Simulate, recorded: Option<&Recorded>) -> Result<Options, Failure> {
    let usage = |error: &dyn std::fmt::Display| Failure::Usage(error.to_string());
    let own = recorded.map(|recorded| recorded.policy.as_str());
    let contenders = match (&args.policy, own) {
        (Some(names), _) => names.clone(),
        (None, Some(own)) if !POLICIES.split(',').any(|name| name == own) => {
            format!("{own},{POLICIES}")
        }
        (None, _) => POLICIES.to_owned(),
    };
    let contenders: Contenders = contenders.parse().map_err(|error| usage(&error))?;
    let sizes = match (&args.cache, &args.tiers, recorded) {
        (Some(sizes), ..) => sizes.parse().map_err(|error| usage(&error))?,
        (None, Some(tiers), _) => Sizes::tiers(tiers).map_err(|error| usage(&error))?,
        (None, None, Some(recorded)) => {
            let budget = u128::from(recorded.budget_bytes);
            let part = |(times, by): (u64, u64)| budget * u128::from(times) / u128::from(by);
            let bytes = OF_BUDGET.map(|share| u64::try_from(part(share)).unwrap_or(u64::MAX));
            Sizes::host(bytes.map(|bytes| Extent::Bytes(bytes.max(1))))
        }
        (None, None, None) => SIZES.parse().map_err(|error| usage(&error))?,
    };
    let mut options = Options::new(contenders.seeded(args.seed), sizes);
    options.prefetch = args.prefetch;
    options.timed = args.timed;
    options.gap = !args.no_gap;
    options.timeline = args.plot.is_some();
    if args.refuse_oversize {
        options.oversize = Oversize::Refuse;
    }
    if let Some(rate) = &args.upload {
        match rate.trim_end_matches("/s").parse() {
            Ok(Extent::Bytes(bytes)) => options.upload_bytes_per_s = bytes,
            Ok(Extent::Percent(_)) | Err(_) => {
                return Err(Failure::Usage(format!(
                    "`{rate}` is no speed: write bytes a second, as in 12GB/s"
                )));
            }
        }
    }
    Ok(options)
}

fn warn_of_large(workload: &Workload, options: &Options, out: Out) {
    let all_bytes = workload.all_bytes();
    for size in options.sizes.all() {
        let room = size.device.unwrap_or(size.host).of(all_bytes);
        let large = workload.models.iter().filter(|model| model.bytes > room);
        let large = units::count(large.count() as u64, "model");
        if workload.largest_bytes() > room {
            let becomes = match options.oversize {
                Oversize::Transient => "loaded for each request alone (--refuse-oversize)",
                Oversize::Refuse => "refused",
            };
            out.note(&format!(
                "at {} {large} will never fit, the largest of {}: {becomes}",
                size.label,
                units::bytes(workload.largest_bytes())
            ));
        }
    }
}

fn table(rows: &[Row]) -> Table {
    let ahead = rows.iter().any(|row| row.prefetch);
    let refused = rows.iter().any(|row| row.refused > 0);
    let mut columns = vec![
        ("POLICY", Align::Left),
        ("CACHE", Align::Right),
        ("MISSES", Align::Right),
        ("BYTES MISSED", Align::Right),
        ("LOAD S", Align::Right),
        ("MEAN S", Align::Right),
        ("P50 S", Align::Right),
        ("P99 S", Align::Right),
        ("LOAD/EXEC", Align::Right),
        ("GAP CLOSED", Align::Right),
    ];
    if ahead {
        columns.push(("PREFETCHED", Align::Right));
        columns.push(("USED", Align::Right));
    }
    if refused {
        columns.push(("REFUSED", Align::Right));
    }
    let mut table = Table::new(&columns);
    let percent = |share: f64| format!("{:.1} %", 100.0 * share);
    let none = || "-".to_owned();
    for row in rows {
        let mut cells: Vec<String> = vec![
            row.policy.clone(),
            row.cache.clone(),
            percent(row.object_miss_ratio),
            percent(row.byte_miss_ratio),
            format!("{:.0}", row.total_load_seconds),
            format!("{:.3}", row.mean_s),
            format!("{:.3}", row.p50_s),
            format!("{:.3}", row.p99_s),
            row.load_over_exec
                .map_or_else(none, |ratio| format!("{ratio:.2}")),
            row.gap_closed.map_or_else(none, percent),
        ];
        if ahead {
            cells.push(row.prefetches.to_string());
            cells.push(row.prefetches_used.to_string());
        }
        if refused {
            cells.push(row.refused.to_string());
        }
        table.row(cells.into_iter().map(Cell::from));
    }
    table
}

/// Writes the pictures.
fn draw(
    dir: &Path,
    workload: &Workload,
    (options, done): (&Options, &Study),
    out: Out,
) -> Result<(), Failure> {
    let write = |name: &str, svg: String| {
        let path = dir.join(name);
        let failed = |cause: io::Error| Failure::System(format!("{}: {cause}", path.display()));
        fs::create_dir_all(dir).map_err(failed)?;
        fs::write(&path, svg).map_err(failed)
    };
    let mut pictures = 0;
    for (name, lines) in against_memory(&done.rows, options.sizes.all()) {
        write(name, lines.svg())?;
        pictures += 1;
    }
    for timeline in &done.timelines {
        let plain = |c: char| if c.is_ascii_alphanumeric() { c } else { '-' };
        let policy: String = timeline.policy.chars().map(plain).collect();
        write(
            &format!("residency-{policy}.svg"),
            residency(workload, timeline),
        )?;
        pictures += 1;
    }
    out.confirm(&format!(
        "{} in {}",
        units::count(pictures, "picture"),
        dir.display()
    ))
}
