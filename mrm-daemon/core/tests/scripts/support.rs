//! Scripts: events in, effects out, both as lines of text.
//!
//! ```text
//! at 100                         the time from here on, in microseconds
//! > session 1                    > gone 1
//! > open 1.7 m2 [by 500]         session 1, request 7, model 2, deadline
//! > close 1.8 l1   > close 1 l1  with and without an answer
//! > cancel 1.8 of 7
//! > evict 1.7 v2   > wish m2 pinned eager   > changed m2   > limit 10   > drain   > tick
//! > resolved op1 v1 a:4 b:2      sources are letters, charges are bytes
//! > resolved op1 fails 303       > loaded op2 c1   > loaded op2 fails 303   > freed op3
//! ```
//! The lines after an event are all of its effects, in order.

use mrm_core::effect::{Effect, Holder, Origin, Refusal, Reply};
use mrm_core::event::{Event, Fault, Resolution, SegmentFact, Wishes};
use mrm_core::id::*;
use mrm_core::violation::Violation;
use mrm_core::{Config, Core, invariants};
use std::fmt::Write;

/// A decider and the time.
pub(crate) struct Script {
    pub(crate) core: Core,
    pub(crate) now: Time,
}

/// Settings of most scripts: what a model stands for is believed for a thousand seconds.
pub(crate) fn config(limit: u64) -> Config {
    Config {
        revalidate_ms: 1_000_000,
        ..Config::with_limit(Bytes(limit))
    }
}

impl Script {
    pub(crate) fn new(config: Config) -> Self {
        Self {
            core: Core::new(config),
            now: Time(0),
        }
    }

    /// Runs a script; panics where the effects are not the expected ones.
    #[track_caller]
    pub(crate) fn run(&mut self, script: &str) -> &mut Self {
        let lines = || {
            script
                .lines()
                .map(str::trim)
                .filter(|line| !line.is_empty())
        };
        let expected: Vec<&str> = lines().collect();
        let mut actual = Vec::new();
        for line in lines() {
            if let Some(time) = line.strip_prefix("at ") {
                self.now = Time(time.parse().unwrap());
                actual.push(line.to_owned());
            } else if let Some(event) = line.strip_prefix("> ") {
                actual.push(line.to_owned());
                let mut effects = Vec::new();
                self.core
                    .handle(self.now, parse(event), &mut effects)
                    .unwrap();
                invariants::check(&self.core).unwrap();
                actual.extend(effects.iter().map(show));
            }
        }
        let actual: Vec<&str> = actual.iter().map(String::as_str).collect();
        assert_eq!(expected, actual, "\n--- is:\n{}\n", actual.join("\n"));
        self
    }

    /// The violation that one event makes.
    pub(crate) fn violation(&mut self, event: &str) -> Violation {
        self.core
            .handle(self.now, parse(event), &mut Vec::new())
            .unwrap_err()
    }
}

/// Runs one script against a fresh decider with this limit.
#[track_caller]
pub(crate) fn script(limit: u64, text: &str) -> Script {
    let mut script = Script::new(config(limit));
    script.run(text);
    script
}

fn number(word: &str, prefix: &str) -> u64 {
    let digits = word
        .strip_prefix(prefix)
        .unwrap_or_else(|| panic!("{prefix} before {word}"));
    digits
        .parse()
        .unwrap_or_else(|_| panic!("a number after {prefix} in {word}"))
}

fn key(word: &str) -> (SessionId, Option<RequestId>) {
    let (session, request) = match word.split_once('.') {
        Some((session, request)) => (session, Some(RequestId(number(request, "")))),
        None => (word, None),
    };
    (SessionId(number(session, "")), request)
}

fn source_of(word: &str) -> SourceId {
    SourceId(u64::from(word.bytes().next().unwrap() - b'a' + 1))
}

fn fault(words: &[&str]) -> Fault {
    Fault {
        code: words[1].parse().unwrap(),
        message: "told".into(),
    }
}

fn fact(word: &&str) -> SegmentFact {
    let (source, charge) = word.split_once(':').unwrap();
    SegmentFact {
        source: source_of(source),
        charge: Bytes(charge.parse().unwrap()),
    }
}

fn parse(line: &str) -> Event {
    let words: Vec<&str> = line.split_whitespace().collect();
    let model = |word: &str| ModelId(number(word, "m"));
    let op = |word: &str| OpId(number(word, "op"));
    match words.as_slice() {
        ["session", id] => Event::SessionOpened {
            session: SessionId(number(id, "")),
            tenant: Tenant(0),
        },
        ["gone", id] => Event::SessionClosed {
            session: SessionId(number(id, "")),
        },
        ["open", who, what, rest @ ..] => Event::Open {
            session: key(who).0,
            request: key(who).1.unwrap(),
            model: model(what),
            deadline: Time(rest.get(1).map_or(1 << 40, |deadline| number(deadline, ""))),
        },
        ["close", who, lease] => Event::Close {
            session: key(who).0,
            request: key(who).1,
            lease: LeaseId(number(lease, "l")),
        },
        ["cancel", who, "of", target] => Event::Cancel {
            session: key(who).0,
            request: key(who).1,
            target: RequestId(number(target, "")),
        },
        ["evict", who, what] => Event::Evict {
            session: key(who).0,
            request: key(who).1.unwrap(),
            version: VersionId(number(what, "v")),
        },
        ["wish", what, rest @ ..] => Event::Configure {
            model: model(what),
            wishes: Wishes {
                pinned: rest.contains(&"pinned"),
                eager: rest.contains(&"eager"),
            },
        },
        ["changed", what] => Event::ModelChanged { model: model(what) },
        ["limit", bytes] => Event::SetLimit {
            limit: Bytes(number(bytes, "")),
        },
        ["drain"] => Event::Drain,
        ["tick"] => Event::Tick,
        ["resolved", id, rest @ ..] if rest[0] == "fails" => Event::Resolved {
            op: op(id),
            outcome: Err(fault(rest)),
        },
        ["resolved", id, version, facts @ ..] => Event::Resolved {
            op: op(id),
            outcome: Ok(Resolution {
                version: VersionId(number(version, "v")),
                segments: facts.iter().map(fact).collect(),
            }),
        },
        ["loaded", id, rest @ ..] if rest[0] == "fails" => Event::Loaded {
            op: op(id),
            outcome: Err(fault(rest)),
        },
        ["loaded", id, content] => Event::Loaded {
            op: op(id),
            outcome: Ok(ContentId(number(content, "c"))),
        },
        ["freed", id] => Event::Freed { op: op(id) },
        _ => panic!("no such event: {line}"),
    }
}

/// One effect as text.
pub(crate) fn show(effect: &Effect) -> String {
    match effect {
        Effect::Resolve { op, model } => format!("resolve {op} m{}", model.0),
        Effect::Load {
            op,
            segment,
            source,
            version,
            charge,
        } => {
            let letter = char::from(b'a' + u8::try_from(source.0).unwrap() - 1);
            format!(
                "load {op} s{} {letter}:{} v{}",
                segment.0, charge.0, version.0
            )
        }
        Effect::Free { op, segment } => format!("free {op} s{}", segment.0),
        Effect::Reply {
            session,
            request,
            reply,
        } => {
            format!("{}.{} {}", session.0, request.0, show_reply(reply))
        }
        Effect::Forget { version } => format!("forget v{}", version.0),
    }
}

fn show_reply(reply: &Reply) -> String {
    match reply {
        Reply::Opened {
            lease,
            version,
            origin,
            segments,
        } => {
            let origin = match origin {
                Origin::Hit => "hit",
                Origin::Loaded => "loaded",
                Origin::Joined => "joined",
            };
            let segments: Vec<_> = segments.iter().map(|id| format!("s{}", id.0)).collect();
            format!(
                "opened l{} v{} {origin} [{}]",
                lease.0,
                version.0,
                segments.join(" ")
            )
        }
        Reply::Closed => "closed".to_owned(),
        Reply::Cancelled { was_pending } => format!("cancelled {was_pending}"),
        Reply::Evicted { freed } => format!("evicted {}", freed.0),
        Reply::Failed(fault) => format!("failed {}", fault.code),
        Reply::Refused(refusal) => format!("refused {}", show_refusal(refusal)),
    }
}

fn show_refusal(refusal: &Refusal) -> String {
    match refusal {
        Refusal::TooLarge { want, limit } => format!("too_large {} of {}", want.0, limit.0),
        Refusal::NoRoom {
            want,
            limit,
            charged,
            holders,
        } => {
            let mut text = format!("no_room {}, {} of {}:", want.0, charged.0, limit.0);
            for holder in holders {
                write!(text, " {}", show_holder(holder)).unwrap();
            }
            text
        }
        Refusal::TimedOut => "timed_out".to_owned(),
        Refusal::QueueFull { waiting } => format!("queue_full {waiting}"),
        Refusal::Draining => "draining".to_owned(),
        Refusal::TooManyLeases { held } => format!("too_many_leases {held}"),
        Refusal::UnknownLease => "unknown_lease".to_owned(),
        Refusal::Cancelled => "cancelled".to_owned(),
        Refusal::InUse(holder) => format!("in_use {}", show_holder(holder)),
    }
}

fn show_holder(holder: &Holder) -> String {
    let mut text = format!("v{}={}", holder.version.0, holder.charged.0);
    if holder.leases > 0 {
        write!(text, "+{}leases", holder.leases).unwrap();
    }
    for (is, word) in [(holder.pinned, "+pinned"), (holder.loading, "+loading")] {
        if is {
            text.push_str(word);
        }
    }
    text
}
