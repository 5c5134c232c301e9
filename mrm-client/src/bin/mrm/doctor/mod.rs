//! `mrm doctor`: checks of this node, each with what was found and what to do about it.

mod gpu;
mod kernel;
mod memory;
mod process;
mod sockets;

use crate::args::Global;
use crate::failure::Failure;
use crate::look::{Look, Tone, safe};
use crate::out::Out;
use crate::units;
use crate::wire::Status;
use serde_json::json;
use std::fmt::Write as _;

const ID_COLUMNS: usize = 16;

/// How good a finding is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Level {
    /// As it should be.
    Pass,
    /// Neither good nor bad.
    Info,
    /// It works, but worse than it could.
    Warn,
    /// It does not work.
    Fail,
}

impl Level {
    const fn name(self) -> &'static str {
        match self {
            Self::Pass => "pass",
            Self::Info => "info",
            Self::Warn => "warn",
            Self::Fail => "fail",
        }
    }

    const fn tone(self) -> Tone {
        match self {
            Self::Pass => Tone::Good,
            Self::Info => Tone::Faint,
            Self::Warn => Tone::Warning,
            Self::Fail => Tone::Bad,
        }
    }
}

/// One finding.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Check {
    /// Stable, for programs.
    id: &'static str,
    level: Level,
    finding: String,
    cure: Option<String>,
}

impl Check {
    fn pass(id: &'static str, finding: impl Into<String>) -> Self {
        Self {
            id,
            level: Level::Pass,
            finding: finding.into(),
            cure: None,
        }
    }

    fn info(id: &'static str, finding: impl Into<String>) -> Self {
        Self {
            level: Level::Info,
            ..Self::pass(id, finding)
        }
    }

    fn warn(id: &'static str, finding: impl Into<String>, cure: impl Into<String>) -> Self {
        Self {
            level: Level::Warn,
            cure: Some(cure.into()),
            ..Self::pass(id, finding)
        }
    }

    fn fail(id: &'static str, finding: impl Into<String>, cure: impl Into<String>) -> Self {
        Self {
            level: Level::Fail,
            ..Self::warn(id, finding, cure)
        }
    }
}

/// Checks the node and prints the findings.
pub(crate) async fn run(global: &Global, out: Out) -> Result<(), Failure> {
    let mut checks = kernel::checks();
    checks.extend(process::checks());
    let (found, status) = sockets::checks(global).await;
    checks.extend(found);
    checks.extend(process::daemon_checks(status.as_ref()));
    checks.extend(memory::checks(status.as_ref()));
    let (found, device_tier) = gpu::checks(status.as_ref());
    checks.extend(found);
    checks.extend(degraded(status.as_ref()));
    let failed = count(&checks, Level::Fail);
    if out.json {
        out.document(&document(&checks, &device_tier))?;
    } else {
        out.text(&render(&checks, out.quiet, out.look))?;
    }
    if failed > 0 {
        Err(Failure::Unhealthy(failed))
    } else {
        Ok(())
    }
}

/// What the daemon itself found to work worse than it could.
fn degraded(status: Option<&Status>) -> Vec<Check> {
    let paths = status
        .map(|status| status.degraded.as_slice())
        .unwrap_or_default();
    let check = |path: &crate::wire::Degraded| {
        let finding = format!("mrmd: {}: {}", path.id, path.cause);
        Check::warn("degraded", finding, path.cure.clone())
    };
    paths.iter().map(check).collect()
}

fn count(checks: &[Check], level: Level) -> usize {
    checks.iter().filter(|check| check.level == level).count()
}

fn document(checks: &[Check], device_tier: &serde_json::Value) -> serde_json::Value {
    let rows: Vec<_> = checks
        .iter()
        .map(|check| {
            json!({
                "id": check.id,
                "level": check.level.name(),
                "finding": check.finding,
                "cure": check.cure,
            })
        })
        .collect();
    json!({
        "checks": rows,
        "pass": count(checks, Level::Pass),
        "info": count(checks, Level::Info),
        "warn": count(checks, Level::Warn),
        "fail": count(checks, Level::Fail),
        "device_tier": device_tier,
    })
}

fn render(checks: &[Check], quiet: bool, look: Look) -> String {
    let mut text = String::new();
    for check in checks {
        if quiet && matches!(check.level, Level::Pass | Level::Info) {
            continue;
        }
        let word = check.level.name().to_uppercase();
        let word = look.paint(check.level.tone(), &word);
        let _ = writeln!(
            text,
            "{word}  {:<ID_COLUMNS$}  {}",
            check.id,
            safe(&check.finding)
        );
        if let Some(cure) = &check.cure {
            let _ = writeln!(text, "{:>1$}{2}", "-> ", ID_COLUMNS + 11, safe(cure));
        }
    }
    if !quiet {
        let (warnings, failed) = (count(checks, Level::Warn), count(checks, Level::Fail));
        let warnings = units::count(warnings as u64, "warning");
        let passed = count(checks, Level::Pass);
        let _ = writeln!(text, "\n{passed} passed, {warnings}, {failed} failed");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn findings_have_their_cures_beneath() {
        let checks = [
            Check::pass("kernel", "Linux 6.18"),
            Check::warn("huge_pages", "none", "write `advise`"),
        ];
        let expected = "\
PASS  kernel            Linux 6.18
WARN  huge_pages        none
                        -> write `advise`

1 passed, 1 warning, 0 failed
";
        assert_eq!(render(&checks, false, Look::PLAIN), expected);
        assert!(!render(&checks, true, Look::PLAIN).contains("PASS"));
        let document = document(&checks, &json!({"mrmd": "ready"}));
        assert_eq!(document["checks"][1]["level"], "warn");
        assert_eq!(document["device_tier"]["mrmd"], "ready");
    }
}
