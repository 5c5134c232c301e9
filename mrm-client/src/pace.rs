//! When leases that are given back are told to the daemon: at once, or with what is said next.
//!
//! A process that opens and closes in quick succession would wake the daemon twice each time, and
//! a wake-up is most of what an open costs. While it does so, closes are held until its next
//! request carries them, or until the thread of [`watch`](crate::watch) looks, every [`TICK`].

use std::time::{Duration, Instant};

/// How long a close waits at most, and how often the thread looks while there are many.
pub(crate) const TICK: Duration = Duration::from_millis(5);
/// So many closes within [`WINDOW`] are many.
const MANY: u32 = 8;
const WINDOW: Duration = Duration::from_millis(20);
/// Looks that find nothing before closes are told at once again.
const IDLE_LOOKS_MAX: u32 = 20;

/// What is done with the next close.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Pace {
    /// It is told at once. `count` of them were since `from`.
    AtOnce { from: Option<Instant>, count: u32 },
    /// It is held. The last `idle` looks found none.
    Held { idle: u32 },
}

/// What to do with one close.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Telling {
    /// Tell it.
    Now,
    /// Keep it: the next request or the next look takes it along.
    Later,
    /// Tell it, and wake the thread, which looks from here on.
    NowAndLook,
}

impl Default for Pace {
    fn default() -> Self {
        let (from, count) = (None, 0);
        Self::AtOnce { from, count }
    }
}

impl Pace {
    /// A close, at `now`. `looked_after` is whether there is a thread that can look.
    pub(crate) fn close(&mut self, now: Instant, looked_after: bool) -> Telling {
        match *self {
            Self::Held { .. } => Telling::Later,
            Self::AtOnce { from, count } => {
                let from = from.filter(|from| now.duration_since(*from) < WINDOW);
                let count = if from.is_some() { count + 1 } else { 1 };
                if count >= MANY && looked_after {
                    *self = Self::Held { idle: 0 };
                    return Telling::NowAndLook;
                }
                *self = Self::AtOnce {
                    from: from.or(Some(now)),
                    count: count.min(MANY),
                };
                Telling::Now
            }
        }
    }

    /// The thread looks, and finds closes or none: when it must look again.
    pub(crate) fn look(&mut self, found: bool) -> Option<Duration> {
        match self {
            Self::AtOnce { .. } => None,
            Self::Held { idle } if found => {
                *idle = 0;
                Some(TICK)
            }
            Self::Held { idle } if *idle < IDLE_LOOKS_MAX => {
                *idle += 1;
                Some(TICK)
            }
            Self::Held { .. } => {
                *self = Self::default();
                None
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn closes_are_held_only_while_they_are_many_and_somebody_looks() {
        let start = Instant::now();
        let at = |ms: u64| start + Duration::from_millis(ms);
        let mut pace = Pace::default();
        // Few: one each 10 ms.
        assert!((0..50).all(|i| pace.close(at(i * 10), true) == Telling::Now));
        // Many, and nobody to look.
        assert!((0..50).all(|_| pace.close(at(600), false) == Telling::Now));
        assert_eq!(pace.close(at(601), true), Telling::NowAndLook);
        assert_eq!(pace.close(at(602), true), Telling::Later);
        assert_eq!(pace.look(true), Some(TICK));
        let looks = (0..100).take_while(|_| pace.look(false).is_some()).count();
        assert_eq!(looks, IDLE_LOOKS_MAX as usize);
        assert_eq!(pace.close(at(5000), true), Telling::Now);
        assert_eq!(pace.look(false), None);
    }
}
