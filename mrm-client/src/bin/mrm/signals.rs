//! The signals that a command listens to.

use crate::failure::Failure;
use std::fs;
use tokio::signal::unix::{Signal, SignalKind, signal};

/// A stream of one signal.
#[derive(Debug)]
pub(crate) struct Signals(Option<Signal>);

/// Begins to listen; not to hangups where `nohup` has them ignored, by us and by what we start: a
/// program begins with what its parent ignores, and with nothing of what its parent listens to
/// (signal(7)).
pub(crate) fn listen_to(kind: SignalKind) -> Result<Signals, Failure> {
    if kind == SignalKind::hangup() && is_ignored(kind) {
        return Ok(Signals(None));
    }
    let signals = signal(kind);
    let signals =
        signals.map_err(|cause| Failure::System(format!("cannot listen to signals: {cause}")))?;
    Ok(Signals(Some(signals)))
}

impl Signals {
    /// Waits for the next, which never comes where nobody listens.
    pub(crate) async fn recv(&mut self) {
        match &mut self.0 {
            Some(signals) => {
                let _ = signals.recv().await;
            }
            None => std::future::pending().await,
        }
    }
}

/// As proc_pid_status(5) has it: bit 0 stands for signal 1.
fn is_ignored(kind: SignalKind) -> bool {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    status
        .lines()
        .find_map(|line| line.strip_prefix("SigIgn:"))
        .and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok())
        .is_some_and(|mask| mask >> (kind.as_raw_value() - 1) & 1 == 1)
}
