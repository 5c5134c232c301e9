//! Many hostile clients beside an honest one, and clients in a hurry: the honest one is served
//! throughout, and when they are gone everything is as before.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests"
)]

use mrm_proto::error::ErrorCode;
use mrm_proto::frame::Kind;
use mrm_proto::hello::ClientHello;
use mrm_proto::ids::{LeaseId, RequestId};
use mrm_proto::reply::Reply;
use mrm_proto::request::{Cancel, List, Request};
use mrm_tests::breaches::{self, Breach};
use mrm_tests::hostile::{
    Baseline, NOBODY, as_user, close, content, copies, encoded, framed, granted, header,
    let_everybody_in, open, open_files, still_serves,
};
use mrm_tests::node::{Node, Setup};
use mrm_tests::raw::Raw;
use mrm_tests::{Random, eventually, model, seed};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};

/// Memory that allocators and tables may keep.
const GROWTH_BYTES_MAX: u64 = 8 << 20;

fn node_with(settings: &[&str]) -> (Node, Vec<u8>) {
    let dir = tempfile::Builder::new()
        .prefix("mrm-test-")
        .tempdir()
        .unwrap();
    let (path, image) = model::write(dir.path(), "m.safetensors", 256 << 10, 4, 1);
    let broken = dir.path().join("broken.safetensors");
    fs::write(&broken, u64::MAX.to_le_bytes()).unwrap();
    let setup = settings
        .iter()
        .fold(Setup::new(), |setup, line| setup.setting(line));
    let node = Node::start_in(dir, &setup.model("m", &path).model("broken", &broken));
    still_serves(&node, "m", &image);
    (node, image)
}

fn list() -> Request {
    Request::List(List {
        prefix: String::new(),
        after: None,
    })
}

/// One hostile session. Whatever the daemon does about it is right, but for the frames that it
/// sends: those are decoded.
fn misbehave(socket: &Path, broken: &File, breaches: &[Breach], random: &mut Random) {
    let id = 2 + random.below(1000);
    if random.below(3) == 0 {
        let at = usize::try_from(random.below(breaches.len() as u64)).unwrap();
        drop(breaches[at].commit(socket));
        return;
    }
    if random.below(8) == 0 {
        let mut raw = Raw::connect(socket);
        let whole = encoded(1, 0, &ClientHello::new("\x1b[2J\n\0"));
        let part = usize::try_from(random.below(whole.len() as u64)).unwrap();
        let _ = raw.send_bytes(&whole[..part], &[]);
        return;
    }
    let mut raw = Raw::hello(socket);
    let many = |request: &Request, count: u64| -> Vec<u8> {
        (0..count)
            .flat_map(|i| encoded(id + i, 0, request))
            .collect()
    };
    let _ = match random.below(12) {
        0 => raw.send_bytes(&[0xee; 512], &[]),
        1 => raw.send_bytes(&header(Kind::Open as u16, 0, 0, 100_000, 0, id), &[]),
        2 => raw.send_bytes(&framed(Kind::Open as u16, 0, id, &[0xff; 1000]), &[]),
        3 => raw.send_bytes(&encoded(id, 3, &open("m", 0)), &copies(broken, 253)),
        4 => {
            raw.stream.set_nonblocking(true).unwrap();
            raw.send_bytes(&many(&open("m", 0), 2000), &[])
        }
        5 => {
            raw.stream.set_nonblocking(true).unwrap();
            raw.send_bytes(&many(&list(), 2000), &[])
        }
        6 => raw.send_bytes(&many(&open("broken", 0), 100), &[]),
        7 => {
            let set = open_files("x", &["broken.safetensors"]);
            (0..20).try_for_each(|i| raw.send_bytes(&encoded(id + i, 1, &set), &copies(broken, 1)))
        }
        8 => opens_and_cancels(&mut raw, id),
        9 => {
            let names: Vec<String> = (0..250).map(|i| i.to_string()).collect();
            let names: Vec<&str> = names.iter().map(String::as_str).collect();
            raw.send_bytes(
                &encoded(id, 250, &open_files("x", &names)),
                &copies(broken, 250),
            )
        }
        10 => raw.send_bytes(&encoded(id, 0, &ClientHello::new("again")), &[]),
        _ => {
            raw.send(RequestId(id), &open("m", 0), &[]);
            match raw.reply() {
                Some((_, Reply::Opened(opened), _fds)) => {
                    raw.send_bytes(&encoded(0, 0, &close(opened.lease)), &[])
                }
                _ => Ok(()),
            }
        }
    };
    if random.below(2) == 0 {
        let _ = raw.stream.shutdown(std::net::Shutdown::Write);
        raw.stream.set_nonblocking(false).unwrap();
        while raw.receive().is_some() {}
    }
}

fn opens_and_cancels(raw: &mut Raw, id: u64) -> io::Result<()> {
    let cancel = |target| {
        Request::Cancel(Cancel {
            target: RequestId(target),
        })
    };
    (0..50).try_for_each(|i| {
        raw.send_bytes(&encoded(id + i, 0, &open("m", 1)), &[])?;
        raw.send_bytes(&encoded(0, 0, &cancel(id + i)), &[])?;
        raw.send_bytes(&encoded(0, 0, &close(LeaseId(i))), &[])
    })
}

#[test]
fn an_honest_client_does_not_notice_64_hostile_ones() {
    let mut settings = vec!["limits.idle_hello_ms = 1000", "limits.write_stall_ms = 500"];
    if !rustix::process::geteuid().is_root() {
        // They are one user then, whose share of the queue has to do for all of them.
        settings.push("limits.waiting_max = 40000");
    }
    let (node, image) = node_with(&settings);
    let_everybody_in(node.dir.path());
    let breaches = breaches::all("m");
    let broken = File::open(node.dir.path().join("broken.safetensors")).unwrap();
    let seed = seed();
    let baseline = Baseline::of(&node);
    let mut settled_bytes = 0;
    // The first round brings the daemon to its working size, the second must not add to it.
    for round in 0..2 {
        let left = AtomicUsize::new(64);
        std::thread::scope(|scope| {
            for i in 0..64_u64 {
                let (left, broken, node, breaches) = (&left, &broken, &node, &breaches);
                scope.spawn(move || {
                    let hostile = || {
                        let mut random = Random(seed ^ (i << 32) ^ (round << 48));
                        for _ in 0..25 {
                            misbehave(&node.socket(), broken, breaches, &mut random);
                        }
                    };
                    if as_user(NOBODY, hostile).is_none() {
                        hostile();
                    }
                    left.fetch_sub(1, Ordering::Relaxed);
                });
            }
            let client = node.client();
            let mut opens = 0;
            while opens < 20 || left.load(Ordering::Relaxed) > 0 {
                let model = client.open("m").expect("the honest client is served");
                assert!(model.segment(0).expect("one file").bytes() == &image[..]);
                drop(model);
                still_serves(&node, "m", &image);
                opens += 1;
                // A hostile thread that failed does not count down.
                assert!(opens < 100_000, "the hostile clients do not end");
            }
        });
        baseline.is_restored(&node);
        if round == 0 {
            settled_bytes = node.resident_bytes();
        }
    }
    node.grew_less_than(GROWTH_BYTES_MAX, settled_bytes);
}

#[test]
fn fifty_thousand_opens_and_closes_leave_nothing() {
    let (node, image) = node_with(&[]);
    let baseline = Baseline::of(&node);
    let mut raw = Raw::hello(&node.socket());
    let mut settled_bytes = 0;
    for round in 0..50_000_u64 {
        let (opened, _fds) = granted(&mut raw, 2 + round, "m");
        raw.send(RequestId(0), &close(opened.lease), &[]);
        if round == 5_000 {
            settled_bytes = node.resident_bytes();
        }
    }
    assert!(matches!(
        raw.ask(RequestId(1), &list(), &[]),
        Reply::Listed(_)
    ));
    assert_eq!(node.number("/leases"), 0);
    node.grew_less_than(GROWTH_BYTES_MAX, settled_bytes);
    still_serves(&node, "m", &image);
    drop(raw);
    baseline.is_restored(&node);
}

#[test]
fn five_thousand_connections_leave_nothing() {
    let (node, image) = node_with(&[]);
    let baseline = Baseline::of(&node);
    let mut settled_bytes = 0;
    for round in 0..5_000 {
        match round % 4 {
            0 => drop(Raw::connect(&node.socket())),
            1 => drop(Raw::hello(&node.socket())),
            2 => drop(granted(&mut Raw::hello(&node.socket()), 2, "m")),
            _ => {
                let mut raw = Raw::hello(&node.socket());
                raw.send(RequestId(2), &open("m", 0), &[]);
            }
        }
        if round == 1_000 {
            settled_bytes = node.resident_bytes();
        }
    }
    baseline.is_restored(&node);
    node.grew_less_than(GROWTH_BYTES_MAX, settled_bytes);
    still_serves(&node, "m", &image);
}

/// Files that change all the time keep the workers busy; what waits for them is bounded.
#[test]
fn passed_descriptors_that_pile_up_do_not_starve_others() {
    let (node, image) = node_with(&[]);
    let baseline = Baseline::of(&node);
    let restless = File::options()
        .create(true)
        .truncate(true)
        .read(true)
        .write(true)
        .open(node.dir.path().join("restless"))
        .unwrap();
    let names: Vec<String> = (0..249).map(|i| format!("{i}.safetensors")).collect();
    let mut names: Vec<&str> = names.iter().map(String::as_str).collect();
    names.push("model.safetensors.index.json");
    let set = open_files("x", &names);
    let left = AtomicUsize::new(8);
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                let mut raw = Raw::hello(&node.socket());
                for id in 2..202 {
                    restless.write_all_at(b"{}", 0).unwrap();
                    // The daemon may have enough of us.
                    let frame = encoded(id, 250, &set);
                    if raw.send_bytes(&frame, &copies(&restless, 250)).is_err() {
                        break;
                    }
                }
                left.fetch_sub(1, Ordering::Relaxed);
                raw.stream.shutdown(std::net::Shutdown::Write).unwrap();
                while raw.receive().is_some() {}
            });
        }
        let mut most = 0;
        let mut opens = 0;
        while opens < 20 || left.load(Ordering::Relaxed) > 0 {
            still_serves(&node, "m", &image);
            most = most.max(node.fds());
            opens += 1;
        }
        println!("at most {most} descriptors were open in the daemon");
        assert!(most < 10_000, "{most} descriptors");
    });
    baseline.is_restored(&node);
}

/// Half a frame keeps its descriptors until its time is over.
#[test]
fn descriptors_of_half_frames_do_not_starve_others() {
    let (node, image) = node_with(&[]);
    let baseline = Baseline::of(&node);
    let broken = File::open(node.dir.path().join("broken.safetensors")).unwrap();
    let frame = encoded(2, 253, &open("m", 0));
    let mut held = Vec::new();
    for _ in 0..200 {
        let mut raw = Raw::hello(&node.socket());
        let _ = raw.send_bytes(&frame[..30], &copies(&broken, 253));
        held.push(raw);
    }
    still_serves(&node, "m", &image);
    assert!(node.fds() < 10_000, "{} descriptors", node.fds());
    let refused = held.iter_mut().filter_map(|raw| {
        raw.stream.set_nonblocking(true).unwrap();
        let mut some = [0; 64];
        (rustix::io::read(&raw.stream, &mut some).is_ok_and(|n| n > 0)).then_some(())
    });
    assert!(
        refused.count() > 0,
        "some were told that there are too many"
    );
    drop(held);
    still_serves(&node, "m", &image);
    baseline.is_restored(&node);
}

const CHILD_SOCKET: &str = "MRM_TEST_FLOODED_SOCKET";

/// Not a test: the program of the client that is stopped. It asks for more than what the answers'
/// socket holds, reads none of them, and stops itself.
#[test]
#[ignore = "the program of another test's child process"]
fn child_that_floods() {
    let socket = std::env::var_os(CHILD_SOCKET).expect("started by its test");
    let mut raw = Raw::hello(Path::new(&socket));
    // Twice the default, so that the requests it holds have more answers than the daemon's end holds.
    rustix::net::sockopt::set_socket_send_buffer_size(&raw.stream, 208 << 10).unwrap();
    raw.stream.set_nonblocking(true).unwrap();
    let full = (2..).find(|id| {
        let request = encoded(*id, 0, &open("m", 0));
        raw.stream.write_all(&request).is_err()
    });
    assert!(full.is_some());
    nix::sys::signal::raise(nix::sys::signal::Signal::SIGSTOP).unwrap();
}

fn spawn_child(node: &Node) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "child_that_floods", "--ignored"])
        .env(CHILD_SOCKET, node.socket())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap()
}

#[test]
fn a_stopped_client_with_a_full_socket_is_let_go_and_nobody_waits() {
    let (node, image) = node_with(&["limits.write_stall_ms = 500"]);
    let baseline = Baseline::of(&node);
    let mut child = spawn_child(&node);
    let pid = nix::unistd::Pid::from_raw(i32::try_from(child.id()).unwrap());
    eventually("the child stops itself", || {
        let looked = WaitPidFlag::WNOHANG | WaitPidFlag::WUNTRACED;
        let status = waitpid(pid, Some(looked)).unwrap();
        let stopped = matches!(status, WaitStatus::Stopped(..));
        assert!(stopped || status == WaitStatus::StillAlive, "{status:?}");
        stopped.then_some(())
    });
    for _ in 0..50 {
        still_serves(&node, "m", &image);
    }
    // Its answers do not fit, so it is let go while it is stopped, or was before.
    node.until_idle();
    assert!(child.try_wait().unwrap().is_none(), "it is still there");
    child.kill().unwrap();
    child.wait().unwrap();
    baseline.is_restored(&node);
}

#[test]
fn a_name_with_control_characters_does_not_reach_the_operators_terminal() {
    let (node, _) = node_with(&[]);
    let mut raw = Raw::connect(&node.socket());
    raw.send(
        RequestId(1),
        &ClientHello::new("\x1b]0;owned\x07\n\r\0evil\u{9b}2J"),
        &[],
    );
    assert_eq!(raw.receive().expect("a hello").0.kind, Kind::ServerHello);
    let sessions = node.get("/v1/sessions");
    let name = sessions["sessions"][0]["client"].as_str().expect("a name");
    assert!(
        name.contains("evil") && !name.chars().any(char::is_control),
        "{name:?}"
    );
    let error = mrm_tests::hostile::refused(&mut raw, 2, &open("nothing", 0), &[]);
    assert_eq!(error.code(), Some(ErrorCode::ModelNotFound));
    let _ = content(&granted(&mut raw, 3, "m").1[0], 1);
    assert!(raw.stream.as_fd().try_clone_to_owned().is_ok());
}
