//! What goes on while `mrm open` holds a model: a command, or the wait for Ctrl-C.

use crate::failure::Failure;
use crate::signals::listen_to;
use rustix::process::{Pid, Signal, getpgrp, kill_process};
use rustix::termios::tcgetpgrp;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command, ExitStatus};
use tokio::signal::unix::SignalKind;

/// As shells say that a signal ended a command.
const SIGNAL_BASE: i32 = 128;

/// Runs a command to its end, passing signals on to it. Returns its exit status.
pub(super) async fn while_running<const N: usize>(
    program: &OsStr,
    arguments: &[OsString],
    environment: [(&str, OsString); N],
) -> Result<u8, Failure> {
    // Everything is listened to before the command starts, so that no signal is lost.
    let mut ended = listen_to(SignalKind::child())?;
    let mut hangup = listen_to(SignalKind::hangup())?;
    let mut interrupt = listen_to(SignalKind::interrupt())?;
    let mut quit = listen_to(SignalKind::quit())?;
    let mut terminate = listen_to(SignalKind::terminate())?;
    let mut user1 = listen_to(SignalKind::user_defined1())?;
    let mut user2 = listen_to(SignalKind::user_defined2())?;
    let mut child = Command::new(program)
        .args(arguments)
        .envs(environment)
        .spawn()
        .map_err(|cause| Failure::Command {
            program: program.to_string_lossy().into_owned(),
            cause,
        })?;
    loop {
        let status = child
            .try_wait()
            .map_err(|cause| Failure::System(cause.to_string()))?;
        if let Some(status) = status {
            return Ok(exit_status(status));
        }
        let signal = tokio::select! {
            _ = ended.recv() => continue,
            _ = hangup.recv() => Signal::HUP,
            _ = interrupt.recv() => Signal::INT,
            _ = quit.recv() => Signal::QUIT,
            _ = terminate.recv() => Signal::TERM,
            _ = user1.recv() => Signal::USR1,
            _ = user2.recv() => Signal::USR2,
        };
        pass_on(&child, signal);
    }
}

/// Waits until somebody ends the wait; calls `ready` once that is possible.
pub(super) async fn until_interrupted(ready: impl FnOnce()) -> Result<(), Failure> {
    let mut hangup = listen_to(SignalKind::hangup())?;
    let mut interrupt = listen_to(SignalKind::interrupt())?;
    let mut terminate = listen_to(SignalKind::terminate())?;
    ready();
    tokio::select! {
        _ = hangup.recv() => {}
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
    }
    Ok(())
}

/// Sends `signal` to the command, unless the terminal has done so already: Ctrl-C goes to every
/// process in the foreground, and programs take a second one as "at once".
fn pass_on(child: &Child, signal: Signal) {
    if matches!(signal, Signal::INT | Signal::QUIT) && in_foreground() {
        return;
    }
    // The child is not reaped yet, so that its number is still its own; it may have ended.
    if let Some(pid) = i32::try_from(child.id()).ok().and_then(Pid::from_raw) {
        let _ = kill_process(pid, signal);
    }
}

fn in_foreground() -> bool {
    File::open("/dev/tty").is_ok_and(|tty| tcgetpgrp(&tty).is_ok_and(|group| group == getpgrp()))
}

fn exit_status(status: ExitStatus) -> u8 {
    let by_signal = || status.signal().map(|number| SIGNAL_BASE + number);
    let code = status.code().or_else(by_signal).unwrap_or(1);
    u8::try_from(code).unwrap_or(u8::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_signal_is_told_as_shells_tell_it() {
        assert_eq!(exit_status(ExitStatus::from_raw(7 << 8)), 7);
        assert_eq!(exit_status(ExitStatus::from_raw(9)), 137);
    }
}
