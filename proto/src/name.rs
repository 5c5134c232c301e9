//! Names of models and of the files inside them.
//!
//! ```
//! use mrm_proto::name::ModelName;
//! assert!(ModelName::new("org/bert-base").is_ok());
//! assert!(ModelName::new("../etc/passwd").is_err());
//! ```

use crate::limits::{FILE_NAME_BYTES_MAX, MODEL_NAME_BYTES_MAX};
use minicbor::{Decode, Encode, Encoder, decode, encode};
use std::borrow::Borrow;
use std::fmt;
use std::sync::Arc;

/// A model's name: a relative, normalised, `/`-separated path of printable characters. Its clones
/// share the text.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ModelName(Arc<str>);

/// The name of one file of a model, without any directory.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FileName(String);

/// Why a name was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// Zero bytes.
    #[error("a name must not be empty")]
    Empty,
    /// Over the bound.
    #[error("a name may have at most {max_bytes} bytes, this one has {actual_bytes}")]
    TooLong {
        /// The bound.
        max_bytes: usize,
        /// What was given.
        actual_bytes: usize,
    },
    /// NUL, newline or another control character.
    #[error("a name must not contain control characters (found U+{0:04X})")]
    Control(u32),
    /// An empty, `.` or `..` component, or a leading or trailing `/`.
    #[error("a name must be a plain relative path: no empty, `.` or `..` component")]
    NotPlain,
    /// A `/` where only a file name may stand.
    #[error("a file name must not contain `/`")]
    Slash,
}

impl ModelName {
    /// Checks and wraps `name`.
    ///
    /// # Errors
    /// Says which rule `name` breaks.
    pub fn new(name: impl Into<Arc<str>>) -> Result<Self, NameError> {
        let name = name.into();
        check_text(&name, MODEL_NAME_BYTES_MAX)?;
        if name.split('/').any(|part| matches!(part, "" | "." | "..")) {
            return Err(NameError::NotPlain);
        }
        Ok(Self(name))
    }

    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The name as text that is not copied.
    #[must_use]
    pub fn to_shared(&self) -> Arc<str> {
        Arc::clone(&self.0)
    }
}

impl FileName {
    /// Checks and wraps `name`.
    ///
    /// # Errors
    /// Says which rule `name` breaks.
    pub fn new(name: impl Into<String>) -> Result<Self, NameError> {
        let name = name.into();
        check_text(&name, FILE_NAME_BYTES_MAX)?;
        if name.contains('/') {
            return Err(NameError::Slash);
        }
        if matches!(name.as_str(), "." | "..") {
            return Err(NameError::NotPlain);
        }
        Ok(Self(name))
    }

    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

fn check_text(name: &str, max_bytes: usize) -> Result<(), NameError> {
    if name.is_empty() {
        return Err(NameError::Empty);
    }
    if name.len() > max_bytes {
        return Err(NameError::TooLong {
            max_bytes,
            actual_bytes: name.len(),
        });
    }
    match name.chars().find(|c| c.is_control()) {
        Some(c) => Err(NameError::Control(u32::from(c))),
        None => Ok(()),
    }
}

macro_rules! wire_name {
    ($name:ident) => {
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
        impl AsRef<str> for $name {
            fn as_ref(&self) -> &str {
                &self.0
            }
        }
        impl<C> Encode<C> for $name {
            fn encode<W: encode::Write>(
                &self,
                e: &mut Encoder<W>,
                _: &mut C,
            ) -> Result<(), encode::Error<W::Error>> {
                e.str(&self.0)?.ok()
            }
        }
        impl<'b, C> Decode<'b, C> for $name {
            fn decode(d: &mut minicbor::Decoder<'b>, _: &mut C) -> Result<Self, decode::Error> {
                let at = d.position();
                Self::new(d.str()?).map_err(|e| decode::Error::custom(e).at(at))
            }
        }
    };
}
/// Ordered and hashed as its text, so that maps can be asked for any text.
impl Borrow<str> for ModelName {
    fn borrow(&self) -> &str {
        &self.0
    }
}

wire_name!(ModelName);
wire_name!(FileName);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_relative_paths_are_names() {
        for good in [
            "a",
            "a/b",
            "a b",
            "models--x--y/snapshots/1",
            "modèle",
            "a..b",
            ".hidden",
        ] {
            assert!(ModelName::new(good).is_ok(), "{good}");
        }
    }

    #[test]
    fn hostile_names_are_refused_with_their_rule() {
        let long = "x".repeat(10_000);
        let cases: [(&str, NameError); 9] = [
            ("", NameError::Empty),
            ("..", NameError::NotPlain),
            ("a/../b", NameError::NotPlain),
            ("/etc/passwd", NameError::NotPlain),
            ("a//b", NameError::NotPlain),
            ("a/", NameError::NotPlain),
            ("a\0b", NameError::Control(0)),
            ("a\nb", NameError::Control(10)),
            (
                &long,
                NameError::TooLong {
                    max_bytes: 1024,
                    actual_bytes: 10_000,
                },
            ),
        ];
        for (name, why) in cases {
            assert_eq!(ModelName::new(name), Err(why), "{name:?}");
        }
        assert_eq!(FileName::new("a/b"), Err(NameError::Slash));
        assert_eq!(FileName::new(".."), Err(NameError::NotPlain));
    }
}
