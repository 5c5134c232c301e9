//! The least of an HTTP client. Every read and write has a deadline, so that no test can hang.

use serde_json::Value;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

/// Longer than any wait of a passing test.
const DEADLINE: Duration = Duration::from_secs(60);

pub(super) struct Peer(BufReader<UnixStream>);

#[derive(Debug)]
pub(super) struct Answer {
    pub(super) status: u16,
    pub(super) headers: Vec<(String, String)>,
    pub(super) body: String,
}

impl Peer {
    pub(super) fn connect(path: &Path) -> Self {
        let stream = UnixStream::connect(path).unwrap();
        stream.set_read_timeout(Some(DEADLINE)).unwrap();
        stream.set_write_timeout(Some(DEADLINE)).unwrap();
        Self(BufReader::new(stream))
    }

    pub(super) fn send(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        self.0.get_mut().write_all(bytes)
    }

    pub(super) fn ask(&mut self, method: &str, target: &str) -> Answer {
        self.send(request(method, target).as_bytes()).unwrap();
        self.answer(method != "HEAD")
    }

    /// Reads one answer.
    pub(super) fn answer(&mut self, with_body: bool) -> Answer {
        let first = self.line();
        let status = first.split(' ').nth(1).and_then(|s| s.parse().ok());
        let mut answer = Answer {
            status: status.unwrap_or_else(|| panic!("not a status line: {first:?}")),
            headers: Vec::new(),
            body: String::new(),
        };
        loop {
            let line = self.line();
            let Some((name, value)) = line.split_once(": ") else {
                break;
            };
            answer.headers.push((name.to_lowercase(), value.to_owned()));
        }
        if with_body {
            let bytes: usize = answer.header("content-length").unwrap().parse().unwrap();
            let mut body = vec![0; bytes];
            self.0.read_exact(&mut body).unwrap();
            answer.body = String::from_utf8(body).unwrap();
        }
        answer
    }

    /// Whether the server has closed, with nothing more to read.
    pub(super) fn at_end(&mut self) -> bool {
        match self.0.fill_buf() {
            Ok(rest) => rest.is_empty(),
            Err(error) => error.kind() == std::io::ErrorKind::ConnectionReset,
        }
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.0.read_line(&mut line).unwrap();
        line.trim_end().to_owned()
    }
}

impl Answer {
    pub(super) fn header(&self, name: &str) -> Option<&str> {
        self.headers
            .iter()
            .find(|(seen, _)| seen == name)
            .map(|(_, value)| value.as_str())
    }

    pub(super) fn json(&self) -> Value {
        assert_eq!(self.header("content-type"), Some("application/json"));
        serde_json::from_str(&self.body).unwrap_or_else(|e| panic!("{e}: {:?}", self.body))
    }

    /// Checks the documented shape of an error; its code.
    pub(super) fn error(&self) -> String {
        let json = self.json();
        assert_eq!(json.as_object().unwrap().len(), 1, "{json}");
        let error = json["error"].as_object().unwrap();
        assert_eq!(error.len(), 5, "{json}");
        assert!(error["number"].is_u64() && error["message"].as_str().unwrap().len() > 5);
        assert!(error["retryable"].is_boolean() && error["took_effect"].is_boolean());
        error["code"].as_str().unwrap().to_owned()
    }
}

pub(super) fn request(method: &str, target: &str) -> String {
    format!("{method} {target} HTTP/1.1\r\nhost: mrm\r\n\r\n")
}
