//! Good files are described; each kind of bad one is refused with its own code and a message that
//! names the object and the remedy.

use super::testing::{Builder, Memory, image, index, one_tensor, raw, set};
use super::*;
use crate::source::Source;
use mrm_proto::dtype::DType;
use mrm_proto::error::ErrorCode;
use mrm_proto::limits::{
    INDEX_BYTES_MAX, SAFETENSORS_HEADER_BYTES_MAX, SEGMENTS_PER_MODEL_MAX, TENSOR_NAME_BYTES_MAX,
};
use mrm_proto::table::Table;
use std::sync::Arc;

mod properties;

const FILE: &str = "m.safetensors";
const INDEX: &str = "model.safetensors.index.json";

fn refusal(files: &[(&str, Vec<u8>)]) -> FormatError {
    inspect(&set(files)).expect_err("a bad set of files")
}

/// Asserts the code, and that the message has all of `words`.
#[track_caller]
fn assert_refused(error: &FormatError, code: ErrorCode, words: &[&str]) {
    let message = error.to_string();
    assert_eq!(error.code(), code, "{message}");
    for word in words {
        assert!(message.contains(word), "no {word:?} in {message:?}");
    }
    assert!(message.contains("; "), "no remedy in {message:?}");
}

#[track_caller]
fn assert_header(bytes: Vec<u8>, code: ErrorCode, words: &[&str]) {
    assert_refused(
        &refusal(&[(FILE, bytes)]),
        code,
        &[&["`m.safetensors`"], words].concat(),
    );
}

fn tensor(fields: &str) -> String {
    format!("{{\"w\":{{{fields}}}}}")
}

#[test]
fn one_file_is_described() {
    let builder = Builder::default()
        .metadata(&[("format", "pt")])
        .tensor("b", DType::F32, &[2, 3])
        .tensor("empty", DType::F16, &[0, 4])
        .tensor("a", DType::I64, &[]);
    let image = builder.image();
    let header_bytes = 8 + builder.header().len() as u64;
    let layout = inspect(&set(&[(FILE, image.clone())])).expect("a good file");
    let table = Table::parse(&layout.table).expect("own table");
    assert_eq!(
        (layout.kind, table.kind()),
        (ModelKind::Safetensors, ModelKind::Safetensors)
    );
    let tensors: Vec<_> = table
        .iter()
        .map(|t| t.expect("whole"))
        .map(|t| (t.name, t.offset, t.bytes))
        .collect();
    assert_eq!(
        tensors,
        [
            ("b", header_bytes, 24),
            ("empty", header_bytes + 24, 0),
            ("a", header_bytes + 24, 8)
        ]
    );
    assert_eq!(table.metadata(), [("format", "pt")]);
    assert_eq!(layout.files[0].bytes, image.len() as u64);
    let check = layout.files[0].check.expect("safetensors has a header");
    assert_eq!(check.bytes, header_bytes);
    assert!(check.holds(&image));
    let mut other = image;
    other[9] ^= 1;
    assert!(!check.holds(&other) && !check.holds(&other[..4]));
}

#[test]
fn what_the_reference_accepts_is_accepted() {
    let padded = format!(
        "{}   ",
        Builder::default().tensor("w", DType::U8, &[1]).header()
    );
    let extra = r#"{"w":{"dtype":"U8","shape":[1],"data_offsets":[0,1],"note":[1,{"x":2}]}}"#;
    let unsorted = r#"{"b":{"dtype":"U8","shape":[1],"data_offsets":[1,2]},
        "a":{"data_offsets":[0,1],"shape":[1],"dtype":"U8"}}"#;
    for (header, data_bytes) in [
        (padded.as_str(), 1),
        (extra, 1),
        (unsorted, 2),
        ("{}", 0),
        (r#"{"__metadata__":null}"#, 0),
        (r#"{"":{"dtype":"F4","shape":[2],"data_offsets":[0,1]}}"#, 1),
    ] {
        let layout = inspect(&set(&[(FILE, image(header, data_bytes))]));
        assert!(layout.is_ok(), "{header}: {layout:?}");
    }
}

#[test]
fn any_other_file_is_opaque() {
    let layout = inspect(&set(&[("model.gguf", vec![1, 2, 3])])).expect("any bytes do");
    let table = Table::parse(&layout.table).expect("own table");
    assert_eq!((layout.kind, table.len()), (ModelKind::Opaque, 0));
    assert_eq!(table.segment_names(), ["model.gguf"]);
    assert_eq!(layout.files[0].check, None);
    let empty = refusal(&[("model.gguf", vec![])]);
    assert_refused(
        &empty,
        ErrorCode::EmptyFile,
        &["`model.gguf`", "write it anew"],
    );
}

#[test]
fn truncated_files_are_refused() {
    let whole = one_tensor("w");
    for (cut, code) in [
        (0, ErrorCode::HeaderTruncated),
        (7, ErrorCode::HeaderTruncated),
        (20, ErrorCode::HeaderTruncated),
        (whole.len() - 1, ErrorCode::TensorOutOfBounds),
    ] {
        assert_header(whole[..cut].to_vec(), code, &["copy or download it again"]);
    }
}

#[test]
fn lengths_of_zero_and_gigantic_ones_are_refused() {
    for length in [0, SAFETENSORS_HEADER_BYTES_MAX + 1, u64::MAX] {
        let mut bytes = length.to_le_bytes().to_vec();
        bytes.extend_from_slice(b"{}");
        assert_header(
            bytes,
            ErrorCode::HeaderLength,
            &["header is said to have", "download"],
        );
    }
    // Said to be just within the bound, by a file that is too short for it: nothing is allocated.
    let mut bytes = SAFETENSORS_HEADER_BYTES_MAX.to_le_bytes().to_vec();
    bytes.extend_from_slice(b"{}");
    assert_header(
        bytes,
        ErrorCode::HeaderTruncated,
        &["10 bytes", "cut short"],
    );
}

#[test]
fn overlong_files_are_refused() {
    let mut bytes = one_tensor("w");
    bytes.push(0);
    assert_header(
        bytes,
        ErrorCode::TensorOutOfBounds,
        &["take 4 bytes", "file has 5"],
    );
}

#[test]
fn malformed_headers_are_refused() {
    let good = r#""dtype":"U8","shape":[1],"data_offsets":[0,1]"#;
    for (header, reason) in [
        ("[]", "begin with `{`"),
        (" {}", "begin with `{`"),
        ("{", "EOF"),
        ("{}x", "trailing"),
        (r#"{"w":1}"#, "invalid type"),
        (&tensor(r#""shape":[1],"data_offsets":[0,1]"#), "no `dtype`"),
        (
            &tensor(r#""dtype":"U8","data_offsets":[0,1]"#),
            "no `shape`",
        ),
        (&tensor(r#""dtype":"U8","shape":[1]"#), "no `data_offsets`"),
        (&tensor(&good.replace("[1]", "[1.0]")), "floating point"),
        (&tensor(&good.replace("[1]", "[-1]")), "integer"),
        (
            &tensor(&good.replace("[1]", "[18446744073709551616]")),
            "floating point",
        ),
        (&tensor(&good.replace("[0,1]", "[0,1,2]")), "trailing"),
        (&tensor(&good.replace("[0,1]", "[1,0]")), "before it begins"),
        (
            &tensor(&format!("{good},\"shape\":[1]")),
            "`shape` is twice",
        ),
        (
            &tensor(&format!("{good},\"dtype\":\"U8\"")),
            "`dtype` is twice",
        ),
        (r#"{"__metadata__":{"a":1}}"#, "invalid type"),
        (r#"{"__metadata__":{"a":"1","a":"2"}}"#, "\"a\" twice"),
        (
            r#"{"__metadata__":{},"__metadata__":{}}"#,
            "`__metadata__` is there twice",
        ),
        ("{\"\u{0}\":{}}", "control character"),
    ] {
        let words = [reason, "write the file anew"];
        assert_header(image(header, 1), ErrorCode::HeaderMalformed, &words);
    }
}

#[test]
fn headers_that_are_not_utf8_are_refused() {
    let bytes = raw(b"{\"\xff\xfe\":{}}", 0);
    assert_header(bytes, ErrorCode::HeaderNotUtf8, &["byte 2", "rename it"]);
}

#[test]
fn deep_headers_are_refused_without_recursion() {
    for header in [
        format!("{{\"w\":{}{}}}", "[".repeat(20), "]".repeat(20)),
        format!("{{\"w\":{}", "{\"a\":".repeat(1_000_000)),
    ] {
        let bytes = image(&header, 0);
        assert_header(
            bytes,
            ErrorCode::HeaderTooDeep,
            &["deeper than 8", "write the file anew"],
        );
    }
}

#[test]
fn duplicate_tensors_are_refused() {
    let one = r#""w":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}"#;
    let escaped = one
        .replace("\"w\"", "\"\\u0077\"")
        .replace("[0,1]", "[1,2]");
    let bytes = image(&format!("{{{one},{escaped}}}"), 2);
    assert_header(
        bytes,
        ErrorCode::DuplicateTensor,
        &["\"w\"", "write the file anew"],
    );
}

#[test]
fn tensors_that_overlap_or_leave_holes_are_refused() {
    for (begin, shape) in [(1, 3), (3, 1), (2, 0)] {
        let end = begin + shape;
        let header = format!(
            r#"{{"a":{{"dtype":"U8","shape":[2],"data_offsets":[0,2]}},
                "b":{{"dtype":"U8","shape":[{shape}],"data_offsets":[{begin},{end}]}}}}"#
        );
        let result = inspect(&set(&[(FILE, image(&header, 4.max(end)))]));
        if shape == 0 {
            let error = result.expect_err("bytes are left over");
            assert_eq!(error.code(), ErrorCode::TensorOutOfBounds);
        } else {
            let error = result.expect_err("does not follow the first");
            let begins = format!("begins at byte {begin}");
            let words = ["\"b\"", &begins, "ends at 2"];
            assert_refused(&error, ErrorCode::TensorOverlap, &words);
        }
    }
    let inside = r#"{"a":{"dtype":"U8","shape":[2],"data_offsets":[0,2]},
        "z":{"dtype":"U8","shape":[0],"data_offsets":[1,1]}}"#;
    assert_header(image(inside, 2), ErrorCode::TensorOverlap, &["\"z\""]);
}

#[test]
fn tensors_outside_the_file_are_refused() {
    let header = tensor(r#""dtype":"U8","shape":[100],"data_offsets":[0,100]"#);
    assert_header(
        image(&header, 10),
        ErrorCode::TensorOutOfBounds,
        &["\"w\"", "cut short"],
    );
    let far = u64::MAX;
    let header = tensor(&format!(
        r#""dtype":"U8","shape":[{far}],"data_offsets":[0,{far}]"#
    ));
    assert_header(image(&header, 10), ErrorCode::TensorOverflow, &["\"w\""]);
}

#[test]
fn shapes_that_disagree_with_their_range_are_refused() {
    for (dtype, shape, code) in [
        ("F32", "[2]", ErrorCode::TensorSize),
        ("F4", "[3]", ErrorCode::TensorSize),
        ("U8", "[5]", ErrorCode::TensorSize),
        ("U8", "[18446744073709551615,2]", ErrorCode::TensorOverflow),
        ("F64", "[4611686018427387904]", ErrorCode::TensorOverflow),
    ] {
        let fields = format!(r#""dtype":"{dtype}","shape":{shape},"data_offsets":[0,4]"#);
        assert_header(
            image(&tensor(&fields), 4),
            code,
            &["\"w\"", "write the file anew"],
        );
    }
}

#[test]
fn unknown_types_are_refused() {
    let header = tensor(r#""dtype":"F128","shape":[1],"data_offsets":[0,16]"#);
    assert_header(
        image(&header, 16),
        ErrorCode::UnknownDtype,
        &["\"F128\"", "newer mrmd"],
    );
}

#[test]
fn what_exceeds_a_bound_is_refused() {
    let ones = vec!["1"; 65].join(",");
    let rank = tensor(&format!(
        r#""dtype":"U8","shape":[{ones}],"data_offsets":[0,1]"#
    ));
    let name = "n".repeat(TENSOR_NAME_BYTES_MAX + 1);
    let name = Builder::default().tensor(&name, DType::U8, &[1]).header();
    let pairs: Vec<_> = (0..=METADATA_PAIRS_MAX)
        .map(|i| format!("\"{i}\":\"\""))
        .collect();
    let metadata = format!("{{\"__metadata__\":{{{}}}}}", pairs.join(","));
    for (header, what) in [
        (&rank, "dimensions"),
        (&name, "name"),
        (&metadata, "metadata"),
    ] {
        assert_header(
            image(header, 1),
            ErrorCode::TooManyTensors,
            &[what, "split the model"],
        );
    }
}

#[test]
fn long_names_are_cut_in_messages() {
    let name = "n".repeat(TENSOR_NAME_BYTES_MAX);
    let header = Builder::default().tensor(&name, DType::U8, &[1]).header();
    let error = refusal(&[(FILE, image(&header, 2))]);
    assert!(error.to_string().len() < 1000, "{error}");
    let header = tensor(&format!(r#""dtype":{:?}"#, "x".repeat(100_000)));
    assert!(refusal(&[(FILE, image(&header, 2))]).to_string().len() < 1000);
}

#[test]
fn shards_are_described_in_order_of_their_names() {
    let files = [
        ("b.safetensors", one_tensor("x")),
        (
            INDEX,
            index(&[("x", "b.safetensors"), ("y", "a.safetensors")]),
        ),
        (
            "a.safetensors",
            Builder::default()
                .metadata(&[("k", "v")])
                .tensor("y", DType::F32, &[1])
                .image(),
        ),
    ];
    let layout = inspect(&set(&files)).expect("a good set");
    let table = Table::parse(&layout.table).expect("own table");
    let order = ["a.safetensors", "b.safetensors", INDEX];
    assert_eq!(table.segment_names(), order);
    assert_eq!(
        layout
            .files
            .iter()
            .map(|f| f.name.as_str())
            .collect::<Vec<_>>(),
        order
    );
    assert_eq!(
        layout.files.iter().map(|f| f.position).collect::<Vec<_>>(),
        [2, 0, 1]
    );
    assert_eq!(table.find("x").map(|t| t.segment), Some(1));
    assert_eq!(table.find("y").map(|t| t.segment), Some(0));
    assert_eq!(table.metadata(), [("k", "v")]);
    for file in &layout.files {
        assert!(
            file.check
                .expect("each was parsed")
                .holds(&files[file.position].1)
        );
    }
}

#[test]
fn sets_that_are_no_model_are_refused() {
    let shard = || one_tensor("w");
    let map = || index(&[("w", FILE)]);
    let many: Vec<_> = (0..=SEGMENTS_PER_MODEL_MAX)
        .map(|_| ("x", vec![1]))
        .collect();
    for (files, word) in [
        (vec![], "no file was given"),
        (
            vec![("a.safetensors", shard()), ("b.safetensors", shard())],
            "without an index",
        ),
        (
            vec![("a", shard()), ("a", shard())],
            "two files are called `a`",
        ),
        (vec![(INDEX, map()), (INDEX, map())], "two files are called"),
        (
            vec![(INDEX, map()), ("o.safetensors.index.json", map())],
            "both an index",
        ),
        (
            vec![(INDEX, map()), (FILE, shard()), ("extra", shard())],
            "`extra`",
        ),
        (many, "251 files"),
    ] {
        assert_refused(&refusal(&files), ErrorCode::BadFileSet, &[word, "pass one"]);
    }
}

#[test]
fn indexes_that_do_not_fit_their_shards_are_refused() {
    let a = || ("a.safetensors", one_tensor("x"));
    let b = || ("b.safetensors", one_tensor("x"));
    let map = |pairs: &[(&str, &str)]| (INDEX, index(pairs));
    let both = [("x", "a.safetensors"), ("y", "b.safetensors")];
    for (files, code, word) in [
        (
            vec![map(&both), a()],
            ErrorCode::ShardMissing,
            "`b.safetensors` is not there",
        ),
        (
            vec![map(&both)],
            ErrorCode::ShardMissing,
            "`a.safetensors` is not there",
        ),
        (
            vec![map(&both[..1]), a(), a()],
            ErrorCode::ShardMismatch,
            "given twice",
        ),
        (
            vec![map(&both), a(), b()],
            ErrorCode::ShardMismatch,
            "\"x\" is in `b.safetensors`",
        ),
        (
            vec![map(&[("x", "a.safetensors"), ("y", "a.safetensors")]), a()],
            ErrorCode::ShardMismatch,
            "\"y\" should be in `a.safetensors`",
        ),
        (
            vec![map(&[("z", "a.safetensors")]), a()],
            ErrorCode::ShardMismatch,
            "\"x\" is in",
        ),
    ] {
        assert_refused(&refusal(&files), code, &[INDEX, word]);
    }
}

#[test]
fn shards_outside_the_directory_are_refused() {
    for shard in [
        "../a.safetensors",
        "/etc/passwd",
        "..",
        ".",
        "sub/a.safetensors",
    ] {
        let error = refusal(&[(INDEX, index(&[("w", shard)]))]);
        assert_refused(
            &error,
            ErrorCode::ShardOutside,
            &[INDEX, shard, "beside the index"],
        );
    }
}

#[test]
fn malformed_indexes_are_refused() {
    let deep = format!("{{\"metadata\":{}", "[".repeat(100));
    let twice = r#"{"weight_map":{"w":"a"},"weight_map":{"w":"a"}}"#;
    for (text, reason) in [
        (&b"{"[..], "EOF"),
        (b"{}", "no `weight_map`"),
        (b"{\"weight_map\":{}}", "names no shard"),
        (b"{\"weight_map\":{\"w\":1}}", "invalid type"),
        (b"{\"weight_map\":{\"w\":\"\"}}", "must not be empty"),
        (b"{\"weight_map\":{\"w\":\"a\\u0000b\"}}", "control"),
        (b"\xff", "not UTF-8"),
        (deep.as_bytes(), "deeper than"),
        (twice.as_bytes(), "is there twice"),
    ] {
        let error = refusal(&[(INDEX, text.to_vec())]);
        let words = [INDEX, reason, "write it anew"];
        assert_refused(&error, ErrorCode::IndexMalformed, &words);
    }
    let empty = refusal(&[(INDEX, vec![])]);
    assert_refused(&empty, ErrorCode::EmptyFile, &[INDEX]);
    let text = br#"{"weight_map":{"w":"a","w":"b"}}"#;
    let error = refusal(&[(INDEX, text.to_vec())]);
    assert_refused(&error, ErrorCode::DuplicateTensor, &[INDEX, "\"w\" twice"]);
    let shards: Vec<_> = (0..SEGMENTS_PER_MODEL_MAX)
        .map(|i| format!("\"{i}\":\"{i}\""))
        .collect();
    let text = format!("{{\"weight_map\":{{{}}}}}", shards.join(","));
    let error = refusal(&[(INDEX, text.into_bytes())]);
    assert_refused(
        &error,
        ErrorCode::TooManyTensors,
        &[INDEX, "249 shards", "fewer shards"],
    );
}

#[test]
fn gigantic_indexes_are_refused_unread() {
    let source = Memory {
        bytes: vec![],
        said_bytes: INDEX_BYTES_MAX + 1,
    };
    let name = FileName::new(INDEX).expect("a name");
    let error = inspect(&[(name, Arc::new(source) as Arc<dyn Source>)]).expect_err("too long");
    assert_refused(&error, ErrorCode::IndexMalformed, &[INDEX, "are allowed"]);
}

#[test]
fn a_file_that_shrinks_while_its_header_is_read_has_changed() {
    let bytes = one_tensor("w");
    for cut in [0, 4, 20] {
        let source = Memory {
            bytes: bytes[..cut].to_vec(),
            said_bytes: bytes.len() as u64,
        };
        let name = FileName::new(FILE).expect("a name");
        let error = inspect(&[(name, Arc::new(source) as Arc<dyn Source>)]).expect_err("shrank");
        assert_refused(
            &error,
            ErrorCode::SourceChanged,
            &["changed while it was read"],
        );
    }
}
