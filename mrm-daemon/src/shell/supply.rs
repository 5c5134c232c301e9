//! Making a segment, on a worker's thread.

use super::names::Supply;
use super::work::fault;
use crate::degraded::Degraded;
use crate::device::FeedWriter;
use crate::failpoint::{self, Point};
use crate::memory::stock::Stock;
use crate::memory::{HostSegment, MemoryError};
use crate::transfer::{Loaded, Onlooker, Order, ReadWay, Turn, load, load_from};
use mrm_core::event::Fault;
use mrm_core::id::Bytes;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::time::Instant;

/// What a worker needs to load a segment.
pub(super) struct LoadJob {
    pub(super) supply: Supply,
    pub(super) charge: Bytes,
    pub(super) progress: Arc<AtomicU64>,
    pub(super) feed: Option<FeedWriter>,
    /// Who is told of what is there, for those who are lent it before it is filled.
    pub(super) onlooker: Option<Box<dyn Onlooker + Send>>,
    /// Pieces that are needed before the others.
    pub(super) first: Arc<[u32]>,
    /// It may be lent before it is hashed.
    pub(super) hash_later: bool,
}

/// A segment, sealed.
pub(crate) struct Filled {
    pub(super) segment: Arc<HostSegment>,
    /// `None` if it is to be hashed later.
    pub(super) digest: Option<[u8; 32]>,
    /// What had to be hashed before it is lent was.
    pub(super) compared: bool,
    /// How its file was read; `None` for a tensor table.
    pub(super) way: Option<ReadWay>,
    /// What it took by itself, without its turn in the lane.
    pub(super) took_us: u64,
}

/// Makes a segment, in its turn. Blocks.
pub(super) fn supply_segment(
    job: LoadJob,
    (turn, is_ahead): (&Turn, bool),
    stock: Option<&Stock>,
    degraded: &Degraded,
) -> Result<Filled, Fault> {
    failpoint::pass(Point::BeforeLoad);
    let began = Instant::now();
    let took_us = || u64::try_from(began.elapsed().as_micros()).unwrap_or(u64::MAX);
    let refuse = |e: MemoryError| fault(e.code(), &e);
    match &job.supply {
        Supply::Table(table) => {
            if let Some(stock) = stock {
                stock.make_room();
            }
            let segment = HostSegment::holding(table, degraded).map_err(refuse)?;
            Ok(Filled {
                segment: Arc::new(segment),
                digest: Some(*blake3::hash(table).as_bytes()),
                compared: false,
                way: None,
                took_us: took_us(),
            })
        }
        Supply::File {
            source,
            identity,
            check,
            expected: _,
        } => {
            let order = Order {
                source: source.as_ref(),
                identity: *identity,
                charge_bytes: job.charge.0,
                header: *check,
                progress: &job.progress,
                cancel: &AtomicBool::new(false),
                feed: job.feed.as_ref(),
                onlooker: job
                    .onlooker
                    .as_deref()
                    .map(|onlooker| onlooker as &dyn Onlooker),
                first: &job.first,
                turn: Some(turn),
                is_ahead,
                hash_later: job.hash_later,
            };
            let loaded = match stock {
                Some(stock) => load_from(&order, stock, degraded),
                None => load(&order, degraded),
            };
            let Loaded {
                segment,
                mut digest,
                way,
                ..
            } = loaded.map_err(|e| fault(e.code(), &e))?;
            if let Some(digest) = &mut digest
                && failpoint::damages()
            {
                digest[0] ^= 1;
            }
            Ok(Filled {
                segment: Arc::new(segment),
                digest,
                compared: false,
                way: Some(way),
                took_us: took_us(),
            })
        }
    }
}
