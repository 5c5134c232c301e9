//! The clients: processes in three languages.

use crate::PATIENCE;
use mrm_tests::survival::signal;
use nix::sys::signal::Signal;
use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::time::Instant;

/// What came of all that clients did.
#[derive(Debug, Default, Clone)]
pub(crate) struct Totals {
    pub(crate) opens: u64,
    pub(crate) checks: u64,
    /// That were compared.
    pub(crate) bytes: u64,
    pub(crate) refusals: BTreeMap<String, u64>,
    pub(crate) violations: Vec<String>,
}

/// What clients that rest hold.
#[derive(Debug, Default, Clone, Copy)]
pub(crate) struct Held {
    /// Models that go on being held.
    pub(crate) models: u64,
    /// Those of them that are leased.
    pub(crate) leased: u64,
    /// Those that are not, of clients that were stopped for longer than the grace.
    pub(crate) late: u64,
}

/// How clients are started. Without the library there are none in C and Python.
pub(crate) struct Languages {
    pub(crate) c: Option<PathBuf>,
    pub(crate) python: Option<(PathBuf, PathBuf)>,
    pub(crate) library: Option<PathBuf>,
}

/// Where clients find what they need.
pub(crate) struct Place<'a> {
    pub(crate) socket: &'a Path,
    pub(crate) models: &'a Path,
    pub(crate) count: usize,
    pub(crate) devices: u32,
    /// A program that finds the pretended devices.
    pub(crate) command: &'a dyn Fn(&Path) -> Command,
}

pub(crate) struct Fleet {
    clients: Vec<Client>,
    pub(crate) totals: Arc<Mutex<Totals>>,
    next_seed: u64,
}

struct Client {
    child: Child,
    orders: Option<ChildStdin>,
    /// Models held, and leases, each time it was asked.
    holding: Receiver<(u64, u64)>,
    kind: Kind,
    /// It was stopped for longer than a daemon waits for it.
    was_late: bool,
}

#[derive(Clone, Copy)]
enum Kind {
    Rust,
    C,
    Python,
}

impl Fleet {
    pub(crate) fn new(seed: u64) -> Self {
        Self {
            clients: Vec::new(),
            totals: Arc::default(),
            next_seed: seed,
        }
    }

    /// As many clients as that: one in eight in Python, two in C, as far as can be had.
    pub(crate) fn fill(&mut self, place: &Place<'_>, languages: &Languages, count: usize) {
        while self.clients.len() < count {
            let kind = match self.clients.len() % 8 {
                0 if languages.python.is_some() => Kind::Python,
                1 | 2 if languages.c.is_some() => Kind::C,
                _ => Kind::Rust,
            };
            let client = self.start(place, languages, kind);
            self.clients.push(client);
        }
    }

    /// SIGKILL of one; another takes its place.
    pub(crate) fn kill(&mut self, at: usize, place: &Place<'_>, languages: &Languages) {
        let kind = self.clients[at].kind;
        self.clients[at].end();
        self.clients[at] = self.start(place, languages, kind);
    }

    pub(crate) fn signal(&self, at: usize, what: Signal) {
        signal(self.clients[at].child.id(), what);
    }

    /// One will be stopped for longer than a daemon waits for it.
    pub(crate) fn make_late(&mut self, at: usize) {
        self.clients[at].was_late = true;
    }

    pub(crate) fn pid(&self, at: usize) -> u32 {
        self.clients[at].child.id()
    }

    pub(crate) fn len(&self) -> usize {
        self.clients.len()
    }

    /// All stop opening and check what they hold.
    pub(crate) fn rest(&mut self) -> Result<Held, String> {
        for client in &mut self.clients {
            if let Some(orders) = &mut client.orders {
                // One that ended is noticed below.
                let _ = orders.write_all(b"rest\n");
            }
        }
        let until = Instant::now() + PATIENCE;
        let mut sum = Held::default();
        for client in &self.clients {
            let left = until.saturating_duration_since(Instant::now());
            let Ok((models, leased)) = client.holding.recv_timeout(left) else {
                return Err(format!("client {} does not answer", client.child.id()));
            };
            sum.models += models;
            sum.leased += leased;
            if client.was_late {
                sum.late += models.saturating_sub(leased);
            }
        }
        Ok(sum)
    }

    /// All end.
    pub(crate) fn end(&mut self) {
        for client in &mut self.clients {
            client.orders = None;
        }
        for mut client in self.clients.drain(..) {
            let until = Instant::now() + PATIENCE;
            while Instant::now() < until && matches!(client.child.try_wait(), Ok(None)) {
                std::thread::park_timeout(std::time::Duration::from_millis(2));
            }
            client.end();
        }
    }

    fn start(&mut self, place: &Place<'_>, languages: &Languages, kind: Kind) -> Client {
        self.next_seed += 1;
        let seed = self.next_seed.to_string();
        let mut command = match (kind, &languages.c, &languages.python) {
            (Kind::C, Some(program), _) => (place.command)(program),
            (Kind::Python, _, Some((python, script))) => {
                let mut command = (place.command)(python);
                command.arg(script);
                command
            }
            (_, _, _) => {
                let own = std::env::current_exe().expect("own path");
                let mut command = (place.command)(&own);
                command.arg("client");
                command
            }
        };
        command.args([place.socket, place.models]).arg(seed);
        command.arg(match kind {
            Kind::Rust => place.devices.to_string(),
            Kind::C | Kind::Python => place.count.to_string(),
        });
        if let Some(library) = &languages.library {
            command.env("MRM_LIBRARY", library);
        }
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().expect("a client starts");
        let output = BufReader::new(child.stdout.take().expect("piped"));
        let (sender, holding) = channel();
        let totals = Arc::clone(&self.totals);
        std::thread::spawn(move || listen(output, &totals, &sender));
        Client {
            orders: child.stdin.take(),
            child,
            holding,
            kind,
            was_late: false,
        }
    }
}

fn listen(output: impl BufRead, totals: &Mutex<Totals>, holding: &Sender<(u64, u64)>) {
    for line in output.lines().map_while(Result::ok) {
        let mut totals = totals.lock().expect("no thread failed");
        match line.split_once(' ') {
            Some(("o", bytes)) => {
                totals.opens += 1;
                totals.bytes += bytes.parse().unwrap_or(0);
            }
            Some(("c", bytes)) => {
                totals.checks += 1;
                totals.bytes += bytes.parse().unwrap_or(0);
            }
            Some(("r", why)) => *totals.refusals.entry(why.to_owned()).or_default() += 1,
            Some(("V", what)) => totals.violations.push(what.to_owned()),
            Some(("holding", numbers)) => {
                let mut numbers = numbers.split(' ').map_while(|n| n.parse().ok());
                if let (Some(held), Some(leased)) = (numbers.next(), numbers.next()) {
                    let _ = holding.send((held, leased));
                }
            }
            // The last line of one that was killed may be cut.
            _ => {}
        }
    }
}

impl Client {
    fn end(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        self.end();
    }
}
