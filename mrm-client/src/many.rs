//! Opening several models at once.

use crate::connection::{Connection, Patience, Ticket};
use crate::error::{OpenError, SessionError};
use crate::model::Model;
use crate::open::{GrantRequest, OpenOptions, Wish};
use crate::request::Replied;
use crate::retry::Retry;
use crate::state::State;
use mrm_proto::frame;
use mrm_proto::request::Request;
use std::sync::Arc;

/// Most opens in one message. Their grants bring two descriptors each at the least, and all of them
/// are open in this process before the first is mapped.
pub(crate) const TOGETHER_MAX: usize = 64;

/// What became of each name so far.
pub(crate) type Opened = Vec<Option<Result<Model, OpenError>>>;

impl State {
    /// Opens what is called so, in order: what is not open here is asked for together, and what
    /// fails for a reason that may pass, or did not fit in, is asked for again by itself.
    pub(crate) fn open_many(
        &self,
        names: &[&str],
        how: &OpenOptions<'_>,
    ) -> Vec<Result<Model, OpenError>> {
        let (mut opened, asks) = self.look_up(names, how);
        for chunk in asks.chunks(TOGETHER_MAX).filter(|chunk| chunk.len() > 1) {
            self.ask_together(chunk, how, &mut opened);
        }
        let each = names.iter().zip(opened);
        each.map(|(name, opened)| opened.unwrap_or_else(|| self.open(name, how)))
            .collect()
    }

    /// What is open here of these names, and what is to be asked for: each name once.
    pub(crate) fn look_up(
        &self,
        names: &[&str],
        how: &OpenOptions<'_>,
    ) -> (Opened, Vec<(usize, GrantRequest)>) {
        let mut opened: Opened = Vec::with_capacity(names.len());
        let mut asks: Vec<(usize, GrantRequest)> = Vec::new();
        for (at, name) in names.iter().enumerate() {
            let twice = asks.iter().any(|(_, ask)| ask.name() == *name);
            opened.push(match self.open_here(name, how) {
                Ok(Here::Open(model)) => Some(Ok(model)),
                Ok(Here::Ask(ask)) => {
                    if !twice {
                        asks.push((at, ask));
                    }
                    None
                }
                Err(why) => Some(Err(why)),
            });
        }
        (opened, asks)
    }

    fn open_here(&self, name: &str, how: &OpenOptions<'_>) -> Result<Here, OpenError> {
        let wish = Wish::of(how)?;
        let there = self.cached(name, &wish);
        if let Some(model) = there.filter(|model| model.serves(how)) {
            return Ok(Here::Open(model.for_asker(how)));
        }
        Ok(Here::Ask(self.ask_for(name, how, wish)?))
    }

    /// Enters what can be told after one message; the rest stays open.
    fn ask_together(
        &self,
        asks: &[(usize, GrantRequest)],
        how: &OpenOptions<'_>,
        opened: &mut Opened,
    ) {
        // Why there is no session is told to each that asks by itself.
        let Ok(connection) = self.link().connection() else {
            return;
        };
        let able = |(_, ask): &&(usize, GrantRequest)| ask.check(&connection).is_ok();
        let asks: Vec<_> = asks.iter().filter(able).collect();
        let Some((_, first)) = asks.first() else {
            return;
        };
        let wait = first.wait;
        let patience = Patience {
            reply: wait.saturating_add(self.link().options().reply_grace),
            progress: how.progress.as_deref(),
        };
        let requests: Vec<_> = asks
            .iter()
            .map(|(_, ask)| ask.to(&connection, wait))
            .collect();
        let replies = connection.open_together(&requests, &patience);
        for ((at, ask), replied) in asks.into_iter().zip(replies) {
            let Some(replied) = replied else { continue };
            let model = self.admit_one(&connection, ask, replied);
            opened[*at] = model.map(|model| model.map(|model| model.for_asker(how)));
        }
    }

    /// What became of one that was asked for together with others; `None` if it may be asked for again.
    pub(crate) fn admit_one(
        &self,
        connection: &Arc<Connection>,
        ask: &GrantRequest,
        replied: Result<Replied, SessionError>,
    ) -> Option<Result<Model, OpenError>> {
        let model = replied
            .map_err(OpenError::from)
            .and_then(|replied| self.admit(Arc::clone(connection), ask, replied));
        let mut retry = Retry::new(ask.wait, self.link().reconnects());
        match model {
            Ok(model) => Some(Ok(self.remember(model))),
            Err(why) if retry.after_open(&why).is_some() => None,
            Err(why) => Some(Err(why)),
        }
    }
}

impl Connection {
    /// Sends opens that carry no descriptors in one message; whether that could be sent. No ticket
    /// for those that did not fit in beside what others await.
    pub(crate) fn ask_together(
        &self,
        opens: &[Request],
    ) -> (Vec<Option<Ticket<'_>>>, Result<(), SessionError>) {
        let mut bytes = Vec::new();
        let ask = |open| {
            let mut ticket = self.try_register()?;
            frame::encode_into(&mut bytes, ticket.id, 0, open).ok()?;
            ticket.to_cancel = true;
            Some(ticket)
        };
        let tickets = opens.iter().map(ask).collect();
        (tickets, self.send_bytes(bytes, &[], true))
    }
}

/// Where a name stands before anybody is asked.
enum Here {
    Open(Model),
    Ask(GrantRequest),
}
