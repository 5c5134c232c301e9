//! Files that are no models: broken headers and indexes, opened by name and by descriptor.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests"
)]

use mrm_proto::error::{ErrorCode, ErrorReply};
use mrm_proto::limits::SAFETENSORS_HEADER_BYTES_MAX;
use mrm_tests::hostile::{Baseline, evict, open, open_files, refused, still_serves};
use mrm_tests::model::{self, with_header};
use mrm_tests::node::{Node, Setup};
use mrm_tests::raw::Raw;
use std::fs::{self, File};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

/// A daemon with the root `models`, in which a good model `good.safetensors` is.
fn node_with_root() -> (Node, PathBuf, Vec<u8>) {
    let dir = tempfile::Builder::new()
        .prefix("mrm-test-")
        .tempdir()
        .unwrap();
    let root = dir.path().join("models");
    let (_, image) = model::write(&root, "good.safetensors", 4096, 2, 1);
    let setup = Setup::new().setting(&format!("[[catalogue]]\nroot = {root:?}"));
    let node = Node::start_in(dir, &setup);
    still_serves(&node, "good.safetensors", &image);
    evict(&node, "good.safetensors");
    (node, root, image)
}

/// An error that names its object, its reason and its remedy.
fn expect(error: &ErrorReply, code: ErrorCode, object: &str) {
    assert_eq!(error.code(), Some(code), "{object}: {}", error.message);
    assert!(
        error.message.contains(object),
        "{object} is not named: {}",
        error.message
    );
    assert!(error.message.contains("; "), "no remedy: {}", error.message);
    assert!(
        error.message.len() < 1500,
        "{} bytes of message",
        error.message.len()
    );
    assert!(!error.took_effect);
}

fn tensor(name: &str, dtype: &str, shape: &str, begin: i64, end: i64) -> String {
    format!(r#""{name}":{{"dtype":"{dtype}","shape":{shape},"data_offsets":[{begin},{end}]}}"#)
}

fn object(parts: &[String]) -> Vec<u8> {
    format!("{{{}}}", parts.join(",")).into_bytes()
}

fn one(dtype: &str, shape: &str, begin: i64, end: i64) -> Vec<u8> {
    object(&[tensor("t", dtype, shape, begin, end)])
}

/// A length field, and what follows it.
fn said(header_bytes: u64, rest: &[u8]) -> Vec<u8> {
    [&header_bytes.to_le_bytes()[..], rest].concat()
}

/// What `header` over `data_bytes` of data is.
fn over(header: &[u8], data_bytes: usize) -> Vec<u8> {
    with_header(header, &vec![7; data_bytes])
}

fn lengths() -> Vec<(&'static str, Vec<u8>, ErrorCode)> {
    let good = model::safetensors(&[model::Tensor {
        name: "t".to_owned(),
        shape: vec![4],
        data: vec![1; 16],
    }]);
    let cut = |bytes: usize| good[..good.len() - bytes].to_vec();
    let max = SAFETENSORS_HEADER_BYTES_MAX;
    vec![
        ("no-bytes", vec![], ErrorCode::HeaderTruncated),
        (
            "seven-bytes",
            good[..7].to_vec(),
            ErrorCode::HeaderTruncated,
        ),
        (
            "only-length",
            good[..8].to_vec(),
            ErrorCode::HeaderTruncated,
        ),
        (
            "half-header",
            good[..20].to_vec(),
            ErrorCode::HeaderTruncated,
        ),
        ("zero-length", said(0, b"{}"), ErrorCode::HeaderLength),
        ("half-of-all", said(1 << 63, b"{}"), ErrorCode::HeaderLength),
        ("all-ones", said(u64::MAX, b"{}"), ErrorCode::HeaderLength),
        (
            "one-too-long",
            said(max + 1, b"{}"),
            ErrorCode::HeaderLength,
        ),
        ("longest", said(max, b"{}"), ErrorCode::HeaderTruncated),
        ("cut-by-one", cut(1), ErrorCode::TensorOutOfBounds),
        ("cut-by-all", cut(16), ErrorCode::TensorOutOfBounds),
        (
            "overlong",
            [&good[..], b"x"].concat(),
            ErrorCode::TensorOutOfBounds,
        ),
    ]
}

fn texts() -> Vec<(&'static str, Vec<u8>, ErrorCode)> {
    let deep = [b"{\"t\":".to_vec(), vec![b'['; 200_000]].concat();
    let deep_objects = [&b"{\"t\":"[..], &b"{\"a\":".repeat(50_000)].concat();
    let meta = r#""__metadata__":{"a":1}"#.to_owned();
    let no_dtype = r#""t":{"shape":[1],"data_offsets":[0,4]}"#.to_owned();
    let twice = r#""t":{"dtype":"F32","dtype":"F32","shape":[1],"data_offsets":[0,4]}"#.to_owned();
    let empty_meta = r#""__metadata__":{}"#.to_owned();
    vec![
        (
            "not-utf8",
            over(b"{\"\xff\xfe\":{}}", 0),
            ErrorCode::HeaderNotUtf8,
        ),
        ("deep", over(&deep, 0), ErrorCode::HeaderTooDeep),
        (
            "deep-objects",
            over(&deep_objects, 0),
            ErrorCode::HeaderTooDeep,
        ),
        (
            "not-json",
            over(b"{nonsense", 0),
            ErrorCode::HeaderMalformed,
        ),
        ("a-list", over(b"[]", 0), ErrorCode::HeaderMalformed),
        ("spaces-first", over(b"  {}", 0), ErrorCode::HeaderMalformed),
        ("more-after", over(b"{}{}", 0), ErrorCode::HeaderMalformed),
        ("zeros", over(&[0; 64], 0), ErrorCode::HeaderMalformed),
        (
            "metadata",
            over(&object(&[meta]), 0),
            ErrorCode::HeaderMalformed,
        ),
        (
            "metadata-twice",
            over(&object(&[empty_meta.clone(), empty_meta]), 0),
            ErrorCode::HeaderMalformed,
        ),
        (
            "no-dtype",
            over(&object(&[no_dtype]), 4),
            ErrorCode::HeaderMalformed,
        ),
        (
            "field-twice",
            over(&object(&[twice]), 4),
            ErrorCode::HeaderMalformed,
        ),
        (
            "negative",
            over(&one("F32", "[1]", -4, 0), 4),
            ErrorCode::HeaderMalformed,
        ),
        (
            "backwards",
            over(&one("F32", "[1]", 4, 0), 4),
            ErrorCode::HeaderMalformed,
        ),
        (
            "shape-of-text",
            over(&one("F32", "[\"1\"]", 0, 4), 4),
            ErrorCode::HeaderMalformed,
        ),
        (
            "shape-negative",
            over(&one("F32", "[-1]", 0, 4), 4),
            ErrorCode::HeaderMalformed,
        ),
    ]
}

#[expect(clippy::too_many_lines, reason = "a table")]
fn tensors() -> Vec<(&'static str, Vec<u8>, ErrorCode)> {
    let pair = |a: (i64, i64), b: (i64, i64)| {
        object(&[
            tensor("a", "U8", "[4]", a.0, a.1),
            tensor("b", "U8", "[4]", b.0, b.1),
        ])
    };
    let same = object(&[
        tensor("a", "U8", "[4]", 0, 4),
        tensor("a", "U8", "[4]", 4, 8),
    ]);
    let long = "n".repeat(4097);
    let long_name = object(&[tensor(&long, "U8", "[4]", 0, 4)]);
    let rank = format!("[{}]", vec!["1"; 65].join(","));
    vec![
        ("same-name", over(&same, 8), ErrorCode::DuplicateTensor),
        (
            "same-range",
            over(&pair((0, 4), (0, 4)), 4),
            ErrorCode::TensorOverlap,
        ),
        (
            "overlap",
            over(&pair((0, 4), (2, 6)), 6),
            ErrorCode::TensorOverlap,
        ),
        (
            "hole",
            over(&pair((0, 4), (6, 10)), 10),
            ErrorCode::TensorOverlap,
        ),
        (
            "not-from-zero",
            over(&one("U8", "[4]", 4, 8), 8),
            ErrorCode::TensorOverlap,
        ),
        (
            "out-of-bounds",
            over(&one("U8", "[9]", 0, 9), 8),
            ErrorCode::TensorOutOfBounds,
        ),
        (
            "far-out",
            over(
                &one("U8", &format!("[{}]", i64::MAX / 8), 0, i64::MAX / 8),
                8,
            ),
            ErrorCode::TensorOutOfBounds,
        ),
        (
            "unclaimed",
            over(&one("U8", "[4]", 0, 4), 8),
            ErrorCode::TensorOutOfBounds,
        ),
        ("no-tensors", over(b"{}", 8), ErrorCode::TensorOutOfBounds),
        (
            "too-small",
            over(&one("F32", "[2]", 0, 4), 4),
            ErrorCode::TensorSize,
        ),
        (
            "too-large",
            over(&one("F32", "[1]", 0, 8), 8),
            ErrorCode::TensorSize,
        ),
        (
            "nothing-of-four",
            over(&one("F32", "[0]", 0, 4), 4),
            ErrorCode::TensorSize,
        ),
        (
            "overflow",
            over(&one("F32", "[4294967296,4294967296]", 0, 4), 4),
            ErrorCode::TensorOverflow,
        ),
        (
            "overflow-by-size",
            over(&one("F64", "[4611686018427387904]", 0, 0), 0),
            ErrorCode::TensorOverflow,
        ),
        (
            "unknown-type",
            over(&one("F31", "[1]", 0, 4), 4),
            ErrorCode::UnknownDtype,
        ),
        (
            "long-type",
            over(&one(&long, "[1]", 0, 4), 4),
            ErrorCode::UnknownDtype,
        ),
        ("long-name", over(&long_name, 4), ErrorCode::TooManyTensors),
        (
            "many-dimensions",
            over(&one("U8", &rank, 0, 1), 1),
            ErrorCode::TooManyTensors,
        ),
    ]
}

#[test]
fn a_broken_header_has_its_own_code_by_name_and_by_descriptor() {
    let (node, root, image) = node_with_root();
    let baseline = Baseline::of(&node);
    let mut raw = Raw::hello(&node.socket());
    let cases = [lengths(), texts(), tensors()].concat();
    for (i, (what, bytes, code)) in cases.iter().enumerate() {
        let file = format!("{what}.safetensors");
        fs::write(root.join(&file), bytes).unwrap();
        let id = 10 + 2 * i as u64;
        let by_name = refused(&mut raw, id, &open(&file, 0), &[]);
        expect(&by_name, *code, &file);
        let passed = File::open(root.join(&file)).unwrap();
        let request = open_files("passed", &[&file]);
        let by_fd = refused(&mut raw, id + 1, &request, &[passed.as_fd()]);
        expect(&by_fd, *code, &file);
    }
    // Once the operator has put it right, the same name opens.
    let (what, ..) = &cases[0];
    fs::write(root.join(format!("{what}.safetensors")), &image).unwrap();
    still_serves(&node, &format!("{what}.safetensors"), &image);
    evict(&node, &format!("{what}.safetensors"));
    drop(raw);
    baseline.is_restored(&node);
    assert_eq!(node.number("/host/charged_bytes"), 0);
}

#[test]
fn an_opaque_file_without_bytes_is_refused() {
    let (node, root, _) = node_with_root();
    fs::write(root.join("empty.bin"), b"").unwrap();
    let mut raw = Raw::hello(&node.socket());
    expect(
        &refused(&mut raw, 2, &open("empty.bin", 0), &[]),
        ErrorCode::EmptyFile,
        "empty.bin",
    );
    let passed = File::open(root.join("empty.bin")).unwrap();
    let request = open_files("x", &["empty.bin"]);
    let error = refused(&mut raw, 3, &request, &[passed.as_fd()]);
    expect(&error, ErrorCode::EmptyFile, "empty.bin");
}

const INDEX: &str = "model.safetensors.index.json";

fn shard(tensor_name: &str) -> Vec<u8> {
    over(&object(&[tensor(tensor_name, "U8", "[4]", 0, 4)]), 4)
}

fn write_set(dir: &Path, files: &[(&str, Vec<u8>)]) {
    fs::create_dir_all(dir).unwrap();
    for (name, bytes) in files {
        fs::write(dir.join(name), bytes).unwrap();
    }
}

fn index_of(map: &str) -> Vec<u8> {
    format!(r#"{{"metadata":{{}},"weight_map":{map}}}"#).into_bytes()
}

type IndexCase = (
    &'static str,
    Vec<(&'static str, Vec<u8>)>,
    ErrorCode,
    &'static str,
);

#[expect(clippy::too_many_lines, reason = "a table")]
fn indexes() -> Vec<IndexCase> {
    let a = || ("a.safetensors", shard("ta"));
    let b = || ("b.safetensors", shard("tb"));
    let index = |map: &str| (INDEX, index_of(map));
    let both = r#"{"ta":"a.safetensors","tb":"b.safetensors"}"#;
    let deep = [b"{\"weight_map\":".to_vec(), vec![b'['; 100_000]].concat();
    let (malformed, mismatch) = (ErrorCode::IndexMalformed, ErrorCode::ShardMismatch);
    let outside = ErrorCode::ShardOutside;
    vec![
        (
            "no-json",
            vec![(INDEX, b"{nonsense".to_vec()), a()],
            malformed,
            INDEX,
        ),
        (
            "no-map",
            vec![(INDEX, b"{}".to_vec()), a()],
            malformed,
            INDEX,
        ),
        ("empty-map", vec![index("{}"), a()], malformed, INDEX),
        ("numbers", vec![index(r#"{"ta":1}"#), a()], malformed, INDEX),
        ("deep", vec![(INDEX, deep), a()], malformed, INDEX),
        (
            "not-utf8",
            vec![(INDEX, b"{\"weight_map\":{\"\xff\":\"a\"}}".to_vec()), a()],
            malformed,
            INDEX,
        ),
        (
            "empty",
            vec![(INDEX, vec![]), a()],
            ErrorCode::EmptyFile,
            INDEX,
        ),
        (
            "missing",
            vec![index(both), a()],
            ErrorCode::ShardMissing,
            "b.safetensors",
        ),
        (
            "tensor-twice",
            vec![
                index(r#"{"ta":"a.safetensors","ta":"b.safetensors"}"#),
                a(),
                b(),
            ],
            ErrorCode::DuplicateTensor,
            "ta",
        ),
        (
            "up",
            vec![index(r#"{"ta":"../a.safetensors"}"#), a()],
            outside,
            "../a.safetensors",
        ),
        (
            "absolute",
            vec![index(r#"{"ta":"/etc/passwd"}"#), a()],
            outside,
            "/etc/passwd",
        ),
        (
            "down",
            vec![index(r#"{"ta":"sub/a.safetensors"}"#), a()],
            outside,
            "sub/a.safetensors",
        ),
        (
            "swapped",
            vec![
                index(r#"{"ta":"b.safetensors","tb":"a.safetensors"}"#),
                a(),
                b(),
            ],
            mismatch,
            "ta",
        ),
        (
            "absent",
            vec![index(r#"{"ta":"a.safetensors","tc":"a.safetensors"}"#), a()],
            mismatch,
            "tc",
        ),
        (
            "unlisted-tensor",
            vec![
                index(r#"{"tx":"a.safetensors","tb":"b.safetensors"}"#),
                a(),
                b(),
            ],
            mismatch,
            "ta",
        ),
        (
            "same-tensor-in-two",
            vec![index(both), a(), ("b.safetensors", shard("ta"))],
            mismatch,
            "ta",
        ),
        (
            "broken-shard",
            vec![index(both), a(), ("b.safetensors", said(u64::MAX, b""))],
            ErrorCode::HeaderLength,
            "b.safetensors",
        ),
    ]
}

#[test]
fn a_broken_index_has_its_own_code_by_name_and_by_descriptor() {
    let (node, root, image) = node_with_root();
    let baseline = Baseline::of(&node);
    let mut raw = Raw::hello(&node.socket());
    for (i, (what, files, code, object)) in indexes().iter().enumerate() {
        let dir = root.join("sets").join(what);
        write_set(&dir, files);
        let id = 10 + 2 * i as u64;
        expect(
            &refused(&mut raw, id, &open(&format!("sets/{what}"), 0), &[]),
            *code,
            object,
        );
        let opened: Vec<File> = files
            .iter()
            .map(|f| File::open(dir.join(f.0)).unwrap())
            .collect();
        let fds: Vec<_> = opened.iter().map(AsFd::as_fd).collect();
        let names: Vec<&str> = files.iter().map(|f| f.0).collect();
        let by_fd = refused(&mut raw, id + 1, &open_files(what, &names), &fds);
        expect(&by_fd, *code, object);
    }
    still_serves(&node, "good.safetensors", &image);
    evict(&node, "good.safetensors");
    drop(raw);
    baseline.is_restored(&node);
    assert_eq!(node.number("/host/charged_bytes"), 0);
}

#[test]
fn sets_that_do_not_belong_together_are_refused() {
    let (node, root, _) = node_with_root();
    let dir = root.join("set");
    let index = index_of(r#"{"ta":"a.safetensors","tb":"b.safetensors"}"#);
    let files = [
        (INDEX, index),
        ("a.safetensors", shard("ta")),
        ("b.safetensors", shard("tb")),
    ];
    write_set(&dir, &files);
    let file = |name: &str| File::open(dir.join(name)).unwrap();
    let (index, a, b) = (file(INDEX), file("a.safetensors"), file("b.safetensors"));
    let mut raw = Raw::hello(&node.socket());
    let bad = ErrorCode::BadFileSet;
    let cases: [(&[&str], &[&File], ErrorCode, &str); 7] = [
        (&[], &[], bad, "no files"),
        (
            &["a.safetensors", "b.safetensors"],
            &[&a, &b],
            bad,
            "a.safetensors",
        ),
        (
            &["a.safetensors", "a.safetensors"],
            &[&a, &a],
            bad,
            "a.safetensors",
        ),
        (
            &[INDEX, "a.safetensors", "a.safetensors"],
            &[&index, &a, &a],
            bad,
            "a.safetensors",
        ),
        (
            &[INDEX, "a.safetensors", "b.safetensors", "c.safetensors"],
            &[&index, &a, &b, &b],
            bad,
            "c.safetensors",
        ),
        (
            &[INDEX],
            &[&index],
            ErrorCode::ShardMissing,
            "a.safetensors",
        ),
        // One file under two names.
        (
            &[INDEX, "a.safetensors", "b.safetensors"],
            &[&index, &a, &a],
            ErrorCode::ShardMismatch,
            "ta",
        ),
    ];
    for (i, (names, files, code, object)) in cases.into_iter().enumerate() {
        let fds: Vec<_> = files.iter().map(AsFd::as_fd).collect();
        let error = refused(&mut raw, 2 + i as u64, &open_files("x", names), &fds);
        assert_eq!(error.code(), Some(code), "{names:?}: {}", error.message);
        assert!(
            error.message.contains(object),
            "{names:?}: {}",
            error.message
        );
    }
}
