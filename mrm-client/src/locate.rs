//! Where the daemon's sockets are.
//!
//! The first that applies: `$MRM_SOCKET`; `$MRM_RUNTIME_DIR/mrmd.sock`; the first that exists of
//! `$XDG_RUNTIME_DIR/mrm/mrmd.sock` and `/run/mrm/mrmd.sock`. The status socket is
//! `$MRM_STATUS_SOCKET`, else `status.sock` beside the client socket.
//!
//! ```
//! use std::path::Path;
//! let status = mrm_client::locate::status_socket_beside(Path::new("/run/mrm/mrmd.sock"));
//! assert_eq!(status, Path::new("/run/mrm/status.sock"));
//! ```

use std::ffi::OsString;
use std::path::{Path, PathBuf};

/// Name of the client socket in the runtime directory.
pub const SOCKET_NAME: &str = "mrmd.sock";
/// Name of the status socket in the runtime directory.
pub const STATUS_SOCKET_NAME: &str = "status.sock";
/// Runtime directory of a daemon that root runs.
pub const SYSTEM_RUNTIME_DIR: &str = "/run/mrm";

/// Client sockets to try, best first. More than one only where none of them exists.
#[must_use]
pub fn socket_candidates() -> Vec<PathBuf> {
    candidates(|name| std::env::var_os(name), Path::exists)
}

/// The status socket that belongs to the daemon that [`socket_candidates`] finds first.
#[must_use]
pub fn status_socket() -> PathBuf {
    match set("MRM_STATUS_SOCKET", &|name: &str| std::env::var_os(name)) {
        Some(path) => path,
        None => match socket_candidates().first() {
            Some(socket) => status_socket_beside(socket),
            None => Path::new(SYSTEM_RUNTIME_DIR).join(STATUS_SOCKET_NAME),
        },
    }
}

/// The status socket beside a client socket.
#[must_use]
pub fn status_socket_beside(socket: &Path) -> PathBuf {
    socket.with_file_name(STATUS_SOCKET_NAME)
}

fn candidates(
    env: impl Fn(&str) -> Option<OsString>,
    exists: impl Fn(&Path) -> bool,
) -> Vec<PathBuf> {
    if let Some(socket) = set("MRM_SOCKET", &env) {
        return vec![socket];
    }
    if let Some(dir) = set("MRM_RUNTIME_DIR", &env) {
        return vec![dir.join(SOCKET_NAME)];
    }
    let user = set("XDG_RUNTIME_DIR", &env).map(|dir| dir.join("mrm").join(SOCKET_NAME));
    let system = Path::new(SYSTEM_RUNTIME_DIR).join(SOCKET_NAME);
    let all: Vec<PathBuf> = user.into_iter().chain([system]).collect();
    match all.iter().find(|path| exists(path)) {
        Some(found) => vec![found.clone()],
        None => all,
    }
}

/// A variable that is set to nothing counts as not set.
fn set(name: &str, env: &impl Fn(&str) -> Option<OsString>) -> Option<PathBuf> {
    env(name)
        .filter(|value| !value.is_empty())
        .map(PathBuf::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(vars: &[(&str, &str)], existing: &[&str]) -> Vec<PathBuf> {
        let env = |name: &str| {
            vars.iter()
                .find(|(key, _)| *key == name)
                .map(|(_, value)| OsString::from(value))
        };
        candidates(env, |path| existing.iter().any(|e| Path::new(e) == path))
    }

    #[test]
    fn the_most_specific_setting_wins() {
        let all = [
            ("MRM_SOCKET", "/s"),
            ("MRM_RUNTIME_DIR", "/r"),
            ("XDG_RUNTIME_DIR", "/run/user/7"),
        ];
        assert_eq!(with(&all, &[]), [Path::new("/s")]);
        assert_eq!(with(&all[1..], &[]), [Path::new("/r/mrmd.sock")]);
        let (user, system) = ("/run/user/7/mrm/mrmd.sock", "/run/mrm/mrmd.sock");
        assert_eq!(with(&all[2..], &[system]), [Path::new(system)]);
        assert_eq!(with(&all[2..], &[system, user]), [Path::new(user)]);
        assert_eq!(with(&all[2..], &[]), [Path::new(user), Path::new(system)]);
        assert_eq!(with(&[("MRM_SOCKET", "")], &[]), [Path::new(system)]);
    }
}
