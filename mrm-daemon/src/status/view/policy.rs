//! What policies decided, and by what.

use serde::Serialize;
use std::collections::BTreeMap;
use std::fmt;

/// Why a model was evicted, or loaded before it was asked for.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct WhyView {
    /// The policy that decided: a rule's name, `prefetch` or `hint`.
    pub policy: String,
    /// Where: `host`, or the UUID of a device.
    pub tier: String,
    /// How much keeping it is worth, by the policy's own measure; for a load ahead, the seconds of
    /// loading that it is expected to save per second.
    pub worth: f64,
    /// What that is made of, by name with its unit.
    pub factors: BTreeMap<&'static str, f64>,
    /// What it was compared with; null if there was nothing.
    pub compared: Option<ComparedView>,
    /// How many could have gone; for a load ahead, how many go for it.
    pub candidates: u64,
}

/// The other side of a decision: of an eviction the least valuable that stays, of a load ahead all
/// that goes for it.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ComparedView {
    /// Which model, if it is one.
    pub model: Option<String>,
    /// How much it is worth, in the same measure.
    pub worth: f64,
}

impl WhyView {
    /// The same, said of a device.
    #[must_use]
    pub fn on(mut self, uuid: &str) -> Self {
        uuid.clone_into(&mut self.tier);
        self
    }
}

impl fmt::Display for WhyView {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} on {}: worth {}",
            self.policy,
            self.tier,
            short(self.worth)
        )?;
        let factors: Vec<String> = self
            .factors
            .iter()
            .map(|(name, value)| format!("{name} {}", short(*value)))
            .collect();
        if !factors.is_empty() {
            write!(f, " ({})", factors.join(", "))?;
        }
        match &self.compared {
            Some(ComparedView {
                model: Some(model),
                worth,
            }) => write!(f, ", and `{model}` {}", short(*worth))?,
            Some(ComparedView { model: None, worth }) if self.candidates > 0 => {
                write!(f, ", what goes for it {}", short(*worth))?;
            }
            Some(_) | None => {}
        }
        Ok(())
    }
}

/// Three digits that count, and no exponent where there need be none.
fn short(value: f64) -> String {
    let size = value.abs();
    if size == 0.0 || (100.0..1e15).contains(&size) {
        format!("{value:.0}")
    } else if (0.001..100.0).contains(&size) {
        let text = format!("{value:.3}");
        text.trim_end_matches('0').trim_end_matches('.').to_owned()
    } else {
        format!("{value:.2e}")
    }
}

/// How much a model is worth keeping on a tier.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct WorthView {
    /// Where: `host`, or the UUID of a device.
    pub tier: String,
    /// The policy there.
    pub policy: String,
    /// How much, by the policy's own measure.
    pub worth: f64,
    /// What that is made of, by name with its unit.
    pub factors: BTreeMap<&'static str, f64>,
    /// How many others would go first.
    pub rank: u64,
    /// How many there are to be compared, itself among them.
    pub candidates: u64,
}

/// `GET /v1/policy`, and the answer to a change of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct PoliciesView {
    /// The host first, then each device.
    pub tiers: Vec<TierPolicyView>,
    /// Loading before it is asked for.
    pub prefetch: PrefetchView,
}

/// The policy of a tier.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct TierPolicyView {
    /// `host`, or the UUID of a device.
    pub tier: String,
    /// What is in charge, with its settings.
    pub policy: String,
    /// What the configuration says.
    pub configured: String,
    /// Whether these differ.
    pub differs: bool,
}

/// Loading before it is asked for; counts are since the start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct PrefetchView {
    /// Whether what is likely to be used soon is loaded.
    pub enabled: bool,
    /// How much of the time that may take, in percent.
    pub share_percent: u8,
    /// Loads that were begun.
    pub started_total: u64,
    /// Of these, used before something of them was evicted.
    pub used_total: u64,
    /// Of these, evicted before they were used.
    pub wasted_total: u64,
    /// What could not be found or loaded.
    pub failed_total: u64,
    /// Models that are said to come.
    pub hints: u64,
}

/// `POST /v1/models/{name}/hint`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Hinted {
    /// The model.
    pub name: String,
    /// When it is said to come, in milliseconds from now.
    pub in_ms: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reason_is_told_in_one_line() {
        let why = WhyView {
            policy: "gdsf".into(),
            tier: "host".into(),
            worth: 0.5,
            factors: BTreeMap::from([("uses", 2.0), ("bytes", 4096.0), ("clock", 1.25e-9)]),
            compared: Some(ComparedView {
                model: Some("b".into()),
                worth: 5.0,
            }),
            candidates: 2,
        };
        assert_eq!(
            why.to_string(),
            "gdsf on host: worth 0.5 (bytes 4096, clock 1.25e-9, uses 2), and `b` 5"
        );
    }

    #[test]
    fn numbers_are_short() {
        for (value, text) in [
            (0.0, "0"),
            (-0.25, "-0.25"),
            (99.9996, "100"),
            (12_345.6, "12346"),
            (0.0001, "1.00e-4"),
            (f64::INFINITY, "inf"),
        ] {
            assert_eq!(short(value), text);
        }
    }
}
