//! One inference in a process of its own.

use std::path::PathBuf;
use std::process::Command;

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

impl Child {
    pub(super) fn run(&self, how: How) -> Took {
        let how = match how {
            How::Mrm => "mrm",
            How::Numpy => "numpy",
            How::Ideal => "ideal",
        };
        let output = Command::new(&self.python)
            .args(["-c", SCRIPT, how])
            .arg(&self.path)
            .arg(&self.name)
            .arg(self.compute_ms.to_string())
            .env("OMP_NUM_THREADS", "1")
            .env("MRM_SOCKET", &self.socket)
            .output()
            .expect("starts");
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{error}");
        let text = String::from_utf8_lossy(&output.stdout);
        let mut numbers = text.split_whitespace().map(|number| {
            let number: f64 = number.parse().expect("a number");
            number
        });
        let mut next = || numbers.next().expect("two numbers");
        Took {
            load_ms: next(),
            compute_ms: next(),
        }
    }
}
