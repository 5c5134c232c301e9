//! Each command of `mrm` against a status socket with canned answers.
#![cfg(feature = "cli")]

mod cli_support;

use cli_support::{Fake, Run, error, mrm};
use std::process::Stdio;

#[test]
fn status_is_an_overview_with_every_degraded_path() {
    let fake = Fake::usual();
    let run = fake.run(&["status"]);
    assert_eq!((run.code, run.stderr.as_str()), (0, ""), "{run:?}");
    for part in [
        "mrmd 0.1.0, serving, pid 812, up 2 h 5 min, protocol 1",
        "2.0 GiB of 8.0 GiB (25 %)",
        "1 session, 2 leases, 0 waiting, 0 loading",
        "huge_pages: shmem_enabled is never",
        "cure: echo advise",
    ] {
        assert!(run.stdout.contains(part), "{part}: {run:?}");
    }
    assert!(!run.stdout.contains('\x1b') && !run.stdout.contains('█'));
    assert_eq!(
        fake.run(&["status", "--json"]).json()["daemon"]["instance"],
        "9f0c"
    );
    let colored = fake.run(&["--color", "always", "status"]);
    assert!(colored.stdout.contains("\x1b[32mserving\x1b[0m"));
}

#[test]
fn ls_is_a_table_and_json_keeps_fields_that_it_does_not_know() {
    let fake = Fake::usual();
    let run = fake.run(&["ls"]);
    let expected = "\
NAME      STATE         SIZE  HUGE  LEASES  PIN     LAST USE
org/bert  resident  86.7 MiB  99 %       2  pinned  3 s ago
org/zero  absent           -     -       0          -
";
    assert_eq!(run.stdout, expected, "{run:?}");
    let json = fake.run(&["ls", "--json", "org/ b"]).json();
    assert_eq!(json["models"][0]["a_field_of_the_future"][0], 1);
    let asked = fake.requests();
    assert_eq!(
        asked.last().unwrap(),
        "GET /v1/models?prefix=org%2F%20b&limit=256"
    );
}

#[test]
fn ls_reads_every_page() {
    let fake = Fake::serving(|_, target| {
        let (name, more) = if target.contains("after=a") {
            ("b", false)
        } else {
            ("a", true)
        };
        let model = serde_json::json!({"name": name, "state": "absent"});
        (
            200,
            serde_json::json!({"models": [model], "more": more}).to_string(),
        )
    });
    let json = fake.run(&["ls", "--json"]).json();
    assert_eq!(json["models"].as_array().unwrap().len(), 2);
    assert_eq!(json["more"], false);
}

#[test]
fn show_has_files_and_holders() {
    let fake = Fake::usual();
    let run = fake.run(&["show", "org/bert"]);
    for part in [
        "tensors     103",
        "load        45.2 ms",
        "kept free   3.0 GiB on devices, at most, of late\n",
        "model.safetensors  resident  86.7 MiB",
        "0123456789abcdef\n",
        "trainer",
    ] {
        assert!(run.stdout.contains(part), "{part}: {run:?}");
    }
    assert_eq!(
        fake.run(&["show", "org/bert", "--json"]).json()["tensors"],
        103
    );
}

#[test]
fn top_prints_once_when_nobody_watches_and_shows_hostile_names_harmlessly() {
    let fake = Fake::usual();
    for args in [&["top"][..], &["top", "--once"][..]] {
        let run = fake.run(args);
        assert_eq!(run.code, 0, "{run:?}");
        assert!(run.stdout.contains("org/bert") && !run.stdout.contains("org/zero"));
        assert!(run.stdout.contains("evil\\u{1b}[2J") && !run.stdout.contains('\x1b'));
    }
    let json = fake.run(&["top", "--json"]).json();
    assert_eq!(json["sessions"][0]["id"], 4);
    assert_eq!(json["status"]["leases"], 2);
}

#[test]
fn verbs_say_what_they_did_and_quiet_ones_do_not() {
    let fake = Fake::usual();
    assert_eq!(fake.run(&["pin", "org/bert"]).stdout, "org/bert: pinned\n");
    assert_eq!(
        fake.run(&["unpin", "org/bert"]).stdout,
        "org/bert: no longer pinned\n"
    );
    let warm = fake.run(&["warm", "org/bert", "--wait", "2m"]);
    assert_eq!(warm.stdout, "org/bert: loaded in 45.2 ms (86.7 MiB)\n");
    assert_eq!(
        fake.requests().last().unwrap(),
        "POST /v1/models/org/bert/warm?wait_ms=120000"
    );
    let quiet = fake.run(&["-q", "pin", "org/bert"]);
    assert_eq!((quiet.code, quiet.stdout.as_str()), (0, ""));
}

#[test]
fn a_verb_goes_on_past_a_model_that_is_refused() {
    let fake = Fake::usual();
    let run = fake.run(&["pin", "nothing", "org/bert"]);
    assert_eq!(
        (run.code, run.stdout.as_str()),
        (5, "org/bert: pinned\n"),
        "{run:?}"
    );
    assert!(
        run.stderr.starts_with("mrm: nothing: no model `x`"),
        "{run:?}"
    );
    let json = fake.run(&["pin", "--json", "nothing", "org/bert"]);
    assert_eq!(json.code, 5);
    let json = json.json();
    assert_eq!(json["results"][0]["error"]["code"], "model_not_found");
    assert_eq!(json["results"][1]["ok"], true);
    assert_eq!(json["error"]["exit_status"], 5);
}

#[test]
fn events_are_lines() {
    let fake = Fake::usual();
    let run = fake.run(&["events"]);
    let expected = "\
2026-11-22 05:44:55.123Z       1  load_done        org/bert  86.7 MiB  45 ms
2026-11-22 05:44:56.000Z       2  open_loaded      session 4  org/bert
";
    assert_eq!(run.stdout, expected, "{run:?}");
    let json = fake.run(&["events", "--json"]).json();
    assert_eq!(
        (&json["next"], json["events"].as_array().unwrap().len()),
        (&3.into(), 2)
    );
}

#[test]
fn followed_events_are_one_object_each_until_the_daemon_ends() {
    let fake = Fake::serving(|method, target| {
        if target.contains("since=0") {
            return cli_support::usual(method, target);
        }
        error(503, "draining", 504, "mrmd is about to exit; start another")
    });
    let run = fake.run(&["events", "--follow", "--json"]);
    assert_eq!(run.code, 1, "{run:?}");
    let lines: Vec<serde_json::Value> = run
        .stdout
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    assert_eq!((&lines[0]["seq"], &lines[1]["seq"]), (&1.into(), &2.into()));
    assert_eq!(lines[2]["error"]["code"], "draining");
    assert_eq!(
        fake.requests()[1],
        "GET /v1/events?since=3&limit=1024&wait_ms=20000"
    );
}

#[test]
fn completions_and_the_manual_need_no_daemon() {
    for shell in ["bash", "zsh", "fish"] {
        let run = Run::of(&mut mrm(&["completions", shell]));
        assert_eq!(run.code, 0);
        assert!(run.stdout.contains("evict"), "{shell}");
    }
    let page = Run::of(&mut mrm(&["man"])).stdout;
    for section in ["EXIT STATUS", "ENVIRONMENT", "FILES"] {
        assert!(page.contains(&format!(".SH \"{section}\"")), "{section}");
    }
    assert!(
        Run::of(&mut mrm(&["--help"]))
            .stdout
            .contains("3 no daemon")
    );
}

#[test]
fn a_reader_that_has_gone_is_no_failure() {
    let fake = Fake::usual();
    for args in [
        &["ls"][..],
        &["ls", "--json"],
        &["man"],
        &["completions", "bash"],
        &["--help"],
    ] {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let run = fake
            .command(args)
            .stdout(writer)
            .stderr(Stdio::piped())
            .output()
            .unwrap();
        assert!(run.status.success(), "{args:?}: {run:?}");
        assert!(run.stderr.is_empty(), "{args:?}: {run:?}");
    }
}
