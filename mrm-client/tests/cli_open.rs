//! `mrm open` against a fake daemon that grants real memory.
#![cfg(feature = "cli")]

mod cli_support;
mod fake;

use cli_support::{Run, mrm};
use fake::{Content, Fake};
use mrm_proto::error::ErrorCode;
use mrm_proto::request::Request;
use rustix::process::{Pid, Signal, kill_process};
use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};

fn granting() -> Fake {
    Fake::start(|_, session| session.serve(&Content::sample(1000)))
}

fn refusing(code: ErrorCode) -> Fake {
    Fake::start(move |_, session| {
        session.hello();
        while let Some((id, _, _)) = session.next_asking() {
            session.error(id, code, "the object: the reason");
        }
    })
}

fn open(fake: &Fake, args: &[&str]) -> Command {
    let mut command = mrm(&["open"]);
    command
        .arg("--socket")
        .arg(fake.socket())
        .args(args)
        .env("PATH", "/usr/bin:/bin");
    command
}

#[test]
fn what_was_opened_is_reported() {
    let fake = granting();
    let run = Run::of(&mut open(&fake, &["org/bert"]));
    assert_eq!((run.code, run.stderr.as_str()), (0, ""), "{run:?}");
    for part in [
        "org/bert",
        "hit (it was resident)",
        "3: 1 BF16, 1 F32, 1 I64",
        "in 1 file",
    ] {
        assert!(run.stdout.contains(part), "{part}: {run:?}");
    }
    fake.seen.wait_closed(1);
    let json = Run::of(&mut open(&fake, &["org/bert", "--json"])).json();
    assert_eq!(
        (&json["tensors"], &json["origin"]),
        (&3.into(), &"hit".into())
    );
    assert_eq!(json["segments"][0]["name"], "model.safetensors");
    assert_eq!(json["bytes"], 64 + 4000 + 13);
    let quiet = Run::of(&mut open(&fake, &["-q", "org/bert"]));
    assert_eq!((quiet.code, quiet.stdout.as_str()), (0, ""));
}

#[test]
fn a_command_finds_the_model_in_its_environment_and_its_status_is_passed_on() {
    let fake = granting();
    let script = r#"echo "$MRM_MODEL $MRM_MODEL_VERSION $MRM_MODEL_ORIGIN $MRM_MODEL_BYTES"
        echo "$MRM_SOCKET" "$@"; exit 7"#;
    let run = Run::of(&mut open(
        &fake,
        &["m", "--", "sh", "-c", script, "sh", "--json"],
    ));
    let socket = fake.socket();
    assert_eq!(
        run.stdout,
        format!("m 7 hit 4077\n{} --json\n", socket.display()),
        "{run:?}"
    );
    assert_eq!((run.code, run.stderr.as_str()), (7, ""));
    fake.seen.wait_closed(1);
}

#[test]
fn signals_go_through_to_the_command() {
    let fake = granting();
    for (signal, script) in [
        (
            "TERM",
            "trap 'exit 9' TERM; kill -TERM $PPID; while :; do :; done",
        ),
        (
            "USR1",
            "trap 'exit 9' USR1; kill -USR1 $PPID; while :; do :; done",
        ),
    ] {
        let run = Run::of(&mut open(&fake, &["m", "--", "sh", "-c", script]));
        assert_eq!(run.code, 9, "{signal}: {run:?}");
    }
    let run = Run::of(&mut open(&fake, &["m", "--", "sh", "-c", "kill -KILL $$"]));
    assert_eq!(run.code, 137, "{run:?}");
}

#[test]
fn a_command_that_cannot_run_is_told_as_shells_tell_it() {
    let fake = granting();
    let run = Run::of(&mut open(&fake, &["m", "--", "/nonexistent/program"]));
    assert_eq!(run.code, 127);
    assert!(
        run.stderr.contains("cannot run /nonexistent/program"),
        "{run:?}"
    );
    let run = Run::of(&mut open(&fake, &["m", "--", "/etc/passwd"]));
    assert_eq!(run.code, 126, "{run:?}");
}

#[test]
fn a_held_model_is_given_back_on_ctrl_c() {
    let fake = granting();
    let mut child = open(&fake, &["m", "--hold", "--json"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
    assert_eq!(lines.next().unwrap().unwrap(), "mrm: held until Ctrl-C");
    assert!(child.try_wait().unwrap().is_none());
    kill_process(Pid::from_child(&child), Signal::INT).unwrap();
    assert!(child.wait().unwrap().success());
    fake.seen.wait_closed(1);
}

#[test]
fn a_path_is_opened_by_its_descriptor() {
    let fake = granting();
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("some.bin");
    std::fs::write(&file, "bytes").unwrap();
    let run = Run::of(&mut open(&fake, &[file.to_str().unwrap()]));
    assert_eq!(run.code, 0, "{run:?}");
    let here = Run::of(open(&fake, &["--path", "some.bin"]).current_dir(directory.path()));
    assert_eq!(here.code, 0, "{here:?}");
    let opens = fake.seen.all();
    let by_files = opens
        .iter()
        .filter(|request| matches!(request, Request::OpenFiles(_)));
    assert_eq!(by_files.count(), 2, "{opens:?}");
    let missing = Run::of(&mut open(&fake, &["./nothing/here"]));
    assert_eq!(missing.code, 5, "{missing:?}");
    assert!(missing.stderr.contains("./nothing/here"), "{missing:?}");
}

#[test]
fn refusals_have_their_exit_status() {
    for (code, status) in [
        (ErrorCode::NoRoom, 1),
        (ErrorCode::NotPermitted, 4),
        (ErrorCode::ModelNotFound, 5),
        (ErrorCode::TimedOut, 124),
    ] {
        let fake = refusing(code);
        let run = Run::of(&mut open(&fake, &["m"]));
        assert_eq!(run.code, status, "{run:?}");
        assert!(run.stderr.contains("the object: the reason"), "{run:?}");
        let json = Run::of(&mut open(&fake, &["m", "--json"])).json();
        assert_eq!(json["error"]["code"], code.name());
        // The command is not run without its model.
        let run = Run::of(&mut open(&fake, &["m", "--", "echo", "ran"]));
        assert_eq!((run.code, run.stdout.as_str()), (status, ""));
    }
    let run = Run::of(&mut open(&granting(), &["../x/\u{1}"]));
    assert_eq!(run.code, 5, "{run:?}");
    let run = Run::of(&mut open(&granting(), &["a//b"]));
    assert_eq!(run.code, 2, "{run:?}");
}

#[test]
fn doctor_gets_a_session() {
    let fake = granting();
    let run = Run::of(mrm(&["doctor", "--socket"]).arg(fake.socket()));
    assert!(
        run.stdout.contains("fake 1.0 gives a session, protocol 1"),
        "{run:?}"
    );
}
