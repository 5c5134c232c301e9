//! What one run measured, and where: the file that `--json` writes and the pages are made from.

use crate::report::Row;
use serde::{Deserialize, Serialize};
use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::{SystemTime, UNIX_EPOCH};

/// One run.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Results {
    /// Of the tree that was measured; `+` when it had changes of its own.
    pub(crate) commit: String,
    /// Seconds since 1970 at the start.
    pub(crate) measured_at_s: u64,
    pub(crate) machine: Machine,
    /// Average load of the last minute before and after: what else was going on.
    pub(crate) load_average: [f64; 2],
    pub(crate) rows: Vec<Row>,
}

/// What it was measured on.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Machine {
    pub(crate) processor: String,
    pub(crate) cores: usize,
    pub(crate) memory_bytes: u64,
    pub(crate) kernel: String,
    /// `shmem_enabled` of transparent huge pages: the setting in brackets.
    pub(crate) shmem_huge_pages: String,
}

impl Results {
    /// Of a run that begins now.
    pub(crate) fn begin() -> Self {
        let since = SystemTime::now().duration_since(UNIX_EPOCH);
        Self {
            commit: commit(),
            measured_at_s: since.expect("after 1970").as_secs(),
            machine: Machine::here(),
            load_average: [load_average(), 0.0],
            rows: Vec::new(),
        }
    }

    pub(crate) fn end(&mut self) {
        self.load_average[1] = load_average();
    }

    pub(crate) fn write(&self, path: &Path) {
        let text = serde_json::to_string_pretty(self).expect("results are plain");
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent).expect("a directory");
        }
        fs::write(path, compact(&text) + "\n").expect("writes");
    }

    pub(crate) fn read(path: &Path) -> Self {
        let text = fs::read_to_string(path).expect("reads");
        serde_json::from_str(&text)
            .unwrap_or_else(|error| panic!("{} is not a run's results: {error}", path.display()))
    }

    /// The day, as 2026-01-31, by the civil calendar.
    pub(crate) fn day(&self) -> String {
        let (year, month, day) = civil(self.measured_at_s / 86_400);
        format!("{year:04}-{month:02}-{day:02}")
    }
}

impl Machine {
    fn here() -> Self {
        let cpu = field("/proc/cpuinfo", "model name");
        let kib = field("/proc/meminfo", "MemTotal");
        let kib = kib.split_whitespace().next().map(str::parse::<u64>);
        let huge = fs::read_to_string("/sys/kernel/mm/transparent_hugepage/shmem_enabled");
        let huge = huge.unwrap_or_default();
        let chosen = huge.split(['[', ']']).nth(1).unwrap_or("unknown");
        Self {
            processor: cpu,
            cores: std::thread::available_parallelism().map_or(0, usize::from),
            memory_bytes: kib.map_or(0, |kib| kib.expect("a number") * 1024),
            kernel: text_of("/proc/sys/kernel/osrelease"),
            shmem_huge_pages: chosen.to_owned(),
        }
    }
}

fn text_of(path: &str) -> String {
    let text = fs::read_to_string(path).unwrap_or_default();
    text.trim().to_owned()
}

fn field(path: &str, name: &str) -> String {
    let text = fs::read_to_string(path).unwrap_or_default();
    let line = text.lines().find(|line| line.starts_with(name));
    let value = line.and_then(|line| line.split_once(':'));
    value
        .map_or("unknown", |(_, value)| value.trim())
        .to_owned()
}

fn load_average() -> f64 {
    let text = text_of("/proc/loadavg");
    let first = text.split_whitespace().next();
    first.and_then(|n| n.parse().ok()).unwrap_or(f64::NAN)
}

fn commit() -> String {
    let git = |arguments: &[&str]| -> Option<String> {
        let output = Command::new("git").args(arguments).output().ok()?;
        let text = String::from_utf8(output.stdout).ok()?;
        output.status.success().then(|| text.trim().to_owned())
    };
    let Some(commit) = git(&["rev-parse", "--short=10", "HEAD"]) else {
        return "unknown".to_owned();
    };
    match git(&["status", "--porcelain", "--untracked-files=no"]) {
        Some(changes) if changes.is_empty() => commit,
        Some(_) | None => commit + "+",
    }
}

/// Lists of numbers on one line each: they are many.
fn compact(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut lines = text.lines().peekable();
    while let Some(line) = lines.next() {
        out.push_str(line);
        let is_list = line.ends_with(": [");
        let numbers = |line: &&str| {
            let line = line.trim_end_matches(',').trim();
            line.parse::<f64>().is_ok() || line == "]"
        };
        if is_list && lines.peek().is_some_and(numbers) {
            while let Some(line) = lines.next_if(numbers) {
                out.push_str(line.trim());
                if line.trim_start().starts_with(']') {
                    break;
                }
            }
        }
        out.push('\n');
    }
    out.pop();
    out
}

/// Year, month and day of a number of days since 1970 (Howard Hinnant, "chrono-compatible
/// low-level date algorithms", `civil_from_days`).
fn civil(days: u64) -> (u64, u64, u64) {
    let shifted = days + 719_468;
    let (era, day) = (shifted / 146_097, shifted % 146_097);
    let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let day = day - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    (year + era * 400 + u64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn days_are_those_of_the_calendar() {
        for (days, date) in [
            (0, (1970, 1, 1)),
            (19_782, (2024, 2, 29)),
            (20_779, (2026, 11, 22)),
        ] {
            assert_eq!(civil(days), date);
        }
    }

    #[test]
    fn numbers_of_a_list_share_a_line() {
        let value = serde_json::json!({"raw": [1.5, 2.0], "rows": [{"n": 1}], "none": []});
        let text = compact(&serde_json::to_string_pretty(&value).unwrap());
        assert!(text.contains("\"raw\": [1.5,2.0]"), "{text}");
        assert_eq!(
            serde_json::from_str::<serde_json::Value>(&text).unwrap(),
            value
        );
    }
}
