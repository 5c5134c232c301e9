//! The configuration: what is accepted is within its bounds and reads back from what `--check`
//! prints; what is not is refused with a place, a reason and a remedy.
//!
//! An input is the file's text. Lines `#env NAME=VALUE` are comments to TOML, and set the
//! environment.
//!
//! ```
//! use mrm_fuzz::{Verdict, target::config};
//! assert_eq!(config::run(b"#env MRM_LOG_LEVEL=warn\ndrain_ms = 5"), Verdict::Accepted);
//! assert_eq!(config::run(b"drain_ms = 5 hours"), Verdict::Refused);
//! ```

use crate::Verdict;
use mrm_daemon::config::{self, Cli, Config, ConfigError, Facts, Loaded, Place};
use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use std::collections::{HashMap, HashSet};
use std::ffi::OsString;
use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::FileExt;
use std::sync::{Mutex, OnceLock, PoisonError};

const USABLE_BYTES: u64 = 64 << 30;
/// Smallest budget that the daemon takes.
const BUDGET_BYTES_MIN: u64 = 64 << 10;
/// Longest path of a Unix socket, less its final NUL.
const SOCKET_PATH_BYTES_MAX: usize = 107;
const ENVIRONMENT: &[u8] = b"#env ";

/// Loads a configuration, prints it and loads that.
pub fn run(input: &[u8]) -> Verdict {
    let file = TextFile::get();
    let mut text = file.text.lock().unwrap_or_else(PoisonError::into_inner);
    text.set(input);
    let environment = environment(input);
    let loaded = match file.load(&environment) {
        Ok(loaded) => loaded,
        Err(error) => {
            says_where(&error, input);
            return Verdict::Refused;
        }
    };
    within_bounds(&loaded.config);
    let printed = loaded.to_toml();
    text.set(printed.as_bytes());
    match file.load(&HashMap::new()) {
        Ok(again) => assert_eq!(again.config, loaded.config, "printed as\n{printed}"),
        Err(error) => panic!("what was printed is refused: {error}\n{printed}"),
    }
    Verdict::Accepted
}

/// A file without a directory entry, to be read again and again.
struct TextFile {
    cli: Cli,
    facts: Facts,
    text: Mutex<Text>,
}

struct Text(File);

impl Text {
    fn set(&mut self, text: &[u8]) {
        ftruncate(&self.0, 0).expect("a file of our own");
        self.0.write_all_at(text, 0).expect("a file of our own");
    }
}

impl TextFile {
    fn get() -> &'static Self {
        static FILE: OnceLock<TextFile> = OnceLock::new();
        FILE.get_or_init(|| {
            let fd = memfd_create("config", MemfdFlags::CLOEXEC).expect("a file of our own");
            let path = format!("/proc/self/fd/{}", fd.as_raw_fd());
            let cli = Cli::from_args(["mrmd", "--config", &path]).expect("good arguments");
            let facts = Facts {
                uid: 0,
                usable_bytes: USABLE_BYTES,
                gid_of: |name| (name == "mrm").then_some(990),
                default_file: path.into(),
            };
            let text = Mutex::new(Text(File::from(fd)));
            Self { cli, facts, text }
        })
    }

    fn load(&self, environment: &HashMap<String, OsString>) -> Result<Loaded, ConfigError> {
        // The file is always the one given by flag.
        let of = |name: &str| environment.get(name).cloned();
        config::load(&self.cli, &of, &self.facts)
    }
}

fn environment(input: &[u8]) -> HashMap<String, OsString> {
    let lines = input.split(|byte| *byte == b'\n');
    let set = lines.filter_map(|line| {
        let pair = line.strip_prefix(ENVIRONMENT)?;
        let at = pair.iter().position(|byte| *byte == b'=')?;
        let name = std::str::from_utf8(&pair[..at]).ok()?;
        let value = pair[at + 1..].to_vec();
        // No variable of a process has a NUL in it.
        (!value.contains(&0)).then(|| (name.to_owned(), OsString::from_vec(value)))
    });
    set.collect()
}

fn within_bounds(config: &Config) {
    assert!((BUDGET_BYTES_MIN..=USABLE_BYTES).contains(&config.host_budget_bytes));
    assert!(config.runtime_dir.is_absolute());
    for socket in [config.client_socket(), config.status_socket()] {
        assert!(
            socket.as_os_str().len() <= SOCKET_PATH_BYTES_MAX,
            "{socket:?}"
        );
    }
    assert!(config.socket_mode.bits() <= 0o777);
    assert!(config.limits.sessions_max > 0 && config.limits.sessions_per_uid_max > 0);
    assert!(config.load.threads > 0 && config.load.foreign_threads > 0);
    let names: HashSet<_> = config.models.iter().map(|model| &model.name).collect();
    assert_eq!(names.len(), config.models.len(), "two models of one name");
    assert!(config.models.iter().all(|model| model.path.is_absolute()));
    let roots = config.catalogues.iter().map(|c| (&c.root, &c.prefix));
    assert_eq!(roots.collect::<HashSet<_>>().len(), config.catalogues.len());
    assert!(config.catalogues.iter().all(|c| c.root.is_absolute()));
}

fn says_where(error: &ConfigError, input: &[u8]) {
    assert!(!error.problems.is_empty());
    assert!(error.problems.is_sorted());
    let lines = input.iter().filter(|byte| **byte == b'\n').count() + 1;
    for problem in &error.problems {
        assert!(
            !problem.reason.is_empty() && !problem.remedy.is_empty(),
            "{problem:?}"
        );
        match &problem.place {
            Place::File { line, column, .. } => {
                assert!(
                    (1..=lines).contains(line),
                    "line {line} of {lines}: {problem:?}"
                );
                assert!((1..=input.len() + 1).contains(column), "{problem:?}");
            }
            Place::WholeFile(_) | Place::Environment(_) | Place::Flag(_) | Place::Default => {}
        }
        // It is read on a terminal.
        let said = problem.to_string();
        assert!(!said.chars().any(char::is_control), "{said:?}");
    }
    assert_eq!(
        error.to_string().lines().count(),
        1 + error.problems.len(),
        "one line for each, after the first"
    );
}
