//! The daemon's side: what is to be kept, and the thread that sees to it.

use super::link::{LinkError, Taken};
use super::store::Store;
use super::table::Table;
use super::wire::RefusedBy;
use super::{Adopted, Adoption, Dropped, ENTRIES_MAX, Entry, Key, Refusal, adopt};
use crate::degraded::Degraded;
use crate::runtime::FdStore;
use rustix::event::{EventfdFlags, eventfd};
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

mod started;
mod worker;
pub use started::ProcessKeeper;
use started::Started;
use worker::Worker;

/// What an operator can do, whatever the cause.
const CURE: &str = "nothing is lost while mrmd runs; look for `mrmd keeper` in the log, and give it \
                    LimitNOFILE and memory";

/// Called once, on the keeper's thread or the caller's, when the keeper has what was last asked for
/// its key, and so no longer what it had before; or when that cannot be.
pub type Done = Box<dyn FnOnce(Result<(), KeepError>) + Send>;

/// Why something is not kept, or may still be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum KeepError {
    /// There is no keeper now. It will be given everything when there is one.
    #[error("there is no keeper now: {0}")]
    Away(String),
    /// The keeper has no room.
    #[error("the keeper refused: {0}")]
    Refused(#[from] RefusedBy),
    /// There are [`ENTRIES_MAX`] entries.
    #[error("more than {ENTRIES_MAX} entries cannot be kept")]
    Full,
    /// The description could not be written.
    #[error("{0}")]
    Description(String),
    /// Another daemon has the keeper, with all that is in it.
    #[error("another daemon has taken over")]
    Replaced,
    /// The keeper was stopped, or left.
    #[error("keeping has ended")]
    Ended,
}

/// Why no keeper can be had.
#[derive(Debug, thiserror::Error)]
#[error("cannot {step} the keeper: {source}")]
pub struct StartError {
    pub(super) step: &'static str,
    pub(super) source: io::Error,
}

/// What keeps the daemon's entries, so that the next one can adopt them.
///
/// Every call returns at once. Dropping it leaves everything with the keeper, as the daemon's death
/// does; [`stop`](Self::stop) is for an end after which nothing is to be kept.
pub struct Keeper {
    shared: Option<Arc<Shared>>,
    thread: Mutex<Option<JoinHandle<()>>>,
    adoption: Mutex<Adoption>,
}

struct Shared {
    state: Mutex<State>,
    /// An eventfd, written when there is something to do.
    wake: OwnedFd,
}

#[derive(Default)]
struct State {
    table: Table,
    ending: Option<Ending>,
    /// The thread has ended: nothing is done any more.
    ended: bool,
    replaced: bool,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Ending {
    Leave,
    Stop,
}

/// A way to keep things.
pub(super) trait Transport: Send {
    /// Keeps an entry, instead of what was there.
    fn put(&mut self, entry: &Entry) -> Result<(), LinkError>;
    /// Lets go of a key, if it is there.
    fn remove(&mut self, key: &Key) -> Result<(), LinkError>;
    /// What is there.
    fn take_all(&mut self) -> Result<Taken, LinkError>;
    /// Readable when the keeper has something to say unasked.
    fn watch(&self) -> Option<BorrowedFd<'_>>;
    /// What it said unasked.
    fn unasked(&mut self) -> Result<(), LinkError>;
    /// Makes an end of a keeper that failed; returns whether it certainly holds nothing any more.
    fn end(&mut self) -> bool;
    /// Starts another one, which has nothing.
    fn start(&mut self) -> Result<(), StartError>;
    /// Lets go of everything for good.
    fn stop(&mut self) -> Result<(), LinkError>;
}

impl Keeper {
    /// Keeps nothing: a daemon's death takes everything with it.
    #[must_use]
    pub fn none() -> Self {
        Self {
            shared: None,
            thread: Mutex::new(None),
            adoption: Mutex::default(),
        }
    }

    /// The keeper of a runtime directory: the one that a daemon before left there, or a new one.
    /// To be called by the holder of the directory's lock. Waits for the keeper, some seconds at
    /// most.
    ///
    /// # Errors
    /// When none can be had.
    pub fn process(settings: ProcessKeeper, degraded: &Degraded) -> Result<Self, StartError> {
        let started = Started::connect(settings, degraded)?;
        Self::over(Box::new(started), degraded)
    }

    /// The fd store of systemd, with what it gave back at this start
    /// ([`Activated::take_stored`](crate::runtime::Activated::take_stored)).
    ///
    /// # Errors
    /// When no thread can be started.
    pub fn systemd(
        store: FdStore,
        stored: Vec<(String, OwnedFd)>,
        degraded: &Degraded,
    ) -> Result<Self, StartError> {
        Self::over(Box::new(Store::new(store, stored)), degraded)
    }

    fn over(mut transport: Box<dyn Transport>, degraded: &Degraded) -> Result<Self, StartError> {
        let taken = match transport.take_all() {
            Ok(taken) => taken,
            Err(error) => {
                degraded.report("keeper", format!("nothing could be adopted: {error}"), CURE);
                transport.end();
                transport.start()?;
                Taken::default()
            }
        };
        let adoption = look(taken);
        let fail = |step| move |source| StartError { step, source };
        let wake = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)
            .map_err(|error| fail("wake")(error.into()))?;
        let mut state = State::default();
        for dropped in &adoption.dropped {
            tracing::warn!(key = %dropped.key, reason = %dropped.reason, "not adopted");
            let what = format!("not adopted: {dropped}");
            degraded.report(
                "keeper_dropped",
                what,
                "the log names each; it is loaded again",
            );
            state.table.remove(&dropped.key, None);
        }
        let state = Mutex::new(state);
        let shared = Arc::new(Shared { state, wake });
        let worker = Worker::new(shared.clone(), transport, degraded.clone());
        let thread = std::thread::Builder::new()
            .name("mrm-keep".into())
            .spawn(move || worker.run())
            .map_err(fail("start the thread of"))?;
        Ok(Self {
            shared: Some(shared),
            thread: Mutex::new(Some(thread)),
            adoption: Mutex::new(adoption),
        })
    }

    /// What the daemon before left, checked. Once: a second call returns nothing.
    ///
    /// For each entry, say [`hold`](Self::hold) to go on keeping it, or [`remove`](Self::remove);
    /// what is dropped is removed already.
    #[must_use]
    pub fn adopt_all(&self) -> Adoption {
        std::mem::take(&mut lock(&self.adoption))
    }

    /// Keeps `entry`, instead of what has its key.
    pub fn put(&self, entry: Entry, done: Option<Done>) {
        let put = |state: &mut State| match state.table.put(entry, done) {
            Ok(()) => Ok(()),
            Err(done) => Err((done, KeepError::Full)),
        };
        self.change(put);
    }

    /// Goes on keeping an adopted entry: the keeper is told of it only when it is started again.
    pub fn hold(&self, entry: Entry) {
        self.change(|state| {
            state.table.hold(entry);
            Ok(())
        });
    }

    /// Lets go of `key`. Until `done` is called, its memory is not free.
    pub fn remove(&self, key: &Key, done: Option<Done>) {
        self.change(|state| {
            state.table.remove(key, done);
            Ok(())
        });
    }

    /// How many entries are to be kept.
    #[must_use]
    pub fn entries(&self) -> usize {
        let shared = self.shared.as_ref();
        shared.map_or(0, |shared| lock(&shared.state).table.entries())
    }

    /// Whether another daemon took over, with all that the keeper has.
    #[must_use]
    pub fn is_replaced(&self) -> bool {
        let shared = self.shared.as_ref();
        shared.is_some_and(|shared| lock(&shared.state).replaced)
    }

    /// Lets go of everything and ends the keeper. Waits for it, some seconds at most. The fd store
    /// of systemd is left as it is: systemd empties it when it stops the service, and not when it
    /// restarts it.
    pub fn stop(&self) {
        self.end(Ending::Stop);
    }

    /// Brings the keeper into line with what is to be kept, and leaves everything with it. Waits for
    /// that, some seconds at most.
    pub fn leave(&self) {
        self.end(Ending::Leave);
    }

    fn change<F>(&self, change: F)
    where
        F: FnOnce(&mut State) -> Result<(), (Option<Done>, KeepError)>,
    {
        let Some(shared) = &self.shared else {
            // Its `Done`, if it has one, is called by the table of a keeper that is none.
            let mut state = State::default();
            let refused = change(&mut state);
            debug_assert!(refused.is_ok(), "an empty table has room");
            while let Some(job) = state.table.next() {
                job.end(Ok(()));
            }
            return;
        };
        let (refused, ended) = {
            let mut state = lock(&shared.state);
            (change(&mut state), state.ended)
        };
        if let Err((Some(done), error)) = refused {
            done(Err(error));
        }
        match ended {
            true => drain(shared, &Err(KeepError::Ended)),
            false => shared.wake(),
        }
    }

    fn end(&self, ending: Ending) {
        let Some(shared) = &self.shared else { return };
        lock(&shared.state).ending.get_or_insert(ending);
        shared.wake();
        if let Some(thread) = lock(&self.thread).take() {
            // It ends by a panic only where it reports one already.
            let _ = thread.join();
        }
        lock(&shared.state).ended = true;
        // What came after the thread's last look.
        drain(shared, &Err(KeepError::Ended));
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        self.end(Ending::Leave);
    }
}

impl std::fmt::Debug for Keeper {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Keeper").finish_non_exhaustive()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Each statement leaves what is in it whole.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Sorts what came into what can be relied on, and what not.
fn look(taken: Taken) -> Adoption {
    let mut adoption = Adoption::default();
    for raw in taken.entries {
        match adopt::check(raw) {
            Ok(adopted) => adoption.entries.push(adopted),
            Err(dropped) => adoption.dropped.push(dropped),
        }
    }
    let lost = taken.lost.into_iter().map(|key| Dropped {
        key,
        reason: Refusal::Lost,
    });
    adoption.dropped.extend(lost);
    adoption.entries.sort_by(|a: &Adopted, b| a.key.cmp(&b.key));
    adoption
}

fn drain(shared: &Shared, result: &Result<(), KeepError>) {
    loop {
        let job = lock(&shared.state).table.next();
        match job {
            Some(job) => job.end(result.clone()),
            None => return,
        }
    }
}

impl Shared {
    fn wake(&self) {
        // Full means that it is awake already.
        let _ = rustix::io::write(&self.wake, &1_u64.to_ne_bytes());
    }
}
