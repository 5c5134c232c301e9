//! What the last daemon left, and how it comes to be this one's.

use super::{Left, LeftMemory, exported};
use crate::device::{DeviceImage, HostFeed, ReclaimOrder};
use crate::failpoint::{self, Point};
use crate::keeper::describe::Version;
use crate::keeper::describe::{Description, Image, Instance, Segment, SegmentKind, SourceRef};
use crate::keeper::{Adopted, Key, RUN_KEYS, SharedFd};
use crate::memory::HostSegment;
use crate::shell::names::{FoundImage, private};
use crate::shell::{Held, HeldImage, State};
use crate::status::events::{Event as LogEvent, EventKind};
use mrm_core::event::{AdoptedSegment, Adoption, Event, Part, Resolution, SegmentFact};
use mrm_core::id::{DeviceId, ModelId, SegmentId, SourceId, Time};
use mrm_core::ledger::Tier;
use mrm_proto::layout::{Layout, LayoutError};
use mrm_proto::name::ModelName;
use mrm_proto::table::Table;
use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use tokio::sync::oneshot;

/// Runs of the daemon that are remembered: clients of these may have leases.
const ANCESTORS_MAX: usize = 8;
/// Each run's ids begin here, times the runs before it: none that a client knows comes twice.
const IDS_PER_RUN: u64 = 1 << 40;

/// Everything that a keeper had, by what it is.
#[derive(Default)]
struct Remains {
    /// By each source that it stands for: its key, description and memory.
    segments: BTreeMap<SourceRef, (Key, Segment, Arc<HostSegment>)>,
    images: Vec<LeftImage>,
    versions: Vec<(Key, Version)>,
    instances: Vec<(Key, Instance)>,
}

/// A copy on a device, for each version that it stands for.
struct LeftImage {
    key: Key,
    image: Image,
    memory: ImageMemory,
}

enum ImageMemory {
    Exported(Vec<OwnedFd>),
    Reclaimed(Arc<DeviceImage>),
}

impl State {
    pub(super) fn take_over(
        &mut self,
        entries: Vec<Adopted>,
        grace_ms: u64,
    ) -> oneshot::Receiver<()> {
        let mut remains = self.sort(entries);
        let versions = remains.versions.iter();
        let highest = versions.map(|(_, version)| version.version.0).max();
        let known = self.take_over_instances(std::mem::take(&mut remains.instances), highest);
        let until = self.now().after_ms(grace_ms);
        // Of several versions of one name the last is what it stands for.
        remains.versions.sort_by_key(|(_, version)| version.version);
        for (key, version) in std::mem::take(&mut remains.versions) {
            failpoint::pass(Point::Adopting);
            if let Some(adoption) = self.adoption(&mut remains, &version, until) {
                let id = adoption.resolution.version;
                self.step(Event::Adopt(adoption));
                if self.core.view().version(id).is_some() {
                    let description = Description::Version(version);
                    self.keeping.hold(&key, description, Vec::new());
                    self.keeping.versions.insert(id, key);
                    continue;
                }
                self.names.forget_version(id);
            }
            self.keeping.keeper.remove(&key, None);
        }
        self.drop_leftovers(remains);
        if self.config.integrity.check_adopted {
            self.verify_adopted();
        }
        failpoint::pass(Point::Adopted);
        known
    }

    /// What nobody asked for goes.
    fn drop_leftovers(&mut self, remains: Remains) {
        let left = self.keeping.left.drain().map(|(_, left)| left.key);
        let segments = remains.segments.into_values().map(|(key, _, _)| key);
        let images = remains.images.into_iter().map(|left| left.key);
        let kept: Vec<&Key> = self.keeping.segments.values().collect();
        let gone: Vec<Key> = left
            .chain(segments)
            .chain(images)
            .filter(|key| !kept.contains(&key))
            .collect();
        for key in gone {
            self.keeping.keeper.remove(&key, None);
        }
        self.names.drop_unused_contents();
    }

    fn sort(&self, entries: Vec<Adopted>) -> Remains {
        let mut remains = Remains::default();
        for Adopted {
            key,
            description,
            mut fds,
        } in entries
        {
            match description {
                Description::Segment(segment) if !self.can_take_over(&segment) => {
                    self.refuse_entry(&key, &"it was not hashed yet, and a device may need it");
                }
                Description::Segment(segment) => {
                    let memory = fds.pop().map(|fd| HostSegment::adopted(fd, segment.bytes));
                    match memory {
                        Some(Ok(memory)) => {
                            let memory = Arc::new(memory);
                            for source in &segment.sources {
                                let what = (key.clone(), segment.clone(), Arc::clone(&memory));
                                remains.segments.insert(*source, what);
                            }
                        }
                        Some(Err(error)) => self.refuse_entry(&key, &error),
                        None => self.refuse_entry(&key, &"it came without memory"),
                    }
                }
                Description::Image(image) => remains.images.push(LeftImage {
                    key,
                    image,
                    memory: ImageMemory::Exported(fds),
                }),
                Description::Version(version) => remains.versions.push((key, version)),
                Description::Instance(instance) => remains.instances.push((key, instance)),
                // Those were for whoever listens.
                Description::Listener(_) => {}
            }
        }
        remains
    }

    /// What was not hashed yet stands for one file, and nothing can be fed from it.
    fn can_take_over(&self, segment: &Segment) -> bool {
        let alone = segment.kind == SegmentKind::File && segment.sources.len() == 1;
        segment.digest.is_some() || alone && self.tier.devices.is_empty()
    }

    fn refuse_entry(&self, key: &Key, why: &dyn std::fmt::Display) {
        tracing::warn!(%key, %why, "not taken over");
        self.degraded.report(
            "keeper_dropped",
            format!("not taken over: {key}: {why}"),
            "the log names each; it is loaded again",
        );
        self.keeping.keeper.remove(key, None);
    }

    /// Goes on counting where the last run may have come to: also one of which the keeper had no
    /// room for more than a version, the `highest` of which is given. Returns what tells when the
    /// keeper knows of this run.
    fn take_over_instances(
        &mut self,
        mut instances: Vec<(Key, Instance)>,
        highest: Option<u64>,
    ) -> oneshot::Receiver<()> {
        let run = |instance: &Instance| instance.counters.first().copied().unwrap_or(0);
        instances.sort_by_key(|(_, instance)| std::cmp::Reverse(run(instance)));
        let last_run = instances.first().map_or(0, |(_, last)| run(last));
        let of_versions = highest.map_or(0, |version| version / IDS_PER_RUN + 1);
        let this_run = last_run.max(of_versions).saturating_add(1);
        self.names
            .begin_at((this_run - 1).saturating_mul(IDS_PER_RUN));
        for (at, (key, instance)) in instances.into_iter().enumerate() {
            if at < ANCESTORS_MAX {
                self.ancestors.push(instance.instance);
                let description = Description::Instance(instance);
                self.keeping.hold(&key, description, Vec::new());
            } else {
                self.keeping.keeper.remove(&key, None);
            }
        }
        let own = Description::Instance(Instance {
            instance: self.instance,
            release: env!("CARGO_PKG_VERSION").to_owned(),
            counters: vec![this_run],
        });
        let (tell, known) = oneshot::channel();
        if let Some(key) = self.keeping.key(RUN_KEYS, this_run) {
            let done = move |_| tell.send(()).unwrap_or_default();
            self.keeping
                .put(&key, own, Vec::new(), Some(Box::new(done)));
        }
        known
    }

    /// What the decider is told of a version; `None` if nothing of it can be taken over.
    fn adoption(
        &mut self,
        remains: &mut Remains,
        version: &Version,
        until: Time,
    ) -> Option<Adoption> {
        let (table, files) = version.parts.split_first()?;
        let (_, described, memory) = remains.segments.get(&table.source)?;
        let SourceRef::Table(digest) = table.source else {
            return None;
        };
        if described.bytes != table.bytes {
            return None;
        }
        let bytes = read_all(memory)?;
        let image = self.found_image(called(version), &bytes);
        let laid_out = image.as_ref().and_then(|image| {
            let image = image.as_ref().ok()?;
            Some((image.granularity, image.layout.allocations_bytes().to_vec()))
        });
        let tier = &self.tier;
        let charge = |layout: &Layout| tier.charge_for(layout);
        let id = self.names.adopt(version, image, charge)?;
        let Some(segments) = self.facts_of(id) else {
            self.names.forget_version(id);
            return None;
        };
        let mut resident = Vec::new();
        for (part, fact) in version.parts.iter().zip(&segments) {
            resident.extend(self.left_in_host(remains, part.source, part.bytes, fact.source));
        }
        let file_refs: Vec<SourceRef> = files.iter().map(|part| part.source).collect();
        let image = segments.iter().find(|f| f.part == Part::Image);
        if let (Some(image), Some((granularity, sizes))) = (image, laid_out) {
            let same = |kept: &Image| {
                kept.owner == version.owner
                    && kept.is_of(digest, &file_refs)
                    && kept.granularity == granularity
                    && kept.allocations_bytes == sizes
            };
            resident.extend(self.left_on_devices(remains, same, image));
        }
        Some(Adoption {
            model: self.model_called(version),
            resolution: Resolution {
                version: id,
                segments,
            },
            resident,
            until,
        })
    }

    fn found_image(&self, label: &str, table: &[u8]) -> Option<Result<FoundImage, LayoutError>> {
        if self.tier.devices.is_empty() {
            return None;
        }
        let name = ModelName::new(label).ok();
        let own = name.and_then(|name| self.granularities.get(&name).copied());
        let granularity = self.tier.config.layout(own);
        let table = Table::parse(table).ok()?;
        let layout = Layout::new(&table, granularity);
        Some(layout.map(|layout| FoundImage {
            granularity,
            layout,
        }))
    }

    fn model_called(&mut self, version: &Version) -> Option<ModelId> {
        let name = ModelName::new(called(version)).ok()?;
        let registered = !version.foreign && self.catalogue.find(&name).is_some();
        registered.then(|| match version.owner {
            Some(uid) => self.names.private(&name, uid),
            None => self.names.registered(&name),
        })
    }

    fn left_in_host(
        &mut self,
        remains: &Remains,
        from: SourceRef,
        bytes: u64,
        source: SourceId,
    ) -> Option<AdoptedSegment> {
        let (key, described, memory) = remains.segments.get(&from)?;
        if described.bytes != bytes {
            return None;
        }
        let content = described.digest.map(|digest| (digest.0, None));
        let left = Left {
            key: key.clone(),
            content,
            memory: LeftMemory::Host(described.clone(), Arc::clone(memory)),
        };
        self.keeping.left.insert((source, Tier::Host), left);
        Some(AdoptedSegment {
            source,
            tier: Tier::Host,
            content: match content {
                Some(content) => self.names.content_of(content),
                None => self.names.unknown_content(),
            },
        })
    }

    fn left_on_devices(
        &mut self,
        remains: &mut Remains,
        same: impl Fn(&Image) -> bool,
        fact: &SegmentFact,
    ) -> Vec<AdoptedSegment> {
        let mut adopted = Vec::new();
        let mut at = 0;
        while at < remains.images.len() {
            let left = &mut remains.images[at];
            if !same(&left.image) {
                at += 1;
                continue;
            }
            let (device, memory) = match self.reclaimed(left, fact) {
                Ok(there) => there,
                Err(error) => {
                    let left = remains.images.swap_remove(at);
                    self.refuse_entry(&left.key, &error);
                    continue;
                }
            };
            at += 1;
            let (tier, source) = (Tier::Device(device), fact.source);
            let content = (left.image.digest.0, left.image.owner);
            let left = Left {
                key: left.key.clone(),
                content: Some(content),
                memory: LeftMemory::Image(left.image.clone(), memory),
            };
            self.keeping.left.insert((source, tier), left);
            let content = self.names.content_of(content);
            adopted.push(AdoptedSegment {
                source,
                tier,
                content,
            });
        }
        adopted
    }

    /// The memory of an image, opened once for all that it stands for.
    fn reclaimed(
        &self,
        left: &mut LeftImage,
        fact: &SegmentFact,
    ) -> Result<(DeviceId, Arc<DeviceImage>), String> {
        let device = self.tier.find(left.image.device);
        let device = device.ok_or("its device is not used any more")?;
        let memory = match &mut left.memory {
            ImageMemory::Reclaimed(memory) => Arc::clone(memory),
            ImageMemory::Exported(fds) => {
                let fds = std::mem::take(fds);
                Arc::new(self.reclaim(device, &left.image, fds, fact)?)
            }
        };
        left.memory = ImageMemory::Reclaimed(Arc::clone(&memory));
        Ok((device, memory))
    }

    fn reclaim(
        &self,
        device: DeviceId,
        image: &Image,
        fds: Vec<OwnedFd>,
        fact: &SegmentFact,
    ) -> Result<DeviceImage, String> {
        let target = self.tier.device(device);
        let target = target.ok_or("its device is not used any more")?;
        let allocations = fds.into_iter().zip(image.allocations_bytes.iter().copied());
        let order = ReclaimOrder {
            granularity: image.granularity,
            allocations: allocations.collect(),
            digest: image.digest.0,
        };
        let memory = target.reclaim(order).map_err(|error| error.to_string())?;
        match memory.charged_bytes() <= fact.charge.0 {
            true => Ok(memory),
            false => Err("it takes more than it would be charged".to_owned()),
        }
    }

    /// Carries out `Effect::Adopted`.
    pub(in crate::shell) fn adopted(&mut self, id: SegmentId, source: SourceId, tier: Tier) {
        let Some(left) = self.keeping.left.remove(&(source, tier)) else {
            return tracing::error!("what was taken over is not there");
        };
        if let Some(content) = left.content {
            self.names.content(id, content);
        }
        let label = self.names.label_of_source(source);
        let label = label.unwrap_or_else(|| Arc::from("?"));
        let (description, fds) = match left.memory {
            LeftMemory::Host(described, segment) => {
                let shared: SharedFd = Arc::clone(&segment) as _;
                self.hold_segment(id, &described, segment, label);
                (Description::Segment(described), vec![shared])
            }
            LeftMemory::Image(described, image) => {
                let fds = exported(&image);
                let event = LogEvent::of(EventKind::TakenOver).model(Arc::clone(&label));
                let place = format!("on {}", image.uuid());
                self.note(event.bytes(image.bytes()).detail(&place));
                self.images.insert(id, HeldImage::new(image, label));
                (Description::Image(described), fds)
            }
        };
        self.keeping.hold(&left.key, description, fds);
        self.keeping.segments.insert(id, left.key);
    }

    fn hold_segment(
        &mut self,
        id: SegmentId,
        described: &Segment,
        segment: Arc<HostSegment>,
        label: Arc<str>,
    ) {
        let label = match described.kind {
            SegmentKind::Table => None,
            SegmentKind::File => Some(label),
        };
        if let Some(label) = &label {
            let event = LogEvent::of(EventKind::TakenOver).model(Arc::clone(label));
            self.note(event.bytes(segment.bytes()));
        }
        let fed = label.as_ref().filter(|_| !self.tier.devices.is_empty());
        let feed = fed
            .zip(described.digest)
            .map(|(label, digest)| HostFeed::resident(label, Arc::clone(&segment), digest.0));
        self.loading.put_together(&segment);
        let held = Held {
            segment,
            feed,
            load_us: described.load_us,
            label,
            way: None,
        };
        self.segments.insert(id, held);
        if described.digest.is_none() {
            self.keeping.unhashed.insert(id, described.bytes);
            self.hash_later(id);
        }
    }
}

/// The name by which a version is in the catalogue, if it is.
fn called(version: &Version) -> &str {
    let own = version
        .owner
        .and_then(|uid| private::name_of(&version.label, uid));
    own.unwrap_or(&version.label)
}

fn read_all(segment: &HostSegment) -> Option<Vec<u8>> {
    let mut bytes = vec![0; usize::try_from(segment.bytes()).ok()?];
    let mut done = 0;
    while done < bytes.len() {
        let read = rustix::io::pread(segment.fd(), &mut bytes[done..], done as u64).ok()?;
        done += read;
        if read == 0 {
            return None;
        }
    }
    Some(bytes)
}
