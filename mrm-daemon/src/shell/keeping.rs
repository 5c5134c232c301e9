//! What outlives the daemon: what the keeper is told.

mod takeover;

use super::names::ContentKey;
use super::work::Completed;
use super::{Held, Shell, State};
use crate::device::{DeviceImage, Exported};
use crate::failpoint::{self, Point};
use crate::keeper::describe::{
    Description, IMAGE_OTHERS_MAX, Image, ImageMechanism, ImageOf, SOURCES_PER_SEGMENT_MAX,
    Segment, SegmentKind, SourceRef,
};
use crate::keeper::{Adopted, Done, Entry, KeepError, Keeper, Key, SharedFd};
use crate::memory::HostSegment;
use mrm_core::event::ResumedLease;
use mrm_core::id::{OpId, SegmentId, SourceId, VersionId};
use mrm_core::ledger::Tier;
use mrm_core::view::Presence;
use mrm_cuda::Mechanism;
use mrm_proto::ids::{Digest, InstanceId};
use mrm_proto::request::Resume;
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

/// What the keeper has.
pub(super) struct Keeping {
    keeper: Keeper,
    /// The beginning of this run's keys.
    run: String,
    segments: HashMap<SegmentId, Key>,
    versions: HashMap<VersionId, Key>,
    /// The lengths of segments that are not hashed yet.
    unhashed: HashMap<SegmentId, u64>,
    /// What the last daemon left, until the decider has given it a number.
    left: HashMap<(SourceId, Tier), Left>,
    /// How many times it was logged that leases were not taken up again.
    lost_noted: u32,
}

/// How many times that is logged.
const LOST_NOTED_MAX: u32 = 256;

/// Memory that the last daemon left.
struct Left {
    key: Key,
    /// `None` if it was not hashed yet.
    content: Option<ContentKey>,
    memory: LeftMemory,
}

enum LeftMemory {
    Host(Segment, Arc<HostSegment>),
    Image(Image, Arc<DeviceImage>),
}

impl Keeping {
    pub(super) fn new(keeper: Keeper, instance: InstanceId) -> Self {
        Self {
            keeper,
            run: format!("{:016x}", instance.0),
            segments: HashMap::new(),
            versions: HashMap::new(),
            unhashed: HashMap::new(),
            left: HashMap::new(),
            lost_noted: 0,
        }
    }

    fn key(&self, kind: &str, id: u64) -> Option<Key> {
        Key::new(format!("{kind}-{}-{id}", self.run)).ok()
    }

    /// The segments of so many bytes that are not hashed yet.
    pub(super) fn unhashed_of(&self, bytes: u64) -> impl Iterator<Item = SegmentId> {
        let unhashed = self.unhashed.iter();
        unhashed.filter_map(move |(id, there)| (*there == bytes).then_some(*id))
    }

    fn put(&self, key: &Key, description: Description, fds: Vec<SharedFd>, done: Option<Done>) {
        match Entry::new(key.clone(), description, fds) {
            Ok(entry) => self.keeper.put(entry, done),
            Err(error) => {
                tracing::error!(%error, "not kept");
                if let Some(done) = done {
                    done(Err(KeepError::Description(error.to_string())));
                }
            }
        }
    }

    fn hold(&self, key: &Key, description: Description, fds: Vec<SharedFd>) {
        match Entry::new(key.clone(), description, fds) {
            Ok(entry) => self.keeper.hold(entry),
            Err(error) => tracing::error!(%error, "not kept"),
        }
    }
}

impl Shell {
    /// Takes over what the last daemon left. Before any client is served; returns when the keeper
    /// knows of this run, or cannot be told: leases of a run that the next one does not know of
    /// could not be taken up again.
    pub(crate) async fn take_over(&self, entries: Vec<Adopted>, grace_ms: u64) {
        let known = self.with(|state| state.take_over(entries, grace_ms));
        // An error is a keeper that is reported as degraded.
        let _ = known.await;
    }

    /// Everything that is kept is left to the next daemon. From then on this one decides nothing.
    pub(crate) fn leave_keeping(&self) {
        self.with(|state| {
            state.keeping.keeper.leave();
            state.left = true;
        });
    }

    /// What is kept is let go of: the daemon ends for good.
    pub(crate) fn stop_keeping(&self) {
        self.with(|state| state.keeping.keeper.stop());
    }
}

impl State {
    /// Tells the keeper of what was loaded or filled. The decider hears of it when the keeper has it:
    /// what is lent before would be lost to the next daemon, and its memory in no books. A keeper that
    /// cannot have it is reported as degraded, and is no reason not to serve.
    pub(super) fn keep_loaded(&mut self, op: OpId, segment: SegmentId) {
        let done = self.completed.clone();
        let kept: Done = Box::new(move |_| drop(done.send(Completed::Kept { op, segment })));
        let kind = match self.images.contains_key(&segment) {
            true => "i",
            false => "s",
        };
        let key = self.keeping.key(kind, segment.0);
        let Some((key, (description, fds))) = key.zip(self.described(segment)) else {
            return kept(Ok(()));
        };
        if let Description::Segment(Segment {
            digest: None,
            bytes,
            ..
        }) = &description
        {
            self.keeping.unhashed.insert(segment, *bytes);
        }
        self.keeping.put(&key, description, fds, Some(kept));
        self.keeping.segments.insert(segment, key);
    }

    /// Tells the keeper the digest of a segment that it was told of without one.
    pub(super) fn keep_digest(&mut self, segment: SegmentId) {
        // What is to be freed, or is damaged, the keeper is not to have any more.
        if self.keeping.unhashed.remove(&segment).is_some() {
            self.keep_again(segment);
        }
    }

    /// Tells the keeper what a segment stands for, if it has the content of one that goes: files of one
    /// content were one in memory, and leases on either are on this one.
    fn keep_merged(&mut self, gone: SegmentId, tier: Tier) {
        let content = self.names.content_in(gone);
        let other = content.and_then(|content| self.core.view().holding(tier, content));
        if let Some(other) = other.filter(|other| *other != gone) {
            self.keep_again(other);
        }
    }

    /// Tells the keeper what a segment that it has is by now.
    fn keep_again(&mut self, segment: SegmentId) {
        let key = self.keeping.segments.get(&segment);
        if let Some((key, (description, fds))) = key.zip(self.described(segment)) {
            self.keeping.put(key, description, fds, None);
        }
    }

    /// What is kept of a segment, if anything can be: it, and all that it stands for. Of very much the
    /// rest is read again.
    fn described(&self, segment: SegmentId) -> Option<(Description, Vec<SharedFd>)> {
        let sources = self.core.view().segment(segment)?.sources;
        match (self.segments.get(&segment), self.images.get(&segment)) {
            (Some(held), _) => {
                let sources = sources.iter();
                let sources = sources.filter_map(|source| self.names.source_ref(*source));
                let sources: Vec<SourceRef> = sources.take(SOURCES_PER_SEGMENT_MAX).collect();
                let described = describe(held, self.names.digest_of(segment), sources)?;
                let memory: SharedFd = Arc::clone(&held.segment) as _;
                Some((Description::Segment(described), vec![memory]))
            }
            (None, Some(held)) => {
                let mut versions = self.core.view().versions_of(&sources);
                versions.truncate(1 + IMAGE_OTHERS_MAX);
                let described = self.describe_image(&held.image, &versions)?;
                Some((Description::Image(described), exported(&held.image)))
            }
            (None, None) => None,
        }
    }

    fn describe_image(&self, image: &DeviceImage, versions: &[VersionId]) -> Option<Image> {
        // A legacy handle keeps nothing, and nothing need not be kept.
        if image.mechanism() != Mechanism::Vmm || image.exports().is_empty() {
            return None;
        }
        let owner = self.names.version_of(*versions.first()?)?.owner;
        let names = |version: &VersionId| self.names.image_of_version(*version);
        let of = versions.iter().map(names).collect::<Option<Vec<_>>>()?;
        let mut of = of.into_iter();
        let ImageOf { table, files } = of.next()?;
        let others: Vec<ImageOf> = of.collect();
        Some(Image {
            device: image.uuid(),
            mechanism: ImageMechanism::Vmm,
            granularity: image.granularity(),
            allocations_bytes: image.allocations().iter().map(|one| one.bytes()).collect(),
            digest: Digest(*image.digest()),
            table,
            charge_bytes: image.charged_bytes(),
            files,
            owner,
            others: (!others.is_empty()).then_some(others),
        })
    }

    /// Says how many leases of a client that came back cannot be taken up, and why: it reads on, but
    /// what it reads is in no books. One line a request, and so many in all: anybody can ask.
    pub(super) fn note_lost_leases(
        &mut self,
        resume: &Resume,
        known: bool,
        asked: &[ResumedLease],
    ) {
        let mut lost: BTreeMap<&str, (usize, u64)> = BTreeMap::new();
        for (had, ResumedLease { copy, .. }) in resume.leases.iter().zip(asked) {
            let version = self.core.view().version(copy.version);
            let there = version.as_ref().and_then(|version| version.copy(copy.tier));
            let why = match (known, there) {
                (false, _) => "its daemon is not one whose models were taken over",
                (true, None) => "what it was on was not taken over",
                (true, Some(copy)) if copy.presence == Presence::Resident => continue,
                (true, Some(_)) => "what it was on has gone since",
            };
            let (count, _) = lost.entry(why).or_insert((0, had.version.0));
            *count += 1;
        }
        for (why, (leases, first_version)) in lost {
            if self.keeping.lost_noted == LOST_NOTED_MAX {
                return;
            }
            self.keeping.lost_noted += 1;
            tracing::warn!(leases, first_version, why, "leases were not taken up again");
            if self.keeping.lost_noted == LOST_NOTED_MAX {
                tracing::warn!("further leases that are not taken up again are not logged");
            }
        }
    }

    /// Tells the keeper of a version that the decider has learnt of, and again of one that others may
    /// have leases on since.
    pub(super) fn keep_version(&mut self, id: VersionId) {
        let is_news = self.names.take_news_of(id);
        if self.keeping.versions.contains_key(&id) && !is_news {
            return;
        }
        let description = self.names.describe_version(id);
        let (Some(description), Some(key)) = (description, self.keeping.key("v", id.0)) else {
            return;
        };
        let description = Description::Version(description);
        self.keeping.put(&key, description, Vec::new(), None);
        self.keeping.versions.insert(id, key);
    }

    pub(super) fn forget_kept_version(&mut self, id: VersionId) {
        if let Some(key) = self.keeping.versions.remove(&id) {
            self.keeping.keeper.remove(&key, None);
        }
    }

    /// The next daemon is not to find this segment, although it is not free yet.
    pub(super) fn forget_kept_segment(&mut self, segment: SegmentId) {
        self.keeping.unhashed.remove(&segment);
        if let Some(key) = self.keeping.segments.remove(&segment) {
            self.keeping.keeper.remove(&key, None);
        }
    }

    /// Carries out `Effect::Free`: the keeper lets go first, for as long as it has the memory, it
    /// is not free.
    pub(super) fn let_go(&mut self, op: OpId, segment: SegmentId, tier: Tier) {
        self.keeping.unhashed.remove(&segment);
        // Before it lets go of what was merged, so that it always has one of the two.
        self.keep_merged(segment, tier);
        let Some(key) = self.keeping.segments.remove(&segment) else {
            return self.free_on(op, segment, tier);
        };
        failpoint::pass(Point::BeforeLetGo);
        let done = self.completed.clone();
        let let_go = move |outcome: Result<(), KeepError>| {
            if let Err(error) = outcome {
                tracing::warn!(%error, "the keeper may still have memory that was freed");
            }
            drop(done.send(Completed::LetGo { op, segment, tier }));
        };
        self.keeping.keeper.remove(&key, Some(Box::new(let_go)));
    }
}

/// What the keeper is told of a segment in host memory; `None` if it stands for nothing any more.
fn describe(held: &Held, digest: Option<[u8; 32]>, sources: Vec<SourceRef>) -> Option<Segment> {
    let bytes = held.segment.bytes();
    Some(Segment {
        digest: digest.map(Digest),
        bytes,
        charge_bytes: crate::memory::charge_for(bytes),
        kind: match sources.first()? {
            SourceRef::Table(_) => SegmentKind::Table,
            SourceRef::File(_) => SegmentKind::File,
        },
        sources,
        load_us: held.load_us,
    })
}

pub(super) fn exported(image: &DeviceImage) -> Vec<SharedFd> {
    let fds = image.exports().iter().filter_map(|export| match export {
        Exported::Fd(fd) => Some(Arc::clone(fd) as SharedFd),
        Exported::Handle(_) => None,
    });
    fds.collect()
}
