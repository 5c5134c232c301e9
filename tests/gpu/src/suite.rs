//! Runs the steps one after another, each in a process group of its own with a deadline: what fails
//! or hangs does not stop the others.

use crate::report::{Check, Found, Skipped, Status, Step};
use crate::scale::Scale;
use crate::{Anything, render};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process_group, pidfd_open};
use serde::Serialize;
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, ExitStatus, Stdio};
use std::time::{Duration, Instant};

/// Between asking a process to end and making it.
const GRACE: Duration = Duration::from_secs(3);
/// Of a step's output, in the results.
const TAIL_BYTES: usize = 1500;

/// What to run, and where.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Options {
    #[arg(long, value_enum, default_value_t = Scale::Full)]
    pub(crate) scale: Scale,
    /// The bundle: bin, lib, python, checks, wheels.
    #[arg(long)]
    pub(crate) bundle: PathBuf,
    /// Where results, logs and models go.
    #[arg(long)]
    pub(crate) out: PathBuf,
    /// Only these steps.
    #[arg(long, value_delimiter = ',')]
    pub(crate) only: Vec<String>,
    /// Not these steps.
    #[arg(long, value_delimiter = ',')]
    pub(crate) without: Vec<String>,
    /// For all steps together, in seconds.
    #[arg(long, default_value_t = 465)]
    pub(crate) limit_s: u64,
    /// Python, with torch if it is to be compared with.
    #[arg(long, default_value = "python3")]
    pub(crate) python: String,
    /// When this was started, for the results.
    #[arg(long, default_value = "")]
    pub(crate) date: String,
}

enum Program {
    /// The conformance suite of `mrm-cuda`.
    Conformance,
    /// A step of this program.
    Own,
}

struct Plan {
    name: &'static str,
    program: Program,
    deadline_s: u64,
}

/// In the order in which they run: what is needed most comes first.
const PLANS: [Plan; 9] = [
    plan("machine", Program::Own, 20),
    plan("conformance", Program::Conformance, 90),
    plan("contexts", Program::Own, 30),
    plan("questions", Program::Own, 60),
    plan("service", Program::Own, 75),
    plan("frameworks", Program::Own, 60),
    plan("copy", Program::Own, 60),
    plan("attach", Program::Own, 90),
    // Last, for it writes and reads most; it gets what time is left.
    plan("loads", Program::Own, 240),
];

const fn plan(name: &'static str, program: Program, deadline_s: u64) -> Plan {
    Plan {
        name,
        program,
        deadline_s,
    }
}

/// What is written as `results.json`.
#[derive(Debug, Serialize)]
pub(crate) struct Results {
    pub(crate) device: String,
    pub(crate) driver: String,
    pub(crate) date: String,
    pub(crate) commit: String,
    pub(crate) scale: Scale,
    pub(crate) facts: BTreeMap<String, String>,
    pub(crate) steps: Vec<Step>,
}

/// Runs everything; a failure when a step did not pass.
pub(crate) fn run(options: &Options) -> Anything<ExitCode> {
    for dir in ["steps", "logs", "scratch"] {
        fs::create_dir_all(options.out.join(dir))?;
    }
    for name in options.only.iter().chain(&options.without) {
        if !PLANS.iter().any(|plan| plan.name == name) {
            return Err(format!("there is no step {name:?}").into());
        }
    }
    let end = Instant::now() + Duration::from_secs(options.limit_s);
    let names = |list: &[String], plan: &Plan| list.iter().any(|name| name == plan.name);
    let wanted = |plan: &&Plan| {
        (options.only.is_empty() || names(&options.only, plan)) && !names(&options.without, plan)
    };
    let mut steps = Vec::new();
    for plan in PLANS.iter().filter(wanted) {
        let left = end.saturating_duration_since(Instant::now());
        let step = run_step(plan, options, left);
        println!("{}", render::step(&step));
        steps.push(step);
        write(options, &steps)?;
    }
    fs::remove_dir_all(options.out.join("scratch"))?;
    let results = write(options, &steps)?;
    println!("{}", render::summary(&results));
    let passed = steps.iter().all(|step| step.status == Status::Passed);
    Ok(if passed {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// Writes what is known so far.
fn write(options: &Options, steps: &[Step]) -> Anything<Results> {
    let facts: BTreeMap<String, String> = steps
        .iter()
        .flat_map(|step| step.found.facts.clone())
        .collect();
    let fact = |name: &str| facts.get(name).cloned().unwrap_or_default();
    let commit = fs::read_to_string(options.bundle.join("COMMIT")).unwrap_or_default();
    let results = Results {
        device: fact("device"),
        driver: fact("driver"),
        date: options.date.clone(),
        commit: commit.trim().to_owned(),
        scale: options.scale,
        facts,
        steps: steps.to_vec(),
    };
    let json = serde_json::to_string_pretty(&results)?;
    fs::write(options.out.join("results.json"), json + "\n")?;
    fs::write(options.out.join("RESULTS.md"), render::document(&results))?;
    Ok(results)
}

fn run_step(plan: &Plan, options: &Options, left: Duration) -> Step {
    let start = Instant::now();
    let found_at = options.out.join(format!("steps/{}.json", plan.name));
    let log_at = options.out.join(format!("logs/{}.log", plan.name));
    let deadline = left.min(Duration::from_secs(plan.deadline_s));
    let (status, error) = if left < GRACE {
        (
            Status::NotRun,
            Some("the time of the whole run is over".to_owned()),
        )
    } else {
        let _ = fs::remove_file(&found_at);
        match command(plan, options, &found_at, deadline)
            .and_then(|command| end_of(command, &log_at, deadline))
        {
            Ok(Some(status)) if status.success() => (Status::Passed, None),
            Ok(Some(status)) => (Status::Failed, Some(format!("{status}\n{}", tail(&log_at)))),
            Ok(None) => {
                let seconds = deadline.as_secs();
                let error = format!("not done after {seconds} s\n{}", tail(&log_at));
                (Status::TimedOut, Some(error))
            }
            Err(error) => (Status::Failed, Some(error.to_string())),
        }
    };
    let (found, unread) = match plan.program {
        Program::Conformance => (conformance_in(&log_at), None),
        Program::Own => found_in(&found_at),
    };
    let mut step = Step {
        name: plan.name.to_owned(),
        status,
        seconds: start.elapsed().as_secs_f64(),
        found,
        error: error.or(unread),
    };
    let failed = !step.found.broken().is_empty() || step.error.is_some();
    if step.status == Status::Passed && failed {
        step.status = Status::Failed;
    }
    step
}

/// What the conformance suite printed.
fn conformance_in(log: &Path) -> Found {
    let text = fs::read_to_string(log).unwrap_or_default();
    let passed = text
        .lines()
        .filter(|line| line.starts_with("test ") && line.ends_with("... ok"));
    let result = text.lines().find(|line| line.starts_with("test result:"));
    let skipped = text
        .lines()
        .filter(|line| line.starts_with("SKIPPED:"))
        .count();
    let mut found = Found::default();
    found.checks.push(Check {
        what: "the conformance suite of mrm-cuda".to_owned(),
        holds: result.is_some_and(|line| line.contains(" 0 failed")) && passed.count() > 1,
        detail: result.unwrap_or("it did not end").to_owned(),
    });
    if skipped > 0 {
        found.skipped.push(Skipped {
            what: format!("{skipped} of its tests"),
            why: "they need the fake driver".to_owned(),
        });
    }
    found
}

/// What the step wrote.
fn found_in(path: &Path) -> (Found, Option<String>) {
    let Ok(bytes) = fs::read(path) else {
        return (Found::default(), None);
    };
    match serde_json::from_slice(&bytes) {
        Ok(found) => (found, None),
        Err(error) => (Found::default(), Some(format!("what it wrote: {error}"))),
    }
}

fn command(
    plan: &Plan,
    options: &Options,
    found_at: &Path,
    deadline: Duration,
) -> Anything<Command> {
    let bundle = &options.bundle;
    let mut command = match plan.program {
        Program::Conformance => {
            let mut command = Command::new(bundle.join("bin/conformance"));
            command.arg("--show-output");
            if options.scale != Scale::Fake {
                // There is one device, and tests compare how much of it is free.
                command.arg("--test-threads=1");
            }
            command
        }
        Program::Own => {
            let mut command = Command::new(std::env::current_exe()?);
            command.arg("step").arg(plan.name);
            command
        }
    };
    if !matches!(plan.program, Program::Conformance) {
        let scale = clap::ValueEnum::to_possible_value(&options.scale);
        let scale = scale.ok_or("a scale without a name")?;
        command.args(["--scale", scale.get_name()]);
        command.arg("--bundle").arg(bundle);
        command.arg("--python").arg(&options.python);
        command.args(["--time-s", &deadline.as_secs().to_string()]);
        command.arg("--scratch").arg(options.out.join("scratch"));
        command.arg("--out").arg(found_at);
    }
    command.env("MRM_LIBRARY", bundle.join("lib/libmrm.so"));
    command.env("PYTHONPATH", bundle.join("python"));
    command.env("PYTHONUNBUFFERED", "1");
    if options.scale == Scale::Fake {
        command.env("MRM_FAKE_CUDA_LIBRARY", bundle.join("fake/libcuda.so.1"));
        if matches!(plan.program, Program::Own) {
            // The conformance suite makes machines of its own.
            let machine = options.out.join(format!("scratch/machine-{}", plan.name));
            fs::create_dir_all(&machine)?;
            command.env("LD_LIBRARY_PATH", bundle.join("fake"));
            command.env("MRM_FAKE_CUDA_DIR", machine);
            command.env("MRM_FAKE_CUDA_CONTEXT_BYTES", "100MiB");
        }
        command.env_remove("MRM_TEST_CUDA");
    } else {
        command.env("MRM_TEST_CUDA", "hardware");
    }
    Ok(command)
}

/// Runs to the end or the deadline; `None` when it was stopped. Nothing of it is left then.
fn end_of(mut command: Command, log: &Path, deadline: Duration) -> Anything<Option<ExitStatus>> {
    let log = File::create(log)?;
    let mut child = command
        .process_group(0)
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        .spawn()
        .map_err(|error| format!("{}: {error}", command.get_program().display()))?;
    let group = Pid::from_child(&child);
    let ended = ends_within(&child, deadline)?;
    if !ended {
        // It is not reaped yet, so the group is still its own.
        kill_process_group(group, Signal::TERM)?;
        ends_within(&child, GRACE)?;
    }
    // What it may have left running, itself included. None left is no error.
    let _ = kill_process_group(group, Signal::KILL);
    let status = child.wait()?;
    Ok(ended.then_some(status))
}

fn ends_within(child: &Child, time: Duration) -> Anything<bool> {
    let process = pidfd_open(Pid::from_child(child), PidfdFlags::empty())?;
    let end = Instant::now() + time;
    loop {
        let left = end.saturating_duration_since(Instant::now());
        let timeout = Timespec::try_from(left)?;
        let mut fds = [PollFd::new(&process, PollFlags::IN)];
        match poll(&mut fds, Some(&timeout)) {
            Ok(0) => return Ok(false),
            Ok(_) => return Ok(true),
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

fn tail(log: &Path) -> String {
    let bytes = fs::read(log).unwrap_or_default();
    let from = bytes.len().saturating_sub(TAIL_BYTES);
    let end = bytes.get(from..).unwrap_or_default();
    String::from_utf8_lossy(end).trim().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        command
    }

    fn log(name: &str) -> PathBuf {
        std::env::temp_dir().join(format!("mrm-gpu-{name}-{}", std::process::id()))
    }

    #[test]
    fn a_step_that_hangs_is_stopped_with_what_it_started() {
        let log = log("hang");
        // The inner shell ignores what asks it to end, and holds the log open.
        let script = "echo before; (trap '' TERM; while :; do read x; done) < /dev/zero & \
                      trap '' TERM; echo $!; wait; wait";
        let ended = end_of(shell(script), &log, Duration::from_millis(200)).unwrap();
        assert!(ended.is_none());
        let text = fs::read_to_string(&log).unwrap();
        fs::remove_file(&log).unwrap();
        let mut lines = text.lines();
        assert_eq!(lines.next(), Some("before"));
        let pid = lines.next().unwrap();
        // Killed; perhaps still about to die, or not yet waited for by whoever inherits it.
        let until = Instant::now() + Duration::from_secs(20);
        loop {
            let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
            if stat.is_empty() || stat.contains(") Z ") {
                break;
            }
            assert!(Instant::now() < until, "{stat}");
            std::thread::yield_now();
        }
    }

    #[test]
    fn the_conformance_suite_passes_only_if_it_ended_well() {
        let log = log("conformance");
        let broken = |text: &str| {
            fs::write(&log, text).unwrap();
            conformance_in(&log).broken().len()
        };
        let two = "test a ... ok\ntest b ... ok\n";
        assert_eq!(
            broken(&format!(
                "{two}test result: ok. 2 passed; 0 failed; 0 ignored"
            )),
            0
        );
        assert_eq!(
            broken(&format!("{two}test result: FAILED. 2 passed; 1 failed; ")),
            1
        );
        assert_eq!(broken(two), 1);
        assert_eq!(broken("test result: ok. 0 passed; 0 failed; "), 1);
        fs::remove_file(&log).unwrap();
    }

    #[test]
    fn an_exit_status_and_the_end_of_the_output_are_kept() {
        let log = log("exit");
        let status = end_of(shell("echo why; exit 3"), &log, Duration::from_secs(60)).unwrap();
        assert_eq!(status.unwrap().code(), Some(3));
        assert_eq!(tail(&log), "why");
        fs::remove_file(&log).unwrap();
    }
}
