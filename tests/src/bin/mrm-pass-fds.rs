//! `mrm-pass-fds PROGRAM ARGUMENTS...`: becomes the program, as a service manager would start it.
//!
//! Descriptors with their names come over the socket on standard input, in records of 256 bytes;
//! they get the numbers from 3 on. For tests.

#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a tool of tests fails loudly"
)]

use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags};
use std::io::IoSliceMut;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};

fn main() {
    let mut names = Vec::new();
    let mut fds: Vec<OwnedFd> = Vec::new();
    let mut record = [0; 256];
    loop {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut ancillary = RecvAncillaryBuffer::new(&mut space);
        let mut slices = [IoSliceMut::new(&mut record)];
        // Without CLOEXEC: the program is to have them.
        let flags = RecvFlags::WAITALL;
        let stdin = std::io::stdin();
        let got = rustix::net::recvmsg(&stdin, &mut slices, &mut ancillary, flags);
        if got.expect("receives").bytes == 0 {
            break;
        }
        for received in ancillary.drain() {
            if let RecvAncillaryMessage::ScmRights(passed) = received {
                fds.extend(passed);
            }
        }
        let name = String::from_utf8_lossy(&record);
        names.push(name.trim_end().to_owned());
    }
    assert_eq!(fds.len(), names.len(), "a descriptor was lost");
    for (at, fd) in fds.iter().enumerate() {
        let number = usize::try_from(fd.as_raw_fd()).expect("a number");
        assert_eq!(number, 3 + at, "a number is taken");
    }
    let mut arguments = std::env::args_os().skip(1);
    let mut command = Command::new(arguments.next().expect("a program"));
    command.args(arguments).stdin(Stdio::null());
    if !fds.is_empty() {
        command
            .env("LISTEN_PID", std::process::id().to_string())
            .env("LISTEN_FDS", fds.len().to_string())
            .env("LISTEN_FDNAMES", names.join(":"));
    }
    let failed = command.exec();
    panic!("{}: {failed}", command.get_program().display());
}
