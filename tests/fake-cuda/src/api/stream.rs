//! Streams.

use std::ffi::c_void;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use crate::abi::{HostFn, STREAM_NON_BLOCKING};
use crate::args::Out;
use crate::call::{driver, function, queued_fault};
use crate::code;
use crate::context::{self, current};
use crate::process::{Process, process};
use crate::stream::{HostCall, Stream, Ticket, Work};

/// The default stream by its other name; 2 is the one of each thread.
const LEGACY_STREAM: u64 = 1;
const CAPTURE_NONE: u32 = 0;
const CAPTURE_ACTIVE: u32 = 1;
const CAPTURE_INVALIDATED: u32 = 2;
/// The graph that a capture ends in: empty, whatever was captured.
const GRAPH: u64 = 0x6d72_6d67;

driver! {
    /// Makes a stream; its thread starts with its first work.
    Init fn cuStreamCreate(stream: Out<u64>, flags: u32) {
        create(stream, flags)
    }

    /// The same; priorities make no difference here.
    Init fn cuStreamCreateWithPriority(stream: Out<u64>, flags: u32, priority: i32) {
        let _equal = priority;
        create(stream, flags)
    }

    /// Forgets a stream; what it has queued is done nevertheless.
    Init fn cuStreamDestroy_v2(stream: u64) {
        let mut process = process()?;
        let removed = process.streams.remove(&stream).ok_or(code::INVALID_HANDLE)?;
        removed.close();
        Ok(())
    }

    /// Waits for a stream.
    Init fn cuStreamSynchronize(stream: u64) {
        let ticket = {
            let process = process()?;
            quiet(&process, stream)?.ticket()
        };
        ticket.wait();
        current(&*process()?)?;
        Ok(())
    }

    /// Tells whether a stream is idle: 600 if not.
    Init fn cuStreamQuery(stream: u64) {
        let process = process()?;
        if quiet(&process, stream)?.ticket().is_done() { Ok(()) } else { Err(code::NOT_READY) }
    }

    /// Whether what is queued is recorded into a graph instead. The default stream never is, and
    /// answers 906 while a stream is that keeps order with it; that capture goes on.
    Init fn cuStreamIsCapturing(stream: u64, status: Out<u32>) {
        let process = process()?;
        let ordinal = current(&process)?;
        if stream <= LEGACY_STREAM && blocking_capture(&process, ordinal) {
            return Err(code::STREAM_CAPTURE_IMPLICIT);
        }
        let stream = find(&process, ordinal, stream)?;
        status.set(stream.capture.load(Ordering::SeqCst))
    }

    /// Records what is queued from now on, instead of doing it.
    Init fn cuStreamBeginCapture_v2(stream: u64, mode: u32) {
        let process = process()?;
        let ordinal = current(&process)?;
        if stream <= 2 || mode > 2 {
            return Err(code::STREAM_CAPTURE_UNSUPPORTED);
        }
        let stream = find(&process, ordinal, stream)?;
        let before = stream.capture.compare_exchange(
            CAPTURE_NONE, CAPTURE_ACTIVE, Ordering::SeqCst, Ordering::SeqCst,
        );
        before.map(|_| ()).map_err(|_| code::STREAM_CAPTURE_UNSUPPORTED)
    }

    /// Ends that, with a graph unless the capture was invalidated.
    Init fn cuStreamEndCapture(stream: u64, graph: Out<u64>) {
        let process = process()?;
        let stream = find(&process, current(&process)?, stream)?;
        let before = stream.capture.swap(CAPTURE_NONE, Ordering::SeqCst);
        match before {
            CAPTURE_ACTIVE => graph.set(GRAPH),
            CAPTURE_INVALIDATED => {
                graph.set_if_wanted(0);
                Err(code::STREAM_CAPTURE_INVALIDATED)
            }
            _ => Err(code::STREAM_CAPTURE_UNMATCHED),
        }
    }

    /// Forgets a graph.
    Init fn cuGraphDestroy(graph: u64) {
        if graph == GRAPH { Ok(()) } else { Err(code::INVALID_VALUE) }
    }

    /// The context of a stream.
    Init fn cuStreamGetCtx(stream: u64, out: Out<u64>) {
        let process = process()?;
        let stream = find(&process, current(&process)?, stream)?;
        out.set(context::of(stream.ordinal))
    }

    /// Lets a stream wait for an event, as it was recorded last.
    Init fn cuStreamWaitEvent(stream: u64, event: u64, flags: u32) {
        let process = process()?;
        let ordinal = current(&process)?;
        let event = process.events.get(&event).ok_or(code::INVALID_HANDLE)?;
        if flags > 1 {
            return Err(code::INVALID_VALUE);
        }
        match event.recorded() {
            Some(recorded) => {
                enqueue(&process, ordinal, stream, vec![recorded.ticket], Work::Nothing)?;
                Ok(())
            }
            None => find(&process, ordinal, stream).map(|_| ()),
        }
    }

    /// Calls a function of the host in order; it must not call the driver.
    Init fn cuLaunchHostFunc(stream: u64, function: HostFn, data: *mut c_void) {
        let process = process()?;
        let ordinal = current(&process)?;
        let function = function.ok_or(code::INVALID_VALUE)?;
        let work = Work::Host { function: HostCall { function, data } };
        enqueue(&process, ordinal, stream, Vec::new(), work)?;
        Ok(())
    }
}

fn create(stream: Out<u64>, flags: u32) -> Result<(), u32> {
    let mut process = process()?;
    let ordinal = current(&process)?;
    stream.check()?;
    if flags & !STREAM_NON_BLOCKING != 0 {
        return Err(code::INVALID_VALUE);
    }
    let context = process.contexts.get(ordinal).ok_or(code::INVALID_CONTEXT)?;
    let blocking = flags & STREAM_NON_BLOCKING == 0;
    let made = Stream::new(ordinal, blocking, Arc::clone(&context.sticky));
    let id = process.fresh_id();
    process.streams.insert(id, made);
    stream.set(id)
}

/// A stream by its handle; 0, 1 and 2 are the default stream.
pub(crate) fn find(process: &Process, ordinal: usize, stream: u64) -> Result<&Arc<Stream>, u32> {
    let context = process.contexts.get(ordinal).ok_or(code::INVALID_CONTEXT)?;
    if stream <= 2 {
        return Ok(&context.default_stream);
    }
    process
        .streams
        .get(&stream)
        .filter(|found| found.ordinal == ordinal)
        .ok_or(code::INVALID_HANDLE)
}

/// Whether a stream that keeps order with the default stream is being captured.
fn blocking_capture(process: &Process, ordinal: usize) -> bool {
    process.streams.values().any(|stream| {
        stream.ordinal == ordinal
            && stream.blocking
            && stream.capture.load(Ordering::SeqCst) == CAPTURE_ACTIVE
    })
}

/// A stream that the caller wants to wait for, which invalidates a capture.
fn quiet(process: &Process, stream: u64) -> Result<&Arc<Stream>, u32> {
    let stream = find(process, current(process)?, stream)?;
    if stream.capture.load(Ordering::SeqCst) != CAPTURE_NONE {
        stream.capture.store(CAPTURE_INVALIDATED, Ordering::SeqCst);
        return Err(code::STREAM_CAPTURE_UNSUPPORTED);
    }
    Ok(stream)
}

/// Queues work; none if it was captured instead.
pub(crate) fn enqueue(
    process: &Process,
    ordinal: usize,
    stream: u64,
    mut after: Vec<Ticket>,
    work: Work,
) -> Result<Option<Ticket>, u32> {
    let context = process.contexts.get(ordinal).ok_or(code::INVALID_CONTEXT)?;
    let stream = find(process, ordinal, stream)?;
    match stream.capture.load(Ordering::SeqCst) {
        CAPTURE_NONE => {}
        CAPTURE_ACTIVE => return Ok(None),
        _ => return Err(code::STREAM_CAPTURE_INVALIDATED),
    }
    // The default stream and the blocking ones keep order with each other.
    if Arc::ptr_eq(stream, &context.default_stream) {
        let blocking = |other: &&Arc<Stream>| other.ordinal == ordinal && other.blocking;
        for other in process.streams.values().filter(blocking) {
            if other.capture.load(Ordering::SeqCst) != CAPTURE_NONE {
                other.capture.store(CAPTURE_INVALIDATED, Ordering::SeqCst);
                return Err(code::STREAM_CAPTURE_IMPLICIT);
            }
            after.push(other.ticket());
        }
    } else if stream.blocking {
        after.push(context.default_stream.ticket());
    }
    let delay = match work {
        Work::Copy { .. } | Work::Write { .. } | Work::Fill { .. } | Work::Host { .. } => {
            process.settings.delay(function(), true)
        }
        Work::Record(_) | Work::Nothing | Work::Fail(_) => std::time::Duration::ZERO,
    };
    let work = queued_fault().map_or(work, Work::Fail);
    stream.submit(after, delay, work).map(Some)
}
