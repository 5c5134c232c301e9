//! What clients say will be opened soon.

use super::super::listing::Question;
use super::super::{State, Who};
use mrm_core::id::{SessionId, Time};
use mrm_proto::error::{ErrorCode, ErrorReply};
use mrm_proto::hello::features;
use mrm_proto::ids::RequestId;
use mrm_proto::limits::{HINT_MS_MAX, HINTS_PER_USER_MAX};
use mrm_proto::name::ModelName;
use mrm_proto::reply::{Hinted, Reply};
use mrm_proto::request::Hint;
use std::collections::{BTreeMap, HashMap};

/// For how long the decider waits for what does not come.
const LATE_MS: u64 = 60_000;

/// What each user has said that is still waited for, and until when it is.
#[derive(Default)]
pub(in super::super) struct Said(HashMap<u32, BTreeMap<ModelName, Time>>);

impl Said {
    /// Whether a user may say that one more comes.
    fn has_room(&mut self, (uid, model): (u32, &ModelName), now: Time) -> bool {
        self.0.retain(|_, said| {
            said.retain(|_, until| *until > now);
            !said.is_empty()
        });
        self.0
            .get(&uid)
            .is_none_or(|said| said.len() < HINTS_PER_USER_MAX || said.contains_key(model))
    }

    fn note(&mut self, uid: u32, model: ModelName, until: Time) {
        self.0.entry(uid).or_default().insert(model, until);
    }
}

impl State {
    /// A client says that a model will be opened. It is answered once it is known whether there is
    /// such a model.
    pub(in super::super) fn client_hints(
        &mut self,
        session: SessionId,
        request: RequestId,
        hint: Hint,
    ) -> Result<(), ErrorReply> {
        let client = self.sessions.get(&session).map(|record| &record.who);
        let Some(Who::Client { features, .. }) = client else {
            return Ok(());
        };
        let malformed = |message| Err(ErrorReply::new(ErrorCode::MalformedBody, message));
        if features & features::HINT == 0 {
            return malformed("Hint needs feature bit 7, which was not agreed on".to_owned());
        }
        if hint.in_ms > HINT_MS_MAX {
            let asked = hint.in_ms;
            return malformed(format!(
                "a hint of {asked} ms ahead: {HINT_MS_MAX} ms are as far as one may look"
            ));
        }
        if self.is_registered(&hint.model) {
            self.answer_hint(session, request, hint);
        } else {
            self.ask_listing(Question::Hint(session, request, hint));
        }
        Ok(())
    }

    /// Notes what a client said, if it may be noted.
    pub(in super::super) fn answer_hint(
        &mut self,
        session: SessionId,
        request: RequestId,
        hint: Hint,
    ) {
        // It may have gone meanwhile.
        if let Some(uid) = self.uid_of(session) {
            let reply = match self.take_hint(uid, hint) {
                Ok(()) => Reply::Hinted(Hinted {}),
                Err(error) => Reply::Error(error),
            };
            self.send(session, request, &reply);
        }
    }

    fn take_hint(&mut self, uid: u32, Hint { model, in_ms }: Hint) -> Result<(), ErrorReply> {
        // The disk is not asked for a client's sake: what was listed is what there is.
        if !self.is_registered(&model) {
            return Err(self.not_found(&model));
        }
        let now = self.now();
        if !self.reasons.said.has_room((uid, &model), now) {
            let message = format!(
                "{HINTS_PER_USER_MAX} models that this user said to come are still waited for: say \
                 the next once some of them came"
            );
            return Err(ErrorReply::new(ErrorCode::Exhausted, message));
        }
        self.hint(&model, in_ms)?;
        let until = now.after_ms(in_ms.saturating_add(LATE_MS));
        self.reasons.said.note(uid, model, until);
        Ok(())
    }
}
