//! Files on a filesystem whose owner does not answer.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "tests"
)]

use mrm_proto::error::ErrorCode;
use mrm_tests::fuse::Hanging;
use mrm_tests::hostile::{
    Baseline, NOBODY, as_user, let_everybody_in, open_files, refused, still_serves,
};
use mrm_tests::node::{Node, Setup};
use mrm_tests::raw::Raw;
use mrm_tests::{eventually, model};
use std::fs::{self, File};
use std::io::Read;
use std::os::fd::AsFd;

#[test]
fn a_file_whose_owner_does_not_answer_is_refused_and_keeps_nobody() {
    let dir = tempfile::Builder::new()
        .prefix("mrm-test-")
        .tempdir()
        .unwrap();
    let (path, image) = model::write(dir.path(), "m.safetensors", 1 << 20, 2, 1);
    let mounted = dir.path().join("fuse");
    fs::create_dir(&mounted).unwrap();
    let_everybody_in(dir.path());
    let node = Node::start_in(dir, &Setup::new().model("m", &path));
    still_serves(&node, "m", &image);
    let baseline = Baseline::of(&node);
    let Some(filesystem) = Hanging::mount(&mounted, node.pid()) else {
        return;
    };
    let file = filesystem.open();
    let hostile = || {
        let mut raw = Raw::hello(&node.socket());
        for id in 2..14 {
            let set = open_files("x", &["model.bin"]);
            let error = refused(&mut raw, id, &set, &[file.as_fd()]);
            let code = error.code();
            assert_eq!(
                code,
                Some(ErrorCode::FilesystemRefused),
                "{}",
                error.message
            );
            assert!(error.message.contains("FUSE"), "{}", error.message);
        }
        raw
    };
    let Some(hostile) = as_user(NOBODY, hostile) else {
        return;
    };
    eventually("its close hangs", || {
        (filesystem.hanging_closes() > 0).then_some(())
    });
    // Nothing but that was asked of the owner: neither what the file is nor what is in it.
    assert_eq!(filesystem.hanging_others(), 0);
    still_serves(&node, "m", &image);

    // What another user passes is closed all the same.
    as_user(NOBODY - 1, || {
        let mut raw = Raw::hello(&node.socket());
        for id in 2..10 {
            let (mut ours, theirs) = std::io::pipe().unwrap();
            let set = open_files("x", &["pipe.bin"]);
            let error = refused(&mut raw, id, &set, &[theirs.as_fd()]);
            assert_eq!(error.code(), Some(ErrorCode::FdNotReadable));
            drop(theirs);
            assert_eq!(ours.read(&mut [0]).unwrap(), 0, "the end of the pipe");
        }
        let own = File::open(node.dir.path().join("m.safetensors")).unwrap();
        let client = node.client();
        drop(client.open("m").expect("opens"));
        drop(own);
    });
    drop(hostile);
    filesystem.abort();
    baseline.is_restored(&node);
    drop(file);
    still_serves(&node, "m", &image);
}
