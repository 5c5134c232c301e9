//! What the simulation finds.

use mrm_core::violation::Violation;

/// Which promise was broken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Rule {
    /// The decider found its own books wrong, or refused what happened.
    Decider,
    /// Each effect is about something that is there, and ends once.
    Effects,
    /// Each request is answered exactly once, with an answer to what was asked, in time.
    Answers,
    /// A client reads what it opened, and that is what the model stood for then.
    Content,
    /// Nothing that is leased, or that another load is filled from, is dropped.
    Held,
    /// No charge passes a limit, and what is charged is what is there.
    Budget,
    /// What one user alone has on a device, no other is lent.
    Apart,
    /// Who did no wrong keeps its session.
    Session,
    /// Nothing is loaded ahead while somebody waits, or in place of what is worth more.
    Ahead,
    /// Once faults stop, everything comes to rest within a bound.
    Rest,
    /// Nothing is left when all is closed and evicted.
    Leak,
    /// A seed goes the same way each time.
    Repeat,
}

/// A broken promise.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{rule:?}: {what}")]
pub struct Breach {
    /// Which.
    pub rule: Rule,
    /// How.
    pub what: String,
}

/// The outcome of something that may find a breach.
pub(crate) type Checked<T = ()> = Result<T, Breach>;

/// Looks at a promise.
pub(crate) fn ensure(holds: bool, rule: Rule, what: impl FnOnce() -> String) -> Checked {
    if holds { Ok(()) } else { breach(rule, what()) }
}

/// Reports a broken promise.
pub(crate) fn breach<T>(rule: Rule, what: impl Into<String>) -> Checked<T> {
    let what = what.into();
    Err(Breach { rule, what })
}

impl From<Violation> for Breach {
    fn from(violation: Violation) -> Self {
        Self {
            rule: Rule::Decider,
            what: violation.to_string(),
        }
    }
}
