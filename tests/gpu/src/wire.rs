//! What controller and agents say to each other: JSON, one message a command, one a reply, each
//! with at most one descriptor.

use crate::Anything;
use crate::stats::{Rounds, Summary};
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;

const MESSAGE_BYTES_MAX: usize = 64 << 10;

/// The two mechanisms, as they travel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum How {
    Vmm,
    Legacy,
}

impl How {
    pub(crate) const BOTH: [Self; 2] = [Self::Vmm, Self::Legacy];

    pub(crate) fn mechanism(self) -> mrm_cuda::Mechanism {
        match self {
            Self::Vmm => mrm_cuda::Mechanism::Vmm,
            Self::Legacy => mrm_cuda::Mechanism::Legacy,
        }
    }

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Vmm => "vmm",
            Self::Legacy => "legacy",
        }
    }
}

/// By what a client writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Poke {
    /// The driver's fill.
    Fill,
    /// A copy from the host.
    Copy,
    /// A kernel of its own.
    Kernel,
}

/// What an agent is to do.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) enum Command {
    /// Retain the context of the first device; the text is its UUID.
    Retain,
    /// `free` and `total`.
    Memory,
    /// Allocate `count` times `bytes`, in addition to what there is; filled where there is a seed.
    Allocate {
        how: How,
        bytes: u64,
        count: usize,
        seed: Option<u64>,
    },
    /// Pass one allocation on: a descriptor, or its handle as text.
    Export { at: usize },
    /// Keep an export for later. The descriptor comes along.
    Take {
        how: How,
        bytes: u64,
        handle: String,
    },
    /// Import what was taken, through the library.
    Open,
    /// Compare what was opened, else what was allocated first, with the seed's bytes.
    Check { seed: u64 },
    /// Import what was taken again and again: by bare calls, and through the library.
    Attach(Rounds),
    /// Write to the first mapping.
    Poke(Poke),
    /// Give the first mapping write access.
    AllowWriting,
    /// Wait for the context, which tells whether it is alive.
    Synchronize,
    /// Give back mappings, allocations and exports.
    Drop,
    /// Become a client of the daemon behind this socket.
    Connect { socket: PathBuf },
    /// Open a model; the text is how the daemon came by the weights.
    OpenModel { name: String, on_device: bool },
    /// Compare the open model on the device with the file.
    CompareModel { file: PathBuf },
    /// Close the model.
    CloseModel,
    /// Write to the open model's first tensor.
    PokeModel(Poke),
    /// Open and close again and again, in turns with bare imports of what was taken.
    OpenRounds { name: String, rounds: Rounds },
    /// Allocate, and copy so many bytes through the ring without filling it.
    Upload { bytes: u64 },
    /// Without a context: create memory and pass it on.
    CreateWithoutContext { bytes: u64 },
}

/// What came of it.
#[derive(Debug, Clone, Serialize, Deserialize, Default)]
pub(crate) struct Reply {
    pub(crate) error: Option<String>,
    #[serde(default)]
    pub(crate) text: String,
    #[serde(default)]
    pub(crate) free_bytes: u64,
    #[serde(default)]
    pub(crate) total_bytes: u64,
    /// How long the open or the upload took.
    #[serde(default)]
    pub(crate) took_us: f64,
    #[serde(default)]
    pub(crate) attached: Option<Attached>,
}

/// The two ways to attach, timed in turns.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub(crate) struct Attached {
    pub(crate) bare: Summary,
    pub(crate) library: Summary,
    /// Closing what the library opened.
    pub(crate) close: Summary,
}

/// Sends one message.
pub(crate) fn send(
    to: BorrowedFd<'_>,
    message: &impl Serialize,
    fd: Option<BorrowedFd<'_>>,
) -> Anything<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let fds: Vec<BorrowedFd<'_>> = fd.into_iter().collect();
    if !fds.is_empty() && !control.push(SendAncillaryMessage::ScmRights(&fds)) {
        return Err("no room for a descriptor".into());
    }
    let bytes = serde_json::to_vec(message)?;
    sendmsg(
        to,
        &[IoSlice::new(&bytes)],
        &mut control,
        SendFlags::NOSIGNAL,
    )?;
    Ok(())
}

/// Receives one message; `None` when the other side is gone.
#[expect(clippy::wildcard_enum_match_arm, reason = "an enum of another crate")]
pub(crate) fn receive<T: DeserializeOwned>(
    from: impl AsFd,
) -> Anything<Option<(T, Option<OwnedFd>)>> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut bytes = vec![0; MESSAGE_BYTES_MAX];
    let got = recvmsg(
        from,
        &mut [IoSliceMut::new(&mut bytes)],
        &mut control,
        RecvFlags::CMSG_CLOEXEC,
    )?;
    let fd = control.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut fds) => fds.next(),
        _ => None,
    });
    if got.bytes == 0 {
        return Ok(None);
    }
    bytes.truncate(got.bytes);
    Ok(Some((serde_json::from_slice(&bytes)?, fd)))
}

/// As text.
pub(crate) fn hex_of(handle: [u8; 64]) -> String {
    handle.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// From text.
pub(crate) fn handle_of(hex: &str) -> Anything<[u8; 64]> {
    let mut handle = [0; 64];
    for (at, byte) in handle.iter_mut().enumerate() {
        let digits = hex.get(2 * at..2 * at + 2).ok_or("a handle is too short")?;
        *byte = u8::from_str_radix(digits, 16)?;
    }
    Ok(handle)
}
