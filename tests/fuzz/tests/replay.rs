//! Replays the committed corpus and every input that once failed. `MRM_UPDATE=1` writes seeds that
//! are missing.

#![allow(clippy::expect_used, clippy::panic, reason = "tests")]

use mrm_fuzz::{TARGETS, Target, Verdict, home, seeds};
use std::collections::BTreeSet;
use std::fs;
use std::panic::catch_unwind;
use std::path::{Path, PathBuf};

/// What all committed inputs together may take, so that a checkout stays small.
const CORPUS_BYTES_MAX: u64 = 1 << 20;
const CORPUS_FILES_MAX: usize = 1000;

fn files(directory: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(directory) else {
        return Vec::new();
    };
    let entries = entries.map(|entry| entry.expect("an entry").path());
    let mut files: Vec<_> = entries.collect();
    files.sort();
    files
}

fn run(target: &Target, path: &Path) -> Verdict {
    let input = fs::read(path).expect("a readable input");
    let run = target.run;
    catch_unwind(|| run(&input))
        .unwrap_or_else(|_| panic!("target {} fails on {}", target.name, path.display()))
}

/// Replays all inputs of a target. A corpus that never gets past a parser, or that nothing is
/// wrong with, tests only half of what it should.
fn replay(name: &str) {
    let target = Target::find(name).expect("a target");
    for (seed, bytes) in seeds::of(target) {
        let path = target.corpus().join(format!("seed-{seed}"));
        if !path.exists() && std::env::var_os("MRM_UPDATE").is_some() {
            fs::create_dir_all(target.corpus()).expect("a directory");
            fs::write(&path, &bytes).expect("writes a new seed");
        }
        let now = fs::read(&path).unwrap_or_default();
        let path = path.display();
        assert!(
            now == bytes,
            "{path} is not the seed of its name; delete it, and MRM_UPDATE=1 writes it anew"
        );
    }
    let corpus = files(&target.corpus());
    let verdicts: Vec<_> = corpus.iter().map(|path| run(target, path)).collect();
    assert!(verdicts.contains(&Verdict::Accepted), "nothing accepted");
    assert!(verdicts.contains(&Verdict::Refused), "nothing refused");
    for path in files(&target.regressions()) {
        run(target, &path);
    }
}

macro_rules! replays {
    ($($name:ident)*) => {
        $(#[test] fn $name() { replay(stringify!($name)); })*

        #[test]
        fn every_target_is_replayed_and_every_input_has_a_target() {
            let replayed = BTreeSet::from([$(stringify!($name)),*]);
            let targets: BTreeSet<_> = TARGETS.iter().map(|target| target.name).collect();
            assert_eq!(replayed, targets);
            for kind in ["corpus", "regressions"] {
                for directory in files(&home().join(kind)) {
                    let name = directory.file_name().and_then(|name| name.to_str());
                    let known = name.is_some_and(|name| targets.contains(name));
                    assert!(known, "{} belongs to no target", directory.display());
                }
            }
        }
    };
}

replays! {
    client_reply config frame hello keeper reply request safetensors_header safetensors_index table
}

#[test]
fn seeds_get_past_the_parser_unless_they_say_otherwise() {
    for target in TARGETS {
        for (name, bytes) in seeds::of(target) {
            let wanted = match name.starts_with("bad-") {
                true => Verdict::Refused,
                false => Verdict::Accepted,
            };
            assert_eq!((target.run)(&bytes), wanted, "{} {name}", target.name);
        }
    }
}

#[test]
fn the_corpus_is_small() {
    let inputs = TARGETS.iter().flat_map(|target| {
        let inputs = files(&target.corpus()).into_iter();
        inputs.chain(files(&target.regressions()))
    });
    let sizes: Vec<u64> = inputs
        .map(|path| path.metadata().expect("an input").len())
        .collect();
    let bytes: u64 = sizes.iter().sum();
    assert!(sizes.len() <= CORPUS_FILES_MAX, "{} files", sizes.len());
    assert!(bytes <= CORPUS_BYTES_MAX, "{bytes} bytes");
}
