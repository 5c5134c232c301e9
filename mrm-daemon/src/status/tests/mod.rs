//! The server over a real socket, with a decider that is made up.

mod fake;
mod hostile;
mod http;
mod lint;
mod polls;
mod routes;

use super::{Access, Limits, Metrics, ServeOptions, StatusServer, serve};
use fake::Fake;
use http::Peer;
use nix::unistd::getuid;
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use tempfile::TempDir;

/// A server and its decider. Both end when it is dropped, the server first.
struct Rig {
    server: Option<StatusServer>,
    fake: Fake,
    metrics: Metrics,
    dir: TempDir,
}

impl Rig {
    fn new() -> Self {
        Self::with(Limits::default())
    }

    /// Whoever runs the tests is taken for the daemon's own user.
    fn with(limits: Limits) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let metrics = Metrics::new().unwrap();
        let (handle, fake) = Fake::start();
        let listener = UnixListener::bind(dir.path().join("status.sock")).unwrap();
        let access = Access::new(getuid().as_raw(), None);
        let options = ServeOptions {
            access,
            warm_wait_ms_default: 30_000,
            limits,
        };
        let server = serve(listener, handle, metrics.clone(), options).unwrap();
        Self {
            server: Some(server),
            fake,
            metrics,
            dir,
        }
    }

    fn path(&self) -> PathBuf {
        self.dir.path().join("status.sock")
    }

    fn connect(&self) -> Peer {
        Peer::connect(&self.path())
    }

    fn get(&self, target: &str) -> http::Answer {
        self.connect().ask("GET", target)
    }

    fn post(&self, target: &str) -> http::Answer {
        self.connect().ask("POST", target)
    }
}
