//! Raw pointers of the interface become references here, and nowhere else.
//!
//! Every function checks for NULL. What it cannot check (that a pointer leads to what its type
//! says, for as long as its text says) is the caller's part of the contract, which each function
//! of the header states.

use crate::error::Failure;
use crate::number::Local;
use crate::types::mrm_text_t;
use std::ffi::{CStr, OsStr, c_char};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// The text of a slice that lives as long as its owner says.
pub(crate) const fn text_of(text: &str) -> mrm_text_t {
    mrm_text_t {
        data: text.as_ptr().cast(),
        len: text.len(),
    }
}

/// What is said of a NULL argument.
pub(crate) fn null(what: &str) -> Failure {
    Failure::local(
        Local::NullArgument,
        format!("`{what}` is NULL; pass a valid pointer"),
    )
}

fn not_utf8(what: &str) -> Failure {
    Failure::local(
        Local::BadArgument,
        format!("`{what}` is not UTF-8; pass UTF-8 text"),
    )
}

/// No struct of the interface will ever be larger; what says so was not initialised.
const SIZED_BYTES_MAX: usize = 4096;

/// A borrowed handle or struct.
///
/// # Safety
/// A `pointer` that is not NULL leads to a live `T` that nobody changes during `'a`.
pub(crate) unsafe fn borrow<'a, T>(pointer: *const T, what: &str) -> Result<&'a T, Failure> {
    // SAFETY: not NULL is checked by as_ref, the rest is this function's own contract.
    unsafe { pointer.as_ref() }.ok_or_else(|| null(what))
}

/// Text that NUL ends.
///
/// # Safety
/// A `pointer` that is not NULL leads to NUL-terminated bytes that nobody changes during `'a`.
pub(crate) unsafe fn text<'a>(pointer: *const c_char, what: &str) -> Result<&'a str, Failure> {
    if pointer.is_null() {
        return Err(null(what));
    }
    // SAFETY: not NULL, and terminated by this function's contract.
    unsafe { CStr::from_ptr(pointer) }
        .to_str()
        .map_err(|_| not_utf8(what))
}

/// Text that NUL ends, or nothing.
///
/// # Safety
/// As [`text`].
pub(crate) unsafe fn optional_text<'a>(
    pointer: *const c_char,
    what: &str,
) -> Result<Option<&'a str>, Failure> {
    if pointer.is_null() {
        return Ok(None);
    }
    // SAFETY: the caller's contract is the one of `text`.
    unsafe { text(pointer, what) }.map(Some)
}

/// A path: any bytes that NUL ends.
///
/// # Safety
/// As [`text`].
pub(crate) unsafe fn path<'a>(pointer: *const c_char, what: &str) -> Result<&'a Path, Failure> {
    // SAFETY: the caller's contract is the one of `optional_path`.
    unsafe { optional_path(pointer) }.ok_or_else(|| null(what))
}

/// A path, or nothing.
///
/// # Safety
/// As [`text`].
pub(crate) unsafe fn optional_path<'a>(pointer: *const c_char) -> Option<&'a Path> {
    if pointer.is_null() {
        return None;
    }
    // SAFETY: not NULL, and terminated by this function's contract.
    let bytes = unsafe { CStr::from_ptr(pointer) }.to_bytes();
    Some(Path::new(OsStr::from_bytes(bytes)))
}

/// Text of a known length.
///
/// # Safety
/// A `pointer` that is not NULL leads to `len` bytes that nobody changes during `'a`.
pub(crate) unsafe fn counted_text<'a>(
    pointer: *const c_char,
    len: usize,
    what: &str,
) -> Result<&'a str, Failure> {
    if pointer.is_null() {
        return Err(null(what));
    }
    if len > isize::MAX as usize {
        return Err(Failure::local(
            Local::BadArgument,
            format!("`{what}` has the impossible length {len}; pass its length in bytes"),
        ));
    }
    // SAFETY: not NULL, `len` bytes by this function's contract and no more than isize::MAX.
    let bytes = unsafe { std::slice::from_raw_parts(pointer.cast::<u8>(), len) };
    std::str::from_utf8(bytes).map_err(|_| not_utf8(what))
}

/// Makes a handle of a value: the caller of this library owns it from now on.
pub(crate) fn give<T>(value: T) -> *mut T {
    Box::into_raw(Box::new(value))
}

/// Takes a handle back.
///
/// # Safety
/// A `handle` that is not NULL came from [`give`], and is not used by anybody any more.
pub(crate) unsafe fn take<T>(handle: *mut T, what: &str) -> Result<Box<T>, Failure> {
    if handle.is_null() {
        return Err(null(what));
    }
    // SAFETY: not NULL, and a box of our own by this function's contract.
    Ok(unsafe { Box::from_raw(handle) })
}

/// Copies `values` to where the caller wants them.
///
/// # Safety
/// A `pointer` that is not NULL has room for as many, outside this library's memory.
pub(crate) unsafe fn out_slice<T: Copy>(
    pointer: *mut T,
    values: &[T],
    what: &str,
) -> Result<(), Failure> {
    if pointer.is_null() {
        return Err(null(what));
    }
    // SAFETY: not NULL, with room and apart from `values` by this function's contract.
    unsafe { std::ptr::copy_nonoverlapping(values.as_ptr(), pointer, values.len()) };
    Ok(())
}

/// Where a result goes. Existing bytes are overwritten, never read or dropped.
pub(crate) struct Out<T>(*mut T);

impl<T: Copy> Out<T> {
    /// Checks the pointer.
    ///
    /// # Safety
    /// A `pointer` that is not NULL may be written as a `T` until the end of the call.
    pub(crate) unsafe fn new(pointer: *mut T, what: &str) -> Result<Self, Failure> {
        if pointer.is_null() {
            Err(null(what))
        } else {
            Ok(Self(pointer))
        }
    }

    /// Writes the result.
    pub(crate) fn set(&self, value: T) {
        // SAFETY: `new` has checked for NULL, and its contract says that it may be written. A C
        // caller may pass memory that is not aligned for `T` only by breaking that contract.
        unsafe { self.0.write(value) }
    }
}

impl<T> Out<*mut T> {
    /// As [`new`](Out::new), for a handle: it is NULL until the call succeeds.
    ///
    /// # Safety
    /// As [`new`](Out::new).
    pub(crate) unsafe fn handle(pointer: *mut *mut T, what: &str) -> Result<Self, Failure> {
        // SAFETY: the same contract.
        let out = unsafe { Self::new(pointer, what) }?;
        out.set(std::ptr::null_mut());
        Ok(out)
    }
}

/// A struct whose first member is its size, as an older or a newer program knows it.
///
/// # Safety
/// `T` is `repr(C)` without padding, valid for any bytes that a program may put there, and begins
/// with a `usize`. A `pointer` that is not NULL leads to such a member, and to as many
/// initialised bytes as it says.
pub(crate) unsafe fn read_sized<T: Copy>(
    pointer: *const T,
    least_bytes: usize,
    mut value: T,
    what: &str,
) -> Result<T, Failure> {
    // SAFETY: the size comes first, by this function's contract.
    let size = unsafe { sized(pointer, least_bytes, what) }?;
    let known = size.min(size_of::<T>());
    // SAFETY: the program has `size` bytes, by this function's contract.
    let given = unsafe { std::slice::from_raw_parts(pointer.cast::<u8>(), size) };
    if given[known..].iter().any(|&byte| byte != 0) {
        return Err(Failure::local(
            Local::BadArgument,
            format!("`{what}` sets a member that this libmrm does not know; upgrade libmrm"),
        ));
    }
    let into = (&raw mut value).cast::<u8>();
    // SAFETY: `known` bytes are there on both sides; `value` is our own, so they do not overlap.
    unsafe { std::ptr::copy_nonoverlapping(given.as_ptr(), into, known) };
    Ok(value)
}

/// Fills a struct whose first member is its size; a program that knows fewer members gets fewer.
///
/// # Safety
/// `T` is `repr(C)` and begins with a `usize`. A `pointer` that is not NULL leads to such a member,
/// and to as many bytes as it says, which may be written.
pub(crate) unsafe fn write_sized<T: Copy>(
    pointer: *mut T,
    least_bytes: usize,
    value: T,
    what: &str,
) -> Result<(), Failure> {
    const SIZE_BYTES: usize = size_of::<usize>();
    // SAFETY: the size comes first, by this function's contract.
    let size = unsafe { sized(pointer, least_bytes, what) }?;
    let copied = size.min(size_of::<T>()) - SIZE_BYTES;
    let from = (&raw const value).cast::<u8>();
    // SAFETY: `size` is at least SIZE_BYTES and at most what each side has, and `value` is our
    // own. The size member itself stays as the program set it.
    unsafe {
        let (from, into) = (from.add(SIZE_BYTES), pointer.cast::<u8>().add(SIZE_BYTES));
        std::ptr::copy_nonoverlapping(from, into, copied);
    }
    Ok(())
}

/// The size member, checked.
///
/// # Safety
/// A `pointer` that is not NULL leads to a readable `usize`.
unsafe fn sized<T>(pointer: *const T, least_bytes: usize, what: &str) -> Result<usize, Failure> {
    if pointer.is_null() {
        return Err(null(what));
    }
    // SAFETY: not NULL, and readable by this function's contract.
    let size = unsafe { pointer.cast::<usize>().read_unaligned() };
    if size < least_bytes.max(size_of::<usize>()) || size > SIZED_BYTES_MAX {
        return Err(Failure::local(
            Local::BadArgument,
            format!("`{what}->size` is {size}; start from the _INIT macro, which sets it"),
        ));
    }
    Ok(size)
}
