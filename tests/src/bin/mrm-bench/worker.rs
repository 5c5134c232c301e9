//! A Python that does what it is told: a line each, answered with milliseconds.

use std::ffi::OsStr;
use std::io::{BufRead, BufReader, Lines, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

pub(crate) struct Worker {
    child: Child,
    input: ChildStdin,
    output: Lines<BufReader<ChildStdout>>,
}

impl Worker {
    /// Runs `script` with `args`, for the daemon at `socket`, until it says that it is ready.
    pub(crate) fn start(python: &Path, script: &str, args: &[&OsStr], socket: &Path) -> Self {
        let mut child = Command::new(python)
            .args(["-W", "ignore", "-c", script])
            .args(args)
            .env("OMP_NUM_THREADS", "1")
            .env("MRM_SOCKET", socket)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("starts");
        let input = child.stdin.take().expect("piped");
        let output = BufReader::new(child.stdout.take().expect("piped")).lines();
        let mut worker = Self {
            child,
            input,
            output,
        };
        assert_eq!(worker.line(), "ready");
        worker
    }

    /// Milliseconds.
    pub(crate) fn run(&mut self, what: &str) -> f64 {
        writeln!(self.input, "{what}").expect("it reads");
        self.line().parse().expect("a number")
    }

    fn line(&mut self) -> String {
        let line = self
            .output
            .next()
            .expect("it says what it took, or why not");
        line.expect("text")
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
