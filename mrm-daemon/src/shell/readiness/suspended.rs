//! Users who get no grant before the last byte, for a while.
//!
//! Which of those who were lent a load early keeps its pages pinned cannot be known. So each of their
//! users pays, but only for a time: one who was merely there gets back what all others have, and one
//! who does it again is suspended for twice as long.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// How long the first time.
const FIRST: Duration = Duration::from_secs(600);
/// How long at most; who pinned nothing for so long begins anew.
const LONGEST: Duration = Duration::from_secs(24 * 3600);
/// Users that are remembered. Beyond that the one whose time is over first is forgotten.
const USERS_MAX: usize = 4096;

/// Who, until when.
#[derive(Debug, Default)]
pub(super) struct Suspended {
    users: BTreeMap<u32, Term>,
}

#[derive(Debug, Clone, Copy)]
struct Term {
    until: Instant,
    length: Duration,
}

impl Suspended {
    /// Whether `uid` waits for all of every model.
    pub(super) fn has(&self, uid: u32, now: Instant) -> bool {
        self.users.get(&uid).is_some_and(|term| now < term.until)
    }

    /// Suspends `uid`: how long.
    pub(super) fn suspend(&mut self, uid: u32, now: Instant) -> Duration {
        let before = self.users.get(&uid);
        let recent = before.filter(|term| now < term.until + LONGEST);
        let length = recent.map_or(FIRST, |term| LONGEST.min(2 * term.length));
        let until = now + length;
        self.users.insert(uid, Term { until, length });
        if self.users.len() > USERS_MAX {
            let first = self.users.iter().min_by_key(|(_, term)| term.until);
            if let Some((&first, _)) = first {
                self.users.remove(&first);
            }
        }
        length
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_does_it_again_waits_longer_and_who_stops_is_forgiven() {
        let start = Instant::now();
        let mut suspended = Suspended::default();
        assert!(!suspended.has(7, start));
        assert_eq!(suspended.suspend(7, start), FIRST);
        assert!(suspended.has(7, start + FIRST / 2));
        assert!(!suspended.has(8, start));
        let over = start + FIRST;
        assert!(!suspended.has(7, over));
        assert_eq!(suspended.suspend(7, over), 2 * FIRST);
        let mut now = over;
        for _ in 0..20 {
            now += suspended.suspend(7, now);
        }
        assert_eq!(suspended.suspend(7, now), LONGEST, "and no longer");
        let forgotten = now + 2 * LONGEST;
        assert_eq!(suspended.suspend(7, forgotten), FIRST);
    }

    #[test]
    fn there_are_not_more_of_them_than_a_number() {
        let start = Instant::now();
        let mut suspended = Suspended::default();
        for uid in 0..=u32::try_from(USERS_MAX).unwrap() {
            suspended.suspend(uid, start + Duration::from_secs(uid.into()));
        }
        assert_eq!(suspended.users.len(), USERS_MAX);
        assert!(!suspended.has(0, start), "the first is over first");
        assert!(suspended.has(1, start));
    }
}
