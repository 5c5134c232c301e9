//! What the operator asks over the status socket, and tells through configuration and signals.
//!
//! A verb that has to wait runs as a session of its own, like a client: warming a model is an open
//! whose lease is given back at once.

mod places;

use super::answer::error_of_fault;
use super::listing::Question;
use super::{Pending, Session, Shell, State, Who};
use crate::catalogue::Catalogue;
use crate::config::ModelEntry;
use crate::degraded::Degraded;
use crate::status::events::{Event as LogEvent, EventKind};
use crate::status::view::{Drained, Evicted, OriginView, Pinned, Warmed};
use crate::status::{Place, Query, ReplyTo, StatusInbox, WarmOn};
use crate::transfer::{Hung, Urgency};
use mrm_core::effect::{Origin, Refusal, Reply as CoreReply};
use mrm_core::event::{Event, Wishes};
use mrm_core::id::{Bytes, ModelId, RequestId, SessionId, Tenant};
use mrm_core::ledger::Tier;
use mrm_proto::error::{ErrorCode, ErrorReply};
use mrm_proto::limits::WAIT_MS_MAX;
use mrm_proto::name::ModelName;
use std::collections::{BTreeMap, HashMap};
use std::ops::Bound;
use std::sync::Arc;
use std::time::Instant;

/// The only request of an operator's session.
const THE_REQUEST: RequestId = RequestId(1);

/// A verb that waits for the decider.
pub(super) enum Waiting {
    /// A model is being loaded. Without a reply: at the start, for a pinned model.
    Warm {
        name: ModelName,
        reply: Option<ReplyTo<Warmed>>,
    },
    /// A model is being dropped.
    Evict {
        name: ModelName,
        reply: ReplyTo<Evicted>,
    },
}

/// Answers the status server until it is gone.
pub(crate) async fn answer_queries(shell: Shell, mut inbox: StatusInbox) {
    while let Some(query) = inbox.recv().await {
        shell.with(|state| state.answer_query(query));
    }
}

impl Shell {
    /// From now on clients are served.
    pub(crate) fn serving(&self) {
        self.with(|state| state.serving = true);
    }

    /// Records a degraded path.
    pub(crate) fn degraded(&self, id: &'static str, cause: String, cure: &'static str) {
        self.0.state.borrow().degraded.report(id, cause, cure);
    }

    /// The list of degraded paths.
    pub(crate) fn degraded_paths(&self) -> Degraded {
        self.0.state.borrow().degraded.clone()
    }

    /// What the operator wishes for the registered models. Pinned ones are loaded.
    pub(crate) fn apply_wishes(&self, models: &[ModelEntry]) {
        self.with(|state| state.apply_wishes(models));
    }

    /// A new catalogue and budget. What was resolved in the old one is resolved again when it is
    /// opened next.
    pub(crate) fn replace_catalogue(&self, catalogue: Catalogue, host_budget_bytes: u64) {
        self.with(|state| state.replace_catalogue(catalogue, host_budget_bytes));
    }

    /// No new leases from now on.
    pub(crate) fn drain(&self) {
        self.with(State::drain);
    }

    /// Returns when the operator asks for a drain.
    pub(crate) async fn drain_asked(&self) {
        while !self.0.state.borrow().draining {
            self.0.settled.notified().await;
        }
    }

    /// Returns when no client holds a lease.
    pub(crate) async fn settled(&self) {
        while self.in_use().1 > 0 {
            self.0.settled.notified().await;
        }
    }

    /// Sessions, and leases.
    pub(crate) fn in_use(&self) -> (usize, usize) {
        let state = self.0.state.borrow();
        (state.clients().count(), state.core.view().leases_len())
    }

    /// Ends the workers; names those that do not end in time.
    pub(crate) fn stop_workers(&self, deadline: Instant) -> Vec<Hung> {
        let mut state = self.0.state.borrow_mut();
        state.cancel_fills();
        let lanes = state.lanes.take();
        let mut hung = lanes.map_or_else(Vec::new, |lanes| lanes.shut_down(deadline));
        hung.append(&mut state.tier.shut_down(deadline));
        hung.append(&mut state.verifying.shut_down(deadline));
        hung
    }
}

impl State {
    fn answer_query(&mut self, query: Query) {
        let asks_listing = match &query {
            Query::Models { .. } => true,
            Query::Model { name, .. } => !self.is_registered(name),
            Query::Pin { name, .. } | Query::Hint { name, .. } => !self.is_registered(name),
            Query::State { .. }
            | Query::Status { .. }
            | Query::Sessions { .. }
            | Query::Events { .. }
            | Query::Journal { .. }
            | Query::Policies { .. }
            | Query::SetPolicy { .. }
            | Query::Warm { .. }
            | Query::Evict { .. }
            | Query::Verify { .. }
            | Query::Drain { .. } => false,
        };
        if asks_listing {
            self.ask_listing(Question::Operator(query));
        } else {
            self.answer_query_now(query);
        }
    }

    pub(super) fn answer_query_now(&mut self, query: Query) {
        match query {
            Query::State { reply } => reply.send(Ok(self.phase())),
            Query::Status { reply } => reply.send(Ok(self.status_view())),
            Query::Models {
                prefix,
                after,
                limit,
                reply,
            } => {
                reply.send(Ok(self.models_view(&prefix, after.as_deref(), limit)));
            }
            Query::Model { name, reply } => {
                let detail = self
                    .model_detail(&name)
                    .ok_or_else(|| self.not_found(&name));
                reply.send(detail);
            }
            Query::Sessions { reply } => reply.send(Ok(self.sessions_view())),
            Query::Events {
                since,
                limit,
                reply,
            } => reply.send(Ok(self.log.since(since, limit))),
            Query::Journal { reply } => reply.send(
                self.journal
                    .export()
                    .map_err(|error| ErrorReply::new(ErrorCode::Internal, error.to_string())),
            ),
            Query::Policies { reply } => reply.send(Ok(self.policies_view())),
            Query::SetPolicy { on, to, reply } => reply.send(self.set_policy(on, to)),
            Query::Hint { name, in_ms, reply } => reply.send(self.hint(&name, in_ms)),
            Query::Pin { name, on, reply } => reply.send(self.pin(&name, on)),
            Query::Warm {
                name,
                on,
                wait_ms,
                reply,
            } => self.warm(name, on, wait_ms, Some(reply)),
            Query::Evict { name, from, reply } => self.evict(name, from, reply),
            Query::Verify { name, reply } => self.verify(name, reply),
            Query::Drain { reply } => {
                self.drain();
                let leases = self.core.view().leases_len() as u64;
                reply.send(Ok(Drained {
                    sessions: self.clients().count() as u64,
                    leases,
                }));
            }
        }
    }

    fn drain(&mut self) {
        if !self.draining {
            self.draining = true;
            self.note(LogEvent::of(EventKind::Drain));
            self.step(Event::Drain);
        }
    }

    fn apply_wishes(&mut self, models: &[ModelEntry]) {
        let own = |entry: &ModelEntry| Some((entry.name.clone(), entry.granularity?));
        self.granularities = models.iter().filter_map(own).collect();
        let works = models.iter().filter(|entry| entry.workspace_bytes > 0);
        self.workspaces = works
            .map(|entry| (entry.name.clone(), Bytes(entry.workspace_bytes)))
            .collect();
        let warm_on = |entry: &ModelEntry| (entry.name.clone(), entry.warm_on);
        self.warm_on = models.iter().map(warm_on).collect();
        let wishes_of = |entry: &ModelEntry| Wishes {
            pinned: entry.pin,
            eager: entry.eager,
        };
        let now: BTreeMap<ModelName, Wishes> = models
            .iter()
            .map(|entry| (entry.name.clone(), wishes_of(entry)))
            .collect();
        // Pins of the operator's verbs survive a reload of what the file says nothing new about.
        let taken_back = |name: &ModelName| match (self.configured.get(name), now.get(name)) {
            (Some(before), Some(after)) => before != after && *after == Wishes::default(),
            (Some(_), None) => true,
            (None, _) => false,
        };
        let gone: Vec<ModelId> = self
            .names
            .registered_models(Bound::Unbounded)
            .filter(|(name, _)| taken_back(name))
            .map(|(_, model)| model)
            .collect();
        for model in gone {
            self.step(Event::Configure {
                model,
                wishes: Wishes::default(),
            });
            self.forget_if_unknown(model);
        }
        let before = std::mem::replace(&mut self.configured, now);
        let news = models.iter().filter(|entry| {
            let wishes = wishes_of(entry);
            wishes != Wishes::default() && before.get(&entry.name) != Some(&wishes)
        });
        for entry in news {
            let model = self.names.registered(&entry.name);
            let wishes = wishes_of(entry);
            self.step(Event::Configure { model, wishes });
        }
        self.warm_pinned();
    }

    /// Loads what is pinned and not in memory, and looks whether it changed.
    fn warm_pinned(&mut self) {
        let pinned = |model| {
            self.core
                .view()
                .model(model)
                .is_some_and(|m| m.wishes.pinned)
        };
        let names: Vec<ModelName> = self
            .names
            .registered_models(Bound::Unbounded)
            .filter(|(_, model)| pinned(*model))
            .map(|(name, _)| name.clone())
            .collect();
        for name in names {
            self.warm_wished(name);
        }
    }

    fn replace_catalogue(&mut self, catalogue: Catalogue, host_budget_bytes: u64) {
        let before = std::mem::replace(&mut self.catalogue, Arc::new(catalogue));
        self.outdate_listing();
        self.note(LogEvent::of(EventKind::Reload));
        // A pin never lets go of what it still stands for; whether that changed is looked at next.
        let keeps = |(name, model): &(&ModelName, ModelId)| {
            let known = self.core.view().model(*model);
            known.is_some_and(|m| m.wishes.pinned) && before.agrees_on(name, &self.catalogue)
        };
        let models: Vec<ModelId> = self
            .names
            .registered_models(Bound::Unbounded)
            .filter(|known| !keeps(known))
            .map(|(_, model)| model)
            .chain(self.names.private_models())
            .collect();
        for model in models {
            self.step(Event::ModelChanged { model });
            self.forget_if_unknown(model);
        }
        self.step(Event::SetLimit {
            tier: Tier::Host,
            budget: Bytes(host_budget_bytes),
            limit: Bytes(host_budget_bytes),
        });
    }

    fn pin(&mut self, name: &ModelName, on: bool) -> Result<Pinned, ErrorReply> {
        if !self.is_registered(name) && self.catalogue.find(name).is_none() {
            return Err(self.not_found(name));
        }
        let model = self.names.registered(name);
        let wishes = self
            .core
            .view()
            .model(model)
            .map(|m| m.wishes)
            .unwrap_or_default();
        let changed = wishes.pinned != on;
        if changed {
            self.step(Event::Configure {
                model,
                wishes: Wishes {
                    pinned: on,
                    ..wishes
                },
            });
            let kind = if on {
                EventKind::Pinned
            } else {
                EventKind::Unpinned
            };
            self.note(LogEvent::of(kind).model(name.as_str()));
        }
        if on {
            self.warm_wished(name.clone());
        }
        self.forget_if_unknown(model);
        Ok(Pinned {
            name: name.as_str().to_owned(),
            pinned: on,
            changed,
        })
    }

    /// Loads a pinned model where the configuration wants it.
    fn warm_wished(&mut self, name: ModelName) {
        let on = self.warm_on.get(&name).copied().unwrap_or_default();
        if let Err(error) = self.wanted_on(on) {
            self.degraded.report(
                "warm_on",
                format!("`{name}` is pinned and not loaded: {}", error.message),
                "have its warm_on name a device that `mrm status` lists, or `best`",
            );
        }
        self.warm(name, on, WAIT_MS_MAX, None);
    }

    pub(super) fn warm(
        &mut self,
        name: ModelName,
        on: WarmOn,
        wait_ms: u64,
        reply: Option<ReplyTo<Warmed>>,
    ) {
        let wanted = match self.wanted_on(on) {
            Ok(wanted) => wanted,
            Err(error) => return tell_warmed(&name, reply, Err(error)),
        };
        let model = self.names.registered(&name);
        let label = Arc::from(name.as_str());
        let session = self.operator_session(Waiting::Warm { name, reply }, model, label);
        let deadline = self.now().after_ms(wait_ms.min(WAIT_MS_MAX));
        self.step(Event::Open {
            session,
            request: THE_REQUEST,
            model,
            wanted,
            deadline,
        });
        self.hasten(model, Urgency::Warm);
    }

    fn evict(&mut self, name: ModelName, from: Option<Place>, reply: ReplyTo<Evicted>) {
        let tier = match from.map(|place| self.tier_at(place)).transpose() {
            Ok(tier) => tier,
            Err(error) => return reply.send(Err(error)),
        };
        let Some(version) = self.version_named(&name) else {
            let known = self.is_registered(&name);
            let nothing = Evicted {
                name: name.as_str().to_owned(),
                freed_bytes: 0,
            };
            return reply.send(if known {
                Ok(nothing)
            } else {
                Err(self.not_found(&name))
            });
        };
        let model = self.names.registered(&name);
        let label = Arc::from(name.as_str());
        let session = self.operator_session(Waiting::Evict { name, reply }, model, label);
        self.step(Event::Evict {
            session,
            request: THE_REQUEST,
            version,
            tier,
        });
    }

    fn operator_session(&mut self, verb: Waiting, model: ModelId, label: Arc<str>) -> SessionId {
        let session = self.new_session();
        let began = Instant::now();
        let pending = Pending {
            model,
            label,
            began,
            progress: false,
            passed: false,
            known: None,
        };
        let pending = HashMap::from([(THE_REQUEST, pending)]);
        self.sessions.insert(
            session,
            Session {
                who: Who::Operator(Some(verb)),
                pending,
            },
        );
        self.step(Event::SessionOpened {
            session,
            tenant: Tenant(0),
        });
        session
    }

    /// The decider answered a verb: its session ends, and with it the lease that warming took.
    pub(super) fn answer_operator(
        &mut self,
        session: SessionId,
        waiting: Option<Waiting>,
        pending: Option<Pending>,
        answer: CoreReply,
    ) {
        self.sessions.remove(&session);
        self.followups.push_back(Event::SessionClosed { session });
        let (Some(waiting), Some(pending)) = (waiting, pending) else {
            return;
        };
        match waiting {
            Waiting::Warm { name, reply } => {
                let outcome = self.warmed(session, &name, &pending, answer);
                tell_warmed(&name, reply, outcome);
            }
            Waiting::Evict { name, reply } => {
                let outcome = if let CoreReply::Evicted { freed } = answer {
                    Ok(Evicted {
                        name: name.as_str().to_owned(),
                        freed_bytes: freed.0,
                    })
                } else {
                    Err(self.operator_error(answer, &pending))
                };
                reply.send(outcome);
            }
        }
        self.after_answer(&pending);
    }

    fn warmed(
        &mut self,
        session: SessionId,
        name: &ModelName,
        pending: &Pending,
        answer: CoreReply,
    ) -> Result<Warmed, ErrorReply> {
        let took = pending.began.elapsed();
        let CoreReply::Opened {
            version,
            tier,
            origin,
            ..
        } = answer
        else {
            let error = self.operator_error(answer, pending);
            self.record_refusal(session, pending, &error);
            return Err(error);
        };
        if let (Origin::Promoted, Tier::Device(device)) = (origin, tier) {
            self.metrics.device_promoted(&self.tier.name(device));
        }
        let took_us = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        self.record_open(session, pending, origin, took_us);
        let record = self.names.version_of(version);
        let parts = record.map_or(&[][..], |record| &record.parts);
        Ok(Warmed {
            name: name.as_str().to_owned(),
            tier: self.tier_word(tier),
            origin: match origin {
                Origin::Hit => OriginView::Hit,
                Origin::Loaded => OriginView::Loaded,
                Origin::Promoted => OriginView::Promoted,
                Origin::Joined => OriginView::Joined,
            },
            bytes: parts.iter().skip(1).map(|part| part.bytes).sum(),
            took_ms: took.as_secs_f64() * 1e3,
        })
    }

    fn operator_error(&self, answer: CoreReply, pending: &Pending) -> ErrorReply {
        let name = &*pending.label;
        match answer {
            CoreReply::Failed(fault) => error_of_fault(&fault),
            CoreReply::Refused(Refusal::NoImage) => self.no_image(pending),
            CoreReply::Refused(refusal) => self.error_of_refusal(&refusal, Some(name)),
            CoreReply::Opened { .. }
            | CoreReply::Closed
            | CoreReply::Resumed { .. }
            | CoreReply::Cancelled { .. }
            | CoreReply::Evicted { .. } => ErrorReply::new(
                ErrorCode::Internal,
                format!("`{name}`: an answer to another verb"),
            ),
        }
    }
}

/// Tells whoever asked for a model to be loaded; at the start, and after a reload, only the log.
fn tell_warmed(
    name: &ModelName,
    reply: Option<ReplyTo<Warmed>>,
    outcome: Result<Warmed, ErrorReply>,
) {
    match (reply, outcome) {
        (Some(reply), outcome) => reply.send(outcome),
        (None, Err(error)) => {
            tracing::warn!(%name, error = error.message, "a model that is to be in memory is not loaded");
        }
        (None, Ok(_)) => {}
    }
}
