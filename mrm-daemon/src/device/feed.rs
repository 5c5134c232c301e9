//! Bytes in host memory that a device is filled from, perhaps while they are still being read.
//!
//! ```
//! use mrm_daemon::device::feed::HostFeed;
//! use mrm_daemon::{degraded::Degraded, memory::HostSegment};
//! use std::sync::{Arc, atomic::AtomicBool};
//!
//! let segment = Arc::new(HostSegment::holding(b"weights", &Degraded::new())?);
//! let feed = HostFeed::resident("model.safetensors", segment, *blake3::hash(b"weights").as_bytes());
//! feed.when_gone(Box::new(|| println!("its memory is free")));
//!
//! let go_on = AtomicBool::new(false);
//! feed.wait_for(feed.bytes(), &go_on)?;
//! let mut bytes = [0; 4];
//! feed.read_at(3, &mut bytes)?;
//! assert_eq!(&bytes, b"ghts");
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod registration;

pub(super) use self::registration::Mapped;
use self::registration::{Gone, Registration};
use crate::memory::HostSegment;
use mrm_proto::error::ErrorCode;
use std::fmt;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// How long a wait takes to notice that it was cancelled.
const CANCEL_POLL: Duration = Duration::from_millis(50);

/// A segment in host memory, to be read from as far as it is filled.
///
/// Its memory is free when the last clone of its [`Arc`] is gone, and no copy to a device reads it
/// any more: [`HostFeed::when_gone`].
pub struct HostFeed {
    label: Box<str>,
    bytes: u64,
    // The order of the fields is the order in which they are dropped: the registration before the
    // memory, and the notice last.
    registration: Mutex<Registration>,
    state: Mutex<State>,
    changed: Condvar,
    gone: Arc<Gone>,
}

/// The side of a [`HostFeed`] that the load has. Dropped before it said how the load ended, it
/// fails the feed: who waits for it never waits for ever.
#[derive(Debug)]
pub struct FeedWriter(Arc<HostFeed>);

/// Why bytes cannot be read from a feed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FeedError {
    /// The load that fills it failed.
    #[error("{message}")]
    Failed {
        /// The code of that failure.
        code: ErrorCode,
        /// What was said of it: names the file.
        message: Arc<str>,
    },
    /// Nobody wants the bytes any more.
    #[error("copying `{name}` to a device was cancelled; open it again if it is wanted")]
    Cancelled {
        /// The file.
        name: String,
    },
    /// The kernel would not read its own memory, or less is there than was said.
    #[error("cannot read `{name}` from host memory at byte {offset}: {cause}; report it")]
    Read {
        /// The file.
        name: String,
        /// Where.
        offset: u64,
        /// What the kernel said.
        cause: rustix::io::Errno,
    },
}

impl FeedError {
    /// The code for the client.
    #[must_use]
    pub const fn code(&self) -> ErrorCode {
        match self {
            Self::Failed { code, .. } => *code,
            Self::Cancelled { .. } => ErrorCode::Cancelled,
            Self::Read { .. } => ErrorCode::Internal,
        }
    }
}

struct State {
    memory: Option<Memory>,
    filled_bytes: u64,
    /// The digest of all bytes, or why there are none.
    end: Option<Result<[u8; 32], FeedError>>,
}

#[derive(Clone)]
enum Memory {
    /// A copy of the load's descriptor, then of the segment's.
    Descriptor(Arc<OwnedFd>),
    Segment(Arc<HostSegment>),
}

impl HostFeed {
    /// A feed of a segment of `bytes` bytes that is about to be loaded, and the side for the load.
    #[must_use]
    pub fn loading(label: &str, bytes: u64) -> (Arc<Self>, FeedWriter) {
        let feed = Arc::new(Self::new(label, bytes, None));
        (Arc::clone(&feed), FeedWriter(feed))
    }

    /// A feed of a segment that is there, with the BLAKE3 digest of its bytes.
    #[must_use]
    pub fn resident(label: &str, segment: Arc<HostSegment>, digest: [u8; 32]) -> Arc<Self> {
        Arc::new(Self::new(label, segment.bytes(), Some((segment, digest))))
    }

    fn new(label: &str, bytes: u64, there: Option<(Arc<HostSegment>, [u8; 32])>) -> Self {
        let filled_bytes = if there.is_some() { bytes } else { 0 };
        let (memory, end) = there
            .map(|(segment, digest)| (Memory::Segment(segment), Ok(digest)))
            .unzip();
        Self {
            label: label.into(),
            bytes,
            registration: Mutex::default(),
            state: Mutex::new(State {
                memory,
                filled_bytes,
                end,
            }),
            changed: Condvar::new(),
            gone: Arc::default(),
        }
    }

    /// From now on reads through `segment`, which holds what was loaded: saves a descriptor. Does
    /// nothing unless the load ended well.
    pub fn adopt(&self, segment: Arc<HostSegment>) {
        let mut state = lock(&self.state);
        if segment.bytes() == self.bytes && matches!(state.end, Some(Ok(_))) {
            state.memory = Some(Memory::Segment(segment));
        }
    }

    /// What it is called in messages.
    #[must_use]
    pub fn label(&self) -> &str {
        &self.label
    }

    /// The length, once it is all there.
    #[must_use]
    pub const fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Whether all of it is there, verified and sealed.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        matches!(lock(&self.state).end, Some(Ok(_)))
    }

    /// Blocks until the first `upto_bytes` bytes can be read.
    ///
    /// # Errors
    /// If the load failed, the feed is shorter, or `cancel` was set (noticed in a twentieth of a
    /// second).
    pub fn wait_for(&self, upto_bytes: u64, cancel: &AtomicBool) -> Result<(), FeedError> {
        if upto_bytes > self.bytes {
            return Err(self.unreadable(upto_bytes, rustix::io::Errno::INVAL));
        }
        self.wait(cancel, |state| match &state.end {
            Some(Err(error)) => Some(Err(error.clone())),
            Some(Ok(_)) => Some(Ok(())),
            None if state.memory.is_some() && state.filled_bytes >= upto_bytes => Some(Ok(())),
            None => None,
        })
    }

    /// Blocks until the load ended, and returns the BLAKE3 digest of all bytes.
    ///
    /// # Errors
    /// If the load failed, or `cancel` was set.
    pub fn digest(&self, cancel: &AtomicBool) -> Result<[u8; 32], FeedError> {
        self.wait(cancel, |state| state.end.clone())
    }

    /// Fills `into` with the bytes at `offset`, which were waited for.
    ///
    /// # Errors
    /// If the kernel cannot read them, or they are not there, or not any more: the load may have
    /// begun anew since.
    pub fn read_at(&self, offset: u64, into: &mut [u8]) -> Result<(), FeedError> {
        let memory = {
            let state = lock(&self.state);
            let end = offset.saturating_add(into.len() as u64);
            if state.end.is_none() && state.filled_bytes < end {
                return Err(self.began_anew());
            }
            state.memory.clone()
        };
        let memory = memory.ok_or_else(|| self.unreadable(offset, rustix::io::Errno::BADF))?;
        let mut done = 0;
        while let Some(rest) = into.get_mut(done..).filter(|rest| !rest.is_empty()) {
            let at = offset.saturating_add(done as u64);
            let read = rustix::io::retry_on_intr(|| rustix::io::pread(&memory, &mut *rest, at));
            match read {
                Ok(0) => return Err(self.unreadable(at, rustix::io::Errno::NODATA)),
                Ok(bytes) => done += bytes,
                Err(cause) => return Err(self.unreadable(at, cause)),
            }
        }
        Ok(())
    }

    /// Runs `notice` when the memory is free as far as this process is concerned: after the last
    /// clone of the feed, its registration and its descriptors are gone. It runs on the thread that
    /// drops the last of them, and must not block.
    pub fn when_gone(&self, notice: Box<dyn FnOnce() + Send>) {
        lock(&self.gone.0).push(notice);
    }

    fn wait<T>(
        &self,
        cancel: &AtomicBool,
        look: impl Fn(&State) -> Option<Result<T, FeedError>>,
    ) -> Result<T, FeedError> {
        let mut state = lock(&self.state);
        loop {
            if let Some(outcome) = look(&state) {
                return outcome;
            }
            if cancel.load(Ordering::Relaxed) {
                let name = self.label.to_string();
                return Err(FeedError::Cancelled { name });
            }
            state = match self.changed.wait_timeout(state, CANCEL_POLL) {
                Ok((state, _)) => state,
                Err(poisoned) => poisoned.into_inner().0,
            };
        }
    }

    fn began_anew(&self) -> FeedError {
        let message = format!(
            "the load of `{}` began anew while it was copied to a device; try again",
            self.label
        );
        FeedError::Failed {
            code: ErrorCode::Cancelled,
            message: message.into(),
        }
    }

    fn unreadable(&self, offset: u64, cause: rustix::io::Errno) -> FeedError {
        FeedError::Read {
            name: self.label.to_string(),
            offset,
            cause,
        }
    }

    fn end(&self, end: Result<[u8; 32], FeedError>) {
        let mut state = lock(&self.state);
        if state.end.is_none() {
            if end.is_err() {
                // Nobody reads it any more, so the memory need not wait for the last reader.
                state.memory = None;
            }
            state.end = Some(end);
        }
        drop(state);
        self.changed.notify_all();
    }
}

impl FeedWriter {
    /// The memory is there, and filled from its beginning through `fd`.
    pub fn begin(&self, fd: BorrowedFd<'_>) {
        match fd.try_clone_to_owned() {
            Ok(fd) => {
                lock(&self.0.state).memory = Some(Memory::Descriptor(Arc::new(fd)));
                self.0.changed.notify_all();
            }
            Err(cause) => self.out_of_descriptors(&cause),
        }
    }

    /// The first `bytes` bytes are there.
    pub fn filled(&self, bytes: u64) {
        lock(&self.0.state).filled_bytes = bytes;
        self.0.changed.notify_all();
    }

    /// What is there will be thrown away, and the same bytes come in other memory: nothing is there
    /// until that is begun.
    pub fn begin_anew(&self) {
        let mut state = lock(&self.0.state);
        (state.memory, state.filled_bytes) = (None, 0);
    }

    /// All is there, and sealed: `fd` is the segment's, `digest` the BLAKE3 digest of its bytes.
    pub fn done(&self, fd: BorrowedFd<'_>, digest: [u8; 32]) {
        match fd.try_clone_to_owned() {
            Ok(fd) => {
                lock(&self.0.state).memory = Some(Memory::Descriptor(Arc::new(fd)));
                self.0.end(Ok(digest));
            }
            Err(cause) => self.out_of_descriptors(&cause),
        }
    }

    /// The load failed.
    pub fn failed(&self, code: ErrorCode, message: &dyn fmt::Display) {
        let message = Arc::from(message.to_string());
        self.0.end(Err(FeedError::Failed { code, message }));
    }

    fn out_of_descriptors(&self, cause: &std::io::Error) {
        let label = &self.0.label;
        let message = format!(
            "no file descriptor left to copy `{label}` to a device: {cause}; raise the daemon's \
             LimitNOFILE"
        );
        self.failed(ErrorCode::Exhausted, &message);
    }
}

impl Drop for FeedWriter {
    fn drop(&mut self) {
        let message = format!("the load of `{}` was given up; try again", self.0.label);
        self.failed(ErrorCode::Cancelled, &message);
    }
}

impl AsFd for Memory {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Descriptor(fd) => fd.as_fd(),
            Self::Segment(segment) => segment.fd(),
        }
    }
}

impl fmt::Debug for HostFeed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HostFeed")
            .field("label", &self.label)
            .field("bytes", &self.bytes)
            .field("filled_bytes", &lock(&self.state).filled_bytes)
            .finish_non_exhaustive()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Each state is whole between any two statements.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests;
