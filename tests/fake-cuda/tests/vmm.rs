//! Memory without addresses, addresses without memory, and descriptors between processes.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test that cannot go on fails; roles and helpers are no test functions"
)]

mod common;

use common::cu::*;
use common::{Machine, Peer, Roles, device_bytes, device_write, play};
use mrm_fake_cuda::abi::Location;
use std::os::fd::{AsFd as _, AsRawFd as _, FromRawFd as _, OwnedFd};
use std::os::unix::process::ExitStatusExt as _;

const ROLES: Roles = &[
    ("arguments", arguments),
    ("references", references),
    ("access", access_flags),
    ("write_read_only", write_read_only),
    ("read_unset", read_unset),
    ("copy_to_read_only", copy_to_read_only),
    ("exporter", exporter),
    ("importer", importer),
    ("offer", offer),
    ("take", take),
    ("hold", hold),
    ("watch", watch),
    ("no_vmm", no_vmm),
    ("no_posix_fd", no_posix_fd),
    ("no_peer", no_peer),
    ("blind", blind),
    ("many", many),
];

#[test]
#[ignore = "a role that the other tests start"]
fn child() {
    play(ROLES);
}

#[test]
fn arguments_are_checked() {
    Machine::new().with("CAPACITY", "8M").run("arguments");
}

fn arguments(_: &mut Peer) {
    assert_eq!(cuInit(0), 0);
    let (mut handle, mut prop) = (0, prop(0));
    let mut granularity = 0;
    assert_eq!(
        cuMemGetAllocationGranularity(&raw mut granularity, &raw const prop, 0),
        0
    );
    assert_eq!(granularity, GRAIN);
    assert_eq!(create(0, GRAIN + 1), Err(1));
    assert_eq!(create(0, 0), Err(1));
    assert_eq!(create(7, GRAIN), Err(101));
    assert_eq!(create(0, 5 * GRAIN), Err(2), "out of memory");
    assert_eq!(cuMemCreate(&raw mut handle, GRAIN, std::ptr::null(), 0), 1);
    assert_eq!(
        cuMemCreate(std::ptr::null_mut(), GRAIN, &raw const prop, 0),
        1
    );
    assert_eq!(cuMemCreate(&raw mut handle, GRAIN, &raw const prop, 1), 1);
    prop.handle_types = 8;
    assert_eq!(
        cuMemCreate(&raw mut handle, GRAIN, &raw const prop, 0),
        801,
        "no fabric"
    );
    prop.handle_types = 0;
    assert_eq!(cuMemCreate(&raw mut handle, GRAIN, &raw const prop, 0), 0);
    let mut fd = -1;
    assert_eq!(
        cuMemExportToShareableHandle(&raw mut fd, handle, 1, 0),
        1,
        "not asked for"
    );
    assert_eq!(cuMemRelease(handle + 1), 1);
    assert_eq!(import(-1), Err(1));
    assert_eq!(import(0), Err(1), "a socket");

    let ptr = reserve(2 * GRAIN);
    assert_eq!(ptr % GRAIN as u64, 0);
    let mut other = 0;
    assert_eq!(cuMemAddressReserve(&raw mut other, GRAIN + 1, 0, 0, 0), 1);
    assert_eq!(cuMemAddressReserve(&raw mut other, GRAIN, 3, 0, 0), 1);
    assert_eq!(cuMemMap(ptr + 4096, GRAIN, 0, handle, 0), 1, "not granular");
    assert_eq!(
        cuMemMap(ptr, 2 * GRAIN, 0, handle, 0),
        1,
        "larger than the memory"
    );
    assert_eq!(cuMemMap(ptr, GRAIN, GRAIN, handle, 0), 1, "an offset");
    assert_eq!(
        cuMemMap(ptr + 2 * GRAIN as u64, GRAIN, 0, handle, 0),
        1,
        "not reserved"
    );
    assert_eq!(access(ptr, GRAIN, 0, 3), 1, "nothing mapped");
    assert_eq!(cuMemMap(ptr, GRAIN, 0, handle, 0), 0);
    assert_eq!(cuMemMap(ptr, GRAIN, 0, handle, 0), 1, "mapped already");
    assert_eq!(access(ptr, GRAIN, 9, 3), 101);
    assert_eq!(access(ptr, GRAIN, 0, 2), 1);
    assert_eq!(access(ptr, 2 * GRAIN, 0, 3), 1, "half mapped");
    assert_eq!(cuMemAddressFree(ptr, 2 * GRAIN), 1, "mapped");
    assert_eq!(cuMemUnmap(ptr, GRAIN / 2), 1);
    assert_eq!(cuMemUnmap(ptr, GRAIN), 0);
    assert_eq!(cuMemAddressFree(ptr, GRAIN), 1, "another size");
    assert_eq!(cuMemAddressFree(ptr, 2 * GRAIN), 0);
}

#[test]
fn memory_lives_as_long_as_a_reference() {
    Machine::new().with("CAPACITY", "64M").run("references");
}

fn references(_: &mut Peer) {
    begin(0);
    let all = free_bytes();
    let handle = create(0, 4 * GRAIN).unwrap();
    let used = all - 4 * GRAIN;
    assert_eq!(free_bytes(), used);
    let ptr = map(handle, 4 * GRAIN, 0, 3);
    assert_eq!(cuMemRelease(handle), 0);
    assert_eq!(cuMemRelease(handle), 1, "released");
    assert_eq!(free_bytes(), used, "the mapping keeps it");
    upload(ptr + 5, b"weights");
    assert_eq!(device_bytes(ptr + 5, 7), b"weights");

    let mut again = 0;
    assert_eq!(
        cuMemRetainAllocationHandle(&raw mut again, usize::try_from(ptr).unwrap() + 9),
        0
    );
    assert_eq!(cuMemUnmap(ptr, 4 * GRAIN), 0);
    assert_eq!(free_bytes(), used, "the handle keeps it");
    // SAFETY: exported for this test alone.
    let fd = unsafe { OwnedFd::from_raw_fd(export(again)) };
    assert_eq!(cuMemRelease(again), 0);
    assert_eq!(free_bytes(), used, "the descriptor keeps it");
    let imported = import(fd.as_raw_fd()).unwrap();
    let second = import(fd.as_raw_fd()).unwrap();
    drop(fd);
    assert_eq!(cuMemRelease(imported), 0);
    let ptr = map(second, 4 * GRAIN, 0, 1);
    assert_eq!(
        download(ptr + 5, 7),
        b"weights",
        "the same bytes throughout"
    );
    assert_eq!(cuMemRelease(second), 0);
    assert_eq!(cuMemUnmap(ptr, 4 * GRAIN), 0);
    assert_eq!(free_bytes(), all);
}

#[test]
fn access_is_kept_per_device() {
    Machine::new().run("access");
    Machine::new().with("NO_PEER", "1").run("no_peer");
}

fn access_flags(_: &mut Peer) {
    begin(0);
    let ptr = map(create(0, GRAIN).unwrap(), GRAIN, 0, 1);
    assert_eq!(access(ptr, GRAIN, 1, 3), 0);
    let flags = |device: i32| {
        let (mut flags, location) = (
            9,
            Location {
                kind: 1,
                id: device,
            },
        );
        assert_eq!(
            cuMemGetAccess(&raw mut flags, &raw const location, ptr + 1),
            0
        );
        flags
    };
    assert_eq!((flags(0), flags(1)), (1, 3));
    assert_eq!(access(ptr, GRAIN, 1, 0), 0);
    assert_eq!((flags(0), flags(1)), (1, 0));
}

fn no_peer(_: &mut Peer) {
    begin(0);
    let ptr = map(create(0, GRAIN).unwrap(), GRAIN, 0, 1);
    assert_eq!(access(ptr, GRAIN, 1, 3), 101);
    let mut can = 9;
    assert_eq!(cuDeviceCanAccessPeer(&raw mut can, 0, 1), 0);
    assert_eq!(can, 0);
}

#[test]
fn protection_is_real() {
    for role in ["write_read_only", "read_unset"] {
        let status = Machine::new().start(role).end();
        assert_eq!(status.signal(), Some(libc::SIGSEGV), "{role}: {status}");
    }
    Machine::new().run("copy_to_read_only");
}

fn write_read_only(_: &mut Peer) {
    begin(0);
    let ptr = map(create(0, GRAIN).unwrap(), GRAIN, 0, 1);
    assert_eq!(device_bytes(ptr, 1), [0]);
    device_write(ptr, 1);
}

fn read_unset(_: &mut Peer) {
    begin(0);
    let (ptr, handle) = (reserve(GRAIN), create(0, GRAIN).unwrap());
    assert_eq!(cuMemMap(ptr, GRAIN, 0, handle, 0), 0);
    let mut byte = 0;
    assert_eq!(cuMemcpyDtoH_v2(&raw mut byte, ptr, 1), 1, "no access");
    device_bytes(ptr, 1);
}

fn copy_to_read_only(_: &mut Peer) {
    begin(0);
    let ptr = map(create(0, GRAIN).unwrap(), GRAIN, 0, 1);
    assert_eq!(cuMemcpyHtoD_v2(ptr, [1].as_ptr(), 1), 700);
    assert_eq!(cuCtxSynchronize(), 700, "and it stays");
    assert_eq!(create(0, GRAIN), Err(700));
    assert_eq!(create(1, GRAIN).err(), None, "the other device is well");
    assert_eq!(device_bytes(ptr, 1), [0]);
}

#[test]
fn an_importer_reads_on_when_the_exporter_is_killed() {
    let machine = Machine::new().with("CAPACITY", "64M");
    let (exporter, mut importer) = machine.start_pair("exporter", "importer");
    wait_for(&machine.path("imported"));
    exporter.kill();
    importer_goes_on(&machine);
    assert!(importer_end(&mut importer));
    machine.run("watch");
}

fn exporter(peer: &mut Peer) {
    begin(0);
    let handle = create(0, 8 * GRAIN).unwrap();
    let ptr = map(handle, 8 * GRAIN, 0, 3);
    upload(ptr + 3 * GRAIN as u64, b"from the exporter");
    // SAFETY: exported for this test alone.
    let fd = unsafe { OwnedFd::from_raw_fd(export(handle)) };
    peer.send_fd(fd.as_fd());
    // The importer never answers: this process is killed while it waits.
    let _never = peer.hear();
}

fn importer(peer: &mut Peer) {
    begin(0);
    let fd = peer.receive_fd();
    let handle = import(fd.as_raw_fd()).unwrap();
    drop(fd);
    let ptr = map(handle, 8 * GRAIN, 0, 1);
    let seen = || device_bytes(ptr + 3 * GRAIN as u64, 17);
    assert_eq!(seen(), b"from the exporter");
    let machine = std::path::PathBuf::from(std::env::var("MRM_FAKE_CUDA_DIR").unwrap());
    common::put(&machine.join("imported"), "");
    wait_for(&machine.join("killed"));
    assert_eq!(seen(), b"from the exporter");
    assert_eq!(free_bytes(), (64 << 20) - 8 * GRAIN);
}

fn importer_goes_on(machine: &Machine) {
    common::put(&machine.path("killed"), "");
}

fn importer_end(importer: &mut common::Running) -> bool {
    importer.wait().success()
}

/// Waits for a file to be there: an event, with a deadline far off.
fn wait_for(path: &std::path::Path) {
    for _ in 0..60_000 {
        if path.exists() {
            return;
        }
        // Only a pause between two looks: the file decides when the wait ends.
        std::thread::park_timeout(std::time::Duration::from_millis(1));
    }
    panic!("{} did not come", path.display());
}

#[test]
fn a_descriptor_alone_keeps_the_bytes() {
    let machine = Machine::new().with("CAPACITY", "64M");
    let mut offering = machine.start("offer");
    let fd = offering.socket.receive_fd();
    offering.kill();
    let mut taking = machine.start("take");
    taking.socket.send_fd(fd.as_fd());
    drop(fd);
    taking.succeed();
    machine.run("watch");
}

fn offer(peer: &mut Peer) {
    exporter(peer);
}

fn take(peer: &mut Peer) {
    begin(0);
    let fd = peer.receive_fd();
    assert_eq!(free_bytes(), (64 << 20) - 8 * GRAIN);
    let ptr = map(import(fd.as_raw_fd()).unwrap(), 8 * GRAIN, 0, 1);
    assert_eq!(download(ptr + 3 * GRAIN as u64, 17), b"from the exporter");
}

/// All memory is there.
fn watch(_: &mut Peer) {
    begin(0);
    assert_eq!(free_bytes(), 64 << 20);
}

#[test]
fn memory_of_the_killed_comes_back() {
    let machine = Machine::new().with("CAPACITY", "64M");
    let mut holding = machine.start("hold");
    assert_eq!(holding.socket.hear(), 1);
    let mut blocked = machine.start("hold");
    assert_eq!(
        blocked.socket.hear(),
        2,
        "the device is full for other processes, too"
    );
    blocked.kill();
    holding.kill();
    machine.run("watch");
}

fn hold(peer: &mut Peer) {
    begin(0);
    match create(0, 64 << 20) {
        Ok(handle) => {
            map(handle, 64 << 20, 0, 3);
            assert_eq!(create(0, GRAIN), Err(2));
            assert!(create(1, GRAIN).is_ok(), "the other device is empty");
            peer.say(1);
        }
        Err(code) => peer.say(u8::try_from(code).unwrap()),
    }
    let _never = peer.hear();
}

#[test]
fn abilities_can_be_taken_away() {
    Machine::new().with("NO_VMM", "1").run("no_vmm");
    Machine::new().with("NO_POSIX_FD", "1").run("no_posix_fd");
}

fn attribute(number: u32) -> i32 {
    let mut value = -1;
    assert_eq!(cuDeviceGetAttribute(&raw mut value, number, 0), 0);
    value
}

fn no_vmm(_: &mut Peer) {
    begin(0);
    assert_eq!((attribute(102), attribute(103), attribute(41)), (0, 0, 1));
    assert_eq!(create(0, GRAIN), Err(801));
    alloc(5);
}

fn no_posix_fd(_: &mut Peer) {
    begin(0);
    assert_eq!((attribute(102), attribute(103)), (1, 0));
    assert_eq!(create(0, GRAIN), Err(801));
}

#[test]
fn memory_of_a_device_that_is_not_visible_cannot_be_imported() {
    let machine = Machine::new();
    let mut offering = machine.start("offer");
    let fd = offering.socket.receive_fd();
    let blind = Machine::new().with("CUDA_VISIBLE_DEVICES", "1");
    let mut refused = blind.start("blind");
    refused.socket.send_fd(fd.as_fd());
    refused.succeed();
    offering.kill();
}

fn blind(peer: &mut Peer) {
    begin(0);
    assert_eq!(import(peer.receive_fd().as_raw_fd()), Err(801));
}

#[test]
fn there_may_be_thousands_of_allocations() {
    Machine::new().with("CAPACITY", "8G").run("many");
}

fn many(_: &mut Peer) {
    begin(0);
    let handles: Vec<u64> = (0..2000).map(|_| create(0, GRAIN).unwrap()).collect();
    assert_eq!(free_bytes(), (8 << 30) - 2000 * GRAIN);
    for handle in handles {
        assert_eq!(cuMemRelease(handle), 0);
    }
    assert_eq!(free_bytes(), 8 << 30);
}
