//! `mrm status`.

use crate::failure::Failure;
use crate::http::Api;
use crate::look::{Look, Tone, safe};
use crate::out::Out;
use crate::units;
use crate::wire::{Daemon, Host, Status};
use std::fmt::Write as _;

const BAR_CELLS: usize = 24;

/// Prints the overview.
pub(super) async fn run(api: &Api, out: Out) -> Result<(), Failure> {
    let document = api.get("/v1/status").await?;
    if out.json {
        return out.document(&document);
    }
    let status: Status = api.read(&document)?;
    out.text(&render(&status, out.look))
}

fn render(status: &Status, look: Look) -> String {
    let mut lines = vec![("daemon", daemon(&status.daemon, look))];
    if let Some(directory) = &status.daemon.runtime_dir {
        lines.push(("runtime", safe(directory)));
    }
    lines.push(("host", memory(&status.host, look)));
    lines.push(("", memory_detail(&status.host)));
    lines.push(("clients", clients(status)));
    lines.push(("so far", so_far(status)));
    let mut text = String::new();
    for (key, value) in lines {
        let _ = writeln!(
            text,
            "{}  {value}",
            look.paint(Tone::Strong, &format!("{key:<8}"))
        );
    }
    if status.degraded.is_empty() {
        let key = look.paint(Tone::Strong, "degraded");
        let _ = writeln!(text, "{key}  nothing");
        return text;
    }
    for path in &status.degraded {
        let key = look.paint(Tone::Warning, "degraded");
        let id = look.paint(Tone::Strong, &safe(&path.id));
        let _ = writeln!(text, "{key}  {id}: {}", safe(&path.cause));
        let _ = writeln!(text, "          cure: {}", safe(&path.cure));
    }
    text
}

/// Version, state, process, age.
pub(super) fn daemon(daemon: &Daemon, look: Look) -> String {
    let tone = match daemon.state.as_str() {
        "serving" => Tone::Good,
        _ => Tone::Warning,
    };
    let protocol = match (daemon.protocol.min, daemon.protocol.max) {
        (min, max) if min == max => format!("protocol {max}"),
        (min, max) => format!("protocols {min} to {max}"),
    };
    format!(
        "mrmd {}, {}, pid {}, up {}, {protocol}",
        safe(&daemon.version),
        look.paint(tone, &safe(&daemon.state)),
        daemon.pid,
        units::seconds(daemon.uptime_s),
    )
}

/// What of the budget is charged.
pub(super) fn memory(host: &Host, look: Look) -> String {
    let share = units::percent(host.charged_bytes, host.limit_bytes);
    let figures = format!(
        "{} of {} ({share})",
        units::bytes(host.charged_bytes),
        units::bytes(host.limit_bytes)
    );
    if look.terminal {
        format!(
            "{} {figures}",
            look.bar(host.charged_bytes, host.limit_bytes, BAR_CELLS)
        )
    } else {
        figures
    }
}

fn memory_detail(host: &Host) -> String {
    let mut text = format!(
        "{} resident in {}, {} in huge pages",
        units::bytes(host.resident_bytes),
        units::count(host.segments, "segment"),
        units::percent(host.huge_bytes, host.resident_bytes),
    );
    if host.freeing_bytes > 0 {
        let _ = write!(text, ", {} being freed", units::bytes(host.freeing_bytes));
    }
    text
}

/// Who is connected, and what they do.
pub(super) fn clients(status: &Status) -> String {
    format!(
        "{}, {}, {} waiting, {} loading",
        units::count(status.sessions, "session"),
        units::count(status.leases, "lease"),
        status.waiting,
        status.loading
    )
}

fn so_far(status: &Status) -> String {
    let counters = &status.counters;
    let mut text = format!(
        "{} ({} found resident, {} joined a load), {} of {}",
        units::count(counters.opens_total, "open"),
        counters.hits_total,
        counters.joined_total,
        units::count(counters.loads_total, "load"),
        units::bytes(counters.loaded_bytes_total),
    );
    let _ = write!(
        text,
        ", {}",
        units::count(counters.evictions_total, "eviction")
    );
    if counters.load_failures_total > 0 {
        let failures = units::count(counters.load_failures_total, "failed load");
        let _ = write!(text, ", {failures}");
    }
    if counters.refusals_total > 0 {
        let _ = write!(
            text,
            ", {}",
            units::count(counters.refusals_total, "refusal")
        );
    }
    text
}
