//! `mrm` on a terminal: a pseudo-terminal, with a person at its other end.
#![cfg(feature = "cli")]
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod cli_support;

use cli_support::Fake;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{LocalModes, Winsize, tcgetattr, tcsetwinsize};
use std::fs::File;
use std::io::Read;
use std::os::fd::OwnedFd;
use std::process::Child;
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

const DEADLINE: Timespec = Timespec {
    tv_sec: 30,
    tv_nsec: 0,
};

/// The person's end of a terminal of 80 columns and 24 rows.
struct Person {
    master: OwnedFd,
    terminal: File,
    seen: String,
}

impl Person {
    fn new() -> Self {
        let master =
            openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC).unwrap();
        grantpt(&master).unwrap();
        unlockpt(&master).unwrap();
        let name = ptsname(&master, Vec::new()).unwrap().into_string().unwrap();
        let terminal = File::options().read(true).write(true).open(name).unwrap();
        let size = Winsize {
            ws_row: 24,
            ws_col: 80,
            ws_xpixel: 0,
            ws_ypixel: 0,
        };
        tcsetwinsize(&master, size).unwrap();
        Self {
            master,
            terminal,
            seen: String::new(),
        }
    }

    fn start(&self, fake: &Fake, args: &[&str]) -> Child {
        let end = || self.terminal.try_clone().unwrap();
        fake.command(args)
            .stdin(end())
            .stdout(end())
            .stderr(end())
            .spawn()
            .unwrap()
    }

    /// Reads until the screen has shown `text`, or fails after the deadline.
    fn see(&mut self, text: &str) {
        while !self.seen.contains(text) {
            let mut ready = [PollFd::new(&self.master, PollFlags::IN)];
            let count = poll(&mut ready, Some(&DEADLINE)).unwrap();
            assert!(count > 0, "did not see {text:?} in {:?}", self.seen);
            let mut bytes = [0; 4096];
            let read = File::from(self.master.try_clone().unwrap())
                .read(&mut bytes)
                .unwrap();
            self.seen.push_str(&String::from_utf8_lossy(&bytes[..read]));
        }
    }

    fn press(&self, key: &[u8]) {
        rustix::io::write(&self.master, key).unwrap();
    }

    fn echoes(&self) -> bool {
        tcgetattr(&self.terminal)
            .unwrap()
            .local_modes
            .contains(LocalModes::ECHO)
    }
}

#[test]
fn status_has_colour_and_a_bar() {
    let fake = Fake::usual();
    let mut person = Person::new();
    let mut child = person.start(&fake, &["status"]);
    person.see("cure");
    assert!(child.wait().unwrap().success());
    assert!(
        person.seen.contains("\x1b[32mserving\x1b[0m"),
        "{:?}",
        person.seen
    );
    assert!(person.seen.contains("██████\x1b[0m"), "{:?}", person.seen);
}

#[test]
fn top_takes_the_screen_and_gives_it_back() {
    for key in [b"q", b"\x03"] {
        let fake = Fake::usual();
        let mut person = Person::new();
        let mut child = person.start(&fake, &["top"]);
        person.see("org/bert");
        assert!(person.seen.starts_with("\x1b[?1049h"), "{:?}", person.seen);
        assert!(!person.echoes());
        person.press(key);
        person.see("\x1b[?1049l");
        assert!(child.wait().unwrap().success());
        assert!(person.echoes());
    }
}

#[test]
fn top_refreshes_by_itself() {
    let fake = Fake::usual();
    let mut person = Person::new();
    let mut child = person.start(&fake, &["top"]);
    // Only a second picture has a rate.
    person.see("opens/s");
    person.press(b"q");
    assert!(child.wait().unwrap().success());
}

#[test]
fn a_long_load_shows_how_far_it_is() {
    let polled = Arc::new((Mutex::new(0), Condvar::new()));
    let polls = Arc::clone(&polled);
    let fake = Fake::serving(move |method, target| {
        let (count, changed) = &*polls;
        if method == "GET" {
            *count.lock().unwrap() += 1;
            changed.notify_all();
        } else {
            // The load ends only once its progress has been asked for.
            let count = count.lock().unwrap();
            let patience = Duration::from_secs(20);
            let waited = changed
                .wait_timeout_while(count, patience, |count| *count < 2)
                .unwrap();
            assert!(!waited.1.timed_out(), "nobody asked for progress");
        }
        cli_support::usual(method, target)
    });
    let mut person = Person::new();
    let mut child = person.start(&fake, &["warm", "org/bert"]);
    person.see("of 86.66 MiB");
    person.see("loaded in 45.2 ms");
    assert!(child.wait().unwrap().success());
}

#[test]
fn without_a_daemon_top_leaves_the_screen_alone() {
    let fake = Fake::usual();
    let mut person = Person::new();
    let mut child = person.start(&fake, &["--status-socket", "/nonexistent", "top"]);
    person.see("no daemon answers");
    assert_eq!(child.wait().unwrap().code(), Some(3));
    assert!(!person.seen.contains("\x1b[?1049h"));
}
