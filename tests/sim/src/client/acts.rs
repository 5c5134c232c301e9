//! What a client does.

use super::{Asked, Client, Lease, What};
use crate::breach::{Checked, Rule, breach};
use crate::daemon::{IN_FLIGHT_MAX, uuid_of};
use crate::env::Env;
use crate::link::{Passed, Reader};
use crate::mishap::Mishap;
use crate::random::Random;
use crate::settings::{PAGE_BYTES, WAIT_MS_MAX};
use mrm_core::id::DeviceId;
use mrm_proto::frame::{self, Message};
use mrm_proto::hello::ClientHello;
use mrm_proto::ids::{InstanceId, LeaseId, RequestId};
use mrm_proto::name::{FileName, ModelName};
use mrm_proto::request::WaitFor;
use mrm_proto::request::{Cancel, Close, Devices, HadLease, Open, OpenFiles, Request, Resume};

impl Client {
    /// Does something.
    pub(crate) fn act(&mut self, env: &mut Env) -> Checked {
        if self.finishing {
            return self.give_back(env);
        }
        self.read(env)?;
        if env.random.below(4) == 0 {
            self.unmap_kept(env)?;
        }
        let Some(link) = self.link else {
            if env.up.is_some() && env.random.coin() {
                self.connect(env)?;
            }
            return Ok(());
        };
        if env.strikes(Mishap::ClientDies) {
            return self.die(env);
        }
        if self.asleep && env.random.below(8) == 0 {
            self.asleep = false;
            env.expect(link, Reader::Client);
        } else if env.strikes(Mishap::NeverReads) {
            (self.asleep, self.misbehaved) = (true, true);
        }
        if !self.greeted {
            return Ok(());
        }
        if env.strikes(Mishap::HalfFrame) {
            let (open, cargo) = self.make_open(env)?;
            let half = env.random.index(open.len());
            self.write(
                env,
                &open[..half],
                if half > 0 { cargo } else { Vec::new() },
            );
            return self.die(env);
        }
        if env.strikes(Mishap::BreaksProtocol) {
            return self.break_protocol(env);
        }
        if env.strikes(Mishap::Cancels) {
            return self.cancel(env);
        }
        match env.random.below(20) {
            0 => self.disconnect_politely(env),
            1 => self.close_unknown(env),
            2..=8 => self.close_one(env),
            _ => self.open(env),
        }
    }

    /// Gives back what it has once everything is answered, and leaves.
    fn give_back(&mut self, env: &mut Env) -> Checked {
        self.read(env)?;
        let Some(link) = self.link else {
            return self.unmap_all(env);
        };
        if std::mem::take(&mut self.asleep) {
            env.expect(link, Reader::Client);
        }
        if !self.greeted || !self.asked.is_empty() {
            return Ok(());
        }
        if self.leases.is_empty() {
            self.unmap_all(env)?;
            return self.disconnect(env);
        }
        self.close_one(env)
    }

    fn connect(&mut self, env: &mut Env) -> Checked {
        let link = env.links.connect(self.id);
        self.link = Some(link);
        self.run = env.up;
        let mut hello = ClientHello::new("simulated");
        if env.random.below(8) == 0 {
            hello.features = 0;
        }
        self.untold = hello.features == 0;
        let hello = encode(RequestId(u64::MAX), 0, &hello)?;
        self.write(env, &hello, Vec::new());
        Ok(())
    }

    /// Takes up what it had leased when the last daemon died.
    pub(super) fn resume(&mut self, env: &mut Env) -> Checked {
        if self.had.is_empty() {
            return Ok(());
        }
        let id = self.next_request();
        self.asked.insert(id, Asked::Resume);
        let had = |lease: &Lease| HadLease {
            version: lease.version,
            device: lease.device,
            reserve_bytes: lease.reserve_bytes,
        };
        let resume = Resume {
            instance: InstanceId(self.had_of),
            leases: self.had.iter().map(had).collect(),
        };
        let bytes = encode(RequestId(id), 0, &Request::Resume(resume))?;
        self.write(env, &bytes, Vec::new());
        Ok(())
    }

    const fn next_request(&mut self) -> u64 {
        self.requests += 1;
        self.requests
    }

    fn open(&mut self, env: &mut Env) -> Checked {
        let opens = |asked: &&Asked| matches!(asked, Asked::Open { .. });
        if self.asked.values().filter(opens).count() < IN_FLIGHT_MAX {
            let (open, cargo) = self.make_open(env)?;
            self.write(env, &open, cargo);
        }
        Ok(())
    }

    /// An open, noted as asked.
    fn make_open(&mut self, env: &mut Env) -> Checked<(Vec<u8>, Vec<Passed>)> {
        let random = &mut env.random;
        // One name that nobody knows.
        let model = random.index(env.disk.models() + 1);
        let wait_ms = if random.below(6) == 0 {
            0
        } else {
            random.between(1, WAIT_MS_MAX)
        };
        let progress = random.below(4) == 0;
        let devices = some_devices(random, env.settings.devices.len());
        let wait_for = (random.below(3) == 0).then_some(WaitFor::Layout);
        let host = devices.is_none();
        let reserve_bytes = devices.as_ref().and_then(|devices| devices.reserve_bytes);
        let passes = random.below(6) == 0;
        let files = env
            .disk
            .files(model)
            .filter(|_| passes)
            .map(<[u64]>::to_vec);
        let name = ModelName::new(format!("m{model}"));
        let Ok(name) = name else {
            return breach(Rule::Answers, "a name is refused");
        };
        let (request, cargo, what) = match files {
            Some(inodes) => {
                let names = (0..inodes.len()).filter_map(|n| FileName::new(format!("f{n}")).ok());
                let files = names.collect();
                let open = OpenFiles {
                    label: name,
                    files,
                    wait_ms,
                    progress,
                    devices,
                    wait_for,
                };
                let cargo = inodes.iter().copied().map(Passed::File).collect();
                (Request::OpenFiles(open), cargo, What::Files(inodes))
            }
            None => {
                let open = Open {
                    model: name,
                    wait_ms,
                    progress,
                    devices,
                    wait_for,
                    known: None,
                };
                (Request::Open(open), Vec::new(), What::Model(model))
            }
        };
        let id = self.next_request();
        let wait_ms = if wait_ms == 0 {
            env.settings.wait_ms_default
        } else {
            wait_ms
        };
        let (sent_at, until) = (env.now, env.now + wait_ms * 1000);
        self.asked.insert(
            id,
            Asked::Open {
                what,
                sent_at,
                until,
                host,
                reserve_bytes,
            },
        );
        let bytes = encode(RequestId(id), cargo.len(), &request)?;
        Ok((bytes, cargo))
    }

    /// Gives a lease back. What it mapped may stay mapped.
    fn close_one(&mut self, env: &mut Env) -> Checked {
        let late = env.strikes(Mishap::ReleasesLate);
        if late || self.leases.is_empty() {
            return Ok(());
        }
        let lease = self.leases.swap_remove(env.random.index(self.leases.len()));
        self.kept.extend(&lease.mappings);
        if !env.strikes(Mishap::KeepsMapping) {
            self.unmap_kept(env)?;
        }
        let answer = env.random.coin();
        self.send_close(env, lease.id, answer, lease.revoked)
    }

    fn close_unknown(&mut self, env: &mut Env) -> Checked {
        self.send_close(env, LeaseId(u64::MAX), true, true)
    }

    fn send_close(
        &mut self,
        env: &mut Env,
        lease: LeaseId,
        answer: bool,
        unknown: bool,
    ) -> Checked {
        let id = if answer { self.next_request() } else { 0 };
        if answer {
            let unknown = unknown || self.untold;
            self.asked.insert(id, Asked::Close { unknown });
        }
        let bytes = encode(RequestId(id), 0, &Request::Close(Close { lease }))?;
        self.write(env, &bytes, Vec::new());
        Ok(())
    }

    /// Gives an open up: one that waits, or any other request.
    fn cancel(&mut self, env: &mut Env) -> Checked {
        let ids: Vec<u64> = self.asked.keys().copied().collect();
        let unknown = self.requests;
        let target = env.random.pick(&ids).copied().unwrap_or(unknown);
        let id = if env.random.coin() {
            self.next_request()
        } else {
            0
        };
        if id > 0 {
            self.asked.insert(id, Asked::Cancel { target });
        }
        let cancel = Request::Cancel(Cancel {
            target: RequestId(target),
        });
        let bytes = encode(RequestId(id), 0, &cancel)?;
        self.write(env, &bytes, Vec::new());
        Ok(())
    }

    fn disconnect_politely(&mut self, env: &mut Env) -> Checked {
        if env.strikes(Mishap::KeepsMapping) {
            let leases = std::mem::take(&mut self.leases);
            self.kept
                .extend(leases.into_iter().flat_map(|lease| lease.mappings));
        } else {
            self.unmap_all(env)?;
        }
        self.disconnect(env)
    }

    fn break_protocol(&mut self, env: &mut Env) -> Checked {
        self.misbehaved = true;
        let (mut frame, cargo) = self.make_open(env)?;
        match env.random.below(4) {
            // Not a frame.
            0 => frame[0] = b'X',
            // A body that is none.
            1 => {
                if let Some(last) = frame.last_mut() {
                    *last ^= 0xff;
                }
            }
            // An id that still awaits its answer.
            2 => {
                self.write(env, &frame, cargo.clone());
            }
            // A reply.
            _ => frame[5] = 0x80,
        }
        self.write(env, &frame, cargo);
        Ok(())
    }
}

/// Where an open wants its model: in host memory, or on some of the devices, or on one that is not
/// there.
fn some_devices(random: &mut Random, own: usize) -> Option<Devices> {
    if random.coin() {
        return None;
    }
    let count = random.below(3);
    let device = |random: &mut Random| u16::try_from(random.index(own + 1)).unwrap_or(0);
    let any_of = (0..count)
        .map(|_| uuid_of(DeviceId(device(random))))
        .collect();
    let else_host = random.coin();
    let reserve_bytes = (random.below(3) == 0).then(|| random.between(1, 8) * PAGE_BYTES);
    Some(Devices {
        any_of,
        else_host,
        reserve_bytes,
    })
}

fn encode(request: RequestId, fds: usize, message: &impl Message) -> Checked<Vec<u8>> {
    let fds = u8::try_from(fds).unwrap_or(u8::MAX);
    frame::encode(request, fds, message)
        .or_else(|error| breach(Rule::Answers, format!("{:?}: {error}", message.kind())))
}
