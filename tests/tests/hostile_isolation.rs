//! What a client can do with what it was granted: read it.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests"
)]

use mrm_proto::error::ErrorCode;
use mrm_proto::ids::RequestId;
use mrm_proto::reply::Reply;
use mrm_tests::attempts::{Try, map_and_try};
use mrm_tests::hostile::{
    NOBODY, as_user, content, granted, let_everybody_in, open, open_files, refused, still_serves,
};
use mrm_tests::model;
use mrm_tests::node::{Node, Setup};
use mrm_tests::raw::Raw;
use rustix::fs::{FallocateFlags, Mode, OFlags, SealFlags, SeekFrom};
use rustix::io::Errno;
use std::fs::{self, File};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;

/// A daemon that every user may use, with the model `m`; its image.
fn node() -> (Node, Vec<u8>) {
    let dir = tempfile::Builder::new()
        .prefix("mrm-test-")
        .tempdir()
        .unwrap();
    let (path, image) = model::write(dir.path(), "m.safetensors", 3 << 20, 3, 1);
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    let_everybody_in(dir.path());
    let node = Node::start_in(dir, &Setup::new().model("m", &path));
    (node, image)
}

fn granted_fds(node: &Node) -> (Raw, Vec<OwnedFd>) {
    let mut raw = Raw::hello(&node.socket());
    let (_, fds) = granted(&mut raw, 2, "m");
    assert_eq!(fds.len(), 2, "the table and one file");
    (raw, fds)
}

#[test]
fn a_granted_descriptor_is_sealed_and_open_for_reading_only() {
    let (node, image) = node();
    let (_raw, fds) = granted_fds(&node);
    let sealed = SealFlags::WRITE | SealFlags::GROW | SealFlags::SHRINK | SealFlags::SEAL;
    for fd in &fds {
        assert!(rustix::fs::fcntl_get_seals(fd).unwrap().contains(sealed));
        let flags = rustix::fs::fcntl_getfl(fd).unwrap();
        assert_eq!(flags & OFlags::ACCMODE, OFlags::RDONLY);
        let bytes = rustix::fs::fstat(fd).unwrap().st_size as u64;
        assert_eq!(rustix::io::write(fd, b"x"), Err(Errno::BADF));
        assert_eq!(rustix::io::pwrite(fd, b"x", 0), Err(Errno::BADF));
        assert_eq!(rustix::fs::ftruncate(fd, 0), Err(Errno::INVAL));
        assert_eq!(rustix::fs::ftruncate(fd, bytes + 4096), Err(Errno::INVAL));
        let punch = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        for mode in [punch, FallocateFlags::empty(), FallocateFlags::ZERO_RANGE] {
            assert_eq!(rustix::fs::fallocate(fd, mode, 0, 4096), Err(Errno::BADF));
        }
        assert_eq!(
            rustix::fs::fcntl_add_seals(fd, SealFlags::FUTURE_WRITE),
            Err(Errno::PERM)
        );
    }
    still_serves(&node, "m", &image);
}

#[test]
fn a_granted_descriptor_cannot_be_opened_again_for_writing() {
    let (node, image) = node();
    let (_raw, fds) = granted_fds(&node);
    for fd in &fds {
        let path = format!("/proc/self/fd/{}", fd.as_raw_fd());
        let flags = OFlags::RDWR | OFlags::CLOEXEC;
        match rustix::fs::open(&path, flags, Mode::empty()) {
            // Root may open it: the seals hold all the same.
            Ok(writable) => {
                assert_eq!(rustix::io::pwrite(&writable, b"x", 0), Err(Errno::PERM));
                assert_eq!(rustix::fs::ftruncate(&writable, 0), Err(Errno::PERM));
                let punch = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
                assert_eq!(
                    rustix::fs::fallocate(&writable, punch, 0, 4096),
                    Err(Errno::PERM)
                );
                assert_eq!(
                    map_and_try(&writable, Try::SharedWritable),
                    Err(Errno::PERM)
                );
            }
            Err(errno) => assert_eq!(errno, Errno::ACCESS),
        }
        // O_TRUNC truncates before anybody writes.
        let truncating = rustix::fs::open(&path, flags | OFlags::TRUNC, Mode::empty());
        assert!(
            matches!(truncating, Err(Errno::PERM | Errno::ACCESS)),
            "{truncating:?}"
        );
        // Nor can what it is be executed.
        assert!(std::process::Command::new(&path).spawn().is_err());
    }
    assert!(content(&fds[1], image.len() as u64) == image);
    still_serves(&node, "m", &image);
}

#[test]
fn a_mapping_of_a_grant_cannot_be_written_through() {
    let (node, image) = node();
    let (_raw, fds) = granted_fds(&node);
    let file = &fds[1];
    assert_eq!(map_and_try(file, Try::SharedWritable), Err(Errno::ACCESS));
    assert_eq!(
        map_and_try(file, Try::SharedThenMadeWritable),
        Err(Errno::ACCESS)
    );
    // A private copy is the client's own affair, and nobody else sees it.
    assert_eq!(map_and_try(file, Try::PrivateWrite), Ok(()));
    assert!(content(file, image.len() as u64) == image);
    still_serves(&node, "m", &image);
}

#[test]
fn the_position_of_a_shared_descriptor_matters_to_nobody() {
    let (node, image) = node();
    let (_raw, fds) = granted_fds(&node);
    let end = image.len() as u64;
    assert_eq!(rustix::fs::seek(&fds[1], SeekFrom::Start(end)), Ok(end));
    assert_eq!(rustix::io::read(&fds[1], &mut [0; 8]), Ok(0));
    rustix::fs::fcntl_setfl(&fds[1], OFlags::APPEND | OFlags::NONBLOCK).unwrap();
    let model = node.client().open("m").expect("opens");
    assert!(model.segment(0).expect("one file").bytes() == &image[..]);
    still_serves(&node, "m", &image);
}

#[test]
fn another_user_opens_by_name_what_the_operator_registered() {
    let (node, image) = node();
    as_user(NOBODY, || {
        let (mut raw, fds) = granted_fds(&node);
        assert!(content(&fds[1], image.len() as u64) == image);
        let path = format!("/proc/self/fd/{}", fds[1].as_raw_fd());
        let again = rustix::fs::open(&path, OFlags::RDWR | OFlags::CLOEXEC, Mode::empty());
        assert_eq!(again.err(), Some(Errno::ACCESS));
        assert_eq!(
            map_and_try(&fds[1], Try::SharedWritable),
            Err(Errno::ACCESS)
        );
        let sessions = node.get("/v1/sessions").to_string();
        assert!(sessions.contains("65534"), "{sessions}");
        granted(&mut raw, 3, "m");
    });
    node.until_idle();
}

#[test]
fn another_user_cannot_open_what_it_may_not_read() {
    let (node, image) = node();
    let secret = node.dir.path().join("secret.bin");
    fs::write(&secret, b"of root").unwrap();
    fs::set_permissions(&secret, fs::Permissions::from_mode(0o600)).unwrap();
    as_user(NOBODY, || {
        // The kernel says no before the daemon is asked: a client names no path to the daemon.
        let own = File::open(&secret).unwrap_err();
        assert_eq!(own.kind(), std::io::ErrorKind::PermissionDenied);
        let failed = node.client().open_path(&secret).unwrap_err().to_string();
        assert!(failed.contains("secret.bin"), "{failed}");
        let opens = node.number("/counters/opens_total");

        // What it can get without reading, O_PATH, is worth nothing to the daemon.
        let flags = OFlags::PATH | OFlags::CLOEXEC;
        let path_only = rustix::fs::open(&secret, flags, Mode::empty()).unwrap();
        let mut raw = Raw::hello(&node.socket());
        let request = open_files("x", &["secret.bin"]);
        let error = refused(&mut raw, 2, &request, &[path_only.as_fd()]);
        assert_eq!(
            error.code(),
            Some(ErrorCode::FdNotReadable),
            "{}",
            error.message
        );
        assert!(
            node.number("/counters/opens_total") <= opens + 1,
            "open_path asked the daemon"
        );

        // Nor does the path as a name or as a label lead anywhere.
        let path = secret.to_str().unwrap().trim_start_matches('/').to_owned();
        let error = refused(&mut raw, 3, &open(&path, 0), &[]);
        assert_eq!(
            error.code(),
            Some(ErrorCode::ModelNotFound),
            "{}",
            error.message
        );
        let null = File::open("/dev/null").unwrap();
        let request = open_files(&path, &["secret.bin"]);
        let error = refused(&mut raw, 4, &request, &[null.as_fd()]);
        assert_eq!(
            error.code(),
            Some(ErrorCode::NotRegularFile),
            "{}",
            error.message
        );
    });
    still_serves(&node, "m", &image);
}

#[test]
fn a_lease_of_one_session_is_nothing_to_another() {
    let (node, _) = node();
    let mut owner = Raw::hello(&node.socket());
    let (opened, _) = granted(&mut owner, 2, "m");
    let mut thief = Raw::hello(&node.socket());
    for lease in [
        opened.lease,
        mrm_proto::ids::LeaseId(0),
        mrm_proto::ids::LeaseId(u64::MAX),
    ] {
        let error = refused(&mut thief, 2, &mrm_tests::hostile::close(lease), &[]);
        assert_eq!(
            error.code(),
            Some(ErrorCode::UnknownLease),
            "{}",
            error.message
        );
    }
    assert_eq!(node.number("/leases"), 1);
    let closed = owner.ask(RequestId(3), &mrm_tests::hostile::close(opened.lease), &[]);
    assert!(matches!(closed, Reply::Closed(_)));
}

#[test]
fn what_one_user_passes_under_a_registered_name_is_not_what_others_get() {
    let (node, image) = node();
    let (other_path, other) = model::write(node.dir.path(), "fake.safetensors", 1 << 20, 2, 9);
    let fake = File::open(other_path).unwrap();
    let mut raw = Raw::hello(&node.socket());
    raw.send(
        RequestId(2),
        &open_files("m", &["m.safetensors"]),
        &[fake.as_fd()],
    );
    let Some((_, Reply::Opened(opened), fds)) = raw.reply() else {
        panic!("it is a good model")
    };
    assert!(content(&fds[1], opened.segments_bytes[0]) == other);
    still_serves(&node, "m", &image);
    let (_raw, fds) = granted_fds(&node);
    assert!(content(&fds[1], image.len() as u64) == image);
}
