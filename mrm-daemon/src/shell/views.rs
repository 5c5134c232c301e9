//! What the operator sees: the decider's books joined with the names of things.

use super::names::ModelOrigin;
use super::{Session, State, Who};
use crate::status::view::{
    CountersView, DaemonState, DaemonView, DegradedView, HeldView, HolderView, HostView,
    ModelDetailView, ModelKindView, ModelStateView, ModelView, ModelsView, ProtocolView,
    SegmentStateView, SegmentView, SessionView, SessionsView, StatusView,
};
use crate::transfer::ReadWay;
use mrm_core::id::{Bytes, SegmentId, SessionId, VersionId};
use mrm_core::ledger::Tier;
use mrm_core::view::{Presence, SegmentState, SlotView, VersionView};
use mrm_proto::ids::Digest;
use mrm_proto::limits::{VERSION_MAX, VERSION_MIN};
use mrm_proto::name::ModelName;
use mrm_proto::reply::{ModelRow, ModelState};
use mrm_proto::table::ModelKind;
use std::collections::{BTreeMap, HashMap};
use std::ops::Bound;

/// A part of what there is to list.
struct Page {
    rows: Vec<(String, Row)>,
    /// Whether there is more after it.
    more: bool,
}

/// Whether a name is registered, and the version that it stands for, as far as known.
type Row = (bool, Option<VersionId>);

/// The last session that holds a version, and how many do.
type Sessions = HashMap<VersionId, (SessionId, u64)>;

impl State {
    pub(super) fn phase(&self) -> DaemonState {
        match (self.serving, self.draining) {
            (_, true) => DaemonState::Draining,
            (true, false) => DaemonState::Serving,
            (false, false) => DaemonState::Starting,
        }
    }

    pub(super) fn status_view(&self) -> StatusView {
        let view = self.core.view();
        let ledger = view.ledger(Tier::Host);
        let waiting = view.waiting();
        let huge: u64 = self
            .segments
            .values()
            .map(|held| held.segment.huge_bytes())
            .sum();
        StatusView {
            daemon: DaemonView {
                version: env!("CARGO_PKG_VERSION").to_owned(),
                pid: std::process::id(),
                instance: format!("{:016x}", self.instance.0),
                uptime_s: self.started.elapsed().as_secs_f64(),
                state: self.phase(),
                protocol: ProtocolView {
                    min: VERSION_MIN,
                    max: VERSION_MAX,
                },
                runtime_dir: self.config.runtime_dir.clone(),
            },
            host: HostView {
                limit_bytes: ledger.limit.0,
                charged_bytes: ledger.charged.saturating_sub(ledger.freeing).0,
                freeing_bytes: ledger.freeing.0,
                resident_bytes: ledger.resident.0,
                huge_bytes: huge,
                segments: self.segments.len() as u64,
                stock_bytes: self.loading.stock_bytes(),
                stock_pending_bytes: self.loading.stock_pending_bytes(),
            },
            devices: self.devices_view(),
            sessions: self.clients().count() as u64,
            leases: view.leases_len() as u64,
            waiting: waiting.room as u64,
            loading: (self.loads.len() + self.fills.len()) as u64,
            counters: self.counters(),
            integrity: self.integrity_view(),
            degraded: self.degraded_views(),
        }
    }

    fn counters(&self) -> CountersView {
        self.metrics.counters()
    }

    fn degraded_views(&self) -> Vec<DegradedView> {
        let paths = self.degraded.list().into_iter();
        paths
            .map(|path| DegradedView {
                id: path.id.to_owned(),
                cause: path.cause,
                cure: path.cure.to_owned(),
            })
            .collect()
    }

    pub(super) fn sessions_view(&self) -> SessionsView {
        let mut sessions: Vec<SessionView> = self
            .clients()
            .map(|(id, session)| self.session_view(id, session))
            .collect();
        sessions.sort_by_key(|session| session.id);
        SessionsView { sessions }
    }

    fn session_view(&self, id: SessionId, session: &Session) -> SessionView {
        let mut held: BTreeMap<&str, u64> = BTreeMap::new();
        for lease in self.core.view().leases_of(id) {
            let label = self
                .names
                .version_of(lease.version)
                .map_or("?", |record| &record.label);
            *held.entry(label).or_default() += 1;
        }
        let (pid, uid, gid, client, connected_s) = match &session.who {
            Who::Client {
                peer, name, since, ..
            } => (
                u32::try_from(peer.pid).unwrap_or(0),
                peer.uid,
                peer.gid,
                name.to_string(),
                since.elapsed().as_secs_f64(),
            ),
            Who::Operator(_) => (0, 0, 0, String::new(), 0.0),
        };
        SessionView {
            id: id.0,
            pid,
            uid,
            gid,
            client,
            leases: held.values().sum(),
            waiting: session.pending.len() as u64,
            connected_s,
            models: held
                .into_iter()
                .map(|(name, leases)| HeldView {
                    name: name.to_owned(),
                    leases,
                })
                .collect(),
        }
    }

    pub(super) fn clients(&self) -> impl Iterator<Item = (SessionId, &Session)> {
        self.sessions
            .iter()
            .filter(|(_, session)| matches!(session.who, Who::Client { .. }))
            .map(|(&id, session)| (id, session))
    }

    /// The first `limit` names after `after`, with the version that each stands for, as far as
    /// known. Takes time in the number of rows, not of names.
    fn page(&self, prefix: &str, after: Option<&str>, limit: usize) -> Page {
        let first = match after {
            Some(after) if after >= prefix => Bound::Excluded(after),
            Some(_) | None => Bound::Included(prefix),
        };
        let wanted = |name: &&ModelName| name.as_str().starts_with(prefix);
        let mut rows: BTreeMap<&str, Row> = BTreeMap::new();
        let listed = self.catalogue.entry_names(first).take_while(wanted);
        let scanned = self.listing.names(first).take_while(wanted);
        for name in listed.take(limit + 1).chain(scanned.take(limit + 1)) {
            rows.insert(name.as_str(), (true, self.version_registered(name)));
        }
        let known = self.names.registered_models(first);
        let known = known.take_while(|(name, _)| wanted(name));
        let shown = known.filter_map(|(name, model)| {
            let model = self.core.view().model(model)?;
            let worth_a_row = model.version.is_some() || model.wishes.pinned;
            worth_a_row.then_some((name.as_str(), (true, model.version)))
        });
        rows.extend(shown.take(limit + 1));
        // What clients passed comes under what they called it, as far as the page goes.
        let last = rows.keys().nth(limit).copied();
        for (label, version) in self.names.labels(prefix.max(after.unwrap_or_default())) {
            if !label.starts_with(prefix) || last.is_some_and(|last| label >= last) {
                break;
            }
            if after != Some(label) && !rows.contains_key(label) && !self.is_shown(version) {
                rows.insert(label, (false, Some(version)));
                if rows.len() > 2 * limit + 1 {
                    break;
                }
            }
        }
        Page {
            more: rows.len() > limit,
            rows: rows
                .into_iter()
                .take(limit)
                .map(|(name, row)| (name.to_owned(), row))
                .collect(),
        }
    }

    /// Whether a version has the row of a registered name.
    fn is_shown(&self, version: VersionId) -> bool {
        let mut models = self.core.view().models_of(version);
        models.any(|model| {
            let record = self.names.model(model);
            record.is_some_and(|record| {
                matches!(record.origin, ModelOrigin::Registered) && record.owner.is_none()
            })
        })
    }

    fn version_registered(&self, name: &ModelName) -> Option<VersionId> {
        self.core.view().model(self.names.find(name)?)?.version
    }

    /// The version that a name or a label stands for, if it is known.
    pub(super) fn version_named(&self, name: &ModelName) -> Option<VersionId> {
        self.version_registered(name).or_else(|| {
            let (label, version) = self.names.labels(name.as_str()).next()?;
            (label == name.as_str()).then_some(version)
        })
    }

    pub(super) fn is_registered(&self, name: &ModelName) -> bool {
        let known = self.names.find(name);
        let known = known.and_then(|model| self.core.view().model(model));
        known.is_some_and(|model| model.version.is_some() || model.wishes.pinned)
            || self.catalogue.has_entry(name)
            || self.listing.lists(name)
    }

    pub(super) fn models_view(
        &self,
        prefix: &str,
        after: Option<&str>,
        limit: usize,
    ) -> ModelsView {
        let sessions = self.sessions_of_versions();
        let page = self.page(prefix, after, limit);
        let rows = page.rows.into_iter();
        ModelsView {
            models: rows
                .map(|(name, (registered, version))| {
                    self.model_view(name, registered, version, &sessions)
                })
                .collect(),
            more: page.more,
        }
    }

    pub(super) fn model_detail(&self, name: &ModelName) -> Option<ModelDetailView> {
        let version = self.version_named(name);
        let registered = self.is_registered(name);
        if version.is_none() && !registered {
            return None;
        }
        let leases = self.sessions_of_versions();
        let model = self.model_view(name.as_str().to_owned(), registered, version, &leases);
        let record = version.and_then(|version| self.names.version_of(version));
        let shown = version.and_then(|version| self.core.view().version(version));
        let segments = match (record, &shown) {
            (Some(record), Some(shown)) => {
                let parts = record.parts.iter().zip(&shown.host.segments).skip(1);
                parts
                    .map(|(part, slot)| self.segment_view(&part.name, part.bytes, slot))
                    .collect()
            }
            _ => Vec::new(),
        };
        let tensors = record
            .filter(|r| r.kind == ModelKind::Safetensors)
            .map(|r| r.tensors);
        let holders = version.map_or_else(Vec::new, |version| self.holders_of(version));
        Some(ModelDetailView {
            model,
            segments,
            tensors,
            holders,
            worth: version.map_or_else(Vec::new, |version| self.worth_of(version)),
            reserve_lately_bytes: self.reserve_lately(name).0,
        })
    }

    /// The most that opens of a model on devices kept free there of late.
    fn reserve_lately(&self, name: &ModelName) -> Bytes {
        let (model, view) = (self.names.find(name), self.core.view());
        model.map_or(Bytes::ZERO, |model| view.reserve_of(model))
    }

    /// The segment in each place of a version.
    pub(super) fn segments_of(&self, version: VersionId) -> Vec<Option<SegmentId>> {
        let shown = self.core.view().version(version);
        shown.map_or_else(Vec::new, |v| {
            v.host.segments.iter().map(|slot| slot.segment).collect()
        })
    }

    fn segment_view(&self, name: &str, bytes: u64, slot: &SlotView) -> SegmentView {
        let held = slot.segment.and_then(|segment| self.segments.get(&segment));
        let leases = slot
            .segment
            .and_then(|segment| self.core.view().segment(segment));
        SegmentView {
            name: name.to_owned(),
            bytes,
            state: match slot.state {
                SegmentState::Absent => SegmentStateView::Absent,
                SegmentState::Loading => SegmentStateView::Loading,
                SegmentState::Resident => SegmentStateView::Resident,
                SegmentState::Damaged | SegmentState::Evicting => SegmentStateView::Freeing,
            },
            huge_bytes: held.map_or(0, |held| held.segment.huge_bytes()),
            digest: slot.segment.and_then(|segment| self.digest_text(segment)),
            leases: leases.map_or(0, |segment| segment.leases),
            way: held.and_then(|held| held.way).map(ReadWay::as_str),
        }
    }

    fn digest_text(&self, segment: SegmentId) -> Option<String> {
        self.names
            .digest_of(segment)
            .map(|digest| Digest(digest).to_string())
    }

    /// How many sessions hold each version.
    fn sessions_of_versions(&self) -> Sessions {
        let mut holders = Sessions::new();
        // Leases come session by session.
        for lease in self.core.view().leases() {
            let (last, sessions) = holders.entry(lease.version).or_insert((lease.session, 1));
            if *last != lease.session {
                (*last, *sessions) = (lease.session, *sessions + 1);
            }
        }
        holders
    }

    fn holders_of(&self, version: VersionId) -> Vec<HolderView> {
        let mut leases: BTreeMap<(SessionId, Tier), u64> = BTreeMap::new();
        for lease in self
            .core
            .view()
            .leases()
            .filter(|lease| lease.version == version)
        {
            *leases.entry((lease.session, lease.tier)).or_default() += 1;
        }
        let known = |((id, tier), leases): ((SessionId, Tier), u64)| {
            let Who::Client { peer, name, .. } = &self.sessions.get(&id)?.who else {
                return None;
            };
            Some(HolderView {
                session: id.0,
                pid: u32::try_from(peer.pid).unwrap_or(0),
                uid: peer.uid,
                client: name.to_string(),
                tier: self.tier_word(tier),
                leases,
            })
        };
        leases.into_iter().filter_map(known).collect()
    }

    fn model_view(
        &self,
        name: String,
        registered: bool,
        version: Option<VersionId>,
        sessions: &Sessions,
    ) -> ModelView {
        let record = version.and_then(|version| self.names.version_of(version));
        let shown = version.and_then(|version| self.core.view().version(version));
        let model = ModelName::new(name.as_str())
            .ok()
            .and_then(|name| self.names.find(&name));
        let wishes = model
            .and_then(|model| self.core.view().model(model))
            .map(|m| m.wishes);
        let held = || {
            let slots = shown
                .iter()
                .flat_map(|shown| shown.host.segments.iter().skip(1));
            slots.filter_map(|slot| self.segments.get(&slot.segment?))
        };
        let used = shown.as_ref().and_then(|shown| shown.host.last_used);
        let load_us: u64 = held().map(|held| held.load_us).sum();
        ModelView {
            name,
            registered,
            kind: record.map(|record| match record.kind {
                ModelKind::Safetensors => ModelKindView::Safetensors,
                ModelKind::Opaque => ModelKindView::Opaque,
            }),
            state: shown.as_ref().map_or(ModelStateView::Absent, |shown| {
                match shown.host.presence {
                    Presence::Absent => ModelStateView::Absent,
                    Presence::Loading => ModelStateView::Loading,
                    Presence::Resident => ModelStateView::Resident,
                    Presence::Partial => ModelStateView::Partial,
                }
            }),
            bytes: record.map_or(0, |record| {
                let files = record.parts.iter().skip(1);
                files.fold(0, |sum: u64, part| sum.saturating_add(part.bytes))
            }),
            charged_bytes: shown.as_ref().map_or(0, |shown| shown.host.charged.0),
            huge_bytes: held().map(|held| held.segment.huge_bytes()).sum(),
            loaded_bytes: version.map_or(0, |v| self.progress_of_version(v).loaded_bytes),
            eta_ms: version
                .and_then(|version| self.eta_us(version))
                .map(|us| us as f64 / 1e3),
            leases: shown.as_ref().map_or(0, |shown| {
                let copies = shown.devices.iter();
                copies.fold(shown.host.leases, |sum, copy| sum + copy.leases)
            }),
            sessions: version
                .and_then(|v| sessions.get(&v))
                .map_or(0, |(_, sessions)| *sessions),
            pinned: wishes.is_some_and(|wishes| wishes.pinned),
            eager: wishes.is_some_and(|wishes| wishes.eager),
            version: version.map(|version| version.0),
            digest: shown
                .as_ref()
                .and_then(|shown| self.digest_of_version(shown)),
            last_used_s_ago: used.map(|used| self.now().us_since(used) as f64 / 1e6),
            load_ms: (load_us > 0).then_some(load_us as f64 / 1e3),
            path: record.and_then(|record| record.path.clone()),
            devices: self.model_devices(shown.as_ref()),
        }
    }

    /// The identity of a version: of one file its digest, of several the digest of their digests
    /// in order.
    fn digest_of_version(&self, shown: &VersionView) -> Option<String> {
        let files = shown.host.segments.iter().skip(1);
        let digests: Vec<[u8; 32]> = files
            .map(|slot| self.names.digest_of(slot.segment?))
            .collect::<Option<_>>()?;
        match digests.as_slice() {
            [] => None,
            [one] => Some(Digest(*one).to_string()),
            several => Some(blake3::hash(several.as_flattened()).to_hex().to_string()),
        }
    }

    /// A page of a client's listing, and whether there is more after it.
    pub(super) fn rows(
        &self,
        prefix: &str,
        after: Option<&str>,
        limit: usize,
    ) -> (Vec<ModelRow>, bool) {
        let page = self.page(prefix, after, limit);
        let rows = page.rows.into_iter();
        let rows = rows.filter_map(|(name, (registered, version))| {
            self.row_of(ModelName::new(name).ok()?, registered, version)
        });
        (rows.collect(), page.more)
    }

    /// A client's look at one model.
    pub(super) fn row(&self, name: &ModelName) -> Option<ModelRow> {
        let (version, registered) = (self.version_named(name), self.is_registered(name));
        (version.is_some() || registered).then_some(())?;
        self.row_of(name.clone(), registered, version)
    }

    fn row_of(
        &self,
        name: ModelName,
        registered: bool,
        version: Option<VersionId>,
    ) -> Option<ModelRow> {
        let none = Sessions::new();
        let view = self.model_view(name.as_str().to_owned(), registered, version, &none);
        Some(ModelRow {
            name,
            registered,
            state: match view.state {
                ModelStateView::Absent => ModelState::Absent,
                ModelStateView::Loading => ModelState::Loading,
                ModelStateView::Resident => ModelState::Resident,
                ModelStateView::Partial => ModelState::Partial,
            },
            bytes: view.bytes,
            leases: view.leases,
            pinned: view.pinned,
            devices: self.row_devices(version),
        })
    }
}
