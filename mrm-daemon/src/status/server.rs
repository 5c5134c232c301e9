//! (being written)

use super::metrics::Metrics;
use super::query::StatusHandle;
use std::os::unix::net::UnixListener;

/// What the server needs to know.
#[derive(Debug, Clone)]
pub struct ServeOptions {
    /// Uid of the daemon, which may use the verbs, as root may.
    pub daemon_uid: u32,
    /// Group whose members may use the verbs too.
    pub group_gid: Option<u32>,
    /// Wait of a `warm` that does not say.
    pub warm_wait_ms_default: u64,
    /// Bounds.
    pub limits: Limits,
}

/// Bounds of the server.
#[derive(Debug, Clone)]
pub struct Limits {}

/// A running server. Dropping it stops it.
#[derive(Debug)]
pub struct StatusServer {}

impl StatusServer {
    /// Stops accepting, ends long polls, lets running requests end for at most `grace_ms`, and
    /// joins the thread.
    pub fn shutdown(self, grace_ms: u64) {
        _ = grace_ms;
    }
}

/// Why the server could not start.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// No thread or runtime.
    #[error("cannot start the status server: {0}; raise the limits on threads and descriptors")]
    Start(#[from] std::io::Error),
}

/// Serves HTTP on `listener`, on a thread of its own, until shut down.
///
/// # Errors
/// When the thread or its runtime cannot be made.
pub fn serve(
    listener: UnixListener,
    handle: StatusHandle,
    metrics: Metrics,
    options: ServeOptions,
) -> Result<StatusServer, ServeError> {
    _ = (listener, handle, metrics, options);
    Ok(StatusServer {})
}
