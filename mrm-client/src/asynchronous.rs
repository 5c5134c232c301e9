//! The same client for tasks on tokio: nothing here blocks the runtime.
//!
//! It shares everything with the blocking client but the way of waiting, and opens in host memory
//! only. Tasks take turns at
//! reading; nothing is spawned. An open whose future is dropped is cancelled, and what the daemon
//! grants all the same is given back when the next reply is read.
//!
//! ```no_run
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! let client = mrm_client::asynchronous::AsyncClient::connect().await?;
//! let model = client.open("sentence/minilm").await?;
//! let bias: &[f32] = model.tensor("pooler.dense.bias")?.as_slice()?;
//! # Ok(()) }
//! ```

use crate::client::{Client, ConnectOptions};
use crate::connection::{CANCEL_GRACE, Connection, Ticket, lock, was_cancelled};
use crate::desk::Found;
use crate::error::{ConnectError, OpenError, RequestError, SessionError};
use crate::files;
use crate::many::{Opened, TOGETHER_MAX};
use crate::model::Model;
use crate::open::{GrantRequest, OpenOptions, Wish};
use crate::request::Replied;
use crate::retry::{RESENDS_MAX, Retry};
use crate::state::{check_hints, checked, hint, unexpected};
use mrm_proto::reply::{Reply, Stated};
use mrm_proto::request::{Request, Stat};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::io::Interest;
use tokio::net::UnixStream;
use tokio::sync::Notify;
use tokio::time::Instant;

/// A client for tasks. Cheap to clone; bound to the runtime on which it is first used.
#[derive(Debug, Clone)]
pub struct AsyncClient {
    client: Client,
    wire: Arc<Mutex<Option<Wire>>>,
}

/// A session, and how tasks wait for it.
#[derive(Debug, Clone)]
struct Wire {
    connection: Arc<Connection>,
    /// A copy of the socket's descriptor, known to the runtime. Only asked whether it is ready:
    /// reading from it would lose the descriptors that travel with frames.
    ready: Arc<UnixStream>,
    /// Told whenever a task has read something, perhaps for another.
    news: Arc<Notify>,
}

impl AsyncClient {
    /// Connects to the node's daemon.
    ///
    /// # Errors
    /// As [`Client::connect`].
    pub async fn connect() -> Result<Self, ConnectError> {
        Self::connect_with(&ConnectOptions::new()).await
    }

    /// Connects as `options` say.
    ///
    /// # Errors
    /// As [`Client::connect`].
    pub async fn connect_with(options: &ConnectOptions) -> Result<Self, ConnectError> {
        let options = options.clone();
        let client = aside(move || Client::connect_with(&options))
            .await
            .map_err(no_thread)??;
        Ok(Self {
            client,
            wire: Arc::default(),
        })
    }

    /// Opens a registered model, waiting as long as [`OpenOptions`] do by default.
    ///
    /// # Errors
    /// As [`Client::open`].
    pub async fn open(&self, name: &str) -> Result<Model, OpenError> {
        self.open_within(name, crate::open::WAIT_DEFAULT).await
    }

    /// Opens a registered model, waiting at most `wait` for room and for the load.
    ///
    /// # Errors
    /// As [`Client::open`].
    pub async fn open_within(&self, name: &str, wait: Duration) -> Result<Model, OpenError> {
        let there = self.client.state().cached(name, &Wish::default());
        if let Some(model) = there.filter(Model::is_whole) {
            return Ok(model);
        }
        let state = self.client.state();
        let ask = state.ask_for(name, &OpenOptions::new().wait(wait), Wish::default())?;
        let model = self.granted(&ask, &[]).await?;
        Ok(self.client.state().remember(model))
    }

    /// Opens several registered models, with one message there and as few back as hold the
    /// descriptors of all; what became of each, in order. Waits for each at most `wait`, as
    /// [`open_within`](Self::open_within) does.
    pub async fn open_many(&self, names: &[&str], wait: Duration) -> Vec<Result<Model, OpenError>> {
        let state = self.client.state();
        let (mut opened, asks) = state.look_up(names, &OpenOptions::new().wait(wait));
        for chunk in asks.chunks(TOGETHER_MAX).filter(|chunk| chunk.len() > 1) {
            self.open_together(chunk, &mut opened).await;
        }
        let mut all = Vec::with_capacity(names.len());
        for (name, opened) in names.iter().zip(opened) {
            all.push(match opened {
                Some(opened) => opened,
                None => self.open_within(name, wait).await,
            });
        }
        all
    }

    /// Enters what can be told after one message; the rest stays open.
    async fn open_together(&self, asks: &[(usize, GrantRequest)], opened: &mut Opened) {
        // Why there is no session is told to each that asks by itself.
        let (Ok(wire), Some((_, first))) = (self.wire().await, asks.first()) else {
            return;
        };
        let requests = asks.iter();
        let requests: Vec<_> = requests
            .map(|(_, ask)| ask.to(&wire.connection, first.wait))
            .collect();
        let patience = first.wait.saturating_add(self.reply_grace());
        let replies = wire.request_together(&requests, patience).await;
        for ((at, ask), replied) in asks.iter().zip(replies) {
            let Some(replied) = replied else { continue };
            let state = self.client.state();
            opened[*at] = state.admit_one(&wire.connection, ask, replied);
        }
    }

    /// Opens local files that nobody registered.
    ///
    /// # Errors
    /// As [`Client::open_path`].
    pub async fn open_path(&self, path: impl AsRef<Path>) -> Result<Model, OpenError> {
        let path = path.as_ref().to_owned();
        let files = aside(move || files::collect(&path))
            .await
            .map_err(no_thread)??;
        let ask = GrantRequest::of_files(&files, &OpenOptions::new(), Wish::default());
        self.granted(&ask, &files.fds).await
    }

    /// One model.
    ///
    /// # Errors
    /// As [`Client::stat`].
    pub async fn stat(&self, name: &str) -> Result<Stated, RequestError> {
        let request = Request::Stat(Stat {
            model: checked(name)?,
        });
        let (connection, replied) = self.ask(&request).await?;
        let Reply::Stated(stated) = replied.reply else {
            return Err(unexpected(&connection, replied.reply));
        };
        Ok(stated)
    }

    /// Says that a registered model will be opened so long from now.
    ///
    /// # Errors
    /// As [`Client::hint`].
    pub async fn hint(&self, name: &str, due: Duration) -> Result<(), RequestError> {
        let request = hint(name, due)?;
        check_hints(&self.wire().await?.connection)?;
        let (connection, replied) = self.ask(&request).await?;
        let Reply::Hinted(_) = replied.reply else {
            return Err(unexpected(&connection, replied.reply));
        };
        Ok(())
    }

    /// Asks for a grant, and makes an open model of it. Asks again when the session ends meanwhile.
    async fn granted(&self, ask: &GrantRequest, fds: &[OwnedFd]) -> Result<Model, OpenError> {
        let mut retry = Retry::new(ask.wait, self.client.state().link().reconnects());
        loop {
            match self.grant(ask, fds, retry.left()).await {
                Err(error) => match retry.after_open(&error) {
                    Some(pause) => tokio::time::sleep(pause).await,
                    None => return Err(error),
                },
                granted @ Ok(_) => return granted,
            }
        }
    }

    async fn grant(
        &self,
        ask: &GrantRequest,
        fds: &[OwnedFd],
        wait: Duration,
    ) -> Result<Model, OpenError> {
        let wire = self.wire().await?;
        let patience = wait.saturating_add(self.reply_grace());
        let request = ask.to(&wire.connection, wait);
        let replied = wire.request(&request, fds, patience).await?;
        self.client.state().admit(wire.connection, ask, replied)
    }

    fn reply_grace(&self) -> Duration {
        self.client.state().link().options().reply_grace
    }

    /// Sends a request, on a new session if the old one turns out to be broken.
    async fn ask(&self, request: &Request) -> Result<(Arc<Connection>, Replied), RequestError> {
        let mut resends = 0;
        loop {
            let wire = self.wire().await?;
            match wire.request(request, &[], self.reply_grace()).await {
                Ok(replied) => return Ok((wire.connection, replied)),
                Err(SessionError::Disconnected) if resends < RESENDS_MAX => resends += 1,
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// The live session, or a new one.
    async fn wire(&self) -> Result<Wire, ConnectError> {
        let connection = match self.client.state().link().live() {
            Some(live) => live,
            None => {
                let client = self.client.clone();
                aside(move || client.state().link().connection())
                    .await
                    .map_err(no_thread)??
            }
        };
        let mut slot = lock(&self.wire);
        if let Some(wire) = slot
            .as_ref()
            .filter(|w| Arc::ptr_eq(&w.connection, &connection))
        {
            return Ok(wire.clone());
        }
        let copy = connection
            .socket()
            .try_clone_to_owned()
            .map_err(no_thread)?;
        let copy = std::os::unix::net::UnixStream::from(copy);
        copy.set_nonblocking(true).map_err(no_thread)?;
        let ready = Arc::new(UnixStream::from_std(copy).map_err(no_thread)?);
        Ok(slot
            .insert(Wire {
                connection,
                ready,
                news: Arc::default(),
            })
            .clone())
    }
}

impl Wire {
    async fn request(
        &self,
        request: &Request,
        fds: &[OwnedFd],
        patience: Duration,
    ) -> Result<Replied, SessionError> {
        let late = || SessionError::TimedOut(patience);
        let deadline = Instant::now() + patience;
        let mut ticket = self.register(deadline).await?.ok_or_else(late)?;
        {
            let fds: Vec<_> = fds.iter().map(AsFd::as_fd).collect();
            ticket.send(request, &fds)?;
        }
        self.finish(ticket, deadline, patience).await
    }

    /// Sends opens in one message, and waits for the reply to each. None for those that did not fit
    /// in beside what others await.
    async fn request_together(
        &self,
        opens: &[Request],
        patience: Duration,
    ) -> Vec<Option<Result<Replied, SessionError>>> {
        let deadline = Instant::now() + patience;
        let (tickets, sent) = self.connection.ask_together(opens);
        let mut replies = Vec::with_capacity(opens.len());
        for ticket in tickets {
            replies.push(match (ticket, &sent) {
                (None, _) => None,
                (Some(_), Err(why)) => Some(Err(why.clone())),
                (Some(ticket), Ok(())) => Some(self.finish(ticket, deadline, patience).await),
            });
        }
        replies
    }

    /// Waits for the reply; beyond the deadline, cancels.
    async fn finish(
        &self,
        mut ticket: Ticket<'_>,
        deadline: Instant,
        patience: Duration,
    ) -> Result<Replied, SessionError> {
        let late = || SessionError::TimedOut(patience);
        if let Some(replied) = self.wait(&ticket, deadline).await? {
            return Ok(replied);
        }
        if !ticket.cancel() {
            return Err(late());
        }
        match self.wait(&ticket, Instant::now() + CANCEL_GRACE).await? {
            Some(replied) if !was_cancelled(&replied) => Ok(replied),
            Some(_) | None => Err(late()),
        }
    }

    async fn register(&self, deadline: Instant) -> Result<Option<Ticket<'_>>, SessionError> {
        loop {
            let news = self.news.notified();
            tokio::pin!(news);
            // From here on no news is missed.
            news.as_mut().enable();
            if let Some(ticket) = self.connection.try_register() {
                return Ok(Some(ticket));
            }
            self.connection.check_live()?;
            if !self.turn(news, deadline).await? {
                return Ok(None);
            }
        }
    }

    async fn wait(
        &self,
        ticket: &Ticket<'_>,
        deadline: Instant,
    ) -> Result<Option<Replied>, SessionError> {
        loop {
            let news = self.news.notified();
            tokio::pin!(news);
            news.as_mut().enable();
            if let Found::Reply(replied) = self.connection.look(ticket)? {
                return Ok(Some(replied));
            }
            if !self.turn(news, deadline).await? {
                return Ok(None);
            }
        }
    }

    /// Takes one step towards news; `false` when the deadline passes first.
    async fn turn(
        &self,
        news: impl Future<Output = ()>,
        deadline: Instant,
    ) -> Result<bool, SessionError> {
        tokio::select! {
            () = news => {}
            ready = self.ready.writable(), if self.connection.has_backlog() => {
                ready.map_err(broken)?;
                // `WouldBlock` makes the runtime note that the socket is not ready.
                let _ = self.ready.try_io(Interest::WRITABLE, || {
                    self.connection.flush();
                    let full = || io::ErrorKind::WouldBlock.into();
                    if self.connection.has_backlog() { Err(full()) } else { Ok(()) }
                });
            }
            ready = self.ready.readable() => {
                ready.map_err(broken)?;
                let _ = self.ready.try_io(Interest::READABLE, || self.connection.pump());
                self.news.notify_waiters();
            }
            () = tokio::time::sleep_until(deadline) => return Ok(false),
        }
        Ok(true)
    }
}

/// Runs what blocks, for a bounded time, on a thread that may.
async fn aside<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> io::Result<T> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(io::Error::other)
}

fn no_thread(error: io::Error) -> ConnectError {
    let path = std::path::PathBuf::from("(the runtime)");
    ConnectError::Io {
        path,
        source: Arc::new(error),
    }
}

fn broken(error: io::Error) -> SessionError {
    SessionError::Io(Arc::new(error))
}
