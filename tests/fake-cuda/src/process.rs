//! What the driver knows in one process: contexts, handles, address ranges, streams.

use std::collections::{BTreeMap, HashMap};
use std::ops::Bound;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use crate::abi::{ACCESS_NONE, ACCESS_READ, ACCESS_READ_WRITE, LOCATION_DEVICE, Location};
use crate::block::Block;
use crate::code;
use crate::faults;
use crate::registry::{Inode, Registry};
use crate::settings::Settings;
use crate::space::{Area, Pin};
use crate::stream::{Event, Stream, Ticket};

/// A device that this process sees, with its primary context.
pub(crate) struct Context {
    /// Physical index of the device.
    pub(crate) device: u32,
    pub(crate) retained: u32,
    pub(crate) flags: u32,
    /// The error that makes it unusable, or zero.
    pub(crate) sticky: Arc<AtomicU32>,
    pub(crate) default_stream: Arc<Stream>,
    /// What the context itself costs.
    pub(crate) cost: Option<Block>,
    /// The contexts whose memory kernels of this one may use.
    pub(crate) peers: Vec<usize>,
}

/// An allocation handle: one per creation or import, counted.
pub(crate) struct HandleEntry {
    pub(crate) block: Arc<Block>,
    pub(crate) references: u64,
}

/// A block mapped into a reservation.
pub(crate) struct Mapping {
    pub(crate) bytes: usize,
    pub(crate) block: Arc<Block>,
    pub(crate) handle: u64,
    /// By ordinal of the device that accesses.
    pub(crate) access: BTreeMap<i32, u32>,
}

/// Memory of `cuMemAlloc`: a block of its own, or a part of a shared one.
pub(crate) struct Allocation {
    pub(crate) bytes: usize,
    /// Where its block starts.
    pub(crate) block_start: usize,
    pub(crate) ordinal: usize,
}

/// A block that `cuMemAlloc` took from the device.
pub(crate) struct LegacyBlock {
    pub(crate) area: Area,
    pub(crate) block: Block,
    pub(crate) ordinal: usize,
    /// Whether it is shared by small allocations.
    pub(crate) shared: bool,
}

/// A block of another process, opened by its legacy handle.
pub(crate) struct Opened {
    pub(crate) area: Area,
    pub(crate) ordinal: usize,
    /// How often each address was returned and not closed.
    pub(crate) counts: BTreeMap<u64, u64>,
}

/// Pinned memory of the host.
pub(crate) enum Host {
    /// Allocated by the driver.
    Allocated { area: Area },
    /// The caller's, registered.
    Registered {
        bytes: usize,
        #[expect(dead_code, reason = "held for what its drop ends")]
        pin: Option<Pin>,
    },
}

impl Host {
    pub(crate) fn bytes(&self) -> usize {
        match self {
            Self::Allocated { area } => area.bytes(),
            Self::Registered { bytes, .. } => *bytes,
        }
    }
}

/// Everything of one process.
pub(crate) struct Process {
    pub(crate) settings: &'static Settings,
    pub(crate) registry: Registry,
    pub(crate) contexts: Vec<Context>,
    pub(crate) handles: HashMap<u64, HandleEntry>,
    pub(crate) reservations: BTreeMap<usize, Area>,
    pub(crate) mappings: BTreeMap<usize, Mapping>,
    pub(crate) allocations: BTreeMap<usize, Allocation>,
    pub(crate) legacy: BTreeMap<usize, LegacyBlock>,
    pub(crate) opened: HashMap<Inode, Opened>,
    pub(crate) host: BTreeMap<usize, Host>,
    pub(crate) streams: HashMap<u64, Arc<Stream>>,
    pub(crate) events: HashMap<u64, Arc<Event>>,
    last_id: u64,
}

static PROCESS: OnceLock<Mutex<Process>> = OnceLock::new();

/// The state of this process; before `cuInit` there is none.
pub(crate) fn process() -> Result<MutexGuard<'static, Process>, u32> {
    let process = PROCESS.get().ok_or(code::NOT_INITIALIZED)?;
    Ok(process.lock().unwrap_or_else(PoisonError::into_inner))
}

/// Makes the state, once.
pub(crate) fn initialise(settings: &'static Settings) -> Result<(), u32> {
    if PROCESS.get().is_some() {
        return Ok(());
    }
    if settings.visible.is_empty() {
        return Err(code::NO_DEVICE);
    }
    let registry = Registry::open(&settings.dir, settings.capacity_bytes).map_err(|error| {
        eprintln!("mrm-fake-cuda: {}: {error}", settings.dir.display());
        code::OPERATING_SYSTEM
    })?;
    let contexts = settings
        .visible
        .iter()
        .enumerate()
        .map(|(ordinal, device)| {
            let sticky = Arc::new(AtomicU32::new(0));
            Context {
                device: *device,
                retained: 0,
                flags: 0,
                default_stream: Stream::new(ordinal, true, Arc::clone(&sticky)),
                sticky,
                cost: None,
                peers: Vec::new(),
            }
        })
        .collect();
    let process = Process {
        settings,
        registry,
        contexts,
        handles: HashMap::new(),
        reservations: BTreeMap::new(),
        mappings: BTreeMap::new(),
        allocations: BTreeMap::new(),
        legacy: BTreeMap::new(),
        opened: HashMap::new(),
        host: BTreeMap::new(),
        streams: HashMap::new(),
        events: HashMap::new(),
        last_id: 0x1000,
    };
    // Another thread may have been first; its state is as good.
    let _first = PROCESS.set(Mutex::new(process));
    Ok(())
}

impl Process {
    /// A number that no handle, stream or event of this process had before.
    pub(crate) fn fresh_id(&mut self) -> u64 {
        self.last_id += 0x10;
        self.last_id
    }

    /// The context of a device by its ordinal, whether it is active or not.
    pub(crate) fn device(&self, ordinal: i32) -> Result<usize, u32> {
        usize::try_from(ordinal)
            .ok()
            .filter(|ordinal| *ordinal < self.contexts.len())
            .ok_or(code::INVALID_DEVICE)
    }

    /// A device that a location names.
    pub(crate) fn located(&self, location: Location) -> Result<usize, u32> {
        if location.kind != LOCATION_DEVICE {
            return Err(code::INVALID_VALUE);
        }
        self.device(location.id)
    }

    /// Fails when the device is lost, or its context is past use.
    pub(crate) fn usable(&self, ordinal: usize) -> Result<&Context, u32> {
        let context = self.contexts.get(ordinal).ok_or(code::INVALID_DEVICE)?;
        if let Some(code) = faults::lost(self.settings, context.device) {
            return Err(code);
        }
        match context.sticky.load(Ordering::SeqCst) {
            0 => Ok(context),
            code => Err(code),
        }
    }

    /// The same for the device that a block lies on, if this process sees it.
    pub(crate) fn block_usable(&self, block: &Block) -> Result<(), u32> {
        match self.ordinal_of(block) {
            Some(ordinal) => self.usable(ordinal).map(|_| ()),
            None => Ok(()),
        }
    }

    /// The ordinal of a block's device in this process.
    pub(crate) fn ordinal_of(&self, block: &Block) -> Option<usize> {
        self.contexts
            .iter()
            .position(|context| context.device == block.device)
    }

    /// Adds a handle to a block.
    pub(crate) fn add_handle(&mut self, block: Block) -> u64 {
        let handle = self.fresh_id();
        let entry = HandleEntry {
            block: Arc::new(block),
            references: 1,
        };
        self.handles.insert(handle, entry);
        handle
    }

    /// Everything that was queued so far, by all streams or those of one context. Fails during a
    /// capture, which calls that wait for the device invalidate.
    pub(crate) fn queued(&self, ordinal: Option<usize>) -> Result<Vec<Ticket>, u32> {
        let concerned = |stream: &&Arc<Stream>| ordinal.is_none_or(|one| stream.ordinal == one);
        let streams = || {
            let defaults = self.contexts.iter().map(|context| &context.default_stream);
            self.streams.values().chain(defaults).filter(concerned)
        };
        let mut capturing = false;
        for stream in streams() {
            let active = stream.capture.load(Ordering::SeqCst) != 0;
            if active {
                stream.capture.store(2, Ordering::SeqCst);
            }
            capturing |= active;
        }
        if capturing {
            return Err(code::STREAM_CAPTURE_UNSUPPORTED);
        }
        Ok(streams().map(Stream::ticket).collect())
    }

    /// Checks that a device may read or write a range: known, whole, and with access.
    pub(crate) fn device_range(
        &self,
        ordinal: usize,
        start: u64,
        bytes: usize,
        write: bool,
    ) -> Result<(), u32> {
        let mut at = usize::try_from(start).map_err(|_| code::INVALID_VALUE)?;
        let end = at.checked_add(bytes).ok_or(code::INVALID_VALUE)?;
        while at < end {
            let (known_to, access) = self.range_at(ordinal, at).ok_or(code::INVALID_VALUE)?;
            if access == ACCESS_NONE {
                return Err(code::INVALID_VALUE);
            }
            if write && access != ACCESS_READ_WRITE {
                // As on hardware: the fault is the context's end.
                if let Some(context) = self.contexts.get(ordinal) {
                    context
                        .sticky
                        .store(code::ILLEGAL_ADDRESS, Ordering::SeqCst);
                }
                return Err(code::ILLEGAL_ADDRESS);
            }
            at = known_to;
        }
        Ok(())
    }

    /// Where the range that holds an address ends, and how the device may access it.
    fn range_at(&self, ordinal: usize, at: usize) -> Option<(usize, u32)> {
        let below = (Bound::Unbounded, Bound::Included(at));
        if let Some((start, mapping)) = self.mappings.range(below).next_back()
            && at < start + mapping.bytes
        {
            let ordinal = i32::try_from(ordinal).ok()?;
            let access = mapping.access.get(&ordinal).copied().unwrap_or(ACCESS_NONE);
            return Some((start + mapping.bytes, access));
        }
        if let Some((start, allocation)) = self.allocations.range(below).next_back()
            && at < start + allocation.bytes
        {
            return Some((start + allocation.bytes, ACCESS_READ_WRITE));
        }
        let opened = self.opened.values().find(|opened| {
            (opened.area.start()..opened.area.start() + opened.area.bytes()).contains(&at)
        });
        if let Some(opened) = opened {
            let end = opened.area.start() + opened.area.bytes();
            return Some((end, ACCESS_READ_WRITE));
        }
        let (start, host) = self.host.range(below).next_back()?;
        (at < start + host.bytes()).then(|| (start + host.bytes(), ACCESS_READ_WRITE))
    }

    /// Whether a range of host memory is pinned as a whole.
    pub(crate) fn pinned(&self, start: usize, bytes: usize) -> bool {
        let below = (Bound::Unbounded, Bound::Included(start));
        self.host
            .range(below)
            .next_back()
            .is_some_and(|(at, host)| start + bytes <= at + host.bytes())
    }

    /// Marks a context as past use.
    pub(crate) fn poison(&self, ordinal: Option<usize>, code: u32) {
        for (index, context) in self.contexts.iter().enumerate() {
            if ordinal.is_none_or(|one| one == index) {
                context.sticky.store(code, Ordering::SeqCst);
            }
        }
    }
}

/// The strongest access that any device has: one process has one set of page tables here.
pub(crate) fn strongest(access: &BTreeMap<i32, u32>) -> u32 {
    access
        .values()
        .fold(ACCESS_NONE, |all, one| match (all, *one) {
            (ACCESS_READ_WRITE, _) | (_, ACCESS_READ_WRITE) => ACCESS_READ_WRITE,
            (ACCESS_READ, _) | (_, ACCESS_READ) => ACCESS_READ,
            _ => ACCESS_NONE,
        })
}
