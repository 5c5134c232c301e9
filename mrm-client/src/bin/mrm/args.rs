//! The command line: what may be typed, and what `--help` says about it.

use crate::units;
use clap::{Args, Parser, Subcommand, ValueEnum};
use mrm_client::Tier;
use mrm_client::device::{Devices, DevicesParseError};
use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

/// Longest wait that `--wait` accepts: the protocol's own bound.
const WAIT_MAX: Duration = Duration::from_millis(mrm_proto::limits::WAIT_MS_MAX);

/// Ask and steer `mrmd`, the daemon that lends model weights on this node.
#[derive(Debug, Parser)]
#[command(name = "mrm", version, propagate_version = true, max_term_width = 100)]
#[command(
    after_help = "Exit status: 0 done, 1 the daemon refused, 2 usage, 3 no daemon, \
    4 not permitted, 5 not found, 124 timed out.\n\
    `mrm open MODEL -- CMD` ends with CMD's own status. More in `mrm man`."
)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) global: Global,
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// What every command accepts.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Common options")]
pub(crate) struct Global {
    /// Print JSON for programs: the daemon's own document, or {"error": ...}
    #[arg(long, global = true)]
    pub(crate) json: bool,
    /// The daemon's client socket [default: $MRM_SOCKET, else $MRM_RUNTIME_DIR/mrmd.sock, else the
    /// first of $XDG_RUNTIME_DIR/mrm/mrmd.sock and /run/mrm/mrmd.sock]
    #[arg(long, global = true, value_name = "PATH")]
    pub(crate) socket: Option<PathBuf>,
    /// The daemon's status socket, which all but `open` use [default: $MRM_STATUS_SOCKET, else
    /// status.sock beside the client socket]
    #[arg(long, global = true, value_name = "PATH")]
    pub(crate) status_socket: Option<PathBuf>,
    /// Colours: `auto` means on a terminal, unless $NO_COLOR is set
    #[arg(long, global = true, value_name = "WHEN", default_value = "auto")]
    pub(crate) color: ColorWhen,
    /// Say nothing but what was asked for: no progress, no confirmations
    #[arg(short, long, global = true)]
    pub(crate) quiet: bool,
}

/// When to colour.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum ColorWhen {
    Auto,
    Always,
    Never,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// The daemon at a glance: memory, devices, clients, counters, what is degraded
    Status,
    /// List models: name, state, size, huge pages, leases, pin, last use, devices
    Ls {
        /// Only names that begin with this
        prefix: Option<String>,
    },
    /// Everything about one model: files, digests, devices, who holds it
    Show {
        /// The model's name
        model: String,
    },
    /// Watch the daemon: refreshed each second on a terminal, `q` quits
    Top {
        /// Print one picture and exit, as is done anyway when not on a terminal
        #[arg(long)]
        once: bool,
    },
    /// Open a model: report what was lent, or hold it while a command runs
    Open(Open),
    /// Load models before anyone asks for them
    Warm(Warm),
    /// Keep models resident, whoever uses them
    Pin(Models),
    /// Let models be evicted again
    Unpin(Models),
    /// Free the memory of models that nobody holds
    Evict(Evict),
    /// Compare what is in memory with what was loaded; what is damaged is loaded anew
    Verify(Verify),
    /// Say that models will be opened soon, so that they are loaded before that
    Hint(Hint),
    /// What leaves memory first when room is needed: shows it, or changes it until the next restart
    Policy(Policy),
    /// What happened in the daemon lately
    Events(Events),
    /// What another policy, or more memory, would have meant for a recorded day
    Simulate(Simulate),
    /// Check this node: kernel, limits, huge pages, sockets, GPUs; says what to do
    Doctor,
    /// Print a completion script for a shell
    Completions {
        /// The shell
        shell: Shell,
    },
    /// Print the manual page (roff): `mrm man | man -l -`
    Man,
}

/// One or more names.
#[derive(Debug, Args)]
pub(crate) struct Models {
    /// The models' names
    #[arg(required = true, value_name = "MODEL")]
    pub(crate) models: Vec<String>,
}

/// `mrm warm`.
#[derive(Debug, Args)]
pub(crate) struct Warm {
    /// The models' names
    #[arg(required = true, value_name = "MODEL")]
    pub(crate) models: Vec<String>,
    /// Into the memory of a device instead of the host's: `any` of the daemon's, `GPU-...` (its
    /// UUID), or `best` (any that can take it now, else the host's memory)
    #[arg(long, value_name = "DEVICE", value_parser = parse_warm)]
    pub(crate) device: Option<String>,
    /// How long to wait for each (30s, 2m, 500ms; 0 asks without waiting)
    #[arg(long, value_name = "TIME", default_value = "30s", value_parser = parse_wait)]
    pub(crate) wait: Duration,
}

/// `mrm hint`.
#[derive(Debug, Args)]
pub(crate) struct Hint {
    /// The models' names
    #[arg(required = true, value_name = "MODEL")]
    pub(crate) models: Vec<String>,
    /// When they will be opened (30s, 2m, 500ms)
    #[arg(long = "in", value_name = "TIME", default_value = "0", value_parser = parse_wait)]
    pub(crate) due: Duration,
}

/// `mrm policy`.
#[derive(Debug, Args)]
pub(crate) struct Policy {
    /// A policy and its settings, as `gc`, or `random seed=7`; `configured` goes back to what the
    /// configuration says [default: only show]
    #[arg(value_name = "POLICY")]
    pub(crate) policy: Vec<String>,
    /// Only there: `host`, or the UUID of a device, GPU-... [default: everywhere]
    #[arg(long, value_name = "TIER", value_parser = parse_place)]
    pub(crate) tier: Option<String>,
}

/// `mrm evict`.
#[derive(Debug, Args)]
pub(crate) struct Evict {
    /// The models' names
    #[arg(required = true, value_name = "MODEL")]
    pub(crate) models: Vec<String>,
    /// Only from there: `host`, or the UUID of a device, GPU-... [default: everywhere]
    #[arg(long, value_name = "TIER", value_parser = parse_place)]
    pub(crate) from: Option<String>,
}

/// `mrm verify`.
#[derive(Debug, Args)]
pub(crate) struct Verify {
    /// The models' names
    #[arg(required_unless_present = "all", value_name = "MODEL")]
    pub(crate) models: Vec<String>,
    /// Everything that is in memory
    #[arg(long, conflicts_with = "models")]
    pub(crate) all: bool,
    /// How long to wait for the answer to each; the check goes on after that
    #[arg(long, value_name = "TIME", default_value = "1h", value_parser = parse_wait)]
    pub(crate) wait: Duration,
}

/// `mrm open`.
#[derive(Debug, Args)]
pub(crate) struct Open {
    /// A registered name; or a path to an existing file or directory, if it contains a slash
    pub(crate) model: String,
    /// Take MODEL as a path even without a slash
    #[arg(long)]
    pub(crate) path: bool,
    /// Take MODEL as a registered name even if a file or directory of that path exists
    #[arg(long, conflicts_with = "path")]
    pub(crate) name: bool,
    /// Keep the model open until Ctrl-C
    #[arg(long, conflicts_with = "command")]
    pub(crate) hold: bool,
    /// How long to wait for the load and for room (30s, 2m, 500ms)
    #[arg(long, value_name = "TIME", default_value = "30s", value_parser = parse_wait)]
    pub(crate) wait: Duration,
    /// In the memory of a device: `cuda:0` or `0` (as this process counts), `GPU-...` (its UUID),
    /// `cuda` (any), or `best` (any, else the host's memory)
    #[arg(long, value_name = "DEVICE", value_parser = parse_tier)]
    pub(crate) device: Option<Tier>,
    /// How much of the device is to stay free of weights while the model is open (512MiB, 2GiB, or
    /// bytes): what the command needs there to run
    #[arg(long, value_name = "BYTES", value_parser = units::parse_bytes, requires = "device")]
    pub(crate) reserve: Option<u64>,
    /// A command that runs while the model is held; it sees MRM_MODEL and the other MRM_ variables
    #[arg(last = true, value_name = "CMD")]
    pub(crate) command: Vec<OsString>,
}

/// `mrm events`.
#[derive(Debug, Args)]
pub(crate) struct Events {
    /// Go on printing what happens until Ctrl-C
    #[arg(short, long)]
    pub(crate) follow: bool,
    /// Begin at this sequence number instead of the oldest that the daemon remembers
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub(crate) since: u64,
    /// Write the daemon's journal to FILE instead: all that it was asked and decided, for
    /// `mrmd --replay` and for simulations. Operators only
    #[arg(long, value_name = "FILE", conflicts_with_all = ["follow", "since"])]
    pub(crate) export: Option<PathBuf>,
}

/// `mrm simulate`.
#[derive(Debug, Args)]
#[command(group(clap::ArgGroup::new("day").required(true).args(["trace", "from_daemon"])))]
pub(crate) struct Simulate {
    /// The recorded requests: `t_s,model`, `minute,func,count`, a file of Azure Functions 2019 or
    /// 2021, or a journal of `mrm events --export`; gzip or not
    #[arg(long, value_name = "FILE")]
    pub(crate) trace: Option<PathBuf>,
    /// Take the journal of the daemon that runs. Operators only
    #[arg(long)]
    pub(crate) from_daemon: bool,
    /// The models: `model,bytes,load_s,exec_s`. A journal knows its own
    #[arg(long, value_name = "FILE")]
    pub(crate) models: Option<PathBuf>,
    /// The policies, as in `host_policy`, and `belady` and `cremebrulee-oracle`, which know the
    /// future [default: lru,gdsf,gc,mix, and the journal's own]
    #[arg(long, value_name = "NAME[,NAME]")]
    pub(crate) policy: Option<String>,
    /// The memory, in shares of the bytes of all models or in bytes: `5%..75%`, `10%,20%`, `64GiB`
    /// [default: 5%..75%; half, once, twice and four times the budget of a journal]
    #[arg(long, value_name = "SIZES", conflicts_with = "tiers")]
    pub(crate) cache: Option<String>,
    /// The memory of a device over that of the host: `device=80GiB,host=50%`
    #[arg(long, value_name = "SIZES")]
    pub(crate) tiers: Option<String>,
    /// What an upload from host memory to the device reaches [default: 12GB/s]
    #[arg(long, value_name = "RATE", requires = "tiers")]
    pub(crate) upload: Option<String>,
    /// Load ahead what is likely to be used soon, as `[prefetch]` does
    #[arg(long)]
    pub(crate) prefetch: bool,
    /// For the order of requests within a minute, `random`, and models that are drawn
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub(crate) seed: u64,
    /// Leave out what CremeBrulee leaves out: functions that are used more than 95 % of them are,
    /// and those that are used once
    #[arg(long)]
    pub(crate) trim: bool,
    /// Leave out requests for models that the models' file does not have
    #[arg(long)]
    pub(crate) skip_unknown: bool,
    /// Let a model that the models' file does not have be as large and slow as one of it, drawn
    #[arg(long, conflicts_with = "skip_unknown")]
    pub(crate) draw: bool,
    /// Refuse models that are larger than the memory, instead of loading them for each request
    #[arg(long)]
    pub(crate) refuse_oversize: bool,
    /// Let loads take their time on the clock: requests join them, or come in between
    #[arg(long)]
    pub(crate) timed: bool,
    /// Do not run LRU and the oracle for the share of the gap between them
    #[arg(long)]
    pub(crate) no_gap: bool,
    /// Draw delay and misses against memory, and what is resident when, as SVG files in DIR
    #[arg(long, value_name = "DIR")]
    pub(crate) plot: Option<PathBuf>,
}

/// Shells with completions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Shell {
    Bash,
    Zsh,
    Fish,
}

/// Reads `500ms`, `30s`, `2m`, `1h`, or a bare number of seconds.
fn parse_wait(text: &str) -> Result<Duration, String> {
    let digits_end = text
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(text.len());
    let (digits, unit) = text.split_at(digits_end);
    let number: u64 = digits
        .parse()
        .map_err(|_| format!("`{text}` is not a time: write 500ms, 30s or 2m"))?;
    let unit_ms = match unit {
        "ms" => 1,
        "" | "s" => 1000,
        "m" | "min" => 60_000,
        "h" => 3_600_000,
        _ => return Err(format!("`{unit}` is not a unit of time: use ms, s, m or h")),
    };
    let wait = Duration::from_millis(number.saturating_mul(unit_ms));
    if wait > WAIT_MAX {
        return Err(format!("at most {} minutes", WAIT_MAX.as_secs() / 60));
    }
    Ok(wait)
}

/// Reads where weights are wanted.
fn parse_tier(text: &str) -> Result<Tier, DevicesParseError> {
    if text == "best" {
        return Ok(Tier::Best(Devices::Visible));
    }
    text.parse().map(Tier::Device)
}

/// Reads a place to load to, as the daemon calls it.
fn parse_warm(text: &str) -> Result<String, String> {
    match text {
        "any" | "cuda" | "device" => Ok("device".into()),
        "best" => Ok("best".into()),
        text => parse_uuid(text, "write any, best, or its UUID"),
    }
}

/// Reads a place to drop from, as the daemon calls it.
fn parse_place(text: &str) -> Result<String, String> {
    match text {
        "host" => Ok(text.into()),
        text => parse_uuid(text, "write host, or the UUID of a device"),
    }
}

/// Ordinals are each process's own: the daemon's are unknown here, and so are none of them.
fn parse_uuid(text: &str, cure: &str) -> Result<String, String> {
    match text.parse() {
        Ok(Devices::Uuid(uuid)) => Ok(uuid.to_string()),
        Err(mig @ DevicesParseError::Mig(_)) => Err(mig.to_string()),
        Ok(Devices::Visible | Devices::Ordinal(_)) | Err(DevicesParseError::Malformed(_)) => {
            Err(format!(
                "{text:?} names none of the daemon's devices: {cure}, as `mrm status --json` and \
                 `nvidia-smi -L` list it"
            ))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_definition_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn waits_have_units() {
        assert_eq!(parse_wait("500ms"), Ok(Duration::from_millis(500)));
        assert_eq!(parse_wait("30"), Ok(Duration::from_secs(30)));
        assert_eq!(parse_wait("2m"), Ok(Duration::from_secs(120)));
        for bad in [
            "",
            "s",
            "1x",
            "-1s",
            "1.5s",
            "2h",
            "99999999999999999999s",
            "9999999999999h",
        ] {
            assert!(parse_wait(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_device_is_named_in_several_ways() {
        assert_eq!(parse_tier("best"), Ok(Tier::Best(Devices::Visible)));
        assert_eq!(parse_tier("cuda"), Ok(Tier::Device(Devices::Visible)));
        assert_eq!(parse_tier("1"), Ok(Tier::Device(Devices::Ordinal(1))));
        assert!(parse_tier("gpu").is_err());
    }

    #[test]
    fn verbs_name_devices_as_the_daemon_does() {
        const UUID: &str = "GPU-5a3c1b2e-0f1d-4c9a-8a77-0123456789ab";
        for (text, tier) in [("any", "device"), ("cuda", "device"), ("best", "best")] {
            assert_eq!(parse_warm(text), Ok(tier.to_owned()));
        }
        assert_eq!(parse_warm(UUID), Ok(UUID.to_owned()));
        assert_eq!(parse_place(UUID), Ok(UUID.to_owned()));
        assert_eq!(parse_place("host"), Ok("host".to_owned()));
        for bad in ["", "0", "cuda:0", "gpu", "GPU-1", "host"] {
            let error = parse_warm(bad).unwrap_err();
            assert!(error.contains("nvidia-smi -L"), "{error}");
        }
        for bad in ["any", "best", "cuda"] {
            assert!(parse_place(bad).unwrap_err().contains("host"), "{bad}");
        }
        assert!(parse_place("MIG-1").unwrap_err().contains("MIG slice"));
    }

    #[test]
    fn a_command_follows_two_dashes() {
        let cli = Cli::try_parse_from(["mrm", "open", "m", "--", "ls", "--json"]).unwrap();
        let Command::Open(open) = cli.command else {
            panic!("not open")
        };
        assert_eq!(open.command, ["ls", "--json"]);
        assert!(!cli.global.json);
    }
}
