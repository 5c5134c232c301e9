//! Prints the effective configuration, which reads back as the same one.

use super::load::Loaded;
use super::problem::Origin;
use super::setting::{Key, SETTINGS, Setting};
use super::{Config, Size};
use std::fmt::Write as _;
use std::path::Path;

impl Loaded {
    /// TOML in which each value's comment says where it is from.
    ///
    /// Shares of memory are printed as the bytes that they come to on this host.
    #[must_use]
    pub fn to_toml(&self) -> String {
        let mut out = String::new();
        let from = self
            .file
            .as_ref()
            .map_or("no file was read".to_owned(), |path| {
                // A control character in the file's own name must not end the comment.
                format!("file: {}", path.display().to_string().escape_debug())
            });
        line(
            &mut out,
            &format!("# effective configuration of mrmd; {from}"),
        );
        let mut table = "";
        for row in &SETTINGS {
            let (home, name) = row.table_and_name();
            if home != table {
                line(&mut out, &format!("\n[{home}]"));
                table = home;
            }
            line(&mut out, &self.scalar(row, name));
        }
        self.gpus(&mut out);
        self.lists(&mut out);
        out
    }

    fn scalar(&self, row: &Setting, name: &str) -> String {
        let origin = self.scalars[row.key as usize].as_str();
        match value(&self.config, row.key) {
            Some(value) => format!("{name} = {value}  # from {origin}{}", self.note(row.key)),
            None => format!("# {name} is not set  # from {origin}"),
        }
    }

    fn note(&self, key: Key) -> String {
        if key == Key::HostBudgetBytes {
            let gib = self.config.host_budget_bytes as f64 / f64::from(1 << 30);
            format!(", {gib:.2} GiB")
        } else {
            String::new()
        }
    }

    /// Only a file has them.
    fn gpus(&self, out: &mut String) {
        for gpu in &self.config.device.gpus {
            let uuid = quoted(&gpu.uuid.to_string());
            let from = Origin::File.as_str();
            line(out, &format!("\n[device.gpu.{uuid}]  # from {from}"));
            for (name, size) in [("budget_bytes", gpu.budget), ("reserve_bytes", gpu.reserve)] {
                if let Some(size) = size {
                    line(out, &format!("{name} = {}", quoted(&size.to_string())));
                }
            }
        }
    }

    fn lists(&self, out: &mut String) {
        let head = |out: &mut String, list: &str, origin: Origin| {
            line(out, &format!("\n[[{list}]]  # from {}", origin.as_str()));
        };
        if self.config.models.is_empty() {
            line(
                out,
                &format!("\n# no [[model]]  # from {}", self.models.as_str()),
            );
        }
        for model in &self.config.models {
            head(out, "model", self.models);
            line(out, &format!("name = {}", quoted(model.name.as_str())));
            line(out, &format!("path = {}", quoted_path(&model.path)));
            line(
                out,
                &format!("pin = {}\neager = {}", model.pin, model.eager),
            );
            if let Some(granularity) = model.granularity {
                let word = quoted(granularity.as_str());
                line(out, &format!("granularity = {word}"));
            }
            if model.workspace_bytes > 0 {
                let size = Size::Bytes(model.workspace_bytes).to_string();
                line(out, &format!("workspace_bytes = {}", quoted(&size)));
            }
            // Without a pin it may not be said.
            if model.pin {
                let word = quoted(&model.warm_on.to_string());
                line(out, &format!("warm_on = {word}"));
            }
        }
        if self.config.catalogues.is_empty() {
            line(
                out,
                &format!("\n# no [[catalogue]]  # from {}", self.catalogues.as_str()),
            );
        }
        for catalogue in &self.config.catalogues {
            head(out, "catalogue", self.catalogues);
            line(out, &format!("root = {}", quoted_path(&catalogue.root)));
            if let Some(prefix) = &catalogue.prefix {
                line(out, &format!("prefix = {}", quoted(prefix.as_str())));
            }
        }
    }
}

fn value(config: &Config, key: Key) -> Option<String> {
    let (limits, load) = (&config.limits, &config.load);
    let (device, fill) = (&config.device, &config.device.settings);
    Some(match key {
        Key::RuntimeDir => quoted_path(&config.runtime_dir),
        Key::SocketMode => quoted(&format!("{:04o}", config.socket_mode.bits())),
        Key::SocketGroup => quoted(&config.socket_group.as_ref()?.name),
        Key::StatusGroup => quoted(&config.status_group.as_ref()?.name),
        Key::HostBudgetBytes => config.host_budget_bytes.to_string(),
        Key::HostPolicy => quoted(&config.host_policy.to_string()),
        Key::StateDir => quoted_path(config.state_dir.as_ref()?),
        Key::RevalidateMs => config.revalidate_ms.to_string(),
        Key::DrainMs => config.drain_ms.to_string(),
        Key::LogLevel => quoted(config.log_level.as_str()),
        Key::LogFormat => quoted(config.log_format.as_str()),
        Key::KeeperKind => quoted(config.keeper.kind.as_str()),
        Key::KeeperForMs => config.keeper.for_ms.to_string(),
        Key::KeeperRespawn => quoted(if config.keeper.respawn { "yes" } else { "no" }),
        Key::KeeperGraceMs => config.keeper.grace_ms.to_string(),
        Key::IntegrityCheckAdopted => quoted(if config.integrity.check_adopted {
            "yes"
        } else {
            "no"
        }),
        Key::IntegrityManifest => quoted(config.integrity.manifest.as_str()),
        Key::SessionsMax => limits.sessions_max.to_string(),
        Key::SessionsPerUidMax => limits.sessions_per_uid_max.to_string(),
        Key::WaitingMax => limits.waiting_max.to_string(),
        Key::IdleHelloMs => limits.idle_hello_ms.to_string(),
        Key::OpenWaitMsDefault => limits.open_wait_ms_default.to_string(),
        Key::WriteStallMs => limits.write_stall_ms.to_string(),
        Key::LoadThreads => load.threads.to_string(),
        Key::LoadForeignThreads => load.foreign_threads.to_string(),
        Key::LoadStockBytes => load.stock_bytes.to_string(),
        Key::JournalBytesMax => config.journal.bytes_max.to_string(),
        Key::DaemonSpinUs => config.daemon.spin_us.to_string(),
        Key::JournalDir => quoted_path(config.journal.dir.as_ref()?),
        Key::DeviceEnabled => quoted(device.enabled.as_str()),
        Key::DeviceSharing => quoted(&fill.sharing.to_string()),
        Key::DeviceUuids => {
            let texts = device.uuids.iter().map(|uuid| quoted(&uuid.to_string()));
            format!("[{}]", texts.collect::<Vec<_>>().join(", "))
        }
        Key::DeviceBudgetBytes => quoted(&device.budget.to_string()),
        Key::DeviceReserveBytes => quoted(&device.reserve.to_string()),
        Key::DeviceGranularity => quoted(device.granularity.as_str()),
        Key::DeviceBlockBytes => device.block_bytes.to_string(),
        Key::DeviceRegister => quoted(&fill.register.to_string()),
        Key::DeviceStageBytes => fill.stage_bytes.to_string(),
        Key::DeviceStageSlots => fill.stage_slots.to_string(),
        Key::DeviceFillThreads => fill.fill_threads.to_string(),
        Key::DevicePolicy => quoted(&device.policy.to_string()),
        Key::DevicePrivateUids => {
            let texts = device
                .private_uids
                .iter()
                .map(|uid| quoted(&uid.to_string()));
            format!("[{}]", texts.collect::<Vec<_>>().join(", "))
        }
        Key::DeviceUserReservePercent => device.user_reserve_percent.to_string(),
        Key::PrefetchEnabled => quoted(if config.prefetch.enabled { "yes" } else { "no" }),
        Key::PrefetchSharePercent => config.prefetch.share_percent.to_string(),
    })
}

fn quoted(text: &str) -> String {
    toml::Value::from(text).to_string()
}

/// Every path of a configuration came out of UTF-8 text.
fn quoted_path(path: &Path) -> String {
    quoted(&path.to_string_lossy())
}

fn line(out: &mut String, text: &str) {
    // Writing to a String cannot fail.
    let _ = writeln!(out, "{text}");
}
