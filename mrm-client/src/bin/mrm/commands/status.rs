//! `mrm status`.

use crate::failure::Failure;
use crate::http::Api;
use crate::look::{Look, Tone, safe};
use crate::out::Out;
use crate::units;
use crate::wire::{Daemon, Device, Devices, Host, Status};
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
    lines.extend(devices(&status.devices, look));
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
    charged(host.charged_bytes, host.limit_bytes, look)
}

fn charged(charged_bytes: u64, limit_bytes: u64, look: Look) -> String {
    let share = units::percent(charged_bytes, limit_bytes);
    let figures = format!(
        "{} of {} ({share})",
        units::bytes(charged_bytes),
        units::bytes(limit_bytes)
    );
    if look.terminal {
        let bar = look.bar(charged_bytes, limit_bytes, BAR_CELLS);
        format!("{bar} {figures}")
    } else {
        figures
    }
}

/// The lines on the device tier: none on a machine without a GPU, or where none is wanted.
fn devices(devices: &Devices, look: Look) -> Vec<(&'static str, String)> {
    let driver = &devices.driver;
    let mut lines = Vec::new();
    if let "stub" | "too_old" | "symbol_missing" | "init_failed" = driver.state.as_str() {
        let cause = safe(driver.cause.as_deref().unwrap_or(&driver.state));
        lines.push((
            "devices",
            format!("{}: {cause}", look.paint(Tone::Warning, "none")),
        ));
        if let Some(cure) = &driver.cure {
            lines.push(("", format!("cure: {}", safe(cure))));
        }
    }
    for one in &devices.devices {
        lines.push(("device", device(one, look)));
        lines.push(("", device_detail(one)));
    }
    lines
}

/// Which device, and what of its budget is charged.
pub(super) fn device(device: &Device, look: Look) -> String {
    let name = safe(device.name.as_deref().unwrap_or("unknown"));
    let rest = match device.state.as_str() {
        "ready" => charged(device.charged_bytes, device.limit_bytes, look),
        "lost" => look.paint(Tone::Bad, "lost"),
        other => look.paint(Tone::Warning, &safe(other)),
    };
    format!("{} {name}: {rest}", short(&device.uuid))
}

/// A device's UUID as far as it tells devices of one machine apart; `--json` has all of it.
pub(super) fn short(uuid: &str) -> String {
    let end = uuid
        .match_indices('-')
        .nth(1)
        .map_or(uuid.len(), |(at, _)| at);
    safe(&uuid[..end])
}

fn device_detail(device: &Device) -> String {
    if device.state != "ready" {
        let mut text = safe(device.cause.as_deref().unwrap_or("no cause is known"));
        if let Some(cure) = &device.cure {
            let _ = write!(text, "; cure: {}", safe(cure));
        }
        return text;
    }
    let mut text = format!(
        "{}, {} loading, {}, lent by {}",
        units::count(device.images, "model"),
        device.loading,
        units::count(device.leases, "lease"),
        safe(device.sharing.as_deref().unwrap_or("-")),
    );
    if device.reserved_bytes > 0 {
        let bytes = units::bytes(device.reserved_bytes);
        let _ = write!(text, ", {bytes} kept free for clients");
    }
    if device.freeing_bytes > 0 {
        let _ = write!(text, ", {} being freed", units::bytes(device.freeing_bytes));
    }
    if let Some(free) = device.free_bytes {
        let total = units::bytes(device.total_bytes);
        let _ = write!(text, ", {} of {total} free", units::bytes(free));
    }
    if let Some(context) = device.context_bytes {
        let _ = write!(text, ", {} for mrmd itself", units::bytes(context));
    }
    if device.limit_bytes < device.budget_bytes {
        let budget = units::bytes(device.budget_bytes);
        let _ = write!(text, ", others leave less than the budget of {budget}");
    }
    text
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
    if host.stock_bytes > 0 {
        let stock = units::bytes(host.stock_bytes);
        let _ = write!(text, ", {stock} ready for loads to come");
    }
    if host.stock_pending_bytes > 0 {
        let more = units::bytes(host.stock_pending_bytes);
        let _ = write!(text, ", {more} being made ready");
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
    let promoted = match counters.promoted_total {
        0 => String::new(),
        copied => format!(", {copied} copied to a device"),
    };
    let mut text = format!(
        "{} ({} found resident, {} joined a load{promoted}), {} of {}",
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
