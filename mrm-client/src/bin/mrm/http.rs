//! A small HTTP/1.1 client over the status socket.

use crate::failure::Failure;
use crate::wire;
use http_body_util::{BodyExt, Empty, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::client::conn::http1;
use hyper::{Method, Request, Response, StatusCode, header};
use hyper_util::rt::TokioIo;
use serde::de::DeserializeOwned;
use serde_json::Value;
use std::fmt::Write as _;
use std::path::PathBuf;
use std::time::Duration;
use tokio::net::UnixStream;

/// How long a live daemon may take for an answer that waits for nothing.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);
/// The largest answer that is read. A page of models is far below.
const ANSWER_BYTES_MAX: usize = 64 * 1024 * 1024;
/// Models asked for at once.
const PAGE_ROWS: usize = 256;

/// The status socket. Each request has its own connection, so that a daemon that was restarted
/// in between is simply asked again.
#[derive(Debug, Clone)]
pub(crate) struct Api {
    socket: PathBuf,
}

impl Api {
    /// Will ask the daemon behind `socket`; nothing is connected yet.
    pub(crate) fn new(socket: PathBuf) -> Self {
        Self { socket }
    }

    /// The document at `target`, as the daemon wrote it.
    pub(crate) async fn get(&self, target: &str) -> Result<Value, Failure> {
        self.request(Method::GET, target, Duration::ZERO).await
    }

    /// The same, from a request that the daemon may answer as late as `wait`.
    pub(crate) async fn get_waiting(&self, target: &str, wait: Duration) -> Result<Value, Failure> {
        self.request(Method::GET, target, wait).await
    }

    /// Asks for a change, which the daemon may answer as late as `wait`.
    pub(crate) async fn post(&self, target: &str, wait: Duration) -> Result<Value, Failure> {
        self.request(Method::POST, target, wait).await
    }

    /// Hands the bytes at `target` to `sink` as they come, whatever they are. Returns how many came.
    pub(crate) async fn download(
        &self,
        target: &str,
        mut sink: impl FnMut(&[u8]) -> Result<(), Failure>,
    ) -> Result<u64, Failure> {
        let stalled = |_| Failure::TimedOut {
            what: format!("mrmd on {}", self.socket.display()),
            after: ANSWER_TIMEOUT,
        };
        let sent = tokio::time::timeout(ANSWER_TIMEOUT, self.send(Method::GET, target)).await;
        let (response, _driver) = sent.map_err(stalled)??;
        let status = response.status();
        let mut body = response.into_body();
        if !status.is_success() {
            let body = Limited::new(body, ANSWER_BYTES_MAX).collect();
            let body = tokio::time::timeout(ANSWER_TIMEOUT, body).await;
            let body = body.map_err(stalled)?;
            let body = body.map_err(|cause| self.garbled(&cause.to_string()))?;
            return self.judge(status, &body.to_bytes()).map(|_| 0);
        }
        let mut bytes = 0;
        while let Some(frame) = tokio::time::timeout(ANSWER_TIMEOUT, body.frame())
            .await
            .map_err(stalled)?
        {
            let frame = frame.map_err(|cause| self.garbled(&cause.to_string()))?;
            if let Some(data) = frame.data_ref() {
                sink(data)?;
                bytes += data.len() as u64;
            }
        }
        Ok(bytes)
    }

    /// Every model whose name begins with `prefix`, page by page, as one document.
    pub(crate) async fn models(&self, prefix: &str) -> Result<Value, Failure> {
        let mut all: Vec<Value> = Vec::new();
        let mut after = String::new();
        loop {
            let mut target = format!(
                "/v1/models?prefix={}&limit={PAGE_ROWS}",
                encode(prefix, false)
            );
            if !after.is_empty() {
                let _ = write!(target, "&after={}", encode(&after, false));
            }
            let mut page = self.get(&target).await?;
            let Value::Array(mut rows) = page["models"].take() else {
                return Err(self.garbled("the list of models is no list"));
            };
            let last = rows
                .last()
                .and_then(|row| row["name"].as_str())
                .unwrap_or_default();
            // A page that does not advance would be asked for forever.
            let advances = !last.is_empty() && last > after.as_str();
            last.clone_into(&mut after);
            all.append(&mut rows);
            if page["more"] != Value::Bool(true) || !advances {
                return Ok(serde_json::json!({"models": all, "more": false}));
            }
        }
    }

    /// Reads a document as `T`.
    pub(crate) fn read<T: DeserializeOwned>(&self, document: &Value) -> Result<T, Failure> {
        T::deserialize(document).map_err(|cause| self.garbled(&cause.to_string()))
    }

    async fn request(
        &self,
        method: Method,
        target: &str,
        wait: Duration,
    ) -> Result<Value, Failure> {
        let after = ANSWER_TIMEOUT + wait;
        tokio::time::timeout(after, self.exchange(method, target))
            .await
            .map_err(|_| Failure::TimedOut {
                what: format!("mrmd on {}", self.socket.display()),
                after,
            })?
    }

    async fn exchange(&self, method: Method, target: &str) -> Result<Value, Failure> {
        let (response, _driver) = self.send(method, target).await?;
        let status = response.status();
        let body = Limited::new(response.into_body(), ANSWER_BYTES_MAX)
            .collect()
            .await
            .map_err(|cause| self.garbled(&cause.to_string()))?;
        self.judge(status, &body.to_bytes())
    }

    /// Asks on a connection of its own, which ends when its driver is dropped.
    async fn send(
        &self,
        method: Method,
        target: &str,
    ) -> Result<(Response<Incoming>, Driver), Failure> {
        let stream = UnixStream::connect(&self.socket)
            .await
            .map_err(|cause| Failure::connecting(&self.socket, &cause))?;
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream))
            .await
            .map_err(|cause| self.garbled(&cause.to_string()))?;
        let driver = Driver(tokio::spawn(connection).abort_handle());
        let request = Request::builder()
            .method(method)
            .uri(target)
            .header(header::HOST, "localhost")
            .header(header::ACCEPT, "*/*")
            .header(header::CONNECTION, "close")
            .body(Empty::<Bytes>::new())
            .map_err(|cause| Failure::Usage(cause.to_string()))?;
        let response = sender.send_request(request).await;
        let response = response.map_err(|cause| self.garbled(&cause.to_string()))?;
        Ok((response, driver))
    }

    fn judge(&self, status: StatusCode, body: &[u8]) -> Result<Value, Failure> {
        if status.is_success() {
            // The callers index into it by name, which only an object bears.
            return match serde_json::from_slice(body) {
                Ok(document @ Value::Object(_)) => Ok(document),
                Ok(_) => Err(self.garbled("its answer is not a JSON object")),
                Err(cause) => Err(self.garbled(&format!("its answer is not JSON: {cause}"))),
            };
        }
        let document: Option<wire::ErrorDocument> = serde_json::from_slice(body).ok();
        match document.and_then(|document| document.error) {
            Some(error) => Err(Failure::Refused(error)),
            None => Err(self.garbled(&format!("it answers {status}"))),
        }
    }

    fn garbled(&self, cause: &str) -> Failure {
        Failure::Garbled {
            socket: self.socket.clone(),
            cause: cause.to_owned(),
        }
    }
}

/// What moves the bytes of one connection, as long as it is wanted.
struct Driver(tokio::task::AbortHandle);

impl Drop for Driver {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// The target of a model, or of what may be done to it.
pub(crate) fn model_target(name: &str, verb: &str) -> String {
    let slash = if verb.is_empty() { "" } else { "/" };
    format!("/v1/models/{}{slash}{verb}", encode(name, true))
}

/// Percent-encodes everything but what RFC 3986 leaves unreserved (and slashes of a path).
pub(crate) fn encode(text: &str, slashes: bool) -> String {
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        let plain = byte.is_ascii_alphanumeric()
            || matches!(byte, b'-' | b'.' | b'_' | b'~')
            || (slashes && byte == b'/');
        if plain {
            encoded.push(char::from(byte));
        } else {
            let _ = write!(encoded, "%{byte:02X}");
        }
    }
    encoded
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_become_targets() {
        assert_eq!(
            model_target("org/a b@é?", ""),
            "/v1/models/org/a%20b%40%C3%A9%3F"
        );
        assert_eq!(model_target("m", "pin"), "/v1/models/m/pin");
        assert_eq!(encode("a/b&c", false), "a%2Fb%26c");
    }

    #[test]
    fn an_error_without_its_document_is_not_taken_for_the_daemon() {
        let api = Api::new("/s".into());
        let failure = api.judge(StatusCode::BAD_GATEWAY, b"<html>").unwrap_err();
        assert!(matches!(failure, Failure::Garbled { .. }), "{failure}");
        let body = br#"{"error":{"code":"in_use","number":506,"message":"m","new_field":1}}"#;
        let failure = api.judge(StatusCode::CONFLICT, body).unwrap_err();
        assert_eq!(failure.code(), "in_use");
    }
}
