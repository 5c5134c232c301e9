//! What a daemon leaves to the next one, as in `shell/keeping` of the daemon.

use super::names::Found;
use super::{Daemon, Held, impossible};
use crate::breach::Checked;
use crate::env::Env;
use crate::link::Reader;
use crate::memory::AllocId;
use mrm_core::event::{AdoptedSegment, Adoption, Event, Resolution, ResumedLease};
use mrm_core::id::{Bytes, CopyId, ModelId, SegmentId, SessionId, SourceId, VersionId};
use mrm_core::ledger::Tier;
use mrm_core::view::SegmentState;
use mrm_proto::ids;
use mrm_proto::request::Resume;

/// How long what is taken over is held for those who come back.
const GRACE_MS: u64 = 100;
/// Each run counts from here, times the runs before it: no number comes twice.
const IDS_PER_RUN: u64 = 1 << 40;

/// What a keeper has of a dead daemon's.
#[derive(Debug, Default)]
pub(crate) struct Left {
    versions: Vec<LeftVersion>,
}

#[derive(Debug)]
struct LeftVersion {
    id: VersionId,
    label: Option<usize>,
    owner: Option<u32>,
    found: Found,
    resident: Vec<LeftPart>,
}

#[derive(Debug, Clone, Copy)]
struct LeftPart {
    /// Which of the version's parts.
    at: usize,
    tier: Tier,
    alloc: AllocId,
    /// It was not hashed yet.
    unknown: bool,
}

impl Daemon {
    /// It ends, or is killed. Memory that clients mapped stays theirs; what was whole is kept.
    pub(crate) fn die(self, env: &mut Env) -> Checked<Left> {
        let left = self.leaves();
        let versions = left.versions.iter();
        let allocs = versions.flat_map(|version| version.resident.iter().map(|part| part.alloc));
        env.memory.daemon_died(&allocs.collect());
        for link in self.of_link.into_keys() {
            env.end(link, Reader::Client);
            env.discard(link, Reader::Daemon)?;
        }
        Ok(left)
    }

    fn leaves(&self) -> Left {
        let mut left = Left::default();
        for shown in self.core.view().versions() {
            let Some(record) = self.names.version_of(shown.version) else {
                continue;
            };
            let sources: Vec<SourceId> =
                self.facts(shown.version).iter().map(|f| f.source).collect();
            let copies = std::iter::once(&shown.host).chain(&shown.devices);
            let mut resident = Vec::new();
            for slot in copies.flat_map(|copy| &copy.segments) {
                let held = slot.segment.and_then(|segment| self.segments.get(&segment));
                let at = sources.iter().position(|source| *source == slot.source);
                if let (SegmentState::Resident, Some(held), Some(at)) = (slot.state, held, at) {
                    resident.push(LeftPart {
                        at,
                        tier: slot.tier,
                        alloc: held.alloc,
                        unknown: slot.segment.is_some_and(|id| self.names.is_unknown(id)),
                    });
                }
            }
            left.versions.push(LeftVersion {
                id: shown.version,
                label: record.label,
                owner: record.owner,
                found: record.found.clone(),
                resident,
            });
        }
        left
    }

    /// Takes over what a predecessor left.
    pub(super) fn adopt(&mut self, env: &mut Env, left: &Left) -> Checked {
        self.names.begin_at((self.run.0 - 1) * IDS_PER_RUN);
        let until = env.time().after_ms(GRACE_MS);
        for version in &left.versions {
            // Without its table nothing is known of it.
            let tables = version.resident.iter().filter(|part| part.at == 0);
            if tables.count() == 0 {
                continue;
            }
            let id = version.id;
            let found = (&version.found, version.owner);
            self.names.adopt(id, found, !self.budgets.is_empty());
            let segments = self.facts(id);
            let mut resident = Vec::new();
            for part in &version.resident {
                let (tier, alloc) = (part.tier, part.alloc);
                let Some(fact) = segments.get(part.at).filter(|_| !env.memory.is_gone(alloc))
                else {
                    continue;
                };
                let owner = version.owner.filter(|_| tier != Tier::Host);
                self.left
                    .insert((fact.source, tier), (alloc, fact.charge.0, fact.pieces));
                self.left_to.extend(owner.map(|owner| (alloc, owner)));
                let content = if part.unknown {
                    self.left_unknown.insert(alloc);
                    self.names.unknown_content()
                } else {
                    self.names.content_id((env.memory.read(alloc)?, owner))
                };
                let source = fact.source;
                resident.push(AdoptedSegment {
                    source,
                    tier,
                    content,
                });
            }
            let name = version.label.filter(|name| env.disk.is_registered(*name));
            let model = name.map(|name| self.names.registered(name, version.owner));
            if let Some(model) = model {
                self.names.call(id, model);
            }
            let resolution = Resolution {
                version: id,
                segments,
            };
            let adoption = Adoption {
                model,
                resolution,
                resident,
                until,
            };
            self.step(env, Event::Adopt(adoption))?;
            if self.core.view().version(id).is_none() {
                self.names.forget_version(id);
            }
        }
        self.left.clear();
        self.left_to.clear();
        self.left_unknown.clear();
        self.names.drop_unused_contents();
        env.memory.drop_left();
        self.finish(env)
    }

    /// Memory of the last daemon's has a number now.
    pub(super) fn adopted(
        &mut self,
        env: &mut Env,
        segment: SegmentId,
        source: SourceId,
        tier: Tier,
    ) -> Checked {
        let Some((alloc, _, _)) = self.left.remove(&(source, tier)) else {
            return impossible("what is taken over is not there");
        };
        env.memory.take_over(alloc)?;
        if self.left_unknown.remove(&alloc) {
            self.hash_later(env, segment);
        } else {
            let content = (env.memory.read(alloc)?, self.left_to.remove(&alloc));
            self.names.content(segment, content);
        }
        let freeing = None;
        self.segments.insert(
            segment,
            Held {
                alloc,
                tier,
                freeing,
            },
        );
        Ok(())
    }

    /// A client that had leases of an earlier run wants them again.
    pub(super) fn resume(
        &mut self,
        env: &mut Env,
        (session, request): (SessionId, ids::RequestId),
        resume: &Resume,
    ) -> Checked {
        let known = resume.instance.0 < self.run.0;
        let device = |uuid| self.devices().find(|own| super::uuid_of(*own) == uuid);
        let had = resume.leases.iter().map(|had| {
            let version = VersionId(had.version.0);
            let copy = match had.device {
                None => Some(CopyId::host(version)),
                Some(uuid) => device(uuid).map(|device| CopyId::device(version, device)),
            };
            copy.filter(|_| known).unwrap_or(CopyId::host(VersionId(0)))
        });
        let leases = had.zip(&resume.leases).map(|(copy, had)| ResumedLease {
            reserve: Bytes(had.reserve_bytes.unwrap_or(0)),
            model: self
                .core
                .view()
                .models_of(copy.version)
                .next()
                .unwrap_or(ModelId(0)),
            copy,
        });
        let leases: Vec<ResumedLease> = leases.collect();
        let parts = leases.iter().map(|lease| {
            let shown = self.core.view().version(lease.copy.version);
            let copy = shown.as_ref().and_then(|shown| shown.copy(lease.copy.tier));
            let slots = copy.into_iter().flat_map(|copy| &copy.segments);
            (
                lease.copy.tier,
                slots.filter_map(|slot| slot.segment).collect(),
            )
        });
        let parts = parts.collect();
        self.books.resumes(parts);
        let request = mrm_core::id::RequestId(request.0);
        self.step(
            env,
            Event::Resume {
                session,
                request,
                leases,
            },
        )
    }
}
