//! The checks that are written in Python, because what they check with is.

use crate::report::Recorder;
use crate::{Anything, Place};
use serde_json::Value;
use std::io::{BufRead, BufReader, Lines, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

/// A Python program that answers one line of JSON for each line that it is sent.
pub(crate) struct Python {
    child: Child,
    to: ChildStdin,
    from: Lines<BufReader<ChildStdout>>,
}

impl Python {
    /// Starts `checks/NAME.py`; an error says why it cannot be asked.
    pub(crate) fn start(place: &Place, name: &str) -> Result<Self, String> {
        let mut child = command(place, name)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .map_err(|error| format!("{}: {error}", place.python))?;
        let (Some(to), Some(from)) = (child.stdin.take(), child.stdout.take()) else {
            return Err("no pipes".to_owned());
        };
        let from = BufReader::new(from).lines();
        let mut python = Self { child, to, from };
        let first = python.answer().map_err(|error| error.to_string())?;
        match first["skip"].as_str() {
            Some(why) => Err(why.to_owned()),
            None => Ok(python),
        }
    }

    fn answer(&mut self) -> Anything<Value> {
        let line = self.from.next().ok_or("the Python program ended")??;
        Ok(serde_json::from_str(&line)?)
    }

    /// Has it load a file; how many seconds that took.
    pub(crate) fn seconds(&mut self, path: &str) -> Anything<f64> {
        writeln!(self.to, "{path}")?;
        let answer = self.answer()?;
        let seconds = answer["seconds"].as_f64();
        seconds.ok_or_else(|| format!("the Python program says {answer}").into())
    }
}

impl Drop for Python {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Runs `checks/NAME.py` with arguments; what it prints, a line of JSON each, is recorded.
pub(crate) fn run(
    place: &Place,
    name: &str,
    arguments: &[(&str, &str)],
    recorder: &mut Recorder,
) -> Anything<()> {
    let mut command = command(place, name);
    for (argument, value) in arguments {
        command.arg(argument).arg(value);
    }
    let output = command.stderr(Stdio::inherit()).output();
    let output = output.map_err(|error| format!("{}: {error}", place.python))?;
    let text = String::from_utf8_lossy(&output.stdout);
    for line in text.lines() {
        record(&serde_json::from_str(line)?, recorder)?;
    }
    if output.status.success() {
        return Ok(());
    }
    Err(format!("{name}.py: {}", output.status).into())
}

fn record(said: &Value, recorder: &mut Recorder) -> Anything<()> {
    let text = |name: &str| said[name].as_str().unwrap_or_default().to_owned();
    if said["skip"].is_string() {
        recorder.skip(&text("skip"), text("why"))
    } else if said["fact"].is_string() {
        recorder.fact(&text("fact"), text("value"))
    } else {
        recorder.check(&text("check"), said["holds"] == true, text("detail"))
    }
}

fn command(place: &Place, name: &str) -> Command {
    let mut command = Command::new(&place.python);
    command.arg(place.bundle.join(format!("checks/{name}.py")));
    command.env("MRM_GPU_WHEELS", place.bundle.join("wheels"));
    command.env("MRM_GPU_SCRATCH", &place.scratch);
    command
}
