//! A client: opens, checks every byte, holds, checks again, closes, for as long as it is let.
//!
//! It writes a word a line: `o BYTES` an open that was right, `c BYTES` a held model that still was,
//! `r WHY` an open that was refused, `V WHAT` what may never be. On a line of input it checks what it holds
//! and says `holding MODELS LEASED`; at the end of input it ends.

use crate::models::{Model, parse};
use mrm_client::{Client, Devices, Fault, OpenOptions, Tier};
use mrm_tests::Random;
use mrm_tests::cuda::Cuda;
use std::collections::BTreeMap;
use std::io::BufRead;
use std::path::Path;
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::Duration;

/// How long an open may take: longer than a daemon is away.
const WAIT: Duration = Duration::from_secs(3);
const HELD_MAX: usize = 1;

struct Worker {
    client: Client,
    models: Vec<Model>,
    devices: u32,
    random: Random,
    /// By place in the list and device.
    held: BTreeMap<(usize, Option<u32>), mrm_client::Model>,
    cuda: BTreeMap<u32, Cuda>,
}

/// Runs until the end of input.
pub(crate) fn run(socket: &Path, dir: &Path, devices: u32, seed: u64) {
    let orders = orders();
    let mut rests = false;
    let client = loop {
        match Client::connect_to(socket) {
            Ok(client) => break client,
            Err(error) => println!("r {}", error.name()),
        }
        match next(&orders) {
            Some(Order::End) => return,
            Some(Order::Rest) => {
                rests = true;
                println!("holding 0 0");
            }
            None => {}
        }
    };
    let mut worker = Worker {
        client,
        models: Model::list(dir),
        devices,
        random: Random(seed),
        held: BTreeMap::new(),
        cuda: BTreeMap::new(),
    };
    loop {
        let order = match rests {
            true => orders.recv().ok(),
            false => next(&orders),
        };
        match order {
            Some(Order::End) => return,
            Some(Order::Rest) => {
                rests = true;
                worker.check_all();
                println!("holding {} {}", worker.held.len(), worker.leased());
            }
            None => worker.turn(),
        }
    }
}

enum Order {
    Rest,
    End,
}

fn orders() -> Receiver<Order> {
    let (sender, receiver) = channel();
    std::thread::spawn(move || {
        for line in std::io::stdin().lock().lines() {
            if line.is_err() || sender.send(Order::Rest).is_err() {
                break;
            }
        }
        drop(sender.send(Order::End));
    });
    receiver
}

/// What is asked for, after a moment in which others have their turn.
fn next(orders: &Receiver<Order>) -> Option<Order> {
    match orders.recv_timeout(Duration::from_millis(3)) {
        Ok(order) => Some(order),
        Err(RecvTimeoutError::Timeout) => None,
        Err(RecvTimeoutError::Disconnected) => Some(Order::End),
    }
}

impl Worker {
    fn turn(&mut self) {
        let acts = self.random.below(10);
        if acts < 6 || self.held.is_empty() {
            return self.open();
        }
        let at = usize::try_from(self.random.below(self.held.len() as u64)).expect("fits");
        let key = *self.held.keys().nth(at).expect("is held");
        self.check(key);
        if acts >= 7 || self.held.len() > HELD_MAX {
            self.held.remove(&key);
        }
    }

    fn open(&mut self) {
        // Some are wanted often, most seldom.
        let all = self.models.len() as u64;
        let bound = 1 + self.random.below(all);
        let bound = 1 + self.random.below(bound);
        let at = usize::try_from(self.random.below(bound)).expect("fits");
        let place = match self.devices {
            0 => None,
            devices => match self.random.below(3) {
                0 => u32::try_from(self.random.below(devices.into())).ok(),
                _ => None,
            },
        };
        let key = (at, place);
        if self.held.contains_key(&key) {
            self.check(key);
            return;
        }
        let options = OpenOptions::new().wait(WAIT);
        let options = match place {
            Some(device) => options.tier(Tier::Device(Devices::Ordinal(device))),
            None => options,
        };
        match self.client.open_with(&self.models[at].name, &options) {
            Ok(model) => {
                self.held.insert(key, model);
                if let Some(bytes) = self.check(key) {
                    println!("o {bytes}");
                }
                if self.held.len() > HELD_MAX || self.random.below(3) > 0 {
                    self.held.remove(&key);
                }
            }
            Err(error) if error.name() != "internal" && error.retryable() => {
                println!("r {}", error.name());
            }
            Err(error) => println!("V open: {}: {error}", error.name()),
        }
    }

    fn check_all(&mut self) {
        for key in self.held.keys().copied().collect::<Vec<_>>() {
            if let Some(bytes) = self.check(key) {
                println!("c {bytes}");
            }
        }
    }

    /// Compares every byte with the file; returns how many.
    fn check(&mut self, key: (usize, Option<u32>)) -> Option<usize> {
        let model = &self.held[&key];
        let file = std::fs::read(&self.models[key.0].path).expect("models stay");
        let name = &self.models[key.0].name;
        let Some(device) = key.1 else {
            let right = model.segment(0).is_some_and(|one| one.bytes() == file);
            if !right {
                println!("V {name} is not its file");
            }
            return right.then_some(file.len());
        };
        if model.lost().is_some() {
            println!("V {name} was taken away");
            return None;
        }
        let cuda = self.cuda.entry(device).or_insert_with(|| Cuda::of(device));
        for (tensor, bytes) in parse(&file) {
            let Ok(lent) = model.tensor(&tensor) else {
                println!("V {name} lacks {tensor}");
                return None;
            };
            let pointer = lent.device_pointer().expect("on a device");
            if cuda.read(pointer, bytes.len() as u64) != bytes {
                println!("V {tensor} of {name} is not its file on device {device}");
                return None;
            }
        }
        Some(file.len())
    }

    fn leased(&self) -> usize {
        let held = self.held.values();
        held.filter(|model| model.is_leased()).count()
    }
}
