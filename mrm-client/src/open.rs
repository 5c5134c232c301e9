//! How to open: options, and local files.
//!
//! ```
//! use std::time::Duration;
//! let seen = std::cell::Cell::new(0);
//! let options = mrm_client::OpenOptions::new()
//!     .wait(Duration::from_secs(5))
//!     .on_progress(|p| seen.set(p.loaded_bytes));
//! ```

use mrm_proto::reply::Progress;
use std::fmt;
use std::time::Duration;

/// How long an open waits unless told otherwise.
pub const WAIT_DEFAULT: Duration = Duration::from_secs(30);

/// How to open a model.
#[derive(Default)]
pub struct OpenOptions<'a> {
    pub(crate) wait: Option<Duration>,
    pub(crate) progress: Option<Box<dyn Fn(Progress) + 'a>>,
}

impl<'a> OpenOptions<'a> {
    /// A wait of [`WAIT_DEFAULT`] and no progress.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// How long to wait for room and for the load. Zero asks for what is there at once.
    #[must_use]
    pub fn wait(mut self, wait: Duration) -> Self {
        self.wait = Some(wait);
        self
    }

    /// Called on the opening thread while the model loads; not called for a hit.
    #[must_use]
    pub fn on_progress(mut self, progress: impl Fn(Progress) + 'a) -> Self {
        self.progress = Some(Box::new(progress));
        self
    }
}

impl fmt::Debug for OpenOptions<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OpenOptions")
            .field("wait", &self.wait)
            .field("progress", &self.progress.is_some())
            .finish()
    }
}
