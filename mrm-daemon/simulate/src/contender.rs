//! What is compared: the daemon's policies, and those that know the future.
//!
//! ```
//! use mrm_simulate::contender::Contenders;
//! let all: Contenders = "lru,random,seed=7,belady".parse()?;
//! let names: Vec<&str> = all.all().iter().map(|one| one.label.as_str()).collect();
//! assert_eq!(names, ["lru", "random,seed=7", "belady"]);
//! # Ok::<(), mrm_simulate::contender::UnknownContender>(())
//! ```

use mrm_core::policy::{
    Belady, Choice, CremeBrulee, CremeBruleeOracle, Future, Policy, Rule, UnknownPolicy,
};
use std::str::FromStr;
use std::sync::Arc;

/// Nothing is called so.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}; in a simulation there are `belady` and `cremebrulee-oracle` besides")]
pub struct UnknownContender(#[from] UnknownPolicy);

/// How the memory is managed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Choice(Choice),
    /// As [`Belady`].
    Belady,
    /// As [`CremeBruleeOracle`].
    Oracle,
}

/// One way to manage the memory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Contender {
    /// As it was asked for.
    pub label: String,
    kind: Kind,
}

impl Contender {
    /// One of the daemon's policies.
    #[must_use]
    pub fn choice(choice: Choice) -> Self {
        Self {
            label: choice.to_string(),
            kind: Kind::Choice(choice),
        }
    }

    /// The least recently used first, as libraries have it: all that made the room go, also what
    /// turns out not to be needed. From it the gap to the oracle is measured.
    #[must_use]
    pub fn textbook_lru() -> Self {
        Self::choice(Choice {
            give_back: false,
            ..Choice::of(Rule::Lru)
        })
    }

    /// The best that is known for total load seconds, for one who knows the future.
    #[must_use]
    pub fn oracle() -> Self {
        Self {
            label: "cremebrulee-oracle".to_owned(),
            kind: Kind::Oracle,
        }
    }

    /// Whether it may prefetch: one who knows the future would load everything in time.
    #[must_use]
    pub const fn is_oracle(&self) -> bool {
        matches!(self.kind, Kind::Belady | Kind::Oracle)
    }

    /// What the decider is configured with.
    pub(crate) fn configured(&self) -> Choice {
        match self.kind {
            Kind::Choice(choice) => choice,
            Kind::Belady | Kind::Oracle => Choice::of(Rule::Lru),
        }
    }

    /// What is put in its place, of those that cannot be configured.
    pub(crate) fn installed(&self, future: &Arc<Future>) -> Option<Box<dyn Policy>> {
        let future = Arc::clone(future);
        match self.kind {
            Kind::Choice(_) => None,
            Kind::Belady => Some(Box::new(Belady::new(future))),
            Kind::Oracle => {
                let weights = CremeBrulee::default();
                Some(Box::new(CremeBruleeOracle::new(weights, future)))
            }
        }
    }
}

impl FromStr for Contender {
    type Err = UnknownContender;

    fn from_str(text: &str) -> Result<Self, UnknownContender> {
        let kind = match text.trim() {
            "belady" => Kind::Belady,
            "cremebrulee-oracle" => Kind::Oracle,
            other => Kind::Choice(other.parse()?),
        };
        Ok(Self {
            label: text.trim().to_owned(),
            kind,
        })
    }
}

/// Several.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Contenders(Vec<Contender>);

impl Contenders {
    /// All of them, in the order in which they were named.
    #[must_use]
    pub fn all(&self) -> &[Contender] {
        &self.0
    }

    /// The same, where `random` that was given no seed has this one.
    #[must_use]
    pub fn seeded(mut self, seed: u64) -> Self {
        for one in &mut self.0 {
            if let Kind::Choice(choice) = &mut one.kind
                && let Rule::Random(of) = &mut choice.rule
                && !one.label.contains("seed=")
            {
                *of = seed;
            }
        }
        self
    }
}

impl FromIterator<Contender> for Contenders {
    fn from_iter<T: IntoIterator<Item = Contender>>(all: T) -> Self {
        Self(all.into_iter().collect())
    }
}

impl FromStr for Contenders {
    type Err = UnknownContender;

    /// Names with commas between; a word with `=` is a setting of the name before it.
    fn from_str(text: &str) -> Result<Self, UnknownContender> {
        let mut names: Vec<String> = Vec::new();
        for word in text.split(',') {
            match names.last_mut() {
                Some(name) if word.contains('=') => {
                    name.push(',');
                    name.push_str(word);
                }
                Some(_) | None => names.push(word.to_owned()),
            }
        }
        names.iter().map(|name| name.parse()).collect()
    }
}
