//! Pointer arguments. They have the layout of plain pointers; only a caller across the C
//! interface makes them, and it vouches for them. One of the unsafe files.

use std::ffi::{CStr, c_char};

use crate::code::INVALID_VALUE;

/// A place for a result: null, or valid for one write of `T`.
#[repr(transparent)]
#[derive(Debug)]
pub struct Out<T>(*mut T);

impl<T> Copy for Out<T> {}

impl<T> Clone for Out<T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Out<T> {
    /// An argument for a direct call from Rust.
    ///
    /// # Safety
    /// `place` is null, or valid for a write of `T` until the call returns.
    pub const unsafe fn new(place: *mut T) -> Self {
        Self(place)
    }

    pub(crate) fn check(self) -> Result<Self, u32> {
        if self.0.is_null() {
            Err(INVALID_VALUE)
        } else {
            Ok(self)
        }
    }

    pub(crate) fn set(self, value: T) -> Result<(), u32> {
        self.check()?;
        // SAFETY: not null, so valid for a write of `T` by the contract of this type; unaligned,
        // because a caller in C may have packed it.
        unsafe { self.0.write_unaligned(value) };
        Ok(())
    }

    /// Writes where the caller wants the result; null says that it does not.
    pub(crate) fn set_if_wanted(self, value: T) {
        if !self.0.is_null() {
            let _checked = self.set(value);
        }
    }

    /// The same place, for a result of another type.
    pub(crate) const fn cast<U>(self) -> Out<U> {
        Out(self.0.cast())
    }
}

impl Out<c_char> {
    /// Writes a C string into a buffer of `len` bytes, cut to fit.
    pub(crate) fn set_text(self, text: &str, len: i32) -> Result<(), u32> {
        self.check()?;
        let len = usize::try_from(len).map_err(|_| INVALID_VALUE)?;
        if len == 0 {
            return Err(INVALID_VALUE);
        }
        let kept = text.len().min(len - 1);
        // SAFETY: the buffer holds `len` bytes by the contract of the call that took it, and
        // `kept + 1` is at most that.
        unsafe {
            self.0.copy_from_nonoverlapping(text.as_ptr().cast(), kept);
            self.0.add(kept).write(0);
        }
        Ok(())
    }
}

/// An input that the caller points at: null, or `count` values that can be read.
#[repr(transparent)]
#[derive(Clone, Copy, Debug)]
pub struct In<T>(*const T);

impl<T: Copy> In<T> {
    /// An argument for a direct call from Rust.
    ///
    /// # Safety
    /// `place` is null, or valid for reads of as many `T` as the call is told, until it returns.
    pub const unsafe fn new(place: *const T) -> Self {
        Self(place)
    }

    pub(crate) fn get(self) -> Result<T, u32> {
        self.get_at(0)
    }

    /// The value at `index`, which must be below the count that the caller gave.
    pub(crate) fn get_at(self, index: usize) -> Result<T, u32> {
        if self.0.is_null() {
            return Err(INVALID_VALUE);
        }
        // SAFETY: not null, so valid for reads up to the caller's count by the contract of this
        // type; unaligned, because a caller in C may have packed it.
        Ok(unsafe { self.0.add(index).read_unaligned() })
    }
}

impl In<c_char> {
    pub(crate) fn text(self) -> Result<String, u32> {
        if self.0.is_null() {
            return Err(INVALID_VALUE);
        }
        // SAFETY: the calls that take a name take a C string.
        let text = unsafe { CStr::from_ptr(self.0) };
        Ok(text.to_string_lossy().into_owned())
    }
}
