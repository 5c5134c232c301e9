//! A journal as a file: how it begins, and how it is read.
//!
//! ```text
//! "MRMJRNL\n"  format (u32)  length of the header (u32)  its BLAKE3 (32 bytes)  header (CBOR)
//! chunk: frame, frame, ...            the first is `Chunk`, which starts the count anew
//! ...
//! frame of `End`
//! ```
//!
//! Numbers are little-endian. See [`Record`] for what the frames hold.
//!
//! ```
//! use mrm_daemon::journal::file::{Damage, Reader};
//! let refused = Reader::new(b"something else").map(drop);
//! assert_eq!(refused, Err(Damage { offset: 0, event: None, what: "it is no journal".into() }));
//! ```

use super::header::Header;
pub use super::record::Record;
use super::record::{Frame, get_frame, get_record};
use mrm_core::id::Time;

/// Version of the format. A journal of another is refused.
pub const FORMAT: u32 = 3;
const MAGIC: [u8; 8] = *b"MRMJRNL\n";
const PREFIX_BYTES: usize = 48;
const HEADER_BYTES_MAX: usize = 1 << 20;

/// Where a file is not a journal, and why.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("at byte {offset}{}: {what}", place(.event))]
pub struct Damage {
    /// How many bytes are before it.
    pub offset: usize,
    /// Number of the next event; `None` before the first.
    pub event: Option<u64>,
    /// What is wrong.
    pub what: String,
}

fn place(event: &Option<u64>) -> String {
    event.map_or_else(String::new, |event| format!(", at event {event}"))
}

/// Reads the records of a journal from its bytes, which may be anybody's.
#[derive(Debug, Clone)]
pub struct Reader<'a> {
    bytes: &'a [u8],
    header: Header,
    offset: usize,
    /// Frames of this chunk so far.
    place: u32,
    now: Time,
    /// Number of the next event.
    index: Option<u64>,
    ended: bool,
    cut_off: bool,
}

/// The bytes before the first chunk.
pub(super) fn beginning(header: &Header) -> Result<Vec<u8>, String> {
    let body = minicbor::to_vec(header).map_err(|error| error.to_string())?;
    let length = u32::try_from(body.len()).map_err(|error| error.to_string())?;
    let mut bytes = Vec::with_capacity(PREFIX_BYTES + body.len());
    bytes.extend_from_slice(&MAGIC);
    bytes.extend_from_slice(&FORMAT.to_le_bytes());
    bytes.extend_from_slice(&length.to_le_bytes());
    bytes.extend_from_slice(blake3::hash(&body).as_bytes());
    bytes.extend_from_slice(&body);
    Ok(bytes)
}

impl<'a> Reader<'a> {
    /// Reads the beginning.
    ///
    /// # Errors
    /// When it is not that of a journal of this [`FORMAT`].
    pub fn new(bytes: &'a [u8]) -> Result<Self, Damage> {
        let damage = |offset, what: &str| Damage {
            offset,
            event: None,
            what: what.to_owned(),
        };
        if bytes.get(..8) != Some(&MAGIC) {
            return Err(damage(0, "it is no journal"));
        }
        let word = |at: usize| {
            let word = bytes.get(at..at + 4)?.try_into().ok()?;
            Some(u32::from_le_bytes(word))
        };
        let cut = || damage(bytes.len(), "it ends within its header");
        let format = word(8).ok_or_else(cut)?;
        if format != FORMAT {
            let what = format!("it has format {format}, and this release reads {FORMAT}");
            return Err(damage(8, &what));
        }
        let length = word(12).ok_or_else(cut)? as usize;
        if length > HEADER_BYTES_MAX {
            return Err(damage(12, "its header is too long"));
        }
        let end = PREFIX_BYTES + length;
        let body = bytes.get(PREFIX_BYTES..end).ok_or_else(cut)?;
        if bytes[16..PREFIX_BYTES] != blake3::hash(body).as_bytes()[..] {
            return Err(damage(16, "the checksum of its header is wrong"));
        }
        let header = minicbor::decode(body)
            .map_err(|error| damage(PREFIX_BYTES, &format!("its header: {error}")))?;
        Ok(Self {
            bytes,
            header,
            offset: end,
            place: 0,
            now: Time(0),
            index: None,
            ended: false,
            cut_off: false,
        })
    }

    /// What the journal says of itself.
    #[must_use]
    pub const fn header(&self) -> &Header {
        &self.header
    }

    /// How many bytes are read.
    #[must_use]
    pub const fn offset(&self) -> usize {
        self.offset
    }

    /// Number of the next event; `None` before the first chunk.
    #[must_use]
    pub const fn index(&self) -> Option<u64> {
        self.index
    }

    /// Whether the file ends before the writer did, as known at its end. What was read is right.
    #[must_use]
    pub const fn is_cut_off(&self) -> bool {
        self.cut_off
    }

    /// The next record, `None` at the end.
    ///
    /// # Errors
    /// Where a record is not one. There is nothing to be had after it.
    pub fn next_record(&mut self) -> Result<Option<Record>, Damage> {
        let rest = &self.bytes[self.offset..];
        if self.ended {
            return match rest {
                [] => Ok(None),
                [..] => Err(self.damage("there is more after its end")),
            };
        }
        // A chunk counts its own frames, so its first one is frame 0 whatever came before.
        let mut frame = get_frame(rest, self.place);
        let first = get_frame(rest, 0);
        if matches!((&frame, &first), (Frame::Damaged(_), Frame::Whole(..))) {
            (self.place, frame) = (0, first);
        }
        match frame {
            Frame::Whole(body, length) => {
                let decoded = get_record(body, self.now);
                let record = decoded.map_err(|error| self.damage(&error.to_string()))?;
                self.advance(&record)?;
                self.offset += length;
                Ok(Some(record))
            }
            Frame::CutOff => {
                (self.ended, self.cut_off) = (true, true);
                self.offset = self.bytes.len();
                Ok(None)
            }
            Frame::Damaged(what) => Err(self.damage(what)),
        }
    }

    fn advance(&mut self, record: &Record) -> Result<(), Damage> {
        let first_of_chunk = self.place == 0;
        let begins = matches!(record, Record::Chunk { .. });
        if first_of_chunk != begins {
            return Err(self.damage("a chunk begins where none belongs, or does not begin"));
        }
        self.place = self.place.wrapping_add(1);
        let follows = |index: u64| self.index.is_none_or(|expected| expected == index);
        match record {
            Record::Chunk { index, .. } | Record::End { index } if !follows(*index) => {
                return Err(self.damage("events before this are missing"));
            }
            Record::Chunk { index, now } => (self.index, self.now) = (Some(*index), *now),
            Record::End { .. } => self.ended = true,
            Record::Event { now, .. } => {
                self.now = *now;
                self.index = self.index.and_then(|index| index.checked_add(1));
            }
            Record::Opened { .. }
            | Record::LoadStarted { .. }
            | Record::Known { .. }
            | Record::Violated { .. } => {}
        }
        Ok(())
    }

    fn damage(&self, what: &str) -> Damage {
        Damage {
            offset: self.offset,
            event: self.index,
            what: what.to_owned(),
        }
    }
}
