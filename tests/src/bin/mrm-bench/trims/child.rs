//! One inference in a process of its own.

use std::io::{BufRead, BufReader, Lines, Write};
use std::path::PathBuf;
use std::process::{ChildStdout, Command, Stdio};

const SCRIPT: &str = include_str!("../trims.py");

pub(super) struct Child {
    pub(super) python: PathBuf,
    pub(super) socket: PathBuf,
    pub(super) path: PathBuf,
    pub(super) name: String,
    pub(super) compute_ms: f64,
}

/// Where it has the weights from.
#[derive(Clone, Copy)]
pub(super) enum How {
    Mrm,
    /// `safetensors.numpy.load_file`.
    Numpy,
    /// They are there already.
    Ideal,
}

/// What it took in the process, without its start and its imports.
pub(super) struct Took {
    pub(super) load_ms: f64,
    pub(super) compute_ms: f64,
}

/// A process that was started, and waits to be told to begin.
pub(super) struct Started {
    process: std::process::Child,
    output: Lines<BufReader<ChildStdout>>,
}

impl How {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Mrm => "mrm",
            Self::Numpy => "numpy",
            Self::Ideal => "ideal",
        }
    }
}

impl Child {
    pub(super) fn run(&self, how: How) -> Took {
        self.start(how).ready().run()
    }

    /// Starts one, which imports what it needs.
    pub(super) fn start(&self, how: How) -> Started {
        let mut command = Command::new(&self.python);
        command
            .args(["-W", "ignore", "-c", SCRIPT, how.as_str()])
            .arg(&self.path)
            .arg(&self.name)
            .arg(self.compute_ms.to_string())
            .env("OMP_NUM_THREADS", "1")
            .env("MRM_SOCKET", &self.socket);
        let piped = command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut process = piped.spawn().expect("starts");
        let output = process.stdout.take().expect("piped");
        Started {
            output: BufReader::new(output).lines(),
            process,
        }
    }
}

impl Started {
    /// Waits until it has imported all.
    pub(super) fn ready(mut self) -> Self {
        assert_eq!(self.line(), "ready");
        self
    }

    pub(super) fn run(mut self) -> Took {
        let input = self.process.stdin.as_mut().expect("piped");
        writeln!(input, "begin").expect("it reads");
        let took = Took::parse(&self.line());
        assert!(self.process.wait().expect("ends").success());
        took
    }

    fn line(&mut self) -> String {
        self.output.next().expect("it goes on").expect("text")
    }
}

impl Took {
    fn parse(text: &str) -> Self {
        let mut numbers = text.split_whitespace().map(|number| {
            let number: f64 = number.parse().expect("a number");
            number
        });
        let mut next = || numbers.next().expect("two numbers");
        Self {
            load_ms: next(),
            compute_ms: next(),
        }
    }
}
