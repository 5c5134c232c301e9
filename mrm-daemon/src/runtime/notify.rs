//! Tells the service manager how the daemon is (`sd_notify(3)`).

use sd_notify::NotifyState;
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
        if let Err(error) = sd_notify::notify(states) {
            tracing::debug!(%error, "the service manager was not reached");
        }
    }
}

/// A newline would start another assignment of the protocol.
fn one_line(text: &str) -> String {
    text.replace(['\n', '\r'], " ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixDatagram;
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
        let manager = UnixDatagram::bind(&path).unwrap();
        let mut child = Command::new(std::env::current_exe().unwrap());
        child
            .args(["--exact", TEST])
            .env(MANAGED, "1")
            .env("NOTIFY_SOCKET", &path);
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
