//! `mrmd`: reads its settings, takes its runtime directory, and serves.

use mrm_daemon::config::{Cli, Loaded};
use mrm_daemon::device::self_test;
use mrm_daemon::keeper::{KEEPER_ARGUMENT, keeper_main};
use mrm_daemon::runtime::{Activated, ClaimError, OpenFiles, RuntimeDir};
use mrm_daemon::serve::{Embedding, Survival, run};
use std::io::{self, Write};
use std::process::ExitCode;

mod logging;
mod replay;

/// Exit status besides 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
enum Failure {
    /// It could not serve, or stopped to.
    Failed = 1,
    /// The configuration is wrong. Clap exits with the same for a wrong flag.
    BadConfiguration = 2,
    /// The runtime directory is another daemon's.
    AlreadyRunning = 3,
}

fn main() -> ExitCode {
    // The daemon starts itself once more, to prove that another process can use a device's memory.
    let mut arguments = std::env::args_os().skip(1);
    if arguments
        .next()
        .is_some_and(|first| first == self_test::ARGUMENT)
    {
        return self_test::child_main();
    }
    // And once more, to keep what must outlive it.
    let mut arguments = std::env::args_os().skip(1);
    if arguments
        .next()
        .is_some_and(|first| first == KEEPER_ARGUMENT)
    {
        return keeper_main(arguments);
    }
    let cli = Cli::from_args(std::env::args_os()).unwrap_or_else(|refused| refused.exit());
    match start(&cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err((failure, message)) => {
            // A closed standard error is no reason for another status.
            let _ = writeln!(io::stderr(), "mrmd: {message}");
            ExitCode::from(failure as u8)
        }
    }
}

type Outcome = Result<(), (Failure, String)>;

fn start(cli: &Cli) -> Outcome {
    if cli.man {
        return print(&manual().map_err(failed)?);
    }
    if let Some(shell) = cli.completions {
        let mut text = Vec::new();
        clap_complete::generate(shell, &mut Cli::description(), "mrmd", &mut text);
        return print(&text);
    }
    if let Some(path) = &cli.replay {
        return replay::run(path, cli.json);
    }
    let loaded = cli
        .load()
        .map_err(|error| (Failure::BadConfiguration, error.to_string()))?;
    if cli.check {
        return print(loaded.to_toml().as_bytes());
    }
    logging::init(loaded.config.log_level, loaded.config.log_format).map_err(failed)?;
    serve(cli, loaded)
}

fn serve(cli: &Cli, loaded: Loaded) -> Outcome {
    // First of all, so that nothing else can get the numbers of passed descriptors.
    let mut activated = Activated::from_environment().map_err(failed)?;
    let files = OpenFiles::raise();
    tracing::debug!(soft = files.soft, hard = files.hard, "limit of open files");
    let claimed = match cli.takeover {
        true => RuntimeDir::take_over(&loaded.config.runtime_dir),
        false => RuntimeDir::claim(&loaded.config.runtime_dir),
    };
    let runtime = claimed.map_err(|error| {
        let failure = match error {
            ClaimError::AlreadyRunning { .. } => Failure::AlreadyRunning,
            ClaimError::Unfit { .. } | ClaimError::Occupied { .. } | ClaimError::Io { .. } => {
                Failure::Failed
            }
        };
        (failure, error.to_string())
    })?;
    let again = cli.clone();
    let reload = move || {
        again
            .load()
            .map(|loaded| loaded.config)
            .map_err(|e| e.to_string())
    };
    let embedding = Embedding {
        reload: Some(Box::new(reload)),
        self_test: Some(self_test::SelfTest::of_this_program()),
        survival: Some(Survival {
            stored: activated.take_stored(),
            program: std::env::current_exe().map_err(failed)?,
            // Started again, it takes nobody's place.
            args: std::env::args_os()
                .skip(1)
                .filter(|arg| arg != "--takeover")
                .collect(),
        }),
    };
    run(loaded.config, runtime.with_activated(activated), embedding).map_err(failed)
}

fn manual() -> io::Result<Vec<u8>> {
    let mut page = Vec::new();
    clap_mangen::Man::new(Cli::description())
        .section("8")
        .render(&mut page)?;
    Ok(page)
}

fn print(text: &[u8]) -> Outcome {
    match io::stdout().write_all(text) {
        // Whoever closed the pipe has seen enough.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        done => done.map_err(failed),
    }
}

fn failed(error: impl std::fmt::Display) -> (Failure, String) {
    (Failure::Failed, error.to_string())
}
