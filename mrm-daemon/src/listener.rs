//! Accepts clients, one task each.

use crate::runtime::ClientListener;
use crate::session::{self, Patience};
use crate::shell::Shell;
use crate::spin::Spin;
use rustix::io::Errno;
use std::time::Duration;

/// Pause after `accept` failed for want of descriptors or memory: at once it would fail again.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Accepts until dropped.
pub(crate) async fn listen(
    listener: ClientListener,
    shell: Shell,
    (patience, spin): (Patience, Spin),
) {
    loop {
        match listener.accept().await {
            Ok(stream) => {
                tokio::task::spawn_local(session::serve(
                    stream,
                    shell.clone(),
                    (patience, spin.clone()),
                ));
                // Connections of one user do not come before what others ask.
                if shell.turns().are_shared() {
                    tokio::task::yield_now().await;
                }
            }
            Err(error) => match Errno::from_io_error(&error) {
                // The peer is gone already.
                Some(Errno::CONNABORTED | Errno::INTR) => {}
                _ => {
                    shell.degraded(
                        "accept",
                        error.to_string(),
                        "raise LimitNOFILE (ulimit -n) of the daemon, or lower limits.sessions_max",
                    );
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            },
        }
    }
}
