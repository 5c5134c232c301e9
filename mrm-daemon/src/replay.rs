//! `mrmd --replay`: tells people or programs what a journal came to.

use crate::{Failure, Outcome, failed, print};
use mrm_daemon::journal::replay::{Options, Progress, Report, Stop, replay};
use std::fmt::Write as _;
use std::io::{self, IsTerminal as _, Read as _, Write as _};
use std::path::Path;
use std::time::{Duration, Instant};

/// Largest file that is read. A journal in memory is at most half of it.
const FILE_BYTES_MAX: u64 = 2 << 30;
/// A replay that is shorter needs no bar.
const QUIET: Duration = Duration::from_secs(2);
const REDRAWN_EVERY: Duration = Duration::from_millis(100);
const CELLS: usize = 40;

/// Prints the report; fails if the replay did not end as a healthy daemon does.
pub(crate) fn run(path: &Path, json: bool) -> Outcome {
    let refused = |error: &dyn std::fmt::Display| {
        let message = format!("{}: {error}", path.display());
        (Failure::Failed, message)
    };
    let file = read(path).map_err(|error| refused(&error))?;
    let mut bar = Bar::new();
    let report = replay(&file, &Options::default(), |progress| bar.show(progress));
    bar.clear();
    let report = report.map_err(|error| refused(&error))?;
    let text = if json {
        let mut text = serde_json::to_string(&report).map_err(failed)?;
        text.push('\n');
        text
    } else {
        words(&report)
    };
    print(text.as_bytes())?;
    if report.is_clean() {
        return Ok(());
    }
    let message = match (&report.violation, &report.divergence) {
        (Some(stop), _) => format!("event {} broke a rule: {}", stop.index, stop.violation),
        (None, Some(_)) => "the replay decided otherwise than the daemon".to_owned(),
        (None, None) => "the violation that the daemon found did not come again".to_owned(),
    };
    Err((Failure::Failed, message))
}

fn read(path: &Path) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let file = std::fs::File::open(path)?;
    file.take(FILE_BYTES_MAX + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > FILE_BYTES_MAX {
        let message = format!("over {FILE_BYTES_MAX} bytes: this is no journal of mrmd");
        return Err(io::Error::other(message));
    }
    Ok(bytes)
}

fn words(report: &Report) -> String {
    let mut text = String::new();
    let commit = report.commit.as_deref().unwrap_or("not known");
    let counts = &report.counts;
    // Writing to a String cannot fail.
    let _ = writeln!(
        text,
        "run {} of mrmd {} (commit {commit})\n\
         {} events in {:.3} s\n\
         {} sessions, {} opens: {} hits, {} loaded, {} joined, {} promoted\n\
         {} loads, {} segments dropped",
        report.instance,
        report.release,
        counts.events,
        report.last_us as f64 / 1e6,
        counts.sessions,
        counts.opens,
        counts.hits,
        counts.loaded,
        counts.joined,
        counts.promoted,
        counts.loads,
        counts.frees,
    );
    let end = &report.end;
    let _ = writeln!(
        text,
        "at the end {} sessions, {} leases, {} effects in flight",
        end.sessions, end.leases, end.in_flight
    );
    for tier in &end.tiers {
        let _ = writeln!(
            text,
            "  {}: {} B of {} B charged, {} B resident",
            tier.tier, tier.charged_bytes, tier.limit_bytes, tier.resident_bytes
        );
    }
    if report.cut_off {
        text.push_str("the file was cut off: what is missing was not run\n");
    }
    if let Some(violation) = &report.recorded_violation {
        let _ = writeln!(text, "the daemon stopped here: {violation}");
    }
    for (what, stop) in [
        ("the replay stops here", &report.violation),
        ("the replay differs here", &report.divergence),
    ] {
        if let Some(stop) = stop {
            let _ = writeln!(text, "{what}: {}", at(stop));
        }
    }
    text
}

fn at(stop: &Stop) -> String {
    format!(
        "{}\n  by event {} at {:.6} s: {}",
        stop.violation,
        stop.index,
        stop.now_us as f64 / 1e6,
        stop.event
    )
}

/// On a terminal, for what takes long.
struct Bar {
    began: Instant,
    drawn: Option<Instant>,
    calls: u32,
}

impl Bar {
    fn new() -> Self {
        Self {
            began: Instant::now(),
            drawn: None,
            calls: 0,
        }
    }

    fn show(&mut self, progress: Progress) {
        // The clock is dearer than an event.
        self.calls = self.calls.wrapping_add(1);
        if !self.calls.is_multiple_of(64)
            || self.began.elapsed() < QUIET
            || !io::stderr().is_terminal()
        {
            return;
        }
        if self
            .drawn
            .is_some_and(|drawn| drawn.elapsed() < REDRAWN_EVERY)
        {
            return;
        }
        self.drawn = Some(Instant::now());
        let all = progress.all_bytes.max(1);
        let full = progress.done_bytes * CELLS / all;
        let _ = write!(
            io::stderr(),
            "\r[{}{}] {:3} %",
            "#".repeat(full),
            "-".repeat(CELLS.saturating_sub(full)),
            progress.done_bytes * 100 / all
        );
    }

    fn clear(&self) {
        if self.drawn.is_some() {
            let _ = write!(io::stderr(), "\r{}\r", " ".repeat(CELLS + 8));
        }
    }
}
