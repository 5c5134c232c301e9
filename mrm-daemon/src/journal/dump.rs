//! A journal as a file, when the daemon has to stop.
//!
//! ```
//! use mrm_core::{Config, id::Bytes};
//! use mrm_daemon::journal::{Header, Journal, dump::dump, file::Reader};
//! let dir = tempfile::tempdir()?;
//! let journal = Journal::new(Header::of(1, &Config::with_limit(Bytes(1 << 30))), 1 << 20);
//! let path = dump(&journal, dir.path())?;
//! assert_eq!(path, dir.path().join("mrmd.journal"));
//! assert_eq!(Reader::new(&std::fs::read(path)?)?.header().instance, 1);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

use super::ring::{Broken, Journal};
use std::fs::{self, File};
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

/// Name of a dump.
pub const DUMP_FILE: &str = "mrmd.journal";
/// Name of the dump before, if there was one: a daemon that stops again and again leaves two.
pub const DUMP_FILE_BEFORE: &str = "mrmd.journal.before";
const UNFINISHED: &str = "mrmd.journal.unfinished";

/// Why there is no dump.
#[derive(Debug, thiserror::Error)]
pub enum DumpError {
    /// There is nothing to dump.
    #[error(transparent)]
    Broken(#[from] Broken),
    /// The file.
    #[error("cannot write {}: {source}", path.display())]
    Io {
        /// Which.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
}

/// Writes a journal into a directory, for its owner only to read: it names models and users.
///
/// # Errors
/// When the directory takes no file. What was dumped there before is then still there.
pub fn dump(journal: &Journal, dir: &Path) -> Result<PathBuf, DumpError> {
    let pieces = journal.export()?;
    let unfinished = dir.join(UNFINISHED);
    let path = dir.join(DUMP_FILE);
    let write = || {
        // A link or a file that somebody left there is not written through.
        match fs::remove_file(&unfinished) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            Ok(()) | Err(_) => {}
        }
        let mut options = File::options();
        let mut file = options
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&unfinished)?;
        for piece in &pieces {
            file.write_all(piece)?;
        }
        file.sync_all()?;
        match fs::rename(&path, dir.join(DUMP_FILE_BEFORE)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            Ok(()) | Err(_) => {}
        }
        fs::rename(&unfinished, &path)
    };
    match write() {
        Ok(()) => Ok(path),
        Err(source) => Err(DumpError::Io { path, source }),
    }
}
