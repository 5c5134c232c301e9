//! What the operator asks, as in `shell/operator.rs` of the daemon.

use super::Daemon;
use super::sessions::{Pending, Session, Who};
use crate::breach::Checked;
use crate::env::Env;
use crate::settings::WAIT_MS_MAX;
use mrm_core::event::{Event, Wanted, Wishes};
use mrm_core::id::{Bytes, DeviceId, ModelId, RequestId, SessionId, Tenant};
use mrm_core::ledger::Tier;
use mrm_proto::error::ErrorCode;
use std::collections::BTreeMap;

/// The only request of an operator's session.
const THE_REQUEST: RequestId = RequestId(1);

impl Daemon {
    /// Loads a model.
    pub(crate) fn warm(&mut self, env: &mut Env, name: usize) -> Checked {
        let model = self.names.registered(name, None);
        let session = self.operator_session(env, model)?;
        let open = Event::Open {
            session,
            request: THE_REQUEST,
            model,
            wanted: Wanted::Host,
            deadline: env.time().after_ms(WAIT_MS_MAX),
        };
        self.step(env, open)?;
        self.finish(env)
    }

    /// Finds out that what a segment holds is not what was loaded; also of one that is on its way.
    pub(crate) fn damage(&mut self, env: &mut Env) -> Checked {
        let segments: Vec<_> = self.core.view().segments().map(|s| s.segment).collect();
        let Some(segment) = env.random.pick(&segments).copied() else {
            return Ok(());
        };
        let fault = super::fault(ErrorCode::Damaged, "it is not what was loaded");
        self.step(env, Event::Damaged { segment, fault })?;
        self.finish(env)
    }

    /// Drops a model, or its copy on one tier.
    pub(crate) fn evict(&mut self, env: &mut Env, name: usize) -> Checked {
        let model = self.names.find(name);
        let known = model.and_then(|model| self.core.view().model(model));
        let Some((model, version)) = known.and_then(|known| Some((known.model, known.version?)))
        else {
            return Ok(());
        };
        let tiers: Vec<Tier> = self.core.view().tiers().collect();
        let tier = env
            .random
            .pick(&tiers)
            .copied()
            .filter(|_| env.random.coin());
        let session = self.operator_session(env, model)?;
        let request = THE_REQUEST;
        self.step(
            env,
            Event::Evict {
                session,
                request,
                version,
                tier,
            },
        )?;
        self.finish(env)
    }

    /// Pins a model, or wishes it gone as soon as it can be, or neither.
    pub(crate) fn wish(&mut self, env: &mut Env, name: usize) -> Checked {
        let model = self.names.registered(name, None);
        let wishes = Wishes {
            pinned: env.random.below(3) == 0,
            eager: env.random.below(3) == 0,
        };
        self.step(env, Event::Configure { model, wishes })?;
        self.forget_if_unknown(model);
        if wishes.pinned {
            self.warm(env, name)?;
        }
        self.finish(env)
    }

    /// Says that a model will be opened soon.
    pub(crate) fn hint(&mut self, env: &mut Env, name: usize) -> Checked {
        let model = self.names.registered(name, None);
        let due = env.time().after_ms(env.random.below(2_000));
        self.step(env, Event::Hint { model, due })?;
        self.finish(env)
    }

    /// Other budgets.
    pub(crate) fn set_budget(&mut self, env: &mut Env, tier: Tier, budget: u64) -> Checked {
        if let Tier::Device(DeviceId(device)) = tier
            && let Some(own) = self.budgets.get_mut(usize::from(device))
        {
            *own = budget;
        }
        let (budget, limit) = (Bytes(budget), Bytes(budget));
        self.step(
            env,
            Event::SetLimit {
                tier,
                budget,
                limit,
            },
        )?;
        self.finish(env)
    }

    /// Another catalogue. What was resolved in the old one is resolved again when it is opened
    /// next, unless it is pinned and still there.
    pub(crate) fn reload(&mut self, env: &mut Env) -> Checked {
        for (name, model) in self.names.registered_models() {
            let known = self.core.view().model(model);
            let pinned = known.is_some_and(|known| known.wishes.pinned);
            if !(pinned && env.disk.is_registered(name)) {
                self.step(env, Event::ModelChanged { model })?;
                self.forget_if_unknown(model);
            }
        }
        self.finish(env)
    }

    fn operator_session(&mut self, env: &mut Env, model: ModelId) -> Checked<SessionId> {
        let session = self.new_session();
        let (progress, passed) = (false, false);
        let pending = Pending {
            model,
            progress,
            passed,
        };
        let who = Who::Operator;
        let pending = BTreeMap::from([(THE_REQUEST, pending)]);
        self.sessions.insert(session, Session { who, pending });
        let tenant = Tenant(0);
        self.step(env, Event::SessionOpened { session, tenant })?;
        Ok(session)
    }

    /// A verb was answered: its session ends, and with it the lease that warming took.
    pub(super) fn answer_operator(&mut self, session: SessionId, pending: Option<&Pending>) {
        self.sessions.remove(&session);
        self.followups.push_back(Event::SessionClosed { session });
        if let Some(pending) = pending {
            self.after_answer(pending);
        }
    }
}
