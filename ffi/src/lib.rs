//! `libmrm`: the C interface of the mrm client.
//!
//! Programs see [`include/mrm.h`](../include/mrm.h), which cbindgen makes from this crate; a test
//! keeps the two in step. This crate has no logic of its own: it turns pointers into references
//! (`pointer.rs`), panics and errors into numbers (`guard.rs`, [`error`]), and calls `mrm-client`.
//!
//! Unsafe code is in `pointer.rs`, and at the entry of each function in [`client`], [`copy`], [`model`],
//! [`ready`], [`device`], [`dlpack`] and [`error`], where the caller's promises are passed on to it.
//!
//! ```
//! use std::ffi::CStr;
//! // SAFETY: `mrm_version` gives a NUL-terminated text that lives forever.
//! let version = unsafe { CStr::from_ptr(mrm::about::mrm_version()) };
//! assert_eq!(version.to_str(), Ok(env!("CARGO_PKG_VERSION")));
//! ```
#![allow(non_camel_case_types, reason = "the names are those of the C header")]

pub mod about;
pub mod client;
pub mod copy;
pub mod device;
pub mod dlpack;
pub mod dtype;
pub mod error;
mod guard;
mod index;
pub mod model;
pub mod number;
mod pointer;
pub mod ready;
pub mod types;
