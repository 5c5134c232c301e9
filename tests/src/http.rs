//! Just enough HTTP/1.1 to ask the status socket.

use crate::DEADLINE;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;

/// One request on a connection of its own: status and body.
pub fn request(socket: &Path, method: &str, path: &str) -> (u16, String) {
    let mut stream = UnixStream::connect(socket).expect("the status socket accepts");
    stream.set_read_timeout(Some(DEADLINE)).expect("a timeout");
    let request = format!(
        "{method} {path} HTTP/1.1\r\nhost: mrm\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
    );
    stream.write_all(request.as_bytes()).expect("sends");
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).expect("answers");
    let text = String::from_utf8(answer).expect("text");
    let status = text
        .split_whitespace()
        .nth(1)
        .and_then(|s| s.parse().ok())
        .expect("a status");
    let (head, body) = text.split_once("\r\n\r\n").expect("a body");
    assert!(
        !head.to_lowercase().contains("transfer-encoding: chunked"),
        "{head}"
    );
    (status, body.to_owned())
}
