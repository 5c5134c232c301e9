//! All that is not daemon or client: the clock, what is to happen, the world.

use crate::breach::Checked;
use crate::disk::Disk;
use crate::link::{LinkId, Links, Passed, Reader};
use crate::memory::Memory;
use crate::mishap::{Mishap, Mishaps};
use crate::random::Random;
use crate::reached::Reached;
use crate::settings::Settings;
use crate::trace::Trace;
use mrm_core::id::{DeviceId, ModelId, OpId, SegmentId, SessionId, Time};
use std::collections::BTreeMap;

/// The longest time from one end of a connection to the other.
const LINK_US_MAX: u64 = 300;

/// One run of the daemon.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Run(pub(crate) u64);

/// What is to happen.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Happening {
    /// A client does something.
    Act(usize),
    /// Bytes may have arrived.
    Arrive(LinkId, Reader),
    /// Something of the daemon's. Of no interest to another run of it.
    Daemon(Run, Job),
    /// Something that the operator, the files or the devices do.
    Trouble,
    /// A daemon starts.
    Start,
}

/// What the daemon's threads and timers do.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Job {
    /// Look at a model's files.
    Look { op: OpId, model: ModelId },
    /// What was found arrives.
    Found { op: OpId, model: ModelId },
    /// Take memory for a load.
    Allocate { op: OpId, segment: SegmentId },
    /// Read, or copy.
    Read { op: OpId, segment: SegmentId },
    /// What was loaded arrives.
    Loaded { op: OpId, segment: SegmentId },
    /// What was lent before it was hashed is known.
    Identified(SegmentId),
    /// Memory is given back.
    Freed { op: OpId, segment: SegmentId },
    /// A device is looked at.
    Health {
        device: DeviceId,
        /// And again after a while.
        again: bool,
    },
    /// Some deadline may have come.
    Wake,
    /// A session may have stalled for too long.
    Stall(SessionId),
    /// Those who wait may want to hear how far it is.
    Progress,
    /// A drained daemon ends.
    End,
}

/// The world.
#[derive(Debug)]
pub(crate) struct Env {
    pub(crate) now: u64,
    happened: u64,
    planned: BTreeMap<(u64, u64), Happening>,
    plans: u64,
    pub(crate) random: Random,
    pub(crate) settings: Settings,
    pub(crate) mishaps: Mishaps,
    pub(crate) disk: Disk,
    pub(crate) memory: Memory,
    pub(crate) links: Links,
    pub(crate) trace: Trace,
    /// Events that deciders took in.
    pub(crate) steps: u64,
    /// Segments that clients read and found right.
    pub(crate) reads: u64,
    /// What deciders asked for.
    pub(crate) reached: Reached,
    /// When the last daemon started.
    pub(crate) started_at: u64,
    /// The run of the daemon that is up, if one is.
    pub(crate) up: Option<Run>,
    /// A device was lost: sessions may end because what they were to be lent is gone.
    pub(crate) device_lost: bool,
}

impl Env {
    pub(crate) fn new(seed: u64, trace: Trace) -> Self {
        let mut random = Random::new(seed);
        let settings = Settings::draw(&mut random);
        let mishaps = Mishaps::draw(&mut random);
        Self {
            now: 0,
            happened: 0,
            planned: BTreeMap::new(),
            plans: 0,
            random,
            settings,
            mishaps,
            disk: Disk::default(),
            memory: Memory::default(),
            links: Links::default(),
            trace,
            steps: 0,
            reads: 0,
            reached: Reached::default(),
            started_at: 0,
            up: None,
            device_lost: false,
        }
    }

    pub(crate) const fn time(&self) -> Time {
        Time(self.now)
    }

    /// Plans something.
    pub(crate) fn after(&mut self, us: u64, what: Happening) {
        self.plans += 1;
        self.planned.insert((self.now + us, self.plans), what);
    }

    /// The next that happens. Time goes on to then.
    pub(crate) fn next(&mut self) -> Option<Happening> {
        let ((at, _), what) = self.planned.pop_first()?;
        self.now = at;
        self.happened += 1;
        Some(what)
    }

    /// How much happened.
    pub(crate) const fn happened(&self) -> u64 {
        self.happened
    }

    pub(crate) fn strikes(&mut self, mishap: Mishap) -> bool {
        self.mishaps.strikes(mishap, &mut self.random)
    }

    /// How long work takes: often no time at all, now and then long.
    pub(crate) fn work_us(&mut self, most: u64) -> u64 {
        let late = self.strikes(Mishap::LateCompletion);
        let most = if late { most * 10 } else { most };
        self.random.below(most)
    }

    /// Writes to a connection.
    pub(crate) fn write(&mut self, id: LinkId, to: Reader, bytes: &[u8], cargo: Vec<Passed>) {
        if let Some(pipe) = self.links.pipe(id, to).filter(|pipe| !pipe.gone) {
            pipe.write(bytes, cargo);
            self.expect(id, to);
        }
    }

    /// One side writes no more.
    pub(crate) fn end(&mut self, id: LinkId, to: Reader) {
        if let Some(pipe) = self.links.pipe(id, to) {
            pipe.ended = true;
        }
        self.expect(id, to);
    }

    /// Lets a side look at what arrived.
    pub(crate) fn expect(&mut self, id: LinkId, reader: Reader) {
        let us = self.random.between(1, LINK_US_MAX);
        if let Some(pipe) = self.links.pipe(id, reader)
            && !pipe.expected
        {
            pipe.expected = true;
            self.after(us, Happening::Arrive(id, reader));
        }
    }

    /// Nobody will read this any more: what was on its way is closed.
    pub(crate) fn discard(&mut self, id: LinkId, reader: Reader) -> Checked {
        let Some(pipe) = self.links.pipe(id, reader) else {
            return Ok(());
        };
        pipe.gone = true;
        let left = pipe.discard();
        self.close_all(&left)
    }

    /// Closes descriptors.
    pub(crate) fn close_all(&mut self, passed: &[Passed]) -> Checked {
        for passed in passed {
            match passed {
                Passed::Memory(id) => self.memory.drop_ref(*id)?,
                Passed::File(_) => {}
            }
        }
        Ok(())
    }
}
