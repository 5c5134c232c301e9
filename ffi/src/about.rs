//! Which library this is.
//!
//! ```
//! assert_eq!(mrm::about::mrm_abi_version(), mrm::types::MRM_ABI_VERSION);
//! ```

use crate::types::MRM_ABI_VERSION;
use std::ffi::c_char;

const VERSION: &str = concat!(env!("CARGO_PKG_VERSION"), "\0");

/// The release of this library, NUL-terminated. Lives forever.
///
/// Threads: any, at any time.
#[unsafe(no_mangle)]
pub extern "C" fn mrm_version() -> *const c_char {
    VERSION.as_ptr().cast()
}

/// The version of the interface that this library has; compare it with `MRM_ABI_VERSION` when the
/// library was loaded at run time.
///
/// Threads: any, at any time.
#[unsafe(no_mangle)]
pub extern "C" fn mrm_abi_version() -> u32 {
    MRM_ABI_VERSION
}
