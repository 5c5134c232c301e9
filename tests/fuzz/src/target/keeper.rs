//! The keeper's manifest: what says to the next daemon what the last one left.
//!
//! An input is a byte whose lowest bit leaves header and checksum to the rest of the input instead
//! of making them, and a description.
//!
//! ```
//! use mrm_daemon::keeper::describe::{Description, Instance};
//! use mrm_fuzz::{Verdict, target::keeper};
//! use mrm_proto::ids::InstanceId;
//! let instance = Instance { instance: InstanceId(7), release: "0.1.0".into(), counters: vec![1] };
//! let bytes = Description::Instance(instance).encode()?;
//! assert_eq!(keeper::run(&[&[1], &bytes[..]].concat()), Verdict::Accepted);
//! assert_eq!(keeper::run(&[&[0], &bytes[keeper::HEADER_BYTES..]].concat()), Verdict::Accepted);
//! assert_eq!(keeper::run(&[&[0], &bytes[..]].concat()), Verdict::Refused);
//! # Ok::<(), mrm_daemon::keeper::describe::DescribeError>(())
//! ```

use super::{assert_says, take};
use crate::Verdict;
use mrm_daemon::keeper::describe::{
    COUNTERS_MAX, DESCRIPTION_BYTES_MAX, Description, PATH_BYTES_MAX, RELEASE_BYTES_MAX,
    SOURCES_PER_SEGMENT_MAX,
};
use mrm_daemon::keeper::{ENTRY_FDS_MAX, KEY_BYTES_MAX, Key};
use mrm_proto::limits::SEGMENTS_PER_MODEL_MAX;

/// How much of a description comes before its body.
pub const HEADER_BYTES: usize = 48;
/// Where its checksum is.
const CHECKSUM_AT: usize = 16;

/// Decodes a description, and says it again.
pub fn run(mut input: &[u8]) -> Verdict {
    let [flags] = take(&mut input);
    key(input);
    let bytes = match flags & 1 {
        0 => headed(input),
        _ => input.to_vec(),
    };
    let description = match Description::decode(&bytes) {
        Ok(description) => description,
        Err(error) => return assert_says(&error),
    };
    within_bounds(&description);
    let encoded = description.encode().expect("what was read can be written");
    assert!(encoded.len() <= DESCRIPTION_BYTES_MAX);
    let again = Description::decode(&encoded).expect("our own description");
    assert_eq!(again, description);
    assert_eq!(again.encode().expect("as before"), encoded, "one encoding");
    let memfd = description.seal().expect("a sealed memfd");
    assert_eq!(
        Description::read(&memfd).expect("our own memfd"),
        description
    );

    // It is one value and all of it, and no byte of it may change.
    assert!(Description::decode(&encoded[..encoded.len() - 1]).is_err());
    assert!(Description::decode(&[&encoded[..], &[0]].concat()).is_err());
    let longer = headed(&[&encoded[HEADER_BYTES..], &[0]].concat());
    assert!(Description::decode(&longer).is_err(), "a byte is left over");
    let mut changed = encoded;
    let at = usize::from(flags) % changed.len();
    changed[at] ^= 1;
    assert!(Description::decode(&changed).is_err(), "byte {at} changed");
    Verdict::Accepted
}

/// `body` with a header that is right for it.
#[must_use]
pub fn headed(body: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0; HEADER_BYTES];
    bytes[..8].copy_from_slice(b"MRMKEPT\n");
    bytes[8..12].copy_from_slice(&1u32.to_le_bytes());
    let length = u32::try_from(body.len()).expect("an input is short");
    bytes[12..16].copy_from_slice(&length.to_le_bytes());
    bytes.extend_from_slice(body);
    let mut hasher = blake3::Hasher::new();
    hasher.update(&bytes[..CHECKSUM_AT]);
    hasher.update(body);
    let checksum = hasher.finalize();
    bytes[CHECKSUM_AT..HEADER_BYTES].copy_from_slice(checksum.as_bytes());
    bytes
}

fn within_bounds(description: &Description) {
    assert!(description.fds() < ENTRY_FDS_MAX);
    assert!(!description.kind().is_empty());
    match description {
        Description::Segment(it) => {
            assert!((1..=SOURCES_PER_SEGMENT_MAX).contains(&it.sources.len()));
            assert!(it.bytes > 0 && it.bytes <= it.charge_bytes);
        }
        Description::Image(it) => {
            let sum = it.allocations_bytes.iter().try_fold(0_u64, |sum, bytes| {
                assert!(*bytes > 0, "an allocation of nothing");
                sum.checked_add(*bytes)
            });
            assert!(sum.is_some_and(|sum| sum > 0 && sum <= it.charge_bytes));
            assert!(it.files.len() <= SEGMENTS_PER_MODEL_MAX);
        }
        Description::Version(it) => {
            assert!((1..=SEGMENTS_PER_MODEL_MAX + 1).contains(&it.parts.len()));
            let path = it.path.as_ref().map_or(0, String::len);
            assert!(path <= PATH_BYTES_MAX);
        }
        Description::Listener(it) => {
            assert!((1..=PATH_BYTES_MAX).contains(&it.path.len()));
        }
        Description::Instance(it) => {
            assert!(it.release.len() <= RELEASE_BYTES_MAX && it.counters.len() <= COUNTERS_MAX);
        }
    }
}

/// The same bytes as the key of an entry.
fn key(input: &[u8]) {
    let Ok(text) = std::str::from_utf8(input) else {
        return;
    };
    let is_good = (1..=KEY_BYTES_MAX).contains(&text.len())
        && text
            .bytes()
            .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'.' || b == b'-');
    match Key::new(text) {
        Ok(key) => assert!(is_good && key.as_str() == text),
        Err(error) => {
            assert!(!is_good);
            let said = error.to_string();
            assert!(!said.chars().any(char::is_control), "{said:?}");
        }
    }
}
