//! What goes wrong, and how often.

use crate::random::Random;

/// Something that the world, a client or an operator does to the daemon.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Mishap {
    /// A client dies, its requests and leases as they are.
    ClientDies,
    /// A client dies in the middle of a frame.
    HalfFrame,
    /// A client sends what is no request.
    BreaksProtocol,
    /// A client does not read its replies for a while, or ever.
    NeverReads,
    /// A client gives a lease back long after it needs it.
    ReleasesLate,
    /// A client goes on reading what it has given back.
    KeepsMapping,
    /// A client gives up an open.
    Cancels,
    /// A model cannot be opened.
    ResolveFails,
    /// A read fails.
    ReadFails,
    /// A file is shorter than it was.
    ReadShort,
    /// A file changes while it is read.
    ReadWrong,
    /// A read takes long.
    ReadSlow,
    /// A completion takes long to arrive, and others overtake it.
    LateCompletion,
    /// Another file takes a file's place.
    FileReplaced,
    /// A file is written over.
    FileOverwritten,
    /// A model's files go, or come back.
    FilesRemoved,
    /// Who was lent memory before it was filled keeps it from being sealed.
    PagesPinned,
    /// What was loaded is lent before it is hashed.
    HashedLater,
    /// The kernel has no memory.
    HostOutOfMemory,
    /// A device refuses memory although it has some.
    DeviceOutOfMemory,
    /// Others take memory of a device, or give it back.
    OthersTakeDevice,
    /// A device is gone for good.
    DeviceLost,
    /// The operator gives the daemon other budgets.
    BudgetChanged,
    /// The operator changes the catalogue.
    Reload,
    /// The operator pins a model, wishes it gone early, or takes that back.
    Wishes,
    /// The operator warms a model.
    Warms,
    /// The operator evicts a model.
    Evicts,
    /// A model is said to be opened soon.
    Hints,
    /// The operator drains the daemon.
    Drains,
    /// The daemon dies, and another starts.
    DaemonDies,
    /// What is in memory turns out not to be what was loaded.
    MemoryDamaged,
}

impl Mishap {
    /// Each, with the most times in a thousand that it happens where it may.
    const ALL: [(Self, u64); 31] = [
        (Self::ClientDies, 25),
        (Self::HalfFrame, 15),
        (Self::BreaksProtocol, 10),
        (Self::NeverReads, 25),
        (Self::ReleasesLate, 500),
        (Self::KeepsMapping, 500),
        (Self::Cancels, 300),
        (Self::ResolveFails, 150),
        (Self::ReadFails, 150),
        (Self::ReadShort, 100),
        (Self::ReadWrong, 100),
        (Self::ReadSlow, 200),
        (Self::LateCompletion, 300),
        (Self::FileReplaced, 200),
        (Self::FileOverwritten, 150),
        (Self::FilesRemoved, 60),
        (Self::PagesPinned, 150),
        (Self::HashedLater, 700),
        (Self::HostOutOfMemory, 150),
        (Self::DeviceOutOfMemory, 250),
        (Self::OthersTakeDevice, 200),
        (Self::DeviceLost, 30),
        (Self::BudgetChanged, 150),
        (Self::Reload, 60),
        (Self::Wishes, 200),
        (Self::Warms, 100),
        (Self::Evicts, 250),
        (Self::Hints, 500),
        (Self::Drains, 8),
        (Self::DaemonDies, 10),
        (Self::MemoryDamaged, 150),
    ];

    const fn place(self) -> usize {
        self as usize
    }
}

/// How often each happens in one run, and how often it did.
#[derive(Debug, Clone)]
pub(crate) struct Mishaps {
    rates: [u64; Mishap::ALL.len()],
    counts: [u64; Mishap::ALL.len()],
    stopped: bool,
}

impl Mishaps {
    /// Some never happen in a run, others often: a run in which all happen all the time gets
    /// nowhere.
    pub(crate) fn draw(random: &mut Random) -> Self {
        let mut rates = [0; Mishap::ALL.len()];
        for (mishap, most) in Mishap::ALL {
            if random.below(5) < 2 {
                rates[mishap.place()] = random.between(1, most);
            }
        }
        Self {
            rates,
            counts: [0; Mishap::ALL.len()],
            stopped: false,
        }
    }

    /// Whether it happens now; counted if so.
    pub(crate) fn strikes(&mut self, mishap: Mishap, random: &mut Random) -> bool {
        let place = mishap.place();
        let strikes = !self.stopped && random.one_in_a_thousand(self.rates[place]);
        self.counts[place] += u64::from(strikes);
        strikes
    }

    /// None from now on.
    pub(crate) const fn stop(&mut self) {
        self.stopped = true;
    }

    pub(crate) const fn stopped(&self) -> bool {
        self.stopped
    }

    /// How many happened.
    pub(crate) fn total(&self) -> u64 {
        self.counts.iter().sum()
    }

    /// How many of each kind happened.
    pub(crate) fn counts(&self) -> impl Iterator<Item = (Mishap, u64)> {
        let each = Mishap::ALL.iter().map(|(mishap, _)| *mishap);
        each.zip(self.counts)
    }
}
