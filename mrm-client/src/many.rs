//! Opening several models at once.

use crate::connection::Patience;
use crate::error::OpenError;
use crate::model::Model;
use crate::open::{GrantRequest, OpenOptions, Wish};
use crate::retry::Retry;
use crate::state::State;
use std::sync::Arc;

/// Most opens in one message. Their grants bring two descriptors each at the least, and all of them
/// are open in this process before the first is mapped.
const TOGETHER_MAX: usize = 64;

/// What became of each name so far.
type Opened = Vec<Option<Result<Model, OpenError>>>;

impl State {
    /// Opens what is called so, in order: what is not open here is asked for together, and what
    /// fails for a reason that may pass, or did not fit in, is asked for again by itself.
    pub(crate) fn open_many(
        &self,
        names: &[&str],
        how: &OpenOptions<'_>,
    ) -> Vec<Result<Model, OpenError>> {
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
        for chunk in asks.chunks(TOGETHER_MAX).filter(|chunk| chunk.len() > 1) {
            self.ask_together(chunk, how, &mut opened);
        }
        let each = names.iter().zip(opened);
        each.map(|(name, opened)| opened.unwrap_or_else(|| self.open(name, how)))
            .collect()
    }

    fn open_here(&self, name: &str, how: &OpenOptions<'_>) -> Result<Here, OpenError> {
        let wish = Wish::of(how.tier)?;
        let there = self.cached(name, &wish);
        if let Some(model) = there.filter(|model| model.serves(how)) {
            return Ok(Here::Open(model.for_asker(how)));
        }
        Ok(Here::Ask(GrantRequest::by_name(name, how, wish)?))
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
            let model = replied
                .map_err(OpenError::from)
                .and_then(|replied| self.admit(Arc::clone(&connection), ask, replied));
            let mut retry = Retry::new(wait, self.link().reconnects());
            opened[*at] = match model {
                Ok(model) => Some(Ok(self.remember(model).for_asker(how))),
                Err(why) if retry.after_open(&why).is_some() => None,
                Err(why) => Some(Err(why)),
            };
        }
    }
}

/// Where a name stands before anybody is asked.
enum Here {
    Open(Model),
    Ask(GrantRequest),
}
