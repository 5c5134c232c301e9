//! What the shell knows of segments, sessions and opens.

use super::loading::Underlying;
use super::marks;
use super::operator::Waiting;
use crate::device::HostFeed;
use crate::integrity::Listed;
use crate::memory::HostSegment;
use crate::peer::Peer;
use crate::session::SessionIo;
use crate::transfer::ReadWay;
use mrm_core::id::RequestId;
use std::collections::HashMap;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Instant;

/// A segment in host memory.
pub(super) struct Held {
    pub(super) segment: Arc<HostSegment>,
    /// For devices to be filled from; absent if there are none, and for a tensor table.
    pub(super) feed: Option<Arc<HostFeed>>,
    pub(super) load_us: u64,
    /// The model that it was loaded for; `None` for a tensor table, which is not worth a mention.
    pub(super) label: Option<Arc<str>>,
    /// How its file was read; `None` for a tensor table, and for what was taken over.
    pub(super) way: Option<ReadWay>,
}

/// A segment on its way into host memory.
pub(super) struct LoadRecord {
    /// What is there of it, for those who are lent it before it is filled.
    pub(super) marks: Option<Arc<marks::Marks>>,
    pub(super) feed: Option<Arc<HostFeed>>,
    pub(super) loaded_bytes: Arc<AtomicU64>,
    pub(super) bytes: u64,
    pub(super) began: Instant,
    /// `None` for a tensor table, which is not worth a mention.
    pub(super) label: Option<Arc<str>>,
    pub(super) place: Underlying,
    /// What it should be, if a list says.
    pub(super) listed: Option<Listed>,
}

/// One session, as the shell knows it.
pub(super) struct Session {
    pub(super) who: Who,
    pub(super) pending: HashMap<RequestId, Pending>,
}

impl Session {
    /// Whether the client and this daemon both know `feature`.
    pub(super) fn agreed(&self, feature: u64) -> bool {
        matches!(&self.who, Who::Client { features, .. } if features & feature != 0)
    }
}

/// Who is answered.
pub(super) enum Who {
    /// A client.
    Client {
        io: Rc<SessionIo>,
        peer: Peer,
        name: Arc<str>,
        since: Instant,
        said_hello: bool,
        /// The features that both know.
        features: u64,
    },
    /// The status socket: one session for each verb that waits.
    Operator(Option<Waiting>),
}

/// An open that awaits its answer.
pub(super) struct Pending {
    pub(super) model: mrm_core::id::ModelId,
    pub(super) label: Arc<str>,
    pub(super) began: Instant,
    pub(super) progress: bool,
    /// The model is a set of passed files: its id is not needed after the answer.
    pub(super) passed: bool,
    /// The version whose tensor table the client has.
    pub(super) known: Option<mrm_core::id::VersionId>,
}
