//! A segment that is registered, and when its memory is gone.

use super::{HostFeed, lock};
use crate::degraded::Degraded;
use crate::device::settings::Register;
use memmap2::{Mmap, MmapOptions};
use mrm_cuda::{Context, Registered};
use std::os::fd::AsFd;
use std::sync::{Arc, Mutex, PoisonError};

#[derive(Default)]
pub(super) struct Registration {
    uploads: u64,
    made: Made,
}

#[derive(Default)]
enum Made {
    #[default]
    Not,
    Yes(Registered<Mapped>),
    /// It failed, and is not tried again.
    Failed,
}

/// A mapping of a sealed segment. As long as it is there, so is the memory.
pub(in crate::device) struct Mapped {
    mapping: Mmap,
    _gone: Arc<Gone>,
}

pub(super) type Notice = Box<dyn FnOnce() + Send>;

/// Says that the memory is gone, when all that keeps it is.
#[derive(Default)]
pub(super) struct Gone(pub(super) Mutex<Vec<Notice>>);

impl HostFeed {
    /// Counts an upload that begins, and returns the memory as registered, if it is to be.
    pub(in crate::device) fn registered(
        &self,
        context: &Context,
        when: Register,
        degraded: &Degraded,
    ) -> Option<Registered<Mapped>> {
        let mut registration = lock(&self.registration);
        registration.uploads += 1;
        let wanted = match when {
            Register::Never => false,
            Register::Auto => registration.uploads > 1,
            Register::Always => true,
        };
        if !wanted || !self.is_complete() {
            return None;
        }
        if !context.device().read_only_register {
            let device = &context.device().name;
            report(
                degraded,
                format!("{device} does not register read-only memory"),
            );
            return None;
        }
        if matches!(registration.made, Made::Not) {
            registration.made = self.register(context).unwrap_or_else(|cause| {
                report(degraded, cause);
                Made::Failed
            });
        }
        match &registration.made {
            Made::Yes(registered) => Some(registered.clone()),
            Made::Not | Made::Failed => None,
        }
    }

    fn register(&self, context: &Context) -> Result<Made, String> {
        Registered::new(context, self.map()?)
            .map(Made::Yes)
            .map_err(|error| format!("`{}`: {error}", self.label))
    }

    pub(super) fn map(&self) -> Result<Mapped, String> {
        let memory = lock(&self.state).memory.clone();
        let memory = memory.ok_or("there is no memory")?;
        let mapping = MmapOptions::new()
            .map_if_safe(&memory.as_fd())
            .map_err(|error| format!("`{}` cannot be mapped: {error}", self.label))?;
        Ok(Mapped {
            mapping,
            _gone: Arc::clone(&self.gone),
        })
    }
}

impl AsRef<[u8]> for Mapped {
    fn as_ref(&self) -> &[u8] {
        &self.mapping
    }
}

impl Drop for Gone {
    fn drop(&mut self) {
        let notices = self.0.get_mut().unwrap_or_else(PoisonError::into_inner);
        for notice in notices.drain(..) {
            notice();
        }
    }
}

fn report(degraded: &Degraded, cause: String) {
    degraded.report(
        "device_register",
        cause,
        "copies go through staging buffers; raise LimitMEMLOCK if locked memory is what lacks, or \
         set device.register = \"never\"",
    );
}
