//! Reads by io_uring: several at a time from one thread. The only unsafe code of the loading.

use super::piece::Piece;
use io_uring::{IoUring, Probe, opcode, types};
use rustix::io::Errno;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

/// A ring of its own for one load, dropped with it.
pub(super) struct Ring {
    ring: IoUring,
    depth: usize,
}

/// What is to become of a piece that a read of came back.
pub(super) enum Then<'i> {
    /// It was kept by whoever was asked.
    Kept,
    /// Read what is left of it.
    Again(Piece<'i>),
    /// Read nothing more at all.
    Stop,
}

impl Ring {
    /// A ring for `depth` reads at a time.
    ///
    /// # Errors
    /// If the kernel has no io_uring, or does not let this process use it.
    pub(super) fn new(depth: u32) -> io::Result<Self> {
        let ring = IoUring::builder().dontfork().build(depth)?;
        let mut probe = Probe::new();
        ring.submitter().register_probe(&mut probe)?;
        if !probe.is_supported(opcode::Read::CODE) {
            return Err(io::Error::from(Errno::OPNOTSUPP));
        }
        let depth = usize::try_from(depth).unwrap_or(1);
        Ok(Self { ring, depth })
    }

    /// Reads the blocks of each piece from `fd`, and hands each result to `done`. No read is left
    /// when it returns.
    ///
    /// # Errors
    /// If the kernel takes no more reads. Those that it had taken were waited for.
    pub(super) fn run<'i>(
        self,
        fd: BorrowedFd<'_>,
        mut pieces: impl Iterator<Item = Piece<'i>>,
        mut done: impl FnMut(Piece<'i>, Result<usize, Errno>) -> Then<'i>,
    ) -> io::Result<()> {
        let mut flight = Flight {
            ring: self.ring,
            slots: (0..self.depth).map(|_| None).collect(),
            in_flight: 0,
        };
        for slot in 0..self.depth {
            if let Some(piece) = pieces.next() {
                flight.start(slot, piece, fd)?;
            }
        }
        while flight.in_flight > 0 {
            let Some((slot, piece, result)) = flight.landed() else {
                flight.wait()?;
                continue;
            };
            let next = match done(piece, result) {
                Then::Kept => pieces.next(),
                Then::Again(piece) => Some(piece),
                Then::Stop => return Ok(()),
            };
            if let Some(piece) = next {
                flight.start(slot, piece, fd)?;
            }
        }
        Ok(())
    }
}

/// Reads that the kernel has, and where they go. Dropping it waits for them.
struct Flight<'i> {
    ring: IoUring,
    /// A piece is here, and nothing else has its memory, for as long as the kernel may write to it.
    slots: Vec<Option<Piece<'i>>>,
    in_flight: usize,
}

impl<'i> Flight<'i> {
    /// Queues a read into a slot that is free.
    fn start(&mut self, slot: usize, piece: Piece<'i>, fd: BorrowedFd<'_>) -> io::Result<()> {
        let place = self
            .slots
            .get_mut(slot)
            .ok_or(Errno::INVAL)
            .map_err(io::Error::from)?;
        let piece = place.insert(piece);
        let offset = piece.offset();
        let blocks = piece.blocks();
        let length = u32::try_from(blocks.len()).unwrap_or(u32::MAX);
        let read = opcode::Read::new(types::Fd(fd.as_raw_fd()), blocks.as_mut_ptr(), length)
            .offset(offset)
            .build()
            .user_data(slot as u64);
        // SAFETY: the kernel may write `length` bytes to the blocks until it says that the read has
        // ended. Until then the piece, which alone has this memory, stays in its slot, where nobody
        // looks at it; the memory outlives this value ('i), whose drop waits for all reads; and
        // `run`, which borrows the descriptor, returns only after that drop.
        let pushed = unsafe { self.ring.submission().push(&read) };
        match pushed {
            Ok(()) => {
                self.in_flight += 1;
                Ok(())
            }
            Err(_) => {
                *place = None;
                Err(io::Error::from(Errno::BUSY))
            }
        }
    }

    /// Hands the queued reads to the kernel, and waits until one has ended.
    fn wait(&mut self) -> io::Result<()> {
        match self.ring.submit_and_wait(1) {
            Ok(_) => Ok(()),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// A read that has ended, if there is one.
    fn landed(&mut self) -> Option<(usize, Piece<'i>, Result<usize, Errno>)> {
        let entry = self.ring.completion().next()?;
        self.in_flight = self.in_flight.saturating_sub(1);
        let slot = usize::try_from(entry.user_data()).ok()?;
        let piece = self.slots.get_mut(slot)?.take()?;
        let result = usize::try_from(entry.result())
            .map_err(|_| Errno::from_raw_os_error(entry.result().saturating_neg()));
        Some((slot, piece, result))
    }
}

impl Drop for Flight<'_> {
    fn drop(&mut self) {
        loop {
            while self.landed().is_some() {}
            // What the kernel was never given, it does not write to.
            let queued = self.ring.submission().len();
            if self.in_flight <= queued {
                return;
            }
            if self.wait().is_err() {
                // The kernel still ends what it has; there is nothing else to wait with.
                std::thread::yield_now();
            }
        }
    }
}

#[cfg(test)]
mod tests;
