//! Which sockets to use: the flags first, then what the library finds.

use crate::args::Global;
use crate::failure::Failure;
use mrm_client::locate;
use std::path::PathBuf;

const STATUS_VARIABLE: &str = "MRM_STATUS_SOCKET";

/// The client socket: as given, else where the library looks.
///
/// # Errors
/// When none is given and none exists.
pub(crate) fn client_socket(global: &Global) -> Result<PathBuf, Failure> {
    match &global.socket {
        Some(path) => Ok(path.clone()),
        None => only(locate::socket_candidates()),
    }
}

/// The status socket: as given, else beside a client socket that is given, else by the
/// environment, else beside the client socket that is found.
///
/// # Errors
/// When neither socket is given and none exists.
pub(crate) fn status_socket(global: &Global) -> Result<PathBuf, Failure> {
    let by_environment = || {
        let value = std::env::var_os(STATUS_VARIABLE).filter(|value| !value.is_empty());
        value.map(PathBuf::from)
    };
    let given = match (&global.status_socket, &global.socket) {
        (Some(path), _) => Some(path.clone()),
        (None, Some(_)) => None,
        (None, None) => by_environment(),
    };
    match given {
        Some(path) => Ok(path),
        None => client_socket(global).map(|socket| locate::status_socket_beside(&socket)),
    }
}

/// One candidate is the one to use; several are places of which none has a socket.
fn only(mut candidates: Vec<PathBuf>) -> Result<PathBuf, Failure> {
    match candidates.pop() {
        Some(candidate) if candidates.is_empty() => Ok(candidate),
        last => Err(Failure::NoSocket(
            candidates.into_iter().chain(last).collect(),
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::args::ColorWhen;
    use std::path::Path;

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
    fn several_candidates_are_places_where_nothing_is() {
        assert_eq!(only(vec!["/a".into()]).unwrap(), Path::new("/a"));
        let failure = only(vec!["/a".into(), "/b".into()]).unwrap_err();
        assert!(failure.to_string().contains("/a, /b"), "{failure}");
        assert_eq!(failure.exit_status(), crate::failure::exit::NO_DAEMON);
    }
}
