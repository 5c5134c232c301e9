//! Descriptions: what was written is read, and nothing else is.

use super::support::*;
use crate::keeper::describe::*;
use crate::keeper::table::Table;
use crate::keeper::{Entry, KEY_BYTES_MAX, Key};
use crate::source::Identity;
use mrm_proto::ids::{Digest, VersionId};

fn version(parts: usize) -> Description {
    let identity = Identity {
        dev: 1,
        ino: u64::MAX,
        bytes: 3,
        mtime_ns: -1,
        ctime_ns: i128::from(u64::MAX) * 1_000_000_000,
    };
    let state = FileState::from(identity);
    assert_eq!(Identity::from(state), identity);
    let part = VersionPart {
        source: SourceRef::File(state),
        name: "model.safetensors".into(),
        bytes: 3,
    };
    Description::Version(Version {
        version: VersionId(9),
        label: "org/model".into(),
        foreign: true,
        kind: 1,
        tensors: 5,
        parts: vec![part; parts],
        path: Some("/srv/models/model".into()),
        leases: 2,
        pinned: true,
        owner: Some(1000),
        passed_by: Some(vec![7, 1000]),
    })
}

fn all() -> Vec<Description> {
    let listener = Listener {
        which: Which::Status,
        path: "/run/mrm/status.sock".into(),
        dev: 5,
        ino: 6,
    };
    vec![
        segment("a").description().clone(),
        image("b", 3).description().clone(),
        version(2),
        Description::Listener(listener),
        instance("c", 4).description().clone(),
    ]
}

#[test]
fn every_kind_comes_back_as_it_was() {
    for description in all() {
        assert_eq!(
            Description::read(&description.seal().unwrap()).unwrap(),
            description
        );
    }
}

#[test]
fn every_changed_bit_and_every_other_length_is_refused() {
    for description in all() {
        let bytes = description.encode().unwrap();
        for at in 0..bytes.len() * 8 {
            let mut changed = bytes.clone();
            changed[at / 8] ^= 1 << (at % 8);
            assert!(
                Description::decode(&changed).is_err(),
                "bit {at} of {description:?}"
            );
        }
        for length in 0..bytes.len() {
            assert!(
                Description::decode(&bytes[..length]).is_err(),
                "{length} bytes"
            );
        }
        let longer = [&bytes[..], &[0]].concat();
        assert!(Description::decode(&longer).is_err());
    }
}

/// `cbor` with a header that is right.
fn framed(cbor: &[u8]) -> Vec<u8> {
    let mut bytes = b"MRMKEPT\n\x01\0\0\0".to_vec();
    bytes.extend(u32::try_from(cbor.len()).unwrap().to_le_bytes());
    let checksum = blake3::hash(&[&bytes, cbor].concat());
    bytes.extend(checksum.as_bytes());
    bytes.extend(cbor);
    bytes
}

#[test]
fn a_right_checksum_makes_nothing_else_right() {
    let right = all().swap_remove(1).encode().unwrap();
    assert_eq!(framed(&right[48..]), right);
    // Bytes after the end, an unknown kind, an array that says it is endless, and one that is huge.
    let after = [&right[48..], &[0]].concat();
    let cases = [
        &after[..],
        &[0x82, 9, 0x80],
        &[0x9f],
        &[0x82, 1, 0x81, 0x9b, 255, 255, 255, 255, 0, 0, 0, 0],
    ];
    for cbor in cases {
        let refused = Description::decode(&framed(cbor)).unwrap_err();
        assert!(
            matches!(refused, DescribeError::Cbor(_)),
            "{cbor:?}: {refused}"
        );
    }
    let mut seed = 0x9e37_79b9_u32;
    println!("seed {seed}");
    for _ in 0..20_000 {
        let mut cbor = right[48..].to_vec();
        for _ in 0..4 {
            seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            let at = (seed >> 16) as usize % cbor.len();
            cbor[at] = seed.to_le_bytes()[1];
        }
        // Whatever it is: no panic, and within bounds.
        if let Ok(description) = Description::decode(&framed(&cbor)) {
            assert!(description.encode().is_ok(), "{description:?}");
        }
    }
}

#[test]
fn bounds_hold_on_both_ways() {
    assert!(version(251).encode().is_ok());
    assert!(version(252).encode().is_err());
    assert!(version(0).encode().is_err());
    let Description::Segment(segment) = segment("a").description().clone() else {
        panic!("it is one")
    };
    let mut cheap = segment.clone();
    cheap.charge_bytes = cheap.bytes - 1;
    assert!(Description::Segment(cheap).encode().is_err());
    let mut nobodys = segment.clone();
    nobodys.sources.clear();
    assert!(Description::Segment(nobodys).encode().is_err());
    let mut many = segment;
    many.sources = vec![SourceRef::Table(Digest([0; 32])); SOURCES_PER_SEGMENT_MAX];
    assert!(Description::Segment(many.clone()).encode().is_ok());
    many.sources.push(many.sources[0]);
    assert!(Description::Segment(many).encode().is_err());
    let Description::Image(mut shared) = image("b", 1).description().clone() else {
        panic!("it is one")
    };
    let other = ImageOf {
        table: Digest([4; 32]),
        files: shared.files.clone(),
    };
    assert!(shared.is_of(shared.table, &shared.files) && !shared.is_of(other.table, &other.files));
    shared.others = Some(vec![other.clone(); IMAGE_OTHERS_MAX]);
    assert!(shared.is_of(other.table, &other.files) && !shared.is_of(other.table, &[]));
    assert!(Description::Image(shared.clone()).encode().is_ok());
    shared.others = Some(vec![other; IMAGE_OTHERS_MAX + 1]);
    assert!(Description::Image(shared).encode().is_err());
}

#[test]
fn keys_and_entries_are_what_they_say() {
    for right in ["a", "segment-1.2", &"k".repeat(KEY_BYTES_MAX)] {
        assert!(Key::new(right).is_ok(), "{right}");
    }
    for wrong in [
        "",
        "A",
        "a_b",
        "a:b",
        "a\n",
        "ä",
        &"k".repeat(KEY_BYTES_MAX + 1),
    ] {
        assert!(Key::new(wrong).is_err(), "{wrong}");
    }
    let segment = segment("a");
    let refused = Entry::new(key("a"), segment.description().clone(), Vec::new()).unwrap_err();
    assert!(
        refused
            .to_string()
            .contains("0 descriptors, and its description is of 1")
    );
}

#[test]
fn only_the_last_wish_for_a_key_is_done_and_all_who_wait_are_told() {
    let mut table = Table::default();
    let told = std::sync::Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let done = || -> Option<crate::keeper::Done> {
        let told = told.clone();
        Some(Box::new(move |_| {
            told.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
        }))
    };
    for n in 0..100 {
        assert!(table.put(instance("a", n), done()).is_ok());
    }
    assert!(table.put(instance("b", 1), done()).is_ok());
    table.remove(&key("b"), done());
    let job = table.next().unwrap();
    assert_eq!(
        job.entry.as_ref().unwrap().description(),
        instance("a", 99).description()
    );
    assert_eq!(job.before.len(), 99);
    // It failed: it comes again, before the others, with what was asked meanwhile.
    table.remove(&key("a"), done());
    table.again(job);
    let job = table.next().unwrap();
    assert!(job.key == key("a") && job.entry.is_none());
    job.end(Ok(()));
    assert_eq!(told.load(std::sync::atomic::Ordering::SeqCst), 101);
    let job = table.next().unwrap();
    assert!(job.key == key("b") && job.entry.is_none());
    job.end(Ok(()));
    assert_eq!(told.load(std::sync::atomic::Ordering::SeqCst), 103);
    assert!(table.next().is_none() && table.is_idle());
}
