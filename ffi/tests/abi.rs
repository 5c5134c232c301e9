//! The functions of the header, called as C calls them, against a fake daemon.
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
use mrm::device::*;
use mrm::dlpack::*;
use mrm::error::mrm_last_error;
use mrm::model::*;
use mrm::number::mrm_error_e;
use mrm::types::*;
use mrm_proto::error::ErrorCode;
use mrm_proto::reply::{Hinted, Listed, ModelRow, ModelState, Progress, Reply, Stated};
use mrm_proto::request::Request;
use std::ffi::{CStr, CString, c_int, c_void};
use std::os::fd::{FromRawFd, OwnedFd};
use std::ptr::{null, null_mut};
use std::sync::Mutex;
use std::sync::mpsc::{Sender, channel};

fn connect(fake: &Fake) -> mrm_client_h {
    let path = CString::new(fake.socket().to_str().expect("UTF-8")).expect("no NUL");
    let mut client = null_mut();
    // SAFETY: a NUL-terminated path, and a place for the handle.
    let number = unsafe { mrm_client_connect(path.as_ptr(), &raw mut client) };
    assert_eq!(number, 0);
    client
}

fn open(client: mrm_client_h, name: &CStr) -> mrm_model_h {
    let mut model = null_mut();
    // SAFETY: an open client, a NUL-terminated name, and a place for the handle.
    let number = unsafe { mrm_client_open(client, name.as_ptr(), null(), &raw mut model) };
    assert_eq!(number, 0, "{}", last_error().1);
    model
}

fn close(client: mrm_client_h, model: mrm_model_h) {
    // SAFETY: both are open, and not used afterwards.
    unsafe {
        assert_eq!(mrm_model_close(model), 0);
        assert_eq!(mrm_client_close(client), 0);
    }
}

fn text(text: mrm_text_t) -> String {
    // SAFETY: texts of the library have `len` bytes, and their model is open in these tests.
    let bytes = unsafe { std::slice::from_raw_parts(text.data.cast::<u8>(), text.len) };
    String::from_utf8(bytes.to_vec()).expect("UTF-8")
}

fn last_error() -> (u32, String, bool) {
    // SAFETY: all-zero is a valid mrm_error_t.
    let mut error: mrm_error_t = unsafe { std::mem::zeroed() };
    // SAFETY: `error` may be written, and its texts live until the next failure.
    unsafe {
        assert_eq!(mrm_last_error(&raw mut error), 0);
        let message = CStr::from_ptr(error.message)
            .to_str()
            .expect("UTF-8")
            .to_owned();
        (error.number, message, error.retryable)
    }
}

fn zeroed<T: Copy>() -> T {
    // SAFETY: the structs of the header are numbers and pointers: zero is valid for each.
    unsafe { std::mem::zeroed() }
}

#[test]
fn a_model_is_read_through_the_interface() {
    let fake = Fake::start(|_, session| session.serve(&Content::sample(1000)));
    let client = connect(&fake);
    let model = open(client, c"a/b");

    let mut info: mrm_model_info_t = zeroed();
    info.size = size_of::<mrm_model_info_t>();
    // SAFETY: an open model, and places for the results, here and below.
    unsafe { assert_eq!(mrm_model_info(model, &raw mut info), 0) };
    assert_eq!(text(info.name), "a/b");
    assert_eq!(
        (info.tensors, info.segments, info.metadata, info.version),
        (3, 1, 1, 7)
    );
    assert_eq!(info.kind, mrm_kind_e::Safetensors as u32);

    let mut tensors: [mrm_tensor_t; 3] = zeroed();
    // SAFETY: room for three.
    unsafe { assert_eq!(mrm_model_tensors(model, 0, 3, tensors.as_mut_ptr()), 0) };
    assert_eq!(tensors.map(|t| text(t.name)), ["w", "scalar", "odd"]);
    assert!(tensors.iter().all(|t| !t.shape_ptr.is_null()));
    let mut found: mrm_tensor_t = zeroed();
    // SAFETY: as above; the shape and the data live as long as the model.
    unsafe {
        assert_eq!(
            mrm_model_tensor_find(model, c"w".as_ptr(), 1, &raw mut found),
            0
        );
        assert_eq!(found.data_ptr, tensors[0].data_ptr);
        assert_eq!(std::slice::from_raw_parts(found.shape_ptr, 2), [1, 1000]);
        let values = std::slice::from_raw_parts(found.data_ptr.cast::<f32>(), 1000);
        assert_eq!(values[999], 999.0);
    }
    let (mut key, mut value): (mrm_text_t, mrm_text_t) = (zeroed(), zeroed());
    // SAFETY: as above.
    unsafe {
        assert_eq!(
            mrm_model_metadata_at(model, 0, &raw mut key, &raw mut value),
            0
        );
        assert_eq!(
            (text(key), text(value)),
            ("format".to_owned(), "pt".to_owned())
        );
        assert_eq!(
            mrm_model_metadata_find(model, c"format".as_ptr(), 6, &raw mut value),
            0
        );
        assert_eq!(text(value), "pt");
    }
    close(client, model);
    fake.seen.wait_closed(1);
}

#[test]
fn segments_are_lent_by_pointer_and_by_descriptor() {
    let fake = Fake::start(|_, session| session.serve(&Content::sample(10)));
    let client = connect(&fake);
    let model = open(client, c"a/b");
    let (mut segment, mut name): (mrm_segment_t, mrm_text_t) = (zeroed(), zeroed());
    let mut raw: c_int = -1;
    // SAFETY: an open model, and places for the results.
    unsafe {
        assert_eq!(mrm_model_segment_at(model, 0, &raw mut segment), 0);
        assert_eq!(mrm_model_segment_name(model, 0, &raw mut name), 0);
        assert_eq!(mrm_model_segment_dup_fd(model, 0, &raw mut raw), 0);
    }
    assert_eq!(
        (text(name).as_str(), segment.bytes),
        ("model.safetensors", 64 + 40 + 13)
    );
    // SAFETY: the descriptor was just made for us.
    let fd = unsafe { OwnedFd::from_raw_fd(raw) };
    assert_eq!(rustix::fs::fstat(&fd).expect("open").st_size, 117);
    assert!(
        rustix::io::write(&fd, b"x").is_err(),
        "the descriptor is for reading only"
    );

    let mut second = null_mut();
    // SAFETY: an open model; after its close only the clone is used.
    unsafe {
        assert_eq!(mrm_model_clone(model, &raw mut second), 0);
        assert_eq!(mrm_model_close(model), 0);
        assert_eq!(mrm_model_segment_at(second, 0, &raw mut segment), 0);
        assert_eq!(mrm_model_segment_at(second, 1, &raw mut segment), 903);
    }
    assert!(last_error().1.contains("`a/b`"));
    close(client, second);
}

/// What `mrm_client_connect_open` gives back.
fn connect_open(fake: &Fake, name: &CStr) -> (c_int, mrm_client_h, mrm_model_h) {
    let path = CString::new(fake.socket().to_str().expect("UTF-8")).expect("no NUL");
    let (mut client, mut model) = (null_mut(), null_mut());
    let (to, of) = (&raw mut client, &raw mut model);
    // SAFETY: NUL-terminated texts, no options, and places for the handles.
    let number = unsafe { mrm_client_connect_open(path.as_ptr(), name.as_ptr(), null(), to, of) };
    (number, client, model)
}

#[test]
fn connecting_and_opening_is_one_call_that_does_both_or_nothing() {
    let fake = Fake::start(|_, session| session.serve(&Content::sample(10)));
    let (number, client, model) = connect_open(&fake, c"a/b");
    assert_eq!(number, 0);
    let again = open(client, c"a/b");
    assert_eq!(fake.seen.count(), 1, "it is open already");
    for model in [model, again] {
        // SAFETY: each is open, and not used afterwards.
        assert_eq!(unsafe { mrm_model_close(model) }, 0);
    }
    fake.seen.wait_closed(1);
    // SAFETY: it is open, and not used afterwards.
    assert_eq!(unsafe { mrm_client_close(client) }, 0);
    let bad = connect_open(&fake, c"/");
    let number = c_int::from(ErrorCode::BadName.number());
    assert_eq!(bad, (number, null_mut(), null_mut()));
}

#[test]
fn null_arguments_are_errors_everywhere() {
    let fake = Fake::start(|_, session| session.serve(&Content::sample(10)));
    let client = connect(&fake);
    let mut model = open(client, c"a/b");
    let nulls = mrm_error_e::NullArgument as c_int;
    // SAFETY: NULL is what is tested; the other arguments are valid.
    unsafe {
        for (i, number) in [
            mrm_client_connect(null(), null_mut()),
            mrm_client_close(null_mut()),
            mrm_client_connect_open(null(), null(), null(), &mut null_mut(), &mut null_mut()),
            mrm_client_connect_open(null(), c"a".as_ptr(), null(), null_mut(), &mut null_mut()),
            mrm_client_connect_open(null(), c"a".as_ptr(), null(), &mut null_mut(), null_mut()),
            mrm_client_open(null(), c"a".as_ptr(), null(), &mut null_mut()),
            mrm_client_open(client, null(), null(), &mut null_mut()),
            mrm_client_open(client, c"a".as_ptr(), null(), null_mut()),
            mrm_client_open_path(client, null(), null(), &mut null_mut()),
            mrm_client_list(client, null(), None, null_mut()),
            mrm_client_stat(client, null(), null_mut()),
            mrm_client_hint(client, null(), 0),
            mrm_model_clone(null(), &mut null_mut()),
            mrm_model_close(null_mut()),
            mrm_model_info(model, null_mut()),
            mrm_model_info(null(), null_mut()),
            mrm_model_tensor_at(model, 0, null_mut()),
            mrm_model_tensor_find(model, null(), 0, &mut zeroed()),
            mrm_model_tensors(model, 0, 1, null_mut()),
            mrm_model_metadata_at(model, 0, null_mut(), null_mut()),
            mrm_model_metadata_find(model, null(), 0, &mut zeroed()),
            mrm_model_segment_at(model, 0, null_mut()),
            mrm_model_segment_name(model, 0, null_mut()),
            mrm_model_segment_dup_fd(model, 0, null_mut()),
            mrm_model_device(model, null_mut()),
            mrm_model_device(null(), null_mut()),
            mrm_model_allocation_at(model, 0, null_mut()),
            mrm_model_why_host(model, null_mut()),
            mrm_model_lost(null()),
            mrm_model_leased(null(), &mut false),
            mrm_model_leased(model, null_mut()),
            mrm_model_close_on(null_mut(), null(), 0),
            mrm_model_close_on(&mut null_mut(), null(), 0),
            mrm_model_close_on(&raw mut model, null(), 1),
            mrm_tensor_dlpack(model, 0, null_mut()),
            mrm_tensor_dlpack(null(), 0, &mut null_mut()),
            mrm_tensor_dlpack_unversioned(model, 0, null_mut()),
            mrm_last_error(null_mut()),
        ]
        .into_iter()
        .enumerate()
        {
            assert_eq!(number, nulls, "call {i}");
        }
    }
    assert_eq!(last_error().0, 901);
    close(client, model);
}

#[test]
fn errors_are_kept_per_thread_with_their_flags() {
    let fake = Fake::start(|_, session| {
        session.hello();
        while let Some((id, _, _)) = session.next_asking() {
            session.error(id, ErrorCode::NoRoom, "no room for `a/b`");
        }
    });
    let client = connect(&fake);
    let mut model: mrm_model_h = std::ptr::dangling_mut();
    // SAFETY: an open client, a NUL-terminated name, and a place for the handle.
    let number = unsafe { mrm_client_open(client, c"a/b".as_ptr(), null(), &raw mut model) };
    assert_eq!((number, model), (501, null_mut()));
    assert_eq!(last_error(), (501, "no room for `a/b`".to_owned(), true));
    let elsewhere = std::thread::spawn(|| last_error().0)
        .join()
        .expect("no panic");
    assert_eq!(elsewhere, 0, "another thread has an error of its own");

    let bad_name = [0xff_u8.cast_signed(), 0];
    // SAFETY: as above; the name is NUL-terminated, though not UTF-8.
    let number = unsafe { mrm_client_open(client, bad_name.as_ptr(), null(), &raw mut model) };
    assert_eq!(number, mrm_error_e::BadArgument as c_int);
    // SAFETY: the client is open, and not used afterwards.
    unsafe { assert_eq!(mrm_client_close(client), 0) };
}

/// What `note` gets: where it writes, and whom it tells.
struct Noted {
    seen: Vec<(u64, u64)>,
    called: Sender<()>,
}

unsafe extern "C" fn note(loaded_bytes: u64, total_bytes: u64, user: *mut c_void) {
    // SAFETY: the test passes a struct that outlives the open.
    let noted = unsafe { &mut *user.cast::<Noted>() };
    noted.seen.push((loaded_bytes, total_bytes));
    noted.called.send(()).expect("the fake waits");
}

#[test]
fn options_are_read_by_their_size_and_progress_is_called() {
    let (called, was_called) = channel();
    let was_called = Mutex::new(was_called);
    let fake = Fake::start(move |_, session| {
        session.hello();
        while let Some((id, request, _)) = session.next_asking() {
            let Request::Open(open) = request else {
                panic!("only opens")
            };
            assert_eq!(open.wait_ms, 1234);
            if open.progress {
                let progress = Progress {
                    loaded_bytes: 5,
                    total_bytes: 10,
                    eta_ms: None,
                };
                session.send(id, &Reply::Progress(progress), &[]);
                let was_called = was_called.lock().expect("lock");
                was_called
                    .recv_timeout(fake::PATIENCE)
                    .expect("the callback is called");
            }
            session.grant(id, 1, 1, &Content::sample(10));
        }
    });
    let client = connect(&fake);
    let mut noted = Noted {
        seen: Vec::new(),
        called,
    };
    let mut options = mrm_open_options_t {
        size: size_of::<mrm_open_options_t>(),
        wait_ms: 1234,
        progress: Some(note),
        user: (&raw mut noted).cast(),
        ..zeroed()
    };
    let open = |name: &CStr, options: &mrm_open_options_t| {
        let mut model = null_mut();
        // SAFETY: an open client; options that begin with their size and outlive the call.
        let number = unsafe { mrm_client_open(client, name.as_ptr(), options, &raw mut model) };
        (number, model)
    };
    let (number, first) = open(c"a", &options);
    assert_eq!(number, 0);
    options.size = 16; // an older program, which knows the wait and nothing else
    let (number, second) = open(c"b", &options);
    assert_eq!(number, 0);
    for wrong in [0, 8, 1 << 20] {
        options.size = wrong;
        assert_eq!(open(c"c", &options), (902, null_mut()), "size {wrong}");
    }
    assert_eq!(noted.seen, [(5, 10)]);

    // A newer program, which sets a member that this library does not know.
    #[repr(C)]
    struct Newer(mrm_open_options_t, u64);
    options.size = size_of::<Newer>();
    options.progress = None;
    let newer = Newer(options, 1);
    let whole = (&raw const newer).cast::<mrm_open_options_t>();
    // SAFETY: as above, and the pointer is one to the whole struct.
    let number = unsafe { mrm_client_open(client, c"c".as_ptr(), whole, &mut null_mut()) };
    assert_eq!((number, newer.1), (902, 1));
    assert!(last_error().1.contains("upgrade libmrm"));
    // SAFETY: the first is open, and not used afterwards.
    unsafe { assert_eq!(mrm_model_close(first), 0) };
    close(client, second);
}

unsafe extern "C" fn collect(model: *const mrm_stat_t, user: *mut c_void) -> bool {
    // SAFETY: the library passes a row, the test a vector that outlives the call.
    let (row, rows) = unsafe { (&*model, &mut *user.cast::<Vec<String>>()) };
    rows.push(text(row.name));
    rows.len() < 2
}

#[test]
fn models_are_listed_and_described() {
    let row = |name: &str| ModelRow {
        name: mrm_proto::name::ModelName::new(name).expect("a name"),
        registered: true,
        state: ModelState::Partial,
        bytes: 10,
        leases: 2,
        pinned: true,
        devices: None,
    };
    let fake = Fake::start(move |_, session| {
        session.hello();
        while let Some((id, request, _)) = session.next_asking() {
            let reply = if let Request::List(_) = request {
                Reply::Listed(Listed {
                    models: vec![row("a"), row("b"), row("c")],
                    more: false,
                })
            } else if let Request::Hint(hint) = request {
                assert_eq!((hint.model.as_str(), hint.in_ms), ("a", 30_000));
                Reply::Hinted(Hinted {})
            } else {
                let version = Some(mrm_proto::ids::VersionId(4));
                Reply::Stated(Stated {
                    row: row("a"),
                    version,
                    digests: Vec::new(),
                })
            };
            session.send(id, &reply, &[]);
        }
    });
    let client = connect(&fake);
    let mut names: Vec<String> = Vec::new();
    let user = (&raw mut names).cast();
    let mut stat: mrm_stat_t = zeroed();
    stat.size = size_of::<mrm_stat_t>();
    // SAFETY: an open client, valid arguments, and a place for the result.
    unsafe {
        assert_eq!(mrm_client_list(client, null(), Some(collect), user), 0);
        assert_eq!(mrm_client_stat(client, c"a".as_ptr(), &raw mut stat), 0);
        assert_eq!(mrm_client_hint(client, c"a".as_ptr(), 30_000), 0);
        assert_eq!(mrm_client_close(client), 0);
    }
    assert_eq!(names, ["a", "b"], "the callback ended the listing");
    assert_eq!((stat.version, stat.has_version, stat.leases), (4, true, 2));
    assert_eq!(stat.state, mrm_state_e::Partial as u32);
}
