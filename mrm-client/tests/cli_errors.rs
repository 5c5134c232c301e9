//! What `mrm` says, and with which status it ends, when something is wrong.
#![cfg(feature = "cli")]

mod cli_support;

use cli_support::{Fake, Run, error, mrm};
use std::os::unix::net::UnixListener;

/// Every command that needs the status socket.
const ASKING: [&[&str]; 9] = [
    &["status"],
    &["ls"],
    &["show", "m"],
    &["top", "--once"],
    &["warm", "m"],
    &["pin", "m"],
    &["unpin", "m"],
    &["evict", "m"],
    &["events"],
];

#[test]
fn without_a_daemon_the_socket_is_named_and_the_remedy_told() {
    let directory = tempfile::tempdir().unwrap();
    for args in ASKING.into_iter().chain([&["open", "m"][..]]) {
        let run = Run::of(mrm(args).env("MRM_RUNTIME_DIR", directory.path()));
        assert_eq!(run.code, 3, "{args:?}: {run:?}");
        assert!(run.stdout.is_empty(), "{args:?}: {run:?}");
        assert!(
            run.stderr.contains(directory.path().to_str().unwrap()),
            "{args:?}: {run:?}"
        );
        assert!(
            run.stderr.contains("start it with `mrmd`"),
            "{args:?}: {run:?}"
        );
        let json = Run::of(
            mrm(args)
                .arg("--json")
                .env("MRM_RUNTIME_DIR", directory.path()),
        );
        assert_eq!(json.code, 3);
        assert_eq!(json.json()["error"]["code"], "no_daemon", "{args:?}");
    }
}

#[test]
fn without_any_setting_the_usual_places_are_named() {
    let run = Run::of(mrm(&["status"]).env("XDG_RUNTIME_DIR", "/nonexistent"));
    // A daemon of the machine itself may be running in /run/mrm; then there is nothing to see.
    if run.code != 0 {
        assert!(run.stderr.contains("/nonexistent/mrm/mrmd.sock"), "{run:?}");
        assert_eq!(run.code, 3);
    }
}

#[test]
fn a_socket_that_nobody_serves_any_more_is_told_from_none() {
    let directory = tempfile::tempdir().unwrap();
    drop(UnixListener::bind(directory.path().join("status.sock")).unwrap());
    let run = Run::of(mrm(&["status"]).env("MRM_RUNTIME_DIR", directory.path()));
    assert_eq!(run.code, 3);
    assert!(run.stderr.contains("no process listens"), "{run:?}");
}

#[test]
fn refusals_have_their_exit_status_and_remedy() {
    for (status, code, number, exit, remedy) in [
        (403, "not_permitted", 205, 4, "status_group"),
        (404, "model_not_found", 201, 5, "mrm ls"),
        (409, "in_use", 506, 1, "mrm show"),
        (503, "no_room", 501, 1, "mrm top"),
        (504, "timed_out", 505, 124, "--wait"),
        (400, "bad_name", 200, 2, ""),
        (500, "a_code_of_the_future", 999, 1, ""),
    ] {
        let fake = Fake::serving(move |_, _| error(status, code, number, "the object: the reason"));
        for verb in ["pin", "warm", "show"] {
            let run = fake.run(&[verb, "m"]);
            assert_eq!(run.code, exit, "{verb} {code}: {run:?}");
            assert!(
                run.stderr
                    .contains(&format!("the object: the reason ({code})")),
                "{run:?}"
            );
            assert!(run.stderr.contains(remedy), "{verb} {code}: {run:?}");
            let json = fake.run(&["--json", verb, "m"]);
            assert_eq!(json.code, exit);
            assert_eq!(json.json()["error"]["number"], number, "{json:?}");
            assert!(json.stderr.is_empty(), "{json:?}");
        }
    }
}

#[test]
fn a_stranger_on_the_socket_is_not_taken_for_the_daemon() {
    for body in [
        "<html>",
        "[]",
        "{\"models\":7}",
        "{\"models\":[{\"name\":7}]}",
    ] {
        let fake = Fake::serving(move |_, _| (200, body.into()));
        let run = fake.run(&["ls"]);
        assert_eq!(run.code, 1, "{body}: {run:?}");
        assert!(
            run.stderr.contains("does not answer as mrmd does"),
            "{body}: {run:?}"
        );
    }
    let fake = Fake::serving(|_, _| (502, "bad gateway".into()));
    assert!(fake.run(&["status"]).stderr.contains("502"));
}

#[test]
fn a_message_cannot_steer_the_terminal() {
    let fake = Fake::serving(|_, _| error(500, "internal", 600, "\x1b]0;owned\x07"));
    let run = fake.run(&["status"]);
    assert!(
        !run.stderr.contains('\x1b') && run.stderr.contains("\\u{1b}"),
        "{run:?}"
    );
}

#[test]
fn mistakes_in_the_arguments_end_with_two() {
    for args in [
        &["frobnicate"][..],
        &["pin"],
        &["open"],
        &["warm", "m", "--wait", "soon"],
        &[],
    ] {
        let run = Run::of(&mut mrm(args));
        assert_eq!(run.code, 2, "{args:?}: {run:?}");
        assert!(run.stderr.contains("--help"), "{args:?}: {run:?}");
        assert!(!run.stderr.contains("error:"), "{args:?}: {run:?}");
    }
    let json = Run::of(&mut mrm(&["--json", "pin"]));
    assert_eq!(
        (json.code, &json.json()["error"]["code"]),
        (2, &"usage".into())
    );
}

#[test]
fn doctor_says_what_to_do_when_there_is_no_daemon() {
    let directory = tempfile::tempdir().unwrap();
    let run = Run::of(mrm(&["doctor"]).env("MRM_RUNTIME_DIR", directory.path()));
    assert_eq!((run.code, run.stderr.as_str()), (1, ""), "{run:?}");
    for part in [
        "kernel",
        "sealed_mapping",
        "huge_pages",
        "FAIL  client_socket",
        "start `mrmd`",
    ] {
        assert!(run.stdout.contains(part), "{part}: {run:?}");
    }
    let json = Run::of(mrm(&["--json", "doctor"]).env("MRM_RUNTIME_DIR", directory.path()));
    assert_eq!(json.code, 1);
    let json = json.json();
    let failures = json["checks"]
        .as_array()
        .unwrap()
        .iter()
        .filter(|row| row["level"] == "fail");
    assert_eq!(json["fail"], failures.clone().count());
    assert!(failures.clone().all(|row| row["cure"].is_string()));
}

#[test]
fn doctor_repeats_what_the_daemon_found() {
    let fake = Fake::usual();
    // Nobody serves the client socket any more.
    drop(UnixListener::bind(fake.client_socket()).unwrap());
    let run = fake.run(&["doctor", "-q"]);
    assert_eq!(run.code, 1, "{run:?}");
    assert!(
        run.stdout
            .contains("mrmd: huge_pages: shmem_enabled is never"),
        "{run:?}"
    );
    assert!(run.stdout.contains("FAIL  session"), "{run:?}");
    assert!(!run.stdout.contains("PASS"), "{run:?}");
    assert!(fake.requests().contains(&"GET /v1/status".to_owned()));
}
