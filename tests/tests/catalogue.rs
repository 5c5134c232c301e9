//! What the operator registers: names, directories, listings, and what is said of mistakes.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests"
)]

use mrm_client::Fault;
use mrm_proto::ids::RequestId;
use mrm_proto::limits::LIST_ROWS_MAX;
use mrm_proto::reply::Reply;
use mrm_proto::request::{List, Request};
use mrm_tests::node::{Node, Setup};
use mrm_tests::raw::Raw;
use mrm_tests::{eventually, model};
use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

const UNUSUAL: [&str; 12] = [
    "with space",
    "ünï/çødé-模型",
    "emoji-😀",
    "percent%2Fencoded%",
    "question?limit=1#fragment",
    "plus+amp&semi;",
    "quotes\"'`",
    "back\\slash",
    "-dash/--flag",
    "deep/er/and/deep/er",
    "pin",
    "right-to-left-שלום",
];

/// A root with one model directory for each name, all with the same bytes.
fn rooted(dir: &Path, names: &[&str]) -> (Setup, Vec<u8>) {
    let root = dir.join("root");
    let mut image = Vec::new();
    for name in names {
        image = model::write(&root, &format!("{name}/model.safetensors"), 4096, 2, 5).1;
    }
    (
        Setup::new().setting(&format!("[[catalogue]]\nroot = {root:?}")),
        image,
    )
}

fn encoded(name: &str) -> String {
    name.bytes().fold(String::new(), |mut out, byte| {
        match byte {
            b'/' | b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' => out.push(char::from(byte)),
            other => write!(out, "%{other:02X}").unwrap(),
        }
        out
    })
}

#[test]
fn names_may_have_any_printable_character() {
    let dir = tempfile::tempdir().unwrap();
    let (setup, image) = rooted(dir.path(), &UNUSUAL);
    let node = Node::start_in(dir, &setup);
    let client = node.client();
    for name in UNUSUAL {
        let opened = client.open(name).unwrap_or_else(|e| panic!("{name}: {e}"));
        assert_eq!(opened.segment(0).unwrap().bytes(), image, "{name}");
        let shown = node.get(&format!("/v1/models/{}", encoded(name)));
        assert_eq!(
            (&shown["name"], &shown["leases"]),
            (&name.into(), &1.into()),
            "{shown}"
        );
        let (status, body) = node.post(&format!("/v1/models/{}/pin", encoded(name)));
        assert_eq!((status, &body["name"]), (200, &name.into()), "{body}");
        assert!(client.stat(name).unwrap().row.pinned);
    }
    let listed = eventually("the roots are listed", || {
        let rows = client.list("").unwrap();
        (rows.len() >= UNUSUAL.len()).then_some(rows)
    });
    let listed: BTreeSet<&str> = listed.iter().map(|row| row.name.as_str()).collect();
    assert_eq!(listed, BTreeSet::from(UNUSUAL));
}

#[test]
fn names_that_break_the_rules_are_refused_by_name() {
    let node = Node::start(&Setup::new());
    let long = "x".repeat(10_000);
    for name in [
        "",
        "..",
        "../etc/passwd",
        "/etc/passwd",
        "a//b",
        "a/./b",
        "a/",
        "a\nb",
        "a\0b",
        &long,
    ] {
        let refused = node.client().open(name).unwrap_err();
        assert_eq!(refused.name(), "bad_name", "{name:?}: {refused}");
        assert!(
            refused.to_string().len() < 1024,
            "the name is cut in the message"
        );
    }
    let (status, _) = node.post("/v1/models/../../pin");
    assert_ne!(status, 200);
}

#[test]
fn a_misspelt_name_is_answered_with_its_neighbours() {
    let dir = tempfile::tempdir().unwrap();
    let (path, _) = model::write(dir.path(), "m.safetensors", 4096, 1, 1);
    let (setup, _) = rooted(dir.path(), &["vendor/llama-7b"]);
    let mut setup = setup;
    for name in ["org/bert-base", "org/bert-large", "other/gpt"] {
        setup = setup.model(name, &path);
    }
    let node = Node::start_in(dir, &setup);
    let said = |name: &str| {
        let refused = node.client().open(name).unwrap_err();
        assert_eq!(refused.name(), "model_not_found", "{refused}");
        refused.to_string()
    };
    for (wrong, right) in [
        ("org/brt-base", "`org/bert-base`"),
        ("bert-large", "`org/bert-large`"),
        ("other/GPT", "`other/gpt`"),
    ] {
        let text = said(wrong);
        assert!(text.contains(right) && text.contains(wrong), "{text}");
    }
    // What is below roots is suggested once it was listed.
    eventually("the roots are listed", || {
        let models = node.get("/v1/models?prefix=vendor/");
        (models["models"].as_array().unwrap().len() == 1).then_some(())
    });
    let text = said("vendor/lama-7b");
    assert!(text.contains("`vendor/llama-7b`"), "{text}");
    let far = said("something-else-entirely");
    assert!(!far.contains("bert"), "{far}");
}

#[test]
fn a_listing_of_many_comes_in_pages() {
    let dir = tempfile::tempdir().unwrap();
    let (path, _) = model::write(dir.path(), "m.safetensors", 4096, 1, 1);
    let below: Vec<String> = (0..300).map(|i| format!("below/m{i:03}")).collect();
    let below_text: Vec<&str> = below.iter().map(String::as_str).collect();
    let (mut setup, _) = rooted(dir.path(), &below_text);
    let entries: Vec<String> = (0..330).map(|i| format!("entry/{i:03}")).collect();
    for name in &entries {
        setup = setup.model(name, &path);
    }
    let node = Node::start_in(dir, &setup);
    let client = node.client();
    eventually("the roots are listed", || {
        (client.list("").unwrap().len() == 630).then_some(())
    });

    let mut raw = Raw::hello(&node.socket());
    let (mut names, mut pages) = (Vec::new(), 0_u64);
    loop {
        pages += 1;
        let list = List {
            prefix: String::new(),
            after: names.last().cloned(),
        };
        let reply = raw.ask(RequestId(pages), &Request::List(list), &[]);
        let Reply::Listed(listed) = reply else {
            panic!("{reply:?}")
        };
        assert!(!listed.models.is_empty() && listed.models.len() <= LIST_ROWS_MAX);
        names.extend(listed.models.into_iter().map(|row| row.name));
        if !listed.more {
            break;
        }
    }
    let expected: Vec<&str> = below.iter().chain(&entries).map(String::as_str).collect();
    assert!(
        names
            .iter()
            .map(|name| name.as_str())
            .eq(expected.iter().copied()),
        "{names:?}"
    );
    assert!(pages >= 3, "{pages}");
    assert_eq!(client.list("entry/1").unwrap().len(), 100);
    assert_eq!(client.list("nothing").unwrap().len(), 0);

    // The same over HTTP.
    let (mut listed, mut after) = (0, String::new());
    loop {
        let page = node.get(&format!("/v1/models?limit=100&after={}", encoded(&after)));
        let models = page["models"].as_array().unwrap();
        listed += models.len();
        models.last().unwrap()["name"]
            .as_str()
            .unwrap()
            .clone_into(&mut after);
        if page["more"] == false {
            break;
        }
    }
    assert_eq!(listed, 630);
}

#[test]
fn directories_nest_and_may_have_a_prefix() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("root");
    let (_, image) = model::write(&root, "a/b/c/model.safetensors", 4096, 2, 1);
    let (_, beside) = model::write(&root, "a/b/single.safetensors", 4096, 2, 2);
    model::write_sharded(&root.join("a/sharded"), 2, 4096, 3);
    model::write(&root, "a/.hidden/model.safetensors", 4096, 2, 4);
    let (outside, _) = model::write(dir.path(), "outside.safetensors", 4096, 2, 5);
    symlink(&outside, root.join("escape.safetensors")).unwrap();
    let setting = format!("[[catalogue]]\nroot = {root:?}\nprefix = \"team/x\"");
    let node = Node::start_in(dir, &Setup::new().setting(&setting));
    let client = node.client();
    let bytes = |name: &str| {
        let opened = client.open(name).unwrap_or_else(|e| panic!("{name}: {e}"));
        opened.segment(0).unwrap().bytes().to_vec()
    };
    assert_eq!(bytes("team/x/a/b/c"), image);
    assert_eq!(bytes("team/x/a/b/c/model.safetensors"), image);
    assert_eq!(bytes("team/x/a/b/single.safetensors"), beside);
    assert_eq!(client.open("team/x/a/sharded").unwrap().segments().len(), 3);
    let refused = |name: &str| client.open(name).unwrap_err();
    for (name, code) in [
        ("a/b/c", "model_not_found"),
        ("team/x/a/.hidden", "model_not_found"),
        ("team/x/escape.safetensors", "outside_root"),
    ] {
        assert_eq!(refused(name).name(), code, "{name}: {}", refused(name));
    }
    // No scan is needed for what comes later.
    let (_, later) = model::write(&root, "later/model.safetensors", 4096, 2, 6);
    assert_eq!(bytes("team/x/later"), later);
    eventually("the listing sees it too", || {
        let rows = client.list("team/x/later").unwrap();
        rows.iter()
            .any(|row| row.name.as_str() == "team/x/later")
            .then_some(())
    });
}

#[test]
fn a_directory_that_is_no_model_says_why() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("root");
    model::write(&root, "two/a.safetensors", 4096, 1, 1);
    model::write(&root, "two/b.safetensors", 4096, 1, 2);
    fs::create_dir_all(root.join("none")).unwrap();
    fs::write(root.join("none/README"), "nothing").unwrap();
    let setup = Setup::new()
        .model("two", &root.join("two"))
        .model("none", &root.join("none"));
    let setup = setup.model("missing", &root.join("missing"));
    let node = Node::start_in(dir, &setup);
    for (name, words) in [
        ("two", ["a.safetensors", "b.safetensors"]),
        ("none", ["no `.safetensors` file", "none"]),
        ("missing", ["missing", "root"]),
    ] {
        let refused = node.client().open(name).unwrap_err();
        let text = refused.to_string();
        println!("{name}: {} ({})", text, refused.name());
        assert!(words.iter().all(|word| text.contains(word)), "{text}");
        assert!(
            ["bad_file_set", "source_missing", "model_not_found"].contains(&refused.name()),
            "{}",
            refused.name()
        );
    }
    node.until_idle();
    assert_eq!(node.number("/host/charged_bytes"), 0);
}
