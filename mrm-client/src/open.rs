//! How to open: options, and local files.
//!
//! ```
//! use std::time::Duration;
//! let seen = std::cell::Cell::new(0);
//! let options = mrm_client::OpenOptions::new()
//!     .wait(Duration::from_secs(5))
//!     .on_progress(|p| seen.set(p.loaded_bytes));
//! ```

use crate::connection::Connection;
use crate::device::{DeviceError, Tier};
use crate::error::RequestError;
use crate::files::LocalFiles;
use crate::state::checked;
use crate::tables::Known;
use mrm_proto::ids::DeviceUuid;
use mrm_proto::limits::WAIT_MS_MAX;
use mrm_proto::reply::Progress;
use mrm_proto::request::{Devices as AskedDevices, Open, OpenFiles, Request, WaitFor};
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

/// How long an open waits unless told otherwise.
pub const WAIT_DEFAULT: Duration = Duration::from_secs(30);

/// How to open a model.
#[derive(Default)]
pub struct OpenOptions<'a> {
    pub(crate) wait: Option<Duration>,
    pub(crate) tier: Tier,
    pub(crate) wait_for: WaitFor,
    pub(crate) progress: Option<Box<dyn Fn(Progress) + 'a>>,
    pub(crate) populate: bool,
    pub(crate) reserve_bytes: u64,
}

impl<'a> OpenOptions<'a> {
    /// A wait of [`WAIT_DEFAULT`], host memory, and no progress.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// How long to wait for room and for the load. Zero asks for what is there at once.
    #[must_use]
    pub fn wait(mut self, wait: Duration) -> Self {
        self.wait = Some(wait);
        self
    }

    /// In which memory the weights are wanted. The host's unless set.
    #[must_use]
    pub const fn tier(mut self, tier: Tier) -> Self {
        self.tier = tier;
        self
    }

    /// Whether every page of a model in host memory is mapped before the open returns, so that no
    /// first touch waits for the kernel. Not unless set: an open takes microseconds whatever the
    /// size, and mapping all takes 0.3 ms per GiB in 2 MiB pages, 48 ms in those of 4 KiB.
    #[must_use]
    pub const fn populate(mut self, populate: bool) -> Self {
        self.populate = populate;
        self
    }

    /// Whether to wait for all of the model, as unless set, or for its layout alone: then tensors
    /// become ready one by one, and [`Model::tensor`](crate::Model::tensor) waits for the one that it
    /// is asked for, for as long as [`wait`](Self::wait) says. What is read that way before the
    /// model [is whole](crate::Model::is_whole) was not yet compared with what the file was when the
    /// load began. On a device, by asynchronous clients, and where the daemon
    /// does not know of this, all is waited for.
    #[must_use]
    pub const fn wait_for(mut self, wait_for: WaitFor) -> Self {
        self.wait_for = wait_for;
        self
    }

    /// How much memory of the device that the weights come to be on is to stay free of weights while
    /// the model is open, in bytes: what this process needs there to run. It is room like that for
    /// the weights: others' that are not in use go for it, and the open waits where that does not
    /// suffice. Opens of what this client has open there share its lease and what that keeps free; one that
    /// asks for more has a lease of its own. The daemon keeps more free if its operator said
    /// so of the model. In host memory, and where the daemon does not know of this, nothing is kept
    /// free. 0 unless set.
    #[must_use]
    pub const fn reserve_bytes(mut self, reserve_bytes: u64) -> Self {
        self.reserve_bytes = reserve_bytes;
        self
    }

    /// Called on the opening thread while the model loads; not called for a hit.
    #[must_use]
    pub fn on_progress(mut self, progress: impl Fn(Progress) + 'a) -> Self {
        self.progress = Some(Box::new(progress));
        self
    }
}

impl fmt::Debug for OpenOptions<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OpenOptions")
            .field("wait", &self.wait)
            .field("tier", &self.tier)
            .field("wait_for", &self.wait_for)
            .field("progress", &self.progress.is_some())
            .field("populate", &self.populate)
            .field("reserve_bytes", &self.reserve_bytes)
            .finish()
    }
}

/// What an open asks of the daemon about devices.
#[derive(Debug, Default)]
pub(crate) struct Wish {
    /// Any of these; empty when host memory is asked for.
    pub(crate) any_of: Vec<DeviceUuid>,
    /// Whether host memory will do as well.
    pub(crate) else_host: bool,
    /// Why no device is asked for, though one would have been liked.
    pub(crate) why_host: Option<Arc<DeviceError>>,
    /// What is to stay free on the device.
    pub(crate) reserve_bytes: u64,
}

impl Wish {
    /// What the options mean in this process.
    pub(crate) fn of(how: &OpenOptions<'_>) -> Result<Self, DeviceError> {
        let mut wish = Self {
            reserve_bytes: how.reserve_bytes,
            ..Self::default()
        };
        match how.tier {
            Tier::Host => {}
            Tier::Device(devices) => wish.any_of = devices.find()?,
            Tier::Best(devices) => {
                wish.else_host = true;
                match devices.find() {
                    Ok(any_of) => wish.any_of = any_of,
                    Err(why) => wish.why_host = Some(Arc::new(why)),
                }
            }
        }
        Ok(wish)
    }

    /// Whether only a device will do.
    pub(crate) fn is_strict(&self) -> bool {
        !self.any_of.is_empty() && !self.else_host
    }

    /// Why `connection` gives host memory to one who would have liked a device.
    pub(crate) fn why_host(&self, connection: &Connection) -> Option<DeviceError> {
        if self.any_of.is_empty() {
            return None;
        }
        if connection.has_devices() {
            return Some(DeviceError::GaveHost);
        }
        let daemon = connection.hello().daemon.clone();
        Some(DeviceError::NoDeviceTier { daemon })
    }

    fn asked(&self) -> Option<AskedDevices> {
        (!self.any_of.is_empty()).then(|| AskedDevices {
            any_of: self.any_of.clone(),
            else_host: self.else_host,
            reserve_bytes: (self.reserve_bytes > 0).then_some(self.reserve_bytes),
        })
    }
}

/// A request for a grant, but for what the daemon bounds.
#[derive(Debug)]
pub(crate) struct GrantRequest {
    request: Request,
    /// How long the daemon is to wait.
    pub(crate) wait: Duration,
    /// Where the weights are wanted.
    pub(crate) wish: Wish,
    /// What is here of the version that was granted last.
    pub(crate) known: Option<Known>,
}

impl GrantRequest {
    pub(crate) fn by_name(
        name: &str,
        how: &OpenOptions<'_>,
        wish: Wish,
    ) -> Result<Self, RequestError> {
        let progress = how.progress.is_some();
        let open = Open {
            progress,
            devices: wish.asked(),
            wait_for: early(how),
            ..Open::by_name(checked(name)?)
        };
        Ok(Self {
            request: Request::Open(open),
            wait: bounded(how.wait),
            wish,
            known: None,
        })
    }

    pub(crate) fn of_files(files: &LocalFiles, how: &OpenOptions<'_>, wish: Wish) -> Self {
        let request = Request::OpenFiles(OpenFiles {
            label: files.label.clone(),
            files: files.names.clone(),
            wait_ms: 0,
            progress: how.progress.is_some(),
            devices: wish.asked(),
            wait_for: early(how),
        });
        Self {
            request,
            wait: bounded(how.wait),
            wish,
            known: None,
        }
    }

    /// What is here of what `connection` may grant, if it knows of that.
    pub(crate) fn known_to(&self, connection: &Connection) -> Option<&Known> {
        let known = self.known.as_ref()?;
        (connection.leaves_out_tables() && connection.hello().instance == known.instance)
            .then_some(known)
    }

    /// Whether to ask `connection` at all: what only a device will do for would be loaded for
    /// nothing by a daemon that has none.
    pub(crate) fn check(&self, connection: &Connection) -> Result<(), DeviceError> {
        let without = self.wish.is_strict() && !connection.has_devices();
        match self.wish.why_host(connection).filter(|_| without) {
            Some(why) => Err(why),
            None => Ok(()),
        }
    }

    /// Whether it asks `connection` for what is still being filled.
    pub(crate) fn is_early(&self, connection: &Connection) -> bool {
        let (_, wait_for) = self.terms();
        connection.grants_early() && wait_for == Some(WaitFor::Layout)
    }

    /// What is to stay free on the device, if `connection` is asked for that.
    pub(crate) fn reserve_bytes(&self, connection: &Connection) -> Option<u64> {
        let asked = self.wish.reserve_bytes;
        (asked > 0 && connection.keeps_free()).then_some(asked)
    }

    /// Whether the name is one of the catalogue.
    pub(crate) const fn is_by_name(&self) -> bool {
        matches!(self.request, Request::Open(_))
    }

    /// What to call the model.
    pub(crate) fn name(&self) -> &str {
        self.terms().0
    }

    /// What every open says: what to call the model, and what to wait for.
    fn terms(&self) -> (&str, Option<WaitFor>) {
        match &self.request {
            Request::Open(open) => (open.model.as_str(), open.wait_for),
            Request::OpenFiles(open) => (open.label.as_str(), open.wait_for),
            Request::Close(_)
            | Request::Cancel(_)
            | Request::Resume(_)
            | Request::List(_)
            | Request::Stat(_)
            | Request::Touched(_)
            | Request::Heard(_)
            | Request::Hint(_) => ("", None),
        }
    }

    /// What to ask a daemon that has not said yet what it knows; nothing where that decides what to
    /// ask.
    pub(crate) fn ahead(&self) -> Option<Request> {
        let Request::Open(open) = &self.request else {
            return None;
        };
        let plain = open.devices.is_none() && open.wait_for.is_none();
        plain.then(|| {
            Request::Open(Open {
                wait_ms: wait_ms(self.wait, WAIT_MS_MAX),
                ..open.clone()
            })
        })
    }

    /// The request, with as much of `wait` as this daemon grants, and devices if it knows what they
    /// are.
    pub(crate) fn to(&self, connection: &Connection, wait: Duration) -> Request {
        let wait = wait_ms(wait, connection.hello().limits.wait_ms_max);
        let mut request = self.request.clone();
        if let Request::Open(open) = &mut request {
            open.known = self.known_to(connection).map(|known| known.version);
        }
        match &mut request {
            Request::Open(Open {
                wait_ms,
                devices,
                wait_for,
                ..
            })
            | Request::OpenFiles(OpenFiles {
                wait_ms,
                devices,
                wait_for,
                ..
            }) => {
                *wait_ms = wait;
                if !connection.grants_early() {
                    *wait_for = None;
                }
                if !connection.has_devices() {
                    *devices = None;
                }
                if let Some(devices) = devices.as_mut().filter(|_| !connection.keeps_free()) {
                    devices.reserve_bytes = None;
                }
            }
            Request::Close(_)
            | Request::Cancel(_)
            | Request::Resume(_)
            | Request::List(_)
            | Request::Stat(_)
            | Request::Touched(_)
            | Request::Heard(_)
            | Request::Hint(_) => {}
        }
        request
    }
}

/// Nothing where all is waited for: that is what older daemons know.
fn early(how: &OpenOptions<'_>) -> Option<WaitFor> {
    (how.wait_for == WaitFor::Layout).then_some(WaitFor::Layout)
}

fn wait_ms(wait: Duration, max: u64) -> u64 {
    let wait = u64::try_from(wait.as_millis()).unwrap_or(u64::MAX);
    // 0 would ask for the daemon's default.
    wait.min(max).max(1)
}

fn bounded(wait: Option<Duration>) -> Duration {
    wait.unwrap_or(WAIT_DEFAULT)
        .min(Duration::from_millis(WAIT_MS_MAX))
}
