//! Listings are complete, or say what they lack.

use super::*;
use crate::catalogue::scan::{Bounds, scan};

fn names(scan: &Scan) -> Vec<&str> {
    scan.models
        .iter()
        .map(|model| model.name.as_str())
        .collect()
}

#[test]
fn a_scan_lists_what_can_be_opened() {
    let dir = library();
    let catalogue = roots(&[dir.path()]);
    let scan = catalogue.scan();
    let by_revision = format!("sentence-transformers/all-MiniLM-L6-v2@{REVISION}");
    assert_eq!(
        names(&scan),
        [
            "bert",
            "llama.gguf",
            "org/large",
            "org/odd",
            "org/two/a.safetensors",
            "org/two/b.safetensors",
            "sentence-transformers/all-MiniLM-L6-v2",
            by_revision.as_str(),
            "single.safetensors",
        ]
    );
    assert_eq!((scan.cuts, scan.cuts_unlisted), (vec![], 0));
    for model in &scan.models {
        assert!(
            open(&catalogue, model.name.as_str()).is_ok(),
            "{}",
            model.name
        );
        assert!(!model.entry && model.path.starts_with(dir.path()));
    }
}

#[test]
fn entries_hide_what_roots_call_the_same() {
    let dir = library();
    let path = dir.path().join("llama.gguf");
    let own = Entry {
        name: name("bert"),
        path: path.clone(),
        pin: false,
        eager: true,
    };
    let root = Root {
        path: dir.path().to_owned(),
        prefix: None,
    };
    let catalogue = Catalogue::new(vec![own], vec![root], Degraded::new()).expect("a catalogue");
    assert_opens(&catalogue, "bert", &["llama.gguf"]);
    let scan = catalogue.scan();
    let bert = scan
        .models
        .iter()
        .find(|m| m.name.as_str() == "bert")
        .expect("listed");
    assert_eq!((bert.entry, &bert.path), (true, &path));
}

#[test]
fn links_neither_lead_a_scan_away_nor_in_circles() {
    let dir = library();
    let root = dir.path().join("org");
    link(&root, "circle", ".");
    link(&root, "odd-too", "odd");
    link(&root, "single", "odd/weights.safetensors");
    link(&root, "outside", "../bert");
    link(&root, "dangling", "nothing");
    let scan = roots(&[&root]).scan();
    assert_eq!(
        names(&scan),
        [
            "large",
            "odd",
            "odd-too",
            "single",
            "two/a.safetensors",
            "two/b.safetensors"
        ]
    );
    let cuts: Vec<_> = scan.cuts.iter().map(ToString::to_string).collect();
    assert_eq!(cuts.len(), 2, "{cuts:?}");
    assert!(
        cuts[0].contains("dangling") && cuts[1].contains("outside its root"),
        "{cuts:?}"
    );
}

#[test]
fn bounds_end_a_scan_and_are_reported() {
    let dir = tempfile::tempdir().expect("a directory");
    for i in 0..20 {
        put(dir.path(), &format!("d{i:02}/f"), "x");
    }
    let catalogue = roots(&[dir.path()]);
    let found = scan(
        &catalogue,
        Bounds {
            entries_max: 25,
            ..Bounds::default()
        },
    );
    assert_eq!(found.models.len(), 5);
    assert!(
        matches!(
            &found.cuts[..],
            [Cut::Entries {
                entries_max: 25,
                ..
            }]
        ),
        "{found:?}"
    );

    let deep = (0..=SCAN_DEPTH_MAX)
        .map(|_| "d")
        .collect::<Vec<_>>()
        .join("/");
    put(dir.path(), &format!("{deep}/f"), "x");
    let found = catalogue.scan();
    assert_eq!(found.models.len(), 20);
    assert!(matches!(
        &found.cuts[..],
        [Cut::Depth {
            depth_max: SCAN_DEPTH_MAX,
            ..
        }]
    ));
    let words = "register it as a root by itself";
    assert!(
        found.cuts[0].to_string().contains(words),
        "{}",
        found.cuts[0]
    );
}

#[test]
fn names_that_cannot_be_models_and_roots_that_are_gone_are_reported() {
    use std::os::unix::ffi::OsStrExt;
    let dir = tempfile::tempdir().expect("a directory");
    fs::write(dir.path().join("new\nline"), "x").expect("a file");
    fs::write(dir.path().join(std::ffi::OsStr::from_bytes(b"\xff")), "x").expect("a file");
    put(dir.path(), "good", "x");
    let gone = dir.path().join("gone");
    let scan = roots(&[dir.path(), &gone]).scan();
    assert_eq!(names(&scan), ["good"]);
    assert!(matches!(
        &scan.cuts[..],
        [Cut::Unnameable { files: 2, .. }, Cut::Unreadable { path, .. }] if *path == gone
    ));
}

#[test]
fn the_list_of_cuts_is_bounded() {
    let dir = tempfile::tempdir().expect("a directory");
    for i in 0..SCAN_CUTS_MAX + 5 {
        link(dir.path(), &format!("dangling{i}"), "nothing");
    }
    let scan = roots(&[dir.path()]).scan();
    assert_eq!((scan.cuts.len(), scan.cuts_unlisted), (SCAN_CUTS_MAX, 5));
}
