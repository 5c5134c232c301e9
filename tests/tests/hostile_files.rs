//! Files that are no files, that change while they are read, and names that are no names.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests"
)]

use mrm_proto::error::{ErrorCode, ErrorReply};
use mrm_proto::frame::Kind;
use mrm_proto::ids::RequestId;
use mrm_proto::reply::Reply;
use mrm_tests::hostile::{
    Baseline, content, evict, framed, open, open_files, refused, still_serves,
};
use mrm_tests::node::{Node, Setup};
use mrm_tests::raw::Raw;
use mrm_tests::{eventually, http, model};
use rustix::event::{EventfdFlags, epoll, eventfd};
use rustix::fs::{CWD, FileType, MemfdFlags, Mode, OFlags, memfd_create, mknodat};
use std::fs::{self, File};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{FileExt, symlink};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

/// A daemon with the root `models`, in which a good model `good.safetensors` is.
fn node_with(more: impl Fn(&Path, Setup) -> Setup) -> (Node, PathBuf, Vec<u8>) {
    let dir = tempfile::Builder::new()
        .prefix("mrm-test-")
        .tempdir()
        .unwrap();
    let root = dir.path().join("models");
    let (_, image) = model::write(&root, "good.safetensors", 4096, 2, 1);
    let setup = Setup::new().setting(&format!("[[catalogue]]\nroot = {root:?}"));
    let setup = more(&root, setup);
    let node = Node::start_in(dir, &setup);
    still_serves(&node, "good.safetensors", &image);
    evict(&node, "good.safetensors");
    (node, root, image)
}

/// An error that names its object, its reason and its remedy.
fn expect(error: &ErrorReply, code: ErrorCode, object: &str) {
    assert_eq!(error.code(), Some(code), "{object}: {}", error.message);
    assert!(
        error.message.contains(object),
        "{object} is not named: {}",
        error.message
    );
    assert!(error.message.contains("; "), "no remedy: {}", error.message);
}

fn fifo(path: &Path) {
    mknodat(CWD, path, FileType::Fifo, Mode::from_raw_mode(0o666), 0).unwrap();
}

#[test]
fn what_is_registered_and_not_a_file_is_refused() {
    let (node, root, image) = node_with(|root, setup| {
        fifo(&root.join("fifo"));
        fs::create_dir(root.join("directory.safetensors")).unwrap();
        setup
            .model("a-fifo", &root.join("fifo"))
            .model("a-directory", &root.join("directory.safetensors"))
            .model("a-device", Path::new("/dev/zero"))
            .model("a-socket", &root.join("socket"))
            .model("a-ghost", &root.join("ghost"))
            .model("a-ghost-below-a-file", &root.join("good.safetensors/ghost"))
    });
    let _listening = UnixListener::bind(root.join("socket")).unwrap();
    symlink("/etc/passwd", root.join("escape")).unwrap();
    symlink("../../../../etc/passwd", root.join("escape-up")).unwrap();
    symlink("escape-loop", root.join("escape-loop")).unwrap();
    symlink("/proc/self/mem", root.join("magic")).unwrap();
    symlink("good.safetensors", root.join("inside.safetensors")).unwrap();
    let baseline = Baseline::of(&node);
    let not_regular = ErrorCode::NotRegularFile;
    let cases = [
        ("a-fifo", "fifo", not_regular),
        ("a-device", "zero", not_regular),
        ("a-socket", "socket", not_regular),
        ("fifo", "fifo", not_regular),
        ("socket", "socket", not_regular),
        (
            "a-directory",
            "directory.safetensors",
            ErrorCode::BadFileSet,
        ),
        ("a-ghost", "ghost", ErrorCode::SourceMissing),
        ("a-ghost-below-a-file", "ghost", ErrorCode::SourceMissing),
        ("escape", "escape", ErrorCode::OutsideRoot),
        ("escape-up", "escape-up", ErrorCode::OutsideRoot),
        ("magic", "magic", ErrorCode::OutsideRoot),
        ("escape-loop", "escape-loop", ErrorCode::SourceUnreadable),
        ("nothing", "nothing", ErrorCode::ModelNotFound),
        ("fifo/below", "fifo/below", ErrorCode::ModelNotFound),
    ];
    let mut raw = Raw::hello(&node.socket());
    for (i, (name, object, code)) in cases.into_iter().enumerate() {
        expect(
            &refused(&mut raw, 2 + i as u64, &open(name, 0), &[]),
            code,
            object,
        );
    }
    still_serves(&node, "inside.safetensors", &image);
    evict(&node, "inside.safetensors");
    drop(raw);
    baseline.is_restored(&node);
}

#[test]
fn a_shard_that_is_no_file_or_leads_outside_is_refused() {
    let (node, root, _) = node_with(|_, setup| setup);
    let good = fs::read(root.join("good.safetensors")).unwrap();
    for (what, code) in [
        ("fifo", ErrorCode::NotRegularFile),
        ("directory", ErrorCode::NotRegularFile),
        ("outside", ErrorCode::OutsideRoot),
        ("twice", ErrorCode::ShardMismatch),
    ] {
        let dir = root.join(what);
        fs::create_dir(&dir).unwrap();
        let map = r#"{"layer.0.weight":"a.safetensors","layer.1.weight":"b.safetensors"}"#;
        let index = format!(r#"{{"weight_map":{map}}}"#);
        fs::write(dir.join("model.safetensors.index.json"), index).unwrap();
        fs::write(dir.join("a.safetensors"), &good).unwrap();
        let other = dir.join("b.safetensors");
        match what {
            "fifo" => fifo(&other),
            "directory" => fs::create_dir(&other).unwrap(),
            "outside" => symlink("/etc/passwd", &other).unwrap(),
            _ => fs::hard_link(dir.join("a.safetensors"), &other).unwrap(),
        }
        let mut raw = Raw::hello(&node.socket());
        let error = refused(&mut raw, 2, &open(what, 0), &[]);
        assert_eq!(error.code(), Some(code), "{what}: {}", error.message);
    }
}

/// Each descriptor with the codes that it may get. The mode of an anonymous inode differs between
/// kernels, so for these either code is right.
fn strange_descriptors(dir: &Path) -> Vec<(&'static str, OwnedFd, Vec<ErrorCode>)> {
    let not_regular = || vec![ErrorCode::NotRegularFile];
    let unreadable = || vec![ErrorCode::FdNotReadable];
    let either = || vec![ErrorCode::NotRegularFile, ErrorCode::FilesystemRefused];
    let file = dir.join("plain.bin");
    fs::write(&file, b"weights").unwrap();
    fifo(&dir.join("fifo"));
    let opened = |path: &Path, flags: OFlags| {
        rustix::fs::open(path, flags | OFlags::CLOEXEC, Mode::empty()).unwrap()
    };
    let (socket, _) = UnixStream::pair().unwrap();
    let (read_end, write_end) = std::io::pipe().unwrap();
    let sealed = memfd_create("plain", MemfdFlags::CLOEXEC).unwrap();
    rustix::fs::ftruncate(&sealed, 4096).unwrap();
    let write_only = OFlags::WRONLY | OFlags::CLOEXEC;
    let memfd_path = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&sealed));
    let memfd_for_writing = opened(Path::new(&memfd_path), write_only);
    vec![
        ("write-only", opened(&file, OFlags::WRONLY), unreadable()),
        ("write-only-memfd", memfd_for_writing, unreadable()),
        ("path-only", opened(&file, OFlags::PATH), unreadable()),
        (
            "path-of-directory",
            opened(dir, OFlags::PATH | OFlags::DIRECTORY),
            unreadable(),
        ),
        (
            "directory",
            opened(dir, OFlags::RDONLY | OFlags::DIRECTORY),
            not_regular(),
        ),
        (
            "fifo",
            opened(&dir.join("fifo"), OFlags::RDONLY | OFlags::NONBLOCK),
            either(),
        ),
        (
            "zero",
            opened(Path::new("/dev/zero"), OFlags::RDONLY),
            either(),
        ),
        (
            "null",
            opened(Path::new("/dev/null"), OFlags::RDWR),
            either(),
        ),
        ("pipe-read", read_end.into(), either()),
        ("pipe-write", write_end.into(), unreadable()),
        ("socket", socket.into(), either()),
        (
            "eventfd",
            eventfd(0, EventfdFlags::CLOEXEC).unwrap(),
            either(),
        ),
        (
            "epoll",
            epoll::create(epoll::CreateFlags::CLOEXEC).unwrap(),
            either(),
        ),
        (
            "procfs",
            opened(Path::new("/proc/self/maps"), OFlags::RDONLY),
            vec![ErrorCode::FilesystemRefused],
        ),
        (
            "sysfs",
            opened(Path::new("/sys/kernel/notes"), OFlags::RDONLY),
            vec![ErrorCode::FilesystemRefused],
        ),
    ]
}

#[test]
fn a_descriptor_that_is_no_readable_file_is_refused() {
    let (node, _, image) = node_with(|_, setup| setup);
    let baseline = Baseline::of(&node);
    let scratch = tempfile::tempdir().unwrap();
    let mut raw = Raw::hello(&node.socket());
    for (i, (what, fd, codes)) in strange_descriptors(scratch.path()).iter().enumerate() {
        for (j, suffix) in ["bin", "safetensors"].into_iter().enumerate() {
            let name = format!("{what}.{suffix}");
            let request = open_files("x", &[&name]);
            let error = refused(&mut raw, (10 + 2 * i + j) as u64, &request, &[fd.as_fd()]);
            let code = error.code().expect("a known code");
            assert!(codes.contains(&code), "{what}: {code}: {}", error.message);
            expect(&error, code, &name);
        }
    }
    // The pipe, the socket and the epoll have not been read, waited for, or closed in the daemon.
    still_serves(&node, "good.safetensors", &image);
    evict(&node, "good.safetensors");
    drop(raw);
    baseline.is_restored(&node);
}

#[test]
fn larger_than_the_budget_is_refused_before_a_byte_is_read() {
    let (node, root, _) = node_with(|_, setup| setup);
    let baseline = Baseline::of(&node);
    let file = File::create(root.join("huge.bin")).unwrap();
    file.set_len(1 << 43).unwrap();
    let endless = memfd_create("endless", MemfdFlags::CLOEXEC).unwrap();
    rustix::fs::ftruncate(&endless, i64::MAX as u64).unwrap();
    let mut raw = Raw::hello(&node.socket());
    let by_name = refused(&mut raw, 2, &open("huge.bin", 0), &[]);
    let by_fd = refused(
        &mut raw,
        3,
        &open_files("endless", &["endless.bin"]),
        &[endless.as_fd()],
    );
    for (error, name) in [(by_name, "huge.bin"), (by_fd, "endless")] {
        assert_eq!(error.code(), Some(ErrorCode::TooLarge), "{}", error.message);
        assert!(error.message.contains(name) && error.message.contains("host_budget_bytes"));
    }
    drop(raw);
    baseline.is_restored(&node);
}

#[test]
fn an_unsealed_memfd_is_copied_and_what_happens_to_it_later_is_its_owners_affair() {
    let (node, _, _) = node_with(|_, setup| setup);
    let memfd = File::from(memfd_create("mine", MemfdFlags::CLOEXEC).unwrap());
    let image = vec![0x5a; 300_000];
    memfd.write_all_at(&image, 0).unwrap();
    let mut raw = Raw::hello(&node.socket());
    raw.send(
        RequestId(2),
        &open_files("mine", &["mine.bin"]),
        &[memfd.as_fd()],
    );
    let Some((_, Reply::Opened(opened), fds)) = raw.reply() else {
        panic!("a memfd is a file");
    };
    memfd.set_len(0).unwrap();
    memfd.write_all_at(&[0xff; 1000], 0).unwrap();
    assert_eq!(opened.segments_bytes, [300_000]);
    assert!(content(&fds[1], 300_000) == image);
}

/// A file that is cut and grown without pause: a whole copy of some state, or an error that says so.
#[test]
fn a_file_that_changes_all_the_time_is_refused_or_copied_whole() {
    let (node, _, image) = node_with(|_, setup| setup.budget_first(64 << 20));
    let memfd = File::from(memfd_create("restless", MemfdFlags::CLOEXEC).unwrap());
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut random = mrm_tests::Random(mrm_tests::seed());
            while !stop.load(Ordering::Relaxed) {
                memfd.set_len(random.below(4 << 20)).unwrap();
                std::thread::yield_now();
            }
        });
        let mut raw = Raw::hello(&node.socket());
        for id in 2..60 {
            raw.send(
                RequestId(id),
                &open_files("x", &["restless.bin"]),
                &[memfd.as_fd()],
            );
            match raw.reply() {
                Some((_, Reply::Opened(opened), fds)) => {
                    let bytes = opened.segments_bytes[0];
                    assert!(content(&fds[1], bytes).iter().all(|&byte| byte == 0));
                }
                Some((_, Reply::Error(error), _)) => {
                    let allowed = [ErrorCode::SourceChanged, ErrorCode::EmptyFile];
                    assert!(
                        allowed.contains(&error.code().unwrap()),
                        "{}",
                        error.message
                    );
                }
                other => panic!("{other:?}"),
            }
        }
        stop.store(true, Ordering::Relaxed);
    });
    still_serves(&node, "good.safetensors", &image);
    node.until_idle();
}

/// Large enough to be caught while it loads, sparse so that it costs no disk.
const LARGE_BYTES: u64 = 768 << 20;

#[test]
fn a_file_that_shrinks_or_grows_while_it_is_read_is_noticed() {
    let (node, root, image) = node_with(|_, setup| setup.budget_first(1 << 30));
    let baseline = Baseline::of(&node);
    let mut caught = 0;
    for (round, then_bytes) in [4096, LARGE_BYTES + 4096, 0].into_iter().enumerate() {
        let name = format!("large-{round}.bin");
        let file = File::create(root.join(&name)).unwrap();
        file.set_len(LARGE_BYTES).unwrap();
        let mut raw = Raw::hello(&node.socket());
        raw.send(RequestId(2), &open(&name, 120_000), &[]);
        eventually("the load is under way", || {
            let path = format!("/v1/models/{name}");
            let (_, body) = http::request(&node.status_socket(), "GET", &path);
            let model: serde_json::Value = serde_json::from_str(&body).unwrap();
            let loading = model["state"] == "loading" && model["loaded_bytes"].as_u64() > Some(0);
            (loading || model["state"] == "resident").then_some(())
        });
        file.set_len(then_bytes).unwrap();
        match raw.reply() {
            Some((_, Reply::Opened(opened), fds)) => {
                assert_eq!(opened.segments_bytes, [LARGE_BYTES]);
                let mut last = [1];
                assert_eq!(
                    rustix::io::pread(&fds[1], &mut last, LARGE_BYTES - 1),
                    Ok(1)
                );
            }
            Some((_, Reply::Error(error), _)) => {
                expect(&error, ErrorCode::SourceChanged, &name);
                assert!(error.retryable);
                caught += 1;
            }
            other => panic!("{other:?}"),
        }
        drop(raw);
        node.until_idle();
        evict(&node, &name);
        // What it is now can be opened, or is refused for what it is.
        file.set_len(8192).unwrap();
        still_serves(&node, &name, &[0; 8192]);
        evict(&node, &name);
    }
    println!("{caught} of 3 were caught while they loaded");
    still_serves(&node, "good.safetensors", &image);
    evict(&node, "good.safetensors");
    baseline.is_restored(&node);
    assert_eq!(node.number("/host/charged_bytes"), 0);
}

#[test]
fn file_names_that_break_the_rules_are_refused_and_the_descriptors_closed() {
    let (node, root, image) = node_with(|_, setup| setup);
    let baseline = Baseline::of(&node);
    let file = File::open(root.join("good.safetensors")).unwrap();
    let mut raw = Raw::hello(&node.socket());
    let long = "x".repeat(10_000);
    for (i, name) in [
        "",
        ".",
        "..",
        "a/b",
        "../x",
        "/etc/passwd",
        "a\0b",
        "a\nb",
        &long,
    ]
    .into_iter()
    .enumerate()
    {
        let length = u16::try_from(name.len()).unwrap().to_be_bytes();
        let body = [
            &b"\xa4\x00\x61x\x01\x81\x79"[..],
            &length,
            name.as_bytes(),
            b"\x02\x00\x03\xf4",
        ]
        .concat();
        let id = 2 + i as u64;
        let frame = framed(Kind::OpenFiles as u16, 1, id, &body);
        raw.send_bytes(&frame, &[file.as_fd()]).unwrap();
        let (RequestId(got), Reply::Error(error), _) = raw.reply().expect("goes on") else {
            panic!("{name:?} was accepted");
        };
        assert_eq!(
            (got, error.code()),
            (id, Some(ErrorCode::BadName)),
            "{name:?}"
        );
        assert!(!error.message.contains(['\0', '\n']) && error.message.len() < 1000);
    }
    still_serves(&node, "good.safetensors", &image);
    evict(&node, "good.safetensors");
    drop(raw);
    baseline.is_restored(&node);
}

/// `Setup::budget` after a table would belong to the table.
trait BudgetFirst {
    fn budget_first(self, bytes: u64) -> Self;
}

impl BudgetFirst for Setup {
    fn budget_first(mut self, bytes: u64) -> Self {
        self.settings = format!("host_budget_bytes = {bytes}\n{}", self.settings);
        self
    }
}
