//! Whether and when to ask again.

use crate::error::{ConnectError, Fault, OpenError, RequestError, SessionError};
use mrm_proto::error::ErrorCode;
use std::hash::{BuildHasher, Hasher};
use std::time::{Duration, Instant};

/// How often a request is sent again at once after its session broke.
pub(crate) const RESENDS_MAX: usize = 2;
/// The first pause.
const PAUSE_MIN: Duration = Duration::from_millis(10);
/// The longest pause while somebody waits.
const PAUSE_WAITING: Duration = Duration::from_millis(100);
/// The longest pause while nobody does.
const PAUSE_IDLE: Duration = Duration::from_secs(1);

/// Pauses that double up to a bound, each shortened by chance by up to a half, so that the clients
/// of a daemon do not come back all at once.
#[derive(Debug)]
pub(crate) struct Backoff {
    next: Duration,
    longest: Duration,
    chance: u64,
}

impl Backoff {
    fn new(longest: Duration, seed: u64) -> Self {
        Self {
            next: PAUSE_MIN,
            longest,
            chance: seed | 1,
        }
    }

    /// For a thread that nobody waits for.
    pub(crate) fn idle() -> Self {
        Self::new(PAUSE_IDLE, random_seed())
    }

    pub(crate) fn pause(&mut self) -> Duration {
        let whole = self.next.min(self.longest);
        self.next = whole.saturating_mul(2);
        // Xorshift: good enough to spread clients.
        self.chance ^= self.chance << 13;
        self.chance ^= self.chance >> 7;
        self.chance ^= self.chance << 17;
        let half = whole / 2;
        let span = u64::try_from(half.as_micros()).unwrap_or(u64::MAX);
        half + Duration::from_micros(self.chance % (span + 1))
    }
}

fn random_seed() -> u64 {
    std::hash::RandomState::new().build_hasher().finish()
}

/// What is left of the wait of one open, and of its patience with broken sessions.
#[derive(Debug)]
pub(crate) struct Retry {
    wait: Duration,
    /// Known from the first failure on.
    deadline: Instant,
    /// Whether to go on after the resends, until the wait is over.
    persists: bool,
    failures: usize,
    resends: usize,
    /// Made at the first failure: chance costs more than a hit may.
    backoff: Option<Backoff>,
}

/// What an error says about asking again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Again {
    /// At once: the session broke.
    Now,
    /// When a daemon is there that takes opens.
    Later,
    Never,
}

impl Retry {
    pub(crate) fn new(wait: Duration, persists: bool) -> Self {
        Self {
            wait,
            deadline: Instant::now() + wait,
            persists,
            failures: 0,
            resends: 0,
            backoff: None,
        }
    }

    /// What is left of the wait; all of it as long as nothing failed.
    pub(crate) fn left(&self) -> Duration {
        if self.failures == 0 {
            return self.wait;
        }
        self.deadline.saturating_duration_since(Instant::now())
    }

    /// How long to pause before asking again; `None` when `error` is final.
    pub(crate) fn after_open(&mut self, error: &OpenError) -> Option<Duration> {
        match error {
            OpenError::Request(error) => self.after(of_request(error)),
            OpenError::Segment { .. }
            | OpenError::Incomplete(_)
            | OpenError::Device(_)
            | OpenError::File { .. }
            | OpenError::NotAModel { .. } => None,
        }
    }

    /// The same of a connection.
    pub(crate) fn after_connect(&mut self, error: &ConnectError) -> Option<Duration> {
        self.after(of_connect(error))
    }

    fn after(&mut self, again: Again) -> Option<Duration> {
        self.failures += 1;
        match again {
            Again::Never => return None,
            Again::Now if self.resends < RESENDS_MAX => {
                self.resends += 1;
                return Some(Duration::ZERO);
            }
            Again::Now | Again::Later => {}
        }
        let left = self.left();
        let fresh = || Backoff::new(PAUSE_WAITING, random_seed());
        let backoff = self.backoff.get_or_insert_with(fresh);
        (self.persists && !left.is_zero()).then(|| backoff.pause().min(left))
    }
}

fn of_request(error: &RequestError) -> Again {
    match error {
        RequestError::BadName { .. } | RequestError::NoHints(_) => Again::Never,
        RequestError::Connect(error) => of_connect(error),
        RequestError::Session(SessionError::Disconnected) => Again::Now,
        RequestError::Session(SessionError::Ended(why)) if why.retryable() => Again::Later,
        RequestError::Refused(why) if why.number() == ErrorCode::Draining.number() => Again::Later,
        RequestError::Session(
            SessionError::Io(_)
            | SessionError::Ended(_)
            | SessionError::Frame(_)
            | SessionError::OutOfPlace(_)
            | SessionError::NotReading(_)
            | SessionError::TimedOut(_)
            | SessionError::Forked,
        )
        | RequestError::Refused(_) => Again::Never,
    }
}

fn of_connect(error: &ConnectError) -> Again {
    if error.retryable() {
        Again::Later
    } else {
        Again::Never
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Refusal;
    use mrm_proto::error::ErrorReply;

    #[test]
    fn pauses_double_up_to_the_bound_and_differ_by_seed() {
        let pauses = |seed| {
            let mut backoff = Backoff::new(PAUSE_IDLE, seed);
            (0..12).map(|_| backoff.pause()).collect::<Vec<_>>()
        };
        for seed in [0, 1, 4711, u64::MAX] {
            let mut whole = PAUSE_MIN;
            for pause in pauses(seed) {
                assert!(
                    whole / 2 <= pause && pause <= whole,
                    "{pause:?} of {whole:?}"
                );
                whole = (whole * 2).min(PAUSE_IDLE);
            }
        }
        assert_ne!(pauses(2), pauses(4));
    }

    #[test]
    fn what_is_final_is_not_asked_again_and_the_rest_within_the_wait() {
        let refused = |code| RequestError::Refused(Refusal(ErrorReply::new(code, "")));
        let ended = |code| SessionError::Ended(Refusal(ErrorReply::new(code, ""))).into();
        let path = std::path::PathBuf::new;
        let cases: [(RequestError, Again); 8] = [
            (refused(ErrorCode::Draining), Again::Later),
            (refused(ErrorCode::NoRoom), Again::Never),
            (ended(ErrorCode::TooSlow), Again::Never),
            (ended(ErrorCode::TooManySessions), Again::Later),
            (SessionError::Disconnected.into(), Again::Now),
            (SessionError::Forked.into(), Again::Never),
            (
                ConnectError::NoDaemon { tried: Vec::new() }.into(),
                Again::Later,
            ),
            (
                ConnectError::Io {
                    path: path(),
                    source: std::sync::Arc::new(std::io::Error::other("")),
                }
                .into(),
                Again::Never,
            ),
        ];
        for (error, again) in cases {
            assert_eq!(of_request(&error), again, "{error}");
            let error = OpenError::from(error);
            let mut over = Retry::new(Duration::ZERO, true);
            let now = (again == Again::Now).then_some(Duration::ZERO);
            assert_eq!(over.after_open(&error), now);
            let mut lazy = Retry::new(Duration::from_secs(3600), false);
            assert_eq!(lazy.after_open(&error), now);
            let mut persisting = Retry::new(Duration::from_secs(3600), true);
            for _ in 0..20 {
                let pause = persisting.after_open(&error);
                assert_eq!(pause.is_some(), again != Again::Never);
                assert!(pause.is_none_or(|pause| pause <= PAUSE_WAITING));
            }
        }
    }
}
