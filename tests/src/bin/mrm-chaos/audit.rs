//! What must be true when everybody rests, by the books and by the kernel.

use crate::daemon::{DEVICES, Daemon, Edge};
use mrm_tests::gpus::uuid;
use mrm_tests::survival::{fds, private_bytes, segments};
use serde_json::Value;
use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::time::{Duration, Instant};

/// How long books and kernel may take to agree.
const SETTLE: Duration = Duration::from_secs(20);
/// Descriptors that come and go: sockets of the status server, clients at the door.
const FDS_SLACK: usize = 8;
/// What the keeper may grow by over a run.
const KEEPER_GROWTH_MAX: u64 = 1 << 20;

/// What was there before any client came.
#[derive(Debug, Default, Clone, Copy)]
pub(crate) struct Baseline {
    keeper_fds: usize,
    daemon_fds: usize,
    keeper: Option<(u32, u64)>,
}

/// Bytes on each pretended device that a process holds, by inode.
type Blocks = BTreeMap<u64, (usize, u64)>;

/// The books while clients hold what they hold.
pub(crate) fn holding(daemon: &mut Daemon) -> Result<(), String> {
    daemon.until("nothing is under way", at_rest)?;
    settle(|| agree(daemon))
}

/// The books when nobody is there, and after everything was evicted.
pub(crate) fn empty(daemon: &mut Daemon, baseline: &mut Baseline) -> Result<(), String> {
    let idle = |status: &Value| at_rest(status) && status["sessions"] == 0 && status["leases"] == 0;
    daemon.until("no session is left", idle)?;
    settle(|| agree(daemon))?;
    settle(|| evict_all(daemon))?;
    let nothing = |status: &Value| charged(status).iter().all(|bytes| *bytes == 0);
    daemon.until("nothing is charged", nothing)?;
    settle(|| agree(daemon))?;
    settle(|| compare(daemon, baseline))
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
    let known = kept.keys().all(|inode| mine.contains_key(inode));
    if !known || (!in_part && mine.len() != kept.len()) {
        return Err(format!(
            "the daemon has {} segments, its keeper {}",
            mine.len(),
            kept.len()
        ));
    }
    let (found, booked) = (
        mine.values().sum::<u64>(),
        number(&status, "/host/resident_bytes"),
    );
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
        n if n == DEVICES as usize => Ok(()),
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

/// Nothing has grown.
fn compare(daemon: &Daemon, baseline: &mut Baseline) -> Result<(), String> {
    let status = daemon.status().ok_or("no daemon answers")?;
    let pid = u32::try_from(number(&status, "/daemon/pid")).map_err(|_| "no pid")?;
    let keeper = daemon.family.keeper().ok_or("there is no keeper")?;
    let now = Baseline {
        keeper_fds: fds(keeper),
        daemon_fds: fds(pid),
        keeper: Some((keeper, private_bytes(keeper))),
    };
    // The first time is after a round of everything: what is set up once is there.
    let Some((before, bytes)) = baseline.keeper else {
        *baseline = now;
        return Ok(());
    };
    let grown = private_bytes(keeper).saturating_sub(bytes);
    if keeper == before && grown > KEEPER_GROWTH_MAX {
        return Err(format!("the keeper grew by {grown} bytes"));
    }
    if keeper != before {
        baseline.keeper = now.keeper;
    }
    let over = |now: usize, before: usize| now > before + FDS_SLACK;
    if over(now.keeper_fds, baseline.keeper_fds) || over(now.daemon_fds, baseline.daemon_fds) {
        return Err(format!(
            "descriptors are left: {baseline:?} came to {now:?}"
        ));
    }
    Ok(())
}
