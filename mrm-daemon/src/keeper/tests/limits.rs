//! At the edge of the limit on open files, on either side.

use super::support::*;
use crate::degraded::Degraded;
use crate::keeper::{KeepError, Keeper, RUN_KEYS, RefusedBy};
use std::path::Path;
use std::process::Command;

/// Runs this binary with at most so many descriptors.
fn limited(open_files: u32) -> Vec<String> {
    let script = format!("ulimit -n {open_files}; exec \"$@\"");
    let exe = std::env::current_exe().unwrap();
    let shell = ["-c", &script, "sh", exe.to_str().unwrap()];
    shell.iter().chain(&ROLE).map(ToString::to_string).collect()
}

#[test]
fn a_full_keeper_refuses_and_keeps_what_it_has() {
    let dir = tempfile::tempdir().unwrap();
    let mut settings = settings(dir.path());
    settings.program = "/bin/sh".into();
    settings.before = limited(400).into_iter().map(Into::into).collect();
    let degraded = Degraded::new();
    let keeper = Keeper::process(settings, &degraded).unwrap();
    let mut kept = 0;
    let refused = loop {
        match put(&keeper, image(&format!("i{kept}"), 9)) {
            Ok(()) => kept += 1,
            Err(error) => break error,
        }
    };
    assert_eq!(refused, KeepError::Refused(RefusedBy::Descriptors));
    // 400 less what is reserved, in tens.
    assert_eq!(kept, 10);
    assert!(degraded.list()[0].cause.contains("LimitNOFILE"));
    let refused = put(&keeper, image("large", 700)).unwrap_err();
    assert!(matches!(refused, KeepError::Refused(_)), "{refused}");

    remove(&keeper, &key("i0")).unwrap();
    put(&keeper, image("again", 9)).unwrap();
    // Without these, none of what it has would be of use to those who lease it.
    while put(&keeper, instance(&format!("other-{kept}"), 1)).is_ok() {
        kept += 1;
    }
    for run in 0..9 {
        put(&keeper, instance(&format!("{RUN_KEYS}-{run}"), run)).unwrap();
    }
    drop(keeper);
    let adoption = adopt_and_stop(dir.path());
    assert_eq!(adoption.entries.len(), kept + 9);
    assert!(adoption.entries.iter().any(|it| it.key == key("again")));
}

/// Adopts with few descriptors, and tells what came of it.
pub(super) fn adopt(args: &[String]) {
    let keeper = keeper(Path::new(&args[0]));
    let adoption = keeper.adopt_all();
    adoption.entries.iter().for_each(verify);
    let (whole, dropped) = (adoption.entries.len(), adoption.dropped.len());
    let reason = adoption.dropped.first().map(ToString::to_string);
    say(&format!(
        "adopted {whole} {dropped} {}",
        reason.unwrap_or_default()
    ));
}

#[test]
fn a_daemon_with_few_descriptors_adopts_what_it_can() {
    let dir = tempfile::tempdir().unwrap();
    let first = keeper(dir.path());
    for name in ["a", "b", "c"] {
        put(&first, image(name, 30)).unwrap();
    }
    drop(first);
    let mut command = Command::new("/bin/sh");
    command.args(limited(60)).arg("--adopt").arg(dir.path());
    let mut role = Role::start(command);
    let said = role.hear("adopted");
    role.end();
    assert!(
        said.starts_with("1 2 b: its descriptors did not fit"),
        "{said}"
    );
    // What nobody could adopt is not kept: its memory would be in nobody's books.
    let adoption = adopt_and_stop(dir.path());
    assert_eq!(keys(&adoption), ["a"]);
}
