//! Initialisation, devices, symbols, errors, faults and the log.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test that cannot go on fails; roles and helpers are no test functions"
)]

mod common;

use common::cu::*;
use common::{Machine, Peer, Roles, play, put};
use mrm_fake_cuda::abi::Uuid;
use mrm_fake_cuda::{api, uuid_text};
use std::ffi::CString;
use std::{env, fs, ptr};

const ROLES: Roles = &[
    ("before_init", before_init),
    ("init_error", init_error),
    ("devices", devices),
    ("list", list),
    ("symbols", symbols),
    ("missing", missing),
    ("names", names),
    ("faults", faults),
    ("every_call", every_call),
    ("live_faults", live_faults),
    ("lost", lost),
    ("fork", fork),
    ("log", log),
    ("many", many),
    ("nonsense", nonsense),
];

#[test]
#[ignore = "a role that the other tests start"]
fn child() {
    play(ROLES);
}

#[test]
fn nothing_works_before_init() {
    Machine::new()
        .with("DRIVER_VERSION", "13020")
        .run("before_init");
}

fn before_init(_: &mut Peer) {
    let (mut number, mut context) = (0, 0);
    assert_eq!(cuDriverGetVersion(&raw mut number), 0);
    assert_eq!(number, 13020);
    assert_eq!(cuDeviceGetCount(&raw mut number), 3);
    assert_eq!(cuDevicePrimaryCtxRetain(&raw mut context, 0), 3);
    assert_eq!(create(0, GRAIN), Err(3));
    assert_eq!(cuInit(1), 1);
    assert_eq!(cuInit(0), 0);
    assert_eq!(cuInit(0), 0);
    assert_eq!(cuDeviceGetCount(ptr::null_mut()), 1);
    assert_eq!(create(0, GRAIN).err(), None, "memory needs no context");
}

#[test]
fn init_fails_as_asked() {
    for code in ["34", "100", "803", "999", "4242"] {
        Machine::new().with("INIT_ERROR", code).run("init_error");
    }
    Machine::new().with("DEVICES", "0").run("init_error");
    Machine::new()
        .with("CUDA_VISIBLE_DEVICES", "")
        .run("init_error");
    Machine::new()
        .with("CUDA_VISIBLE_DEVICES", "7")
        .run("init_error");
}

fn init_error(_: &mut Peer) {
    let asked = env::var("MRM_FAKE_CUDA_INIT_ERROR").map_or(100, |code| code.parse().unwrap());
    let mut number = 0;
    assert_eq!(cuInit(0), asked);
    let version = cuDriverGetVersion(&raw mut number);
    assert_eq!(
        version,
        if asked == 34 { 34 } else { 0 },
        "a stub fails throughout"
    );
    assert_eq!(
        cuDeviceGetCount(&raw mut number),
        if asked == 34 { 34 } else { 3 }
    );
}

fn uuid(device: i32) -> String {
    let mut uuid = Uuid::default();
    assert_eq!(cuDeviceGetUuid_v2(&raw mut uuid, device), 0);
    uuid_text(&uuid)
}

#[test]
fn devices_are_told_apart() {
    Machine::new()
        .with("DEVICES", "3")
        .with("CAPACITY", "3G")
        .run("devices");
}

fn devices(_: &mut Peer) {
    assert_eq!(cuInit(0), 0);
    let (mut count, mut bytes, mut device) = (0, 0, -1);
    assert_eq!(cuDeviceGetCount(&raw mut count), 0);
    assert_eq!(count, 3);
    assert_ne!(uuid(0), uuid(2));
    assert_eq!(cuDeviceGet(&raw mut device, 3), 101);
    assert_eq!(cuDeviceGet(&raw mut device, 2), 0);
    assert_eq!(cuDeviceTotalMem_v2(&raw mut bytes, device), 0);
    assert_eq!(bytes, 3 << 30);
    let mut name = [1; 8];
    assert_eq!(cuDeviceGetName(name.as_mut_ptr(), 8, 2), 0);
    assert_eq!(name[..8], *b"Fake GP\0".map(u8::cast_signed).as_slice());
    let mut can = 0;
    assert_eq!(cuDeviceCanAccessPeer(&raw mut can, 0, 1), 0);
    assert_eq!(can, 1);
    let (mut flags, mut active) = (9, 9);
    assert_eq!(
        cuDevicePrimaryCtxGetState(0, &raw mut flags, &raw mut active),
        0
    );
    assert_eq!((flags, active), (0, 0));
    let mut value = 9;
    assert_eq!(cuDeviceGetAttribute(&raw mut value, 9999, 0), 1);
}

#[test]
fn visible_devices_are_named_by_index_and_uuid() {
    let listed = |setting: Option<&str>| {
        let mut machine = Machine::new();
        if let Some(setting) = setting {
            machine = machine.with("CUDA_VISIBLE_DEVICES", setting);
        }
        let mut running = machine.start("list");
        let count = running.socket.hear();
        let uuids =
            (0..count).map(|_| String::from_utf8(running.socket.receive::<40>().to_vec()).unwrap());
        uuids.collect::<Vec<_>>()
    };
    let all = listed(None);
    let [first, second] = all.as_slice() else {
        panic!("{all:?}")
    };
    assert_eq!(listed(Some("1")), std::slice::from_ref(second));
    assert_eq!(listed(Some("1,0")), [second.clone(), first.clone()]);
    assert_eq!(listed(Some(second)), std::slice::from_ref(second));
    assert_eq!(listed(Some(&second[..8])), std::slice::from_ref(second));
    assert_eq!(listed(Some("0,nonsense,1")), std::slice::from_ref(first));
}

fn list(peer: &mut Peer) {
    assert_eq!(cuInit(0), 0);
    let mut count = 0;
    assert_eq!(cuDeviceGetCount(&raw mut count), 0);
    peer.say(u8::try_from(count).unwrap());
    for device in 0..count {
        peer.send(uuid(device).as_bytes());
    }
}

fn look_up(name: &str) -> (u32, usize, u32) {
    let name = CString::new(name).unwrap();
    let (mut function, mut status) = (ptr::null_mut(), 9);
    let code = cuGetProcAddress_v2(name.as_ptr(), &raw mut function, 12040, 0, &raw mut status);
    (code, function.expose_provenance(), status)
}

#[test]
fn every_function_is_exported_and_found() {
    Machine::new().run("symbols");
}

fn symbols(_: &mut Peer) {
    let names = api::info::exported_names();
    assert!(names.len() > 80);
    for name in &names {
        assert!(!symbol(name).is_null(), "{name}");
        let base = name.trim_end_matches("_v2");
        let newest = if names.contains(&format!("{base}_v2").as_str()) {
            format!("{base}_v2")
        } else {
            base.to_owned()
        };
        assert_eq!(
            look_up(base),
            (0, symbol(&newest).expose_provenance(), 0),
            "{name}"
        );
    }
    assert_eq!(
        look_up("cuMemAlloc_v2"),
        (500, 0, 1),
        "names have no version here"
    );
    assert_eq!(look_up("cuNoSuchThing"), (500, 0, 1));
    assert!(symbol("cuNoSuchThing").is_null());
}

#[test]
fn symbols_can_be_missing() {
    let names = ["cuMemCreate", "cuIpcGetMemHandle"];
    Machine::new()
        .with("MISSING", &names.join(","))
        .run("missing");
    Machine::missing(&names).run("missing");
}

fn missing(_: &mut Peer) {
    assert_eq!(cuInit(0), 0);
    if symbol("cuMemCreate").is_null() {
        assert!(symbol("cuIpcGetMemHandle").is_null());
        assert!(!symbol("cuMemRelease").is_null(), "only those are gone");
    } else {
        assert_eq!(create(0, GRAIN), Err(500));
        assert_eq!(look_up("cuMemCreate"), (500, 0, 1));
    }
}

#[test]
fn errors_have_names_as_far_as_they_are_known() {
    Machine::new().run("names");
}

fn names(_: &mut Peer) {
    assert_eq!(error_name(2).as_deref(), Some("CUDA_ERROR_OUT_OF_MEMORY"));
    assert_eq!(
        error_name(721).as_deref(),
        Some("CUDA_ERROR_TENSOR_MEMORY_LEAK")
    );
    assert_eq!(error_name(0).as_deref(), Some("CUDA_SUCCESS"));
    assert_eq!(error_name(4242), None);
    assert!(mrm_fake_cuda::code::NAMES.is_sorted_by_key(|entry| entry.0));
}

#[test]
fn calls_fail_when_told() {
    let rules = "cuMemCreate:2:3,cuMemRelease:4242,cuMemMap:720:1+,cuCtxSynchronize:700:2";
    Machine::new().with("FAULTS", rules).run("faults");
    Machine::new().with("FAULTS", "*:4242:2+").run("every_call");
}

fn faults(_: &mut Peer) {
    begin(0);
    let handle = create(0, GRAIN).unwrap();
    assert!(create(0, GRAIN).is_ok());
    assert_eq!(create(0, GRAIN), Err(2), "the third");
    assert!(create(0, GRAIN).is_ok());
    assert_eq!(cuMemRelease(handle), 4242);
    assert_eq!(cuMemRelease(handle), 0, "the first had no effect");
    let ptr = reserve(GRAIN);
    let mapped = create(0, GRAIN).unwrap();
    assert_eq!(cuMemMap(ptr, GRAIN, 0, mapped, 0), 720);
    assert_eq!(cuMemMap(ptr, GRAIN, 0, mapped, 0), 720);
    assert_eq!(cuCtxSynchronize(), 0);
    assert_eq!(cuCtxSynchronize(), 700);
    assert_eq!(cuCtxSynchronize(), 700, "sticky");
    assert_eq!(create(0, GRAIN), Err(700));
}

fn every_call(_: &mut Peer) {
    assert_eq!(cuInit(0), 0);
    let mut number = 0;
    assert_eq!(cuDeviceGetCount(&raw mut number), 4242);
    assert_eq!(create(0, GRAIN), Err(4242));
    assert_eq!(cuMemFree_v2(0), 4242);
    assert_eq!(cuStreamQuery(0), 4242);
}

#[test]
fn faults_come_and_go_while_processes_run() {
    Machine::new().run("live_faults");
}

fn live_faults(_: &mut Peer) {
    begin(0);
    let dir = std::path::PathBuf::from(env::var("MRM_FAKE_CUDA_DIR").unwrap());
    let mine = dir.join(format!("faults.{}", std::process::id()));
    let others = dir.join(format!("faults.{}", std::process::id() + 1));
    put(&others, "cuMemCreate:999:1+");
    assert!(create(0, GRAIN).is_ok());
    put(&mine, "cuMemCreate:2:2\n");
    assert!(create(0, GRAIN).is_ok(), "counted from the file on");
    assert_eq!(create(0, GRAIN), Err(2));
    put(&dir.join("faults"), "lost:46@1");
    assert!(create(0, GRAIN).is_ok());
    assert_eq!(create(1, GRAIN), Err(46));
    fs::remove_file(dir.join("faults")).unwrap();
    assert!(create(1, GRAIN).is_ok(), "the rule is gone");
}

#[test]
fn a_lost_device_fails_throughout() {
    Machine::new().with("LOST", "214@1").run("lost");
}

fn lost(_: &mut Peer) {
    begin(0);
    assert!(!uuid(1).is_empty(), "it can still be named");
    let mut context = 0;
    assert_eq!(cuDevicePrimaryCtxRetain(&raw mut context, 1), 214);
    assert_eq!(create(1, GRAIN), Err(214));
    let ptr = map(create(0, GRAIN).unwrap(), GRAIN, 0, 3);
    assert_eq!(access(ptr, GRAIN, 1, 1), 214);
    assert_eq!(cuCtxSynchronize(), 0);
}

#[test]
fn a_forked_child_has_no_driver() {
    Machine::new().run("fork");
}

fn fork(_: &mut Peer) {
    begin(0);
    // SAFETY: the child makes calls that take no lock before they fail, and ends.
    let child = unsafe { libc::fork() };
    if child == 0 {
        let bad = [cuCtxSynchronize(), cuInit(0), cuMemRelease(1)];
        // SAFETY: ends the child without anything of the parent's.
        unsafe { libc::_exit(i32::from(bad != [3; 3])) };
    }
    let mut status = -1;
    // SAFETY: waits for the child of above.
    assert_eq!(unsafe { libc::waitpid(child, &raw mut status, 0) }, child);
    assert_eq!(status, 0);
}

#[test]
fn the_log_counts_calls() {
    let machine = Machine::new();
    let log = machine.dir.path().join("log");
    let machine = machine.with("LOG", log.to_str().unwrap());
    let running = machine.start("log");
    let pid = running.pid();
    running.succeed();
    let expected = format!("{pid} cuInit 0\n{pid} cuMemCreate 1\n{pid} cuMemCreate 0\n");
    assert_eq!(fs::read_to_string(log).unwrap(), expected);
}

fn log(_: &mut Peer) {
    assert_eq!(cuInit(0), 0);
    assert_eq!(create(0, 1), Err(1));
    assert!(create(0, GRAIN).is_ok());
    // A line is there as soon as its call has returned: one can count between two moments.
    let path = std::env::var_os("MRM_FAKE_CUDA_LOG").unwrap();
    assert_eq!(fs::read_to_string(path).unwrap().lines().count(), 3);
}

#[test]
fn the_log_tells_processes_and_threads_apart_line_by_line() {
    let machine = Machine::new();
    let log = machine.dir.path().join("log");
    let machine = machine.with("LOG", log.to_str().unwrap());
    let both = [machine.start("many"), machine.start("many")];
    let pids = both.each_ref().map(|running| running.pid());
    both.into_iter().for_each(common::Running::succeed);
    let text = fs::read_to_string(log).unwrap();
    let count = |line: String| text.lines().filter(|one| **one == line).count();
    for pid in pids {
        assert_eq!(count(format!("{pid} cuDeviceGetCount 0")), 400);
        assert_eq!(count(format!("{pid} cuDeviceGet 101")), 400);
    }
    assert_eq!(text.lines().count(), 2 * 801);
}

fn many(_: &mut Peer) {
    assert_eq!(cuInit(0), 0);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for _ in 0..100 {
                    let mut number = 0;
                    assert_eq!(cuDeviceGetCount(&raw mut number), 0);
                    assert_eq!(cuDeviceGet(&raw mut number, 99), 101);
                }
            });
        }
    });
}

#[test]
fn a_setting_that_makes_no_sense_fails_every_call() {
    Machine::new().with("CAPACITY", "lots").run("nonsense");
    Machine::new().with("FAULTS", "cuInit").run("nonsense");
    Machine::new().with("DEVICES", "17").run("nonsense");
}

fn nonsense(_: &mut Peer) {
    assert_eq!(cuInit(0), 999);
}
