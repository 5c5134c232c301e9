//! Numbers for people: bytes, times, shares.

/// `91.0 MiB`, `4.2 GiB`, `512 B`.
pub(crate) fn bytes(count: u64) -> String {
    const UNITS: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    if count < 1024 {
        return format!("{count} B");
    }
    // A float is exact enough: one decimal is printed.
    #[expect(clippy::cast_precision_loss, reason = "one decimal is printed")]
    let mut value = count as f64 / 1024.0;
    let mut unit = 0;
    while value >= 1023.95 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    format!("{value:.1} {}", UNITS[unit])
}

/// A length of time: `320 us`, `12.3 ms`, `1.24 s`, `3 min`, `2 h 5 min`, `4 d 1 h`.
pub(crate) fn seconds(seconds: f64) -> String {
    if !seconds.is_finite() || seconds < 0.0 {
        return "?".into();
    }
    if seconds < 0.000_999_5 {
        return format!("{:.0} us", seconds * 1e6);
    }
    if seconds < 0.999_5 {
        return format!("{:.1} ms", seconds * 1e3);
    }
    if seconds < 59.95 {
        return if seconds < 9.995 {
            format!("{seconds:.2} s")
        } else {
            format!("{seconds:.1} s")
        };
    }
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "checked above"
    )]
    let whole = seconds.round() as u64;
    let (days, hours, minutes) = (whole / 86_400, whole / 3600 % 24, whole / 60 % 60);
    match (days, hours, minutes) {
        (0, 0, minutes) => format!("{minutes} min"),
        (0, hours, 0) => format!("{hours} h"),
        (0, hours, minutes) => format!("{hours} h {minutes} min"),
        (days, 0, _) => format!("{days} d"),
        (days, hours, _) => format!("{days} d {hours} h"),
    }
}

/// How long ago: whole seconds, because nobody reads the fraction.
pub(crate) fn ago(seconds_ago: f64) -> String {
    if seconds_ago < 1.0 {
        return "now".into();
    }
    if seconds_ago < 59.5 {
        return format!("{seconds_ago:.0} s ago");
    }
    format!("{} ago", seconds(seconds_ago))
}

/// A share in whole percent: never 0 % of something, never 100 % of less than all.
pub(crate) fn percent(part: u64, whole: u64) -> String {
    if whole == 0 {
        return "-".into();
    }
    let percent = u128::from(part) * 100 / u128::from(whole);
    match percent {
        0 if part > 0 => "<1 %".into(),
        _ => format!("{percent} %"),
    }
}

/// Unix milliseconds as `2026-11-22 05:44:55.123Z`.
pub(crate) fn utc(time_ms: u64) -> String {
    let (days, ms) = (time_ms / 86_400_000, time_ms % 86_400_000);
    let (year, month, day) = civil_date(days);
    let (hour, minute, second) = (ms / 3_600_000, ms / 60_000 % 60, ms / 1000 % 60);
    format!(
        "{year:04}-{month:02}-{day:02} {hour:02}:{minute:02}:{second:02}.{:03}Z",
        ms % 1000
    )
}

/// The Gregorian date of a day counted from 1 January 1970.
fn civil_date(mut days: u64) -> (u64, u64, u64) {
    const DAYS_PER_ERA: u64 = 146_097;
    let mut year = 1970 + days / DAYS_PER_ERA * 400;
    days %= DAYS_PER_ERA;
    loop {
        let leap =
            year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400));
        let in_year = if leap { 366 } else { 365 };
        if days < in_year {
            let february = if leap { 29 } else { 28 };
            let mut month = 1;
            for length in [31, february, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31] {
                if days < length {
                    break;
                }
                days -= length;
                month += 1;
            }
            return (year, month, days + 1);
        }
        days -= in_year;
        year += 1;
    }
}

/// `1 lease`, `2 leases`.
pub(crate) fn count(number: u64, singular: &str) -> String {
    if number == 1 {
        format!("1 {singular}")
    } else {
        format!("{number} {singular}s")
    }
}

/// A number of any size: three digits that count. What is without end has no number in JSON.
pub(crate) fn number(value: Option<f64>) -> String {
    let Some(value) = value else {
        return "inf".to_owned();
    };
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

/// Reads `512MiB`, `2GiB`, `1TiB`, `4KiB`, or a bare number of bytes.
pub(crate) fn parse_bytes(text: &str) -> Result<u64, String> {
    let end = text
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(text.len());
    let (digits, unit) = text.split_at(end);
    let bad = || format!("`{text}` is not an amount of memory: write 512MiB or 2GiB");
    let number: u64 = digits.parse().map_err(|_| bad())?;
    let power = match unit.trim_start() {
        "" | "B" => 0,
        "KiB" => 1,
        "MiB" => 2,
        "GiB" => 3,
        "TiB" => 4,
        _ => return Err(bad()),
    };
    number.checked_mul(1 << (10 * power)).ok_or_else(bad)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn amounts_are_read_with_their_unit_or_without() {
        for (text, bytes) in [
            ("7", 7),
            ("4KiB", 4096),
            ("2 GiB", 2 << 30),
            ("1TiB", 1 << 40),
        ] {
            assert_eq!(parse_bytes(text), Ok(bytes), "{text}");
        }
        for bad in ["", "GiB", "-1", "1.5GiB", "1GB", "99999999TiB"] {
            assert!(parse_bytes(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn bytes_have_one_decimal_and_never_a_thousand() {
        for (count, text) in [
            (0, "0 B"),
            (1023, "1023 B"),
            (1024, "1.0 KiB"),
            (1024 * 1024 - 1, "1.0 MiB"),
            (90_868_376, "86.7 MiB"),
            (12 << 30, "12.0 GiB"),
            (u64::MAX, "16.0 EiB"),
        ] {
            assert_eq!(bytes(count), text);
        }
    }

    #[test]
    fn times_use_the_unit_that_fits() {
        for (value, text) in [
            (0.0, "0 us"),
            (0.000_32, "320 us"),
            (0.012_34, "12.3 ms"),
            (0.9999, "1.00 s"),
            (1.238, "1.24 s"),
            (42.0, "42.0 s"),
            (60.0, "1 min"),
            (7200.0, "2 h"),
            (7500.0, "2 h 5 min"),
            (350_000.0, "4 d 1 h"),
            (f64::NAN, "?"),
        ] {
            assert_eq!(seconds(value), text);
        }
        assert_eq!(ago(0.2), "now");
        assert_eq!(ago(3.0), "3 s ago");
        assert_eq!(ago(120.0), "2 min ago");
    }

    #[test]
    fn shares_do_not_round_to_none_or_all() {
        assert_eq!(percent(0, 10), "0 %");
        assert_eq!(percent(1, 1000), "<1 %");
        assert_eq!(percent(999, 1000), "99 %");
        assert_eq!(percent(u64::MAX, u64::MAX), "100 %");
        assert_eq!(percent(1, 0), "-");
    }

    #[test]
    fn dates_know_leap_years() {
        assert_eq!(utc(0), "1970-01-01 00:00:00.000Z");
        assert_eq!(utc(951_782_400_000), "2000-02-29 00:00:00.000Z");
        assert_eq!(utc(1_798_761_599_999), "2026-12-31 23:59:59.999Z");
        assert_eq!(utc(4_107_542_400_000), "2100-03-01 00:00:00.000Z");
    }
}
