//! The last error of each thread.
//!
//! ```
//! use mrm::{error::mrm_last_error, model::mrm_model_close, number::mrm_error_e};
//! // SAFETY: NULL is an error like any other, and `error` may be written.
//! let error = unsafe {
//!     let mut error = std::mem::zeroed::<mrm::types::mrm_error_t>();
//!     assert_ne!(mrm_model_close(std::ptr::null_mut()), 0);
//!     assert_eq!(mrm_last_error(&raw mut error), 0);
//!     error
//! };
//! assert_eq!(error.number, mrm_error_e::NullArgument as u32);
//! ```

use crate::guard;
use crate::number::Local;
use crate::pointer::Out;
use crate::types::mrm_error_t;
use mrm_client::Fault;
use std::cell::RefCell;
use std::ffi::{CString, c_int};

/// What a function of the interface says when it fails.
#[derive(Debug, Clone)]
pub(crate) struct Failure {
    number: u32,
    name: &'static str,
    retryable: bool,
    took_effect: bool,
    message: String,
}

impl Failure {
    /// A failure of this library, which changed nothing in the daemon.
    pub(crate) fn local(code: Local, message: impl Into<String>) -> Self {
        Self {
            number: code.number(),
            name: code.name(),
            retryable: code.retryable(),
            took_effect: false,
            message: message.into(),
        }
    }

    /// An error of the client library, which passes on those of the daemon.
    pub(crate) fn of(error: &impl Fault) -> Self {
        Self {
            number: error.number().into(),
            name: error.name(),
            retryable: error.retryable(),
            took_effect: error.took_effect(),
            message: error.to_string(),
        }
    }
}

struct Kept {
    number: u32,
    retryable: bool,
    took_effect: bool,
    name: CString,
    message: CString,
}

thread_local! {
    static LAST: RefCell<Option<Kept>> = const { RefCell::new(None) };
}

/// Keeps a failure for the calling thread and gives its number.
pub(crate) fn keep(failure: Failure) -> c_int {
    let number = failure.number;
    let kept = Kept {
        number,
        retryable: failure.retryable,
        took_effect: failure.took_effect,
        name: c_string(failure.name.to_owned()),
        message: c_string(failure.message),
    };
    // A thread that is past its own end, in the destructors of its locals, keeps no error; the
    // number still reaches the caller.
    let _ = LAST.try_with(|last| last.replace(Some(kept)));
    c_int::try_from(number).unwrap_or(c_int::MAX)
}

/// Text of a daemon or of a file name may hold NUL; C text cannot.
fn c_string(text: String) -> CString {
    CString::new(text.replace('\0', "\u{fffd}")).unwrap_or_default()
}

/// Tells what went wrong last on the calling thread. Success of later calls does not clear it: look
/// at it only after a call that failed. Returns 0, or the number of `NULL_ARGUMENT`.
///
/// Threads: any, at any time; each has its own last error.
///
/// # Safety
/// `error` may be written.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mrm_last_error(error: *mut mrm_error_t) -> c_int {
    guard::call(|| {
        // SAFETY: the caller says that `error` may be written.
        let error = unsafe { Out::new(error, "error") }?;
        error.set(
            LAST.try_with(|last| describe(last.borrow().as_ref()))
                .unwrap_or_else(|_| describe(None)),
        );
        Ok(())
    })
}

fn describe(kept: Option<&Kept>) -> mrm_error_t {
    kept.map_or(
        mrm_error_t {
            number: 0,
            retryable: false,
            took_effect: false,
            name: c"none".as_ptr(),
            message: c"".as_ptr(),
        },
        |kept| mrm_error_t {
            number: kept.number,
            retryable: kept.retryable,
            took_effect: kept.took_effect,
            name: kept.name.as_ptr(),
            message: kept.message.as_ptr(),
        },
    )
}
