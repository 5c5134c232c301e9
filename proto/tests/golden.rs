//! Frozen bytes: one vector per message under `golden/v1`. A vector that was released decodes to
//! the same message forever. `MRM_UPDATE=1` writes vectors that are missing; it never changes one.

#![allow(clippy::expect_used, clippy::panic, reason = "helpers of tests")]

use mrm_proto::error::{ErrorCode, ErrorReply};
use mrm_proto::frame::{self, Header, Kind, Message};
use mrm_proto::hello::{ClientHello, ServerHello, ServerLimits};
use mrm_proto::ids::{DeviceUuid, Digest, InstanceId, LeaseId, RequestId, VersionId};
use mrm_proto::layout::Granularity;
use mrm_proto::name::{FileName, ModelName};
use mrm_proto::reply::{
    Cancelled, Closed, DeviceState, Handed, Hinted, IpcHandle, Listed, ModelRow, ModelState,
    OnDevice, Opened, OpenedMany, OpenedOne, Origin, Progress, Ready, ReadyRange, Reply, Resumed,
    Revoked, Sharing, Stated,
};
use mrm_proto::request::{
    Cancel, Close, Devices, HadLease, Heard, Hint, List, Open, OpenFiles, Request, Resume, Stat,
    Touched, WaitFor,
};
use mrm_proto::table::{ModelKind, Table, TableBuilder};
use std::path::PathBuf;

fn path_of(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("golden/v1")
        .join(format!("{name}.hex"))
}

fn to_hex(bytes: &[u8]) -> String {
    let lines: Vec<String> = bytes
        .chunks(32)
        .map(|line| line.iter().map(|b| format!("{b:02x}")).collect::<String>())
        .collect();
    lines.join("\n") + "\n"
}

fn from_hex(text: &str) -> Vec<u8> {
    let digits: Vec<u32> = text.chars().filter_map(|c| c.to_digit(16)).collect();
    digits
        .chunks(2)
        .map(|pair| u8::try_from(pair[0] * 16 + pair[1]).expect("a byte"))
        .collect()
}

fn frozen(name: &str, now: &[u8]) -> Vec<u8> {
    let path = path_of(name);
    if !path.exists() && std::env::var_os("MRM_UPDATE").is_some() {
        std::fs::write(&path, to_hex(now)).expect("writes a new vector");
    }
    let text = std::fs::read_to_string(&path)
        .unwrap_or_else(|e| panic!("{}: {e}; MRM_UPDATE=1 writes new vectors", path.display()));
    from_hex(&text)
}

fn model(name: &str) -> ModelName {
    ModelName::new(name).expect("a good name")
}

fn file(name: &str) -> FileName {
    FileName::new(name).expect("a good name")
}

fn row() -> ModelRow {
    ModelRow {
        name: model("org/bert"),
        registered: true,
        state: ModelState::Resident,
        bytes: 90_868_376,
        leases: 8,
        pinned: true,
        devices: None,
    }
}

#[expect(clippy::too_many_lines, reason = "a vector for each message")]
fn requests() -> Vec<(&'static str, u8, Request)> {
    vec![
        (
            "open",
            0,
            Request::Open(Open {
                model: model("org/bert"),
                wait_ms: 30_000,
                progress: true,
                devices: None,
                wait_for: None,
                known: None,
            }),
        ),
        (
            "open_on_device",
            0,
            Request::Open(Open {
                model: model("org/bert"),
                wait_ms: 0,
                progress: false,
                devices: Some(Devices {
                    any_of: vec![DeviceUuid([0x5a; 16])],
                    else_host: true,
                    reserve_bytes: None,
                }),
                wait_for: None,
                known: None,
            }),
        ),
        (
            "open_with_reserve",
            0,
            Request::Open(Open {
                devices: Some(Devices {
                    any_of: vec![DeviceUuid([0x5a; 16])],
                    else_host: false,
                    reserve_bytes: Some(3 << 30),
                }),
                ..Open::by_name(model("org/bert"))
            }),
        ),
        (
            "open_layout",
            0,
            Request::Open(Open {
                wait_for: Some(WaitFor::Layout),
                ..Open::by_name(model("org/bert"))
            }),
        ),
        (
            "open_known",
            0,
            Request::Open(Open {
                known: Some(VersionId(3)),
                ..Open::by_name(model("org/bert"))
            }),
        ),
        (
            "touched",
            0,
            Request::Touched(Touched {
                lease: LeaseId(77),
                tensors: vec![4, 0, 70_000],
            }),
        ),
        ("heard", 0, Request::Heard(Heard { lease: LeaseId(77) })),
        (
            "hint",
            0,
            Request::Hint(Hint {
                model: model("org/bert"),
                in_ms: 30_000,
            }),
        ),
        (
            "open_files",
            2,
            Request::OpenFiles(OpenFiles {
                label: model("my model"),
                files: vec![file("model.safetensors.index.json"), file("a.safetensors")],
                wait_ms: 0,
                progress: false,
                devices: None,
                wait_for: None,
            }),
        ),
        ("close", 0, Request::Close(Close { lease: LeaseId(77) })),
        (
            "cancel",
            0,
            Request::Cancel(Cancel {
                target: RequestId(5),
            }),
        ),
        (
            "resume",
            0,
            Request::Resume(Resume {
                instance: InstanceId(0xdead_beef),
                leases: vec![
                    HadLease {
                        version: VersionId(3),
                        device: None,
                        reserve_bytes: None,
                    },
                    HadLease {
                        version: VersionId(4),
                        device: Some(DeviceUuid([0x5a; 16])),
                        reserve_bytes: None,
                    },
                ],
            }),
        ),
        (
            "resume_with_reserve",
            0,
            Request::Resume(Resume {
                instance: InstanceId(0xdead_beef),
                leases: vec![HadLease {
                    version: VersionId(4),
                    device: Some(DeviceUuid([0x5a; 16])),
                    reserve_bytes: Some(3 << 30),
                }],
            }),
        ),
        (
            "list",
            0,
            Request::List(List {
                prefix: "org/".into(),
                after: Some(model("org/a")),
            }),
        ),
        (
            "stat",
            0,
            Request::Stat(Stat {
                model: model("org/bert"),
            }),
        ),
    ]
}

#[expect(clippy::too_many_lines, reason = "a vector for each message")]
fn replies() -> Vec<(&'static str, u8, Reply)> {
    vec![
        (
            "opened",
            3,
            Reply::Opened(Opened {
                lease: LeaseId(77),
                version: VersionId(3),
                origin: Origin::Joined,
                table_bytes: 4096,
                segments_bytes: vec![90_868_376, 612],
                took_us: 15,
                device: None,
                filling: None,
            }),
        ),
        (
            "opened_known",
            2,
            Reply::Opened(Opened {
                lease: LeaseId(77),
                version: VersionId(3),
                origin: Origin::Hit,
                table_bytes: 0,
                segments_bytes: vec![90_868_376, 612],
                took_us: 15,
                device: None,
                filling: None,
            }),
        ),
        (
            "opened_filling",
            3,
            Reply::Opened(Opened {
                lease: LeaseId(77),
                version: VersionId(3),
                origin: Origin::Loaded,
                table_bytes: 4096,
                segments_bytes: vec![90_868_376, 612],
                took_us: 15,
                device: None,
                filling: Some(vec![0]),
            }),
        ),
        (
            "ready",
            0,
            Reply::Ready(Ready {
                lease: LeaseId(77),
                ranges: vec![ReadyRange {
                    segment: 0,
                    from: 4 << 20,
                    to: 8 << 20,
                }],
                sealed: vec![1],
            }),
        ),
        (
            "opened_on_device",
            2,
            Reply::Opened(Opened {
                lease: LeaseId(77),
                version: VersionId(3),
                origin: Origin::Promoted,
                table_bytes: 4096,
                segments_bytes: Vec::new(),
                took_us: 15,
                device: Some(OnDevice {
                    uuid: DeviceUuid([0x5a; 16]),
                    sharing: Sharing::Vmm,
                    granularity: Granularity::Block {
                        block_bytes: 1 << 28,
                    },
                    allocations_bytes: vec![90_868_376],
                    handles: Vec::new(),
                }),
                filling: None,
            }),
        ),
        (
            "handed",
            0,
            Reply::Handed(Handed {
                from: 252,
                handles: vec![IpcHandle([7; 64])],
            }),
        ),
        (
            "revoked",
            0,
            Reply::Revoked(Revoked {
                lease: LeaseId(77),
                number: ErrorCode::DeviceLost.number(),
                message: "the device is lost".to_owned(),
            }),
        ),
        (
            "opened_many",
            5,
            Reply::OpenedMany(OpenedMany {
                opens: [(8, 2), (9, 1)]
                    .map(|(request, files)| one_of_many(request, files))
                    .into(),
            }),
        ),
        ("closed", 0, Reply::Closed(Closed {})),
        (
            "cancelled",
            0,
            Reply::Cancelled(Cancelled { was_pending: true }),
        ),
        (
            "progress",
            0,
            Reply::Progress(Progress {
                loaded_bytes: 1 << 20,
                total_bytes: 1 << 30,
                eta_ms: None,
            }),
        ),
        (
            "progress_eta",
            0,
            Reply::Progress(Progress {
                loaded_bytes: 1 << 20,
                total_bytes: 1 << 30,
                eta_ms: Some(730),
            }),
        ),
        (
            "resumed",
            0,
            Reply::Resumed(Resumed {
                leases: vec![Some(LeaseId(1)), None],
            }),
        ),
        (
            "listed",
            0,
            Reply::Listed(Listed {
                models: vec![row()],
                more: true,
            }),
        ),
        (
            "stated",
            0,
            Reply::Stated(Stated {
                row: row(),
                version: Some(VersionId(3)),
                digests: vec![Some(Digest([0xab; 32])), None],
            }),
        ),
        (
            "stated_on_device",
            0,
            Reply::Stated(Stated {
                row: ModelRow {
                    devices: Some(vec![DeviceState {
                        uuid: DeviceUuid([0x5a; 16]),
                        state: ModelState::Resident,
                        bytes: 92_274_688,
                        leases: 3,
                    }]),
                    ..row()
                },
                version: None,
                digests: Vec::new(),
            }),
        ),
        ("hinted", 0, Reply::Hinted(Hinted {})),
        (
            "error",
            0,
            Reply::Error(ErrorReply::new(
                ErrorCode::ModelNotFound,
                "no model `x` is registered",
            )),
        ),
    ]
}

#[test]
fn requests_keep_their_bytes() {
    for (name, fds, message) in requests() {
        let bytes = frame::encode(RequestId(0x0102_0304), fds, &message).expect("encodes");
        let frozen = frozen(name, &bytes);
        assert_eq!(to_hex(&bytes), to_hex(&frozen), "{name}");
        let header = Header::decode(&frozen).expect("frozen header");
        assert_eq!(usize::from(header.fds), message.fds_expected(), "{name}");
        assert_eq!(
            Request::decode(&header, &frozen[Header::BYTES..]),
            Ok(message),
            "{name}"
        );
    }
}

#[test]
fn replies_keep_their_bytes() {
    for (name, fds, message) in replies() {
        let bytes = frame::encode(RequestId(0x0102_0304), fds, &message).expect("encodes");
        let frozen = frozen(name, &bytes);
        assert_eq!(to_hex(&bytes), to_hex(&frozen), "{name}");
        let header = Header::decode(&frozen).expect("frozen header");
        assert_eq!(
            Reply::decode(&header, &frozen[Header::BYTES..]),
            Ok(message),
            "{name}"
        );
    }
}

#[test]
fn hellos_keep_their_bytes() {
    let client = ClientHello {
        version_min: 1,
        version_max: 1,
        features: 1,
        client: "python3 (pid 7)".to_owned(),
    };
    let bytes = frame::encode(RequestId(1), 0, &client).expect("encodes");
    let frozen_client = frozen("client_hello", &bytes);
    assert_eq!(to_hex(&bytes), to_hex(&frozen_client));
    let header = Header::decode(&frozen_client).expect("header");
    assert_eq!(
        ClientHello::decode(&header, &frozen_client[Header::BYTES..]),
        Ok(client)
    );

    let server = ServerHello {
        version: 1,
        features: 1,
        instance: InstanceId(0xdead_beef),
        daemon: "mrmd 0.1.0".to_owned(),
        limits: ServerLimits {
            frame_body_bytes_max: 131_072,
            requests_in_flight_max: 256,
            leases_max: 4096,
            wait_ms_max: 3_600_000,
        },
    };
    let bytes = frame::encode(RequestId(1), 0, &server).expect("encodes");
    let frozen_server = frozen("server_hello", &bytes);
    assert_eq!(to_hex(&bytes), to_hex(&frozen_server));
    let header = Header::decode(&frozen_server).expect("header");
    assert_eq!(
        ServerHello::decode(&header, &frozen_server[Header::BYTES..]),
        Ok(server)
    );
}

#[test]
fn the_tensor_table_keeps_its_bytes() {
    let mut builder = TableBuilder::new(ModelKind::Safetensors);
    let segment = builder.segment("model.safetensors");
    builder.metadata("format", "pt");
    builder.tensor("b", mrm_proto::dtype::DType::F32, &[2, 3], segment, 128, 24);
    builder.tensor("a", mrm_proto::dtype::DType::BF16, &[], segment, 152, 2);
    let bytes = builder.build().expect("builds");
    let frozen = frozen("tensor_table", &bytes);
    assert_eq!(to_hex(&bytes), to_hex(&frozen));
    let table = Table::parse(&frozen).expect("parses");
    assert_eq!(table.find("a").map(|t| t.offset), Some(152));
}

#[test]
fn every_kind_has_a_vector() {
    let mut kinds: Vec<Kind> = requests().iter().map(|(_, _, m)| m.kind()).collect();
    kinds.extend(replies().iter().map(|(_, _, m)| m.kind()));
    kinds.extend([Kind::ClientHello, Kind::ServerHello]);
    for kind in Kind::ALL {
        assert!(kinds.contains(&kind), "{kind:?} has no golden vector");
    }
}

#[test]
fn fields_of_a_newer_sender_are_skipped() {
    // The map {0: 77, 9: "new"}: a `Close` from a version that added field 9.
    let body = [0xa2, 0x00, 0x18, 0x4d, 0x09, 0x63, b'n', b'e', b'w'];
    let header = Header {
        kind: Kind::Close,
        fds: 0,
        body_bytes: 9,
        request: RequestId::NO_REPLY,
    };
    assert_eq!(
        Request::decode(&header, &body),
        Ok(Request::Close(Close { lease: LeaseId(77) }))
    );
}

fn one_of_many(request: u64, files: u64) -> OpenedOne {
    OpenedOne {
        request: RequestId(request),
        opened: Opened {
            lease: LeaseId(70 + request),
            version: VersionId(request),
            origin: Origin::Hit,
            table_bytes: 4096,
            segments_bytes: (0..files).map(|file| 612 + file).collect(),
            took_us: 3,
            device: None,
            filling: None,
        },
    }
}
