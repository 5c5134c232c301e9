//! The daemon is killed at each step: exactly what was whole is there afterwards.

use super::support::*;
use crate::keeper::process::Settings;
use crate::keeper::wire::{self, FDS_PER_PACKET_MAX, Packet, Received, Verb};
use crate::keeper::{ENTRY_FDS_MAX, KeepError, Keeper};
use std::os::fd::AsFd;
use std::path::Path;

/// Descriptors of an entry that takes several packets.
const MANY: usize = 2 * FDS_PER_PACKET_MAX + 50;

/// The first packet of `b`, and no more.
fn begin_b(dir: &Path) -> crate::keeper::link::Link {
    let link = link(dir);
    let entry = image("b", MANY);
    let description = entry.description().seal().unwrap();
    let mut fds = vec![description.as_fd()];
    fds.extend(entry.fds().iter().map(|fd| (**fd).as_fd()));
    let packet = Packet {
        verb: Verb::Put,
        number: 9,
        fds: u16::try_from(FDS_PER_PACKET_MAX).unwrap(),
        first: 0,
        total: u32::try_from(fds.len()).unwrap(),
        key: Some(key("b")),
    };
    wire::send(&link, &packet, &fds[..FDS_PER_PACKET_MAX]).unwrap();
    link
}

/// A daemon that keeps `a`, goes on to the step that it is told, says so, and awaits its end.
pub(super) fn stand_in(args: &[String]) {
    let dir = Path::new(&args[1]);
    let keeper = keeper(dir);
    put(&keeper, segment("a")).unwrap();
    let mut open = None;
    match args[0].as_str() {
        "before" => {}
        "between" => {
            drop(keeper);
            open = Some(begin_b(dir));
        }
        "between-again" => {
            put(&keeper, instance("b", 1)).unwrap();
            drop(keeper);
            open = Some(begin_b(dir));
        }
        "after" => {
            put(&keeper, image("b", MANY)).unwrap();
            put(&keeper, instance("c", 1)).unwrap();
            put(&keeper, instance("c", 2)).unwrap();
            remove(&keeper, &key("a")).unwrap();
        }
        "taking" => {
            put(&keeper, image("b", MANY)).unwrap();
            drop(keeper);
            let taking = link(dir);
            wire::send(&taking, &Packet::bare(Verb::TakeAll, 3), &[]).unwrap();
            wait_for(&taking);
            assert!(matches!(wire::receive(&taking), Ok(Received::Packet(..))));
            open = Some(taking);
        }
        other => panic!("{other}"),
    }
    say("ready");
    linger();
    drop(open);
}

#[test]
fn what_is_whole_outlives_the_daemon_and_nothing_else() {
    let cases: [(&str, &[&str]); 5] = [
        ("before", &["a"]),
        ("between", &["a"]),
        ("between-again", &["a", "b"]),
        ("after", &["b", "c"]),
        ("taking", &["a", "b"]),
    ];
    for (step, expected) in cases {
        let dir = tempfile::tempdir().unwrap();
        let mut daemon = Role::of(&["--killed-at", step, dir.path().to_str().unwrap()]);
        daemon.hear("ready");
        daemon.kill();
        let adoption = adopt_and_stop(dir.path());
        assert_eq!(keys(&adoption), expected, "{step}");
        assert!(
            adoption.dropped.is_empty(),
            "{step}: {:?}",
            adoption.dropped
        );
        if step == "between-again" {
            assert_eq!(counter(&adoption.entries[1]), 1, "the entry is the old one");
        }
        if step == "after" {
            assert_eq!(counter(&adoption.entries[1]), 2);
        }
    }
}

#[test]
fn the_largest_entry_goes_and_comes_in_order() {
    let dir = tempfile::tempdir().unwrap();
    let first = keeper(dir.path());
    put(&first, image("large", ENTRY_FDS_MAX - 1)).unwrap();
    drop(first);
    let adoption = adopt_and_stop(dir.path());
    assert_eq!(adoption.entries[0].fds.len(), ENTRY_FDS_MAX - 1);
    assert_eq!(ENTRY_FDS_MAX, 4097);
}

#[test]
fn a_second_daemon_takes_over_and_the_first_is_told() {
    let dir = tempfile::tempdir().unwrap();
    let first = keeper(dir.path());
    put(&first, segment("a")).unwrap();
    let second = keeper(dir.path());
    let adoption = second.adopt_all();
    assert_eq!(keys(&adoption), ["a"]);
    assert!(second.adopt_all().entries.is_empty(), "once");

    assert_eq!(put(&first, segment("b")), Err(KeepError::Replaced));
    assert_eq!(remove(&first, &key("a")), Err(KeepError::Replaced));
    assert!(first.is_replaced());
    // Not the keeper's: that is the second one's.
    first.stop();
    put(&second, segment("c")).unwrap();
    drop((first, second));
    assert_eq!(keys(&adopt_and_stop(dir.path())), ["a", "c"]);
}

#[test]
fn a_keeper_that_dies_is_started_again_and_given_everything() {
    let dir = tempfile::tempdir().unwrap();
    let degraded = crate::degraded::Degraded::new();
    let keeper = Keeper::process(settings(dir.path()), &degraded).unwrap();
    put(&keeper, segment("a")).unwrap();
    put(&keeper, image("b", MANY)).unwrap();

    // Nobody asks it anything: its end alone is noticed, and another binds the path.
    let events = {
        use rustix::fs::inotify;
        let events = inotify::init(inotify::CreateFlags::CLOEXEC).unwrap();
        inotify::add_watch(&events, dir.path(), inotify::WatchFlags::CREATE).unwrap();
        events
    };
    let killed = keeper_pid(dir.path());
    let exit = pidfd(killed);
    rustix::process::pidfd_send_signal(&exit, rustix::process::Signal::KILL).unwrap();
    wait_for(&events);
    put(&keeper, segment("c")).unwrap();
    assert_ne!(keeper_pid(dir.path()), killed);
    assert_eq!(degraded.list()[0].id, "keeper");

    // It does not answer: the one that asks finds out, and what was asked for is done anyway.
    let stopped = keeper_pid(dir.path());
    drop(keeper);
    let mut hasty = settings(dir.path());
    hasty.patience_ms = 500;
    let keeper = Keeper::process(hasty, &degraded).unwrap();
    let adoption = keeper.adopt_all();
    assert_eq!(keys(&adoption), ["a", "b", "c"]);
    for name in ["a", "c"] {
        keeper.hold(segment(name));
    }
    let process = pidfd(stopped);
    rustix::process::pidfd_send_signal(&process, rustix::process::Signal::STOP).unwrap();
    // It has not stopped before the kernel says so.
    use rustix::process::{WaitId, WaitIdOptions, waitid};
    waitid(WaitId::PidFd(process.as_fd()), WaitIdOptions::STOPPED).unwrap();
    remove(&keeper, &key("b")).unwrap();
    wait_for(&process);
    put(&keeper, segment("d")).unwrap();
    drop(keeper);
    assert_eq!(keys(&adopt_and_stop(dir.path())), ["a", "c", "d"]);
}

#[test]
fn arguments_say_what_they_should() {
    let mut settings = Settings {
        socket: "/run/mrm/keeper.sock".into(),
        keep_for_ms: 5,
        respawn: None,
    };
    let parsed = Settings::parse(settings.to_args(Some(3))).unwrap();
    assert_eq!(parsed, (settings.clone(), None));
    let args = ["--keeper", "--respawn"].map(Into::into);
    settings.respawn = Some(crate::keeper::Respawn::new("/bin/mrmd".into(), args.into()));
    let parsed = Settings::parse(settings.to_args(Some(-3))).unwrap();
    assert_eq!(parsed, (settings.clone(), Some(-3)));
    for wrong in [
        &[][..],
        &["a", "1", "b"],
        &["a", "1", "--respawn", "0", "x"],
    ] {
        assert!(
            Settings::parse(wrong.iter().map(Into::into)).is_err(),
            "{wrong:?}"
        );
    }
}
