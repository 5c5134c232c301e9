//! `cuMemAlloc`, its handles between processes, and pinned memory of the host.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test that cannot go on fails; roles and helpers are no test functions"
)]

mod common;

use common::cu::*;
use common::{Machine, Peer, Roles, device_bytes, play};
use mrm_fake_cuda::abi::IpcMemHandle;
use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, ftruncate, memfd_create};
use rustix::io::Errno;
use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};
use std::ptr;

const ROLES: Roles = &[
    ("allocate", allocate),
    ("owner", owner),
    ("opener", opener),
    ("open_late", open_late),
    ("no_ipc", no_ipc),
    ("host", host),
    ("read_only", read_only),
    ("seal", seal),
    ("pointers", pointers),
];

#[test]
#[ignore = "a role that the other tests start"]
fn child() {
    play(ROLES);
}

fn get_handle(ptr: u64) -> Result<IpcMemHandle, u32> {
    let mut handle = IpcMemHandle { reserved: [0; 64] };
    match cuIpcGetMemHandle(&raw mut handle, ptr) {
        0 => Ok(handle),
        code => Err(code),
    }
}

fn open(handle: IpcMemHandle) -> Result<u64, u32> {
    let mut ptr = 0;
    match cuIpcOpenMemHandle_v2(&raw mut ptr, handle, 1) {
        0 => Ok(ptr),
        code => Err(code),
    }
}

#[test]
fn allocations_share_blocks_when_small() {
    Machine::new().with("CAPACITY", "64M").run("allocate");
}

fn allocate(_: &mut Peer) {
    let mut ptr = 0;
    assert_eq!(cuInit(0), 0);
    assert_eq!(cuMemAlloc_v2(&raw mut ptr, 1), 201, "no context");
    begin(0);
    assert_eq!(cuMemAlloc_v2(&raw mut ptr, 0), 1);
    let (one, two) = (alloc(1000), alloc(1000));
    assert_eq!(two - one, 1024);
    assert_eq!(free_bytes(), (64 << 20) - GRAIN);
    let large = alloc(5 << 20);
    assert_eq!(free_bytes(), (64 << 20) - 4 * GRAIN);
    let (mut base, mut bytes) = (0, 0);
    assert_eq!(
        cuMemGetAddressRange_v2(&raw mut base, &raw mut bytes, large + 77),
        0
    );
    assert_eq!((base, bytes), (large, 5 << 20));
    assert_eq!(cuMemFree_v2(one + 1), 1);
    assert_eq!(cuMemFree_v2(one), 0);
    assert_eq!(alloc(600), one, "the gap is used again");
    assert_eq!(
        cuMemcpyHtoD_v2(two, [0; 1001].as_ptr(), 1001),
        1,
        "too long"
    );
    for ptr in [one, two, large, 0] {
        assert_eq!(cuMemFree_v2(ptr), 0);
    }
    assert_eq!(free_bytes(), 64 << 20);
}

#[test]
fn a_handle_opens_the_whole_block_in_another_process() {
    let machine = Machine::new().with("CAPACITY", "64M");
    let (owning, opening) = machine.start_pair("owner", "opener");
    opening.succeed();
    owning.succeed();
}

fn owner(peer: &mut Peer) {
    begin(0);
    let (secret, shared) = (alloc(512), alloc(4096));
    upload(secret, b"not meant for others");
    upload(shared, b"meant for others");
    let handle = get_handle(shared).unwrap();
    assert_eq!(get_handle(shared + 1).err(), Some(1), "not the base");
    assert_eq!(
        get_handle(map(create(0, GRAIN).unwrap(), GRAIN, 0, 3)).err(),
        Some(1)
    );
    assert_eq!(open(handle).err(), Some(201), "in the process that made it");
    peer.send(&handle.reserved);
    assert_eq!(peer.hear(), 1);
    assert_eq!(
        device_bytes(shared, 5),
        b"MEANT",
        "there is no read-only here"
    );
    assert_eq!(cuMemFree_v2(shared), 0);
    assert_eq!(cuMemFree_v2(secret), 0);
    peer.say(2);
    assert_eq!(peer.hear(), 3);
}

fn opener(peer: &mut Peer) {
    begin(0);
    let handle = IpcMemHandle {
        reserved: peer.receive(),
    };
    let mut ptr = 0;
    assert_eq!(
        cuIpcOpenMemHandle_v2(&raw mut ptr, handle, 0),
        1,
        "the flag is required"
    );
    let ptr = open(handle).unwrap();
    assert_eq!(open(handle), Ok(ptr), "counted, at the same address");
    assert_eq!(download(ptr, 16), b"meant for others");
    assert_eq!(
        device_bytes(ptr - 512, 20),
        b"not meant for others",
        "the whole block"
    );
    upload(ptr, b"MEANT");
    peer.say(1);
    assert_eq!(peer.hear(), 2);
    assert_eq!(cuIpcCloseMemHandle(ptr), 0);
    assert_eq!(download(ptr, 5), b"MEANT", "still open once");
    assert_eq!(
        free_bytes(),
        (64 << 20) - 2 * GRAIN,
        "held by this process; and the other's VMM"
    );
    assert_eq!(cuIpcCloseMemHandle(ptr), 0);
    assert_eq!(cuIpcCloseMemHandle(ptr), 1);
    assert_eq!(open(handle), Err(400), "freed by its owner");
    assert_eq!(open(IpcMemHandle { reserved: [7; 64] }), Err(1));
    peer.say(3);
}

#[test]
fn a_handle_of_the_dead_opens_nothing() {
    let machine = Machine::new();
    let mut owning = machine.start("owner");
    let handle: [u8; 64] = owning.socket.receive();
    owning.kill();
    let mut late = machine.start("open_late");
    late.socket.send(&handle);
    late.succeed();
}

fn open_late(peer: &mut Peer) {
    begin(0);
    let reserved = peer.receive();
    assert_eq!(open(IpcMemHandle { reserved }), Err(400));
}

#[test]
fn handles_can_be_taken_away() {
    Machine::new().with("NO_IPC", "1").run("no_ipc");
}

fn no_ipc(_: &mut Peer) {
    begin(0);
    assert_eq!(get_handle(alloc(1)).err(), Some(801));
}

#[test]
fn host_memory_is_pinned_once() {
    Machine::new().run("host");
}

fn host(_: &mut Peer) {
    begin(0);
    let mut ptr = 0;
    assert_eq!(cuMemHostAlloc(&raw mut ptr, 10_000, 0), 0);
    let mut device_ptr = 0;
    assert_eq!(cuMemHostGetDevicePointer_v2(&raw mut device_ptr, ptr, 0), 0);
    assert_eq!(device_ptr, ptr as u64);
    assert_eq!(cuMemHostRegister_v2(ptr, 100, 0), 712);
    assert_eq!(cuMemHostUnregister(ptr), 713);
    assert_eq!(cuMemFreeHost(ptr), 0);
    assert_eq!(cuMemFreeHost(ptr), 1);

    let buffer = vec![0_u8; 1 << 20];
    let start = buffer.as_ptr().expose_provenance();
    assert_eq!(cuMemHostRegister_v2(start, buffer.len(), 0), 0);
    assert_eq!(cuMemHostRegister_v2(start + 4096, 4096, 0), 712);
    assert_eq!(cuMemFreeHost(start), 1);
    assert_eq!(cuMemHostUnregister(start + 1), 713);
    assert_eq!(cuMemHostUnregister(start), 0);
    assert_eq!(
        cuMemHostRegister_v2(start, buffer.len(), 0x4),
        1,
        "memory of other hardware"
    );
    assert_eq!(cuMemHostRegister_v2(4096, 4096, 0), 1, "not mapped");
    assert_eq!(cuMemHostRegister_v2(0, 4096, 0), 1);
}

#[test]
fn read_only_memory_needs_its_flag() {
    Machine::new().run("read_only");
    Machine::new()
        .with("NO_READ_ONLY_REGISTER", "1")
        .run("read_only");
}

/// A sealed segment, as the daemon lends it.
fn read_only(_: &mut Peer) {
    begin(0);
    let fd = memfd_create("segment", MemfdFlags::ALLOW_SEALING).unwrap();
    ftruncate(&fd, 1 << 20).unwrap();
    fcntl_add_seals(&fd, SealFlags::WRITE | SealFlags::SHRINK).unwrap();
    // SAFETY: a new mapping of a file that nobody can write or shorten.
    let start = unsafe {
        mmap(
            ptr::null_mut(),
            1 << 20,
            ProtFlags::READ,
            MapFlags::SHARED,
            &fd,
            0,
        )
        .unwrap()
    };
    let start = start.expose_provenance();
    let mut supported = 0;
    assert_eq!(cuDeviceGetAttribute(&raw mut supported, 113, 0), 0);
    assert_eq!(cuMemHostRegister_v2(start, 1 << 20, 0), 1);
    if supported == 1 {
        assert_eq!(cuMemHostRegister_v2(start, 1 << 20, 8), 0);
        assert_eq!(cuMemHostUnregister(start), 0);
    } else {
        assert_eq!(cuMemHostRegister_v2(start, 1 << 20, 8), 801);
    }
}

#[test]
fn pinned_memory_cannot_be_sealed() {
    Machine::new().run("seal");
}

fn seal(_: &mut Peer) {
    begin(0);
    let fd = memfd_create("segment", MemfdFlags::ALLOW_SEALING).unwrap();
    ftruncate(&fd, 1 << 20).unwrap();
    let access = ProtFlags::READ | ProtFlags::WRITE;
    // SAFETY: a new mapping, which nothing else refers to.
    let place =
        unsafe { mmap(ptr::null_mut(), 1 << 20, access, MapFlags::SHARED, &fd, 0).unwrap() };
    let start = place.expose_provenance();
    assert_eq!(cuMemHostRegister_v2(start, 1 << 20, 0), 0);
    // SAFETY: the mapping of above, not used any more.
    unsafe { munmap(place, 1 << 20) }.unwrap();
    assert_eq!(fcntl_add_seals(&fd, SealFlags::WRITE), Err(Errno::BUSY));
    assert_eq!(cuMemHostUnregister(start), 0);
    fcntl_add_seals(&fd, SealFlags::WRITE).unwrap();
}

#[test]
fn pointers_say_what_they_are() {
    Machine::new().run("pointers");
}

fn pointers(_: &mut Peer) {
    let context = begin(1);
    let attribute = |number: u32, ptr: u64| {
        let mut value = 0_u64;
        let place = (&raw mut value).cast();
        (cuPointerGetAttribute(place, number, ptr), value)
    };
    let (vmm, legacy) = (map(create(0, GRAIN).unwrap(), GRAIN, 0, 1), alloc(100));
    assert_eq!(attribute(2, vmm + 9), (0, 2));
    assert_eq!(attribute(9, vmm + 9), (0, 0));
    assert_eq!(attribute(9, legacy), (0, 1));
    assert_eq!(attribute(1, legacy), (0, context));
    assert_eq!(
        (attribute(10, vmm), attribute(10, legacy)),
        ((0, 0), (0, 1))
    );
    assert_eq!(
        (attribute(11, vmm + 5), attribute(12, vmm)),
        ((0, vmm), (0, GRAIN as u64))
    );
    assert_eq!((attribute(14, vmm), attribute(16, vmm)), ((0, 1), (0, 1)));
    assert_eq!(attribute(2, 64).0, 1, "not the driver's");
}
