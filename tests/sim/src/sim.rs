//! One run: what happens, in order, until the faults stop and everything is at rest.

use crate::breach::{Checked, Rule, breach, ensure};
use crate::client::Client;
use crate::daemon::{Daemon, Left};
use crate::env::{Env, Happening, Job, Run};
use crate::link::{LinkId, Reader};
use crate::mishap::Mishap;
use crate::settings::{PAGE_BYTES, REST_US};
use crate::trace::Trace;
use mrm_core::id::DeviceId;
use mrm_core::ledger::Tier;

/// Between two times at which something may go wrong with files, devices and operators.
const TROUBLE_US: u64 = 12_000;
/// How long it takes until a daemon that died is back, at most.
const BACK_US: u64 = 60_000;
/// Most that may happen in one run: what goes on for longer goes in circles.
const HAPPENINGS_MAX: u64 = 2_000_000;

/// One run.
#[derive(Debug)]
pub(crate) struct Sim {
    pub(crate) env: Env,
    daemon: Option<Daemon>,
    left: Option<Left>,
    runs: u64,
    clients: Vec<Client>,
}

impl Sim {
    pub(crate) fn new(seed: u64, trace: Trace) -> Self {
        let mut env = Env::new(seed, trace);
        for _ in 0..env.settings.models {
            let files = env.random.between(1, 3);
            let contents: Vec<u64> = (0..files).map(|_| new_content(&mut env)).collect();
            env.disk.add_model(&contents);
        }
        let capacities = env.settings.devices.iter().map(|device| device.capacity);
        for (device, capacity) in (0..=u16::MAX).zip(capacities.collect::<Vec<_>>()) {
            env.memory
                .add_device(Tier::Device(DeviceId(device)), capacity);
        }
        let clients = (0..env.settings.clients).map(Client::new).collect();
        env.after(0, Happening::Start);
        env.after(TROUBLE_US, Happening::Trouble);
        for client in 0..env.settings.clients {
            let us = env.random.below(env.settings.pause_us);
            env.after(us, Happening::Act(client));
        }
        Self {
            env,
            daemon: None,
            left: None,
            runs: 0,
            clients,
        }
    }

    /// All of it.
    pub(crate) fn run(&mut self) -> Checked {
        while self.env.now < self.env.settings.faulty_us {
            self.go_on()?;
        }
        self.calm_down()?;
        let until = self.env.now + REST_US;
        while !self.clients.iter().all(Client::is_done) {
            self.go_on()?;
            self.ensure_in_time(until)?;
        }
        self.settle(until)?;
        let Some(daemon) = &self.daemon else {
            return breach(Rule::Rest, "no daemon is up");
        };
        daemon.check_rest(&self.env)?;
        if let Some(daemon) = &mut self.daemon {
            daemon.let_all_go(&mut self.env)?;
        }
        self.settle(until)?;
        if let Some(daemon) = &self.daemon {
            daemon.check_empty(&self.env)?;
        }
        let left = self.env.memory.len();
        ensure(left == 0, Rule::Leak, || {
            format!("{left} allocations are left")
        })
    }

    /// Until nothing is under way in the daemon.
    fn settle(&mut self, until: u64) -> Checked {
        while self
            .daemon
            .as_ref()
            .is_none_or(|daemon| daemon.unsettled().is_some())
        {
            self.go_on()?;
            self.ensure_in_time(until)?;
        }
        Ok(())
    }

    /// The faults stop. Everybody waits for answers, and gives back what they have.
    fn calm_down(&mut self) -> Checked {
        self.env.mishaps.stop();
        for device in 0..self.env.settings.devices.len() {
            let device = u16::try_from(device).unwrap_or(0);
            self.env
                .memory
                .set_others(Tier::Device(DeviceId(device)), 0);
        }
        for client in &mut self.clients {
            client.finish();
        }
        Ok(())
    }

    fn ensure_in_time(&self, until: u64) -> Checked {
        ensure(self.env.now <= until, Rule::Rest, || {
            let clients: Vec<String> = self.clients.iter().filter_map(Client::unanswered).collect();
            let daemon = self.daemon.as_ref().and_then(Daemon::unsettled);
            format!("not at rest in time: {clients:?}, {daemon:?}")
        })
    }

    /// The next that happens.
    fn go_on(&mut self) -> Checked {
        let Some(what) = self.env.next() else {
            return breach(Rule::Rest, "nothing happens any more");
        };
        ensure(self.env.happened() < HAPPENINGS_MAX, Rule::Rest, || {
            "in circles".to_owned()
        })?;
        match what {
            Happening::Act(id) => self.act(id),
            Happening::Arrive(link, Reader::Daemon) => self.arrive_at_daemon(link),
            Happening::Arrive(link, Reader::Client) => self.arrive_at_client(link),
            Happening::Daemon(run, job) => self.job(run, job),
            Happening::Trouble => self.trouble(),
            Happening::Start => self.start(),
        }
    }

    fn act(&mut self, id: usize) -> Checked {
        let Some(client) = self.clients.get_mut(id) else {
            return Ok(());
        };
        client.act(&mut self.env)?;
        if !client.is_done() || !self.env.mishaps.stopped() {
            let pause_us = self.env.settings.pause_us;
            let us = self.env.random.between(1, 2 * pause_us);
            self.env.after(us, Happening::Act(id));
        }
        Ok(())
    }

    fn arrive_at_daemon(&mut self, link: LinkId) -> Checked {
        let Some(pipe) = self.env.links.pipe(link, Reader::Daemon) else {
            return Ok(());
        };
        pipe.expected = false;
        if pipe.gone {
            return Ok(());
        }
        match &mut self.daemon {
            Some(daemon) => daemon.arrive(&mut self.env, link),
            // Connected just before the daemon died.
            None => {
                self.env.end(link, Reader::Client);
                self.env.discard(link, Reader::Daemon)
            }
        }
    }

    fn arrive_at_client(&mut self, link: LinkId) -> Checked {
        if let Some(pipe) = self.env.links.pipe(link, Reader::Client) {
            pipe.expected = false;
        }
        let client = self
            .env
            .links
            .client(link)
            .and_then(|id| self.clients.get_mut(id));
        if let Some(client) = client {
            client.arrive(&mut self.env, link)?;
        }
        match &mut self.daemon {
            Some(daemon) => daemon.has_read(&mut self.env, link),
            None => Ok(()),
        }
    }

    fn job(&mut self, run: Run, job: Job) -> Checked {
        match &mut self.daemon {
            Some(daemon) if daemon.run == run => {
                if matches!(job, Job::End) {
                    self.die()
                } else {
                    daemon.job(&mut self.env, job)
                }
            }
            Some(_) | None => Ok(()),
        }
    }

    /// The daemon ends, one way or another, and comes back.
    fn die(&mut self) -> Checked {
        if let Some(daemon) = self.daemon.take() {
            self.left = Some(daemon.die(&mut self.env)?);
            self.env.up = None;
            let us = self.env.random.below(BACK_US);
            self.env.after(us, Happening::Start);
        }
        Ok(())
    }

    fn start(&mut self) -> Checked {
        self.runs += 1;
        let run = Run(self.runs);
        self.env.memory.replace_lost();
        let left = self.left.take().unwrap_or_default();
        self.daemon = Some(Daemon::start(&mut self.env, run, &left)?);
        (self.env.up, self.env.started_at) = (Some(run), self.env.now);
        Ok(())
    }

    /// What goes wrong around the daemon, and what operators do to it.
    fn trouble(&mut self) -> Checked {
        if self.env.mishaps.stopped() {
            return Ok(());
        }
        self.env.after(TROUBLE_US, Happening::Trouble);
        self.touch_files();
        self.touch_devices();
        if self.env.strikes(Mishap::DaemonDies) {
            return self.die();
        }
        let Some(daemon) = &mut self.daemon else {
            return Ok(());
        };
        let env = &mut self.env;
        let model = env.random.index(env.settings.models);
        if env.strikes(Mishap::Wishes) {
            daemon.wish(env, model)?;
        }
        if env.strikes(Mishap::Warms) {
            daemon.warm(env, model)?;
        }
        if env.strikes(Mishap::Evicts) {
            daemon.evict(env, model)?;
        }
        if env.strikes(Mishap::MemoryDamaged) {
            daemon.damage(env)?;
        }
        if env.strikes(Mishap::Hints) {
            daemon.hint(env, model)?;
        }
        if env.strikes(Mishap::BudgetChanged) {
            let (tier, most) = any_tier(env);
            let budget = env.random.below(most / PAGE_BYTES * 5 / 4) * PAGE_BYTES;
            daemon.set_budget(env, tier, budget)?;
        }
        if env.strikes(Mishap::Reload) {
            let registered = env.disk.is_registered(model);
            env.disk.register(model, !registered);
            daemon.reload(env)?;
        }
        if env.strikes(Mishap::Drains) {
            daemon.drain(env)?;
        }
        Ok(())
    }

    fn touch_files(&mut self) {
        let env = &mut self.env;
        let model = env.random.index(env.settings.models);
        let files = env.disk.files(model).map(<[u64]>::to_vec);
        if env.strikes(Mishap::FilesRemoved) {
            let there = files.is_none();
            let files = there.then(|| new_files(env));
            env.disk.set_files(model, files, env.now);
        } else if let Some(mut files) = files {
            let place = env.random.index(files.len());
            if env.strikes(Mishap::FileReplaced) {
                let content = new_content(env);
                files[place] = env.disk.create(content, env.now);
                // Now and then a file is two of a model's.
                if env.random.below(20) == 0 {
                    files[0] = files[place];
                }
                env.disk.set_files(model, Some(files), env.now);
            } else if env.strikes(Mishap::FileOverwritten) {
                let content = new_content(env);
                env.disk.overwrite(files[place], content, env.now);
            }
        }
    }

    fn touch_devices(&mut self) {
        let env = &mut self.env;
        let (tier, most) = any_tier(env);
        if tier == Tier::Host {
            return;
        }
        if env.strikes(Mishap::OthersTakeDevice) {
            let bytes = env.random.below(most);
            env.memory.set_others(tier, bytes);
        }
        if env.strikes(Mishap::DeviceLost) {
            env.memory.lose(tier);
            env.device_lost = true;
        }
    }
}

fn new_content(env: &mut Env) -> u64 {
    env.random.below(env.settings.contents)
}

fn new_files(env: &mut Env) -> Vec<u64> {
    let count = env.random.between(1, 3);
    let contents: Vec<u64> = (0..count).map(|_| new_content(env)).collect();
    let now = env.now;
    contents
        .iter()
        .map(|content| env.disk.create(*content, now))
        .collect()
}

/// A tier, and what it was configured to take.
fn any_tier(env: &mut Env) -> (Tier, u64) {
    let devices = &env.settings.devices;
    let place = env.random.index(devices.len() + 1);
    match devices.get(place) {
        Some(device) => (
            Tier::Device(DeviceId(u16::try_from(place).unwrap_or(0))),
            device.capacity,
        ),
        None => (Tier::Host, env.settings.host_budget),
    }
}
