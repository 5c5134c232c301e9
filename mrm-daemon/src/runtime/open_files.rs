//! The limit on open files: each session, and each file of a resident model, takes one.

use crate::degraded::Degraded;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Fewer than this, and the daemon is degraded.
pub const OPEN_FILES_WANTED_MIN: u64 = 4096;

/// The limits of this process; `None` is no limit.
///
/// ```
/// use mrm_daemon::runtime::OpenFiles;
/// let raised = OpenFiles::raise();
/// assert_eq!(raised.soft, raised.hard);
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OpenFiles {
    /// In force.
    pub soft: Option<u64>,
    /// What this process may raise it to.
    pub hard: Option<u64>,
}

impl OpenFiles {
    /// The limits as they are.
    #[must_use]
    pub fn current() -> Self {
        let limit = getrlimit(Resource::Nofile);
        Self {
            soft: limit.current,
            hard: limit.maximum,
        }
    }

    /// Raises the limit in force as far as it goes; returns the limits as they are then.
    pub fn raise() -> Self {
        let before = Self::current();
        let wanted = Rlimit {
            current: before.hard,
            maximum: before.hard,
        };
        // A refusal shows in what is read back, and `report` says it.
        let _ = setrlimit(Resource::Nofile, wanted);
        Self::current()
    }

    /// Records it when there are too few for a busy node; returns whether there are.
    pub fn report(self, degraded: &Degraded) -> bool {
        let Some(soft) = self.soft.filter(|soft| *soft < OPEN_FILES_WANTED_MIN) else {
            return false;
        };
        degraded.report(
            "open_files",
            format!("at most {soft} files may be open, which bounds sessions and models"),
            "set LimitNOFILE=65536 in the unit, or raise `ulimit -Hn` before the start",
        );
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn few_files_are_reported_with_the_cure() {
        let degraded = Degraded::new();
        assert!(
            !OpenFiles {
                soft: None,
                hard: None
            }
            .report(&degraded)
        );
        assert!(
            !OpenFiles {
                soft: Some(4096),
                hard: Some(4096)
            }
            .report(&degraded)
        );
        assert!(
            OpenFiles {
                soft: Some(1024),
                hard: Some(1024)
            }
            .report(&degraded)
        );
        let listed = degraded.list();
        assert_eq!(listed.len(), 1);
        assert!(listed[0].cause.contains("1024") && listed[0].cure.contains("LimitNOFILE"));
    }
}
