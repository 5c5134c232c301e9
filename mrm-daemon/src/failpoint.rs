//! Named steps at which a test has the daemon die, stop, fail or stall.
//!
//! Not in any release: all of this is empty but in debug builds with the feature `failpoints`.
//! `MRM_FAILPOINTS` names a directory; a file there that is called as a point says `ACTION N`:
//!
//! | action | at |
//! |---|---|
//! | `kill`: SIGKILL | the N-th pass; the file is removed before |
//! | `stop`: SIGSTOP | the N-th pass; the file is removed before |
//! | `error`: the step fails, where it can | each N-th pass, as long as the file is there |
//! | `stall`: 100 ms | each N-th pass, as long as the file is there |
//!
//! Passes are counted from when the process found the file as it is. The first step that fails or
//! stalls leaves a file `POINT.done` there.

#[cfg(all(feature = "failpoints", debug_assertions))]
pub(crate) use planted::{damages, fails, impossible_event, pass};

/// A step of the protocol between client, daemon, disk and keeper.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Point {
    /// Before a resolution is told to the decider.
    Resolved,
    /// Before a file, or a tensor table, begins to be loaded.
    BeforeLoad,
    /// Each read of a file; can fail.
    Read,
    /// Before a loaded segment is given to the keeper.
    AfterLoad,
    /// Before a device begins to be filled.
    BeforeFill,
    /// Before a filled image is given to the keeper.
    AfterFill,
    /// Before the keeper is given an entry.
    BeforePut,
    /// The keeper has it.
    AfterPut,
    /// Before a lease is sent.
    BeforeGrant,
    /// It is sent, as far as the socket took it.
    AfterGrant,
    /// What was lent before it was hashed is hashed, and nobody knows.
    Hashed,
    /// Before the keeper is asked to let go.
    BeforeLetGo,
    /// The keeper has let go; the memory is still here.
    BeforeFree,
    /// The memory is free, and the decider does not know.
    AfterFree,
    /// Before each version that is taken over.
    Adopting,
    /// After the last one.
    Adopted,
    /// Before leases of a client that came back are counted.
    Resuming,
    /// When everything is left to the next daemon, but the sockets.
    HandingOver,
}

impl Point {
    /// The name of its file.
    #[cfg(all(feature = "failpoints", debug_assertions))]
    const fn as_str(self) -> &'static str {
        match self {
            Self::Resolved => "resolved",
            Self::BeforeLoad => "before-load",
            Self::Read => "read",
            Self::AfterLoad => "after-load",
            Self::BeforeFill => "before-fill",
            Self::AfterFill => "after-fill",
            Self::BeforePut => "before-put",
            Self::AfterPut => "after-put",
            Self::BeforeGrant => "before-grant",
            Self::AfterGrant => "after-grant",
            Self::Hashed => "hashed",
            Self::BeforeLetGo => "before-let-go",
            Self::BeforeFree => "before-free",
            Self::AfterFree => "after-free",
            Self::Adopting => "adopting",
            Self::Adopted => "adopted",
            Self::Resuming => "resuming",
            Self::HandingOver => "handing-over",
        }
    }
}

/// Passes a point that cannot fail.
#[cfg(not(all(feature = "failpoints", debug_assertions)))]
#[inline]
pub(crate) const fn pass(_: Point) {}

/// Passes a point; returns whether the step is to fail.
#[cfg(not(all(feature = "failpoints", debug_assertions)))]
#[inline]
pub(crate) const fn fails(_: Point) -> bool {
    false
}

/// Whether what is loaded now is to count as damaged.
#[cfg(not(all(feature = "failpoints", debug_assertions)))]
#[inline]
pub(crate) const fn damages() -> bool {
    false
}

#[cfg(all(feature = "failpoints", debug_assertions))]
mod planted {
    use super::Point;
    use mrm_core::event::Event;
    use mrm_core::id::OpId;
    use rustix::process::{Signal, getpid, kill_process};
    use std::collections::HashMap;
    use std::path::{Path, PathBuf};
    use std::sync::{LazyLock, Mutex, PoisonError};
    use std::time::Duration;

    /// Where the files are.
    const DIR: &str = "MRM_FAILPOINTS";
    /// After how many events the next is one that cannot happen.
    const IMPOSSIBLE: &str = "MRM_FAILPOINT_IMPOSSIBLE_EVENT";
    const STALL: Duration = Duration::from_millis(100);

    static FILES: LazyLock<Option<PathBuf>> =
        LazyLock::new(|| std::env::var_os(DIR).map(PathBuf::from));
    /// What each file said, and the passes since.
    static PASSES: LazyLock<Mutex<HashMap<&'static str, (String, u64)>>> =
        LazyLock::new(Mutex::default);

    /// Passes a point that cannot fail.
    pub(crate) fn pass(point: Point) {
        fails(point);
    }

    /// Passes a point; returns whether the step is to fail.
    pub(crate) fn fails(point: Point) -> bool {
        let Some(dir) = &*FILES else { return false };
        let file = dir.join(point.as_str());
        let Ok(order) = std::fs::read_to_string(&file) else {
            return false;
        };
        let mut words = order.split_whitespace();
        let action = words.next().unwrap_or_default().to_owned();
        let every = words
            .next()
            .and_then(|n| n.parse().ok())
            .unwrap_or(1)
            .max(1);
        if !count(point, order).is_multiple_of(every) {
            return false;
        }
        match action.as_str() {
            "kill" => strike(&file, Signal::KILL),
            "stop" => strike(&file, Signal::STOP),
            "error" => {
                mark(&file);
                return true;
            }
            "stall" => {
                mark(&file);
                std::thread::sleep(STALL);
            }
            other => tracing::error!(other, "no such action at a failpoint"),
        }
        false
    }

    fn count(point: Point, order: String) -> u64 {
        let mut passes = PASSES.lock().unwrap_or_else(PoisonError::into_inner);
        let (known, count) = passes.entry(point.as_str()).or_default();
        if *known != order {
            *known = order;
            *count = 0;
        }
        *count += 1;
        *count
    }

    /// Whether what is loaded now is to count as damaged: its digest is noted wrongly. Once for
    /// each file of this name.
    pub(crate) fn damages() -> bool {
        let file = FILES.as_ref().map(|dir| dir.join("damage"));
        file.is_some_and(|file| std::fs::remove_file(file).is_ok())
    }

    /// Once: of all who come here, whoever removes the file.
    fn strike(file: &Path, signal: Signal) {
        if std::fs::remove_file(file).is_ok() {
            let _ = kill_process(getpid(), signal);
        }
    }

    fn mark(file: &Path) {
        // A test that wants to know it will miss it.
        let _ = std::fs::write(file.with_extension("done"), "");
    }

    /// The completion of what was never started, if it is time for it.
    pub(crate) fn impossible_event(events: u64) -> Option<Event> {
        let wanted: u64 = std::env::var(IMPOSSIBLE).ok()?.parse().ok()?;
        (wanted == events).then_some(Event::Freed { op: OpId(u64::MAX) })
    }
}
