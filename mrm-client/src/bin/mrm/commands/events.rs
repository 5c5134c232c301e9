//! `mrm events`.

use crate::args;
use crate::failure::Failure;
use crate::http::Api;
use crate::look::{Look, Tone, safe};
use crate::out::Out;
use crate::units;
use crate::wire::{Event, Events};
use serde_json::{Value, json};
use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// How long the daemon may hold a request until something happens.
const LONG_POLL: Duration = Duration::from_secs(20);
/// A daemon that answers "nothing yet" at once is asked again only after this.
const PAUSE: Duration = Duration::from_millis(500);
const PAGE_ROWS: u64 = 1024;
const KIND_COLUMNS: usize = 15;

/// Prints what happened; with `--follow`, also what happens from now on; or exports the journal.
pub(super) async fn run(api: &Api, args: &args::Events, out: Out) -> Result<(), Failure> {
    if let Some(path) = &args.export {
        export(api, path, out).await
    } else if args.follow {
        follow(api, args.since, out).await
    } else {
        recent(api, args.since, out).await
    }
}

/// Writes the journal to a file that appears under its name only when it is whole.
async fn export(api: &Api, path: &Path, out: Out) -> Result<(), Failure> {
    let failed = |cause: io::Error| Failure::System(format!("{}: {cause}", path.display()));
    let mut unfinished = path.as_os_str().to_owned();
    unfinished.push(".unfinished");
    let unfinished = PathBuf::from(unfinished);
    let mut options = File::options();
    let options = options.write(true).create(true).truncate(true).mode(0o600);
    let mut file = options.open(&unfinished).map_err(failed)?;
    let sink = |bytes: &[u8]| file.write_all(bytes).map_err(failed);
    let written = api.download("/v1/journal", sink).await;
    let bytes = match written {
        Ok(bytes) => bytes,
        Err(failure) => {
            // What is left behind would only be in the way; the failure is what counts.
            let _ = fs::remove_file(&unfinished);
            return Err(failure);
        }
    };
    fs::rename(&unfinished, path).map_err(failed)?;
    if out.json {
        return out.document(&json!({"file": path, "bytes": bytes}));
    }
    let size = units::bytes(bytes);
    out.confirm(&format!("{size} of journal in {}", path.display()))
}

/// Page by page up to the present: text as it comes, JSON as one document.
async fn recent(api: &Api, since: u64, out: Out) -> Result<(), Failure> {
    let (mut next, mut dropped, mut rows) = (since, 0, Vec::new());
    loop {
        let mut document = api.get(&target(next)).await?;
        let events: Events = api.read(&document)?;
        let done = events.events.is_empty() || events.next <= next;
        (next, dropped) = (events.next, dropped + events.dropped);
        if !out.json {
            print(&events, &document, since > 0, out)?;
        } else if let Value::Array(mut page) = document["events"].take() {
            rows.append(&mut page);
        }
        if done {
            break;
        }
    }
    if out.json {
        out.document(&json!({"events": rows, "next": next, "dropped": dropped}))?;
    }
    Ok(())
}

/// Prints lines until interrupted, or until the daemon ends.
async fn follow(api: &Api, mut since: u64, out: Out) -> Result<(), Failure> {
    let mut gap_matters = since > 0;
    loop {
        let asked = Instant::now();
        let target = format!("{}&wait_ms={}", target(since), LONG_POLL.as_millis());
        let document = api.get_waiting(&target, LONG_POLL).await?;
        let events: Events = api.read(&document)?;
        print(&events, &document, gap_matters, out)?;
        gap_matters = true;
        if events.next < since {
            out.note("the daemon was restarted: its events are numbered anew");
            since = 0;
            gap_matters = false;
            continue;
        }
        if events.events.is_empty() && events.next == since && asked.elapsed() < PAUSE {
            tokio::time::sleep(PAUSE).await;
        }
        since = events.next;
    }
}

fn target(since: u64) -> String {
    format!("/v1/events?since={since}&limit={PAGE_ROWS}")
}

/// One line each: text, or the daemon's own object. A gap is told where the reader asked for
/// what is missing.
fn print(events: &Events, document: &Value, gap_matters: bool, out: Out) -> Result<(), Failure> {
    if out.json {
        if events.dropped > 0 && gap_matters {
            out.document_line(&json!({"dropped": events.dropped}))?;
        }
        let rows = document["events"]
            .as_array()
            .map(Vec::as_slice)
            .unwrap_or_default();
        return rows.iter().try_for_each(|row| out.document_line(row));
    }
    if events.dropped > 0 && gap_matters {
        let dropped = units::count(events.dropped, "older event");
        out.note(&format!("the daemon no longer remembers {dropped}"));
    }
    let text: String = events
        .events
        .iter()
        .map(|event| line(event, out.look))
        .collect();
    if text.is_empty() {
        Ok(())
    } else {
        out.text(&text)
    }
}

fn line(event: &Event, look: Look) -> String {
    let tone = match event.kind.as_str() {
        "load_failed" | "open_refused" | "device_lost" | "lease_revoked" | "damaged" => Tone::Bad,
        "degraded" | "drain" | "evicted" | "device_evicted" | "registration_failed" => {
            Tone::Warning
        }
        "load_done" | "open_loaded" | "open_promoted" => Tone::Good,
        _ => Tone::Plain,
    };
    let pad = " ".repeat(KIND_COLUMNS.saturating_sub(event.kind.len()));
    let mut line = format!(
        "{}  {:>6}  {}{pad}",
        look.paint(Tone::Faint, &units::utc(event.time_ms)),
        event.seq,
        look.paint(tone, &safe(&event.kind)),
    );
    if let Some(session) = event.session {
        let _ = write!(line, "  session {session}");
    }
    if let Some(model) = &event.model {
        let _ = write!(line, "  {}", safe(model));
    }
    if let Some(bytes) = event.bytes {
        let _ = write!(line, "  {}", units::bytes(bytes));
    }
    if let Some(detail) = event.detail.as_deref().filter(|detail| !detail.is_empty()) {
        let _ = write!(line, "  {}", safe(detail));
    }
    line.truncate(line.trim_end().len());
    line.push('\n');
    line
}
