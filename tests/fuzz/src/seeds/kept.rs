//! Seeds of the keeper's manifest: one description of each kind.

use super::Seed;
use crate::target::keeper::HEADER_BYTES;
use mrm_daemon::keeper::describe::{
    Description, FileState, Image, ImageMechanism, ImageOf, Instance, Listener, Segment,
    SegmentKind, SourceRef, Version, VersionPart, Which,
};
use mrm_proto::ids::{DeviceUuid, Digest, InstanceId, VersionId};
use mrm_proto::layout::Granularity;

pub(super) fn seeds() -> Vec<Seed> {
    let whole = |(name, description): &(&str, Description)| {
        let bytes = description.encode().expect("a small description");
        ((*name).to_owned(), [&[1], &bytes[..]].concat())
    };
    let all = descriptions();
    let mut seeds: Vec<Seed> = all.iter().map(whole).collect();
    // Without header and checksum, so that changed bytes are looked at.
    let bodies: Vec<Seed> = seeds
        .iter()
        .map(|(name, bytes)| {
            let body = &bytes[1 + HEADER_BYTES..];
            (format!("{name}-body"), [&[0], body].concat())
        })
        .collect();
    let (_, first) = seeds.first().cloned().expect("several");
    seeds.extend(bodies);
    let bad = |name: &str, change: &dyn Fn(&mut Vec<u8>)| {
        let mut bytes = first.clone();
        change(&mut bytes);
        (format!("bad-{name}"), bytes)
    };
    seeds.extend([
        bad("magic", &|bytes| bytes[1] ^= 1),
        bad("format", &|bytes| bytes[9] = 2),
        bad("length", &|bytes| bytes[13] ^= 1),
        bad("checksum", &|bytes| bytes[20] ^= 1),
        bad("cut", &|bytes| bytes.truncate(60)),
        ("bad-empty".to_owned(), vec![1]),
        ("bad-body".to_owned(), vec![0, 0x9f, 0x9f, 0x9f]),
        ("bad-kind".to_owned(), vec![0, 0x82, 0x18, 0x63, 0x80]),
    ]);
    seeds
}

fn version(parts: [VersionPart; 2]) -> Version {
    Version {
        version: VersionId(9),
        label: "org/model".to_owned(),
        foreign: true,
        kind: 1,
        tensors: 5,
        parts: parts.to_vec(),
        path: Some("/srv/models/model".to_owned()),
        leases: 2,
        pinned: true,
        owner: Some(1000),
        passed_by: Some(vec![7, 1000]),
    }
}

fn descriptions() -> Vec<(&'static str, Description)> {
    let file = SourceRef::File(FileState {
        dev: 1,
        ino: u64::MAX,
        bytes: 3,
        mtime_ns: -1,
        ctime_ns: 1 << 90,
    });
    let table = SourceRef::Table(Digest([5; 32]));
    let part = |source, name: &str| VersionPart {
        source,
        name: name.to_owned(),
        bytes: 3,
    };
    let image = |others| {
        Description::Image(Image {
            device: DeviceUuid([9; 16]),
            mechanism: ImageMechanism::Vmm,
            granularity: Granularity::Block { block_bytes: 1024 },
            allocations_bytes: vec![1024, 512],
            digest: Digest([1; 32]),
            table: Digest([2; 32]),
            charge_bytes: 4 << 20,
            files: vec![file],
            owner: Some(1000),
            others,
        })
    };
    vec![
        (
            "segment",
            Description::Segment(Segment {
                digest: Some(Digest([7; 32])),
                bytes: 3,
                charge_bytes: 4096,
                kind: SegmentKind::File,
                sources: vec![file, table],
                load_us: 12,
            }),
        ),
        ("image", image(None)),
        (
            "image-of-two",
            image(Some(vec![ImageOf {
                table: Digest([3; 32]),
                files: vec![file],
            }])),
        ),
        (
            "version",
            Description::Version(version([part(table, ""), part(file, "model.safetensors")])),
        ),
        (
            "listener",
            Description::Listener(Listener {
                which: Which::Status,
                path: "/run/mrm/status.sock".to_owned(),
                dev: 5,
                ino: 6,
            }),
        ),
        (
            "instance",
            Description::Instance(Instance {
                instance: InstanceId(7),
                release: "0.1.0".to_owned(),
                counters: vec![1, 2, 3],
            }),
        ),
    ]
}
