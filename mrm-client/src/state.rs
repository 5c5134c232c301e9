//! What the clones of a client share in one process: the session, and what is open.

use crate::client::ConnectOptions;
use crate::connection::{Connection, Patience, lock};
use crate::content::{Content, Open};
use crate::device::{DeviceError, DeviceWeights, retry_deferred};
use crate::error::{OpenError, RequestError, SegmentError, SessionError, TensorError};
use crate::files::LocalFiles;
use crate::fork;
use crate::lease::{Lease, Leased};
use crate::link::Link;
use crate::model::Model;
use crate::open::{GrantRequest, OpenOptions, WAIT_DEFAULT, Wish};
use crate::request::{Replied, refusal, tables};
use crate::retry::{RESENDS_MAX, Retry};
use crate::tables::{Known, TableSegment, Tables};
use crate::touches::Touches;
use crate::vram::Contexts;
use mrm_proto::hello::features;
use mrm_proto::ids::{DeviceUuid, InstanceId, VersionId};
use mrm_proto::limits::HINT_MS_MAX;
use mrm_proto::name::ModelName;
use mrm_proto::reply::{ModelRow, OnDevice, Opened, Origin, Reply, Stated};
use mrm_proto::request::{Hint, List, Request, Stat, WaitFor};
use rustix::time::{ClockId, clock_gettime};
use std::collections::HashMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, Weak};
use std::time::Duration;

/// For how long opens of what is open already may not hear that it is damaged.
const LOOK_EVERY_MS: u64 = 100;

/// One process's part of a client. A forked child gets a successor and lets this one lie, for a
/// thread that does not exist in the child may hold its locks.
#[derive(Debug)]
pub(crate) struct State {
    generation: u64,
    link: Arc<Link>,
    models: Mutex<Cache<Box<str>, Open>>,
    versions: Mutex<Cache<(InstanceId, VersionId), Content>>,
    tables: Mutex<Tables>,
    models_on_devices: Mutex<Cache<(DeviceUuid, Box<str>), Open>>,
    devices: Mutex<OnDevices>,
    /// When an open that asked nobody last looked at what the daemon said, by [`coarse_ms`].
    looked_ms: AtomicU64,
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
            link: Arc::new(Link::new(options)),
            models: Mutex::default(),
            versions: Mutex::default(),
            tables: Mutex::default(),
            models_on_devices: Mutex::default(),
            devices: Mutex::default(),
            looked_ms: AtomicU64::new(0),
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

    pub(crate) const fn link(&self) -> &Arc<Link> {
        &self.link
    }

    fn succeed(&self) -> Arc<Self> {
        self.link.abandon();
        Arc::new(Self::new(self.link.options().clone()))
    }

    pub(crate) fn open(&self, name: &str, how: &OpenOptions<'_>) -> Result<Model, OpenError> {
        let wish = Wish::of(how)?;
        if let Some(model) = self.cached(name, &wish) {
            return complete(model, how);
        }
        let ask = self.ask_for(name, how, wish)?;
        let model = self.granted(&ask, &[], how)?;
        complete(self.remember(model), how)
    }

    /// The request for a registered model.
    pub(crate) fn ask_for(
        &self,
        name: &str,
        how: &OpenOptions<'_>,
        wish: Wish,
    ) -> Result<GrantRequest, RequestError> {
        let mut ask = GrantRequest::by_name(name, how, wish)?;
        ask.known = lock(&self.tables).get(name);
        Ok(ask)
    }

    /// What to ask for along with the hello when `name` is opened first.
    pub(crate) fn ahead(name: &str, how: &OpenOptions<'_>) -> Result<Option<Request>, OpenError> {
        let wish = Wish::of(how)?;
        Ok(GrantRequest::by_name(name, how, wish)?.ahead())
    }

    pub(crate) fn open_files(
        &self,
        files: &LocalFiles,
        how: &OpenOptions<'_>,
    ) -> Result<Model, OpenError> {
        let ask = GrantRequest::of_files(files, how, Wish::of(how)?);
        let model = self.granted(&ask, &files.fds, how)?;
        Ok(model.for_asker(how))
    }

    /// The model that stands for `name` in this process, if it is open where it is wanted. Who
    /// wants the best gets it from the daemon, unless it is on a device already, and so does who wants
    /// more kept free there.
    pub(crate) fn cached(&self, name: &str, wish: &Wish) -> Option<Model> {
        let why_host = wish.why_host.clone();
        if wish.any_of.is_empty() {
            let open = lock(&self.models).get(name)?;
            self.look_now_and_then(&open);
            return open.is_good().then_some(Model { open, why_host });
        }
        let open = wish.any_of.iter().find_map(|uuid| {
            let open = lock(&self.models_on_devices).get(&(*uuid, Box::from(name)))?;
            // The daemon may have taken the lease away since.
            open.lease.catch_up();
            let enough = open.reserve_bytes >= wish.reserve_bytes;
            (open.is_good() && enough).then_some(open)
        })?;
        Some(Model { open, why_host })
    }

    /// Reads what the daemon has said of leases: not at each open, which would take longer for it.
    fn look_now_and_then(&self, open: &Open) {
        let now_ms = coarse_ms();
        let due_ms = self.looked_ms.load(Ordering::Relaxed) + LOOK_EVERY_MS;
        if now_ms >= due_ms {
            self.looked_ms.store(now_ms, Ordering::Relaxed);
            open.lease.catch_up();
        }
    }

    /// Makes `model` stand for its name, unless another thread was first.
    pub(crate) fn remember(&self, model: Model) -> Model {
        let (name, why_host) = (model.open.name.clone(), model.why_host);
        let open = match model.open.content.device().map(DeviceWeights::uuid) {
            None => {
                // What is whole stands for its name before what is still being filled.
                let whole = model.open.is_whole();
                let good = |first: &Open| first.is_good() && (first.is_whole() || !whole);
                lock(&self.models).settle(name, model.open, good)
            }
            Some(uuid) => {
                let wants = model.open.reserve_bytes;
                let good = |first: &Open| first.is_good() && first.reserve_bytes >= wants;
                lock(&self.models_on_devices).settle((uuid, name), model.open, good)
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
            let (connection, replied) = self.ask(&request, &self.quick())?;
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
        let (connection, replied) = self.ask(&request, &self.quick())?;
        let Reply::Stated(stated) = replied.reply else {
            return Err(unexpected(&connection, replied.reply));
        };
        Ok(stated)
    }

    pub(crate) fn hint(&self, name: &str, due: Duration) -> Result<(), RequestError> {
        let request = hint(name, due)?;
        check_hints(&*self.link.connection()?)?;
        let (connection, replied) = self.ask(&request, &self.quick())?;
        let Reply::Hinted(_) = replied.reply else {
            return Err(unexpected(&connection, replied.reply));
        };
        Ok(())
    }

    /// The patience for a request that loads nothing.
    fn quick(&self) -> Patience<'static> {
        Patience {
            reply: self.link.options().reply_grace,
            progress: None,
        }
    }

    /// Asks for a grant, and makes an open model of it. Asks again when the session ends meanwhile.
    fn granted(
        &self,
        ask: &GrantRequest,
        fds: &[OwnedFd],
        how: &OpenOptions<'_>,
    ) -> Result<Model, OpenError> {
        let mut retry = Retry::new(ask.wait, self.link.reconnects());
        loop {
            match self.grant(ask, fds, how, retry.left()) {
                Err(error) => match retry.after_open(&error) {
                    Some(pause) => self.link.await_news(pause),
                    None => return Err(error),
                },
                granted @ Ok(_) => return granted,
            }
        }
    }

    fn grant(
        &self,
        ask: &GrantRequest,
        fds: &[OwnedFd],
        how: &OpenOptions<'_>,
        wait: Duration,
    ) -> Result<Model, OpenError> {
        let connection = self.link.connection()?;
        ask.check(&connection)?;
        let patience = Patience {
            reply: wait.saturating_add(self.link.options().reply_grace),
            progress: how.progress.as_deref(),
        };
        let fds: Vec<BorrowedFd<'_>> = fds.iter().map(AsFd::as_fd).collect();
        let replied = connection.request(&ask.to(&connection, wait), &fds, &patience)?;
        self.admit(connection, ask, replied)
    }

    /// Sends a request, on a new session if the old one turns out to be broken.
    fn ask(
        &self,
        request: &Request,
        patience: &Patience<'_>,
    ) -> Result<(Arc<Connection>, Replied), RequestError> {
        let mut resends = 0;
        loop {
            let connection = self.link.connection()?;
            match connection.request(request, &[], patience) {
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
        let Reply::Opened(mut opened) = replied.reply else {
            return Err(unexpected(&connection, replied.reply).into());
        };
        let mut fds = replied.fds;
        let allocations = fds.split_off(tables(&opened));
        let table = self.table_of(&connection, ask, &mut opened, fds.pop())?;
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
        // Who takes all of it would wait for frames that need not come.
        if opened.filling.is_some() && !(ask.is_early(&connection) && opened.device.is_none()) {
            let why = "weights that are still being filled, which was not asked for".to_owned();
            return Err(connection.end(SessionError::OutOfPlace(why)).into());
        }
        let fate = replied.fates.into_iter().next();
        let filling = fate.clone().filter(|fate| fate.filling().is_some());
        // Who loaded it knows the order from the first tensor on.
        let tells = connection.grants_early() && opened.origin == Origin::Loaded;
        let tells = tells && opened.device.is_none();
        let touches = tells.then(|| Touches::new(opened.lease, &connection));
        let leased = Leased::of(&opened, ask.reserve_bytes(&connection));
        let lease = self.link.lease(opened.lease, leased, &connection, fate)?;
        let lease = Arc::new(lease);
        let (content, why_host) = match &opened.device {
            Some(grant) => {
                let content = self.map_on_device(&opened, grant, table, allocations, &lease);
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
                let content = self.map_in_host(&opened, table, allocations, &lease);
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
            wait: ask.wait,
            reserve_bytes: match opened.device {
                Some(_) => ask.wish.reserve_bytes,
                None => 0,
            },
            filling,
            content,
            touches,
            lease,
        };
        let open = Arc::new(open);
        Ok(Model { open, why_host })
    }

    /// The tensor table of what was granted: what came, or what is here and was left out for that.
    fn table_of(
        &self,
        connection: &Connection,
        ask: &GrantRequest,
        opened: &mut Opened,
        came: Option<OwnedFd>,
    ) -> Result<Arc<TableSegment>, SessionError> {
        let Some(fd) = came else {
            let known = ask.known_to(connection);
            let Some(known) = known.filter(|known| known.version == opened.version) else {
                let why = "a grant without its tensor table, which was not known".to_owned();
                return Err(connection.end(SessionError::OutOfPlace(why)));
            };
            opened.table_bytes = known.table.len();
            return Ok(Arc::clone(&known.table));
        };
        let table = Arc::new(TableSegment::new(fd, opened.table_bytes));
        if ask.is_by_name() && connection.leaves_out_tables() {
            let known = Known {
                instance: connection.hello().instance,
                version: opened.version,
                table: Arc::clone(&table),
            };
            lock(&self.tables).keep(ask.name(), known);
        }
        Ok(table)
    }

    fn map_in_host(
        &self,
        opened: &Opened,
        table: Arc<TableSegment>,
        segments: Vec<OwnedFd>,
        lease: &Lease,
    ) -> Result<Arc<Content>, SegmentError> {
        if opened.filling.is_some() {
            // What tells of it goes with this lease, so that nobody else can share it.
            return Ok(Arc::new(Content::in_host(opened, table, segments)?));
        }
        let key = lease.shared_as(opened.version);
        let known = lock(&self.versions).get(&key);
        // What was found damaged is loaded anew, into other memory.
        if let Some(content) = known.filter(|known| known.is_of(opened) && known.maps(&segments)) {
            return Ok(content);
        }
        let fresh = Arc::new(Content::in_host(opened, table, segments)?);
        let same = Arc::clone(&fresh);
        let good = |known: &Content| known.is_of(opened) && known.maps(same.parts());
        Ok(lock(&self.versions).settle(key, fresh, good))
    }

    fn map_on_device(
        &self,
        opened: &Opened,
        grant: &OnDevice,
        table: Arc<TableSegment>,
        allocations: Vec<OwnedFd>,
        lease: &Arc<Lease>,
    ) -> Result<Arc<Content>, Arc<dyn std::error::Error + Send + Sync>> {
        retry_deferred();
        let (instance, version) = lease.shared_as(opened.version);
        let key = (instance, version, grant.uuid);
        let good = |known: &Content| known.is_of(opened) && known.is_kept();
        let mut devices = lock(&self.devices);
        if let Some(content) = devices.versions.get(&key).filter(|known| good(known)) {
            return Ok(content);
        }
        let contexts = &mut devices.contexts;
        let fresh = Content::on_device(grant, table, allocations, contexts, lease)?;
        Ok(devices.versions.settle(key, Arc::new(fresh), good))
    }
}

impl Drop for State {
    fn drop(&mut self) {
        if self.link.is_inherited() {
            self.link.abandon();
        }
    }
}

/// Milliseconds of a clock that the kernel sets on with each of its ticks. To read it takes 3 ns, and an exact
/// one 22, which is a fifth of an open that asks nobody. See `clock_gettime(2)`.
fn coarse_ms() -> u64 {
    let now = clock_gettime(ClockId::MonotonicCoarse);
    let seconds = u64::try_from(now.tv_sec).unwrap_or(0);
    seconds * 1000 + u64::try_from(now.tv_nsec).unwrap_or(0) / 1_000_000
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

/// Who asks for all of a model that another thread opened by its layout waits for the rest.
fn complete(model: Model, how: &OpenOptions<'_>) -> Result<Model, OpenError> {
    if how.wait_for == WaitFor::All && !model.is_whole() {
        let failed = |why: TensorError| OpenError::Incomplete(Box::new(why));
        model
            .wait_whole(how.wait.unwrap_or(WAIT_DEFAULT))
            .map_err(failed)?;
    }
    Ok(model.for_asker(how))
}

pub(crate) fn checked(name: &str) -> Result<ModelName, RequestError> {
    ModelName::new(name).map_err(|reason| {
        let name = name.chars().take(80).collect();
        RequestError::BadName { name, reason }
    })
}

/// What says that a model will be opened.
pub(crate) fn hint(name: &str, due: Duration) -> Result<Request, RequestError> {
    let in_ms = u64::try_from(due.as_millis()).unwrap_or(u64::MAX);
    Ok(Request::Hint(Hint {
        model: checked(name)?,
        in_ms: in_ms.min(HINT_MS_MAX),
    }))
}

/// Older daemons would end the session.
pub(crate) fn check_hints(connection: &Connection) -> Result<(), RequestError> {
    let hello = connection.hello();
    match hello.features & features::HINT {
        0 => Err(RequestError::NoHints(hello.daemon.clone())),
        _ => Ok(()),
    }
}

pub(crate) fn unexpected(connection: &Connection, reply: Reply) -> RequestError {
    refusal(reply, |why| {
        connection.end(why);
    })
}
