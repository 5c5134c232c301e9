//! What a keeper costs. Printed, and not judged: see with `--nocapture`.

use super::support::*;
use std::time::Instant;

const ENTRIES: usize = 1_000;

#[test]
fn memory_and_time_are_printed() {
    let dir = tempfile::tempdir().unwrap();
    let keeper = keeper(dir.path());
    let entries: Vec<_> = (0..ENTRIES)
        .map(|at| segment(&format!("segment-{at}")))
        .collect();
    let pid = keeper_pid(dir.path());
    print_memory(pid, "empty");
    let start = Instant::now();
    let (done, told) = done();
    let mut done = done;
    for (at, entry) in entries.into_iter().enumerate() {
        keeper.put(entry, (at + 1 == ENTRIES).then(|| done.take()).flatten());
    }
    println!(
        "a put takes its caller {:?}",
        start.elapsed() / ENTRIES as u32
    );
    told.recv_timeout(DEADLINE).unwrap().unwrap();
    println!(
        "a put takes {:?} until it is kept",
        start.elapsed() / ENTRIES as u32
    );
    print_memory(pid, "with 1000 entries");
    drop(keeper);
    let start = Instant::now();
    let adoption = super::support::keeper(dir.path());
    println!("adopting them takes {:?}", start.elapsed());
    assert_eq!(adoption.adopt_all().entries.len(), ENTRIES);
    adoption.stop();
}

fn print_memory(pid: i32, when: &str) {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    for line in status.lines() {
        if ["VmRSS", "RssAnon", "RssFile", "Threads"]
            .iter()
            .any(|it| line.starts_with(it))
        {
            println!("{when}: {line}");
        }
    }
}
