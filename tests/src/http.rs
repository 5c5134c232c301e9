//! Just enough HTTP/1.1 to ask the status socket.

use crate::DEADLINE;
use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;

/// One request on a connection of its own: status and body.
pub fn request(socket: &Path, method: &str, path: &str) -> (u16, String) {
    let stream = UnixStream::connect(socket).expect("the status socket accepts");
    try_request(stream, method, path).expect("the status socket answers")
}

/// The same, of a daemon that may end meanwhile.
///
/// # Errors
/// When no whole answer comes.
pub fn try_request(mut stream: UnixStream, method: &str, path: &str) -> io::Result<(u16, String)> {
    stream.set_read_timeout(Some(DEADLINE))?;
    let request = format!(
        "{method} {path} HTTP/1.1\r\nhost: mrm\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
    );
    stream.write_all(request.as_bytes())?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let cut = || io::Error::from(io::ErrorKind::UnexpectedEof);
    let status = answer.split_whitespace().nth(1).ok_or_else(cut)?;
    let status = status.parse().map_err(io::Error::other)?;
    let (head, body) = answer.split_once("\r\n\r\n").ok_or_else(cut)?;
    assert!(
        !head.to_lowercase().contains("transfer-encoding: chunked"),
        "{head}"
    );
    let promised = head.lines().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        let is_length = name.eq_ignore_ascii_case("content-length");
        is_length.then(|| value.trim().parse::<usize>().ok())?
    });
    match promised {
        Some(bytes) if bytes != body.len() => Err(cut()),
        _ => Ok((status, body.to_owned())),
    }
}
