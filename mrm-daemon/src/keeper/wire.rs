//! Messages between a daemon and its keeper, over a `SOCK_SEQPACKET` socket: one packet each, whole
//! or not at all.
//!
//! Protocol 1, numbers little endian. A keeper may be older than the daemon that comes, so this
//! layout does not change; a new one has a new number, which an old keeper refuses.
//!
//! ```text
//!  0  4  magic "MRMK"            16  4  first: index of the first descriptor here
//!  4  1  protocol (1)            20  4  total: descriptors of the whole entry
//!  5  1  verb                    24  .  key, to the end of the packet
//!  6  2  descriptors here
//!  8  8  number of the request, which its answers repeat
//! ```
//!
//! | verb | from | means |
//! |---|---|---|
//! | Hello | daemon | I am the daemon now. Answer: Welcome (`first` entries, `total` descriptors) |
//! | Put | daemon | keep this entry, in packets of at most 250 descriptors. Answer: Done or Refused |
//! | Remove | daemon | let go of this key, if it is there. Answer: Done |
//! | List, TakeAll | daemon | what is there, without or with descriptors. Answer: Items, then End |
//! | Stop | daemon | let go of everything and end. Answer: the end of the connection |
//! | Replaced | keeper | another daemon has said hello; nothing more will be heard |

use super::{BadKey, ENTRY_FDS_MAX, KEY_BYTES_MAX, Key};
use rustix::cmsg_space;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// Most descriptors in one packet; the kernel would take 253.
pub(super) const FDS_PER_PACKET_MAX: usize = 250;
/// What the kernel may deliver with one packet.
const FDS_ROOM: usize = mrm_proto::limits::FDS_PER_FRAME_MAX;

const MAGIC: [u8; 4] = *b"MRMK";
const PROTOCOL: u8 = 1;
const HEADER_BYTES: usize = 24;
const PACKET_BYTES_MAX: usize = HEADER_BYTES + KEY_BYTES_MAX;

/// What a packet is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Verb {
    Hello = 1,
    Put = 2,
    Remove = 3,
    List = 4,
    TakeAll = 5,
    Stop = 6,
    Welcome = 16,
    Done = 17,
    Refused = 18,
    Item = 19,
    End = 20,
    Replaced = 21,
}

/// Why a keeper refused an entry, as the `first` of its answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[repr(u32)]
pub enum RefusedBy {
    /// It may not open more descriptors.
    #[error("it may hold no more descriptors (LimitNOFILE)")]
    Descriptors = 1,
    /// It has as many entries as it may.
    #[error("it holds as many entries as it may")]
    Entries = 2,
    /// Descriptors were lost on the way.
    #[error("descriptors were lost on the way (LimitNOFILE)")]
    Lost = 3,
    /// A reason that this release does not know.
    #[error("its reason is unknown")]
    Unknown = 4,
}

/// One packet, without its descriptors.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Packet {
    pub(super) verb: Verb,
    pub(super) number: u64,
    /// Descriptors in this packet.
    pub(super) fds: u16,
    pub(super) first: u32,
    pub(super) total: u32,
    pub(super) key: Option<Key>,
}

/// What was read.
pub(super) enum Received {
    /// The other side is gone.
    End,
    /// Nothing is there yet.
    Nothing,
    /// A packet with what came with it. `lost` says that the kernel could not deliver all.
    Packet(Packet, Vec<OwnedFd>, bool),
}

/// What cannot be understood. The connection must end.
#[derive(Debug, thiserror::Error)]
pub(super) enum WireError {
    #[error("a packet is too short, too long, or not one of this protocol")]
    NotOurs,
    #[error("protocol {0} is spoken, and this is {PROTOCOL}")]
    Protocol(u8),
    #[error("verb {0} is unknown")]
    Verb(u8),
    #[error(transparent)]
    Key(#[from] BadKey),
    #[error("descriptors do not fit what the packet says")]
    Count,
    #[error(transparent)]
    Io(#[from] io::Error),
}

impl Verb {
    const ALL: [Self; 12] = [
        Self::Hello,
        Self::Put,
        Self::Remove,
        Self::List,
        Self::TakeAll,
        Self::Stop,
        Self::Welcome,
        Self::Done,
        Self::Refused,
        Self::Item,
        Self::End,
        Self::Replaced,
    ];

    const fn has_key(self) -> bool {
        match self {
            Self::Put | Self::Remove | Self::Item => true,
            Self::Hello
            | Self::List
            | Self::TakeAll
            | Self::Stop
            | Self::Welcome
            | Self::Done
            | Self::Refused
            | Self::End
            | Self::Replaced => false,
        }
    }
}

impl RefusedBy {
    pub(super) fn from_wire(reason: u32) -> Self {
        [Self::Descriptors, Self::Entries, Self::Lost]
            .into_iter()
            .find(|known| *known as u32 == reason)
            .unwrap_or(Self::Unknown)
    }
}

impl Packet {
    /// A packet of no more than a verb.
    pub(super) const fn bare(verb: Verb, number: u64) -> Self {
        Self {
            verb,
            number,
            fds: 0,
            first: 0,
            total: 0,
            key: None,
        }
    }

    fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(PACKET_BYTES_MAX);
        bytes.extend(MAGIC);
        bytes.extend([PROTOCOL, self.verb as u8]);
        bytes.extend(self.fds.to_le_bytes());
        bytes.extend(self.number.to_le_bytes());
        bytes.extend(self.first.to_le_bytes());
        bytes.extend(self.total.to_le_bytes());
        bytes.extend(self.key.iter().flat_map(|key| key.as_str().bytes()));
        bytes
    }

    fn decode(bytes: &[u8]) -> Result<Self, WireError> {
        let Some((header, key)) = bytes.split_first_chunk::<HEADER_BYTES>() else {
            return Err(WireError::NotOurs);
        };
        let &[
            m0,
            m1,
            m2,
            m3,
            protocol,
            verb,
            f0,
            f1,
            n0,
            n1,
            n2,
            n3,
            n4,
            n5,
            n6,
            n7,
            i0,
            i1,
            i2,
            i3,
            t0,
            t1,
            t2,
            t3,
        ] = header;
        if [m0, m1, m2, m3] != MAGIC {
            return Err(WireError::NotOurs);
        }
        if protocol != PROTOCOL {
            return Err(WireError::Protocol(protocol));
        }
        let known = Verb::ALL.into_iter().find(|known| *known as u8 == verb);
        let verb = known.ok_or(WireError::Verb(verb))?;
        let key = match verb.has_key() {
            true => Some(Key::new(String::from_utf8_lossy(key))?),
            false if key.is_empty() => None,
            false => return Err(WireError::NotOurs),
        };
        let packet = Self {
            verb,
            number: u64::from_le_bytes([n0, n1, n2, n3, n4, n5, n6, n7]),
            fds: u16::from_le_bytes([f0, f1]),
            first: u32::from_le_bytes([i0, i1, i2, i3]),
            total: u32::from_le_bytes([t0, t1, t2, t3]),
            key,
        };
        packet.check_range()?;
        Ok(packet)
    }

    /// Only what carries an entry has descriptors, and they lie within it.
    fn check_range(&self) -> Result<(), WireError> {
        let (here, first, total) = (
            usize::from(self.fds),
            self.first as usize,
            self.total as usize,
        );
        let fits = match self.verb {
            Verb::Put => {
                (1..=FDS_PER_PACKET_MAX).contains(&here)
                    && total <= ENTRY_FDS_MAX
                    && first.saturating_add(here) <= total
            }
            Verb::Item => {
                here <= FDS_PER_PACKET_MAX
                    && total <= ENTRY_FDS_MAX
                    && first.saturating_add(here) <= total
            }
            Verb::Hello
            | Verb::Remove
            | Verb::List
            | Verb::TakeAll
            | Verb::Stop
            | Verb::Welcome
            | Verb::Done
            | Verb::Refused
            | Verb::End
            | Verb::Replaced => here == 0,
        };
        match fits {
            true => Ok(()),
            false => Err(WireError::Count),
        }
    }
}

/// Sends one packet without waiting.
///
/// # Errors
/// `WouldBlock` when the other side has too many unread; what the kernel says.
pub(super) fn send(socket: impl AsFd, packet: &Packet, fds: &[BorrowedFd<'_>]) -> io::Result<()> {
    let bytes = packet.encode();
    let slices = [IoSlice::new(&bytes)];
    let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(FDS_ROOM))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() && !ancillary.push(SendAncillaryMessage::ScmRights(fds)) {
        return Err(io::Error::other("more descriptors than a packet may carry"));
    }
    let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
    rustix::io::retry_on_intr(|| sendmsg(&socket, &slices, &mut ancillary, flags))?;
    Ok(())
}

/// Reads one packet without waiting.
///
/// # Errors
/// When it is not one of this protocol, or the kernel says so.
pub(super) fn receive(socket: impl AsFd) -> Result<Received, WireError> {
    let mut bytes = [0; PACKET_BYTES_MAX];
    let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(FDS_ROOM))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let flags = RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT;
    let received = rustix::io::retry_on_intr(|| {
        let mut slices = [IoSliceMut::new(&mut bytes)];
        recvmsg(&socket, &mut slices, &mut ancillary, flags)
    });
    let received = match received {
        Ok(received) => received,
        Err(rustix::io::Errno::AGAIN) => return Ok(Received::Nothing),
        Err(rustix::io::Errno::CONNRESET | rustix::io::Errno::PIPE) => return Ok(Received::End),
        Err(error) => return Err(WireError::Io(error.into())),
    };
    let mut fds = Vec::new();
    for message in ancillary.drain() {
        if let RecvAncillaryMessage::ScmRights(passed) = message {
            fds.extend(passed);
        }
    }
    // A packet of no bytes looks the same; nobody of ours sends one.
    if received.bytes == 0 {
        return Ok(Received::End);
    }
    if received.flags.contains(ReturnFlags::TRUNC) {
        return Err(WireError::NotOurs);
    }
    let packet = Packet::decode(&bytes[..received.bytes])?;
    let announced = usize::from(packet.fds);
    let lost = received.flags.contains(ReturnFlags::CTRUNC);
    if fds.len() > announced || (fds.len() < announced && !lost) {
        return Err(WireError::Count);
    }
    Ok(Received::Packet(packet, fds, lost))
}
