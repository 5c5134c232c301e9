//! Clients: what a process has of a daemon.

use crate::error::{ConnectError, OpenError, RequestError};
use crate::files;
use crate::model::Model;
use crate::open::OpenOptions;
use crate::retry::Retry;
use crate::state::State;
use mrm_proto::hello::ServerHello;
use mrm_proto::reply::{ModelRow, Stated};
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

/// How long connecting and the hello may take unless told otherwise.
const CONNECT_TIMEOUT_DEFAULT: Duration = Duration::from_secs(2);
/// How much longer than it asked the daemon to wait a client waits, unless told otherwise.
const REPLY_GRACE_DEFAULT: Duration = Duration::from_secs(5);

/// A session with the daemon, and the models that this process has open through it.
///
/// Cheap to clone; clones share the session and the open models.
///
/// A session may end: the daemon is stopped, killed, or replaced by a newer one. Then the client
/// connects anew, by itself while models are held (see [`ConnectOptions::reconnect`]), and asks for
/// the leases that it had; a daemon that took over the memory of the last one gives them. See
/// [`Model::is_leased`].
#[derive(Clone)]
pub struct Client {
    root: Arc<State>,
}

/// How to connect.
#[derive(Debug, Clone)]
pub struct ConnectOptions {
    pub(crate) socket: Option<PathBuf>,
    pub(crate) timeout: Duration,
    pub(crate) name: Option<String>,
    pub(crate) reply_grace: Duration,
    pub(crate) reconnect: Option<bool>,
    pub(crate) wait: Duration,
}

/// An hour is as good as forever, and can be added to any point in time.
const fn bounded(time: Duration) -> Duration {
    const MAX: Duration = Duration::from_secs(3600);
    if time.as_secs() >= MAX.as_secs() {
        MAX
    } else {
        time
    }
}

impl Default for ConnectOptions {
    fn default() -> Self {
        Self {
            socket: None,
            timeout: CONNECT_TIMEOUT_DEFAULT,
            name: None,
            reply_grace: REPLY_GRACE_DEFAULT,
            reconnect: None,
            wait: Duration::ZERO,
        }
    }
}

impl ConnectOptions {
    /// The socket that [`locate`](crate::locate) finds, two seconds, and the name of the
    /// executable.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Which socket to connect to.
    #[must_use]
    pub fn socket(mut self, path: impl Into<PathBuf>) -> Self {
        self.socket = Some(path.into());
        self
    }

    /// How long connecting and the hello may take.
    #[must_use]
    pub const fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = bounded(timeout);
        self
    }

    /// How long a reply may take beyond the wait that the request asked for. Five seconds unless
    /// set; after that the daemon is taken for hung and the call fails.
    #[must_use]
    pub const fn reply_grace(mut self, grace: Duration) -> Self {
        self.reply_grace = bounded(grace);
        self
    }

    /// Whether the client sees to its own session: connects anew by itself when a session ends while
    /// models are held, from a thread that otherwise sleeps, and lets opens wait for a daemon that
    /// is away. Unless set, `MRM_RECONNECT=0` in the environment says no, and anything else yes.
    ///
    /// Without it there is no thread, and an open fails when no daemon listens. The next call after
    /// the end of a session connects anew, and takes up what is held, either way.
    #[must_use]
    pub const fn reconnect(mut self, reconnect: bool) -> Self {
        self.reconnect = Some(reconnect);
        self
    }

    /// How long connecting may wait for a daemon to come up. Zero unless set: where none listens,
    /// connecting fails at once.
    #[must_use]
    pub const fn wait(mut self, wait: Duration) -> Self {
        self.wait = bounded(wait);
        self
    }

    pub(crate) fn reconnects(&self) -> bool {
        let asked = || std::env::var_os("MRM_RECONNECT").is_none_or(|value| value != "0");
        self.reconnect.unwrap_or_else(asked)
    }

    /// What the client calls itself, for the operator's eyes; what the process was called by, unless
    /// this is said.
    #[must_use]
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.name = Some(name.into());
        self
    }
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client")
            .field("options", self.state().link().options())
            .finish_non_exhaustive()
    }
}

impl Client {
    /// Connects to the node's daemon.
    ///
    /// # Errors
    /// When there is none, or it does not answer; says which socket was tried and what to do.
    pub fn connect() -> Result<Self, ConnectError> {
        Self::connect_with(&ConnectOptions::new())
    }

    /// Connects to the daemon behind `socket`.
    ///
    /// # Errors
    /// As [`connect`](Self::connect).
    pub fn connect_to(socket: impl AsRef<Path>) -> Result<Self, ConnectError> {
        Self::connect_with(&ConnectOptions::new().socket(socket.as_ref()))
    }

    /// Connects as `options` say.
    ///
    /// # Errors
    /// As [`connect`](Self::connect).
    pub fn connect_with(options: &ConnectOptions) -> Result<Self, ConnectError> {
        let client = Self::unconnected(options);
        client.reach()?;
        Ok(client)
    }

    /// Connects to the node's daemon and opens a registered model, with one message there: what a
    /// process does that was just started and needs one model. It saves the wait for the daemon's
    /// hello.
    ///
    /// ```no_run
    /// let (client, model) = mrm_client::Client::connect_and_open("org/bert")?;
    /// # Ok::<(), mrm_client::error::OpenError>(())
    /// ```
    ///
    /// # Errors
    /// As [`connect`](Self::connect) and [`open`](Self::open).
    pub fn connect_and_open(name: &str) -> Result<(Self, Model), OpenError> {
        Self::connect_and_open_with(&ConnectOptions::new(), name, &OpenOptions::new())
    }

    /// As [`connect_and_open`](Self::connect_and_open), with options. Where these ask for a device or
    /// for the layout alone, the daemon's hello decides what is asked, and is waited for.
    ///
    /// # Errors
    /// As [`connect_and_open`](Self::connect_and_open).
    pub fn connect_and_open_with(
        connect: &ConnectOptions,
        name: &str,
        open: &OpenOptions<'_>,
    ) -> Result<(Self, Model), OpenError> {
        let client = Self::unconnected(connect);
        let link = client.root.link();
        link.ask_ahead(State::ahead(name, open)?);
        let reached = client.reach().map_err(RequestError::from);
        let opened = match reached {
            Ok(()) => client.open_with(name, open),
            Err(error) => Err(error.into()),
        };
        link.ask_ahead(None);
        opened.map(|model| (client, model))
    }

    fn unconnected(options: &ConnectOptions) -> Self {
        Self {
            root: Arc::new(State::new(options.clone())),
        }
    }

    /// Has a session, as long as its options let it wait for one.
    fn reach(&self) -> Result<(), ConnectError> {
        let link = self.root.link();
        let mut retry = Retry::new(link.options().wait, true);
        while let Err(error) = link.connection() {
            match retry.after_connect(&error) {
                Some(pause) => link.await_news(pause),
                None => return Err(error),
            }
        }
        Ok(())
    }

    /// Opens a registered model.
    ///
    /// While a model of this name is open in the process, returns the same one.
    ///
    /// # Errors
    /// When there is no session, the daemon refuses, or what it passes is not safe to map.
    pub fn open(&self, name: &str) -> Result<Model, OpenError> {
        self.open_with(name, &OpenOptions::new())
    }

    /// As [`open`](Self::open), with options.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn open_with(&self, name: &str, options: &OpenOptions<'_>) -> Result<Model, OpenError> {
        self.state().open(name, options)
    }

    /// Opens several registered models, with one message there and as few back as hold the
    /// descriptors of all (253 each). One outcome for each name, in order; a name that fails does
    /// not keep the others from being opened.
    ///
    /// ```no_run
    /// use mrm_client::{Client, OpenOptions};
    /// let client = Client::connect()?;
    /// let names = ["clip/text", "clip/vision"];
    /// let opened = client.open_many(&names, &OpenOptions::new());
    /// let models = opened.into_iter().collect::<Result<Vec<_>, _>>()?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[must_use]
    pub fn open_many(
        &self,
        names: &[&str],
        options: &OpenOptions<'_>,
    ) -> Vec<Result<Model, OpenError>> {
        self.state().open_many(names, options)
    }

    /// Opens local files that nobody registered: one file, a directory that holds one model, or
    /// a `model.safetensors.index.json`. The client opens them, so that its own permissions
    /// count, and passes the descriptors.
    ///
    /// # Errors
    /// As [`open`](Self::open), and when the files cannot be opened or are no model.
    pub fn open_path(&self, path: impl AsRef<Path>) -> Result<Model, OpenError> {
        self.open_path_with(path, &OpenOptions::new())
    }

    /// As [`open_path`](Self::open_path), with options.
    ///
    /// # Errors
    /// As [`open_path`](Self::open_path).
    pub fn open_path_with(
        &self,
        path: impl AsRef<Path>,
        options: &OpenOptions<'_>,
    ) -> Result<Model, OpenError> {
        self.state()
            .open_files(&files::collect(path.as_ref())?, options)
    }

    /// Every model whose name begins with `prefix`, in the order of names.
    ///
    /// # Errors
    /// When there is no session, or the daemon refuses.
    pub fn list(&self, prefix: &str) -> Result<Vec<ModelRow>, RequestError> {
        self.state().list(prefix)
    }

    /// One model.
    ///
    /// # Errors
    /// When there is no session, or the daemon refuses.
    pub fn stat(&self, name: &str) -> Result<Stated, RequestError> {
        self.state().stat(name)
    }

    /// Says that a registered model will be opened so long from now, by this process or another:
    /// the daemon may load it before that, while nobody waits for anything else, where it was used
    /// last. At most an hour ahead; what is said later takes the place of what was said before.
    ///
    /// ```no_run
    /// use std::time::Duration;
    /// let client = mrm_client::Client::connect()?;
    /// client.hint("org/bert", Duration::from_secs(30))?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// When there is no session, the daemon is too old for that, has no such model, or was told of
    /// too many already.
    pub fn hint(&self, name: &str, due: Duration) -> Result<(), RequestError> {
        self.state().hint(name, due)
    }

    /// What the daemon said of itself. Connects if there is no session.
    ///
    /// # Errors
    /// When there is no session and none can be made.
    pub fn server(&self) -> Result<ServerHello, ConnectError> {
        Ok(self.state().link().connection()?.hello().clone())
    }

    /// What this process may use, which is not what its parent did.
    pub(crate) fn state(&self) -> &State {
        State::of_this_process(&self.root)
    }
}
