//! House rules that a machine can check, over every file of the repository.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests"
)]

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

const LINES_MAX: usize = 600;

/// All that may stand at the top besides dot files.
const TOP: [&str; 12] = [
    "CHANGELOG.md",
    "Cargo.lock",
    "Cargo.toml",
    "LICENSE",
    "README.md",
    "deny.toml",
    "ffi",
    "mrm-client",
    "mrm-daemon",
    "proto",
    "scripts",
    "tests",
];

/// The files with code that the compiler cannot vouch for. A new one is a decision.
const UNCHECKED: [&str; 54] = [
    "ffi/src/about.rs",
    "ffi/src/client.rs",
    "ffi/src/copy.rs",
    "ffi/src/device.rs",
    "ffi/src/dlpack.rs",
    "ffi/src/dtype.rs",
    "ffi/src/error.rs",
    "ffi/src/guard.rs",
    "ffi/src/model.rs",
    "ffi/src/pointer.rs",
    "ffi/src/ready.rs",
    "ffi/src/types.rs",
    "ffi/tests/abi.rs",
    "ffi/tests/device.rs",
    "ffi/tests/early.rs",
    "ffi/tests/many.rs",
    "mrm-client/cuda/src/context.rs",
    "mrm-client/cuda/src/driver.rs",
    "mrm-client/cuda/src/legacy.rs",
    "mrm-client/cuda/src/pinned.rs",
    "mrm-client/cuda/src/ring.rs",
    "mrm-client/cuda/src/stream.rs",
    "mrm-client/cuda/src/upload.rs",
    "mrm-client/cuda/src/vmm.rs",
    "mrm-client/cuda/tests/conformance/raw.rs",
    "mrm-client/src/bin/mrm/probe.rs",
    "mrm-client/src/fork.rs",
    "mrm-client/src/mapping.rs",
    "mrm-client/tests/fork.rs",
    "mrm-daemon/src/memory/host.rs",
    "mrm-daemon/src/memory/tests.rs",
    "mrm-daemon/src/runtime/activation.rs",
    "mrm-daemon/src/transfer/ring.rs",
    "mrm-daemon/src/transfer/stream.rs",
    "mrm-daemon/src/watched.rs",
    "tests/fake-cuda/src/abi.rs",
    "tests/fake-cuda/src/api/copy.rs",
    "tests/fake-cuda/src/args.rs",
    "tests/fake-cuda/src/block.rs",
    "tests/fake-cuda/src/call.rs",
    "tests/fake-cuda/src/space.rs",
    "tests/fake-cuda/src/stream.rs",
    "tests/fake-cuda/tests/common/cu.rs",
    "tests/fake-cuda/tests/common/mod.rs",
    "tests/fake-cuda/tests/copy.rs",
    "tests/fake-cuda/tests/device.rs",
    "tests/fake-cuda/tests/legacy.rs",
    "tests/fake-cuda/tests/vmm.rs",
    "tests/gpu/src/bare.rs",
    "tests/src/bin/mrm-bench/floor.rs",
    "tests/src/bin/mrm-bench/touch.rs",
    "tests/src/bin/mrm-hold.rs",
    "tests/src/attempts.rs",
    "tests/src/cuda.rs",
];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .unwrap()
        .to_owned()
}

/// Every file that is tracked; without git, every file but what builds leave.
fn files() -> BTreeSet<String> {
    let git = Command::new("git")
        .arg("-C")
        .arg(root())
        .args(["ls-files", "-z"])
        .output();
    let tracked = git
        .ok()
        .filter(|git| git.status.success())
        .map(|git| git.stdout);
    let list = match tracked {
        Some(names) => {
            let names = String::from_utf8(names).unwrap();
            names
                .split('\0')
                .filter(|name| !name.is_empty())
                .map(str::to_owned)
                .collect()
        }
        None => {
            let mut found = BTreeSet::new();
            walk(&root(), "", &mut found);
            found
        }
    };
    let there = |name: &String| root().join(name).is_file();
    let list: BTreeSet<String> = list.into_iter().filter(there).collect();
    assert!(
        list.len() > 100,
        "{} files are not this repository",
        list.len()
    );
    list
}

fn walk(dir: &Path, prefix: &str, found: &mut BTreeSet<String>) {
    const LEFT_BY_BUILDS: [&str; 5] = ["target", ".git", "__pycache__", "build", "dist"];
    for entry in fs::read_dir(dir).unwrap().map(Result::unwrap) {
        let name = entry.file_name().into_string().unwrap();
        if LEFT_BY_BUILDS.contains(&name.as_str()) || name.ends_with(".egg-info") {
            continue;
        }
        match entry.file_type().unwrap().is_dir() {
            true => walk(&entry.path(), &format!("{prefix}{name}/"), found),
            false => drop(found.insert(format!("{prefix}{name}"))),
        }
    }
}

fn read(name: &str) -> String {
    String::from_utf8_lossy(&fs::read(root().join(name)).unwrap()).into_owned()
}

fn rust() -> impl Iterator<Item = (String, String)> {
    let named = |name: String| (name.clone(), read(&name));
    files()
        .into_iter()
        .filter(|name| name.ends_with(".rs"))
        .map(named)
}

/// Lines that are not comments.
fn code(text: &str) -> impl Iterator<Item = &str> {
    text.lines()
        .filter(|line| !line.trim_start().starts_with("//"))
}

fn none(what: &str, offenders: Vec<String>) {
    assert!(
        offenders.is_empty(),
        "{what}:\n  {}",
        offenders.join("\n  ")
    );
}

#[test]
fn no_file_is_too_long() {
    let long = rust()
        .filter(|(_, text)| text.lines().count() > LINES_MAX)
        .map(|(name, _)| name);
    none("over 600 lines", long.collect());
}

#[test]
fn only_named_files_have_unchecked_code() {
    let word = concat!("un", "safe");
    let is_part = |c: char| c.is_alphanumeric() || c == '_';
    let has = |line: &str| line.split(|c| !is_part(c)).any(|part| part == word);
    let found: BTreeSet<String> = rust()
        .filter(|(_, text)| code(text).any(has))
        .map(|(name, _)| name)
        .collect();
    let named = UNCHECKED.map(str::to_owned).into();
    none(
        "not in the list of this test",
        found.difference(&named).cloned().collect(),
    );
    none(
        "in the list for nothing",
        named.difference(&found).cloned().collect(),
    );
}

#[test]
fn nothing_is_left_to_do() {
    let marks = [
        concat!("todo", "!("),
        concat!("unimplemented", "!("),
        concat!("dbg", "!("),
    ];
    let marked = |text: &str| code(text).any(|line| marks.iter().any(|mark| line.contains(mark)));
    none(
        "unfinished",
        rust()
            .filter(|(_, text)| marked(text))
            .map(|(name, _)| name)
            .collect(),
    );
}

#[test]
fn public_modules_open_with_an_example() {
    let mut without = Vec::new();
    let mut seen = 0;
    for source in ["proto/src", "mrm-daemon/core/src"] {
        for line in read(&format!("{source}/lib.rs")).lines() {
            let Some(name) = line
                .strip_prefix("pub mod ")
                .and_then(|l| l.strip_suffix(';'))
            else {
                continue;
            };
            seen += 1;
            let file = format!("{source}/{name}.rs");
            if !read(&file)
                .lines()
                .take_while(|l| l.starts_with("//!"))
                .any(|l| l == "//! ```")
            {
                without.push(file);
            }
        }
    }
    assert!(seen > 10, "{seen}");
    none("no example", without);
}

/// The targets of the links of a text.
fn links(text: &str) -> impl Iterator<Item = &str> {
    text.split("](")
        .skip(1)
        .filter_map(|rest| rest.split(')').next())
}

#[test]
fn documents_are_there_and_their_links_lead_somewhere() {
    let all = files();
    let documents = [
        "README.md",
        "CHANGELOG.md",
        "mrm-daemon/DESIGN.md",
        "proto/PROTOCOL.md",
    ];
    for document in documents {
        assert!(all.contains(document), "{document} is missing");
    }
    let mut broken = Vec::new();
    for name in all.iter().filter(|name| name.ends_with(".md")) {
        let path = root().join(name);
        for link in links(&read(name)) {
            let file = link.split('#').next().unwrap_or_default();
            let is_local =
                !file.is_empty() && !file.contains("://") && !file.starts_with("mailto:");
            if is_local && !path.parent().unwrap().join(file).exists() {
                broken.push(format!("{name}: {link}"));
            }
        }
    }
    none("broken links", broken);
}

#[test]
fn the_top_has_what_it_should() {
    let files = files();
    let top: BTreeSet<&str> = files
        .iter()
        .map(|name| name.split('/').next().unwrap_or(name))
        .filter(|name| !name.starts_with('.'))
        .collect();
    assert_eq!(top, BTreeSet::from(TOP));
}

#[test]
fn no_path_of_one_machine_is_written_down() {
    let paths = [
        concat!("/wo", "rk/"),
        concat!("/ro", "ot/"),
        concat!("/home", "/"),
    ];
    let mut found = Vec::new();
    for name in files() {
        let text = read(&name);
        let lines = text.lines().enumerate();
        let hits = lines.filter(|(_, line)| paths.iter().any(|path| line.contains(path)));
        found.extend(hits.map(|(at, line)| format!("{name}:{}: {}", at + 1, line.trim())));
    }
    none("paths of one machine", found);
}

#[test]
fn the_decider_depends_on_nothing() {
    let manifest = read("mrm-daemon/core/Cargo.toml");
    let mut section = "";
    let mut dependencies = Vec::new();
    for line in manifest
        .lines()
        .map(str::trim)
        .filter(|l| !l.is_empty() && !l.starts_with('#'))
    {
        match line.starts_with('[') {
            true => section = line,
            false if section.contains("dependencies]") && section != "[dev-dependencies]" => {
                dependencies.push(line.split(['.', ' ', '=']).next().unwrap_or(line));
            }
            false => assert!(!section.contains("dependencies."), "{section}"),
        }
    }
    assert_eq!(dependencies, ["thiserror"]);
}
