//! The records of a journal, and the frame that each is in.
//!
//! A frame is the length of the record (LEB128), the record, and four bytes of checksum over it
//! and the place that it has in its chunk: a record that is damaged, missing or moved is noticed.

use super::codec::{
    Out, Read, Written, get_event, get_option, put_event, put_option, tier_number, tier_of, unknown,
};
use minicbor::Decoder;
use mrm_core::effect::{Effect, Origin, Reply};
use mrm_core::event::Event;
use mrm_core::id::{Bytes, ModelId, OpId, RequestId, SessionId, SourceId, Time, VersionId};
use mrm_core::ledger::Tier;

/// Longest record that is believed: far above a resolution of the largest model.
pub(super) const RECORD_BYTES_MAX: usize = 4 << 20;
const CHECKSUM_BYTES: usize = 4;

/// One entry of a journal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Record {
    /// A chunk begins. Frames are counted, and times are told, from here.
    Chunk {
        /// Number of the next event since the start of the daemon; 0 is the first.
        index: u64,
        /// The time so far.
        now: Time,
    },
    /// The decider was told this.
    Event {
        /// When.
        now: Time,
        /// What.
        event: Event,
    },
    /// What follows is what the decider made of the event before: an open was granted.
    Opened {
        /// Whose.
        session: SessionId,
        /// Which.
        request: RequestId,
        /// What it took.
        origin: Origin,
        /// Where it is.
        tier: Tier,
        /// The version.
        version: VersionId,
    },
    /// A load was started.
    LoadStarted {
        /// Settles in `Loaded` with the same.
        op: OpId,
        /// For this version.
        version: VersionId,
        /// What is read.
        source: SourceId,
        /// Where to.
        tier: Tier,
        /// What it is charged.
        charge: Bytes,
    },
    /// A version: after its resolution, and again at the beginning of a chunk.
    Known {
        /// The version.
        version: VersionId,
        /// A model that stood for it.
        model: Option<ModelId>,
        /// The model's name, as far as known; for passed files, what the client called them.
        name: Option<String>,
        /// What its copy in host memory is charged.
        host: Bytes,
        /// What a copy on a device is charged; nothing if it cannot be on one.
        device: Bytes,
    },
    /// The last event broke this rule.
    Violated {
        /// In words.
        violation: String,
    },
    /// The writer had no more. Without it the file was cut off.
    End {
        /// Number that the next event would have had.
        index: u64,
    },
}

/// What is noted of an effect, if anything.
pub(super) fn noted(effect: &Effect) -> Option<Record> {
    match effect {
        Effect::Reply {
            session,
            request,
            reply,
        } => {
            let Reply::Opened {
                version,
                tier,
                origin,
                ..
            } = reply
            else {
                return None;
            };
            Some(Record::Opened {
                session: *session,
                request: *request,
                origin: *origin,
                tier: *tier,
                version: *version,
            })
        }
        Effect::Load {
            op,
            source,
            version,
            charge,
            tier,
            ..
        } => Some(Record::LoadStarted {
            op: *op,
            version: *version,
            source: *source,
            tier: *tier,
            charge: *charge,
        }),
        Effect::Resolve { .. }
        | Effect::Adopted { .. }
        | Effect::Free { .. }
        | Effect::Revoke { .. }
        | Effect::Forget { .. } => None,
    }
}

pub(super) fn put_record(out: &mut Out<'_>, record: &Record, last: Time) -> Written {
    match record {
        Record::Chunk { index, now } => {
            out.u8(0)?.u64(*index)?.u64(now.0)?;
        }
        Record::Event { now, event } => put_event_record(out, now.us_since(last), event)?,
        Record::Opened {
            session,
            request,
            origin,
            tier,
            version,
        } => {
            out.u8(2)?.u64(session.0)?.u64(request.0)?;
            out.u8(match origin {
                Origin::Hit => 0,
                Origin::Loaded => 1,
                Origin::Joined => 2,
                Origin::Promoted => 3,
            })?;
            out.u64(tier_number(*tier))?.u64(version.0)?;
        }
        Record::LoadStarted {
            op,
            version,
            source,
            tier,
            charge,
        } => {
            out.u8(3)?.u64(op.0)?.u64(version.0)?.u64(source.0)?;
            out.u64(tier_number(*tier))?.u64(charge.0)?;
        }
        Record::Known {
            version,
            model,
            name,
            host,
            device,
        } => {
            out.u8(4)?.u64(version.0)?.u64(host.0)?.u64(device.0)?;
            put_option(out, model.map(|model| model.0))?;
            out.str(name.as_deref().unwrap_or_default())?;
        }
        Record::Violated { violation } => {
            out.u8(5)?.str(violation)?;
        }
        Record::End { index } => {
            out.u8(6)?.u64(*index)?;
        }
    }
    Ok(())
}

/// Without the copy of the event that a [`Record`] would take.
pub(super) fn put_event_record(out: &mut Out<'_>, after_us: u64, event: &Event) -> Written {
    out.u8(1)?.u64(after_us)?;
    put_event(out, event)
}

pub(super) fn get_record(bytes: &[u8], last: Time) -> Read<Record> {
    let from = &mut Decoder::new(bytes);
    let record = match from.u8()? {
        0 => Record::Chunk {
            index: from.u64()?,
            now: Time(from.u64()?),
        },
        1 => Record::Event {
            now: Time(last.0.saturating_add(from.u64()?)),
            event: get_event(from)?,
        },
        2 => Record::Opened {
            session: SessionId(from.u64()?),
            request: RequestId(from.u64()?),
            origin: match from.u8()? {
                0 => Origin::Hit,
                1 => Origin::Loaded,
                2 => Origin::Joined,
                3 => Origin::Promoted,
                origin => return Err(unknown("origin", origin.into())),
            },
            tier: tier_of(from.u64()?)?,
            version: VersionId(from.u64()?),
        },
        3 => Record::LoadStarted {
            op: OpId(from.u64()?),
            version: VersionId(from.u64()?),
            source: SourceId(from.u64()?),
            tier: tier_of(from.u64()?)?,
            charge: Bytes(from.u64()?),
        },
        4 => Record::Known {
            version: VersionId(from.u64()?),
            host: Bytes(from.u64()?),
            device: Bytes(from.u64()?),
            model: get_option(from)?.map(ModelId),
            name: Some(from.str()?.to_owned()).filter(|name| !name.is_empty()),
        },
        5 => Record::Violated {
            violation: from.str()?.to_owned(),
        },
        6 => Record::End { index: from.u64()? },
        kind => return Err(unknown("record", kind.into())),
    };
    if from.position() != bytes.len() {
        return Err(minicbor::decode::Error::message("bytes are left over"));
    }
    Ok(record)
}

/// Appends a frame around what `write` appends.
pub(super) fn put_frame(
    chunk: &mut Vec<u8>,
    place: u32,
    write: impl FnOnce(&mut Out<'_>) -> Written,
) -> Written {
    let begin = chunk.len();
    // One byte of length does for nearly all; where it does not, what was written moves up.
    chunk.push(0);
    write(&mut minicbor::Encoder::new(&mut *chunk))?;
    let bytes = chunk.len() - begin - 1;
    let sum = checksum(place, &chunk[begin + 1..]);
    if bytes < 0x80 {
        chunk[begin] = bytes as u8;
    } else {
        let length = leb128(bytes);
        drop(chunk.splice(begin..=begin, length));
    }
    chunk.extend_from_slice(&sum.to_le_bytes());
    Ok(())
}

fn leb128(mut number: usize) -> Vec<u8> {
    let mut bytes = Vec::new();
    while number >= 0x80 {
        bytes.push((number & 0x7f) as u8 | 0x80);
        number >>= 7;
    }
    bytes.push(number as u8);
    bytes
}

/// What stands at the front of some bytes.
pub(super) enum Frame<'a> {
    /// A frame, and how long it is in all.
    Whole(&'a [u8], usize),
    /// The bytes end before the frame does.
    CutOff,
    /// It is no frame.
    Damaged(&'static str),
}

pub(super) fn get_frame(bytes: &[u8], place: u32) -> Frame<'_> {
    let mut length = 0_usize;
    for (at, byte) in bytes.iter().take(4).enumerate() {
        length |= usize::from(byte & 0x7f) << (7 * at);
        if byte & 0x80 == 0 {
            return body(bytes, at + 1, length, place);
        }
    }
    if bytes.len() < 4 {
        Frame::CutOff
    } else {
        Frame::Damaged("a length that is too long")
    }
}

fn body(bytes: &[u8], begin: usize, length: usize, place: u32) -> Frame<'_> {
    if length == 0 || length > RECORD_BYTES_MAX {
        return Frame::Damaged("an impossible length");
    }
    let end = begin + length;
    let Some(sum) = bytes.get(end..end + CHECKSUM_BYTES) else {
        return Frame::CutOff;
    };
    let record = &bytes[begin..end];
    if sum != checksum(place, record).to_le_bytes() {
        return Frame::Damaged("a wrong checksum");
    }
    Frame::Whole(record, end + CHECKSUM_BYTES)
}

/// FNV-1a (Fowler, Noll, Vo) of 32 bits, begun with the place: it guards against accidents.
fn checksum(place: u32, bytes: &[u8]) -> u32 {
    let step = |sum: u32, byte: u8| (sum ^ u32::from(byte)).wrapping_mul(0x0100_0193);
    let seed = place.to_le_bytes().into_iter().fold(0x811c_9dc5, step);
    bytes.iter().copied().fold(seed, step)
}
