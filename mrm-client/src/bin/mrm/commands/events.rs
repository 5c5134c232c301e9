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
use std::time::{Duration, Instant};

/// How long the daemon may hold a request until something happens.
const LONG_POLL: Duration = Duration::from_secs(20);
/// A daemon that answers "nothing yet" at once is asked again only after this.
const PAUSE: Duration = Duration::from_millis(500);
const KIND_COLUMNS: usize = 15;

/// Prints what happened; with `--follow`, also what happens from now on.
pub(super) async fn run(api: &Api, args: &args::Events, out: Out) -> Result<(), Failure> {
    let mut since = args.since;
    if !args.follow {
        let document = api.get(&target(since)).await?;
        if out.json {
            return out.document(&document);
        }
        return print(&api.read(&document)?, &document, out);
    }
    loop {
        let asked = Instant::now();
        let wait_ms = LONG_POLL.as_millis();
        let target = format!("{}&wait_ms={wait_ms}", target(since));
        let document = api.get_waiting(&target, LONG_POLL).await?;
        let events: Events = api.read(&document)?;
        print(&events, &document, out)?;
        if events.events.is_empty() && events.next <= since && asked.elapsed() < PAUSE {
            tokio::time::sleep(PAUSE).await;
        }
        since = events.next;
    }
}

fn target(since: u64) -> String {
    format!("/v1/events?since={since}")
}

/// One line each: text, or the daemon's own object.
fn print(events: &Events, document: &Value, out: Out) -> Result<(), Failure> {
    if out.json {
        if events.dropped > 0 {
            out.document_line(&json!({"dropped": events.dropped}))?;
        }
        let rows = document["events"]
            .as_array()
            .map(Vec::as_slice)
            .unwrap_or_default();
        return rows.iter().try_for_each(|row| out.document_line(row));
    }
    if events.dropped > 0 {
        let dropped = units::count(events.dropped, "older event");
        out.note(&format!("{dropped} no longer remembered by the daemon"));
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
        "load_failed" | "open_refused" => Tone::Bad,
        "degraded" | "drain" | "evicted" => Tone::Warning,
        "load_done" | "open_loaded" => Tone::Good,
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
