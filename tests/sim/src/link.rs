//! Connections: bytes that arrive in pieces, and what travels with them.

use crate::memory::AllocId;
use mrm_proto::frame::{FrameError, Header};
use mrm_proto::limits::FRAME_HEADER_BYTES;
use std::collections::{BTreeMap, BTreeSet, VecDeque};

/// One connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct LinkId(pub(crate) u64);

/// What is passed beside bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Passed {
    /// A client's open file.
    File(u64),
    /// Memory that is lent.
    Memory(AllocId),
}

/// Who reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Reader {
    Daemon,
    Client,
}

/// One direction of a connection.
#[derive(Debug, Default)]
pub(crate) struct Pipe {
    bytes: VecDeque<u8>,
    /// For each frame that announces descriptors, these.
    cargo: VecDeque<Vec<Passed>>,
    /// Nothing more is written.
    pub(crate) ended: bool,
    /// Nobody reads any more.
    pub(crate) gone: bool,
    /// An arrival is on its way.
    pub(crate) expected: bool,
    /// Leases that were taken away, which the reader is told in these bytes or was.
    pub(crate) taken_away: BTreeSet<u64>,
}

impl Pipe {
    pub(crate) fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Writes; descriptors go with the first byte of their frame.
    pub(crate) fn write(&mut self, bytes: &[u8], cargo: Vec<Passed>) {
        self.bytes.extend(bytes);
        if !cargo.is_empty() {
            self.cargo.push_back(cargo);
        }
    }

    /// Takes so many bytes off.
    pub(crate) fn take(&mut self, bytes: usize, into: &mut FrameBuffer) {
        let bytes = bytes.min(self.bytes.len());
        into.bytes.extend(self.bytes.drain(..bytes));
    }

    /// What came with the frame at hand.
    pub(crate) fn take_cargo(&mut self) -> Vec<Passed> {
        self.cargo.pop_front().unwrap_or_default()
    }

    /// What nobody will read.
    pub(crate) fn discard(&mut self) -> Vec<Passed> {
        self.bytes.clear();
        self.cargo.drain(..).flatten().collect()
    }
}

/// Bytes that arrived and are not a whole frame yet.
#[derive(Debug, Default)]
pub(crate) struct FrameBuffer {
    bytes: Vec<u8>,
}

impl FrameBuffer {
    /// The next frame, if it is whole.
    pub(crate) fn next(&mut self) -> Result<Option<(Header, Vec<u8>)>, FrameError> {
        if self.bytes.len() < FRAME_HEADER_BYTES {
            return Ok(None);
        }
        let header = Header::decode(&self.bytes)?;
        let whole = FRAME_HEADER_BYTES + header.body_bytes as usize;
        if self.bytes.len() < whole {
            return Ok(None);
        }
        let body = self.bytes[FRAME_HEADER_BYTES..whole].to_vec();
        self.bytes.drain(..whole);
        Ok(Some((header, body)))
    }

    pub(crate) const fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }
}

/// Both directions.
#[derive(Debug, Default)]
struct Link {
    to_daemon: Pipe,
    to_client: Pipe,
    client: usize,
}

/// All connections.
#[derive(Debug, Default)]
pub(crate) struct Links {
    made: u64,
    links: BTreeMap<LinkId, Link>,
}

impl Links {
    pub(crate) fn connect(&mut self, client: usize) -> LinkId {
        self.made += 1;
        let id = LinkId(self.made);
        let link = Link {
            client,
            ..Link::default()
        };
        self.links.insert(id, link);
        id
    }

    /// The direction that this side reads.
    pub(crate) fn pipe(&mut self, id: LinkId, reader: Reader) -> Option<&mut Pipe> {
        let link = self.links.get_mut(&id)?;
        Some(match reader {
            Reader::Daemon => &mut link.to_daemon,
            Reader::Client => &mut link.to_client,
        })
    }

    /// Whose connection it is.
    pub(crate) fn client(&self, id: LinkId) -> Option<usize> {
        self.links.get(&id).map(|link| link.client)
    }
}
