//! Byte counts as people write them.

use std::fmt;
use std::str::FromStr;

/// An amount of memory: `1048576`, `"512MiB"`, `"8 GiB"` or `"50%"` of what may be used.
///
/// ```
/// use mrm_daemon::config::Size;
/// assert_eq!("8GiB".parse(), Ok(Size::Bytes(8 << 30)));
/// assert_eq!("50%".parse::<Size>()?.of(1 << 20), 1 << 19);
/// assert!("8 gigs".parse::<Size>().is_err());
/// # Ok::<(), mrm_daemon::config::SizeError>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Size {
    /// So many.
    Bytes(u64),
    /// A share of what this process may use, 1 to 100.
    Percent(u8),
}

/// Why a text is no size.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SizeError {
    /// It does not start with a digit.
    #[error("not a number of bytes")]
    NotNumber,
    /// What follows the number is no unit.
    #[error("{0:?} is no unit")]
    Unit(String),
    /// Over 2^64 bytes.
    #[error("too large for 64 bits")]
    TooLarge,
    /// A share outside 1 to 100.
    #[error("a share is from 1% to 100%")]
    Share,
}

const UNITS: [(&str, u64); 9] = [
    ("KiB", 1 << 10),
    ("MiB", 1 << 20),
    ("GiB", 1 << 30),
    ("TiB", 1 << 40),
    ("kB", 1_000),
    ("MB", 1_000_000),
    ("GB", 1_000_000_000),
    ("TB", 1_000_000_000_000),
    ("B", 1),
];

impl Size {
    /// The bytes this means where `usable_bytes` may be used.
    #[must_use]
    pub fn of(self, usable_bytes: u64) -> u64 {
        match self {
            Self::Bytes(bytes) => bytes,
            Self::Percent(share) => {
                let bytes = u128::from(usable_bytes) * u128::from(share) / 100;
                u64::try_from(bytes).unwrap_or(u64::MAX)
            }
        }
    }
}

impl FromStr for Size {
    type Err = SizeError;

    fn from_str(text: &str) -> Result<Self, SizeError> {
        let text = text.trim();
        let end = text
            .find(|c: char| !c.is_ascii_digit())
            .unwrap_or(text.len());
        let (digits, unit) = text.split_at(end);
        if digits.is_empty() {
            return Err(SizeError::NotNumber);
        }
        let number: u64 = digits.parse().map_err(|_| SizeError::TooLarge)?;
        match unit.trim_start() {
            "" => Ok(Self::Bytes(number)),
            "%" => match u8::try_from(number) {
                Ok(share @ 1..=100) => Ok(Self::Percent(share)),
                Ok(_) | Err(_) => Err(SizeError::Share),
            },
            unit => {
                let known = UNITS.iter().find(|(name, _)| *name == unit);
                let (_, bytes) = known.ok_or_else(|| SizeError::Unit(unit.to_owned()))?;
                number
                    .checked_mul(*bytes)
                    .map(Self::Bytes)
                    .ok_or(SizeError::TooLarge)
            }
        }
    }
}

impl fmt::Display for Size {
    /// The largest binary unit that loses nothing.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Percent(share) => write!(f, "{share}%"),
            Self::Bytes(bytes) => {
                let whole = |(_, unit): &&(&str, u64)| *bytes >= *unit && bytes % unit == 0;
                match UNITS[..4].iter().rev().find(whole) {
                    Some((name, unit)) => write!(f, "{}{name}", bytes / unit),
                    None => write!(f, "{bytes}B"),
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_people_write_is_read() {
        let cases = [
            ("0", 0),
            ("4096", 4096),
            ("4096B", 4096),
            ("512MiB", 512 << 20),
            (" 8 GiB ", 8 << 30),
            ("1TiB", 1 << 40),
            ("2GB", 2_000_000_000),
            ("18446744073709551615", u64::MAX),
        ];
        for (text, bytes) in cases {
            assert_eq!(text.parse(), Ok(Size::Bytes(bytes)), "{text:?}");
        }
    }

    #[test]
    fn what_is_no_size_says_why() {
        let unit = |text: &str| SizeError::Unit(text.to_owned());
        let cases = [
            ("", SizeError::NotNumber),
            ("GiB", SizeError::NotNumber),
            ("-1", SizeError::NotNumber),
            ("1.5GiB", unit(".5GiB")),
            ("8 gigs", unit("gigs")),
            ("8G", unit("G")),
            ("18446744073709551616", SizeError::TooLarge),
            ("99999999TiB", SizeError::TooLarge),
            ("0%", SizeError::Share),
            ("101%", SizeError::Share),
        ];
        for (text, why) in cases {
            assert_eq!(text.parse::<Size>(), Err(why), "{text:?}");
        }
    }

    #[test]
    fn shares_do_not_overflow_and_display_loses_nothing() {
        assert_eq!(Size::Percent(100).of(u64::MAX), u64::MAX);
        assert_eq!(Size::Percent(50).of(3), 1);
        for bytes in [0, 1, 1023, 1 << 10, 3 << 30, (1 << 40) + 1, u64::MAX] {
            let text = Size::Bytes(bytes).to_string();
            assert_eq!(text.parse(), Ok(Size::Bytes(bytes)), "{text}");
        }
    }
}
