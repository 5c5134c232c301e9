//! How a keeper ends, and how it starts the daemon again.

use super::support::*;
use crate::degraded::Degraded;
use crate::keeper::respawn::{Happened, Respawner};
use crate::keeper::{Keeper, Respawn, SharedFd};
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

fn own_oom_score_adj() -> String {
    let text = std::fs::read_to_string("/proc/self/oom_score_adj").unwrap();
    text.trim().to_owned()
}

#[test]
fn without_a_daemon_it_ends_and_frees_everything() {
    let dir = tempfile::tempdir().unwrap();
    let mut short = settings(dir.path());
    short.keep_for_ms = 200;
    let keeper = Keeper::process(short, &Degraded::new()).unwrap();
    let (mut ours, kept) = std::io::pipe().unwrap();
    let kept: SharedFd = Arc::new(kept);
    put(&keeper, image_over("a", vec![kept])).unwrap();
    let exit = pidfd(keeper_pid(dir.path()));
    drop(keeper);
    wait_for(&exit);
    assert!(!settings(dir.path()).socket.exists());
    // The end of the pipe: nobody has the other descriptor any more.
    assert_eq!(ours.read(&mut [0]).unwrap(), 0);
}

#[test]
fn a_path_that_is_not_its_own_any_more_stays() {
    let dir = tempfile::tempdir().unwrap();
    let keeper = keeper(dir.path());
    let socket = settings(dir.path()).socket;
    std::fs::rename(&socket, dir.path().join("moved")).unwrap();
    std::fs::write(&socket, "another's").unwrap();
    keeper.stop();
    assert_eq!(std::fs::read(&socket).unwrap(), b"another's");
}

/// The daemon that starts the keeper, and is killed.
pub(super) fn first(args: &[String]) {
    let dir = Path::new(&args[0]);
    let mut settings = settings(dir);
    let mut again: Vec<_> = ROLE.map(Into::into).into();
    again.extend(["--respawned".into(), dir.into()]);
    let mut respawn = Respawn::new(settings.program.clone(), again);
    (respawn.backoff_min_ms, respawn.backoff_max_ms) = (1, 4);
    respawn.crashes_max = 4;
    settings.respawn = Some(respawn);
    let keeper = Keeper::process(settings, &Degraded::new()).unwrap();
    put(&keeper, segment("a")).unwrap();
    say("ready");
    linger();
}

/// A daemon that the keeper started: it says what it adopted, and awaits its end.
pub(super) fn respawned(args: &[String]) {
    let dir = Path::new(&args[0]);
    let keeper = keeper(dir);
    let adoption = keeper.adopt_all();
    adoption.entries.iter().for_each(verify);
    let mut test = UnixStream::connect(dir.join("said")).unwrap();
    let (pid, adj) = (std::process::id(), own_oom_score_adj());
    writeln!(test, "{} {pid} {adj}", keys(&adoption).join(",")).unwrap();
    let _ = test.read_to_end(&mut Vec::new());
}

#[test]
fn a_daemon_that_dies_is_started_again_and_adopts() {
    let dir = tempfile::tempdir().unwrap();
    let listener = UnixListener::bind(dir.path().join("said")).unwrap();
    let mut first = Role::of(&["--first", dir.path().to_str().unwrap()]);
    first.hear("ready");
    first.kill();
    // The fourth crash is the last.
    for _ in 0..3 {
        wait_for(&listener);
        let mut said = BufReader::new(listener.accept().unwrap().0);
        let mut line = String::new();
        said.read_line(&mut line).unwrap();
        let words: Vec<&str> = line.split_whitespace().collect();
        assert_eq!(words[0], "a");
        // Its keeper is spared when memory runs out; it is not.
        assert_eq!(words[2], own_oom_score_adj());
        let process = pidfd(words[1].parse().unwrap());
        rustix::process::pidfd_send_signal(&process, rustix::process::Signal::KILL).unwrap();
        wait_for(&process);
    }
    // It gave up on the daemon, and not on what it keeps.
    assert_eq!(keys(&adopt_and_stop(dir.path())), ["a"]);
    listener.set_nonblocking(true).unwrap();
    assert!(listener.accept().is_err());
}

#[test]
fn crashes_are_counted_within_a_minute_and_delays_double() {
    let mut respawn = Respawn::new("/nowhere/mrmd".into(), Vec::new());
    respawn.crashes_max = 4;
    let mut respawner = Respawner::new(respawn, None);
    let start = Instant::now();
    let at = |s: u64| start + Duration::from_secs(s);
    let died = |crashes, delay_ms| Some(Happened::Died { crashes, delay_ms });
    assert_eq!(respawner.went(at(0)), died(1, 0));
    assert_eq!(respawner.due(), Some(at(0)));
    assert_eq!(respawner.went(at(1)), died(2, 100));
    assert_eq!(respawner.due(), Some(at(1) + Duration::from_millis(100)));
    assert_eq!(respawner.went(at(2)), died(3, 200));
    // The first is long ago.
    assert_eq!(respawner.went(at(60)), died(3, 400));
    // A program that is not there is a crash as well.
    let (_, happened) = respawner.start(at(60)).unwrap_err();
    assert_eq!(happened, Some(Happened::GaveUp { crashes: 4 }));
    assert_eq!((respawner.due(), respawner.went(at(200))), (None, None));
}

#[test]
fn an_end_that_another_attempt_does_not_change_is_one() {
    for (status, is_final) in [(0, true), (2, true), (3, true), (1, false)] {
        let script = format!("exit {status}");
        let args = ["-c", &script].map(Into::into);
        let mut respawner = Respawner::new(Respawn::new("/bin/sh".into(), args.into()), None);
        let now = Instant::now();
        assert!(respawner.start(now).is_ok());
        wait_for(respawner.exit().unwrap());
        match respawner.exited(now).unwrap() {
            Happened::Final { status: said } => assert_eq!((said, true), (status, is_final)),
            Happened::Died { .. } => assert!(!is_final, "{status}"),
            Happened::GaveUp { .. } => panic!("{status}"),
        }
    }
}
