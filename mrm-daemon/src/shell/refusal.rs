//! Refusals in words: the object, the reason, the remedy.

use super::{Pending, State};
use mrm_core::effect::{Holder, Refusal};
use mrm_core::id::{Bytes, DeviceId};
use mrm_core::ledger::Tier;
use mrm_proto::error::{ErrorCode, ErrorReply};
use mrm_proto::layout::LayoutError;

impl State {
    pub(super) fn error_of_refusal(&self, refusal: &Refusal, label: Option<&str>) -> ErrorReply {
        let model = label.map_or_else(String::new, |label| format!("`{label}`: "));
        let (code, text) = match refusal {
            Refusal::TooLarge {
                tier,
                want,
                reserve,
                limit,
            } => {
                let text = self.too_large(*tier, (*want, *reserve), *limit);
                (ErrorCode::TooLarge, text)
            }
            Refusal::NoRoom {
                tier,
                want,
                reserve,
                limit,
                charged,
                holders,
            } => (
                ErrorCode::NoRoom,
                self.no_room(*tier, (*want, *reserve), (*charged, *limit), holders),
            ),
            Refusal::OverShare {
                tier,
                reserve,
                kept,
                max,
            } => self.over_share(*tier, *reserve, *kept, *max),
            Refusal::DeviceLost { device } => (ErrorCode::DeviceLost, self.device_lost(*device)),
            Refusal::NoImage => (
                ErrorCode::NoTensors,
                "nothing of it can be laid out on a device: open it in host memory".to_owned(),
            ),
            Refusal::TimedOut => (
                ErrorCode::TimedOut,
                "the load did not end within the wait and goes on: open again".to_owned(),
            ),
            Refusal::QueueFull { waiting, of_tenant } => {
                (ErrorCode::QueueFull, queue_full(*waiting, *of_tenant))
            }
            Refusal::Draining => (
                ErrorCode::Draining,
                "the daemon is about to exit and takes no new leases: try its successor".to_owned(),
            ),
            Refusal::TooManyLeases { held } => (
                ErrorCode::TooManyLeases,
                format!("the session holds {held} leases, which is the limit: close some"),
            ),
            Refusal::UnknownLease => (
                ErrorCode::UnknownLease,
                "the session holds no such lease: it was given back, or is another's".to_owned(),
            ),
            Refusal::Cancelled => (ErrorCode::Cancelled, "given up by the client".to_owned()),
            Refusal::InUse(holder) => (
                ErrorCode::InUse,
                format!("cannot be evicted now: {}", self.why_held(holder, label)),
            ),
        };
        let reply = ErrorReply::new(code, model + &text);
        // A load that was started for it goes on.
        let goes_on = code == ErrorCode::TimedOut;
        if goes_on { reply.with_effect() } else { reply }
    }

    fn too_large(&self, tier: Tier, (want, reserve): (Bytes, Bytes), limit: Bytes) -> String {
        if want <= limit {
            return format!(
                "takes more descriptors than the daemon may keep open for {}: set \
                 LimitNOFILE=65536 in its unit, or raise `ulimit -Hn` before its start",
                match tier {
                    Tier::Host => "host memory".to_owned(),
                    Tier::Device(device) => self.tier.name(device),
                }
            );
        }
        format!(
            "needs {}{}, {} is {}: raise {}",
            human(want),
            part_to_stay_free(reserve),
            self.budget_of(tier),
            human(limit),
            budget_setting(tier)
        )
    }

    fn no_room(
        &self,
        tier: Tier,
        (want, reserve): (Bytes, Bytes),
        (charged, limit): (Bytes, Bytes),
        holders: &[Holder],
    ) -> String {
        format!(
            "needs {} more{}{}; {} of {} are taken and cannot be freed now{}{}: close or unpin some, \
             wait longer, or raise {}",
            human(want),
            part_to_stay_free(reserve),
            self.place_of(tier),
            human(charged),
            human(limit),
            self.list_holders(holders),
            self.taken_by_others(tier, limit),
            budget_setting(tier)
        )
    }

    /// What one user's opens may keep free. Where that is less than one of them wants, no wait helps.
    fn over_share(
        &self,
        tier: Tier,
        reserve: Bytes,
        kept: Bytes,
        max: Bytes,
    ) -> (ErrorCode, String) {
        let (code, cure) = match reserve <= max {
            true => (ErrorCode::NoRoom, "close some, wait longer, or raise"),
            false => (ErrorCode::TooLarge, "ask for less, or raise"),
        };
        let text = format!(
            "{} are to stay free{}, where the opens of one user may keep {} free, and those of this \
             one keep {}: {cure} device.user_reserve_percent",
            human(reserve),
            self.place_of(tier),
            human(max),
            human(kept),
        );
        (code, text)
    }

    fn device_lost(&self, device: DeviceId) -> String {
        let lost = self
            .tier
            .get(device)
            .and_then(|managed| managed.lost.as_deref());
        format!(
            "device {} is lost: {}; open it in host memory, or on another device",
            self.tier.name(device),
            lost.unwrap_or("it does not answer")
        )
    }

    /// Why a model has nothing for devices.
    pub(super) fn no_image(&self, pending: &Pending) -> ErrorReply {
        let record = self.names.model(pending.model);
        let why = record.and_then(|record| record.no_image.as_ref());
        let Some(why) = why else {
            return self.error_of_refusal(&Refusal::NoImage, Some(&pending.label));
        };
        let (code, cure) = match why {
            LayoutError::NoTensors => (ErrorCode::NoTensors, "open it in host memory"),
            LayoutError::TooManyAllocations => (
                ErrorCode::TooManyAllocations,
                "set `granularity` of the model, or device.granularity",
            ),
            LayoutError::Damaged => (ErrorCode::Internal, "report it"),
        };
        ErrorReply::new(code, format!("`{}`: {why}; {cure}", pending.label))
    }

    fn budget_of(&self, tier: Tier) -> String {
        match tier {
            Tier::Host => "the host budget".to_owned(),
            Tier::Device(device) => format!("the budget of device {}", self.tier.name(device)),
        }
    }

    fn place_of(&self, tier: Tier) -> String {
        match tier {
            Tier::Host => String::new(),
            Tier::Device(device) => format!(" on device {}", self.tier.name(device)),
        }
    }

    /// What keeps a device from its budget, if not models.
    fn taken_by_others(&self, tier: Tier, limit: Bytes) -> String {
        let budget = self.core.view().ledger(tier).budget;
        if limit >= budget {
            return String::new();
        }
        format!(
            ", and other processes leave {} of its budget of {}",
            human(limit),
            human(budget)
        )
    }

    /// Why a version cannot be evicted, naming it only if it is another than the one asked for.
    fn why_held(&self, holder: &Holder, asked: Option<&str>) -> String {
        match self.names.version_of(holder.version) {
            Some(record) if asked != Some(&*record.label) => {
                format!("it is shared with `{}`, {}", record.label, reason(holder))
            }
            Some(_) | None => reason(holder),
        }
    }

    fn list_holders(&self, holders: &[Holder]) -> String {
        let mut text = String::new();
        for holder in holders {
            let label = self
                .names
                .version_of(holder.version)
                .map_or("?", |v| &v.label);
            let why = reason(holder);
            let lead = if text.is_empty() { " (" } else { ", " };
            text += &format!("{lead}`{label}` {}: {why}", human(holder.charged));
        }
        if text.is_empty() { text } else { text + ")" }
    }
}

/// How much of what is needed is not for weights.
fn part_to_stay_free(reserve: Bytes) -> String {
    match reserve {
        Bytes::ZERO => String::new(),
        reserve => format!(
            " ({} of it to stay free for the client's own work)",
            human(reserve)
        ),
    }
}

fn queue_full(waiting: impl std::fmt::Display, of_tenant: bool) -> String {
    match of_tenant {
        false => format!(
            "{waiting} requests wait for room already, which is limits.waiting_max: try again later"
        ),
        true => format!(
            "{waiting} requests of this user wait for room already, and the places that are left \
             are for others: try again later"
        ),
    }
}

fn reason(holder: &Holder) -> String {
    match (holder.pinned, holder.loading, holder.leases) {
        (true, _, _) => "pinned".to_owned(),
        (false, true, _) => "being loaded".to_owned(),
        (false, false, 1) => "1 lease".to_owned(),
        (false, false, n) => format!("{n} leases"),
    }
}

const fn budget_setting(tier: Tier) -> &'static str {
    match tier {
        Tier::Host => "host_budget_bytes",
        Tier::Device(_) => "device.budget_bytes",
    }
}

/// Bytes for people: three digits and a binary unit.
pub(super) fn human(bytes: Bytes) -> String {
    const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
    let mut scaled = bytes.0 as f64;
    let mut unit = 0;
    while scaled >= 1024.0 && unit + 1 < UNITS.len() {
        scaled /= 1024.0;
        unit += 1;
    }
    match unit {
        0 => format!("{} B", bytes.0),
        _ => format!("{scaled:.1} {}", UNITS[unit]),
    }
}
