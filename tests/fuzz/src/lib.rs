//! Fuzz targets: what reads bytes of others, fed with any bytes at all.
//!
//! A [`Target`] is a plain function. `cargo test` runs it over the committed corpus; the driver
//! behind `scripts/fuzz` runs it over what it makes up. A target panics when a property does not
//! hold; its [`Verdict`] says whether the input got past the parser, so that a test can tell a
//! corpus that exercises something from one that does not.
//!
//! ```
//! use mrm_fuzz::{Target, Verdict};
//! let table = Target::find("table").expect("there is one of this name");
//! assert_eq!((table.run)(b"no tensor table"), Verdict::Refused);
//! ```

use std::path::{Path, PathBuf};

pub mod seeds;
pub mod target;

/// What became of an input.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// The code under test took it, and every property of what it took holds.
    Accepted,
    /// The code under test refused it in good order.
    Refused,
}

/// One fuzz target.
#[derive(Debug, Clone, Copy)]
pub struct Target {
    /// How `scripts/fuzz` and the corpus' directory call it.
    pub name: &'static str,
    /// What it looks at.
    pub about: &'static str,
    /// Longest input that is worth trying, in bytes.
    pub input_bytes_max: usize,
    /// Runs it once. Panics when a property does not hold.
    pub run: fn(&[u8]) -> Verdict,
}

const fn target(
    name: &'static str,
    about: &'static str,
    input_bytes_max: usize,
    run: fn(&[u8]) -> Verdict,
) -> Target {
    Target {
        name,
        about,
        input_bytes_max,
        run,
    }
}

/// Every target: a function in [`target`], a row here, and seeds in [`seeds`].
pub const TARGETS: &[Target] = &[
    target(
        "client_reply",
        "a client of a daemon that answers anything: replies, descriptors, tensor tables",
        4096,
        target::client::run,
    ),
    target(
        "config",
        "the configuration file and its environment",
        2048,
        target::config::run,
    ),
    target(
        "frame",
        "the daemon's reader of frames and descriptors, in pieces of any size",
        4096,
        target::frame::run,
    ),
    target(
        "hello",
        "the first message each way",
        1024,
        target::message::hello,
    ),
    target(
        "keeper",
        "what the keeper's entries are said to be, and their keys",
        2048,
        target::keeper::run,
    ),
    target(
        "reply",
        "every message of the daemon",
        2048,
        target::message::reply,
    ),
    target(
        "request",
        "every message of a client",
        2048,
        target::message::request,
    ),
    target(
        "safetensors_header",
        "the header of a safetensors file",
        2048,
        target::safetensors::header,
    ),
    target(
        "safetensors_index",
        "the index of a sharded model",
        2048,
        target::safetensors::index,
    ),
    target(
        "table",
        "the tensor table, and the layouts computed from it",
        4096,
        target::table::run,
    ),
];

impl Target {
    /// The target called `name`.
    #[must_use]
    pub fn find(name: &str) -> Option<&'static Self> {
        TARGETS.iter().find(|target| target.name == name)
    }

    /// Where its committed corpus is.
    #[must_use]
    pub fn corpus(&self) -> PathBuf {
        home().join("corpus").join(self.name)
    }

    /// Where inputs are that once made it fail.
    #[must_use]
    pub fn regressions(&self) -> PathBuf {
        home().join("regressions").join(self.name)
    }
}

/// The directory of this package.
#[must_use]
pub fn home() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}
