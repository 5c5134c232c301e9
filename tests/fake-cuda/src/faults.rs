//! Errors on demand: rules that make the n-th call of a function fail, and devices that are lost.
//!
//! Rules come from `MRM_FAKE_CUDA_FAULTS`, and from the files `faults` and `faults.PID` of the
//! shared directory, which are read again whenever they change.

use rustix::fs::stat;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use crate::code;
use crate::settings::Settings;

/// What a fault does beyond the one call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Effect {
    /// Nothing: the call fails and had no effect.
    Once,
    /// The context is unusable from now on.
    Sticky,
    /// The call succeeds; the work that it queued fails, and takes the context with it.
    Queued,
}

/// One rule: `function:code[:nth[+]][:once|sticky|async]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Rule {
    function: String,
    pub(crate) code: u32,
    nth: u64,
    and_later: bool,
    pub(crate) effect: Effect,
    calls: u64,
}

/// A lost device: every call that concerns it returns the code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Lost {
    /// All devices, or the one of this physical index.
    device: Option<u32>,
    code: u32,
}

/// Parses rules, separated by commas or line ends.
pub(crate) fn parse(text: &str) -> Result<Vec<Rule>, String> {
    entries(text)
        .filter(|entry| !entry.starts_with("lost"))
        .map(rule)
        .collect()
}

/// Parses `CODE[@DEVICE]`, where 1 is short for 719.
pub(crate) fn parse_lost(text: &str) -> Result<Vec<Lost>, String> {
    entries(text)
        .map(|entry| {
            let (code, device) = match entry.split_once('@') {
                Some((code, device)) => (code, Some(number(device, entry)?)),
                None => (entry, None),
            };
            let code = match number(code, entry)? {
                1 => code::LAUNCH_FAILED,
                other => other,
            };
            Ok(Lost { device, code })
        })
        .filter(|lost| !matches!(lost, Ok(Lost { code: 0, .. })))
        .collect()
}

fn entries(text: &str) -> impl Iterator<Item = &str> {
    text.split([',', '\n'])
        .map(str::trim)
        .filter(|entry| !entry.is_empty())
}

fn number<N: std::str::FromStr>(text: &str, entry: &str) -> Result<N, String> {
    text.trim()
        .parse()
        .map_err(|_| format!("fault `{entry}`: `{text}` is no number"))
}

fn rule(entry: &str) -> Result<Rule, String> {
    let mut parts = entry.split(':');
    let function = parts.next().unwrap_or_default().to_owned();
    let code_text = parts
        .next()
        .ok_or_else(|| format!("fault `{entry}` names no code"))?;
    let code: u32 = number(code_text, entry)?;
    let mut rule = Rule {
        function,
        code,
        nth: 1,
        and_later: false,
        effect: if code::is_sticky(code) {
            Effect::Sticky
        } else {
            Effect::Once
        },
        calls: 0,
    };
    for part in parts {
        match part {
            "once" => rule.effect = Effect::Once,
            "sticky" => rule.effect = Effect::Sticky,
            "async" => rule.effect = Effect::Queued,
            nth => {
                let digits = nth.strip_suffix('+');
                rule.and_later = digits.is_some();
                rule.nth = number(digits.unwrap_or(nth), entry)?;
            }
        }
    }
    Ok(rule)
}

impl Rule {
    fn strikes(&mut self, function: &str) -> bool {
        if self.function != function && self.function != "*" {
            return false;
        }
        self.calls += 1;
        self.calls == self.nth || (self.and_later && self.calls > self.nth)
    }
}

/// When a file was written last, as far as the kernel tells; enough to see a change.
type Stamp = (u64, i64, i128, i64);

#[derive(Debug, Default)]
struct Watched {
    path: PathBuf,
    stamp: Option<Stamp>,
    rules: Vec<Rule>,
    lost: Vec<Lost>,
}

impl Watched {
    fn refresh(&mut self) {
        let stamp = stamp(&self.path);
        if stamp == self.stamp {
            return;
        }
        self.stamp = stamp;
        let text = fs::read_to_string(&self.path).unwrap_or_default();
        let lost: String = entries(&text)
            .filter_map(|entry| entry.strip_prefix("lost:"))
            .flat_map(|entry| [entry, ","])
            .collect();
        match (parse(&text), parse_lost(&lost)) {
            (Ok(rules), Ok(lost)) => {
                self.rules = rules;
                self.lost = lost;
            }
            (Err(message), _) | (_, Err(message)) => {
                eprintln!("mrm-fake-cuda: {}: {message}", self.path.display());
            }
        }
    }
}

fn stamp(path: &Path) -> Option<Stamp> {
    let found = stat(path).ok()?;
    Some((
        found.st_ino,
        found.st_mtime,
        i128::from(found.st_mtime_nsec),
        found.st_size,
    ))
}

#[derive(Debug)]
struct Injector {
    fixed: Vec<Rule>,
    lost: Vec<Lost>,
    files: [Watched; 2],
}

static INJECTOR: Mutex<Option<Injector>> = Mutex::new(None);

fn with<R>(settings: &Settings, work: impl FnOnce(&mut Injector) -> R) -> R {
    let mut guard = INJECTOR.lock().unwrap_or_else(PoisonError::into_inner);
    let injector = guard.get_or_insert_with(|| {
        let watched = |name: String| Watched {
            path: settings.dir.join(name),
            ..Watched::default()
        };
        Injector {
            fixed: settings.faults.clone(),
            lost: settings.lost.clone(),
            files: [
                watched("faults".to_owned()),
                watched(format!("faults.{}", std::process::id())),
            ],
        }
    });
    work(injector)
}

/// Counts a call, and tells the fault that strikes it.
pub(crate) fn strike(settings: &Settings, function: &str) -> Option<Rule> {
    with(settings, |injector| {
        let mut struck = None;
        for file in &mut injector.files {
            file.refresh();
        }
        let rules = injector
            .files
            .iter_mut()
            .flat_map(|file| &mut file.rules)
            .chain(&mut injector.fixed);
        for rule in rules {
            // Every rule counts the call, also when another one struck before it.
            if rule.strikes(function) && struck.is_none() {
                struck = Some(rule.clone());
            }
        }
        struck
    })
}

/// The code that a lost device returns.
pub(crate) fn lost(settings: &Settings, device: u32) -> Option<u32> {
    with(settings, |injector| {
        injector
            .files
            .iter()
            .flat_map(|file| &file.lost)
            .chain(&injector.lost)
            .find(|lost| lost.device.is_none_or(|named| named == device))
            .map(|lost| lost.code)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strikes_the_call_that_it_names() {
        let mut rules = parse("cuMemCreate:2:3, cuMemMap:4242:2+\n*:700").unwrap();
        let strikes = |rule: &mut Rule, name: &str| -> Vec<bool> {
            (0..4).map(|_| rule.strikes(name)).collect()
        };
        assert_eq!(
            strikes(&mut rules[0], "cuMemCreate"),
            [false, false, true, false]
        );
        assert_eq!(
            strikes(&mut rules[1], "cuMemMap"),
            [false, true, true, true]
        );
        assert_eq!(strikes(&mut rules[1], "cuInit"), [false; 4]);
        assert_eq!(
            strikes(&mut rules[2], "cuInit"),
            [true, false, false, false]
        );
        assert_eq!(rules[0].effect, Effect::Once);
        assert_eq!(
            rules[2].effect,
            Effect::Sticky,
            "an illegal address is fatal to the context"
        );
    }

    #[test]
    fn refuses_rules_that_make_no_sense() {
        for text in ["cuInit", "cuInit:x", "cuInit:1:y", "cuInit:-1"] {
            assert!(parse(text).is_err(), "{text}");
        }
        assert!(parse_lost("x").is_err());
        assert_eq!(parse_lost("0").unwrap(), []);
        let lost = Lost {
            device: Some(1),
            code: 719,
        };
        assert_eq!(parse_lost("1@1").unwrap(), [lost]);
    }
}
