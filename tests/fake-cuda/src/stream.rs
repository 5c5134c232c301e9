//! Streams: queues of work, each with a thread of its own, and the order between them. One of the
//! unsafe files: the work touches memory by address.

use std::collections::VecDeque;
use std::ffi::c_void;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use crate::code;
use crate::space;

/// One piece of queued work.
pub(crate) enum Work {
    /// Copies between addresses.
    Copy {
        to: usize,
        from: usize,
        bytes: usize,
    },
    /// Copies bytes that the call took along.
    Write { to: usize, kept: Vec<u8> },
    /// Sets bytes to a value.
    Fill { to: usize, value: u8, bytes: usize },
    /// Calls the host.
    Host { function: HostCall },
    /// Notes the time.
    Record(Arc<Mutex<Option<Instant>>>),
    /// Waits for what comes before it in order.
    Nothing,
    /// Goes wrong, and takes the context with it.
    Fail(u32),
}

/// A function of the caller with its argument.
pub(crate) struct HostCall {
    pub(crate) function: unsafe extern "C" fn(*mut c_void),
    pub(crate) data: *mut c_void,
}

// SAFETY: `cuLaunchHostFunc` says that the function runs on a thread of the driver; the caller
// gives a function and data for which that is right.
unsafe impl Send for HostCall {}

struct Item {
    after: Vec<Ticket>,
    delay: Duration,
    work: Work,
}

#[derive(Default)]
struct Queue {
    items: VecDeque<Item>,
    submitted: u64,
    done: u64,
    running: bool,
    closed: bool,
}

/// A queue of work in order.
pub(crate) struct Stream {
    /// The context that it belongs to.
    pub(crate) ordinal: usize,
    /// Whether it keeps order with the default stream.
    pub(crate) blocking: bool,
    /// `CUstreamCaptureStatus`: 0 none, 1 active, 2 invalidated.
    pub(crate) capture: AtomicU32,
    sticky: Arc<AtomicU32>,
    queue: Mutex<Queue>,
    changed: Condvar,
}

/// Everything that a stream was given up to some moment.
#[derive(Clone)]
pub(crate) struct Ticket {
    stream: Arc<Stream>,
    number: u64,
}

impl Ticket {
    pub(crate) fn is_done(&self) -> bool {
        self.stream.lock().done >= self.number
    }

    /// Waits until the work is done. Every item waits for earlier ones only, so this ends unless
    /// a host function does not.
    pub(crate) fn wait(&self) {
        let mut queue = self.stream.lock();
        while queue.done < self.number {
            queue = self
                .stream
                .changed
                .wait(queue)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }
}

impl Stream {
    pub(crate) fn new(ordinal: usize, blocking: bool, sticky: Arc<AtomicU32>) -> Arc<Self> {
        Arc::new(Self {
            ordinal,
            blocking,
            capture: AtomicU32::new(0),
            sticky,
            queue: Mutex::default(),
            changed: Condvar::new(),
        })
    }

    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What was queued so far.
    pub(crate) fn ticket(self: &Arc<Self>) -> Ticket {
        Ticket {
            stream: Arc::clone(self),
            number: self.lock().submitted,
        }
    }

    /// Queues work behind what is queued already and behind `after`.
    pub(crate) fn submit(
        self: &Arc<Self>,
        after: Vec<Ticket>,
        delay: Duration,
        work: Work,
    ) -> Result<Ticket, u32> {
        let mut queue = self.lock();
        if !queue.running {
            let stream = Arc::clone(self);
            thread::Builder::new()
                .name("fake-cuda-stream".to_owned())
                .spawn(move || stream.run())
                .map_err(|_| code::OUT_OF_MEMORY)?;
            queue.running = true;
        }
        queue.submitted += 1;
        queue.items.push_back(Item { after, delay, work });
        let number = queue.submitted;
        drop(queue);
        self.changed.notify_all();
        Ok(Ticket {
            stream: Arc::clone(self),
            number,
        })
    }

    /// Lets the thread end once the queue is empty.
    pub(crate) fn close(&self) {
        self.lock().closed = true;
        self.changed.notify_all();
    }

    fn run(&self) {
        while let Some(item) = self.next() {
            for ticket in &item.after {
                ticket.wait();
            }
            thread::sleep(item.delay); // The device is told to be so slow.
            self.perform(item.work);
            self.lock().done += 1;
            self.changed.notify_all();
        }
    }

    fn next(&self) -> Option<Item> {
        let mut queue = self.lock();
        loop {
            if let Some(item) = queue.items.pop_front() {
                return Some(item);
            }
            if queue.closed {
                return None;
            }
            queue = self
                .changed
                .wait(queue)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn perform(&self, work: Work) {
        if let Work::Fail(code) = work {
            self.sticky.store(code, Ordering::SeqCst);
        }
        if self.sticky.load(Ordering::SeqCst) != 0 {
            return;
        }
        match work {
            // SAFETY: both ranges were checked when the copy was queued, as far as they are
            // device memory; unmapping waits for the queue, and for the rest the caller vouches.
            Work::Copy { to, from, bytes } => unsafe { space::copy(to, from, bytes) },
            Work::Write { to, kept } => {
                let from = kept.as_ptr().expose_provenance();
                // SAFETY: as above; the vector can be read for its length.
                unsafe { space::copy(to, from, kept.len()) };
            }
            // SAFETY: as above.
            Work::Fill { to, value, bytes } => unsafe { space::fill(to, value, bytes) },
            Work::Host { function } => crate::call::on_callback_thread(|| {
                // SAFETY: the caller of `cuLaunchHostFunc` vouches for the function and its data.
                unsafe { (function.function)(function.data) };
            }),
            Work::Record(time) => {
                *time.lock().unwrap_or_else(PoisonError::into_inner) = Some(now());
            }
            Work::Nothing | Work::Fail(_) => {}
        }
    }
}

/// The time, for events alone.
fn now() -> Instant {
    Instant::now()
}

/// An event: a place in a stream that others can wait for.
pub(crate) struct Event {
    pub(crate) ordinal: usize,
    pub(crate) timed: bool,
    recorded: Mutex<Option<Recorded>>,
}

/// Where an event was recorded last.
#[derive(Clone)]
pub(crate) struct Recorded {
    pub(crate) ticket: Ticket,
    pub(crate) time: Arc<Mutex<Option<Instant>>>,
}

impl Recorded {
    pub(crate) fn time(&self) -> Option<Instant> {
        *self.time.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Event {
    pub(crate) fn new(ordinal: usize, timed: bool) -> Arc<Self> {
        Arc::new(Self {
            ordinal,
            timed,
            recorded: Mutex::default(),
        })
    }

    pub(crate) fn recorded(&self) -> Option<Recorded> {
        self.recorded
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    pub(crate) fn set(&self, recorded: Recorded) {
        *self.recorded.lock().unwrap_or_else(PoisonError::into_inner) = Some(recorded);
    }
}
