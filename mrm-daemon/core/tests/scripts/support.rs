//! Scripts: events in, effects out, both as lines of text.
//!
//! ```text
//! at 100                         the time from here on, in microseconds
//! > session 1 [of 7]             > gone 1          of tenant 7
//! > open 1.7 m2 [on WHERE] [keep 3] [by 500]   session 1, request 7, model 2, what is to stay
//!                                free on the device, deadline
//!                                WHERE: host, layout, d0, d0,d1, best:d0, best:d0,d1, best:
//! > close 1.8 l1   > close 1 l1  with and without an answer
//! > cancel 1.8 of 7
//! > evict 1.7 v2 [on d0]   > wish m2 pinned eager   > changed m2   > drain   > tick
//! > limit 10   > limit d0 10 [of 20]   > lost d0   > damaged s2   > policy d0 gc,second-use=yes
//! > prefetch 20                  loading ahead, for so many percent of the time; 0 is off
//! > hint m1 5000                 m1 is said to come at that time
//! > adopt m1 v1 a=1 i@5 has a/c1 i.d0/c2 until 9   the last daemon's; `-` for no model
//! > resume 1.7 v1 v1.d0 v1.d0/3  leases of the last daemon, the last of which kept 3 free
//! > resolved op1 v1 a:4 b:2      sources are letters, charges are bytes
//! > resolved op1 v1 t=1 a:4 i@4/2     = is a table, @ an image, / its pieces
//! > resolved op1 fails 303       > loaded op2 c1   > loaded op2 fails 303   > freed op3
//! > loaded op2 short             the device had less than was thought
//! > took op2 500                 in microseconds, by itself
//! > laid op2                     its memory is there
//! ```
//! The lines after an event are all of its effects, in order.

use crate::show::show;
use mrm_core::event::{
    AdoptedSegment, Adoption, AnyOf, Event, Fault, LoadFailure, Part, Resolution,
};
use mrm_core::event::{ResumedLease, SegmentFact, Wanted, Wishes};
use mrm_core::id::*;
use mrm_core::ledger::Tier;
use mrm_core::violation::Violation;
use mrm_core::{Config, Core, DeviceConfig, Prefetch, invariants};

/// m1 = table a of 1, file b of 4, image i of 5 in two pieces; leased on the host as l1.
pub(crate) const ON_HOST: &str = "
    > session 1
    > open 1.1 m1
    resolve op1 m1
    > resolved op1 v1 a=1 b:4 i@5/2
    load op2 s1 a:1 v1
    load op3 s2 b:4 v1
    > loaded op2 c1
    > loaded op3 c2
    1.1 opened l1 v1 loaded [s1 s2]
";

/// After that: leased on the device, too, as l2.
pub(crate) const ON_BOTH: &str = "
    > open 1.2 m1 on d0
    resolve op4 m1
    > resolved op4 v1 a=1 b:4 i@5/2
    load op5 s3 i:5 v1 on d0 from [s2]
    > loaded op5 c3
    1.2 opened l2 v1 on d0 promoted [s1 s3]
";

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

/// The same with devices of these budgets; each can copy from the one before it.
pub(crate) fn with_devices(limit: u64, budgets: &[u64]) -> Config {
    let device = |(index, budget): (u16, &u64)| DeviceConfig {
        peers: index.checked_sub(1).map(DeviceId).into_iter().collect(),
        ..DeviceConfig::with_budget(Bytes(*budget))
    };
    Config {
        devices: (0..).zip(budgets).map(device).collect(),
        ..config(limit)
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
    let (part, mark) = match word {
        word if word.contains('=') => (Part::Table, '='),
        word if word.contains('@') => (Part::Image, '@'),
        _ => (Part::File, ':'),
    };
    let (source, amount) = word.split_once(mark).unwrap();
    let (charge, pieces) = amount.split_once('/').unwrap_or((amount, "1"));
    SegmentFact {
        source: source_of(source),
        charge: Bytes(charge.parse().unwrap()),
        pieces: pieces.parse().unwrap(),
        part,
    }
}

fn device(word: &str) -> DeviceId {
    DeviceId(u16::try_from(number(word, "d")).unwrap())
}

fn tier(word: &str) -> Tier {
    match word {
        "host" => Tier::Host,
        word => Tier::Device(device(word)),
    }
}

fn wanted(rest: &[&str]) -> Wanted {
    let reserve = after(rest, "keep").map_or(0, |bytes| number(bytes, ""));
    let devices = |list: &str| {
        let words = list.split(',').filter(|word| !word.is_empty());
        let devices: Vec<DeviceId> = words.map(device).collect();
        AnyOf::from(devices).with_reserve(Bytes(reserve))
    };
    let word = after(rest, "on").unwrap_or("host");
    match word.strip_prefix("best:") {
        Some(list) => Wanted::Best(devices(list)),
        None if word == "host" => Wanted::Host,
        None if word == "layout" => Wanted::Layout,
        None => Wanted::Device(devices(word)),
    }
}

/// The word after `key`.
fn after<'a>(words: &[&'a str], key: &str) -> Option<&'a str> {
    let at = words.iter().position(|word| *word == key)?;
    Some(words[at + 1])
}

fn parse(line: &str) -> Event {
    let words: Vec<&str> = line.split_whitespace().collect();
    let model = |word: &str| ModelId(number(word, "m"));
    match words.as_slice() {
        ["session", id, of @ ..] => Event::SessionOpened {
            session: SessionId(number(id, "")),
            tenant: Tenant(match of {
                ["of", tenant] => tenant.parse().unwrap(),
                _ => 0,
            }),
        },
        ["gone", id] => Event::SessionClosed {
            session: SessionId(number(id, "")),
        },
        ["open", who, what, rest @ ..] => Event::Open {
            session: key(who).0,
            request: key(who).1.unwrap(),
            model: model(what),
            wanted: wanted(rest),
            deadline: Time(after(rest, "by").map_or(1 << 40, |deadline| number(deadline, ""))),
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
        ["evict", who, what, rest @ ..] => Event::Evict {
            session: key(who).0,
            request: key(who).1.unwrap(),
            version: VersionId(number(what, "v")),
            tier: after(rest, "on").map(tier),
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
            tier: Tier::Host,
            budget: Bytes(number(bytes, "")),
            limit: Bytes(number(bytes, "")),
        },
        ["limit", place, bytes, rest @ ..] => Event::SetLimit {
            tier: tier(place),
            budget: Bytes(number(after(rest, "of").unwrap_or(bytes), "")),
            limit: Bytes(number(bytes, "")),
        },
        ["lost", what] => Event::DeviceLost {
            device: device(what),
            fault: fault(&["", "404"]),
        },
        ["adopt", what, version, rest @ ..] => adoption(what, version, rest),
        ["resume", who, rest @ ..] => Event::Resume {
            session: key(who).0,
            request: key(who).1.unwrap(),
            leases: rest.iter().map(resumed).collect(),
        },
        ["drain"] => Event::Drain,
        ["tick"] => Event::Tick,
        _ => parse_policy(line, &words),
    }
}

fn parse_policy(line: &str, words: &[&str]) -> Event {
    match words {
        ["policy", place, choice] => Event::SetPolicy {
            tier: tier(place),
            policy: choice.parse().unwrap(),
        },
        ["prefetch", percent] => Event::SetPrefetch(Prefetch {
            enabled: *percent != "0",
            share_percent: percent.parse().unwrap(),
        }),
        ["hint", what, due] => Event::Hint {
            model: ModelId(number(what, "m")),
            due: Time(number(due, "")),
        },
        _ => parse_completion(line, words),
    }
}

fn adoption(what: &str, version: &str, rest: &[&str]) -> Event {
    let has = rest.iter().position(|word| *word == "has").unwrap();
    let until = rest.iter().position(|word| *word == "until").unwrap();
    let resident = rest[has + 1..until].iter().map(|word| {
        let (place, content) = word.split_once("/c").unwrap();
        let (source, place) = place.split_once('.').unwrap_or((place, "host"));
        AdoptedSegment {
            source: source_of(source),
            tier: tier(place),
            content: ContentId(number(content, "")),
        }
    });
    Event::Adopt(Adoption {
        model: what.strip_prefix('m').map(|id| ModelId(number(id, ""))),
        resolution: Resolution {
            version: VersionId(number(version, "v")),
            segments: rest[..has].iter().map(fact).collect(),
        },
        resident: resident.collect(),
        until: Time(number(rest[until + 1], "")),
    })
}

fn resumed(word: &&str) -> ResumedLease {
    let (word, reserve) = word.split_once('/').unwrap_or((word, "0"));
    let (version, place) = word.split_once('.').unwrap_or((word, "host"));
    let version = VersionId(number(version, "v"));
    let tier = tier(place);
    ResumedLease {
        model: ModelId(1),
        copy: CopyId { version, tier },
        reserve: Bytes(number(reserve, "")),
    }
}

fn parse_completion(line: &str, words: &[&str]) -> Event {
    let op = |word: &str| OpId(number(word, "op"));
    match words {
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
            outcome: Err(LoadFailure::Fault(fault(rest))),
        },
        ["loaded", id, "short"] => Event::Loaded {
            op: op(id),
            outcome: Err(LoadFailure::OutOfMemory(fault(&["", "405"]))),
        },
        ["loaded", id, content] => Event::Loaded {
            op: op(id),
            outcome: Ok(ContentId(number(content, "c"))),
        },
        ["took", id, took_us] => Event::Took {
            op: op(id),
            took_us: number(took_us, ""),
        },
        ["lost", what] => Event::DeviceLost {
            device: device(what),
            fault: fault(&["", "404"]),
        },
        ["damaged", what] => Event::Damaged {
            segment: SegmentId(number(what, "s")),
            fault: fault(&["", "604"]),
        },
        ["identified", what, content] => Event::Identified {
            segment: SegmentId(number(what, "s")),
            content: ContentId(number(content, "c")),
        },
        ["laid", id] => Event::Laid { op: op(id) },
        ["unlaid", id] => Event::Unlaid {
            op: op(id),
            fault: fault(&["", "503"]),
        },
        ["freed", id] => Event::Freed { op: op(id) },
        _ => panic!("no such event: {line}"),
    }
}
