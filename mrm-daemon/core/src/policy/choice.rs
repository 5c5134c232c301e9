//! A policy in settings: plain, comparable, and the same again from its text.

use super::{Cost, CremeBrulee, Fifo, Gc, Gdsf, Lfu, Lru, Mix, Policy, Random, S3Fifo, Sieve};
use std::fmt;
use std::str::FromStr;

/// Which rule, with its settings.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Rule {
    /// [`Lru`].
    Lru,
    /// [`Lfu`].
    Lfu,
    /// [`Fifo`].
    Fifo,
    /// [`Random`], with its seed.
    Random(u64),
    /// [`Gdsf`].
    Gdsf,
    /// [`Sieve`].
    Sieve,
    /// [`S3Fifo`].
    S3Fifo,
    /// [`CremeBrulee`].
    CremeBrulee(CremeBrulee),
    /// [`Gc`].
    Gc,
    /// [`Mix`].
    #[default]
    Mix,
}

/// How a tier is managed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Choice {
    /// What goes first.
    pub rule: Rule,
    /// On a device: opens that would do with the host get a model that was never used from there.
    /// Means nothing on the host tier.
    pub second_use: bool,
    /// Whether victims without which the rest suffices stay.
    pub give_back: bool,
    /// On a device: what is there goes first from host memory. Means nothing on the host tier.
    pub exclusive: bool,
}

impl Default for Choice {
    fn default() -> Self {
        Self::of(Rule::default())
    }
}

/// No policy has this name or these settings.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "no policy `{0}`: there are {names}, with settings as in `random,seed=7`, \
     `cremebrulee,beta=0.5,gamma=1,cost=increase,size=no` and `gc,second-use=yes`",
    names = NAMES.join(", ")
)]
pub struct UnknownPolicy(pub String);

/// What can be chosen.
const NAMES: [&str; 10] = [
    "lru",
    "lfu",
    "fifo",
    "random",
    "gdsf",
    "sieve",
    "s3-fifo",
    "cremebrulee",
    "gc",
    "mix",
];

impl Rule {
    /// The names of all rules.
    #[must_use]
    pub const fn names() -> &'static [&'static str] {
        &NAMES
    }

    fn named(name: &str) -> Option<Self> {
        Some(match name {
            "lru" => Self::Lru,
            "lfu" => Self::Lfu,
            "fifo" => Self::Fifo,
            "random" => Self::Random(0),
            "gdsf" => Self::Gdsf,
            "sieve" => Self::Sieve,
            "s3-fifo" => Self::S3Fifo,
            "cremebrulee" => Self::CremeBrulee(CremeBrulee::default()),
            "gc" => Self::Gc,
            "mix" => Self::Mix,
            _ => return None,
        })
    }
}

impl Choice {
    /// This rule, and nothing else.
    #[must_use]
    pub const fn of(rule: Rule) -> Self {
        Self {
            rule,
            second_use: false,
            give_back: true,
            exclusive: false,
        }
    }

    /// The policy, which has seen nothing yet.
    #[must_use]
    pub fn build(&self) -> Box<dyn Policy> {
        match self.rule {
            Rule::Lru => Box::new(Lru),
            Rule::Lfu => Box::new(Lfu),
            Rule::Fifo => Box::<Fifo>::default(),
            Rule::Random(seed) => Box::new(Random::new(seed)),
            Rule::Gdsf => Box::<Gdsf>::default(),
            Rule::Sieve => Box::<Sieve>::default(),
            Rule::S3Fifo => Box::<S3Fifo>::default(),
            Rule::CremeBrulee(weights) => Box::new(weights),
            Rule::Gc => Box::new(Gc),
            Rule::Mix => Box::<Mix>::default(),
        }
    }

    /// Takes one setting in; `None` if it has no such.
    fn set(&mut self, key: &str, value: &str) -> Option<()> {
        if key == "second-use" {
            self.second_use = yes(value)?;
            return Some(());
        }
        if key == "exclusive" {
            self.exclusive = yes(value)?;
            return Some(());
        }
        if key == "give-back" {
            self.give_back = yes(value)?;
            return Some(());
        }
        match &mut self.rule {
            Rule::Random(seed) if key == "seed" => *seed = value.parse().ok()?,
            Rule::CremeBrulee(weights) => match key {
                "beta" => weights.beta_thousandths = thousandths(value)?,
                "gamma" => weights.gamma_thousandths = thousandths(value)?,
                "cost" => {
                    weights.cost = match value {
                        "direct" => Cost::Direct,
                        "increase" => Cost::Increase,
                        _ => return None,
                    }
                }
                "size" => weights.use_size = yes(value)?,
                _ => return None,
            },
            Rule::Random(_)
            | Rule::Lru
            | Rule::Lfu
            | Rule::Fifo
            | Rule::Gdsf
            | Rule::Sieve
            | Rule::S3Fifo
            | Rule::Gc
            | Rule::Mix => return None,
        }
        Some(())
    }
}

fn yes(word: &str) -> Option<bool> {
    match word {
        "yes" => Some(true),
        "no" => Some(false),
        _ => None,
    }
}

const fn yes_or_no(is: bool) -> &'static str {
    if is { "yes" } else { "no" }
}

/// `1`, `0.5`, `0.125`: at most three digits after the point.
fn thousandths(word: &str) -> Option<u32> {
    let (whole, rest) = word.split_once('.').unwrap_or((word, "0"));
    let digits = |word: &str| !word.is_empty() && word.bytes().all(|byte| byte.is_ascii_digit());
    if !digits(whole) || !digits(rest) || rest.len() > 3 {
        return None;
    }
    let rest: u32 = format!("{rest:0<3}").parse().ok()?;
    whole
        .parse::<u32>()
        .ok()?
        .checked_mul(1000)?
        .checked_add(rest)
}

struct Thousandths(u32);

impl fmt::Display for Thousandths {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{:03}", self.0 / 1000, self.0 % 1000)
    }
}

impl fmt::Display for Choice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.rule {
            Rule::Lru => f.write_str("lru")?,
            Rule::Lfu => f.write_str("lfu")?,
            Rule::Fifo => f.write_str("fifo")?,
            Rule::Random(seed) => write!(f, "random,seed={seed}")?,
            Rule::Gdsf => f.write_str("gdsf")?,
            Rule::Sieve => f.write_str("sieve")?,
            Rule::S3Fifo => f.write_str("s3-fifo")?,
            Rule::CremeBrulee(weights) => write!(
                f,
                "cremebrulee,beta={},gamma={},cost={},size={}",
                Thousandths(weights.beta_thousandths),
                Thousandths(weights.gamma_thousandths),
                match weights.cost {
                    Cost::Direct => "direct",
                    Cost::Increase => "increase",
                },
                yes_or_no(weights.use_size),
            )?,
            Rule::Gc => f.write_str("gc")?,
            Rule::Mix => f.write_str("mix")?,
        }
        if self.second_use {
            f.write_str(",second-use=yes")?;
        }
        if !self.give_back {
            f.write_str(",give-back=no")?;
        }
        if self.exclusive {
            f.write_str(",exclusive=yes")?;
        }
        Ok(())
    }
}

impl FromStr for Choice {
    type Err = UnknownPolicy;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let unknown = || UnknownPolicy(text.to_owned());
        let mut words = text.split(',').map(str::trim);
        let name = words.next().unwrap_or_default();
        let mut choice = Self::of(Rule::named(name).ok_or_else(unknown)?);
        for word in words {
            let (key, value) = word.split_once('=').ok_or_else(unknown)?;
            choice.set(key.trim(), value.trim()).ok_or_else(unknown)?;
        }
        Ok(choice)
    }
}
