//! The Prometheus text, read by a linter with the rules of `promtool check metrics`.

use super::{Rig, fake};
use crate::status::metrics::{Metrics, OpenOutcome};
use crate::status::view::{DaemonState, DevicesView};
use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::process::{Command, Stdio};

/// Units that are not base units, abbreviations, and what only a type may be called.
const BAD_WORDS: &[&str] = &[
    "ms",
    "us",
    "s",
    "kb",
    "mb",
    "kib",
    "mib",
    "b",
    "milliseconds",
    "microseconds",
    "kilobytes",
    "megabytes",
    "minutes",
    "hours",
    "percent",
    "gauge",
    "counter",
    "histogram",
    "bucket",
    "count",
    "sum",
];

const READY: &str = "GPU-5a3c1b2e-0f1d-4c9a-8a77-0123456789ab";

type Labels = Vec<(String, String)>;

/// One family: what `# HELP`, `# TYPE` and the samples said.
#[derive(Debug, Default)]
struct Family {
    help: Option<String>,
    kind: Option<String>,
    samples: Vec<Sample>,
}

#[derive(Debug, Clone, PartialEq)]
struct Sample {
    name: String,
    labels: Labels,
    value: f64,
}

fn used() -> Metrics {
    let metrics = Metrics::new().unwrap();
    for (outcome, took_us) in [
        (OpenOutcome::Hit, 3),
        (OpenOutcome::Hit, 5),
        (OpenOutcome::Loaded, 40_000),
        (OpenOutcome::Joined, 39_000),
        (OpenOutcome::Promoted, 9_000),
        (OpenOutcome::Refused, 1_000_000_000),
    ] {
        metrics.open(outcome, took_us);
    }
    metrics.load_done(91, 30_000);
    metrics.load_failed();
    metrics.evicted(96);
    metrics.device_fill_done(fake::LOST, 91, 9_000);
    metrics.device_fill_failed(fake::LOST);
    metrics.device_promoted(fake::LOST);
    metrics.device_evicted(fake::LOST, 96);
    metrics.device_lease_revoked(fake::LOST);
    metrics.session_opened();
    metrics.protocol_error();
    metrics.log_lines_dropped(3);
    metrics
}

fn parse(text: &str) -> BTreeMap<String, Family> {
    assert!(text.ends_with('\n'));
    let mut families: BTreeMap<String, Family> = BTreeMap::new();
    let mut current = String::new();
    for line in text.lines() {
        if let Some(rest) = line.strip_prefix("# HELP ") {
            let (name, help) = rest.split_once(' ').unwrap();
            let family = families.entry(name.to_owned()).or_default();
            assert!(
                family.help.replace(help.to_owned()).is_none(),
                "{name}: HELP twice"
            );
            name.clone_into(&mut current);
        } else if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, kind) = rest.split_once(' ').unwrap();
            let family = families.entry(name.to_owned()).or_default();
            assert!(
                family.kind.replace(kind.to_owned()).is_none(),
                "{name}: TYPE twice"
            );
            assert!(family.samples.is_empty(), "{name}: TYPE after its samples");
        } else {
            let sample = sample(line);
            let family = families.get_mut(&current).unwrap();
            let suffixes: &[&str] = match family.kind.as_deref() {
                Some("histogram") => &["_bucket", "_sum", "_count"],
                _ => &[""],
            };
            let belongs = suffixes
                .iter()
                .any(|end| sample.name == format!("{current}{end}"));
            assert!(belongs, "{} stands under {current}", sample.name);
            family.samples.push(sample);
        }
    }
    families
}

fn sample(line: &str) -> Sample {
    let (name, mut rest) = line.split_at(line.find(['{', ' ']).unwrap());
    let mut labels = Vec::new();
    if let Some(inside) = rest.strip_prefix('{') {
        rest = inside;
        while !rest.starts_with('}') {
            let (label, quoted) = rest.split_once("=\"").unwrap();
            let (value, after) = unquote(quoted);
            labels.push((label.to_owned(), value));
            rest = after.strip_prefix(',').unwrap_or(after);
        }
        rest = &rest[1..];
    }
    let value = rest
        .trim_start()
        .parse()
        .unwrap_or_else(|_| panic!("no value: {line:?}"));
    Sample {
        name: name.to_owned(),
        labels,
        value,
    }
}

/// The value up to the closing quote, and what follows it.
fn unquote(text: &str) -> (String, &str) {
    let mut value = String::new();
    let mut chars = text.char_indices();
    while let Some((at, c)) = chars.next() {
        match c {
            '"' => return (value, &text[at + 1..]),
            '\\' => value.push(match chars.next().unwrap().1 {
                'n' => '\n',
                c @ ('\\' | '"') => c,
                other => panic!("unknown escape \\{other}"),
            }),
            c => value.push(c),
        }
    }
    panic!("no closing quote: {text:?}")
}

fn lint(name: &str, family: &Family) {
    let kind = family
        .kind
        .as_deref()
        .unwrap_or_else(|| panic!("{name}: no TYPE"));
    assert!(
        matches!(kind, "counter" | "gauge" | "histogram"),
        "{name}: {kind}"
    );
    let help = family
        .help
        .as_deref()
        .unwrap_or_else(|| panic!("{name}: no HELP"));
    assert!(help.len() > 8 && help.ends_with('.'), "{name}: {help:?}");
    assert!(name.starts_with("mrm_"), "{name}");
    assert!(
        name.bytes().all(|b| b.is_ascii_lowercase() || b == b'_'),
        "{name}"
    );
    assert_eq!(
        name.ends_with("_total"),
        kind == "counter",
        "{name}: {kind}"
    );
    for word in name.split('_') {
        assert!(!BAD_WORDS.contains(&word), "{name}: `{word}`");
    }
    // A unit is the last word, before `total`.
    let words: Vec<&str> = name.trim_end_matches("_total").split('_').collect();
    for unit in ["bytes", "seconds"] {
        assert!(
            !words[..words.len() - 1].contains(&unit),
            "{name}: `{unit}` is not last"
        );
    }
    assert!(!family.samples.is_empty(), "{name}: no samples");
    let mut seen = BTreeSet::new();
    for sample in &family.samples {
        assert!(
            seen.insert((sample.name.clone(), sample.labels.clone())),
            "twice: {sample:?}"
        );
        assert!(
            sample.value.is_finite() && sample.value >= 0.0,
            "{sample:?}"
        );
    }
    if kind == "histogram" {
        lint_histogram(name, family);
    }
}

fn lint_histogram(name: &str, family: &Family) {
    let mut series: BTreeMap<Labels, Vec<(f64, f64)>> = BTreeMap::new();
    let mut counts = BTreeMap::new();
    for sample in &family.samples {
        let mut labels = sample.labels.clone();
        if sample.name.ends_with("_bucket") {
            let at = labels.iter().position(|(label, _)| label == "le").unwrap();
            let le = labels.remove(at).1;
            series
                .entry(labels)
                .or_default()
                .push((le.parse().unwrap(), sample.value));
        } else if sample.name.ends_with("_count") {
            counts.insert(labels, sample.value);
        }
    }
    assert_eq!(series.len(), counts.len(), "{name}");
    for (labels, buckets) in series {
        let ascending = buckets.is_sorted_by(|a, b| a.0 < b.0);
        let cumulative = buckets.is_sorted_by(|a, b| a.1 <= b.1);
        assert!(ascending && cumulative, "{name} {labels:?}: {buckets:?}");
        let last = buckets.last().unwrap();
        assert_eq!(
            (last.0, Some(&last.1)),
            (f64::INFINITY, counts.get(&labels)),
            "{name}"
        );
    }
}

fn value(families: &BTreeMap<String, Family>, name: &str, label: Option<&str>) -> f64 {
    let samples = &families[name].samples;
    let found: Vec<_> = samples
        .iter()
        .filter(|s| label.is_none_or(|label| s.labels.iter().any(|(_, value)| value == label)))
        .collect();
    assert_eq!(found.len(), 1, "{name} {label:?}");
    found[0].value
}

#[test]
fn the_text_passes_the_linter_from_the_first_scrape() {
    for metrics in [Metrics::new().unwrap(), used()] {
        let text = metrics.render(&fake::status(DaemonState::Serving)).unwrap();
        let families = parse(&text);
        assert_eq!(families.len(), 55, "{:?}", families.keys());
        let page = include_str!("../API.md");
        for (name, family) in &families {
            lint(name, family);
            assert!(page.contains(name), "API.md lacks {name}");
        }
    }
}

#[test]
fn the_values_are_those_of_the_books() {
    let families = parse(&used().render(&fake::status(DaemonState::Serving)).unwrap());
    for (name, label, expected) in [
        ("mrm_opens_total", Some("hit"), 2.0_f64),
        ("mrm_opens_total", Some("refused"), 1.0),
        ("mrm_loaded_bytes_total", None, 91.0),
        ("mrm_evicted_bytes_total", None, 96.0),
        ("mrm_log_lines_dropped_total", None, 3.0),
        ("mrm_host_limit_bytes", None, 100.0),
        ("mrm_host_freeing_bytes", None, 10.0),
        ("mrm_waiting_opens", None, 3.0),
        ("mrm_ready", None, 1.0),
        ("mrm_build_info", Some("0.1.0"), 1.0),
        ("mrm_opens_total", Some("promoted"), 1.0),
        ("mrm_device_driver_info", Some("12.4"), 1.0),
        ("mrm_device_ready", Some(fake::LOST), 0.0),
        ("mrm_device_lost", Some(fake::LOST), 1.0),
        ("mrm_device_limit_bytes", Some(READY), 800.0),
        ("mrm_device_context_bytes", Some(READY), 5.0),
        ("mrm_device_fills_total", Some(READY), 0.0),
        ("mrm_device_filled_bytes_total", Some(fake::LOST), 91.0),
        ("mrm_device_evicted_bytes_total", Some(fake::LOST), 96.0),
        ("mrm_device_revoked_leases_total", Some(fake::LOST), 1.0),
        ("mrm_degraded_path", Some("huge_\"pages\"\\\n"), 1.0),
    ] {
        assert_eq!(
            value(&families, name, label).to_bits(),
            expected.to_bits(),
            "{name}"
        );
    }
    let opens = used().counters();
    assert_eq!(
        (opens.opens_total, opens.hits_total, opens.misses_total),
        (6, 2, 1)
    );
}

#[test]
fn a_cured_path_and_an_old_version_leave_the_text() {
    let metrics = Metrics::new().unwrap();
    let mut status = fake::status(DaemonState::Serving);
    metrics.render(&status).unwrap();
    status.degraded.clear();
    status.daemon.version = "0.2.0".into();
    status.daemon.state = DaemonState::Draining;
    let text = metrics.render(&status).unwrap();
    assert!(
        !text.contains("huge_") || !text.contains("mrm_degraded_path{"),
        "{text}"
    );
    assert!(!text.contains("0.1.0") && text.contains("mrm_ready 0\n"));
}

#[test]
fn what_is_not_known_of_a_device_has_no_sample() {
    let metrics = Metrics::new().unwrap();
    let mut status = fake::status(DaemonState::Serving);
    let families = parse(&metrics.render(&status).unwrap());
    for name in ["mrm_device_free_bytes", "mrm_device_context_bytes"] {
        assert_eq!(families[name].samples.len(), 1, "{name}");
    }
    // A counter stays when its device goes; what is now, does not.
    status.devices.devices.clear();
    let families = parse(&metrics.render(&status).unwrap());
    assert!(!families.contains_key("mrm_device_ready"));
    assert_eq!(families["mrm_device_fills_total"].samples.len(), 2);
}

#[test]
fn without_a_driver_the_text_says_so_in_one_line() {
    let mut status = fake::status(DaemonState::Serving);
    status.devices = DevicesView::disabled();
    let text = Metrics::new().unwrap().render(&status).unwrap();
    let lines: Vec<&str> = text
        .lines()
        .filter(|line| line.starts_with("mrm_device_"))
        .collect();
    let expected = "mrm_device_driver_info{state=\"disabled\",version=\"\"} 1";
    assert_eq!(lines, [expected]);
}

#[test]
fn the_socket_serves_what_the_decider_counts() {
    let rig = Rig::new();
    rig.metrics.open(OpenOutcome::Joined, 7);
    let families = parse(&rig.get("/metrics").body);
    let joined = value(&families, "mrm_opens_total", Some("joined"));
    assert_eq!(joined.to_bits(), 1f64.to_bits());
}

/// Where `promtool` is installed, its word counts.
#[test]
fn promtool_agrees_if_it_is_there() {
    let text = used().render(&fake::status(DaemonState::Serving)).unwrap();
    let mut promtool = Command::new("promtool");
    promtool
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stderr(Stdio::piped());
    let Ok(mut child) = promtool.spawn() else {
        println!("skipped: no promtool on PATH");
        return;
    };
    child
        .stdin
        .take()
        .unwrap()
        .write_all(text.as_bytes())
        .unwrap();
    let ended = child.wait_with_output().unwrap();
    assert!(
        ended.status.success(),
        "{}",
        String::from_utf8_lossy(&ended.stderr)
    );
}
