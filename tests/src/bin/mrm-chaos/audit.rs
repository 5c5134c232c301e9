//! What must be true when everybody rests, by the books and by the kernel.

use crate::daemon::{Daemon, Edge};
use mrm_tests::gpus::uuid;
use mrm_tests::survival::{private_bytes, segments};
use serde_json::Value;
use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::time::{Duration, Instant};

/// How long books and kernel may take to agree.
const SETTLE: Duration = Duration::from_secs(60);
/// What daemon and keeper may grow by over a run.
const GROWTH_MAX: u64 = 1 << 20;
/// What a keeper has at most when nothing is in memory: two sockets, and the runs of daemons that
/// are remembered.
const KEPT_MAX: usize = 2 + 9;

/// What is left of something that should all be gone, at worst.
#[derive(Debug, Default, Clone, Copy)]
pub(crate) struct Leaked {
    pub(crate) fds: usize,
    pub(crate) keeper_bytes: u64,
    pub(crate) daemon_bytes: u64,
}

/// What was there when everything had been done once.
#[derive(Debug, Default)]
pub(crate) struct Baseline {
    rounds: usize,
    keeper: Option<Process>,
    daemon: Option<Process>,
    /// Of a daemon that lives on: its own memory after each round.
    lived: Vec<u64>,
}

/// What a process has.
#[derive(Debug, Clone)]
struct Process {
    pid: u32,
    /// Descriptors, by what they are.
    fds: BTreeMap<String, usize>,
    bytes: u64,
}

/// Bytes on each pretended device that a process holds, by inode.
type Blocks = BTreeMap<u64, (usize, u64)>;

/// The books while clients hold what they hold.
pub(crate) fn holding(daemon: &mut Daemon) -> Result<(), String> {
    daemon.until("nothing is under way", at_rest)?;
    settle(|| agree(daemon))
}

/// The books when nobody is there, and after everything was evicted.
pub(crate) fn empty(
    daemon: &mut Daemon,
    baseline: &mut Baseline,
    leaked: &mut Leaked,
) -> Result<(), String> {
    let idle = |status: &Value| at_rest(status) && status["sessions"] == 0 && status["leases"] == 0;
    daemon.until("no session is left", idle)?;
    settle(|| agree(daemon))?;
    settle(|| evict_all(daemon))?;
    let nothing = |status: &Value| charged(status).iter().all(|bytes| *bytes == 0);
    daemon.until("nothing is charged", nothing)?;
    settle(|| agree(daemon))?;
    baseline.rounds += 1;
    settle(|| compare(daemon, baseline, leaked))?;
    weigh(daemon, baseline, leaked)
}

fn settle(mut check: impl FnMut() -> Result<(), String>) -> Result<(), String> {
    let until = Instant::now() + SETTLE;
    loop {
        match check() {
            Ok(()) => return Ok(()),
            Err(why) if Instant::now() > until => return Err(why),
            Err(_) => std::thread::park_timeout(Duration::from_millis(20)),
        }
    }
}

fn number(value: &Value, pointer: &str) -> u64 {
    value
        .pointer(pointer)
        .and_then(Value::as_u64)
        .unwrap_or(u64::MAX)
}

fn devices(status: &Value) -> impl Iterator<Item = &Value> {
    status["devices"]["devices"]
        .as_array()
        .into_iter()
        .flatten()
}

fn at_rest(status: &Value) -> bool {
    let busy = |one: &Value| number(one, "/loading") + number(one, "/freeing_bytes");
    let all = ["/waiting", "/loading", "/host/freeing_bytes"];
    status["daemon"]["state"] == "serving"
        && all.iter().all(|pointer| number(status, pointer) == 0)
        && devices(status).all(|one| busy(one) == 0)
}

/// Of the host, then of each device.
fn charged(status: &Value) -> Vec<u64> {
    let devices = devices(status).map(|one| number(one, "/charged_bytes"));
    std::iter::once(number(status, "/host/charged_bytes"))
        .chain(devices)
        .collect()
}

/// Whether daemon and keeper hold what the books say, byte for byte.
fn agree(daemon: &Daemon) -> Result<(), String> {
    let status = daemon.status().ok_or("no daemon answers")?;
    let pid = u32::try_from(number(&status, "/daemon/pid")).map_err(|_| "no pid")?;
    let keeper = daemon.family.keeper().ok_or("there is no keeper")?;
    let (mine, kept) = (segments(pid), segments(keeper));
    // What the keeper has no descriptors for, it says that it does not keep.
    let in_part = daemon.edge == Edge::Files;
    // The memory that is ready for loads is the daemon's alone.
    let ready = number(&status, "/host/stock_bytes");
    let known = kept.keys().all(|inode| mine.contains_key(inode));
    if !known || (!in_part && ready == 0 && mine.len() != kept.len()) {
        return Err(format!(
            "the daemon has {} segments, its keeper {}",
            mine.len(),
            kept.len()
        ));
    }
    let sum = |segments: &BTreeMap<u64, u64>| segments.values().sum::<u64>();
    let (found, booked) = (
        sum(&mine).saturating_sub(ready),
        number(&status, "/host/resident_bytes"),
    );
    if !in_part && sum(&kept) != booked {
        return Err(format!("the keeper has {}, the books {booked}", sum(&kept)));
    }
    let charge = number(&status, "/host/charged_bytes");
    if found != booked || found > charge {
        return Err(format!(
            "the kernel counts {found}, the books {booked}, charged {charge}"
        ));
    }
    let (mine, kept) = (blocks(pid), blocks(keeper));
    for (at, device) in devices(&status).enumerate() {
        let sum = |blocks: &Blocks| -> u64 {
            let on = blocks.values().filter(|(device, _)| *device == at);
            on.map(|(_, bytes)| bytes).sum()
        };
        let booked = number(device, "/charged_bytes");
        let agrees = sum(&mine) == booked && (sum(&kept) == booked || in_part);
        if device["uuid"] != uuid(at) || !agrees || sum(&kept) > booked {
            return Err(format!(
                "device {at}: the daemon has {}, its keeper {}, the books {booked}",
                sum(&mine),
                sum(&kept)
            ));
        }
    }
    match devices(&status).count() {
        n if n == daemon.edge.devices() as usize => Ok(()),
        n => Err(format!("there are {n} devices")),
    }
}

/// The memory of models on devices that a process has open.
fn blocks(pid: u32) -> Blocks {
    let mut found = Blocks::new();
    let fds = fs::read_dir(format!("/proc/{pid}/fd"));
    for fd in fds.into_iter().flatten().flatten() {
        let target = fs::read_link(fd.path()).unwrap_or_default();
        let target = target.to_string_lossy();
        let Some(name) = target.strip_prefix("/memfd:mrm-fake-cuda:") else {
            continue;
        };
        let mut words = name
            .split([':', ' '])
            .map_while(|word| word.parse::<u64>().ok());
        if let (Some(device), Some(bytes), Some(types)) = (words.next(), words.next(), words.next())
            // Only what can be exported holds a model.
            && types != 0
            && let (Ok(metadata), Ok(device)) = (fs::metadata(fd.path()), usize::try_from(device))
        {
            found.insert(metadata.ino(), (device, bytes));
        }
    }
    found
}

/// Evicts whatever is in memory; some of it may be held for clients that do not come back.
fn evict_all(daemon: &Daemon) -> Result<(), String> {
    let mut left = 0;
    let mut after = String::new();
    loop {
        let path = format!("/v1/models?limit=256&after={after}");
        let path = path.trim_end_matches("&after=").to_owned();
        let (_, page) = daemon.ask("GET", &path).ok_or("no daemon answers")?;
        for model in page["models"].as_array().into_iter().flatten() {
            let name = model["name"].as_str().unwrap_or_default();
            name.clone_into(&mut after);
            let devices = model["devices"]
                .as_array()
                .is_some_and(|list| !list.is_empty());
            if (model["state"] != "absent" || devices)
                && daemon
                    .ask("POST", &format!("/v1/models/{name}/evict"))
                    .is_none_or(|r| r.0 != 200)
            {
                left += 1;
            }
        }
        if page["more"] != true {
            break;
        }
    }
    match left {
        0 => Ok(()),
        left => Err(format!("{left} models that nobody holds cannot be evicted")),
    }
}

/// Every descriptor is gone that was not there before.
fn compare(daemon: &Daemon, baseline: &mut Baseline, leaked: &mut Leaked) -> Result<(), String> {
    let status = daemon.status().ok_or("no daemon answers")?;
    let pid = u32::try_from(number(&status, "/daemon/pid")).map_err(|_| "no pid")?;
    let keeper = daemon.family.keeper().ok_or("there is no keeper")?;
    let (keeper, own) = (Process::of(keeper), Process::of(pid));
    // What is set up once, and what grows until it is full, is there after the second round.
    let (Some(keeper_before), Some(own_before)) = (&baseline.keeper, &baseline.daemon) else {
        if baseline.rounds >= 2 {
            (baseline.keeper, baseline.daemon) = (Some(keeper), Some(own));
        }
        return Ok(());
    };
    let left = [keeper.more_than(keeper_before), own.more_than(own_before)].concat();
    if !left.is_empty() {
        let sum = left.iter().map(|(_, count)| count).sum();
        leaked.fds = leaked.fds.max(sum);
        return Err(format!("descriptors are left: {left:?}"));
    }
    // It was only that they took some time to go.
    leaked.fds = 0;
    Ok(())
}

/// No memory is lost.
fn weigh(daemon: &Daemon, baseline: &mut Baseline, leaked: &mut Leaked) -> Result<(), String> {
    let (Some(keeper_before), Some(own_before)) = (&baseline.keeper, &baseline.daemon) else {
        return Ok(());
    };
    let (keeper, own) = (Process::of(keeper_before.pid), Process::of(own_before.pid));
    let grown = keeper.bytes.saturating_sub(keeper_before.bytes);
    leaked.keeper_bytes = leaked.keeper_bytes.max(grown);
    if daemon.edge == Edge::Steady {
        if own.bytes == 0 {
            return Err("a daemon that nobody killed is gone".to_owned());
        }
        baseline.lived.push(own.bytes);
        leaked.daemon_bytes = growth(&baseline.lived);
    }
    match leaked.keeper_bytes.max(leaked.daemon_bytes) > GROWTH_MAX {
        true => Err(format!("memory is left: {leaked:?}, {:?}", baseline.lived)),
        false => Ok(()),
    }
}

/// What the last third of the rounds had at least, above what the third before had at least: what an
/// allocator keeps comes and goes, and what is lost stays.
fn growth(lived: &[u64]) -> u64 {
    let third = lived.len() / 3;
    // The first rounds warm up.
    if third < 3 {
        return 0;
    }
    let least = |of: &[u64]| of.iter().copied().min().unwrap_or(0);
    let (before, last) = lived[lived.len() - 2 * third..].split_at(third);
    least(last).saturating_sub(least(before))
}

impl Process {
    fn of(pid: u32) -> Self {
        let mut fds = BTreeMap::new();
        let links = fs::read_dir(format!("/proc/{pid}/fd"));
        for fd in links.into_iter().flatten().flatten() {
            let target = fs::read_link(fd.path()).unwrap_or_default();
            let target = target.to_string_lossy();
            // The numbers are those of one run.
            let kind: String = target.chars().filter(|c| !c.is_ascii_digit()).collect();
            *fds.entry(kind).or_default() += 1;
        }
        Self {
            pid,
            fds,
            bytes: private_bytes(pid),
        }
    }

    /// The kinds of descriptors of which there are more than before.
    fn more_than(&self, before: &Self) -> Vec<(String, usize)> {
        let more = self.fds.iter().filter_map(|(kind, now)| {
            let before = before.fds.get(kind).copied().unwrap_or(0);
            let may_be = match kind.contains("mrm-kept") {
                true => KEPT_MAX.max(before),
                false => before,
            };
            Some((kind.clone(), now.checked_sub(may_be).filter(|n| *n > 0)?))
        });
        more.collect()
    }
}
