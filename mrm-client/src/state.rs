//! What the clones of a client share in one process: the session, and what is open.

use crate::client::ConnectOptions;
use crate::connection::{Connection, Patience, lock};
use crate::content::{Content, Holder as _, Lease, Open};
use crate::device::{DeviceError, DeviceWeights, retry_deferred};
use crate::error::{ConnectError, OpenError, RequestError, SegmentError, SessionError};
use crate::files::LocalFiles;
use crate::fork;
use crate::locate;
use crate::model::Model;
use crate::open::{GrantRequest, OpenOptions, Wish};
use crate::request::{Replied, refusal};
use crate::vram::Contexts;
use mrm_proto::ids::{DeviceUuid, InstanceId, VersionId};
use mrm_proto::name::ModelName;
use mrm_proto::reply::{ModelRow, OnDevice, Opened, Reply, Stated};
use mrm_proto::request::{List, Request, Stat};
use std::collections::HashMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicI32, Ordering};
use std::sync::{Arc, Mutex, OnceLock, Weak};

/// How often a request is sent again on a new session after its session broke.
pub(crate) const RESENDS_MAX: usize = 2;
/// No socket.
const NO_SOCKET: RawFd = -1;

/// One process's part of a client. A forked child gets a successor and lets this one lie, for a
/// thread that does not exist in the child may hold its locks.
#[derive(Debug)]
pub(crate) struct State {
    generation: u64,
    options: ConnectOptions,
    connection: Mutex<Option<Arc<Connection>>>,
    /// The socket of `connection`, readable without a lock.
    socket: AtomicI32,
    models: Mutex<Cache<Box<str>, Open>>,
    versions: Mutex<Cache<(InstanceId, VersionId), Content>>,
    models_on_devices: Mutex<Cache<(DeviceUuid, Box<str>), Open>>,
    devices: Mutex<OnDevices>,
    successor: OnceLock<Arc<State>>,
}

/// What is mapped on devices. Locked while importing, so that nothing is imported twice.
#[derive(Debug, Default)]
struct OnDevices {
    contexts: Contexts,
    versions: Cache<(InstanceId, VersionId, DeviceUuid), Content>,
}

impl State {
    pub(crate) fn new(options: ConnectOptions) -> Self {
        Self {
            generation: fork::generation(),
            options,
            connection: Mutex::default(),
            socket: AtomicI32::new(NO_SOCKET),
            models: Mutex::default(),
            versions: Mutex::default(),
            models_on_devices: Mutex::default(),
            devices: Mutex::default(),
            successor: OnceLock::new(),
        }
    }

    /// The state of this process, which is `root` unless it was forked since.
    pub(crate) fn of_this_process(root: &Self) -> &Self {
        let generation = fork::generation();
        let mut state = root;
        while state.generation != generation {
            state = state.successor.get_or_init(|| state.succeed());
        }
        state
    }

    pub(crate) const fn options(&self) -> &ConnectOptions {
        &self.options
    }

    fn succeed(&self) -> Arc<Self> {
        match self.socket.load(Ordering::Acquire) {
            NO_SOCKET => {}
            // So that the parent's end of the session is not put off by a copy of its socket.
            raw => fork::let_go(raw),
        }
        Arc::new(Self::new(self.options.clone()))
    }

    /// The live session, or a new one.
    pub(crate) fn connection(&self) -> Result<Arc<Connection>, ConnectError> {
        if let Some(live) = self.live() {
            return Ok(live);
        }
        // Not under the lock: a daemon that hangs costs each caller one timeout, not a queue.
        let fresh = Arc::new(self.dial()?);
        let mut slot = lock(&self.connection);
        if let Some(other) = slot.as_ref().filter(|c| c.is_live()) {
            return Ok(Arc::clone(other));
        }
        // The number must never name a descriptor that is closed already.
        self.socket.store(NO_SOCKET, Ordering::Release);
        *slot = Some(Arc::clone(&fresh));
        self.socket.store(fresh.raw_socket(), Ordering::Release);
        Ok(fresh)
    }

    pub(crate) fn open(&self, name: &str, how: &OpenOptions<'_>) -> Result<Model, OpenError> {
        let wish = Wish::of(how.tier)?;
        if let Some(model) = self.cached(name, &wish) {
            return Ok(model);
        }
        let ask = GrantRequest::by_name(name, how, wish)?;
        let model = self.granted(&ask, &[], how)?;
        Ok(self.remember(model))
    }

    pub(crate) fn open_files(
        &self,
        files: &LocalFiles,
        how: &OpenOptions<'_>,
    ) -> Result<Model, OpenError> {
        let ask = GrantRequest::of_files(files, how, Wish::of(how.tier)?);
        self.granted(&ask, &files.fds, how)
    }

    /// The model that stands for `name` in this process, if it is open where it is wanted. Who
    /// wants the best gets it from the daemon, unless it is on a device already.
    pub(crate) fn cached(&self, name: &str, wish: &Wish) -> Option<Model> {
        let why_host = wish.why_host.clone();
        if wish.any_of.is_empty() {
            let open = lock(&self.models).get(name)?;
            return open.is_good().then_some(Model { open, why_host });
        }
        let open = wish.any_of.iter().find_map(|uuid| {
            let open = lock(&self.models_on_devices).get(&(*uuid, Box::from(name)))?;
            // The daemon may have taken the lease away since.
            open.lease.holder.catch_up();
            open.is_good().then_some(open)
        })?;
        Some(Model { open, why_host })
    }

    /// Makes `model` stand for its name, unless another thread was first.
    pub(crate) fn remember(&self, model: Model) -> Model {
        let (name, why_host) = (model.open.name.clone(), model.why_host);
        let open = match model.open.content.device().map(DeviceWeights::uuid) {
            None => lock(&self.models).settle(name, model.open, Open::is_good),
            Some(uuid) => {
                lock(&self.models_on_devices).settle((uuid, name), model.open, Open::is_good)
            }
        };
        Model { open, why_host }
    }

    pub(crate) fn list(&self, prefix: &str) -> Result<Vec<ModelRow>, RequestError> {
        let mut rows: Vec<ModelRow> = Vec::new();
        loop {
            let after = rows.last().map(|row| row.name.clone());
            let request = Request::List(List {
                prefix: prefix.to_owned(),
                after: after.clone(),
            });
            let (connection, replied) = self.ask(&|_| request.clone(), &[], &self.quick())?;
            let Reply::Listed(page) = replied.reply else {
                return Err(unexpected(&connection, replied.reply));
            };
            // A page that does not go on would be asked for forever.
            let goes_on = page.models.last().map(|row| &row.name) > after.as_ref();
            rows.extend(page.models);
            if !(page.more && goes_on) {
                return Ok(rows);
            }
        }
    }

    pub(crate) fn stat(&self, name: &str) -> Result<Stated, RequestError> {
        let request = Request::Stat(Stat {
            model: checked(name)?,
        });
        let (connection, replied) = self.ask(&|_| request.clone(), &[], &self.quick())?;
        let Reply::Stated(stated) = replied.reply else {
            return Err(unexpected(&connection, replied.reply));
        };
        Ok(stated)
    }

    /// The patience for a request that loads nothing.
    const fn quick(&self) -> Patience<'static> {
        Patience {
            reply: self.options.reply_grace,
            progress: None,
        }
    }

    pub(crate) fn live(&self) -> Option<Arc<Connection>> {
        lock(&self.connection)
            .as_ref()
            .filter(|c| c.is_live())
            .cloned()
    }

    fn dial(&self) -> Result<Connection, ConnectError> {
        let paths = match &self.options.socket {
            Some(path) => vec![path.clone()],
            None => locate::socket_candidates(),
        };
        let name = self.options.name.clone().unwrap_or_else(executable_name);
        for path in &paths {
            match Connection::open(path, &name, self.options.timeout) {
                Err(ConnectError::NoDaemon { .. }) => {}
                done => return done,
            }
        }
        Err(ConnectError::NoDaemon { tried: paths })
    }

    /// Asks for a grant, and makes an open model of it.
    fn granted(
        &self,
        ask: &GrantRequest,
        fds: &[OwnedFd],
        how: &OpenOptions<'_>,
    ) -> Result<Model, OpenError> {
        if ask.wish.is_strict() {
            let connection = self.connection()?;
            // Not asked at all: it would load for nothing.
            if let Some(why) = ask
                .wish
                .why_host(&connection)
                .filter(|_| !connection.has_devices())
            {
                return Err(why.into());
            }
        }
        let patience = Patience {
            reply: ask.wait.saturating_add(self.options.reply_grace),
            progress: how.progress.as_deref(),
        };
        let fds: Vec<BorrowedFd<'_>> = fds.iter().map(AsFd::as_fd).collect();
        let request = |connection: &Connection| ask.to(connection);
        let (connection, replied) = self.ask(&request, &fds, &patience)?;
        self.admit(connection, ask, replied)
    }

    /// Sends a request, on a new session if the old one turns out to be broken.
    fn ask(
        &self,
        request: &dyn Fn(&Connection) -> Request,
        fds: &[BorrowedFd<'_>],
        patience: &Patience<'_>,
    ) -> Result<(Arc<Connection>, Replied), RequestError> {
        let mut resends = 0;
        loop {
            let connection = self.connection()?;
            match connection.request(&request(&connection), fds, patience) {
                Ok(replied) => return Ok((connection, replied)),
                Err(SessionError::Disconnected) if resends < RESENDS_MAX => resends += 1,
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Checks and maps a grant. Whatever fails, the lease is given back.
    pub(crate) fn admit(
        &self,
        connection: Arc<Connection>,
        ask: &GrantRequest,
        replied: Replied,
    ) -> Result<Model, OpenError> {
        let Reply::Opened(opened) = replied.reply else {
            return Err(unexpected(&connection, replied.reply).into());
        };
        let mut fds = replied.fds;
        let allocations = fds.split_off(1);
        let table = fds.pop().ok_or(SessionError::Disconnected)?;
        let instance = connection.hello().instance;
        let given_host = ask.wish.why_host(&connection);
        let asked_for = |uuid: &DeviceUuid| ask.wish.any_of.contains(uuid);
        if opened
            .device
            .as_ref()
            .is_some_and(|on| !asked_for(&on.uuid))
        {
            let why = "weights on a device that was not asked for".to_owned();
            return Err(connection.end(SessionError::OutOfPlace(why)).into());
        }
        let lease = Arc::new(Lease::new(opened.lease, connection, replied.fate));
        let (content, why_host) = match &opened.device {
            Some(grant) => {
                let content =
                    self.map_on_device(instance, &opened, grant, table, allocations, &lease);
                let failed = |source| DeviceError::Import {
                    model: ask.name().to_owned(),
                    uuid: grant.uuid,
                    source,
                };
                (content.map_err(failed)?, None)
            }
            None => {
                match given_host {
                    Some(why) if ask.wish.is_strict() => return Err(why.into()),
                    Some(_) | None => {}
                }
                let content = self.map_in_host(instance, &opened, table, allocations);
                let failed = |source| OpenError::Segment {
                    model: ask.name().to_owned(),
                    source,
                };
                let why_host = ask.wish.why_host.clone().or(given_host.map(Arc::new));
                (content.map_err(failed)?, why_host)
            }
        };
        let open = Open {
            name: ask.name().into(),
            version: opened.version,
            origin: opened.origin,
            took_us: opened.took_us,
            content,
            lease,
        };
        let open = Arc::new(open);
        Ok(Model { open, why_host })
    }

    fn map_in_host(
        &self,
        instance: InstanceId,
        opened: &Opened,
        table: OwnedFd,
        segments: Vec<OwnedFd>,
    ) -> Result<Arc<Content>, SegmentError> {
        let key = (instance, opened.version);
        let known = lock(&self.versions).get(&key);
        if let Some(content) = known.filter(|content| content.is_of(opened)) {
            return Ok(content);
        }
        let fresh = Arc::new(Content::in_host(opened, table, segments)?);
        Ok(lock(&self.versions).settle(key, fresh, |known| known.is_of(opened)))
    }

    fn map_on_device(
        &self,
        instance: InstanceId,
        opened: &Opened,
        grant: &OnDevice,
        table: OwnedFd,
        allocations: Vec<OwnedFd>,
        lease: &Arc<Lease>,
    ) -> Result<Arc<Content>, Arc<dyn std::error::Error + Send + Sync>> {
        retry_deferred();
        let key = (instance, opened.version, grant.uuid);
        let good = |known: &Content| known.is_of(opened) && known.is_kept_by(&lease.holder);
        let mut devices = lock(&self.devices);
        if let Some(content) = devices.versions.get(&key).filter(|known| good(known)) {
            return Ok(content);
        }
        let contexts = &mut devices.contexts;
        let fresh = Content::on_device(opened, grant, table, allocations, contexts, lease)?;
        Ok(devices.versions.settle(key, Arc::new(fresh), good))
    }
}

/// Things that somebody else keeps alive, by key.
#[derive(Debug)]
struct Cache<K, V> {
    entries: HashMap<K, Weak<V>>,
    /// How many entries make it worth looking for dead ones.
    prune_at: usize,
}

impl<K, V> Default for Cache<K, V> {
    fn default() -> Self {
        Self {
            entries: HashMap::new(),
            prune_at: 16,
        }
    }
}

impl<K: std::hash::Hash + Eq, V> Cache<K, V> {
    fn get<Q>(&self, key: &Q) -> Option<Arc<V>>
    where
        K: std::borrow::Borrow<Q>,
        Q: std::hash::Hash + Eq + ?Sized,
    {
        self.entries.get(key)?.upgrade()
    }

    /// What the key stands for from now on: a good value that another thread was first to put
    /// there, or `fresh`.
    fn settle(&mut self, key: K, fresh: Arc<V>, good: impl Fn(&V) -> bool) -> Arc<V> {
        if let Some(first) = self.get(&key).filter(|first| good(first)) {
            return first;
        }
        if self.entries.len() >= self.prune_at {
            self.entries.retain(|_, value| value.strong_count() > 0);
            self.prune_at = 16 + 2 * self.entries.len();
        }
        self.entries.insert(key, Arc::downgrade(&fresh));
        fresh
    }
}

pub(crate) fn checked(name: &str) -> Result<ModelName, RequestError> {
    ModelName::new(name).map_err(|reason| {
        let name = name.chars().take(80).collect();
        RequestError::BadName { name, reason }
    })
}

pub(crate) fn unexpected(connection: &Connection, reply: Reply) -> RequestError {
    refusal(reply, |why| {
        connection.end(why);
    })
}

fn executable_name() -> String {
    let name = std::env::current_exe().ok().and_then(|path| {
        path.file_name()
            .map(|name| name.to_string_lossy().into_owned())
    });
    format!(
        "{} (pid {})",
        name.as_deref().unwrap_or("?"),
        std::process::id()
    )
}
