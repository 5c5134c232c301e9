//! Devices and DLPack through the functions of the header, against a fake daemon and driver.
#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::wildcard_enum_match_arm,
    reason = "a test fails by panicking"
)]

#[path = "../../mrm-client/tests/fake/mod.rs"]
mod fake;
#[path = "../../mrm-client/tests/machine/lent.rs"]
mod lent;
#[path = "../../mrm-client/tests/machine/mod.rs"]
mod machine;

use fake::{Content, Fake};
use lent::{Lent, TENSOR_BYTES, byte_of, read};
use machine::on_machine;
use mrm::client::*;
use mrm::device::*;
use mrm::dlpack::*;
use mrm::error::mrm_last_error;
use mrm::model::*;
use mrm::number::mrm_error_e;
use mrm::types::*;
use mrm_client::device::Granularity;
use mrm_proto::dtype::DType;
use mrm_proto::table::{ModelKind, TableBuilder};
use std::ffi::{CStr, CString, c_int};
use std::ptr::{null, null_mut};

fn connect(fake: &Fake) -> mrm_client_h {
    let path = CString::new(fake.socket().to_str().expect("UTF-8")).expect("no NUL");
    let mut client = null_mut();
    // SAFETY: a NUL-terminated path, and a place for the handle.
    let number = unsafe { mrm_client_connect(path.as_ptr(), &raw mut client) };
    assert_eq!(number, 0);
    client
}

fn options(tier: mrm_tier_e, device: Option<&'static CStr>) -> mrm_open_options_t {
    mrm_open_options_t {
        size: size_of::<mrm_open_options_t>(),
        wait_ms: MRM_WAIT_DEFAULT,
        progress: None,
        user: null_mut(),
        tier: tier as u32,
        reserved: 0,
        populate: 0,
        wait_for: 0,
        reserve_bytes: 0,
        device: device.map_or(null(), CStr::as_ptr),
    }
}

fn open(client: mrm_client_h, options: &mrm_open_options_t) -> (c_int, mrm_model_h) {
    let mut model = null_mut();
    // SAFETY: an open client, a NUL-terminated name, valid options, and a place for the handle.
    let number = unsafe { mrm_client_open(client, c"a/b".as_ptr(), options, &raw mut model) };
    (number, model)
}

fn message() -> String {
    // SAFETY: all-zero is a valid mrm_error_t, which may be written; texts live until the next
    // failure.
    unsafe {
        let mut error: mrm_error_t = std::mem::zeroed();
        assert_eq!(mrm_last_error(&raw mut error), 0);
        CStr::from_ptr(error.message).to_string_lossy().into_owned()
    }
}

fn tensor(model: mrm_model_h, index: usize) -> mrm_tensor_t {
    // SAFETY: all-zero is a valid mrm_tensor_t; the model is open.
    unsafe {
        let mut tensor = std::mem::zeroed();
        assert_eq!(mrm_model_tensor_at(model, index, &raw mut tensor), 0);
        tensor
    }
}

fn close(client: mrm_client_h, model: mrm_model_h) {
    // SAFETY: both are open, and not used afterwards.
    unsafe {
        assert_eq!(mrm_model_close(model), 0);
        assert_eq!(mrm_client_close(client), 0);
    }
}

fn lending(tensors: u64) -> Fake {
    let lent = Lent::vmm(tensors, Granularity::Tensor);
    Fake::start(move |_, session| {
        session.hello();
        lent.serve(session, 1);
    })
}

#[test]
fn a_model_on_a_device_says_where_it_is() {
    on_machine("a_model_on_a_device_says_where_it_is", &[], |_| {
        let fake = lending(3);
        let client = connect(&fake);
        let (number, model) = open(client, &options(mrm_tier_e::Device, Some(c"cuda:0")));
        assert_eq!(number, 0, "{}", message());
        // SAFETY: an open model, and places for the results; zero is valid for each.
        let device: mrm_device_t = unsafe {
            let mut device: mrm_device_t = std::mem::zeroed();
            device.size = size_of::<mrm_device_t>();
            assert_eq!(mrm_model_device(model, &raw mut device), 0);
            let mut allocation: mrm_allocation_t = std::mem::zeroed();
            assert_eq!(mrm_model_allocation_at(model, 2, &raw mut allocation), 0);
            assert_eq!(allocation.device_ptr, tensor(model, 2).device_ptr);
            assert_eq!(mrm_model_allocation_at(model, 3, &raw mut allocation), 903);
            assert_eq!(mrm_model_lost(model), 0);
            let mut leased = false;
            assert_eq!(mrm_model_leased(model, &raw mut leased), 0);
            assert!(leased);
            device
        };
        assert_eq!(
            (device.ordinal, device.allocations, device.bytes),
            (0, 3, 3000)
        );
        assert_eq!(device.uuid[0], 0xf0);
        let first = tensor(model, 0);
        assert!(first.data_ptr.is_null());
        assert_eq!(
            (first.device, first.index, first.bytes),
            (0, 0, TENSOR_BYTES)
        );
        assert_eq!(
            read(first.device_ptr, 3),
            [byte_of(0, 0), byte_of(0, 1), byte_of(0, 2)]
        );
        close(client, model);
        fake.seen.wait_closed(1);
    });
}

#[test]
fn tensors_of_a_device_are_lent_by_dlpack_and_keep_the_model() {
    let name = "tensors_of_a_device_are_lent_by_dlpack_and_keep_the_model";
    on_machine(name, &[], |_| {
        let fake = lending(2);
        let client = connect(&fake);
        let (_, model) = open(client, &options(mrm_tier_e::Best, None));
        let mut managed = null_mut();
        let mut older = null_mut();
        // SAFETY: an open model, and places for the results.
        unsafe {
            assert_eq!(mrm_tensor_dlpack(model, 1, &raw mut managed), 0);
            assert_eq!(mrm_tensor_dlpack_unversioned(model, 0, &raw mut older), 0);
        }
        close(client, model);
        // SAFETY: both were made above, and live until their deleters are called.
        unsafe {
            let DlTensor { data, device, .. } = look(&(*managed).dl_tensor);
            assert_eq!(device, (MRM_DL_CUDA, 0));
            assert_eq!(read(data, 2), [byte_of(1, 0), byte_of(1, 1)]);
            assert_eq!((*managed).flags, MRM_DL_FLAG_READ_ONLY);
            assert_eq!(((*managed).version.major, (*managed).version.minor), (1, 1));
            ((*managed).deleter.expect("a deleter"))(managed);
            let closes = fake.seen.all().len();
            assert_eq!(closes, 1, "the other tensor keeps the lease");
            let DlTensor { data, .. } = look(&(*older).dl_tensor);
            assert_eq!(read(data, 2), [byte_of(0, 0), byte_of(0, 1)]);
            ((*older).deleter.expect("a deleter"))(older);
        }
        fake.seen.wait_closed(1);
    });
}

/// A tensor as a consumer sees it.
struct DlTensor {
    data: u64,
    device: (i32, i32),
    dtype: (u8, u8, u16),
    shape: Vec<i64>,
    strides: Vec<i64>,
}

fn look(tensor: &mrm_dl_tensor_t) -> DlTensor {
    assert_eq!(tensor.byte_offset, 0);
    let rank = usize::try_from(tensor.ndim).expect("not negative");
    // SAFETY: both have as many elements, by the text of mrm_dl_tensor_t.
    let list = |start| unsafe { std::slice::from_raw_parts(start, rank) }.to_vec();
    DlTensor {
        data: tensor.data as u64,
        device: (tensor.device.device_type, tensor.device.device_id),
        dtype: (tensor.dtype.code, tensor.dtype.bits, tensor.dtype.lanes),
        shape: list(tensor.shape.cast_const()),
        strides: list(tensor.strides.cast_const()),
    }
}

#[test]
fn tensors_of_host_memory_are_lent_by_dlpack() {
    let mut builder = TableBuilder::new(ModelKind::Safetensors);
    let file = builder.segment("model.safetensors");
    builder.tensor("b", DType::BF16, &[2, 3, 2], file, 64, 24);
    builder.tensor("e", DType::F32, &[0, 3], file, 88, 0);
    builder.tensor("f", DType::F4, &[4], file, 88, 2);
    let table = builder.build().expect("a table");
    let fake = Fake::start(move |_, session| session.serve(&Content::of(&table, &[&[7; 90]])));
    let client = connect(&fake);
    let (number, model) = open(client, &options(mrm_tier_e::Host, None));
    assert_eq!(number, 0, "{}", message());
    let lent = |index| {
        let mut managed = null_mut();
        // SAFETY: an open model, and a place for the result.
        let number = unsafe { mrm_tensor_dlpack(model, index, &raw mut managed) };
        (number, managed)
    };
    let (number, first) = lent(0);
    assert_eq!(number, 0, "{}", message());
    // SAFETY: made above, and alive until its deleter is called.
    let seen = look(unsafe { &(*first).dl_tensor });
    assert_eq!((seen.device, seen.dtype), ((MRM_DL_CPU, 0), (4, 16, 1)));
    assert_eq!((seen.shape, seen.strides), (vec![2, 3, 2], vec![6, 2, 1]));
    assert_eq!(seen.data, tensor(model, 0).data_ptr as u64);
    let (number, empty) = lent(1);
    assert_eq!(number, 0);
    // SAFETY: as above.
    unsafe {
        assert!((*empty).dl_tensor.data.is_null());
        ((*empty).deleter.expect("a deleter"))(empty);
    }
    assert_eq!(lent(2), (mrm_error_e::DtypeMismatch as c_int, null_mut()));
    assert!(message().contains("F4"), "{}", message());
    assert_eq!(lent(3), (mrm_error_e::NoSuchItem as c_int, null_mut()));
    close(client, model);
    // SAFETY: as above; it keeps the memory although the handle is closed.
    unsafe {
        assert_eq!(*(*first).dl_tensor.data.cast::<u8>(), 7);
        ((*first).deleter.expect("a deleter"))(first);
    }
    fake.seen.wait_closed(1);
}

#[test]
fn what_is_to_stay_free_is_asked_for_by_programs_that_know_of_it() {
    let name = "what_is_to_stay_free_is_asked_for_by_programs_that_know_of_it";
    on_machine(name, &[], |_| {
        let fake = lending(1);
        let client = connect(&fake);
        let mut keeping = options(mrm_tier_e::Device, None);
        keeping.reserve_bytes = 3 << 30;
        let mut older = keeping;
        older.size = std::mem::offset_of!(mrm_open_options_t, reserve_bytes);
        for options in [keeping, older] {
            let (number, model) = open(client, &options);
            assert_eq!(number, 0, "{}", message());
            // SAFETY: an open model, not used afterwards.
            unsafe { assert_eq!(mrm_model_close(model), 0) };
        }
        let requests = fake.seen.all();
        let asked = requests.iter().filter_map(|request| match request {
            mrm_proto::request::Request::Open(open) => open.devices.as_ref(),
            _ => None,
        });
        let asked: Vec<Option<u64>> = asked.map(|devices| devices.reserve_bytes).collect();
        assert_eq!(asked, [Some(3 << 30), None]);
        // SAFETY: an open client, not used afterwards.
        unsafe { assert_eq!(mrm_client_close(client), 0) };
    });
}

#[test]
fn options_that_contradict_themselves_are_refused() {
    let fake = Fake::start(|_, session| session.serve(&Content::sample(10)));
    let client = connect(&fake);
    let mut unknown = options(mrm_tier_e::Host, None);
    unknown.tier = 3;
    let mut reserved = options(mrm_tier_e::Host, None);
    reserved.reserved = 1;
    for wrong in [
        options(mrm_tier_e::Host, Some(c"cuda:0")),
        options(mrm_tier_e::Device, Some(c"cpu")),
        options(mrm_tier_e::Best, Some(c"MIG-1")),
        unknown,
        reserved,
    ] {
        let number = open(client, &wrong).0;
        assert_eq!(number, mrm_error_e::BadArgument as c_int, "{}", message());
    }
    // A program that knows only the first members gets host memory.
    let mut older = options(mrm_tier_e::Device, None);
    older.size = 32;
    let (number, model) = open(client, &older);
    assert_eq!(number, 0, "{}", message());
    // SAFETY: an open model, and a place for the result; zero is valid for it.
    unsafe {
        let mut device: mrm_device_t = std::mem::zeroed();
        device.size = size_of::<mrm_device_t>();
        assert_eq!(mrm_model_device(model, &raw mut device), 903);
    }
    close(client, model);
}

#[test]
fn the_best_says_why_it_is_host_memory() {
    let settings = [("MRM_FAKE_CUDA_INIT_ERROR", "999")];
    on_machine("the_best_says_why_it_is_host_memory", &settings, |_| {
        let fake = Fake::start(|_, session| session.serve(&Content::sample(10)));
        let client = connect(&fake);
        let (number, _) = open(client, &options(mrm_tier_e::Device, None));
        assert_eq!(number, mrm_error_e::NoDevice as c_int);
        let (number, model) = open(client, &options(mrm_tier_e::Best, None));
        assert_eq!(number, 0, "{}", message());
        // SAFETY: an open model, and a place for the result, whose text lives as long.
        let why = unsafe {
            let mut why: mrm_text_t = std::mem::zeroed();
            assert_eq!(mrm_model_why_host(model, &raw mut why), 0);
            std::slice::from_raw_parts(why.data.cast::<u8>(), why.len)
        };
        assert!(String::from_utf8_lossy(why).contains("did not initialise"));
        close(client, model);
    });
}

#[test]
fn closing_that_is_refused_leaves_a_handle() {
    on_machine("closing_that_is_refused_leaves_a_handle", &[], |machine| {
        let fake = lending(2);
        let client = connect(&fake);
        let (_, mut model) = open(client, &options(mrm_tier_e::Device, None));
        let place = tensor(model, 0).device_ptr;
        machine.inject("cuStreamIsCapturing:906:1+");
        // SAFETY: an open model that nobody else uses, and no streams.
        let number = unsafe { mrm_model_close_on(&raw mut model, null(), 0) };
        assert_eq!(number, mrm_error_e::CloseRefused as c_int);
        assert!(message().contains("captured"), "{}", message());
        assert_eq!(tensor(model, 0).device_ptr, place);
        machine.inject("");
        // SAFETY: as above.
        assert_eq!(unsafe { mrm_model_close_on(&raw mut model, null(), 0) }, 0);
        assert!(model.is_null());
        fake.seen.wait_closed(1);
        let mut left = 1;
        // SAFETY: a place for the count; the client is open, and not used afterwards.
        unsafe {
            assert_eq!(mrm_release_deferred(&raw mut left), 0);
            assert_eq!(mrm_release_deferred(null_mut()), 0);
            assert_eq!(mrm_client_close(client), 0);
        }
        assert_eq!(left, 0);
    });
}
