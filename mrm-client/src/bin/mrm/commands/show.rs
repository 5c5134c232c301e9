//! `mrm show`.

use crate::failure::Failure;
use crate::http::{Api, model_target};
use crate::look::{Look, Tone};
use crate::out::Out;
use crate::table::{Align, Cell, Table};
use crate::units;
use crate::wire::{Holder, ModelDetail, ModelDevice, Segment, Worth};

/// A digest's first characters tell two apart; `--json` has all.
const DIGEST_CHARS: usize = 16;

/// Prints all about one model.
pub(super) async fn run(api: &Api, name: &str, out: Out) -> Result<(), Failure> {
    let document = api.get(&model_target(name, "")).await?;
    if out.json {
        return out.document(&document);
    }
    let detail: ModelDetail = api.read(&document)?;
    out.text(&render(&detail, out.look))
}

fn render(detail: &ModelDetail, look: Look) -> String {
    let mut text = facts(detail).render(look);
    if !detail.segments.is_empty() {
        text.push('\n');
        text.push_str(&segments(&detail.segments).render(look));
    }
    if !detail.model.devices.is_empty() {
        text.push('\n');
        text.push_str(&devices(&detail.model.devices).render(look));
    }
    if !detail.worth.is_empty() {
        text.push('\n');
        text.push_str(&worth(&detail.worth).render(look));
    }
    if !detail.holders.is_empty() {
        text.push('\n');
        text.push_str(&holders(&detail.holders).render(look));
    }
    text
}

fn facts(detail: &ModelDetail) -> Table {
    let model = &detail.model;
    let or_dash = |text: Option<String>| text.unwrap_or_else(|| "-".into());
    let yes = |is: bool| if is { "yes" } else { "no" };
    let mut table = Table::new(&[("", Align::Left), ("", Align::Left)]);
    let mut fact = |key: &str, value: Cell| table.row([Cell::toned(key, Tone::Strong), value]);
    fact("name", model.name.as_str().into());
    fact("state", super::ls::state(model));
    fact("kind", or_dash(model.kind.clone()).into());
    fact("registered", yes(model.registered).into());
    fact("path", or_dash(model.path.clone()).into());
    fact("size", size(model.bytes).into());
    let charged = units::bytes(model.charged_bytes);
    fact(
        "memory",
        format!("{charged}, in huge pages {}", super::ls::huge(model)).into(),
    );
    fact(
        "tensors",
        or_dash(detail.tensors.map(|tensors| tensors.to_string())).into(),
    );
    fact(
        "version",
        or_dash(model.version.map(|version| version.to_string())).into(),
    );
    fact("digest", or_dash(model.digest.clone()).into());
    fact(
        "load",
        or_dash(model.load_ms.map(|ms| units::seconds(ms / 1e3))).into(),
    );
    fact(
        "last use",
        or_dash(model.last_used_s_ago.map(units::ago)).into(),
    );
    let (leases, sessions) = (
        units::count(model.leases, "lease"),
        units::count(model.sessions, "session"),
    );
    fact("held", format!("{leases} of {sessions}").into());
    if detail.reserve_lately_bytes > 0 {
        let lately = units::bytes(detail.reserve_lately_bytes);
        fact(
            "kept free",
            format!("{lately} on devices, at most, of late").into(),
        );
    }
    fact("pinned", yes(model.pinned).into());
    fact("eager", yes(model.eager).into());
    table
}

fn segments(segments: &[Segment]) -> Table {
    let mut table = Table::new(&[
        ("FILE", Align::Shrink),
        ("STATE", Align::Left),
        ("SIZE", Align::Right),
        ("HUGE", Align::Right),
        ("LEASES", Align::Right),
        ("READ", Align::Left),
        ("DIGEST", Align::Left),
    ]);
    for segment in segments {
        let digest = segment.digest.as_deref().unwrap_or("-");
        table.row([
            segment.name.as_str().into(),
            segment.state.as_str().into(),
            units::bytes(segment.bytes).into(),
            units::percent(segment.huge_bytes, segment.bytes).into(),
            segment.leases.to_string().into(),
            segment.way.as_deref().unwrap_or("-").into(),
            digest.chars().take(DIGEST_CHARS).collect::<String>().into(),
        ]);
    }
    table
}

fn devices(devices: &[ModelDevice]) -> Table {
    let mut table = Table::new(&[
        ("DEVICE", Align::Left),
        ("STATE", Align::Left),
        ("SIZE", Align::Right),
        ("KEPT FREE", Align::Right),
        ("LEASES", Align::Right),
    ]);
    for device in devices {
        table.row([
            device.uuid.as_str().into(),
            super::ls::on_device(device).into(),
            units::bytes(device.bytes).into(),
            units::bytes(device.reserved_bytes).into(),
            device.leases.to_string().into(),
        ]);
    }
    table
}

fn worth(worth: &[Worth]) -> Table {
    let mut table = Table::new(&[
        ("KEPT IN", Align::Left),
        ("POLICY", Align::Left),
        ("WORTH", Align::Right),
        ("GOES AFTER", Align::Right),
        ("BY", Align::Shrink),
    ]);
    for worth in worth {
        let factors = worth.factors.iter();
        let factors: Vec<String> = factors
            .map(|(name, value)| format!("{name} {}", units::number(*value)))
            .collect();
        let others = worth.candidates.saturating_sub(1);
        table.row([
            super::status::short(&worth.tier).into(),
            worth.policy.as_str().into(),
            units::number(worth.worth).into(),
            format!("{} of {others}", worth.rank).into(),
            factors.join(", ").into(),
        ]);
    }
    table
}

fn holders(holders: &[Holder]) -> Table {
    let mut table = Table::new(&[
        ("HELD BY", Align::Shrink),
        ("PID", Align::Right),
        ("UID", Align::Right),
        ("SESSION", Align::Right),
        ("WHERE", Align::Left),
        ("LEASES", Align::Right),
    ]);
    for holder in holders {
        table.row([
            client_name(&holder.client),
            pid(holder.pid),
            holder.uid.to_string().into(),
            holder.session.to_string().into(),
            match holder.tier.as_str() {
                "" => "-".into(),
                tier => super::status::short(tier).into(),
            },
            holder.leases.to_string().into(),
        ]);
    }
    table
}

/// What a client calls itself; it may call itself nothing.
pub(super) fn client_name(name: &str) -> Cell {
    if name.is_empty() {
        Cell::toned("(unnamed)", Tone::Faint)
    } else {
        name.into()
    }
}

/// A process, where the daemon can see it.
pub(super) fn pid(pid: u32) -> Cell {
    if pid == 0 {
        "-".into()
    } else {
        pid.to_string().into()
    }
}

/// A size, once it is known.
pub(super) fn size(bytes: u64) -> String {
    if bytes == 0 {
        "-".into()
    } else {
        units::bytes(bytes)
    }
}
