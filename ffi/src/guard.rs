//! The boundary: results become numbers, panics become errors, and what went wrong is kept for
//! [`mrm_last_error`](crate::error::mrm_last_error).

use crate::error::{self, Failure};
use crate::number::Local;
use std::ffi::c_int;
use std::panic::{AssertUnwindSafe, catch_unwind};

/// Runs the body of one function of the interface.
pub(crate) fn call(body: impl FnOnce() -> Result<(), Failure>) -> c_int {
    match caught(body) {
        Ok(Ok(())) => 0,
        Ok(Err(failure)) | Err(failure) => error::keep(failure),
    }
}

/// Runs `body`; a panic in it is a failure, and never leaves this library.
///
/// `AssertUnwindSafe`: what a panic could leave half changed is behind the client's own locks, and
/// those report a poisoned state as an error.
pub(crate) fn caught<T>(body: impl FnOnce() -> T) -> Result<T, Failure> {
    catch_unwind(AssertUnwindSafe(body)).map_err(|payload| {
        let reason = payload
            .downcast_ref::<&str>()
            .copied()
            .or_else(|| payload.downcast_ref::<String>().map(String::as_str))
            .unwrap_or("no reason given");
        let failure = Failure::local(
            Local::Panic,
            format!("libmrm broke one of its own rules: {reason}; please report this"),
        );
        drop_quietly(payload);
        failure
    })
}

/// The payload of a panic is an arbitrary value whose drop may panic in turn.
fn drop_quietly(payload: Box<dyn std::any::Any + Send>) {
    if let Err(second) = catch_unwind(AssertUnwindSafe(|| drop(payload))) {
        let _ = std::mem::ManuallyDrop::new(second);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::mrm_last_error;

    #[test]
    fn a_panic_becomes_an_error_with_its_reason() {
        let number = call(|| panic!("the reason"));
        assert_eq!(number, 999);
        // SAFETY: all-zero is a valid mrm_error_t, and the place may be written.
        let message = unsafe {
            let mut error = std::mem::zeroed::<crate::types::mrm_error_t>();
            assert_eq!(mrm_last_error(&raw mut error), 0);
            std::ffi::CStr::from_ptr(error.message).to_str()
        };
        assert!(message.is_ok_and(|text| text.contains("the reason")));
    }

    #[test]
    fn a_payload_that_panics_when_dropped_stays_inside() {
        struct Bomb;
        impl Drop for Bomb {
            fn drop(&mut self) {
                panic!("again");
            }
        }
        assert_eq!(call(|| std::panic::panic_any(Bomb)), 999);
    }
}
