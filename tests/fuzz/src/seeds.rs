//! Inputs to start from: the frozen vectors of the protocol, and small files as people write them.
//!
//! A seed whose name begins with `bad-` is refused; every other is accepted.
//!
//! ```
//! use mrm_fuzz::{Target, Verdict, seeds};
//! let target = Target::find("reply").expect("there is one of this name");
//! for (name, bytes) in seeds::of(target) {
//!     let is_bad = (target.run)(&bytes) == Verdict::Refused;
//!     assert_eq!(is_bad, name.starts_with("bad-"), "{name}");
//! }
//! ```

#![allow(
    clippy::expect_used,
    reason = "seeds are fixed: a bad one is a bug here"
)]

use crate::target::message::choice_of;
use crate::{Target, home};
use mrm_proto::dtype::DType;
use mrm_proto::frame::{Header, Kind};
use mrm_proto::ids::RequestId;
use mrm_proto::table::{ModelKind, TableBuilder};

mod kept;
mod text;

/// A name and an input.
pub type Seed = (String, Vec<u8>);

/// The seeds of a target, made anew each time.
#[must_use]
pub fn of(target: &Target) -> Vec<Seed> {
    match target.name {
        "client_reply" => client_reply(),
        "config" => text::config(),
        "frame" => frame(),
        "hello" => messages(&[Kind::ClientHello, Kind::ServerHello]),
        "keeper" => kept::seeds(),
        "reply" => messages(&REPLIES),
        "request" => messages(&REQUESTS),
        "safetensors_header" => text::safetensors_header(),
        "safetensors_index" => text::safetensors_index(),
        "table" => tables(),
        _ => Vec::new(),
    }
}

const REQUESTS: [Kind; 10] = [
    Kind::Open,
    Kind::OpenFiles,
    Kind::Close,
    Kind::Cancel,
    Kind::Resume,
    Kind::List,
    Kind::Stat,
    Kind::Touched,
    Kind::Heard,
    Kind::Hint,
];
const REPLIES: [Kind; 13] = [
    Kind::Opened,
    Kind::Closed,
    Kind::Cancelled,
    Kind::Progress,
    Kind::Handed,
    Kind::Revoked,
    Kind::Ready,
    Kind::Resumed,
    Kind::OpenedMany,
    Kind::Listed,
    Kind::Stated,
    Kind::Hinted,
    Kind::Error,
];

/// The frozen vectors, by name.
fn golden() -> Vec<Seed> {
    let directory = home().join("../../proto/golden/v1");
    let entries = std::fs::read_dir(directory).expect("the protocol's vectors");
    let mut vectors: Vec<Seed> = entries
        .map(|entry| {
            let path = entry.expect("an entry").path();
            let name = path.file_stem().and_then(|name| name.to_str());
            let text = std::fs::read_to_string(&path).expect("a vector is text");
            let digits: Vec<u32> = text.chars().filter_map(|c| c.to_digit(16)).collect();
            let byte = |pair: &[u32]| u8::try_from(pair[0] * 16 + pair[1]).expect("two digits");
            let bytes = digits.chunks_exact(2).map(byte).collect();
            (name.expect("a plain name").to_owned(), bytes)
        })
        .collect();
    vectors.sort();
    vectors
}

/// The vectors that are frames.
fn frames() -> Vec<(String, Header, Vec<u8>)> {
    let frame = |(name, bytes): Seed| {
        let header = Header::decode(&bytes).ok()?;
        Some((name, header, bytes))
    };
    golden().into_iter().filter_map(frame).collect()
}

fn messages(kinds: &[Kind]) -> Vec<Seed> {
    let of_kind = frames()
        .into_iter()
        .filter(|(_, h, _)| kinds.contains(&h.kind));
    let mut seeds: Vec<Seed> = of_kind
        .map(|(name, header, bytes)| {
            let body = &bytes[Header::BYTES..];
            (name, [&[choice_of(header.kind)], body].concat())
        })
        .collect();
    let (_, first) = seeds.first().cloned().expect("every kind has a vector");
    seeds.push(("bad-cut".to_owned(), first[..first.len() - 1].to_vec()));
    seeds.push((
        "bad-kind".to_owned(),
        vec![choice_of(Kind::ClientHello), 0xa0],
    ));
    seeds
}

/// One piece of a stream for the frame target.
fn piece(control: u8, bytes: &[u8]) -> Vec<u8> {
    let len = u8::try_from(bytes.len()).expect("a short piece");
    [&[control, len], bytes].concat()
}

fn frame() -> Vec<Seed> {
    let mut seeds = Vec::new();
    let mut all = Vec::new();
    for (name, header, bytes) in frames() {
        // Three are as near as a piece gets to any number above one.
        let control = match header.fds {
            0 => 0,
            1 => 1,
            _ => 2,
        };
        let mut bytes = bytes;
        bytes[6] = [0, 1, 3][usize::from(control)];
        let whole = piece(control, &bytes);
        all.extend(piece(control | 4, &bytes));
        if control > 0 || bytes.len() < 60 {
            let (front, back) = bytes.split_at(bytes.len() / 2);
            let halves = [piece(control, front), piece(0, back)].concat();
            seeds.push((format!("{name}-halves"), halves));
        }
        seeds.push((name, whole));
    }
    seeds.push(("all-at-once".to_owned(), all));
    let mut long = Header {
        kind: Kind::Listed,
        fds: 0,
        body_bytes: 255 * 513,
        request: RequestId(1),
    };
    seeds.push((
        "long-body".to_owned(),
        [piece(0, &long.encode()), piece(8, &[0; 255])].concat(),
    ));
    // The long frame begins behind another one in the reader's buffer.
    let behind = [
        piece(4, &short_frame()),
        piece(4, &long.encode()),
        piece(8, &[7; 255]),
    ];
    seeds.push(("long-body-behind".to_owned(), behind.concat()));
    long.fds = 2;
    seeds.push(("bad-missing-fds".to_owned(), piece(1, &long.encode())));
    seeds.push(("bad-magic".to_owned(), piece(0, &[b'x'; 24])));
    seeds.push(("bad-stray-fds".to_owned(), piece(2, &short_frame())));
    let flood: Vec<u8> = (0..6).flat_map(|_| piece(3, b"M")).collect();
    seeds.push(("bad-fd-flood".to_owned(), flood));
    seeds
}

fn short_frame() -> Vec<u8> {
    let closed = frames()
        .into_iter()
        .find(|(_, h, _)| h.kind == Kind::Closed);
    closed.expect("it has a vector").2
}

/// Tables as the daemon writes them.
fn built_tables() -> Vec<Seed> {
    let golden = golden()
        .into_iter()
        .find(|(name, _)| name == "tensor_table");
    let (_, golden) = golden.expect("the table has a vector");
    let empty = TableBuilder::new(ModelKind::Safetensors);
    let mut opaque = TableBuilder::new(ModelKind::Opaque);
    opaque.segment("weights.bin");
    let mut many = TableBuilder::new(ModelKind::Safetensors);
    let files = ["a.safetensors", "b.safetensors"].map(|name| many.segment(name));
    many.metadata("format", "pt");
    let mut at = 64;
    for (i, &dtype) in DType::ALL.iter().enumerate() {
        let shape = [2, 4, (i % 3) as u64];
        let bytes = dtype.byte_len_of_shape(&shape).expect("whole bytes");
        let name = format!("layer.{}.{dtype}", i / 2);
        many.tensor(&name, dtype, &shape, files[i % 2], at, bytes);
        at += bytes;
    }
    let build = |builder: TableBuilder| builder.build().expect("a small table");
    vec![
        ("golden".to_owned(), golden),
        ("empty".to_owned(), build(empty)),
        ("opaque".to_owned(), build(opaque)),
        ("all-types".to_owned(), build(many)),
    ]
}

fn tables() -> Vec<Seed> {
    let mut seeds: Vec<Seed> = built_tables()
        .into_iter()
        .map(|(name, bytes)| (name, [&[32, 0, 0][..], &bytes].concat()))
        .collect();
    let (_, golden) = seeds.first().cloned().expect("several");
    let mut long = golden.clone();
    long[2] = 1;
    long.push(0);
    seeds.push(("bad-length".to_owned(), long));
    seeds.push(("bad-cut".to_owned(), golden[..60].to_vec()));
    seeds
}

fn client_reply() -> Vec<Seed> {
    let mut seeds = Vec::new();
    for (name, bytes) in built_tables() {
        let grant = [&[0b1010, 2, 40][..], &bytes].concat();
        seeds.push((format!("granted-{name}"), grant));
    }
    for (name, header, mut bytes) in frames() {
        // As the answer to the first request of a session.
        bytes[16..24].copy_from_slice(&2u64.to_le_bytes());
        let asks = asks(header.kind);
        let is_good = matches!(header.kind, Kind::Listed | Kind::Stated);
        let prefix = if is_good { "" } else { "bad-" };
        let fds = header.fds.min(15) << 4;
        let answer = [&[fds | asks], &bytes[..]].concat();
        seeds.push((format!("{prefix}{name}"), answer));
        if header.kind == Kind::ServerHello {
            seeds.push(("bad-hello-only".to_owned(), [&[0b100], &bytes[..]].concat()));
        }
    }
    seeds
}

/// What a client must ask for a reply of this kind to be an answer.
const fn asks(kind: Kind) -> u8 {
    match kind {
        Kind::Listed => 0,
        Kind::Stated => 1,
        Kind::Progress => 3,
        Kind::ClientHello
        | Kind::ServerHello
        | Kind::Open
        | Kind::OpenFiles
        | Kind::Close
        | Kind::Cancel
        | Kind::Resume
        | Kind::List
        | Kind::Stat
        | Kind::Touched
        | Kind::Heard
        | Kind::Hint
        | Kind::Opened
        | Kind::Closed
        | Kind::Cancelled
        | Kind::Handed
        | Kind::Revoked
        | Kind::Ready
        | Kind::Resumed
        | Kind::OpenedMany
        | Kind::Hinted
        | Kind::Error => 2,
    }
}
