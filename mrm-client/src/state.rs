//! What the clones of a client share in one process: the session, and what is open.

use crate::client::ConnectOptions;
use crate::connection::{Connection, Patience, lock};
use crate::error::{ConnectError, OpenError, RequestError, SessionError};
use crate::files::LocalFiles;
use crate::fork;
use crate::locate;
use crate::model::{Content, Holder as _, Lease, Model, Open};
use crate::open::{GrantRequest, OpenOptions};
use crate::request::{Replied, refusal};
use mrm_proto::ids::{InstanceId, VersionId};
use mrm_proto::name::ModelName;
use mrm_proto::reply::{ModelRow, Reply, Stated};
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
    successor: OnceLock<Arc<State>>,
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
        if let Some(model) = self.cached(name) {
            return Ok(model);
        }
        let ask = GrantRequest::by_name(name, how)?;
        let open = self.granted(&ask, &[], how)?;
        Ok(self.remember(open))
    }

    pub(crate) fn open_files(
        &self,
        files: &LocalFiles,
        how: &OpenOptions<'_>,
    ) -> Result<Model, OpenError> {
        self.granted(&GrantRequest::of_files(files, how), &files.fds, how)
            .map(Model)
    }

    /// The model that stands for `name` in this process, if it is open.
    pub(crate) fn cached(&self, name: &str) -> Option<Model> {
        let open = lock(&self.models).get(name)?;
        open.lease.holder.is_live().then_some(Model(open))
    }

    /// Makes `open` stand for its name, unless another thread was first.
    pub(crate) fn remember(&self, open: Arc<Open>) -> Model {
        let live = |open: &Open| open.lease.holder.is_live();
        Model(lock(&self.models).settle(open.name.clone(), open, live))
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
    ) -> Result<Arc<Open>, OpenError> {
        let patience = Patience {
            reply: ask.wait.saturating_add(self.options.reply_grace),
            progress: how.progress.as_deref(),
        };
        let fds: Vec<BorrowedFd<'_>> = fds.iter().map(AsFd::as_fd).collect();
        let request = |connection: &Connection| ask.to(connection);
        let (connection, replied) = self.ask(&request, &fds, &patience)?;
        self.admit(connection, ask.name(), replied)
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
        name: &str,
        replied: Replied,
    ) -> Result<Arc<Open>, OpenError> {
        let Reply::Opened(opened) = replied.reply else {
            return Err(unexpected(&connection, replied.reply).into());
        };
        let (opened, mut fds) = (&opened, replied.fds);
        let key = (connection.hello().instance, opened.version);
        let lease = Lease {
            id: opened.lease,
            holder: connection,
        };
        let known = lock(&self.versions)
            .get(&key)
            .filter(|content| content.is_of(opened));
        let content = match known {
            Some(content) => content,
            None => {
                let segments = fds.split_off(1);
                let table = fds.pop().ok_or(SessionError::Disconnected)?;
                let fresh =
                    Content::new(opened, table, segments).map_err(|source| OpenError::Segment {
                        model: name.to_owned(),
                        source,
                    })?;
                lock(&self.versions).settle(key, Arc::new(fresh), |known| known.is_of(opened))
            }
        };
        let (version, origin, took_us) = (opened.version, opened.origin, opened.took_us);
        Ok(Arc::new(Open {
            name: name.into(),
            version,
            origin,
            took_us,
            content,
            lease,
        }))
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
