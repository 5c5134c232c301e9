//! The daemon's sockets: that they are there, whose they are, and that both answer.

use super::Check;
use crate::args::Global;
use crate::failure::Failure;
use crate::http::Api;
use crate::sockets;
use crate::wire::Status;
use mrm_client::{Client, ConnectOptions};
use mrm_proto::limits::{VERSION_MAX, VERSION_MIN};
use std::fs::{self, Metadata};
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

const WORLD_WRITABLE: u32 = 0o002;
const STICKY: u32 = 0o1000;
const PERMISSIONS: u32 = 0o7777;
const ROOT: u32 = 0;

/// Every check of the sockets, and the status if it could be read.
pub(super) async fn checks(global: &Global) -> (Vec<Check>, Option<Status>) {
    let (client, status) = match (
        sockets::client_socket(global),
        sockets::status_socket(global),
    ) {
        (Ok(client), Ok(status)) => (client, status),
        (Err(failure), _) | (_, Err(failure)) => return (vec![no_daemon(&failure)], None),
    };
    let mut checks = Vec::new();
    if let Some(directory) = client.parent().filter(|dir| !dir.as_os_str().is_empty()) {
        checks.push(runtime_dir(directory));
        // One cause, one finding: without the directory the rest would only repeat it.
        if !directory.exists() && !status.exists() {
            return (checks, None);
        }
    }
    checks.push(socket_file("client_socket", &client));
    if client.exists() {
        checks.push(hello(&client));
    }
    checks.push(socket_file("status_socket", &status));
    if !status.exists() {
        return (checks, None);
    }
    let (check, document) = ask(status).await;
    checks.push(check);
    checks.extend(document.as_ref().map(protocol));
    (checks, document)
}

fn no_daemon(failure: &Failure) -> Check {
    Check::fail(
        "daemon",
        failure.to_string(),
        failure.remedy().unwrap_or_default(),
    )
}

/// A directory that others may write to lets them put their own socket in the daemon's place.
fn runtime_dir(directory: &Path) -> Check {
    const ID: &str = "runtime_dir";
    let shown = directory.display();
    let info = match fs::metadata(directory) {
        Ok(info) if info.is_dir() => info,
        Ok(_) => {
            let cure = "set MRM_RUNTIME_DIR to a directory";
            return Check::fail(ID, format!("{shown} is not a directory"), cure);
        }
        Err(cause) => {
            let cure = "start mrmd, which creates it, or set MRM_RUNTIME_DIR to where it is";
            return Check::fail(ID, format!("{shown}: {cause}"), cure);
        }
    };
    let mode = info.mode() & PERMISSIONS;
    let found = format!("{shown}, mode {mode:04o}, uid {}", info.uid());
    let mine = rustix::process::geteuid().as_raw();
    if mode & WORLD_WRITABLE != 0 && mode & STICKY == 0 {
        let cure = format!("`chmod o-w {shown}`: anyone could put another socket there");
        return Check::fail(ID, format!("{found}: writable for everyone"), cure);
    }
    if info.uid() != ROOT && info.uid() != mine {
        let cure = "use it only if you trust that user with the weights that you read";
        return Check::warn(ID, format!("{found}: neither root's nor yours"), cure);
    }
    Check::pass(ID, found)
}

fn socket_file(id: &'static str, socket: &Path) -> Check {
    let shown = socket.display();
    let info = match fs::metadata(socket) {
        Ok(info) => info,
        Err(cause) if cause.kind() == io::ErrorKind::NotFound => {
            return Check::fail(
                id,
                format!("{shown}: there is no such socket"),
                "start `mrmd`",
            );
        }
        Err(cause) => {
            return Check::fail(
                id,
                format!("{shown}: {cause}"),
                "check the directory's mode",
            );
        }
    };
    judge_socket(id, socket, &info)
}

fn judge_socket(id: &'static str, socket: &Path, info: &Metadata) -> Check {
    let shown = socket.display();
    if !info.file_type().is_socket() {
        let cure = format!("remove it, and start mrmd: `rm {shown}`");
        return Check::fail(id, format!("{shown} is not a socket"), cure);
    }
    let mode = info.mode() & PERMISSIONS;
    let found = format!(
        "{shown}, mode {mode:04o}, uid {} gid {}",
        info.uid(),
        info.gid()
    );
    match rustix::fs::access(socket, rustix::fs::Access::WRITE_OK) {
        Ok(()) => Check::pass(id, found),
        Err(_) => Check::fail(
            id,
            format!("{found}: this user may not connect"),
            "join the group in mrmd's `socket_group`, or have `socket_mode` widened",
        ),
    }
}

/// Opens a session as any client does.
fn hello(socket: &Path) -> Check {
    const ID: &str = "session";
    let options = ConnectOptions::new().socket(socket).name("mrm doctor");
    match Client::connect_with(&options).and_then(|client| client.server()) {
        Ok(server) => {
            let (daemon, version) = (server.daemon, server.version);
            Check::pass(ID, format!("{daemon} gives a session, protocol {version}"))
        }
        Err(cause) => Check::fail(
            ID,
            cause.to_string(),
            "see `journalctl -u mrmd` for its side",
        ),
    }
}

async fn ask(socket: PathBuf) -> (Check, Option<Status>) {
    const ID: &str = "status";
    let api = Api::new(socket);
    let read = async {
        let document = api.get("/v1/status").await?;
        api.read::<Status>(&document)
    };
    match read.await {
        Ok(status) => {
            let (version, state) = (&status.daemon.version, &status.daemon.state);
            let finding = format!("mrmd {version} (pid {}) is {state}", status.daemon.pid);
            let check = match state.as_str() {
                "serving" => Check::pass(ID, finding),
                "draining" => Check::warn(ID, finding, "it ends soon: start another afterwards"),
                _ => Check::warn(ID, finding, "wait until it serves"),
            };
            (check, Some(status))
        }
        Err(failure) => {
            let cure = failure.remedy().unwrap_or_else(|| "restart mrmd".into());
            (Check::fail(ID, failure.to_string(), cure), None)
        }
    }
}

fn protocol(status: &Status) -> Check {
    const ID: &str = "protocol";
    let theirs = &status.daemon.protocol;
    let range = |min: u16, max: u16| {
        if min == max {
            format!("version {max}")
        } else {
            format!("versions {min} to {max}")
        }
    };
    let found = format!(
        "mrmd speaks {}, this mrm {}",
        range(theirs.min, theirs.max),
        range(VERSION_MIN, VERSION_MAX)
    );
    if theirs.min.max(VERSION_MIN) <= theirs.max.min(VERSION_MAX) {
        return Check::pass(ID, found);
    }
    Check::fail(ID, found, "install mrm and mrmd of the same release")
}

#[cfg(test)]
mod tests {
    use super::super::Level;
    use super::*;
    use crate::wire::{Daemon, Protocol};
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn a_directory_that_everyone_may_write_to_is_a_failure() {
        let dir = tempfile::tempdir().unwrap();
        let chmod = |mode| {
            fs::set_permissions(dir.path(), fs::Permissions::from_mode(mode)).unwrap();
            runtime_dir(dir.path()).level
        };
        assert_eq!(chmod(0o755), Level::Pass);
        assert_eq!(chmod(0o777), Level::Fail);
        assert_eq!(chmod(0o1777), Level::Pass);
        assert_eq!(runtime_dir(&dir.path().join("none")).level, Level::Fail);
    }

    #[test]
    fn a_file_in_the_socket_s_place_is_a_failure() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        assert_eq!(socket_file("x", &path).level, Level::Fail);
        fs::write(&path, "").unwrap();
        let check = socket_file("x", &path);
        assert!(check.finding.contains("not a socket"), "{check:?}");
        fs::remove_file(&path).unwrap();
        let _listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
        assert_eq!(socket_file("x", &path).level, Level::Pass);
    }

    #[test]
    fn versions_must_overlap() {
        let of = |min, max| {
            let daemon = Daemon {
                protocol: Protocol { min, max },
                ..Daemon::default()
            };
            protocol(&Status {
                daemon,
                ..Status::default()
            })
            .level
        };
        assert_eq!(of(VERSION_MIN, VERSION_MAX + 1), Level::Pass);
        assert_eq!(of(VERSION_MAX + 1, VERSION_MAX + 2), Level::Fail);
    }
}
