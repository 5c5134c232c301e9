//! Sockets that the service manager bound for us (`sd_listen_fds(3)`).

use super::{CLIENT_SOCKET, STATUS_SOCKET, STORED_PREFIX};
use std::io;
use std::os::fd::{FromRawFd as _, OwnedFd};
use std::os::unix::net::UnixListener;
use std::sync::atomic::{AtomicBool, Ordering};

/// The descriptors are there once a process: whoever asks first owns them.
static TAKEN: AtomicBool = AtomicBool::new(false);

/// The sockets of a service manager, which made them and removes them; and what its fd store had.
#[derive(Debug, Default)]
pub struct Activated {
    stored: Vec<(String, OwnedFd)>,
    pub(super) clients: Option<UnixListener>,
    pub(super) status: Option<UnixListener>,
}

/// Why the service manager's sockets cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ActivationError {
    /// The variables of the protocol do not fit together.
    #[error("LISTEN_FDS of the service manager cannot be used: {0}; correct the socket unit")]
    Environment(#[source] io::Error),
    /// A descriptor is no listening stream socket of this host.
    #[error(
        "descriptor {name:?} of the service manager is no listening Unix stream socket; give ListenStream= a path"
    )]
    NotListener {
        /// Its name.
        name: String,
    },
    /// There is nothing that it could be for.
    #[error(
        "descriptor {name:?} of the service manager has no use; pass one socket for clients, then one for status"
    )]
    Surplus {
        /// Its name.
        name: String,
    },
}

impl Activated {
    /// Takes what the environment says was passed: by the names `mrmd` and `status`
    /// (`FileDescriptorName=`), else by the sockets' own file names, else in this order.
    ///
    /// # Errors
    /// When what was passed cannot be used.
    pub fn from_environment() -> Result<Self, ActivationError> {
        let fds = sd_notify::listen_fds_with_names().map_err(ActivationError::Environment)?;
        if fds.len() == 0 || TAKEN.swap(true, Ordering::AcqRel) {
            return Ok(Self::default());
        }
        let owned = fds.map(|(fd, name)| {
            // SAFETY: the protocol gives the descriptors from 3 on to the process whose pid is
            // LISTEN_PID, which `listen_fds` compared with ours, and it failed on any that is not
            // open. Nothing else owns them: `TAKEN` lets this line run for one caller only, and
            // code of this process that ran before cannot have opened a file at a number that
            // was in use since its exec.
            (unsafe { OwnedFd::from_raw_fd(fd) }, name)
        });
        // All are owned before any is judged, so that a refusal leaks none.
        let (stored, sockets) =
            owned.partition(|(_, name): &(_, String)| name.starts_with(STORED_PREFIX));
        let stored: Vec<(OwnedFd, String)> = stored;
        let mut sorted = Self::sort(sockets)?;
        sorted.stored = stored.into_iter().map(|(fd, name)| (name, fd)).collect();
        Ok(sorted)
    }

    /// What the fd store gave back, by name: for
    /// [`Keeper::systemd`](crate::keeper::Keeper::systemd). A second call returns nothing.
    #[must_use]
    pub fn take_stored(&mut self) -> Vec<(String, OwnedFd)> {
        std::mem::take(&mut self.stored)
    }

    /// Gives each descriptor its use.
    fn sort(fds: Vec<(OwnedFd, String)>) -> Result<Self, ActivationError> {
        let mut sorted = Self::default();
        for (fd, name) in fds {
            if !is_listener(&fd) {
                return Err(ActivationError::NotListener { name });
            }
            let listener = UnixListener::from(fd);
            let file = bound_name(&listener).unwrap_or_default();
            let place = match (name.as_str(), file.as_str()) {
                ("mrmd", _) if sorted.clients.is_none() => &mut sorted.clients,
                ("status", _) | (_, STATUS_SOCKET) => &mut sorted.status,
                (_, CLIENT_SOCKET) => &mut sorted.clients,
                _ if sorted.clients.is_none() => &mut sorted.clients,
                _ => &mut sorted.status,
            };
            if place.is_some() {
                return Err(ActivationError::Surplus { name });
            }
            *place = Some(listener);
        }
        Ok(sorted)
    }
}

fn is_listener(fd: &OwnedFd) -> bool {
    use rustix::net::{AddressFamily, SocketType, sockopt};
    sockopt::socket_domain(fd) == Ok(AddressFamily::UNIX)
        && sockopt::socket_type(fd) == Ok(SocketType::STREAM)
        && sockopt::socket_acceptconn(fd) == Ok(true)
}

fn bound_name(listener: &UnixListener) -> Option<String> {
    let address = listener.local_addr().ok()?;
    let name = address.as_pathname()?.file_name()?;
    Some(name.to_string_lossy().into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixStream;
    use std::path::Path;

    fn listener(dir: &Path, file: &str, name: &str) -> (OwnedFd, String) {
        (
            UnixListener::bind(dir.join(file)).unwrap().into(),
            name.to_owned(),
        )
    }

    fn uses(sorted: &Activated) -> (Option<String>, Option<String>) {
        let name = |one: &Option<UnixListener>| one.as_ref().and_then(bound_name);
        (name(&sorted.clients), name(&sorted.status))
    }

    #[test]
    fn names_then_files_then_order_decide() {
        let both = |clients: &str, status: &str| (Some(clients.into()), Some(status.into()));
        let cases = [
            ([("a", "status"), ("b", "mrmd")], both("b", "a")),
            (
                [("status.sock", "mrmd.socket"), ("mrmd.sock", "mrmd.socket")],
                both("mrmd.sock", "status.sock"),
            ),
            ([("a", "unknown"), ("b", "unknown")], both("a", "b")),
            (
                [("mrmd.sock", "mrmd"), ("status.sock", "mrmd")],
                both("mrmd.sock", "status.sock"),
            ),
        ];
        for (given, expected) in cases {
            let dir = tempfile::tempdir().unwrap();
            let fds = given.map(|(file, name)| listener(dir.path(), file, name));
            assert_eq!(
                uses(&Activated::sort(fds.into()).unwrap()),
                expected,
                "{given:?}"
            );
        }
    }

    #[test]
    fn what_does_not_listen_or_is_too_much_is_refused() {
        let (stream, _other) = UnixStream::pair().unwrap();
        let refused = Activated::sort(vec![(stream.into(), "mrmd".into())]);
        assert!(matches!(refused, Err(ActivationError::NotListener { name }) if name == "mrmd"));

        let dir = tempfile::tempdir().unwrap();
        let three = ["a", "b", "c"].map(|file| listener(dir.path(), file, file));
        let refused = Activated::sort(three.into());
        assert!(matches!(refused, Err(ActivationError::Surplus { name }) if name == "c"));
    }
}
