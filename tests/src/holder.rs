//! A client in a process of its own, that does what it is told and can be killed.
//!
//! The program is `mrm-hold`: one command a line as a JSON array, one line of JSON back.

use crate::DEADLINE;
use crate::node::beside;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc;

/// The process. Killed when dropped, with the children that it told of.
pub struct Holder {
    child: Child,
    commands: ChildStdin,
    replies: mpsc::Receiver<Value>,
    children: Vec<Pid>,
}

impl Holder {
    /// Starts a client of the daemon behind `socket`. It connects at its first command.
    pub fn start(socket: &Path) -> Self {
        Self::start_with(Command::new(beside("mrm-hold")).arg(socket))
    }

    /// Starts it by a command that was prepared further.
    pub fn start_with(command: &mut Command) -> Self {
        let spawned = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn();
        let mut child = spawned.expect("starts");
        let commands = child.stdin.take().expect("piped");
        let output = BufReader::new(child.stdout.take().expect("piped"));
        let (sender, replies) = mpsc::channel();
        std::thread::spawn(move || {
            for line in output.lines().map_while(Result::ok) {
                let value = serde_json::from_str(&line).expect("mrm-hold prints JSON");
                if sender.send(value).is_err() {
                    return;
                }
            }
        });
        Self {
            child,
            commands,
            replies,
            children: Vec::new(),
        }
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Sends a command, whose reply [`receive`](Self::receive) returns.
    pub fn send(&mut self, command: &Value) {
        writeln!(self.commands, "{command}").expect("mrm-hold lives");
    }

    pub fn receive(&mut self) -> Value {
        self.replies
            .recv_timeout(DEADLINE)
            .expect("mrm-hold answers in time")
    }

    /// The reply, if it is there already.
    pub fn try_receive(&mut self) -> Option<Value> {
        self.replies.try_recv().ok()
    }

    pub fn ask(&mut self, command: &Value) -> Value {
        self.send(command);
        self.receive()
    }

    /// Asks for what must succeed.
    pub fn must(&mut self, command: &Value) -> Value {
        let reply = self.ask(command);
        assert_eq!(reply["ok"], true, "{command}: {reply}");
        reply
    }

    pub fn open(&mut self, alias: &str, name: &str) -> Value {
        self.must(&json!(["open", alias, name, 60_000]))
    }

    pub fn close(&mut self, alias: &str) {
        self.must(&json!(["close", alias]));
    }

    /// Asserts that each segment of an open model equals the file of the same position.
    pub fn assert_equal(&mut self, alias: &str, files: &[&Path]) {
        self.must(&json!(["equal", alias, files]));
    }

    /// Forks a child that keeps a copy of everything and does nothing.
    pub fn fork_idle(&mut self) -> Pid {
        let pid = self.must(&json!(["fork-idle"]))["pid"]
            .as_i64()
            .expect("a pid");
        let pid = Pid::from_raw(i32::try_from(pid).expect("a pid"));
        self.children.push(pid);
        pid
    }

    pub fn signal(&self, signal: Signal) {
        let pid = i32::try_from(self.pid()).expect("a pid");
        kill(Pid::from_raw(pid), signal).expect("mrm-hold lives");
    }

    /// SIGKILL. Returns when the process is a zombie no more.
    pub fn kill(&mut self) {
        self.child.kill().expect("kills");
        self.child.wait().expect("waits");
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        for &pid in &self.children {
            let _ = kill(pid, Signal::SIGKILL);
        }
    }
}
