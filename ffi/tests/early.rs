//! Models that are opened by their layout, and private copies, as C has them, against a fake daemon
//! that fills when it is told to.
#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::wildcard_enum_match_arm,
    reason = "a test fails by panicking"
)]

#[path = "../../mrm-client/tests/fake/mod.rs"]
mod fake;

use fake::{Content, Fake};
use mrm::client::*;
use mrm::copy::*;
use mrm::dlpack::*;
use mrm::model::*;
use mrm::number::mrm_error_e;
use mrm::ready::*;
use mrm::types::*;
use mrm_proto::ids::{LeaseId, RequestId};
use mrm_proto::reply::{Ready, ReadyRange, Reply};
use mrm_proto::request::{Request, WaitFor};
use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, memfd_create};
use std::ffi::{CStr, CString, c_int, c_void};
use std::fs::File;
use std::io::Write;
use std::os::fd::{AsFd, AsRawFd};
use std::ptr::{null, null_mut};
use std::sync::Mutex;
use std::sync::mpsc::{Receiver, Sender, channel};

/// Where `scalar` begins in [`Content::sample`] of ten floats, and how long the file is.
const SCALAR: u64 = 64 + 40;
const FILE: u64 = SCALAR + 13;

/// A daemon that grants before it fills, and then says what it is told to.
fn filling() -> (Fake, Sender<Ready>) {
    let (tell, told) = channel();
    let told: Mutex<Receiver<Ready>> = Mutex::new(told);
    let fake = Fake::start(move |_, session| {
        session.hello();
        let content = Content::sample(10);
        let file = memfd_create("fake", MemfdFlags::ALLOW_SEALING | MemfdFlags::CLOEXEC);
        let mut file = File::from(file.expect("memfd"));
        let mut image = vec![0; usize::try_from(FILE).expect("small")];
        let read = rustix::io::pread(&content.segments[0].0, &mut image, 0);
        assert_eq!(read, Ok(image.len()));
        file.write_all(&image).expect("writes");
        let early = SealFlags::GROW | SealFlags::SHRINK | SealFlags::FUTURE_WRITE;
        fcntl_add_seals(&file, early).expect("seals");
        let path = format!("/proc/self/fd/{}", file.as_raw_fd());
        let lent = File::open(path).expect("opens again");
        let Some((id, Request::Open(open), _)) = session.next_asking() else {
            panic!("an open")
        };
        assert_eq!(open.wait_for, Some(WaitFor::Layout));
        let mut opened = content.opened(1, 7);
        opened.filling = Some(vec![0]);
        let fds = [content.table.as_fd(), lent.as_fd()];
        session.send(id, &Reply::Opened(opened), &fds);
        let told = told.lock().expect("lock");
        while let Ok(ready) = told.recv() {
            if !ready.sealed.is_empty() {
                fcntl_add_seals(&file, SealFlags::WRITE).expect("nobody maps it for writing");
            }
            session.send(RequestId(0), &Reply::Ready(ready), &[]);
        }
        session.until_gone();
    });
    (fake, tell)
}

fn ready(ranges: &[(u64, u64)], sealed: &[u32]) -> Ready {
    let range = |&(from, to): &(u64, u64)| ReadyRange {
        segment: 0,
        from,
        to,
    };
    Ready {
        lease: LeaseId(1),
        ranges: ranges.iter().map(range).collect(),
        sealed: sealed.to_vec(),
    }
}

fn zeroed<T: Copy>() -> T {
    // SAFETY: the structs of the header are numbers and pointers: zero is valid for each.
    unsafe { std::mem::zeroed() }
}

fn options(wait_ms: u64, wait_for: u32) -> mrm_open_options_t {
    mrm_open_options_t {
        size: size_of::<mrm_open_options_t>(),
        wait_ms,
        wait_for,
        ..zeroed()
    }
}

fn open(fake: &Fake, name: &CStr, options: &mrm_open_options_t) -> (mrm_client_h, mrm_model_h) {
    let path = CString::new(fake.socket().to_str().expect("UTF-8")).expect("no NUL");
    let (mut client, mut model) = (null_mut(), null_mut());
    // SAFETY: NUL-terminated texts, options that outlive the call, and places for the handles.
    unsafe {
        assert_eq!(mrm_client_connect(path.as_ptr(), &raw mut client), 0);
        let number = mrm_client_open(client, name.as_ptr(), options, &raw mut model);
        assert_eq!(number, 0);
    }
    (client, model)
}

fn close(client: mrm_client_h, model: mrm_model_h) {
    // SAFETY: both are open, and not used afterwards.
    unsafe {
        assert_eq!(mrm_model_close(model), 0);
        assert_eq!(mrm_client_close(client), 0);
    }
}

fn is_ready(model: mrm_model_h, index: usize) -> bool {
    let mut is = false;
    // SAFETY: the model is open, and `is` may be written.
    assert_eq!(unsafe { mrm_tensor_ready(model, index, &raw mut is) }, 0);
    is
}

#[test]
fn tensors_come_one_by_one_and_segments_last() {
    let (fake, tell) = filling();
    let (client, model) = open(&fake, c"m", &options(60_000, 1));
    let (mut info, mut found): (mrm_model_info_t, mrm_tensor_t) = (zeroed(), zeroed());
    info.size = size_of::<mrm_model_info_t>();
    let late = mrm_error_e::ReplyTimedOut as c_int;
    // SAFETY: an open model, and places for the results, here and below.
    unsafe {
        assert_eq!(mrm_model_info(model, &raw mut info), 0);
        assert_eq!((info.tensors, info.segments, info.bytes), (3, 1, FILE));
        assert_eq!(mrm_model_layout_at(model, 1, &raw mut found), 0);
        assert_eq!((found.bytes, found.offset), (8, SCALAR));
        assert!(found.data_ptr.is_null() && !is_ready(model, 1));
        assert_eq!(mrm_tensor_wait(model, 1, 0), late);
        assert_eq!(mrm_model_wait(model, 0), late);
    }
    // The one that is asked for, and no other.
    tell.send(ready(&[(SCALAR, FILE)], &[])).expect("told");
    // SAFETY: as above; what is lent is given back once.
    unsafe {
        let name = c"scalar";
        let number = mrm_model_tensor_find(model, name.as_ptr(), 6, &raw mut found);
        assert_eq!((number, found.index), (0, 1));
        assert_eq!(found.data_ptr.cast::<i64>().read_unaligned(), -9);
        assert!(is_ready(model, 1) && is_ready(model, 2) && !is_ready(model, 0));
        assert_eq!(mrm_tensor_wait(model, 2, MRM_WAIT_DEFAULT), 0);
        let mut lent = null_mut();
        assert_eq!(mrm_tensor_dlpack(model, 1, &raw mut lent), 0);
        assert_eq!((*lent).dl_tensor.data.cast_const(), found.data_ptr);
        (*lent).deleter.expect("a deleter")(lent);
        let mut whole = true;
        assert_eq!(mrm_model_whole(model, &raw mut whole), 0);
        assert!(!whole);
    }
    tell.send(ready(&[(0, FILE)], &[0])).expect("told");
    let (mut segment, mut tensors): (mrm_segment_t, [mrm_tensor_t; 3]) = (zeroed(), zeroed());
    // SAFETY: as above; there is room for three.
    unsafe {
        assert_eq!(mrm_model_wait(model, MRM_WAIT_DEFAULT), 0);
        assert_eq!(mrm_model_segment_at(model, 0, &raw mut segment), 0);
        assert_eq!(mrm_model_tensors(model, 0, 3, tensors.as_mut_ptr()), 0);
    }
    let places = tensors.map(|tensor| tensor.data_ptr as u64 - segment.data_ptr as u64);
    assert_eq!(places, tensors.map(|tensor| tensor.offset));
    drop(tell);
    close(client, model);
    fake.seen.wait_closed(1);
}

#[test]
fn what_asks_for_all_waits_for_all() {
    let (fake, tell) = filling();
    let (client, model) = open(&fake, c"m", &options(60_000, 1));
    let waiting = model as usize;
    let segment = std::thread::spawn(move || {
        let mut segment: mrm_segment_t = zeroed();
        let model = waiting as mrm_model_h;
        // SAFETY: the model is closed after this thread has ended.
        let number = unsafe { mrm_model_segment_at(model, 0, &raw mut segment) };
        assert_eq!(number, 0);
        segment.bytes
    });
    tell.send(ready(&[(0, 70)], &[])).expect("told");
    tell.send(ready(&[], &[0])).expect("told");
    assert_eq!(segment.join().expect("no panic"), FILE);
    drop(tell);
    close(client, model);
}

#[test]
fn what_never_comes_is_an_error_and_so_are_bad_arguments() {
    let (fake, tell) = filling();
    let (client, model) = open(&fake, c"m", &options(1, 1));
    let (mut tensor, mut is): (mrm_tensor_t, bool) = (zeroed(), false);
    let (nulls, none) = (
        mrm_error_e::NullArgument as c_int,
        mrm_error_e::NoSuchItem as c_int,
    );
    // SAFETY: NULL is what is tested; the other arguments are valid.
    unsafe {
        let late = mrm_error_e::ReplyTimedOut as c_int;
        assert_eq!(mrm_model_tensor_at(model, 0, &raw mut tensor), late);
        assert_eq!(
            [
                mrm_model_layout_at(model, 0, null_mut()),
                mrm_model_layout_find(model, null(), 0, &raw mut tensor),
                mrm_model_layouts(model, 0, 1, null_mut()),
                mrm_tensor_ready(null(), 0, &raw mut is),
                mrm_tensor_ready(model, 0, null_mut()),
                mrm_tensor_wait(null(), 0, 0),
                mrm_model_whole(model, null_mut()),
                mrm_model_wait(null(), 0),
                mrm_copy_close(null_mut()),
                mrm_model_segment_copy(model, 0, null_mut(), null_mut(), null_mut()),
            ],
            [nulls; 10]
        );
        assert_eq!(
            [
                mrm_model_layout_at(model, 3, &raw mut tensor),
                mrm_model_layouts(model, 2, 2, &raw mut tensor),
                mrm_tensor_ready(model, 3, &raw mut is),
                mrm_tensor_wait(model, 3, 0),
            ],
            [none; 4]
        );
        let mut other = null_mut();
        let wrong = options(1, 2);
        let number = mrm_client_open(client, c"n".as_ptr(), &raw const wrong, &raw mut other);
        assert_eq!(number, mrm_error_e::BadArgument as c_int);
    }
    drop(tell);
    close(client, model);
}

#[test]
fn a_copy_is_written_to_by_its_owner_alone() {
    let fake = Fake::start(|_, session| session.serve(&Content::sample(10)));
    let (client, model) = open(&fake, c"m", &options(60_000, 0));
    let (mut copy, mut data, mut bytes) = (null_mut(), null_mut::<c_void>(), 0);
    let mut shared: mrm_tensor_t = zeroed();
    // SAFETY: an open model, and places for the results; offsets lead into the copy.
    unsafe {
        let made = mrm_model_segment_copy(model, 0, &raw mut copy, &raw mut data, &raw mut bytes);
        assert_eq!((made, bytes), (0, FILE));
        assert_eq!(mrm_model_tensor_at(model, 0, &raw mut shared), 0);
        let own = data.byte_add(64).cast::<f32>();
        assert_eq!(own.add(9).read(), 9.0);
        own.add(9).write(-1.0);
        assert_eq!(own.add(9).read(), -1.0);
        assert_eq!(shared.data_ptr.cast::<f32>().add(9).read(), 9.0);
        let none = mrm_model_segment_copy(model, 1, &mut null_mut(), &raw mut data, &raw mut bytes);
        assert_eq!(none, mrm_error_e::NoSuchItem as c_int);
        // It outlives the model.
        close(client, model);
        assert_eq!(own.read(), 0.0);
        assert_eq!(mrm_copy_close(copy), 0);
    }
    fake.seen.wait_closed(1);
}
