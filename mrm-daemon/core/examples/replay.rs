//! Replays a request trace through the decider and says what each policy would have had to load.
//!
//! ```sh
//! zcat requests.csv.gz | cargo run --release --example replay -- models.csv 10,20,30 lru/gc/mix
//! ```
//! Requests are `t_s,model`, models `model,bytes,load_s,exec_s`. The cache is a share, in percent, of
//! the bytes of all models. Loads take no time on the clock and are told as taking `load_s`;
//! whoever runs holds its model for `exec_s`. `belady` and `cremebrulee-oracle` see the future.
#![allow(clippy::print_stdout, reason = "it prints a table")]

use mrm_core::effect::{Effect, Origin, Reply};
use mrm_core::event::{Event, Part, Resolution, SegmentFact, Wanted};
use mrm_core::id::*;
use mrm_core::ledger::Tier;
use mrm_core::policy::{Belady, Choice, CremeBrulee, CremeBruleeOracle, Future, Policy};
use mrm_core::violation::Violation;
use mrm_core::{Config, Core};
use std::collections::{BTreeMap, BTreeSet};
use std::error::Error;
use std::io::Read;
use std::sync::Arc;

const SESSION: SessionId = SessionId(1);

#[derive(Debug, Clone, Copy)]
struct Model {
    bytes: u64,
    load_us: u64,
    exec_us: u64,
}

type Models = BTreeMap<ModelId, Model>;
type Requests = Vec<(Time, ModelId)>;

/// What a policy had to load.
#[derive(Debug, Default)]
struct Sums {
    opens: u64,
    misses: u64,
    bytes: u128,
    missed_bytes: u128,
    load_us: u64,
    exec_us: u64,
}

struct Replay<'a> {
    core: Core,
    models: &'a Models,
    now: Time,
    /// What each waiting request wants.
    asked: BTreeMap<RequestId, ModelId>,
    /// When leases end.
    ends: BTreeSet<(Time, LeaseId)>,
    sums: Sums,
}

impl<'a> Replay<'a> {
    fn new(models: &'a Models, cache: u64, policy: Choice) -> Self {
        let config = Config {
            segments_max: u64::MAX,
            waiting_max: usize::MAX,
            leases_per_session_max: usize::MAX,
            revalidate_ms: u64::MAX,
            policy,
            ..Config::with_limit(Bytes(cache))
        };
        Self {
            core: Core::new(config),
            models,
            now: Time(0),
            asked: BTreeMap::new(),
            ends: BTreeSet::new(),
            sums: Sums::default(),
        }
    }

    fn run(mut self, requests: &Requests) -> Result<Sums, Violation> {
        let (session, tenant) = (SESSION, Tenant(0));
        self.handle(Event::SessionOpened { session, tenant })?;
        for (number, (at, model)) in (1..).zip(requests) {
            self.end_leases(*at)?;
            self.now = *at;
            let request = RequestId(number);
            self.asked.insert(request, *model);
            self.handle(Event::Open {
                session,
                request,
                model: *model,
                wanted: Wanted::Host,
                deadline: Time(u64::MAX),
            })?;
        }
        self.end_leases(Time(u64::MAX))?;
        Ok(self.sums)
    }

    fn end_leases(&mut self, until: Time) -> Result<(), Violation> {
        while let Some((at, lease)) = self.ends.first().copied() {
            if at > until {
                break;
            }
            self.ends.pop_first();
            self.now = self.now.max(at);
            let (session, request) = (SESSION, None);
            self.handle(Event::Close {
                session,
                request,
                lease,
            })?;
        }
        Ok(())
    }

    fn handle(&mut self, event: Event) -> Result<(), Violation> {
        let mut events = vec![event];
        while let Some(event) = events.pop() {
            let mut effects = Vec::new();
            self.core.handle(self.now, event, &mut effects)?;
            let mut next = Vec::new();
            for effect in effects {
                self.carry_out(effect, &mut next);
            }
            events.extend(next.into_iter().rev());
        }
        Ok(())
    }

    fn carry_out(&mut self, effect: Effect, events: &mut Vec<Event>) {
        let model = |id: u64| self.models.get(&ModelId(id)).copied();
        match effect {
            Effect::Resolve { op, model: id } => {
                let bytes = model(id.0).map_or(0, |model| model.bytes);
                let fact = SegmentFact {
                    source: SourceId(id.0),
                    charge: Bytes(bytes),
                    pieces: 1,
                    part: Part::File,
                };
                let (version, segments) = (VersionId(id.0), vec![fact]);
                let outcome = Ok(Resolution { version, segments });
                events.push(Event::Resolved { op, outcome });
            }
            Effect::Load { op, source, .. } => {
                let took_us = model(source.0).map_or(0, |model| model.load_us);
                events.push(Event::Took { op, took_us });
                let outcome = Ok(ContentId(source.0));
                events.push(Event::Loaded { op, outcome });
            }
            Effect::Free { op, .. } => events.push(Event::Freed { op }),
            Effect::Reply { request, reply, .. } => self.answered(request, &reply),
            Effect::Adopted { .. } | Effect::Revoke { .. } | Effect::Forget { .. } => {}
        }
    }

    fn answered(&mut self, request: RequestId, reply: &Reply) {
        let asked = self.asked.remove(&request);
        let Some(model) = asked.and_then(|model| self.models.get(&model)) else {
            return;
        };
        self.sums.opens += 1;
        self.sums.bytes += u128::from(model.bytes);
        self.sums.exec_us += model.exec_us;
        // What is larger than the cache is loaded for this request alone.
        let mut missed = true;
        if let Reply::Opened { lease, origin, .. } = reply {
            self.ends.insert((Time(self.now.0 + model.exec_us), *lease));
            missed = *origin == Origin::Loaded;
        }
        if missed {
            self.sums.misses += 1;
            self.sums.missed_bytes += u128::from(model.bytes);
            self.sums.load_us += model.load_us;
        }
    }
}

fn seconds(word: &str) -> Result<u64, Box<dyn Error>> {
    Ok((word.parse::<f64>()? * 1e6).round() as u64)
}

fn models_of(text: &str) -> Result<Models, Box<dyn Error>> {
    let mut models = Models::new();
    for line in text.lines().skip(1) {
        let [id, bytes, load_s, exec_s] = line.split(',').collect::<Vec<_>>()[..] else {
            return Err(format!("not a model: {line}").into());
        };
        let model = Model {
            bytes: bytes.parse()?,
            load_us: seconds(load_s)?,
            exec_us: seconds(exec_s)?,
        };
        models.insert(ModelId(id.parse()?), model);
    }
    Ok(models)
}

fn requests_of(text: &str) -> Result<Requests, Box<dyn Error>> {
    let mut requests = Requests::new();
    for line in text.lines().skip(1) {
        let (at, model) = line.split_once(',').ok_or("not a request")?;
        requests.push((Time(seconds(at)?), ModelId(model.parse()?)));
    }
    Ok(requests)
}

fn main() -> Result<(), Box<dyn Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [models, shares, policies] = &args[..] else {
        return Err("usage: replay MODELS SHARE[,SHARE] POLICY[/POLICY] < REQUESTS".into());
    };
    let models = models_of(&std::fs::read_to_string(models)?)?;
    let mut text = String::new();
    std::io::stdin().read_to_string(&mut text)?;
    let requests = requests_of(&text)?;
    let all: u64 = models.values().map(|model| model.bytes).sum();
    let future = Arc::new(Future::of(requests.iter().map(|(_, model)| *model)));
    println!("policy\tcache_percent\tobject_miss\tbyte_miss\tload_s\tload_over_exec");
    for share in shares.split(',') {
        let percent: u64 = share.parse()?;
        for name in policies.split('/') {
            let oracle: Option<Box<dyn Policy>> = match name {
                "belady" => Some(Box::new(Belady::new(Arc::clone(&future)))),
                "cremebrulee-oracle" => {
                    let weights = CremeBrulee::default();
                    let future = Arc::clone(&future);
                    Some(Box::new(CremeBruleeOracle::new(weights, future)))
                }
                _ => None,
            };
            let choice = match &oracle {
                Some(_) => Choice::default(),
                None => name.parse()?,
            };
            let mut replay = Replay::new(&models, all / 100 * percent, choice);
            if let Some(oracle) = oracle {
                replay.core.install_policy(Tier::Host, oracle)?;
            }
            let sums = replay.run(&requests)?;
            println!(
                "{name}\t{percent}\t{:.5}\t{:.5}\t{:.1}\t{:.3}",
                sums.misses as f64 / sums.opens as f64,
                sums.missed_bytes as f64 / sums.bytes as f64,
                sums.load_us as f64 / 1e6,
                sums.load_us as f64 / sums.exec_us as f64,
            );
        }
    }
    Ok(())
}
