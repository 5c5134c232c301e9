//! How large the cache is: shares of all models, bytes, or a size for each tier.
//!
//! ```
//! use mrm_simulate::size::Sizes;
//! let sizes: Sizes = "5%..20%,64GiB".parse()?;
//! let labels: Vec<&str> = sizes.all().iter().map(|size| size.label.as_str()).collect();
//! assert_eq!(labels, ["5%", "10%", "15%", "20%", "64GiB"]);
//! assert_eq!(sizes.all()[1].host.of(1000), 100);
//! # Ok::<(), mrm_simulate::size::BadSize>(())
//! ```

use std::fmt;
use std::str::FromStr;

/// Shares that a range of shares goes through, percent.
const STEPS: [f64; 13] = [
    1.0, 2.0, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0, 75.0, 90.0, 100.0,
];
/// Steps of a range of bytes at most: each is twice the one before.
const DOUBLINGS_MAX: usize = 32;
/// Shares above this are a mistake.
const PERCENT_MAX: f64 = 1000.0;

/// As the daemon's configuration has them; the binary ones first, largest first.
const UNITS: [(&str, u64); 9] = [
    ("TiB", 1 << 40),
    ("GiB", 1 << 30),
    ("MiB", 1 << 20),
    ("KiB", 1 << 10),
    ("TB", 1_000_000_000_000),
    ("GB", 1_000_000_000),
    ("MB", 1_000_000),
    ("kB", 1_000),
    ("B", 1),
];

/// A text names no size.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0}: write shares of all models or bytes, as in `5%..75%`, `10%,20%` or `64GiB`; \
     for tiers `device=80GiB,host=50%`"
)]
pub struct BadSize(String);

/// A size by itself.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Extent {
    /// So many bytes.
    Bytes(u64),
    /// So many percent of the bytes of all models in the trace.
    Percent(f64),
}

impl Extent {
    /// The bytes this means for models of so many bytes together.
    #[must_use]
    pub fn of(self, all_bytes: u64) -> u64 {
        match self {
            Self::Bytes(bytes) => bytes,
            // Whole bytes below 2^53: nothing is lost by the way.
            Self::Percent(percent) => (all_bytes as f64 / 100.0 * percent).floor() as u64,
        }
    }
}

impl fmt::Display for Extent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Bytes(bytes) => {
                let whole = |(_, unit): &&(&str, u64)| *bytes >= *unit && bytes % unit == 0;
                match UNITS[..4].iter().find(whole) {
                    Some((name, unit)) => write!(f, "{}{name}", bytes / unit),
                    None => write!(f, "{bytes}B"),
                }
            }
            Self::Percent(percent) => write!(f, "{percent}%"),
        }
    }
}

impl FromStr for Extent {
    type Err = BadSize;

    fn from_str(text: &str) -> Result<Self, BadSize> {
        let text = text.trim();
        let bad = |why: &str| BadSize(format!("`{text}` {why}"));
        if let Some(number) = text.strip_suffix('%') {
            let percent: f64 = number.trim().parse().map_err(|_| bad("is no share"))?;
            if !(percent > 0.0 && percent <= PERCENT_MAX) {
                return Err(bad("is no share from above 0% to 1000%"));
            }
            return Ok(Self::Percent(percent));
        }
        let digits = text.trim_end_matches(|c: char| !c.is_ascii_digit());
        let unit = text.get(digits.len()..).unwrap_or_default().trim();
        let of_unit = UNITS.iter().find(|(name, _)| *name == unit);
        let unit = match unit {
            "" => 1,
            _ => of_unit.ok_or_else(|| bad("has no such unit"))?.1,
        };
        let number: u64 = digits.parse().map_err(|_| bad("is no size"))?;
        match number.checked_mul(unit) {
            None => Err(bad("is more than there are numbers for")),
            Some(0) => Err(bad("is nothing")),
            Some(bytes) => Ok(Self::Bytes(bytes)),
        }
    }
}

/// The memory of one run.
#[derive(Debug, Clone, PartialEq)]
pub struct MemorySize {
    /// As it was asked for.
    pub label: String,
    /// Host memory.
    pub host: Extent,
    /// The memory of a device, where there is one: then requests want their models there.
    pub device: Option<Extent>,
}

/// The memories that are tried, at least one.
#[derive(Debug, Clone, PartialEq)]
pub struct Sizes(Vec<MemorySize>);

impl Sizes {
    /// All of them, in the order in which they were named.
    #[must_use]
    pub fn all(&self) -> &[MemorySize] {
        &self.0
    }

    /// Host memory of these sizes.
    #[must_use]
    pub fn host(extents: impl IntoIterator<Item = Extent>) -> Self {
        let size = |host: Extent| MemorySize {
            label: host.to_string(),
            host,
            device: None,
        };
        Self(extents.into_iter().map(size).collect())
    }

    /// One memory of two tiers, from `device=SIZE,host=SIZE`. No host memory is `host=0`.
    ///
    /// # Errors
    /// When a word is not one of these.
    pub fn tiers(text: &str) -> Result<Self, BadSize> {
        let (mut host, mut device) = (None, None);
        for word in text.split(',') {
            let bad = || BadSize(format!("`{word}` is no tier with its size"));
            let (tier, size) = word.split_once('=').ok_or_else(bad)?;
            let slot = match tier.trim() {
                "host" => &mut host,
                "device" => &mut device,
                _ => return Err(bad()),
            };
            let size = match size.trim() {
                "0" if tier.trim() == "host" => Extent::Bytes(0),
                size => size.parse()?,
            };
            if slot.replace(size).is_some() {
                return Err(BadSize(format!("`{tier}` comes twice")));
            }
        }
        let host = host.ok_or_else(|| BadSize(format!("`{text}` has no host")))?;
        Ok(Self(vec![MemorySize {
            label: text.trim().to_owned(),
            host,
            device,
        }]))
    }
}

impl FromStr for Sizes {
    type Err = BadSize;

    fn from_str(text: &str) -> Result<Self, BadSize> {
        let mut extents: Vec<Extent> = Vec::new();
        for word in text.split(',') {
            let new = match word.split_once("..") {
                Some((from, to)) => range(from.parse()?, to.parse()?)
                    .ok_or_else(|| BadSize(format!("`{word}` is no range")))?,
                None => vec![word.parse()?],
            };
            for extent in new {
                if !extents.contains(&extent) {
                    extents.push(extent);
                }
            }
        }
        Ok(Self::host(extents))
    }
}

/// Both ends, and round numbers between.
fn range(from: Extent, to: Extent) -> Option<Vec<Extent>> {
    match (from, to) {
        (Extent::Percent(from), Extent::Percent(to)) if from <= to => {
            let between = STEPS.into_iter().filter(|step| *step > from && *step < to);
            let mut all: Vec<f64> = std::iter::once(from).chain(between).collect();
            if to > from {
                all.push(to);
            }
            Some(all.into_iter().map(Extent::Percent).collect())
        }
        (Extent::Bytes(from), Extent::Bytes(to)) if from <= to => {
            let doubled = std::iter::successors(Some(from), |bytes| bytes.checked_mul(2));
            let below = doubled.take_while(|bytes| *bytes < to).take(DOUBLINGS_MAX);
            let all = below.chain(std::iter::once(to));
            Some(all.map(Extent::Bytes).collect())
        }
        (Extent::Percent(_) | Extent::Bytes(_), _) => None,
    }
}

#[cfg(test)]
#[allow(clippy::expect_used, clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    fn labels(text: &str) -> Vec<String> {
        let sizes: Sizes = text.parse().unwrap();
        sizes.all().iter().map(|size| size.label.clone()).collect()
    }

    #[test]
    fn ranges_have_both_ends_and_round_steps() {
        assert_eq!(labels("5%..30%"), ["5%", "10%", "15%", "20%", "30%"]);
        assert_eq!(labels("7%..7%"), ["7%"]);
        assert_eq!(labels("10%,5%..12.5%"), ["10%", "5%", "12.5%"]);
        assert_eq!(labels("1GiB..5GiB"), ["1GiB", "2GiB", "4GiB", "5GiB"]);
    }

    #[test]
    fn what_is_no_size_is_refused_with_the_way_to_write_it() {
        for bad in [
            "", "0%", "-5%", "1001%", "nan%", "30%..5%", "5%..1GiB", "x", "0", "5%..",
        ] {
            let error = bad.parse::<Sizes>().unwrap_err().to_string();
            assert!(error.contains("`5%..75%`"), "{bad}: {error}");
        }
    }

    #[test]
    fn tiers_have_names() {
        let sizes = Sizes::tiers("device=80GiB,host=50%").unwrap();
        assert_eq!(sizes.all()[0].device, Some(Extent::Bytes(80 << 30)));
        assert_eq!(sizes.all()[0].host, Extent::Percent(50.0));
        assert!(Sizes::tiers("device=1GiB,host=0").is_ok());
        for bad in [
            "device=1GiB",
            "host=1,host=2",
            "gpu=1GiB,host=1",
            "host",
            "device=0,host=1",
        ] {
            assert!(Sizes::tiers(bad).is_err(), "{bad}");
        }
    }
}
