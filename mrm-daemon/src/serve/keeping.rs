//! Which keeper the daemon has, and what is left of the last daemon.

use crate::config::{KeeperConfig, KeeperKind};
use crate::degraded::Degraded;
use crate::keeper::describe::{Description, Which};
use crate::keeper::{
    Adopted, Entry, Keeper, Key, ProcessKeeper, Respawn, SOCKET_KEYS, SharedFd, StartError,
};
use crate::runtime::{FdStore, RuntimeDir};
use mrm_proto::ids::InstanceId;
use std::ffi::OsString;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;

const CURE: &str = "the daemon serves, but its death would take the models in memory with it: see \
                    [keeper] in its configuration";

/// What a program brings along, so that its death takes nothing with it.
#[derive(Debug)]
pub struct Survival {
    /// What the fd store of systemd gave back.
    pub stored: Vec<(String, OwnedFd)>,
    /// How it is started again.
    pub program: PathBuf,
    /// Its arguments.
    pub args: Vec<OsString>,
}

/// What the last daemon left, but for its sockets.
pub(super) struct Left {
    pub(super) entries: Vec<Adopted>,
    sockets: Vec<(Key, Which)>,
}

/// The keeper, and what it had. Sockets come to be those of `dir`.
pub(super) fn start(
    config: &KeeperConfig,
    survival: Option<Survival>,
    dir: &mut RuntimeDir,
    degraded: &Degraded,
) -> (Keeper, Left) {
    let keeper = match survival {
        Some(survival) => choose(config, survival, dir.path(), degraded),
        None => Keeper::none(),
    };
    let mut left = Left {
        entries: Vec::new(),
        sockets: Vec::new(),
    };
    for mut adopted in keeper.adopt_all().entries {
        let Description::Listener(listener) = &adopted.description else {
            left.entries.push(adopted);
            continue;
        };
        let socket = adopted.fds.pop();
        match socket.map(|socket| dir.adopt(listener, socket)) {
            Some(Ok(())) => left.sockets.push((adopted.key, listener.which)),
            Some(Err(error)) => {
                degraded.report("keeper_dropped", error.to_string(), CURE);
                keeper.remove(&adopted.key, None);
            }
            None => keeper.remove(&adopted.key, None),
        }
    }
    (keeper, left)
}

impl Left {
    /// Sees to it that the keeper has a socket that was bound in `dir`.
    pub(super) fn keep_socket(
        &self,
        keeper: &Keeper,
        dir: &RuntimeDir,
        which: Which,
        (instance, socket): (InstanceId, &impl AsFd),
    ) {
        let (Some(listener), Ok(fd)) = (dir.bound(which), socket.as_fd().try_clone_to_owned())
        else {
            return;
        };
        let known = self.sockets.iter().find(|(_, other)| *other == which);
        let name = match which {
            Which::Client => "client",
            Which::Status => "status",
        };
        let key = match known {
            Some((key, _)) => Ok(key.clone()),
            None => Key::new(format!("{SOCKET_KEYS}-{name}-{:016x}", instance.0)),
        };
        let entry = key.map(|key| {
            let fds = vec![Arc::new(fd) as SharedFd];
            Entry::new(key, Description::Listener(listener), fds)
        });
        match (entry, known) {
            (Ok(Ok(entry)), Some(_)) => keeper.hold(entry),
            (Ok(Ok(entry)), None) => keeper.put(entry, None),
            (Ok(Err(error)), _) => tracing::error!(%error, "a socket is not kept"),
            (Err(error), _) => tracing::error!(%error, "a socket is not kept"),
        }
    }
}

fn choose(config: &KeeperConfig, survival: Survival, dir: &Path, degraded: &Degraded) -> Keeper {
    let Survival {
        stored,
        program,
        args,
    } = survival;
    let failed = |cause: String| {
        degraded.report("keeper", cause, CURE);
        Keeper::none()
    };
    let process = || {
        let settings = ProcessKeeper {
            keep_for_ms: config.for_ms,
            respawn: config.respawn.then(|| Respawn::new(program, args)),
            ..ProcessKeeper::of(dir)
        };
        Keeper::process(settings, degraded)
    };
    let or_none = |keeper: Result<Keeper, StartError>| {
        keeper.unwrap_or_else(|error| failed(error.to_string()))
    };
    let store = match config.kind {
        KeeperKind::None => return Keeper::none(),
        KeeperKind::Process => return or_none(process()),
        KeeperKind::Auto | KeeperKind::Systemd => FdStore::from_environment(),
    };
    match (store, config.kind) {
        (Ok(Some(store)), _) => or_none(Keeper::systemd(store, stored, degraded)),
        (Ok(None), KeeperKind::Systemd) => failed(
            "keeper.kind is \"systemd\", and the service has no fd store: set \
             FileDescriptorStoreMax= in its unit"
                .to_owned(),
        ),
        (Ok(None), _) => or_none(process()),
        (Err(error), _) => failed(format!("the fd store of systemd cannot be used: {error}")),
    }
}
