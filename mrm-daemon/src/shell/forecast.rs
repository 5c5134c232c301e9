//! What a load will take, learnt from those before.

/// Loads up to this tell what a load takes beside its bytes.
const SMALL_BYTES: u64 = 1 << 20;
/// Loads from here on tell how fast bytes come.
const LARGE_BYTES: u64 = 16 << 20;
/// How much the newest load counts against all before it.
const NEWEST: f64 = 0.3;
/// A load that has come so far tells its own rate better than those before: its file may be in the
/// page cache when theirs were not.
const TELLS_BYTES: u64 = 32 << 20;

/// What loads take: a fixed part, and so much a byte.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Forecast {
    fixed_us: f64,
    us_per_byte: f64,
}

/// A load that is under way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Underway {
    pub(super) bytes: u64,
    pub(super) loaded_bytes: u64,
    /// Since it was asked for.
    pub(super) elapsed_us: u64,
}

impl Default for Forecast {
    /// A millisecond, and 1 GB/s, until something was loaded.
    fn default() -> Self {
        Self {
            fixed_us: 1_000.0,
            us_per_byte: 1e-3,
        }
    }
}

#[expect(
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "estimates"
)]
impl Forecast {
    /// How long a load of `bytes` will take from now, in microseconds, beside loads that lack so
    /// many bytes each. All read in turns, so that of a longer one only as much is read meanwhile.
    pub(super) fn predict(&self, bytes: u64, others: impl Iterator<Item = u64>) -> u64 {
        let ahead: f64 = others.map(|lacks| lacks.min(bytes) as f64).sum();
        (self.fixed_us + (bytes as f64 + ahead) * self.us_per_byte) as u64
    }

    /// How long a load that is under way will take from now, in microseconds.
    pub(super) fn left(&self, load: Underway, others: impl Iterator<Item = u64>) -> u64 {
        let lacks = load.bytes.saturating_sub(load.loaded_bytes);
        if load.loaded_bytes >= TELLS_BYTES.min(load.bytes / 8).max(1) && load.elapsed_us > 0 {
            return (load.elapsed_us as f64 / load.loaded_bytes as f64 * lacks as f64) as u64;
        }
        let predicted = self.predict(lacks, others);
        // Nothing of it is there yet: some of what comes before its bytes is done.
        let passed = load.elapsed_us.min(self.fixed_us as u64);
        predicted.saturating_sub(passed)
    }

    /// A load that ran alone ended.
    pub(super) fn learn(&mut self, bytes: u64, took_us: u64) {
        let took = took_us as f64;
        if bytes <= SMALL_BYTES {
            self.fixed_us += NEWEST * (took - self.fixed_us);
        } else if bytes >= LARGE_BYTES {
            let rate = (took - self.fixed_us).max(1.0) / bytes as f64;
            self.us_per_byte += NEWEST * (rate - self.us_per_byte);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MB: u64 = 1_000_000;

    fn fresh(bytes: u64) -> Underway {
        Underway {
            bytes,
            loaded_bytes: 0,
            elapsed_us: 0,
        }
    }

    #[test]
    fn bytes_over_bandwidth_and_a_fixed_part() {
        let forecast = Forecast::default();
        assert_eq!(forecast.predict(0, [].into_iter()), 1_000);
        assert_eq!(forecast.predict(100 * MB, [].into_iter()), 101_000);
        // Of a longer one as much is read meanwhile, of a shorter one all.
        let others = [4_000 * MB, 10 * MB].into_iter();
        assert_eq!(forecast.predict(100 * MB, others), 211_000);
    }

    #[test]
    fn it_comes_near_to_what_loads_take() {
        let mut forecast = Forecast::default();
        for _ in 0..40 {
            forecast.learn(1000, 200);
            forecast.learn(1_000 * MB, 250_200);
        }
        let of = |bytes| forecast.predict(bytes, [].into_iter());
        assert!((190..=220).contains(&of(0)), "{}", of(0));
        let large = of(100 * MB);
        assert!((25_000..26_500).contains(&large), "{large}");
        // What is between small and large says nothing about either.
        let before = forecast.clone();
        forecast.learn(5 * MB, 7);
        assert_eq!(forecast, before);
    }

    #[test]
    fn a_load_that_has_come_some_way_tells_by_itself() {
        let forecast = Forecast::default();
        let load = Underway {
            loaded_bytes: 200 * MB,
            elapsed_us: 20_000,
            ..fresh(1_000 * MB)
        };
        assert_eq!(forecast.left(load, [5_000 * MB].into_iter()), 80_000);
        let early = Underway {
            elapsed_us: 400,
            ..fresh(MB)
        };
        assert_eq!(forecast.left(early, [].into_iter()), 1_600);
        let done = Underway {
            loaded_bytes: MB,
            elapsed_us: 9,
            ..fresh(MB)
        };
        assert_eq!(forecast.left(done, [].into_iter()), 0);
    }
}
