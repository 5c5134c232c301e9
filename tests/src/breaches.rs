//! A client with no library that breaks each rule of PROTOCOL.md on purpose, one breach at a time.
//! Tests compare each with what the document says comes of it; the benchmark makes them all at once.

use crate::hostile::{close, copies, encoded, framed, header, open, open_files};
use crate::raw::Raw;
use mrm_proto::error::ErrorCode;
use mrm_proto::frame::Kind;
use mrm_proto::hello::ClientHello;
use mrm_proto::ids::{DeviceUuid, InstanceId, LeaseId, RequestId, VersionId};
use mrm_proto::limits::{
    DEVICES_PER_OPEN_MAX, FRAME_BODY_BYTES_MAX, RESUMED_MAX, SEGMENTS_PER_MODEL_MAX, VERSION_MAX,
};
use mrm_proto::name::ModelName;
use mrm_proto::reply::Reply;
use mrm_proto::request::{Cancel, Devices, HadLease, List, Open, Request, Resume, Stat};
use std::fs::File;
use std::path::Path;

/// What comes of a breach.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// The session ends with this error.
    Ends(ErrorCode),
    /// The request is refused with this error, and the session goes on.
    Refused(ErrorCode),
    /// The rule is there for the client's own sake: it is answered.
    Answered,
}

/// One rule, and a client that breaks it.
#[derive(Debug, Clone)]
pub struct Breach {
    /// Section of PROTOCOL.md.
    pub section: u8,
    /// The rule, as there.
    pub rule: &'static str,
    /// Whether a good hello comes before it.
    pub after_hello: bool,
    /// What is sent.
    pub bytes: Vec<u8>,
    /// How many descriptors travel with the first byte.
    pub fds: usize,
    /// What comes of it.
    pub outcome: Outcome,
}

impl Breach {
    /// Commits it on a connection of its own, which is returned. The daemon may hang up meanwhile.
    pub fn commit(&self, socket: &Path) -> Raw {
        let mut raw = match self.after_hello {
            true => Raw::hello(socket),
            false => Raw::connect(socket),
        };
        let null = File::open("/dev/null").unwrap();
        let _ = raw.send_bytes(&self.bytes, &copies(&null, self.fds));
        raw
    }

    /// Commits it on a session that was said hello on, without awaiting what comes of it.
    pub fn commit_on(&self, raw: &mut Raw) -> std::io::Result<()> {
        let null = File::open("/dev/null")?;
        raw.send_bytes(&self.bytes, &copies(&null, self.fds))
    }
}

/// The id of the request in every breach that has one.
pub const ID: u64 = 7;

/// Every rule of the document that bytes alone can break. `model` is one that can be opened.
pub fn all(model: &str) -> Vec<Breach> {
    let mut all = hellos();
    all.extend(frames());
    all.extend(bodies());
    all.extend(descriptors(model));
    all.extend(requests(model));
    all
}

const OPEN: u16 = Kind::Open as u16;

const fn breach(section: u8, rule: &'static str, bytes: Vec<u8>, outcome: Outcome) -> Breach {
    Breach {
        section,
        rule,
        after_hello: true,
        bytes,
        fds: 0,
        outcome,
    }
}

/// A breach of a rule that ends the session.
fn ends(section: u8, rule: &'static str, bytes: Vec<u8>, code: ErrorCode) -> Breach {
    breach(section, rule, bytes, Outcome::Ends(code))
}

fn hellos() -> Vec<Breach> {
    let hello = ClientHello::new("breaker");
    let newer = ClientHello {
        version_min: VERSION_MAX + 1,
        version_max: VERSION_MAX + 1,
        ..hello.clone()
    };
    let first = |rule, bytes, code| Breach {
        after_hello: false,
        ..ends(3, rule, bytes, code)
    };
    let mut gift = first(
        "a frame with more descriptors than its kind needs ends the session",
        encoded(1, 1, &hello),
        ErrorCode::WrongFdCount,
    );
    gift.fds = 1;
    vec![
        first(
            "the newest version that both know, or version_mismatch",
            encoded(1, 0, &newer),
            ErrorCode::VersionMismatch,
        ),
        first(
            "the first frame each way is the hello",
            encoded(ID, 0, &open("m", 0)),
            ErrorCode::OutOfOrder,
        ),
        first(
            "a key that the reader needs and does not find makes the body malformed",
            framed(Kind::ClientHello as u16, 0, 1, &[0xa0]),
            ErrorCode::MalformedBody,
        ),
        gift,
        ends(
            3,
            "the hello is the first frame, once",
            encoded(ID, 0, &hello),
            ErrorCode::OutOfOrder,
        ),
    ]
}

fn frames() -> Vec<Breach> {
    let mut framing = encoded(ID, 0, &open("m", 0));
    framing[3] = 2;
    let too_long = u32::try_from(FRAME_BODY_BYTES_MAX).unwrap() + 1;
    vec![
        ends(2, "magic", vec![b'X'; 24], ErrorCode::BadMagic),
        ends(2, "magic: framing 1", framing, ErrorCode::BadMagic),
        ends(
            2,
            "kind: one of section 4",
            header(0x0fff, 0, 0, 0, 0, ID),
            ErrorCode::UnknownKind,
        ),
        ends(
            2,
            "kind: replies are the daemon's",
            framed(Kind::Opened as u16, 0, ID, &[0xa0]),
            ErrorCode::OutOfOrder,
        ),
        ends(
            2,
            "fds: at most 253",
            header(OPEN, 254, 0, 0, 0, ID),
            ErrorCode::WrongFdCount,
        ),
        ends(
            2,
            "flags: 0",
            header(OPEN, 0, 1, 0, 0, ID),
            ErrorCode::ReservedBits,
        ),
        ends(
            2,
            "reserved: 0",
            header(OPEN, 0, 0, 0, 1, ID),
            ErrorCode::ReservedBits,
        ),
        ends(
            2,
            "body length: at most 131,072",
            header(OPEN, 0, 0, too_long, 0, ID),
            ErrorCode::FrameTooLong,
        ),
    ]
}

fn bodies() -> Vec<Breach> {
    let good = encoded(ID, 0, &open("m", 0))[24..].to_vec();
    let longer = [&good[..], &[0]].concat();
    let malformed =
        |rule, body: &[u8]| ends(2, rule, framed(OPEN, 0, ID, body), ErrorCode::MalformedBody);
    vec![
        malformed("the body is one CBOR map", &[0x80]),
        malformed(
            "the body is one CBOR map, and whole",
            &good[..good.len() - 1],
        ),
        malformed("bytes after the map make the body malformed", &longer),
        malformed("a key that the reader needs and does not find", &[0xa0]),
        malformed("a text is UTF-8", b"\xa3\x00\x62\xff\xfe\x01\x00\x02\xf4"),
        malformed("a number is not negative", b"\xa3\x00\x61m\x01\x20\x02\xf4"),
        malformed(
            "the frame bounds what is in it",
            &[b"\xa1\x00\x7b".as_slice(), &[0x7f; 8]].concat(),
        ),
        breach(
            2,
            "a reader skips keys that it does not know",
            framed(
                OPEN,
                0,
                ID,
                b"\xa4\x00\x61m\x01\x00\x02\xf4\x18\x63\x81\xf6",
            ),
            Outcome::Answered,
        ),
    ]
}

fn descriptors(model: &str) -> Vec<Breach> {
    let two = open_files("x", &["a.bin", "b.bin"]);
    let wrong = |rule, announced, passed, request: &Request| Breach {
        fds: passed,
        ..ends(
            2,
            rule,
            encoded(ID, announced, request),
            ErrorCode::WrongFdCount,
        )
    };
    let fewer = "fewer descriptors than the frame announces";
    let more = "more descriptors than the frame announces";
    let unlike = "other than the kind needs";
    vec![
        wrong(fewer, 2, 1, &two),
        wrong(fewer, 2, 0, &two),
        wrong(more, 2, 3, &two),
        wrong(more, 0, 1, &open(model, 0)),
        wrong(more, 0, 253, &open(model, 0)),
        wrong(unlike, 1, 1, &two),
        wrong(unlike, 0, 0, &two),
        wrong(unlike, 1, 1, &open(model, 0)),
        wrong(unlike, 253, 253, &open(model, 0)),
    ]
}

#[expect(clippy::too_many_lines, reason = "a table")]
fn requests(model: &str) -> Vec<Breach> {
    let asks = |section, rule, fds, request: &Request, outcome| Breach {
        fds,
        ..breach(section, rule, encoded(ID, fds, request), outcome)
    };
    let names: Vec<String> = (0..=SEGMENTS_PER_MODEL_MAX)
        .map(|i| format!("{i}.bin"))
        .collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let on_devices = |count: usize, else_host| {
        let uuids = (0..count).map(|i| DeviceUuid([u8::try_from(i % 251).unwrap(); 16]));
        Request::Open(Open {
            devices: Some(Devices {
                any_of: uuids.collect(),
                else_host,
                reserve_bytes: None,
            }),
            ..Open::by_name(ModelName::new(model).unwrap())
        })
    };
    let had = HadLease {
        version: VersionId(u64::MAX),
        device: None,
        reserve_bytes: None,
    };
    let resume = |count| {
        Request::Resume(Resume {
            instance: InstanceId(1),
            leases: vec![had; count],
        })
    };
    let cancel = Request::Cancel(Cancel {
        target: RequestId(99),
    });
    let stat = Request::Stat(Stat {
        model: ModelName::new("no/such").unwrap(),
    });
    let list = Request::List(List {
        prefix: "x".repeat(100_000),
        after: None,
    });
    let unknown_id =
        |rule, request: &Request| ends(7, rule, encoded(0, 0, request), ErrorCode::BadRequestId);
    let id_0 = "the client chooses ids, not 0";
    let bad_name = [&b"\xa3\x00\x69/etc/pass"[..], b"\x01\x00\x02\xf4"].concat();
    vec![
        unknown_id(id_0, &open(model, 0)),
        unknown_id(id_0, &stat),
        unknown_id(id_0, &resume(1)),
        breach(
            7,
            "name of a model: relative path",
            framed(OPEN, 0, ID, &bad_name),
            Outcome::Refused(ErrorCode::BadName),
        ),
        asks(
            7,
            "files of one model: 250",
            SEGMENTS_PER_MODEL_MAX + 1,
            &open_files("x", &names),
            Outcome::Refused(ErrorCode::BadFileSet),
        ),
        asks(
            4,
            "a set is one file or an index with its shards",
            0,
            &open_files("x", &[]),
            Outcome::Refused(ErrorCode::BadFileSet),
        ),
        asks(
            4,
            "each file once",
            2,
            &open_files("x", &["a.bin", "a.bin"]),
            Outcome::Refused(ErrorCode::BadFileSet),
        ),
        asks(
            4,
            "a file, which the client opened for reading",
            1,
            &open_files("x", &["a.bin"]),
            Outcome::Refused(ErrorCode::NotRegularFile),
        ),
        asks(
            7,
            "devices that an open names: 64",
            0,
            &on_devices(DEVICES_PER_OPEN_MAX + 1, true),
            Outcome::Ends(ErrorCode::MalformedBody),
        ),
        asks(
            5,
            "a device that the daemon has",
            0,
            &on_devices(1, false),
            Outcome::Refused(ErrorCode::UnknownDevice),
        ),
        asks(
            5,
            "else in host memory",
            0,
            &on_devices(1, true),
            Outcome::Answered,
        ),
        asks(
            4,
            "Resume: at most 2048 leases",
            0,
            &resume(RESUMED_MAX + 1),
            Outcome::Ends(ErrorCode::MalformedBody),
        ),
        asks(
            6,
            "null when the daemon did not take that over",
            0,
            &resume(RESUMED_MAX),
            Outcome::Answered,
        ),
        asks(
            4,
            "Close: a lease of this session",
            0,
            &close(LeaseId(u64::MAX)),
            Outcome::Refused(ErrorCode::UnknownLease),
        ),
        asks(4, "Cancel: a pending open", 0, &cancel, Outcome::Answered),
        asks(
            4,
            "Stat: a model that is there",
            0,
            &stat,
            Outcome::Refused(ErrorCode::ModelNotFound),
        ),
        asks(4, "List: any prefix", 0, &list, Outcome::Answered),
        asks(
            7,
            "wait of an open: 3,600,000 ms at most, longer ones are shortened",
            0,
            &open(model, u64::MAX),
            Outcome::Answered,
        ),
    ]
}

/// Reads the outcome of `breach` and compares it.
pub fn check(breach: &Breach, raw: &mut Raw) {
    let rule = breach.rule;
    match breach.outcome {
        Outcome::Ends(code) => {
            let error = crate::hostile::ending(raw);
            assert_eq!(error.code(), Some(code), "{rule}: {}", error.message);
            assert!(!error.message.is_empty(), "{rule}");
        }
        Outcome::Refused(code) => match raw.reply() {
            Some((RequestId(ID), Reply::Error(error), _)) => {
                assert_eq!(error.code(), Some(code), "{rule}: {}", error.message);
                assert!(!error.took_effect && !error.message.is_empty(), "{rule}");
            }
            other => panic!("{rule}: not refused: {other:?}"),
        },
        Outcome::Answered => match raw.reply() {
            Some((RequestId(ID), Reply::Error(error), _)) => panic!("{rule}: {}", error.message),
            Some((RequestId(ID), _, _)) => {}
            other => panic!("{rule}: not answered: {other:?}"),
        },
    }
}
