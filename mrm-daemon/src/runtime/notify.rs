//! Tells the service manager how the daemon is (`sd_notify(3)`).

use sd_notify::NotifyState;
use std::io;
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::Duration;

/// Speaks to the service manager; silent when there is none.
///
/// ```
/// let notifier = mrm_daemon::runtime::Notifier::from_environment();
/// notifier.ready("serving");
/// notifier.stopping("draining");
/// ```
#[derive(Debug, Clone)]
pub struct Notifier {
    listening: bool,
    watchdog: Option<Duration>,
}

impl Notifier {
    /// Looks for `NOTIFY_SOCKET`.
    #[must_use]
    pub fn from_environment() -> Self {
        let listening = std::env::var_os("NOTIFY_SOCKET").is_some_and(|path| !path.is_empty());
        let watchdog =
            sd_notify::watchdog_enabled().filter(|period| listening && !period.is_zero());
        Self {
            listening,
            watchdog,
        }
    }

    /// The sockets accept; `status` is shown by `systemctl status`. Also ends a reload.
    pub fn ready(&self, status: &str) {
        self.send(&[NotifyState::Ready, NotifyState::Status(&one_line(status))]);
    }

    /// Shown by `systemctl status`.
    pub fn status(&self, status: &str) {
        self.send(&[NotifyState::Status(&one_line(status))]);
    }

    /// A reload begins; [`ready`](Self::ready) ends it.
    pub fn reloading(&self) {
        match NotifyState::monotonic_usec_now() {
            // In one message: without its time, systemd 253 and newer refuse the reload.
            Ok(now) => self.send(&[NotifyState::Reloading, now]),
            Err(error) => tracing::debug!(%error, "no monotonic clock"),
        }
    }

    /// No new leases from here on.
    pub fn stopping(&self, status: &str) {
        self.send(&[
            NotifyState::Stopping,
            NotifyState::Status(&one_line(status)),
        ]);
    }

    /// How often [`alive`](Self::alive) must be called at least: half of what the manager allows.
    #[must_use]
    pub fn alive_every(&self) -> Option<Duration> {
        self.watchdog.map(|period| period / 2)
    }

    /// The decider turns.
    pub fn alive(&self) {
        self.send(&[NotifyState::Watchdog]);
    }

    fn send(&self, states: &[NotifyState<'_>]) {
        if !self.listening {
            return;
        }
        // The manager notices for itself when it misses a message, and we can do no more.
        let sent = match abstract_name() {
            Some(name) => send_abstract(&name, states),
            None => sd_notify::notify(states),
        };
        if let Err(error) = sent {
            tracing::warn!(%error, "the service manager was not reached at NOTIFY_SOCKET");
        }
    }
}

/// The name of an abstract socket, which `sd_notify(3)` writes with a leading `@` and the crate
/// takes for a path.
fn abstract_name() -> Option<Vec<u8>> {
    let socket = std::env::var_os("NOTIFY_SOCKET")?;
    socket.as_bytes().strip_prefix(b"@").map(<[u8]>::to_vec)
}

fn send_abstract(name: &[u8], states: &[NotifyState<'_>]) -> io::Result<()> {
    let message: String = states.iter().map(|state| format!("{state}\n")).collect();
    let manager = SocketAddr::from_abstract_name(name)?;
    UnixDatagram::unbound()?.send_to_addr(message.as_bytes(), &manager)?;
    Ok(())
}

/// A newline would start another assignment of the protocol.
fn one_line(text: &str) -> String {
    text.replace(['\n', '\r'], " ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    const MANAGED: &str = "MRM_TEST_MANAGED";
    const TEST: &str = "runtime::notify::tests::speaks_to_the_manager_of_its_environment";

    /// Runs itself again with a manager, as a process must not change its own environment.
    #[test]
    fn speaks_to_the_manager_of_its_environment() {
        if std::env::var_os(MANAGED).is_some() {
            let notifier = Notifier::from_environment();
            assert_eq!(notifier.alive_every(), Some(Duration::from_secs(5)));
            notifier.ready("two\nlines");
            notifier.reloading();
            notifier.stopping("drain");
            notifier.alive();
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("notify");
        hears_everything(&UnixDatagram::bind(&path).unwrap(), path.as_os_str());
        let name = format!("mrm-test-notify-{}", std::process::id());
        let address = SocketAddr::from_abstract_name(&name).unwrap();
        let manager = UnixDatagram::bind_addr(&address).unwrap();
        hears_everything(&manager, std::ffi::OsStr::new(&format!("@{name}")));
    }

    fn hears_everything(manager: &UnixDatagram, socket: &std::ffi::OsStr) {
        let mut child = Command::new(std::env::current_exe().unwrap());
        child
            .args(["--exact", TEST])
            .env(MANAGED, "1")
            .env("NOTIFY_SOCKET", socket);
        let child = child
            .env("WATCHDOG_USEC", "10000000")
            .env_remove("WATCHDOG_PID")
            .output();
        let child = child.unwrap();
        assert!(
            child.status.success(),
            "{}",
            String::from_utf8_lossy(&child.stdout)
        );

        // All were sent before the child ended, so that nothing needs to be waited for.
        manager.set_nonblocking(true).unwrap();
        let receive = || {
            let mut text = [0; 512];
            let bytes = manager.recv(&mut text).unwrap();
            String::from_utf8_lossy(&text[..bytes]).into_owned()
        };
        assert_eq!(receive(), "READY=1\nSTATUS=two lines\n");
        assert!(receive().starts_with("RELOADING=1\nMONOTONIC_USEC="));
        assert_eq!(receive(), "STOPPING=1\nSTATUS=drain\n");
        assert_eq!(receive(), "WATCHDOG=1\n");
    }

    #[test]
    fn is_silent_without_a_manager() {
        let notifier = Notifier {
            listening: false,
            watchdog: None,
        };
        notifier.ready("");
        assert_eq!(notifier.alive_every(), None);
    }
}
