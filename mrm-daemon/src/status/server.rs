//! The listener's thread: accepts, checks who it is, speaks HTTP/1.1, stops.
//!
//! ```
//! use mrm_daemon::status::{metrics::Metrics, query, server::{ServeOptions, serve}};
//! use std::os::unix::net::UnixListener;
//! let dir = tempfile::tempdir()?;
//! let (handle, inbox) = query::channel();
//! let listener = UnixListener::bind(dir.path().join("status.sock"))?;
//! let server = serve(listener, handle, Metrics::new()?, ServeOptions::for_daemon_uid(990))?;
//! drop(inbox); // nobody will answer: requests in flight end at once
//! server.shutdown(1_000);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

use super::access::{Access, Peer, Verdict};
use super::fault::{Fault, HttpCode};
use super::metrics::Metrics;
use super::query::StatusHandle;
use super::service::Service;
use super::slots::Slots;
use super::stall::Stalling;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use std::convert::Infallible;
use std::io;
use std::os::unix::net::UnixListener;
use std::pin::pin;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;
use tokio::net::UnixStream;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

/// Threads for lookups of groups: they may hang with the name service.
const LOOKUP_THREADS_MAX: usize = 2;
/// Pause after a failed accept: without descriptors, trying at once would only burn the processor.
const ACCEPT_PAUSE_MS: u64 = 100;
/// Most headers of one request.
const HEADERS_MAX: usize = 64;

/// What the server needs to know.
#[derive(Debug, Clone)]
pub struct ServeOptions {
    /// Who may use the verbs.
    pub access: Access,
    /// How long a `warm` that does not say waits.
    pub warm_wait_ms_default: u64,
    /// Bounds.
    pub limits: Limits,
}

impl ServeOptions {
    /// The verbs for root and this user only, and the usual bounds.
    #[must_use]
    pub fn for_daemon_uid(uid: u32) -> Self {
        Self {
            access: Access::new(uid, None),
            warm_wait_ms_default: 30_000,
            limits: Limits::default(),
        }
    }
}

/// Bounds of the server.
#[derive(Debug, Clone)]
pub struct Limits {
    /// Connections at a time.
    pub connections_max: usize,
    /// Of these, kept for root and the daemon's own user.
    pub connections_reserved: usize,
    /// Connections of any other user at a time.
    pub connections_per_uid_max: usize,
    /// Request line and headers. At least 8192.
    pub header_bytes_max: usize,
    /// From the end of an answer (or the accept) to the end of the next request's headers: bounds
    /// slow senders and idle connections alike. Also for a request's body.
    pub header_read_timeout_ms: u64,
    /// Body of a request.
    pub body_bytes_max: u64,
    /// How long a peer may leave an answer unread.
    pub write_stall_ms: u64,
    /// How long the decider may take, over what a verb waits for.
    pub answer_timeout_ms: u64,
    /// How long an `evict` that does not say waits for the memory.
    pub evict_wait_ms: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections_max: 64,
            connections_reserved: 16,
            connections_per_uid_max: 16,
            header_bytes_max: 16 * 1024,
            header_read_timeout_ms: 5_000,
            body_bytes_max: 64 * 1024,
            write_stall_ms: 10_000,
            answer_timeout_ms: 5_000,
            evict_wait_ms: 30_000,
        }
    }
}

/// Why the server could not start.
#[derive(Debug, thiserror::Error)]
#[error("cannot start the status server: {0}; raise the limits on threads and descriptors")]
pub struct ServeError(#[from] io::Error);

/// A running server. Dropping it stops it at once.
#[derive(Debug)]
pub struct StatusServer {
    stop: watch::Sender<Option<u64>>,
    thread: Option<JoinHandle<()>>,
}

/// Serves HTTP on `listener`, on a thread of its own, until shut down. The socket's file is the
/// caller's, to make and to remove.
///
/// # Errors
/// When the thread or its runtime cannot be made.
pub fn serve(
    listener: UnixListener,
    handle: StatusHandle,
    metrics: Metrics,
    options: ServeOptions,
) -> Result<StatusServer, ServeError> {
    listener.set_nonblocking(true)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_io()
        .enable_time()
        .max_blocking_threads(LOOKUP_THREADS_MAX)
        .thread_name("mrm-groups")
        .build()?;
    let listener = {
        let _inside = runtime.enter();
        tokio::net::UnixListener::from_std(listener)?
    };
    let (stop, stopped) = watch::channel(None);
    let service = Arc::new(Service {
        handle,
        metrics,
        access: options.access,
        warm_wait_ms_default: options.warm_wait_ms_default,
        limits: options.limits,
        stop: stopped,
    });
    let thread = std::thread::Builder::new()
        .name("mrm-status".to_owned())
        .spawn(move || {
            runtime.block_on(accept_all(listener, service));
            // A lookup that hangs must not keep the daemon from exiting.
            runtime.shutdown_background();
        })?;
    Ok(StatusServer {
        stop,
        thread: Some(thread),
    })
}

impl StatusServer {
    /// Stops accepting, ends long polls, lets running requests end for at most `grace_ms`, and
    /// joins the thread. Requests that wait for the decider end when its inbox is dropped.
    pub fn shutdown(mut self, grace_ms: u64) {
        self.end(grace_ms);
    }

    fn end(&mut self, grace_ms: u64) {
        self.stop.send_replace(Some(grace_ms));
        if let Some(Err(_)) = self.thread.take().map(JoinHandle::join) {
            tracing::error!("the status server's thread panicked");
        }
    }
}

impl Drop for StatusServer {
    fn drop(&mut self) {
        if self.thread.is_some() {
            self.end(0);
        }
    }
}

async fn accept_all(listener: tokio::net::UnixListener, service: Arc<Service>) {
    let slots = Slots::new(&service.limits);
    let mut stop = service.stop.clone();
    let mut connections = JoinSet::new();
    let mut failing = false;
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => {
                    failing = false;
                    admit(stream, &service, &slots, &mut connections);
                }
                Err(error) => {
                    if !failing {
                        tracing::warn!(%error, "cannot accept on the status socket; trying on");
                    }
                    failing = true;
                    sleep(Duration::from_millis(ACCEPT_PAUSE_MS)).await;
                }
            },
            Some(ended) = connections.join_next(), if !connections.is_empty() => report(&ended),
            () = stopped(&mut stop) => break,
        }
    }
    drop(listener);
    let grace_ms = stop.borrow().unwrap_or(0);
    let ending = async {
        while let Some(ended) = connections.join_next().await {
            report(&ended);
        }
    };
    if timeout(Duration::from_millis(grace_ms), ending)
        .await
        .is_err()
    {
        connections.shutdown().await;
    }
}

/// Ends when the server is to stop.
pub(super) async fn stopped(stop: &mut watch::Receiver<Option<u64>>) {
    // An error means that the sender is gone, which is a stop too.
    _ = stop.wait_for(Option::is_some).await;
}

fn report(ended: &Result<(), tokio::task::JoinError>) {
    if let Err(error) = ended
        && error.is_panic()
    {
        tracing::error!(%error, "a request to the status socket panicked");
    }
}

fn admit(stream: UnixStream, service: &Arc<Service>, slots: &Slots, connections: &mut JoinSet<()>) {
    let peer = match stream.peer_cred() {
        Ok(cred) => Peer {
            uid: cred.uid(),
            gid: cred.gid(),
        },
        Err(error) => {
            tracing::warn!(%error, "a status connection without credentials is refused");
            return;
        }
    };
    let privileged = service.access.check(peer) == Verdict::Allowed;
    match slots.take(peer.uid, privileged) {
        None => turn_away(&stream),
        Some(slot) => {
            let service = Arc::clone(service);
            connections.spawn(async move {
                converse(stream, peer, service).await;
                drop(slot);
            });
        }
    }
}

/// One try to say why: a peer over the bound is worth no wait.
fn turn_away(stream: &UnixStream) {
    let why = "too many connections to the status socket; close some, or try again";
    let fault = Fault::http(HttpCode::TooManyConnections, why);
    let body = serde_json::to_string(&fault.view).unwrap_or_default();
    let text = format!(
        "HTTP/1.1 {}\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\
         connection: close\r\n\r\n{body}",
        fault.status,
        body.len()
    );
    if let Err(error) = stream.try_write(text.as_bytes()) {
        tracing::debug!(%error, "could not tell a peer that there are too many connections");
    }
}

async fn converse(stream: UnixStream, peer: Peer, service: Arc<Service>) {
    let limits = &service.limits;
    let stall = Duration::from_millis(limits.write_stall_ms);
    let mut stop = service.stop.clone();
    let answer = |request| {
        let service = Arc::clone(&service);
        async move { Ok::<_, Infallible>(service.call(peer, request).await) }
    };
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(Duration::from_millis(limits.header_read_timeout_ms))
        .max_buf_size(limits.header_bytes_max)
        .max_headers(HEADERS_MAX)
        .serve_connection(
            TokioIo::new(Stalling::new(stream, stall)),
            service_fn(answer),
        );
    let mut connection = pin!(connection);
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = stopped(&mut stop) => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, uid = peer.uid, "a status connection ended early");
    }
}
