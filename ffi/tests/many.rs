//! `mrm_client_open_many` as C calls it, against a fake daemon.
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
use mrm::model::*;
use mrm::types::*;
use mrm_proto::error::ErrorCode;
use mrm_proto::request::Request;
use std::ffi::{CStr, CString, c_char, c_int};
use std::ptr::{null, null_mut};

fn connect(fake: &Fake) -> mrm_client_h {
    let path = CString::new(fake.socket().to_str().expect("UTF-8")).expect("no NUL");
    let mut client = null_mut();
    // SAFETY: a NUL-terminated path, and a place for the handle.
    let number = unsafe { mrm_client_connect(path.as_ptr(), &raw mut client) };
    assert_eq!(number, 0);
    client
}

fn open_many(
    client: mrm_client_h,
    names: &[&CStr],
    options: *const mrm_open_options_t,
) -> (c_int, Vec<mrm_model_h>) {
    let names: Vec<*const c_char> = names.iter().map(|name| name.as_ptr()).collect();
    // Anything but NULL, to see that it is set.
    let mut models = vec![std::ptr::dangling_mut(); names.len()];
    // SAFETY: an open client, as many NUL-terminated names as there is room for handles, and
    // options of the test's own.
    let number = unsafe {
        mrm_client_open_many(
            client,
            names.as_ptr(),
            names.len(),
            options,
            models.as_mut_ptr(),
        )
    };
    (number, models)
}

#[test]
fn all_are_opened_or_none() {
    // Grants what is called so; a lease has the number of its request.
    let fake = Fake::start(|_, session| {
        session.hello();
        let content = Content::sample(10);
        while let Some((id, request, _)) = session.next_asking() {
            match request {
                Request::Open(open) if open.model.as_str() == "nobody" => {
                    session.error(id, ErrorCode::ModelNotFound, "no model `nobody`");
                }
                Request::Open(_) => session.grant(id, id.0, id.0, &content),
                other => panic!("not served here: {other:?}"),
            }
        }
    });
    let client = connect(&fake);
    let (number, models) = open_many(client, &[c"a", c"b", c"a"], null());
    assert_eq!(number, 0);
    for model in models {
        // SAFETY: each is open, and not used afterwards.
        assert_eq!(unsafe { mrm_model_close(model) }, 0);
    }
    fake.seen.wait_closed(2);
    fake.seen.wait_closed(3);

    let (number, models) = open_many(client, &[c"a", c"nobody", c"b"], null());
    let not_found = c_int::from(ErrorCode::ModelNotFound.number());
    assert_eq!((number, models), (not_found, vec![null_mut(); 3]));
    fake.seen.wait_closed(4);
    fake.seen.wait_closed(6);

    // SAFETY: all-zero is a valid mrm_open_options_t.
    let mut options: mrm_open_options_t = unsafe { std::mem::zeroed() };
    options.size = size_of::<mrm_open_options_t>();
    options.populate = 1;
    let (number, models) = open_many(client, &[c"a"], &raw const options);
    assert_eq!(number, 0);
    // SAFETY: it is open, and not used afterwards.
    assert_eq!(unsafe { mrm_model_close(models[0]) }, 0);
    options.populate = 2;
    assert_eq!(open_many(client, &[c"a"], &raw const options).0, 902);
    assert_eq!(open_many(client, &[], null()).0, 0);
    // SAFETY: NULL is refused before anything is read.
    let number = unsafe { mrm_client_open_many(client, null(), 1, null(), null_mut()) };
    assert_eq!(number, 901);
    // SAFETY: it is open, and not used afterwards.
    assert_eq!(unsafe { mrm_client_close(client) }, 0);
}
