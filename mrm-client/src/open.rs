//! How to open: options, and local files.
//!
//! ```
//! use std::time::Duration;
//! let seen = std::cell::Cell::new(0);
//! let options = mrm_client::OpenOptions::new()
//!     .wait(Duration::from_secs(5))
//!     .on_progress(|p| seen.set(p.loaded_bytes));
//! ```

use crate::connection::Connection;
use crate::error::RequestError;
use crate::files::LocalFiles;
use crate::state::checked;
use mrm_proto::limits::WAIT_MS_MAX;
use mrm_proto::reply::Progress;
use mrm_proto::request::{Open, OpenFiles, Request};
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

/// A request for a grant, but for what the daemon bounds.
#[derive(Debug)]
pub(crate) struct GrantRequest {
    request: Request,
    /// How long the daemon is to wait.
    pub(crate) wait: Duration,
}

impl GrantRequest {
    pub(crate) fn by_name(name: &str, how: &OpenOptions<'_>) -> Result<Self, RequestError> {
        let progress = how.progress.is_some();
        let open = Open {
            progress,
            ..Open::by_name(checked(name)?)
        };
        Ok(Self {
            request: Request::Open(open),
            wait: bounded(how.wait),
        })
    }

    pub(crate) fn of_files(files: &LocalFiles, how: &OpenOptions<'_>) -> Self {
        let request = Request::OpenFiles(OpenFiles {
            label: files.label.clone(),
            files: files.names.clone(),
            wait_ms: 0,
            progress: how.progress.is_some(),
            devices: None,
        });
        Self {
            request,
            wait: bounded(how.wait),
        }
    }

    /// What to call the model.
    pub(crate) fn name(&self) -> &str {
        match &self.request {
            Request::Open(open) => open.model.as_str(),
            Request::OpenFiles(open) => open.label.as_str(),
            Request::Close(_) | Request::Cancel(_) | Request::List(_) | Request::Stat(_) => "",
        }
    }

    /// The request, with a wait that this daemon grants.
    pub(crate) fn to(&self, connection: &Connection) -> Request {
        let max = connection.hello().limits.wait_ms_max;
        // 0 would ask for the daemon's default.
        let wait = u64::try_from(self.wait.as_millis())
            .unwrap_or(u64::MAX)
            .min(max)
            .max(1);
        let mut request = self.request.clone();
        match &mut request {
            Request::Open(Open { wait_ms, .. }) | Request::OpenFiles(OpenFiles { wait_ms, .. }) => {
                *wait_ms = wait
            }
            Request::Close(_) | Request::Cancel(_) | Request::List(_) | Request::Stat(_) => {}
        }
        request
    }
}

fn bounded(wait: Option<Duration>) -> Duration {
    wait.unwrap_or(WAIT_DEFAULT)
        .min(Duration::from_millis(WAIT_MS_MAX))
}
