//! Names lead to files, and to nothing else.

use super::*;
use crate::format::testing::{index, one_tensor};
use crate::format::{self, FormatError};
use crate::source::SourceError;
use mrm_proto::error::ErrorCode;
use mrm_proto::table::Table;
use rustix::fs::{CWD, Mode, mkfifoat};
use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use tempfile::TempDir;

mod scanning;

const INDEX: &str = "model.safetensors.index.json";
const MINI_LM: &str = "models--sentence-transformers--all-MiniLM-L6-v2";
const REVISION: &str = "c9745ed1d9f207416be6d2e6f8de32d1f16199bf";

fn name(text: &str) -> ModelName {
    ModelName::new(text).expect("a test's name")
}

fn put(root: &Path, rel: &str, bytes: impl AsRef<[u8]>) {
    let path = root.join(rel);
    fs::create_dir_all(path.parent().expect("below a root")).expect("directories");
    fs::write(path, bytes).expect("a file");
}

fn link(root: &Path, rel: &str, target: &str) {
    let path = root.join(rel);
    fs::create_dir_all(path.parent().expect("below a root")).expect("directories");
    symlink(target, path).expect("a link");
}

fn roots(paths: &[&Path]) -> Catalogue {
    let roots = paths
        .iter()
        .map(|path| Root {
            path: (*path).to_owned(),
            prefix: None,
        })
        .collect();
    Catalogue::new(vec![], roots, Degraded::new()).expect("a catalogue")
}

fn entry(path: PathBuf) -> Catalogue {
    let entry = Entry {
        name: name("m"),
        path,
        pin: true,
        eager: false,
    };
    Catalogue::new(vec![entry], vec![], Degraded::new()).expect("a catalogue")
}

fn open(catalogue: &Catalogue, model: &str) -> Result<OpenFiles, CatalogueError> {
    let model = name(model);
    let spec = catalogue
        .find(&model)
        .ok_or_else(|| catalogue.not_found(&model))?;
    catalogue.open_files(&spec)
}

fn file_names(files: &OpenFiles) -> Vec<&str> {
    files.iter().map(|(name, _)| name.as_str()).collect()
}

#[track_caller]
fn assert_opens(catalogue: &Catalogue, model: &str, files: &[&str]) {
    let opened = open(catalogue, model).unwrap_or_else(|e| panic!("{model}: {e}"));
    assert_eq!(file_names(&opened), files, "{model}");
    format::inspect(&opened).unwrap_or_else(|e| panic!("{model}: {e}"));
}

#[track_caller]
fn assert_refused(result: Result<OpenFiles, CatalogueError>, code: ErrorCode, words: &[&str]) {
    let Err(error) = result else {
        panic!("opened, should be {code}")
    };
    let message = error.to_string();
    assert_eq!(error.code(), code, "{message}");
    for word in words {
        assert!(message.contains(word), "no {word:?} in {message:?}");
    }
    assert!(message.contains("; "), "no remedy in {message:?}");
}

/// A root with one of each thing.
fn library() -> TempDir {
    let dir = tempfile::tempdir().expect("a directory");
    let root = dir.path();
    put(root, "bert/model.safetensors", one_tensor("w"));
    put(root, "bert/config.json", "{}");
    put(root, "org/large/a.safetensors", one_tensor("x"));
    put(root, "org/large/b.safetensors", one_tensor("y"));
    let map = index(&[("x", "a.safetensors"), ("y", "b.safetensors")]);
    put(root, &format!("org/large/{INDEX}"), map);
    put(root, "org/odd/weights.safetensors", one_tensor("w"));
    put(root, "org/two/a.safetensors", one_tensor("w"));
    put(root, "org/two/b.safetensors", one_tensor("w"));
    put(root, "llama.gguf", b"GGUF");
    put(root, "single.safetensors", one_tensor("w"));
    put(root, ".hidden/model.safetensors", one_tensor("w"));
    hub(root);
    dir
}

/// A hub cache as its client lays it out.
fn hub(root: &Path) {
    put(
        root,
        &format!("{MINI_LM}/blobs/53aa51172d142c89"),
        one_tensor("w"),
    );
    put(root, &format!("{MINI_LM}/refs/main"), REVISION);
    put(root, &format!("{MINI_LM}/refs/v1"), format!("{REVISION}\n"));
    let file = format!("{MINI_LM}/snapshots/{REVISION}/model.safetensors");
    link(root, &file, "../../blobs/53aa51172d142c89");
}

#[test]
fn names_below_a_root_lead_to_models() {
    let dir = library();
    let catalogue = roots(&[dir.path()]);
    assert_opens(&catalogue, "bert", &["model.safetensors"]);
    assert_opens(&catalogue, "bert/config.json", &["config.json"]);
    assert_opens(
        &catalogue,
        "org/large",
        &["a.safetensors", "b.safetensors", INDEX],
    );
    let by_index = format!("org/large/{INDEX}");
    assert_opens(
        &catalogue,
        &by_index,
        &["a.safetensors", "b.safetensors", INDEX],
    );
    assert_opens(&catalogue, "org/odd", &["weights.safetensors"]);
    assert_opens(&catalogue, "org/two/b.safetensors", &["b.safetensors"]);
    assert_opens(&catalogue, "llama.gguf", &["llama.gguf"]);
    assert_opens(&catalogue, "single.safetensors", &["single.safetensors"]);
}

#[test]
fn hub_caches_have_the_names_of_their_repositories() {
    let dir = library();
    let catalogue = roots(&[dir.path()]);
    let short = "sentence-transformers/all-MiniLM-L6-v2";
    for model in [
        short.to_owned(),
        format!("{short}@{REVISION}"),
        format!("{short}@v1"),
        MINI_LM.to_owned(),
        format!("{MINI_LM}/snapshots/{REVISION}"),
        format!("{MINI_LM}/snapshots/{REVISION}/model.safetensors"),
    ] {
        assert_opens(&catalogue, &model, &["model.safetensors"]);
    }
    let absent = format!("{short}@v2");
    assert_refused(
        open(&catalogue, &absent),
        ErrorCode::ModelNotFound,
        &[&absent],
    );
    fs::remove_file(dir.path().join(MINI_LM).join("refs/main")).expect("was there");
    assert_opens(&catalogue, short, &["model.safetensors"]);
    fs::create_dir(dir.path().join(MINI_LM).join("snapshots/other")).expect("a directory");
    assert_refused(
        open(&catalogue, short),
        ErrorCode::SourceMissing,
        &["refs/main"],
    );
    put(dir.path(), &format!("{MINI_LM}/refs/main"), "../../../etc");
    assert_refused(
        open(&catalogue, short),
        ErrorCode::BadFileSet,
        &["refs/main", "download"],
    );
}

#[test]
fn entries_name_files_directories_and_hub_snapshots() {
    let dir = library();
    let at = |rel: &str| entry(dir.path().join(rel));
    assert_opens(&at("bert"), "m", &["model.safetensors"]);
    assert_opens(&at("llama.gguf"), "m", &["llama.gguf"]);
    let large = ["a.safetensors", "b.safetensors", INDEX];
    assert_opens(&at("org/large"), "m", &large);
    assert_opens(&at(&format!("org/large/{INDEX}")), "m", &large);
    assert_opens(&at(MINI_LM), "m", &["model.safetensors"]);
    let snapshot = format!("{MINI_LM}/snapshots/{REVISION}");
    assert_opens(&at(&snapshot), "m", &["model.safetensors"]);
    assert_opens(
        &at(&format!("{snapshot}/model.safetensors")),
        "m",
        &["model.safetensors"],
    );
    let spec = at("bert").find(&name("m")).expect("registered");
    assert!(spec.pin && !spec.eager);
}

#[test]
fn the_operators_own_links_are_followed_by_entries() {
    let dir = library();
    link(dir.path(), "links/current", "../bert");
    link(
        dir.path(),
        "links/file.safetensors",
        "../bert/model.safetensors",
    );
    assert_opens(
        &entry(dir.path().join("links/current")),
        "m",
        &["model.safetensors"],
    );
    let file = entry(dir.path().join("links/file.safetensors"));
    assert_opens(&file, "m", &["file.safetensors"]);
}

#[test]
fn names_that_lead_nowhere_say_what_was_meant() {
    let dir = library();
    let catalogue = roots(&[dir.path()]);
    for (asked, meant) in [
        ("brt", "`bert`"),
        ("large", "`org/large`"),
        ("org", "`org/large`"),
        (
            "all-MiniLM-L6-v2",
            "`sentence-transformers/all-MiniLM-L6-v2`",
        ),
    ] {
        let words = [&format!("`{asked}`")[..], "did you mean", meant];
        assert_refused(open(&catalogue, asked), ErrorCode::ModelNotFound, &words);
    }
    assert_refused(
        open(&catalogue, "xyzzy"),
        ErrorCode::ModelNotFound,
        &["`mrm ls`"],
    );
    assert_refused(
        open(&roots(&[]), "x"),
        ErrorCode::ModelNotFound,
        &["nothing is registered"],
    );
    let long = vec!["x".repeat(300); 3].join("/");
    assert_refused(
        open(&catalogue, &long),
        ErrorCode::ModelNotFound,
        &["`mrm ls`"],
    );
    assert_refused(
        open(&catalogue, ".hidden"),
        ErrorCode::ModelNotFound,
        &[".hidden"],
    );
}

#[test]
fn prefixes_stand_before_the_names_of_a_root() {
    let dir = library();
    let root = Root {
        path: dir.path().to_owned(),
        prefix: Some(name("lib/x")),
    };
    let catalogue = Catalogue::new(vec![], vec![root], Degraded::new()).expect("a catalogue");
    assert_opens(&catalogue, "lib/x/bert", &["model.safetensors"]);
    assert!(catalogue.find(&name("bert")).is_none());
    assert!(catalogue.find(&name("lib/x")).is_none());
    assert!(catalogue.find(&name("lib/xbert")).is_none());
}

#[test]
fn the_first_root_that_has_a_name_counts() {
    let (first, second) = (library(), library());
    put(second.path(), "only/model.safetensors", one_tensor("only"));
    let catalogue = roots(&[first.path(), second.path()]);
    let files = open(&catalogue, "bert").expect("in both");
    assert!(
        files[0]
            .1
            .label()
            .starts_with(&first.path().display().to_string())
    );
    let files = open(&catalogue, "only").expect("in the second");
    let layout = format::inspect(&files).expect("a good file");
    assert!(
        Table::parse(&layout.table)
            .expect("own table")
            .find("only")
            .is_some()
    );
    let gone = first.path().join("gone");
    let catalogue = roots(&[&gone, second.path()]);
    assert_opens(&catalogue, "only", &["model.safetensors"]);
    assert_refused(open(&catalogue, "x"), ErrorCode::SourceMissing, &["gone"]);
}

#[test]
fn links_that_leave_the_root_are_refused() {
    let dir = library();
    let root = dir.path().join("org");
    link(&root, "leak", "../bert");
    link(&root, "passwd", "/etc/passwd");
    link(
        &root,
        "weights/model.safetensors",
        "../../single.safetensors",
    );
    for model in ["leak", "passwd", "weights"] {
        let words = [model, "outside its root"];
        assert_refused(
            open(&roots(&[&root]), model),
            ErrorCode::OutsideRoot,
            &words,
        );
    }
    let linked = entry(root.join("weights"));
    assert_refused(
        open(&linked, "m"),
        ErrorCode::OutsideRoot,
        &["model.safetensors"],
    );
}

#[test]
fn special_files_are_refused() {
    let dir = library();
    fs::create_dir(dir.path().join("pipe")).expect("a directory");
    let fifo = dir.path().join("pipe/model.safetensors");
    mkfifoat(CWD, &fifo, Mode::RUSR | Mode::WUSR).expect("a FIFO");
    let catalogue = roots(&[dir.path()]);
    for model in ["pipe", "pipe/model.safetensors"] {
        let words = ["model.safetensors", "FIFO"];
        assert_refused(open(&catalogue, model), ErrorCode::NotRegularFile, &words);
    }
    assert_refused(
        open(&entry(fifo), "m"),
        ErrorCode::NotRegularFile,
        &["FIFO"],
    );
    let device = entry(PathBuf::from("/dev/zero"));
    assert_refused(
        open(&device, "m"),
        ErrorCode::NotRegularFile,
        &["character device"],
    );
}

#[test]
fn directories_without_one_model_are_refused() {
    let dir = library();
    let two = open(&roots(&[dir.path()]), "org/two");
    assert_refused(
        two,
        ErrorCode::BadFileSet,
        &["org/two", "a.safetensors, b.safetensors"],
    );
    let none = open(&entry(dir.path().join("org")), "m");
    assert_refused(none, ErrorCode::BadFileSet, &["org", "name a file in it"]);
    let gone = open(&entry(dir.path().join("gone")), "m");
    assert_refused(
        gone,
        ErrorCode::SourceMissing,
        &["gone", "correct the path"],
    );
}

#[test]
fn shards_are_looked_for_beside_their_index_only() {
    let dir = library();
    let catalogue = roots(&[dir.path()]);
    fs::remove_file(dir.path().join("org/large/b.safetensors")).expect("was there");
    let words = [INDEX, "`b.safetensors` is not there", "download the shard"];
    assert_refused(
        open(&catalogue, "org/large"),
        ErrorCode::ShardMissing,
        &words,
    );
    for shard in ["../odd/weights.safetensors", "/etc/passwd", ".."] {
        put(
            dir.path(),
            &format!("org/large/{INDEX}"),
            index(&[("w", shard)]),
        );
        let words = [INDEX, shard, "outside the model's directory"];
        assert_refused(
            open(&catalogue, "org/large"),
            ErrorCode::ShardOutside,
            &words,
        );
    }
}

#[test]
fn a_new_file_behind_a_name_is_found_at_the_next_open() {
    let dir = library();
    let catalogue = roots(&[dir.path()]);
    let before = open(&catalogue, "bert").expect("there")[0]
        .1
        .identity()
        .expect("a file");
    let new = dir.path().join("bert/new");
    fs::write(&new, one_tensor("v")).expect("a file");
    fs::rename(&new, dir.path().join("bert/model.safetensors")).expect("replaces");
    let after = open(&catalogue, "bert").expect("there")[0]
        .1
        .identity()
        .expect("a file");
    assert_ne!(before.ino, after.ino);
}

#[test]
fn catalogues_that_contradict_themselves_are_refused() {
    let at = |path: &str| Entry {
        name: name("m"),
        path: path.into(),
        pin: false,
        eager: false,
    };
    let make = |entries| Catalogue::new(entries, vec![], Degraded::new());
    let twice = make(vec![at("/a"), at("/b")]).expect_err("two of one name");
    assert_eq!(twice.code(), ErrorCode::BadName);
    assert!(twice.to_string().contains("`m`; rename one"), "{twice}");
    let relative = make(vec![at("a")]).expect_err("relative");
    assert!(
        relative
            .to_string()
            .contains("\"a\" is not an absolute path"),
        "{relative}"
    );
}

#[test]
fn errors_of_files_keep_their_codes() {
    let source: CatalogueError = SourceError::Changed { name: "f".into() }.into();
    assert_eq!(source.code(), ErrorCode::SourceChanged);
    let format: CatalogueError = FormatError::FileSet { reason: "r".into() }.into();
    assert_eq!(format.code(), ErrorCode::BadFileSet);
}
