//! One request: from its route to its answer. Knows nothing of sockets.

use super::access::{Access, Peer, Verdict};
use super::fault::{Fault, HttpCode};
use super::metrics::Metrics;
use super::pieces::Pieces;
use super::query::{Query, ReplyTo, StatusHandle};
use super::route::{Route, Verb, route};
use super::server::{Limits, stopped};
use super::view::{DaemonState, Done, EventsView};
use http_body_util::BodyExt;
use hyper::body::Body;
use hyper::header::{self, HeaderValue};
use hyper::{Request, Response, StatusCode};
use mrm_proto::error::ErrorCode;
use mrm_proto::limits::WAIT_MS_MAX;
use serde::Serialize;
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until, timeout};

const JSON: HeaderValue = HeaderValue::from_static("application/json");
const BINARY: HeaderValue = HeaderValue::from_static("application/octet-stream");
const PROMETHEUS: HeaderValue =
    HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
const SERVER: HeaderValue = HeaderValue::from_static(concat!("mrmd/", env!("CARGO_PKG_VERSION")));
const NO_STORE: HeaderValue = HeaderValue::from_static("no-store");
const CLOSE: HeaderValue = HeaderValue::from_static("close");

/// What all connections share.
#[derive(Debug)]
pub(super) struct Service {
    pub(super) handle: StatusHandle,
    pub(super) metrics: Metrics,
    pub(super) access: Access,
    pub(super) warm_wait_ms_default: u64,
    pub(super) limits: Limits,
    /// `Some` once the server is to stop: ends the long polls.
    pub(super) stop: watch::Receiver<Option<u64>>,
}

/// A success: its type and content.
struct Page {
    kind: HeaderValue,
    body: Pieces,
}

impl Service {
    /// Answers one request of this peer.
    pub(super) async fn call<B>(&self, peer: Peer, request: Request<B>) -> Response<Pieces>
    where
        B: Body + Unpin,
    {
        match self.page(peer, request).await {
            Ok(page) => response(StatusCode::OK, page.kind, page.body),
            Err(fault) => refusal(&fault),
        }
    }

    async fn page<B>(&self, peer: Peer, request: Request<B>) -> Result<Page, Fault>
    where
        B: Body + Unpin,
    {
        let (head, body) = request.into_parts();
        // First of all, so that the connection is in step whatever the answer is.
        self.drain_body(body).await?;
        match route(&head.method, head.uri.path(), head.uri.query())? {
            Route::Health => {
                self.ask(|reply| Query::State { reply }).await?;
                json(&serde_json::json!({ "ok": true }))
            }
            Route::Ready => self.ready().await,
            Route::Metrics => self.scrape().await,
            Route::Status => json(&self.ask(|reply| Query::Status { reply }).await?),
            Route::Models {
                prefix,
                after,
                limit,
            } => json(
                &self
                    .ask(|reply| Query::Models {
                        prefix,
                        after,
                        limit,
                        reply,
                    })
                    .await?,
            ),
            Route::Model { name } => json(&self.ask(|reply| Query::Model { name, reply }).await?),
            Route::Policies => json(&self.ask(|reply| Query::Policies { reply }).await?),
            Route::Sessions => json(&self.ask(|reply| Query::Sessions { reply }).await?),
            Route::Events {
                since,
                limit,
                wait_ms,
            } => json(&self.events(since, limit, wait_ms).await?),
            Route::Journal => {
                self.permit(peer).await?;
                let pieces = self.ask(|reply| Query::Journal { reply }).await?;
                Ok(Page {
                    kind: BINARY,
                    body: Pieces::new(pieces),
                })
            }
            Route::Verb(verb) => {
                self.permit(peer).await?;
                self.verb(verb).await
            }
        }
    }

    async fn ask<T>(&self, query: impl FnOnce(ReplyTo<T>) -> Query) -> Result<T, Fault> {
        let answer = self.handle.ask(self.limits.answer_timeout_ms, query).await;
        answer.map_err(|error| Fault::ask(error, false))
    }

    async fn change<T: Serialize>(
        &self,
        wait_ms: u64,
        query: impl FnOnce(ReplyTo<T>) -> Query,
    ) -> Result<Page, Fault> {
        let timeout_ms = wait_ms.saturating_add(self.limits.answer_timeout_ms);
        match self.handle.ask(timeout_ms, query).await {
            Ok(body) => json(&Done::of(body)),
            Err(error) => Err(Fault::ask(error, true)),
        }
    }

    async fn verb(&self, verb: Verb) -> Result<Page, Fault> {
        match verb {
            Verb::Pin { name, on } => self.change(0, |reply| Query::Pin { name, on, reply }).await,
            Verb::Warm { name, on, wait_ms } => {
                let wait_ms = wait_ms.unwrap_or(self.warm_wait_ms_default);
                self.change(wait_ms, |reply| Query::Warm {
                    name,
                    on,
                    wait_ms,
                    reply,
                })
                .await
            }
            Verb::Evict {
                name,
                from,
                wait_ms,
            } => {
                let wait_ms = wait_ms.unwrap_or(self.limits.evict_wait_ms);
                self.change(wait_ms, |reply| Query::Evict { name, from, reply })
                    .await
            }
            Verb::Verify { name, wait_ms } => {
                let wait_ms = wait_ms.unwrap_or(WAIT_MS_MAX);
                self.change(wait_ms, |reply| Query::Verify { name, reply })
                    .await
            }
            Verb::SetPolicy { on, to } => {
                self.change(0, |reply| Query::SetPolicy { on, to, reply })
                    .await
            }
            Verb::Hint { name, in_ms } => {
                self.change(0, |reply| Query::Hint { name, in_ms, reply })
                    .await
            }
            Verb::Drain => self.change(0, |reply| Query::Drain { reply }).await,
        }
    }

    async fn ready(&self) -> Result<Page, Fault> {
        let why = match self.ask(|reply| Query::State { reply }).await? {
            DaemonState::Serving => return json(&serde_json::json!({ "ready": true })),
            DaemonState::Starting => "the daemon is starting; try again",
            DaemonState::Draining => "the daemon is draining: it gives no new leases",
        };
        Err(Fault::http(HttpCode::NotReady, why))
    }

    async fn scrape(&self) -> Result<Page, Fault> {
        let status = self.ask(|reply| Query::Status { reply }).await?;
        // No await from here on: two scrapes cannot mix their gauges.
        match self.metrics.render(&status) {
            Ok(text) => Ok(Page {
                kind: PROMETHEUS,
                body: Pieces::one(text),
            }),
            Err(error) => Err(Fault::code(ErrorCode::Internal, error.to_string())),
        }
    }

    async fn events(&self, since: u64, limit: usize, wait_ms: u64) -> Result<EventsView, Fault> {
        let deadline = Instant::now() + Duration::from_millis(wait_ms);
        // Before the question, so that no event can fall between the two.
        let mut news = self.handle.subscribe();
        let mut stop = self.stop.clone();
        loop {
            news.mark_unchanged();
            let page = self
                .ask(|reply| Query::Events {
                    since,
                    limit,
                    reply,
                })
                .await?;
            let news_for_asker = !page.events.is_empty() || page.dropped > 0 || page.next < since;
            if news_for_asker || Instant::now() >= deadline {
                return Ok(page);
            }
            tokio::select! {
                Ok(()) = news.changed() => {}
                () = sleep_until(deadline) => return Ok(page),
                () = stopped(&mut stop) => return Ok(page),
            }
        }
    }

    async fn permit(&self, peer: Peer) -> Result<(), Fault> {
        let permitted = match self.access.check(peer) {
            Verdict::Allowed => true,
            Verdict::Denied => false,
            Verdict::AskGroups => self.ask_groups(peer).await?,
        };
        if permitted {
            return Ok(());
        }
        let message = format!(
            "uid {} may look but not change, nor read the journal; ask as root, as the daemon's own user, or as a \
             member of the daemon's `status_group`",
            peer.uid
        );
        Err(Fault::code(ErrorCode::NotPermitted, message))
    }

    /// The name service may hang, so it gets a thread of its own and a bound.
    async fn ask_groups(&self, peer: Peer) -> Result<bool, Fault> {
        let access = self.access;
        let lookup = tokio::task::spawn_blocking(move || access.permits(peer));
        let bound = Duration::from_millis(self.limits.answer_timeout_ms);
        match timeout(bound, lookup).await {
            Ok(Ok(Ok(permitted))) => Ok(permitted),
            Ok(Ok(Err(error))) => Err(Fault::code(ErrorCode::Exhausted, error.to_string())),
            Ok(Err(_)) => Err(Fault::code(
                ErrorCode::Internal,
                "the lookup of groups panicked",
            )),
            Err(_) => {
                let message = format!(
                    "the name service did not tell the groups of uid {} in time; \
                     see nsswitch.conf",
                    peer.uid
                );
                Err(Fault::code(ErrorCode::Exhausted, message))
            }
        }
    }

    /// No route takes a body; a small one is read and ignored.
    async fn drain_body<B: Body + Unpin>(&self, mut body: B) -> Result<(), Fault> {
        let max_bytes = self.limits.body_bytes_max;
        let too_large = || {
            let message = format!("no request needs a body; {max_bytes} bytes is the most");
            Fault::http(HttpCode::BodyTooLarge, message).closing()
        };
        if body.size_hint().lower() > max_bytes {
            return Err(too_large());
        }
        let drain = async {
            let mut seen_bytes = 0;
            while let Some(frame) = body.frame().await {
                // A broken body ends the connection: hyper sees the same error.
                let Ok(frame) = frame else { return Ok(()) };
                let bytes = frame.data_ref().map_or(0, bytes::Buf::remaining);
                seen_bytes += bytes as u64;
                if seen_bytes > max_bytes {
                    return Err(too_large());
                }
            }
            Ok(())
        };
        let bound = Duration::from_millis(self.limits.header_read_timeout_ms);
        timeout(bound, drain).await.unwrap_or_else(|_| {
            let message = "the body did not arrive in time; send none";
            Err(Fault::http(HttpCode::BodyTooSlow, message).closing())
        })
    }
}

fn json<T: Serialize>(value: &T) -> Result<Page, Fault> {
    match serde_json::to_vec(value) {
        Ok(mut text) => {
            text.push(b'\n');
            Ok(Page {
                kind: JSON,
                body: Pieces::one(text),
            })
        }
        Err(error) => Err(Fault::code(
            ErrorCode::Internal,
            format!("cannot write JSON: {error}"),
        )),
    }
}

fn response(status: StatusCode, kind: HeaderValue, body: Pieces) -> Response<Pieces> {
    let mut response = Response::new(body);
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, kind);
    headers.insert(header::CACHE_CONTROL, NO_STORE);
    headers.insert(header::SERVER, SERVER);
    response
}

pub(super) fn refusal(fault: &Fault) -> Response<Pieces> {
    // Strings, numbers and booleans only: this cannot fail, and an empty body is no harm.
    let mut text = serde_json::to_vec(&fault.view).unwrap_or_default();
    text.push(b'\n');
    let mut response = response(fault.status, JSON, Pieces::one(text));
    if let Some(methods) = fault.allow {
        response
            .headers_mut()
            .insert(header::ALLOW, HeaderValue::from_static(methods));
    }
    if fault.closes {
        response.headers_mut().insert(header::CONNECTION, CLOSE);
    }
    response
}
