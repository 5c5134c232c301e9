//! Where threads run. Left to itself, the kernel puts two that talk to each other on one core or on
//! two, and which of them takes three times as long.

use rustix::thread::{CpuSet, Pid, sched_getaffinity, sched_setaffinity};

/// A thread that stays on one core until this is dropped.
pub(crate) struct Place(Option<Pid>, CpuSet);

impl Place {
    pub(crate) fn this_thread(core: usize) -> Self {
        Self::of(None, core)
    }

    /// The first thread of a process.
    pub(crate) fn main_of(pid: u32, core: usize) -> Self {
        Self::of(Pid::from_raw(pid.cast_signed()), core)
    }

    fn of(thread: Option<Pid>, core: usize) -> Self {
        let before = sched_getaffinity(thread).expect("asks");
        let mut there = CpuSet::new();
        there.set(core);
        sched_setaffinity(thread, &there).expect("is allowed");
        Self(thread, before)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        // What is gone has no place.
        let _ = sched_setaffinity(self.0, &self.1);
    }
}

/// Two cores that this process may run on.
pub(crate) fn two_cores() -> Option<(usize, usize)> {
    let cores = sched_getaffinity(None).expect("asks");
    let mut allowed = (0..CpuSet::MAX_CPU).filter(|core| cores.is_set(*core));
    Some((allowed.next()?, allowed.next()?))
}
