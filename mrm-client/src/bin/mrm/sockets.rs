//! Where the daemon's sockets are.

use crate::args::Global;
use crate::failure::Failure;
use std::path::{Path, PathBuf};

/// The client socket's file name inside a runtime directory.
pub(crate) const CLIENT_SOCKET: &str = "mrmd.sock";
/// The status socket's file name beside it.
pub(crate) const STATUS_SOCKET: &str = "status.sock";
const SYSTEM_RUNTIME_DIR: &str = "/run/mrm";

/// The client socket: as given, else `$MRM_RUNTIME_DIR/mrmd.sock`, else the first that exists of
/// `$XDG_RUNTIME_DIR/mrm/mrmd.sock` and `/run/mrm/mrmd.sock`.
///
/// # Errors
/// When none is given and none exists.
pub(crate) fn client_socket(global: &Global) -> Result<PathBuf, Failure> {
    find(global, |name| {
        std::env::var_os(name)
            .filter(|v| !v.is_empty())
            .map(PathBuf::from)
    })
}

/// The status socket: as given, else `status.sock` beside the client socket.
///
/// # Errors
/// When neither socket is given and none exists.
pub(crate) fn status_socket(global: &Global) -> Result<PathBuf, Failure> {
    if let Some(path) = given(global.status_socket.as_deref()) {
        return Ok(path);
    }
    Ok(client_socket(global)?.with_file_name(STATUS_SOCKET))
}

fn find(global: &Global, env: impl Fn(&str) -> Option<PathBuf>) -> Result<PathBuf, Failure> {
    if let Some(path) = given(global.socket.as_deref()) {
        return Ok(path);
    }
    if let Some(directory) = env("MRM_RUNTIME_DIR") {
        return Ok(directory.join(CLIENT_SOCKET));
    }
    let mut tried = Vec::new();
    let directories = [env("XDG_RUNTIME_DIR").map(|dir| dir.join("mrm"))]
        .into_iter()
        .flatten()
        .chain([PathBuf::from(SYSTEM_RUNTIME_DIR)]);
    for directory in directories {
        let socket = directory.join(CLIENT_SOCKET);
        if socket.exists() {
            return Ok(socket);
        }
        tried.push(socket.display().to_string());
    }
    Err(Failure::NoSocket(tried.join(" or ")))
}

/// An empty value (a variable set to nothing) is as none.
fn given(path: Option<&Path>) -> Option<PathBuf> {
    path.filter(|path| !path.as_os_str().is_empty())
        .map(Path::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::args::ColorWhen;

    fn global(socket: Option<&str>, status: Option<&str>) -> Global {
        Global {
            json: false,
            socket: socket.map(PathBuf::from),
            status_socket: status.map(PathBuf::from),
            color: ColorWhen::Never,
            quiet: false,
        }
    }

    #[test]
    fn what_is_given_wins_and_the_status_socket_is_beside_it() {
        let given = global(Some("/x/y.sock"), None);
        assert_eq!(client_socket(&given).unwrap(), Path::new("/x/y.sock"));
        assert_eq!(status_socket(&given).unwrap(), Path::new("/x/status.sock"));
        let both = global(Some("/x/y.sock"), Some("/z.sock"));
        assert_eq!(status_socket(&both).unwrap(), Path::new("/z.sock"));
    }

    #[test]
    fn the_runtime_directory_comes_before_the_search() {
        let dir = tempfile::tempdir().unwrap();
        let env = |name: &str| (name == "MRM_RUNTIME_DIR").then(|| dir.path().to_owned());
        assert_eq!(
            find(&global(None, None), env).unwrap(),
            dir.path().join(CLIENT_SOCKET)
        );
    }

    #[test]
    fn the_search_takes_what_exists() {
        let dir = tempfile::tempdir().unwrap();
        let env = |name: &str| (name == "XDG_RUNTIME_DIR").then(|| dir.path().to_owned());
        std::fs::create_dir(dir.path().join("mrm")).unwrap();
        let socket = dir.path().join("mrm").join(CLIENT_SOCKET);
        std::fs::write(&socket, "").unwrap();
        assert_eq!(find(&global(Some(""), None), env).unwrap(), socket);
    }
}
