//! Filling the memory of a device with a version, from wherever its bytes are.

use super::error::FillError;
use super::feed::HostFeed;
use super::image::{DeviceImage, charge_for};
use super::plan::{Part, Piece, Plan, gather, pieces};
use super::shared::Shared;
use super::supply::{Files, Segments, Supply};
use crate::format::HeaderCheck;
use crate::source::{Identity, Source};
use crate::transfer::LoadError;
use mrm_cuda::{Allocation, Ending, Ring, Sealed, ShareError, Upload, UploadError};
use mrm_proto::layout::{Granularity, LayoutError};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// From this size on a run of registered bytes is copied by a copy of its own. Smaller ones are
/// gathered: starting a copy costs as much as moving some hundred KiB.
const DIRECT_BYTES_MIN: u64 = 1 << 20;

/// How much is copied at a time between devices: enough to keep the link busy, little enough for
/// progress and a cancel to be seen.
const PEER_BYTES: u64 = 64 << 20;

/// What is to be put on a device, and how that is watched.
#[derive(Debug)]
pub struct FillOrder {
    /// The tensor table.
    pub table: Arc<[u8]>,
    /// How the tensors are divided into allocations.
    pub granularity: Granularity,
    /// What was charged for it; the image takes no more.
    pub charge_bytes: u64,
    /// Where the bytes come from.
    pub feed: Feed,
    /// Whether the bytes come from a client's files, whose owner may make a read slow: such fills
    /// have threads of their own.
    pub foreign: bool,
    /// How many bytes of the image were handed to the device so far.
    pub progress: Arc<AtomicU64>,
    /// Set it to give up.
    pub cancel: Arc<AtomicBool>,
}

/// Where the bytes of a version come from.
#[derive(Debug)]
pub enum Feed {
    /// From segments in host memory, one for each of the table, in its order. They may still be
    /// loading: what is there is copied while the rest is read.
    Host(Vec<Arc<HostFeed>>),
    /// From files, one for each segment of the table, in its order: nothing stays in host memory.
    Files(Vec<FileFeed>),
    /// From the same version on another device.
    Peer(Arc<DeviceImage>),
}

/// A file that a device is filled from, by the rules of [`load`](crate::transfer::load): it must be
/// what it was, before and after.
#[derive(Clone)]
pub struct FileFeed {
    /// Where the bytes come from.
    pub source: Arc<dyn Source>,
    /// What it was when it was resolved.
    pub identity: Identity,
    /// What its first bytes were when they were parsed.
    pub check: Option<HeaderCheck>,
}

/// As [`Device::fill`](super::Device::fill).
pub(super) fn fill(device: &Shared, order: &FillOrder) -> Result<DeviceImage, FillError> {
    // What could not be given back before may be what would be missing now.
    mrm_cuda::release_deferred();
    order.progress.store(0, Ordering::Relaxed);
    let plan = Plan::new(&order.table, order.granularity)?;
    let allocations = allocate(device, &plan, order.charge_bytes)?;
    let mut ring = device.take_ring()?;
    let filled = match &order.feed {
        Feed::Host(feeds) => {
            let mut supply = Segments {
                feeds,
                registered: feeds.iter().map(|feed| device.registered(feed)).collect(),
                cancel: &order.cancel,
            };
            gathered(device, order, &plan, allocations, &mut ring, &mut supply)
        }
        Feed::Files(files) => Files::new(files, &order.cancel).and_then(|mut supply| {
            gathered(device, order, &plan, allocations, &mut ring, &mut supply)
        }),
        Feed::Peer(image) => copied(device, order, image, allocations, &mut ring),
    };
    // What the driver refused on this ring's stream it may refuse again.
    if !matches!(&filled, Err(error) if is_drivers(error)) {
        device.put_ring(ring);
    }
    let (sealed, digest) = filled?;
    Ok(DeviceImage::new(
        (device.uuid(), device.mechanism()),
        order.granularity,
        sealed,
        digest,
    ))
}

type Filled = (Vec<Arc<Sealed>>, [u8; 32]);

/// All of them, before anything is read: a device without room is to be known at once.
fn allocate(device: &Shared, plan: &Plan, charge_bytes: u64) -> Result<Vec<Allocation>, FillError> {
    let (needed_bytes, _) = charge_for(&plan.layout, device.granularity_bytes());
    if needed_bytes > charge_bytes {
        return Err(FillError::TooLarge {
            device: device.uuid(),
            needed_bytes,
            charge_bytes,
        });
    }
    let sizes = plan.layout.allocations_bytes().iter();
    let made: Result<_, ShareError> = sizes.map(|bytes| device.allocate(*bytes)).collect();
    made.map_err(|mut source| {
        if let ShareError::OutOfMemory { free_bytes, .. } = &mut source {
            // Those made before it are free by now.
            *free_bytes = device
                .context()
                .memory()
                .ok()
                .map(|memory| memory.free_bytes);
        }
        FillError::share(device.uuid(), source)
    })
}

/// Fills from segments or files.
fn gathered(
    device: &Shared,
    order: &FillOrder,
    plan: &Plan,
    allocations: Vec<Allocation>,
    ring: &mut Ring,
    supply: &mut dyn Supply,
) -> Result<Filled, FillError> {
    let mut endings = Vec::with_capacity(allocations.len());
    for (allocation, parts) in allocations.into_iter().zip(&plan.allocations) {
        let copy = Copying::new(device, order, ring, allocation)?;
        endings.push(copy.gather(parts, supply)?);
    }
    let digests = supply.verify()?;
    let sealed = seal(device, endings)?;
    Ok((sealed, digest_of(order.granularity, &digests)))
}

/// Fills from another device.
fn copied(
    device: &Shared,
    order: &FillOrder,
    image: &DeviceImage,
    allocations: Vec<Allocation>,
    ring: &mut Ring,
) -> Result<Filled, FillError> {
    let peer = image.uuid();
    let same =
        image.granularity() == order.granularity && image.allocations().len() == allocations.len();
    if !same {
        return Err(FillError::PeerDiffers { peer });
    }
    let copies = allocations.into_iter().zip(image.allocations());
    let endings: Result<Vec<_>, _> = copies
        .map(|(allocation, from)| Copying::new(device, order, ring, allocation)?.across(from))
        .collect();
    match endings.and_then(|endings| seal(device, endings)) {
        Ok(sealed) => Ok((sealed, *image.digest())),
        // A copy between two devices does not say which of them failed.
        Err(FillError::Lost { source, .. }) if device.health().is_ok() => {
            Err(FillError::Peer { peer, source })
        }
        Err(error) => Err(error),
    }
}

/// Waits for what was started, once everything was: between one allocation and the next the device
/// does not pause.
fn seal(device: &Shared, endings: Vec<Ending>) -> Result<Vec<Arc<Sealed>>, FillError> {
    let sealed = endings
        .into_iter()
        .map(|ending| ending.seal().map(Arc::new));
    sealed
        .collect::<Result<_, _>>()
        .map_err(|source| FillError::share(device.uuid(), source))
}

/// One allocation that is being filled.
struct Copying<'a> {
    device: &'a Shared,
    order: &'a FillOrder,
    upload: Upload<'a>,
}

impl<'a> Copying<'a> {
    fn new(
        device: &'a Shared,
        order: &'a FillOrder,
        ring: &'a mut Ring,
        into: Allocation,
    ) -> Result<Self, FillError> {
        let upload = Upload::new(ring, into);
        let upload = upload.map_err(|source| FillError::share(device.uuid(), source))?;
        Ok(Self {
            device,
            order,
            upload,
        })
    }

    fn gather(mut self, parts: &[Part], supply: &mut dyn Supply) -> Result<Ending, FillError> {
        let bytes = self.upload_bytes(parts);
        let direct = |part: &Part| {
            part.bytes >= DIRECT_BYTES_MIN && supply.registered(part.segment).is_some()
        };
        for piece in pieces(parts, bytes, self.upload.slot_bytes(), direct) {
            self.check_cancelled()?;
            match piece {
                Piece::Gather { at, bytes } => {
                    let staged = self.upload.stage(at, bytes, |slot| {
                        gather(parts, at, slot, |segment, from, into| {
                            supply.read(segment, from, into)
                        })
                    });
                    staged.map_err(|error| self.stage_failed(error))?;
                    self.advance(bytes);
                }
                Piece::Direct(part) => {
                    let registered = supply.registered(part.segment);
                    let registered = registered.ok_or(LayoutError::Damaged)?;
                    let range = part.from..part.from + part.bytes;
                    self.upload
                        .from_registered(part.at, registered, range)
                        .map_err(|source| self.share_failed(source))?;
                    self.advance(part.bytes);
                }
            }
        }
        self.end()
    }

    fn across(mut self, from: &Arc<Sealed>) -> Result<Ending, FillError> {
        let mut at = 0;
        while at < from.bytes() {
            self.check_cancelled()?;
            let end = at.saturating_add(PEER_BYTES).min(from.bytes());
            self.upload
                .from_peer(at, from, at..end)
                .map_err(|source| self.share_failed(source))?;
            self.advance(end - at);
            at = end;
        }
        self.end()
    }

    fn end(self) -> Result<Ending, FillError> {
        let device = self.device.uuid();
        let ending = self.upload.end();
        ending.map_err(|source| FillError::share(device, source))
    }

    /// The size of the allocation: up to the end of its last tensor.
    fn upload_bytes(&self, parts: &[Part]) -> u64 {
        parts.last().map_or(0, |last| last.at + last.bytes)
    }

    fn advance(&self, bytes: u64) {
        self.order.progress.fetch_add(bytes, Ordering::Relaxed);
    }

    fn check_cancelled(&self) -> Result<(), FillError> {
        if !self.order.cancel.load(Ordering::Relaxed) {
            return Ok(());
        }
        let name = format!("a model for device {}", self.device.uuid());
        Err(LoadError::Cancelled { name }.into())
    }

    fn share_failed(&self, source: ShareError) -> FillError {
        FillError::share(self.device.uuid(), source)
    }

    fn stage_failed(&self, error: UploadError<FillError>) -> FillError {
        match error {
            UploadError::Share(source) => self.share_failed(source),
            UploadError::Fill(error) => error,
            UploadError::TooLong { .. } => LayoutError::Damaged.into(),
        }
    }
}

pub(super) fn digest_of(granularity: Granularity, segments: &[[u8; 32]]) -> [u8; 32] {
    let (kind, block_bytes) = match granularity {
        Granularity::Model => (0_u8, 0_u64),
        Granularity::Block { block_bytes } => (1, block_bytes),
        Granularity::Tensor => (2, 0),
    };
    let mut hasher = blake3::Hasher::new();
    hasher.update(b"mrm device image 1");
    hasher.update(&[kind]);
    hasher.update(&block_bytes.to_le_bytes());
    for digest in segments {
        hasher.update(digest);
    }
    *hasher.finalize().as_bytes()
}

fn is_drivers(error: &FillError) -> bool {
    match error {
        FillError::Lost { .. } | FillError::Peer { .. } | FillError::Driver { .. } => true,
        FillError::OutOfMemory { .. }
        | FillError::PeerDiffers { .. }
        | FillError::Descriptors(_)
        | FillError::Feed(_)
        | FillError::Source(_)
        | FillError::TooLarge { .. }
        | FillError::Layout(_) => false,
    }
}

impl std::fmt::Debug for FileFeed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("FileFeed")
            .field("source", &self.source.label())
            .field("identity", &self.identity)
            .finish_non_exhaustive()
    }
}
