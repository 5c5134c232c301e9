//! Contexts, streams, events and copies.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test that cannot go on fails; roles and helpers are no test functions"
)]

mod common;

use common::cu::*;
use common::{Machine, Peer, Roles, play};
use std::ffi::c_void;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Condvar, Mutex};

const ROLES: Roles = &[
    ("contexts", contexts),
    ("cost", cost),
    ("asynchronous", asynchronous),
    ("order", order),
    ("host_function", host_function),
    ("capture", capture),
    ("implicit", implicit),
    ("peers", peers),
    ("fatal", fatal),
    ("delayed", delayed),
];

#[test]
#[ignore = "a role that the other tests start"]
fn child() {
    play(ROLES);
}

#[test]
fn contexts_belong_to_threads() {
    Machine::new().run("contexts");
    Machine::new()
        .with("CONTEXT_BYTES", "300M")
        .with("CAPACITY", "1G")
        .run("cost");
}

fn contexts(_: &mut Peer) {
    let first = begin(0);
    let current = || {
        let mut context = 1;
        assert_eq!(cuCtxGetCurrent(&raw mut context), 0);
        context
    };
    let mut second = 0;
    assert_eq!(cuCtxPushCurrent_v2(first + 0x100), 709, "not active");
    assert_eq!(cuDevicePrimaryCtxRetain(&raw mut second, 1), 0);
    assert_eq!(cuCtxPushCurrent_v2(second), 0);
    let mut device = -1;
    assert_eq!(cuCtxGetDevice(&raw mut device), 0);
    assert_eq!((device, current()), (1, second));
    std::thread::spawn(move || {
        let mut context = 1;
        assert_eq!(cuCtxGetCurrent(&raw mut context), 0);
        assert_eq!(context, 0, "another thread, another stack");
        assert_eq!(cuCtxSynchronize(), 201);
    })
    .join()
    .unwrap();
    let mut popped = 0;
    assert_eq!(cuCtxPopCurrent_v2(&raw mut popped), 0);
    assert_eq!((popped, current()), (second, first));
    assert_eq!(cuCtxSetCurrent(0), 0);
    assert_eq!(current(), 0);
    assert_eq!(cuCtxPopCurrent_v2(&raw mut popped), 201);
    assert_eq!(cuCtxSetCurrent(12345), 201);

    assert_eq!(cuCtxSetCurrent(first), 0);
    let lost = alloc(100);
    let mut again = 0;
    assert_eq!(cuDevicePrimaryCtxRetain(&raw mut again, 0), 0);
    assert_eq!(again, first);
    assert_eq!(cuDevicePrimaryCtxRelease_v2(0), 0);
    assert_eq!(cuCtxSynchronize(), 0, "one share is left");
    assert_eq!(cuDevicePrimaryCtxRelease_v2(0), 0);
    assert_eq!(cuDevicePrimaryCtxRelease_v2(0), 201);
    assert_eq!(cuCtxSynchronize(), 709);
    begin(0);
    assert_eq!(cuMemFree_v2(lost), 1, "gone with its context");
}

fn cost(_: &mut Peer) {
    begin(0);
    assert_eq!(free_bytes(), 724 << 20);
    begin(0);
    assert_eq!(free_bytes(), 724 << 20, "once per process");
}

#[test]
fn copies_of_pinned_memory_are_asynchronous() {
    Machine::new().run("asynchronous");
    Machine::new().with("DELAY_US", "2000").run("delayed");
}

/// A gate that a stream waits at, in a host function.
struct Gate {
    open: Mutex<bool>,
    changed: Condvar,
    inside: AtomicU32,
}

static GATE: Gate = Gate {
    open: Mutex::new(false),
    changed: Condvar::new(),
    inside: AtomicU32::new(0),
};

unsafe extern "C" fn wait_at_gate(_: *mut c_void) {
    GATE.inside.store(cuCtxSynchronize(), Ordering::SeqCst);
    let mut open = GATE.open.lock().unwrap();
    while !*open {
        open = GATE.changed.wait(open).unwrap();
    }
}

fn close_gate(stream: u64) {
    *GATE.open.lock().unwrap() = false;
    assert_eq!(
        cuLaunchHostFunc(stream, wait_at_gate, std::ptr::null_mut()),
        0
    );
}

fn open_gate() {
    *GATE.open.lock().unwrap() = true;
    GATE.changed.notify_all();
}

fn asynchronous(_: &mut Peer) {
    begin(0);
    let (stream, ptr) = (stream(1), alloc(100));
    let mut pageable = [1_u8; 10];
    let mut pinned = 0;
    assert_eq!(cuMemHostAlloc(&raw mut pinned, 10, 0), 0);
    let pinned: *mut u8 = std::ptr::with_exposed_provenance_mut(pinned);
    close_gate(stream);
    assert_eq!(cuMemcpyHtoDAsync_v2(ptr, pinned, 10, stream), 0);
    assert_eq!(
        cuMemcpyHtoDAsync_v2(ptr + 10, pageable.as_ptr(), 10, stream),
        0
    );
    assert_eq!(cuStreamQuery(stream), 600);
    pageable.fill(7);
    // SAFETY: the driver gave ten bytes, which the stream reads only after the gate.
    unsafe { pinned.write_bytes(7, 10) };
    open_gate();
    assert_eq!(cuStreamSynchronize(stream), 0);
    assert_eq!(cuStreamQuery(stream), 0);
    let got = download(ptr, 20);
    assert_eq!(got[..10], [7; 10], "pinned: read late");
    assert_eq!(got[10..], [1; 10], "pageable: read at once");
    assert_eq!(cuStreamDestroy_v2(stream), 0);
    assert_eq!(cuStreamDestroy_v2(stream), 400);
    assert_eq!(cuMemcpyHtoDAsync_v2(ptr, pinned, 10, stream), 400);
}

fn delayed(_: &mut Peer) {
    begin(0);
    let (stream, ptr) = (stream(0), alloc(1 << 20));
    let bytes = vec![3_u8; 1 << 20];
    let (start, end) = (event(), event());
    assert_eq!(cuEventRecord(start, stream), 0);
    assert_eq!(
        cuMemcpyHtoDAsync_v2(ptr, bytes.as_ptr(), bytes.len(), stream),
        0
    );
    assert_eq!(cuEventRecord(end, stream), 0);
    assert_eq!(cuEventSynchronize(end), 0);
    let mut elapsed_ms = 0.0;
    assert_eq!(cuEventElapsedTime(&raw mut elapsed_ms, start, end), 0);
    assert!(elapsed_ms >= 2.0, "{elapsed_ms}: the delay lies between");
    assert_eq!(download(ptr, 1 << 20), bytes);
}

#[test]
fn events_order_streams() {
    Machine::new().run("order");
}

fn order(_: &mut Peer) {
    begin(0);
    let (one, two, ptr) = (stream(1), stream(1), alloc(10));
    let (mid, unrecorded) = (event(), event());
    assert_eq!(cuEventQuery(unrecorded), 0);
    close_gate(one);
    assert_eq!(cuMemcpyHtoDAsync_v2(ptr, [1_u8; 4].as_ptr(), 4, one), 0);
    assert_eq!(cuEventRecord(mid, one), 0);
    assert_eq!(cuStreamWaitEvent(two, mid, 0), 0);
    assert_eq!(cuMemcpyDtoDAsync_v2(ptr + 4, ptr, 4, two), 0);
    assert_eq!((cuEventQuery(mid), cuStreamQuery(two)), (600, 600));
    assert_eq!(cuEventDestroy_v2(mid), 0, "the wait stays");
    open_gate();
    assert_eq!(cuStreamSynchronize(two), 0);
    assert_eq!(download(ptr, 8), [1; 8]);
    // A blocking stream: the default stream, and with it a plain copy, waits for it.
    let blocking = stream(0);
    close_gate(blocking);
    assert_eq!(
        cuMemcpyHtoDAsync_v2(ptr, [9_u8; 4].as_ptr(), 4, blocking),
        0
    );
    open_gate();
    assert_eq!(download(ptr, 4), [9; 4]);
    let mut elapsed_ms = 0.0;
    assert_eq!(
        cuEventElapsedTime(&raw mut elapsed_ms, unrecorded, unrecorded),
        400
    );
}

#[test]
fn host_functions_must_not_call_the_driver() {
    Machine::new().run("host_function");
}

fn host_function(_: &mut Peer) {
    begin(0);
    let stream = stream(0);
    close_gate(stream);
    open_gate();
    assert_eq!(cuCtxSynchronize(), 0);
    assert_eq!(GATE.inside.load(Ordering::SeqCst), 800);
}

#[test]
fn a_capture_takes_work_and_bears_no_waiting() {
    Machine::new().run("capture");
}

fn capture(_: &mut Peer) {
    begin(0);
    let (stream, ptr) = (stream(1), map(create(0, GRAIN).unwrap(), GRAIN, 0, 3));
    let status = || {
        let mut status = 9;
        assert_eq!(cuStreamIsCapturing(stream, &raw mut status), 0);
        status
    };
    let mut graph = 0;
    assert_eq!(status(), 0);
    assert_eq!(cuStreamEndCapture(stream, &raw mut graph), 903);
    assert_eq!(cuStreamBeginCapture_v2(stream, 0), 0);
    assert_eq!(cuMemcpyHtoDAsync_v2(ptr, [1].as_ptr(), 1, stream), 0);
    assert_eq!(status(), 1);
    assert_eq!(cuStreamEndCapture(stream, &raw mut graph), 0);
    assert_ne!(graph, 0);
    assert_eq!(download(ptr, 1), [0], "captured, not done");
    assert_eq!(cuStreamBeginCapture_v2(stream, 0), 0);
    assert_eq!(cuMemUnmap(ptr, GRAIN), 900);
    assert_eq!(status(), 2);
    assert_eq!(cuStreamEndCapture(stream, &raw mut graph), 901);
    assert_eq!(cuMemUnmap(ptr, GRAIN), 0);
}

#[test]
fn the_default_stream_tells_of_captures_that_it_would_spoil() {
    Machine::new().run("implicit");
}

#[test]
fn devices_copy_to_each_other() {
    Machine::new().run("peers");
}

fn implicit(_: &mut Peer) {
    begin(0);
    let (blocking, other) = (stream(0), stream(1));
    let ask = |stream: u64| {
        let mut status = 9;
        (cuStreamIsCapturing(stream, &raw mut status), status)
    };
    let mut graph = 0;
    assert_eq!((ask(0), ask(1)), ((0, 0), (0, 0)));
    assert_eq!(cuStreamBeginCapture_v2(other, 2), 0);
    assert_eq!(ask(0), (0, 0), "it does not wait for that one");
    assert_eq!(cuStreamEndCapture(other, &raw mut graph), 0);
    assert_eq!(cuStreamBeginCapture_v2(blocking, 2), 0);
    assert_eq!((ask(0).0, ask(1).0), (906, 906));
    assert_eq!((ask(blocking), ask(other)), ((0, 1), (0, 0)));
    assert_eq!(
        cuStreamEndCapture(blocking, &raw mut graph),
        0,
        "not spoilt"
    );
    assert_eq!(ask(0), (0, 0));
    begin(1);
    let elsewhere = stream(0);
    assert_eq!(cuStreamBeginCapture_v2(elsewhere, 2), 0);
    begin(0);
    assert_eq!(ask(0), (0, 0), "another context's");
}

fn peers(_: &mut Peer) {
    let first = begin(0);
    let from = alloc(100);
    upload(from, b"across");
    let second = begin(1);
    let (to, stream) = (alloc(100), stream(0));
    assert_eq!(cuMemcpyPeerAsync(to, second, from, first, 6, stream), 0);
    assert_eq!(cuStreamSynchronize(stream), 0);
    assert_eq!(download(to, 6), b"across");
    assert_eq!(cuMemcpyPeerAsync(to, second, from, 5, 6, stream), 201);
    assert_eq!(cuCtxSetCurrent(first), 0);
    assert_eq!(
        cuStreamSynchronize(stream),
        400,
        "a stream of another context"
    );
}

#[test]
fn an_asynchronous_fault_is_told_later_and_for_good() {
    let rule = "cuMemcpyHtoDAsync_v2:719:2:async";
    Machine::new().with("FAULTS", rule).run("fatal");
}

fn fatal(_: &mut Peer) {
    begin(0);
    let (stream, ptr) = (stream(0), alloc(10));
    assert_eq!(cuMemcpyHtoDAsync_v2(ptr, [1].as_ptr(), 1, stream), 0);
    assert_eq!(cuStreamSynchronize(stream), 0);
    assert_eq!(cuMemcpyHtoDAsync_v2(ptr, [1].as_ptr(), 1, stream), 0);
    assert_eq!(cuStreamSynchronize(stream), 719);
    assert_eq!(cuMemFree_v2(ptr), 719);
    let mut byte = 0;
    assert_eq!(cuMemcpyDtoH_v2(&raw mut byte, ptr, 1), 719);
    let mut context = 0;
    assert_eq!(cuDevicePrimaryCtxRetain(&raw mut context, 0), 719);
    begin(1);
    alloc(10);
}
