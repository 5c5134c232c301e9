//! What can go wrong for a command, and the exit status that says so.

use crate::wire;
use serde_json::json;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// The exit statuses, which scripts rely on.
pub(crate) mod exit {
    pub(crate) const OK: u8 = 0;
    pub(crate) const REFUSED: u8 = 1;
    pub(crate) const USAGE: u8 = 2;
    pub(crate) const NO_DAEMON: u8 = 3;
    pub(crate) const NOT_PERMITTED: u8 = 4;
    pub(crate) const NOT_FOUND: u8 = 5;
    pub(crate) const TIMED_OUT: u8 = 124;
    /// A command that cannot be run, as shells say it.
    pub(crate) const CMD_NOT_RUN: u8 = 126;
    /// A command that is not there, as shells say it.
    pub(crate) const CMD_NOT_FOUND: u8 = 127;
}

/// Why a command did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Failure {
    /// The daemon answered with an error.
    #[error("{} ({})", .0.message, .0.code)]
    Refused(wire::ErrorBody),
    /// Nobody listens.
    #[error("no daemon answers on {} ({cause})", .socket.display())]
    NoDaemon { socket: PathBuf, cause: String },
    /// None of the usual places has a socket.
    #[error("no daemon: there is no socket at {}", paths(.0))]
    NoSocket(Vec<PathBuf>),
    /// Nobody listens on any of these.
    #[error("no daemon answers on {}", paths(.0))]
    NoListener(Vec<PathBuf>),
    /// The socket's permissions keep this user out.
    #[error("not permitted to connect to {}", .0.display())]
    SocketDenied(PathBuf),
    /// The daemon did not answer in time.
    #[error("{what} did not answer within {} s", .after.as_secs_f64())]
    TimedOut { what: String, after: Duration },
    /// The daemon went away in the middle, or something else listens there.
    #[error("{} does not answer as mrmd does: {cause}", .socket.display())]
    Garbled { socket: PathBuf, cause: String },
    /// The model or file that was named is not there.
    #[error("{0}")]
    NotFound(String),
    /// A file that this user may not read.
    #[error("{0}")]
    NotPermitted(String),
    /// An argument that cannot be right.
    #[error("{0}")]
    Usage(String),
    /// The command after `--` did not start.
    #[error("cannot run {program}: {cause}")]
    Command { program: String, cause: io::Error },
    /// Printing failed. A closed pipe is not worth a message.
    #[error("cannot write the output: {0}")]
    Output(#[from] io::Error),
    /// `doctor` found something; its report says what.
    #[error("{0} checks failed")]
    Unhealthy(usize),
    /// `verify` found something; its report says what.
    #[error("{0} segments are damaged")]
    Damaged(usize),
    /// One that has been reported already, among the results of several models.
    #[error(transparent)]
    Reported(Box<Failure>),
    /// The system refused something that every command needs.
    #[error("{0}")]
    System(String),
}

impl Failure {
    /// The failure of connecting to `socket`.
    pub(crate) fn connecting(socket: &Path, cause: &io::Error) -> Self {
        let socket = socket.to_owned();
        if cause.kind() == io::ErrorKind::PermissionDenied {
            return Self::SocketDenied(socket);
        }
        Self::NoDaemon {
            socket,
            cause: plain(cause),
        }
    }

    /// Whether the reader of the output has gone, which is its right.
    pub(crate) fn is_closed_pipe(&self) -> bool {
        matches!(self, Self::Output(cause) if cause.kind() == io::ErrorKind::BrokenPipe)
    }

    /// Whether the user has been told already, by the report that was printed.
    pub(crate) fn is_reported(&self) -> bool {
        matches!(
            self,
            Self::Reported(_) | Self::Unhealthy(_) | Self::Damaged(_)
        )
    }

    /// The exit status.
    pub(crate) fn exit_status(&self) -> u8 {
        match self {
            Self::Refused(body) => match body.code.as_str() {
                "bad_name" => exit::USAGE,
                "not_permitted" => exit::NOT_PERMITTED,
                "model_not_found" | "source_missing" => exit::NOT_FOUND,
                "timed_out" | "reply_timed_out" => exit::TIMED_OUT,
                "disconnected" => exit::NO_DAEMON,
                _ => exit::REFUSED,
            },
            Self::NoDaemon { .. } | Self::NoSocket(_) | Self::NoListener(_) => exit::NO_DAEMON,
            Self::SocketDenied(_) | Self::NotPermitted(_) => exit::NOT_PERMITTED,
            Self::TimedOut { .. } => exit::TIMED_OUT,
            Self::NotFound(_) => exit::NOT_FOUND,
            Self::Usage(_) => exit::USAGE,
            Self::Command { cause, .. } if cause.kind() == io::ErrorKind::NotFound => {
                exit::CMD_NOT_FOUND
            }
            Self::Command { .. } => exit::CMD_NOT_RUN,
            Self::Reported(failure) => failure.exit_status(),
            Self::Garbled { .. }
            | Self::Output(_)
            | Self::Unhealthy(_)
            | Self::Damaged(_)
            | Self::System(_) => exit::REFUSED,
        }
    }

    /// What the user can do about it, where the message does not say so itself.
    pub(crate) fn remedy(&self) -> Option<String> {
        match self {
            Self::NoDaemon { .. } | Self::NoSocket(_) | Self::NoListener(_) => Some(
                "start it with `mrmd` (or `systemctl start mrmd`); if it runs elsewhere, set \
                 MRM_RUNTIME_DIR to its runtime directory; `mrm doctor` checks the node"
                    .into(),
            ),
            Self::SocketDenied(_) => Some(
                "ask for the group in mrmd's `socket_group`, or for a wider `socket_mode`".into(),
            ),
            Self::TimedOut { .. } => Some("`mrm status` shows whether mrmd is alive".into()),
            Self::Garbled { .. } => Some("check that the path is mrmd's status socket".into()),
            Self::Refused(body) => refused_remedy(&body.code),
            Self::Reported(failure) => failure.remedy(),
            Self::Command { .. } => Some("check the words after `--`".into()),
            Self::NotFound(_)
            | Self::NotPermitted(_)
            | Self::Usage(_)
            | Self::Output(_)
            | Self::Unhealthy(_)
            | Self::Damaged(_)
            | Self::System(_) => None,
        }
    }

    /// The stable name of the failure, for programs.
    pub(crate) fn code(&self) -> &str {
        match self {
            Self::Refused(body) => &body.code,
            Self::NoDaemon { .. } | Self::NoSocket(_) | Self::NoListener(_) => "no_daemon",
            Self::SocketDenied(_) => "socket_denied",
            Self::TimedOut { .. } => "no_answer",
            Self::Garbled { .. } => "garbled_answer",
            Self::NotFound(_) => "not_found",
            Self::NotPermitted(_) => "not_permitted",
            Self::Usage(_) => "usage",
            Self::Command { .. } => "command_failed",
            Self::Output(_) => "output_failed",
            Self::Unhealthy(_) => "unhealthy",
            Self::Damaged(_) => "damaged",
            Self::Reported(failure) => failure.code(),
            Self::System(_) => "system",
        }
    }

    /// The inner part of `{"error": ...}`: the daemon's own object where there is one.
    pub(crate) fn to_json(&self) -> serde_json::Value {
        let mut body = match self {
            Self::Refused(body) => json!(body),
            Self::NoDaemon { socket, .. }
            | Self::SocketDenied(socket)
            | Self::Garbled { socket, .. } => {
                json!({"code": self.code(), "message": self.to_string(), "socket": socket})
            }
            Self::Reported(failure) => return failure.to_json(),
            Self::NoSocket(_)
            | Self::TimedOut { .. }
            | Self::NotFound(_)
            | Self::NotPermitted(_)
            | Self::NoListener(_)
            | Self::Usage(_)
            | Self::Command { .. }
            | Self::Output(_)
            | Self::Unhealthy(_)
            | Self::Damaged(_)
            | Self::System(_) => json!({"code": self.code(), "message": self.to_string()}),
        };
        body["exit_status"] = json!(self.exit_status());
        if let Some(remedy) = self.remedy() {
            body["remedy"] = json!(remedy);
        }
        body
    }
}

/// What the command line adds to the daemon's message: which command helps.
fn refused_remedy(code: &str) -> Option<String> {
    let text = match code {
        "not_permitted" => "run it as root, as mrmd's user, or as a member of its `status_group`",
        "model_not_found" => "`mrm ls` lists what is registered",
        "in_use" => "`mrm show MODEL` lists who holds it; `mrm unpin MODEL` takes a pin off",
        "no_room" => "`mrm top` shows what holds the memory",
        "timed_out" => "the load goes on: try again, or wait longer with --wait",
        _ => return None,
    };
    Some(text.into())
}

fn paths(paths: &[PathBuf]) -> String {
    paths
        .iter()
        .map(|path| path.display().to_string())
        .collect::<Vec<_>>()
        .join(", ")
}

/// An IO error in plain words, without the number.
fn plain(cause: &io::Error) -> String {
    let kind = cause.kind();
    if kind == io::ErrorKind::NotFound {
        return "there is no such socket".into();
    }
    if kind == io::ErrorKind::ConnectionRefused {
        return "the socket is there, but no process listens on it".into();
    }
    cause.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(code: &str) -> Failure {
        Failure::Refused(wire::ErrorBody {
            code: code.into(),
            ..wire::ErrorBody::default()
        })
    }

    #[test]
    fn each_failure_has_its_exit_status() {
        let missing = io::Error::from(io::ErrorKind::NotFound);
        let denied = io::Error::from(io::ErrorKind::PermissionDenied);
        let socket = Path::new("/s");
        for (failure, status) in [
            (refused("no_room"), 1),
            (refused("a_code_of_the_future"), 1),
            (refused("not_permitted"), 4),
            (refused("model_not_found"), 5),
            (refused("timed_out"), 124),
            (refused("bad_name"), 2),
            (Failure::NoListener(vec!["/s".into()]), 3),
            (Failure::connecting(socket, &missing), 3),
            (Failure::connecting(socket, &denied), 4),
            (Failure::NoSocket(vec!["/run".into()]), 3),
            (Failure::Usage("x".into()), 2),
            (Failure::NotFound("x".into()), 5),
            (
                Failure::TimedOut {
                    what: "x".into(),
                    after: Duration::from_secs(1),
                },
                124,
            ),
            (
                Failure::Command {
                    program: "x".into(),
                    cause: missing,
                },
                127,
            ),
            (
                Failure::Command {
                    program: "x".into(),
                    cause: denied,
                },
                126,
            ),
            (Failure::Unhealthy(1), 1),
            (Failure::Damaged(1), 1),
        ] {
            assert_eq!(failure.exit_status(), status, "{failure}");
            assert_eq!(failure.to_json()["exit_status"], status);
        }
    }

    #[test]
    fn a_closed_pipe_is_told_from_a_full_disk() {
        assert!(Failure::Output(io::ErrorKind::BrokenPipe.into()).is_closed_pipe());
        assert!(!Failure::Output(io::ErrorKind::StorageFull.into()).is_closed_pipe());
    }
}
