//! A decider that knows one model and does what the others' names say.

use crate::status::query::{self, Query, ReplyTo, StatusHandle, StatusInbox};
use crate::status::view::*;
use crate::status::{Event, EventKind, EventLog, Place, WarmOn};
use mrm_proto::error::{ErrorCode, ErrorReply};
use mrm_proto::name::ModelName;
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use tokio::sync::mpsc;

/// What a test tells the decider.
enum Order {
    Push(Event),
    State(DaemonState),
    Stop,
}

/// The decider's thread, and what it was asked.
pub(super) struct Fake {
    orders: mpsc::UnboundedSender<Order>,
    asked: Arc<Mutex<Vec<String>>>,
    thread: Option<JoinHandle<()>>,
}

impl Fake {
    pub(super) fn start() -> (StatusHandle, Self) {
        let (handle, inbox) = query::channel();
        let (orders, rx) = mpsc::unbounded_channel();
        let asked = Arc::default();
        let mut decider = Decider {
            log: EventLog::default(),
            state: DaemonState::Serving,
            kept: Vec::new(),
            asked: Arc::clone(&asked),
        };
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .build()
                .unwrap();
            runtime.block_on(decider.run(inbox, rx));
        });
        (
            handle,
            Self {
                orders,
                asked,
                thread: Some(thread),
            },
        )
    }

    pub(super) fn push(&self, event: Event) {
        self.orders
            .send(Order::Push(event))
            .unwrap_or_else(|_| panic!("the decider ended"));
    }

    pub(super) fn become_state(&self, state: DaemonState) {
        self.orders
            .send(Order::State(state))
            .unwrap_or_else(|_| panic!("the decider ended"));
    }

    pub(super) fn stop(&mut self) {
        _ = self.orders.send(Order::Stop);
        if let Some(thread) = self.thread.take() {
            thread.join().unwrap();
        }
    }

    /// What was asked since the last call.
    pub(super) fn asked(&self) -> Vec<String> {
        std::mem::take(&mut self.asked.lock().unwrap())
    }

    /// Returns once so many questions were asked.
    pub(super) fn wait_asked(&self, questions: usize) {
        let deadline = Instant::now() + Duration::from_secs(60);
        while self.asked.lock().unwrap().len() < questions {
            assert!(Instant::now() < deadline, "nothing was asked");
            std::thread::yield_now();
        }
    }
}

impl Drop for Fake {
    fn drop(&mut self) {
        self.stop();
    }
}

struct Decider {
    log: EventLog,
    state: DaemonState,
    /// Questions that are never answered.
    kept: Vec<Query>,
    asked: Arc<Mutex<Vec<String>>>,
}

impl Decider {
    async fn run(&mut self, mut inbox: StatusInbox, mut orders: mpsc::UnboundedReceiver<Order>) {
        loop {
            // Orders first: what a test ordered before it asked has happened.
            tokio::select! {
                biased;
                order = orders.recv() => match order {
                    Some(Order::Push(event)) => {
                        let seq = self.log.push(1_700_000_000_000, event);
                        inbox.announce(seq);
                    }
                    Some(Order::State(state)) => self.state = state,
                    Some(Order::Stop) | None => return,
                },
                query = inbox.recv() => match query {
                    Some(query) => self.answer(query),
                    None => return,
                },
            }
        }
    }

    fn note(&self, text: impl Into<String>) {
        self.asked.lock().unwrap().push(text.into());
    }

    fn answer(&mut self, query: Query) {
        match query {
            Query::State { reply } => reply.send(Ok(self.state)),
            Query::Status { reply } => reply.send(Ok(status(self.state))),
            Query::Models {
                prefix,
                after,
                limit,
                reply,
            } => {
                self.note(format!("models {prefix:?} {after:?} {limit}"));
                let huge = prefix == "huge";
                let models = vec![model("org/bert"); if huge { limit } else { 1 }];
                reply.send(Ok(ModelsView { models, more: true }));
            }
            Query::Model { name, reply } => reply.send(detail(name.as_str())),
            Query::Sessions { reply } => reply.send(Ok(sessions())),
            Query::Journal { reply } => {
                reply.send(Ok(vec!["MRM".into(), "JRNL".into()]));
            }
            Query::Events {
                since,
                limit,
                reply,
            } => {
                self.note(format!("events {since} {limit}"));
                reply.send(Ok(self.log.since(since, limit)));
            }
            Query::Policies { reply } => reply.send(Ok(policies())),
            Query::SetPolicy { on, to, reply } => {
                let on = on.map_or_else(|| "everywhere".to_owned(), |on| on.to_string());
                let to = to.map_or_else(|| "configured".to_owned(), |to| to.to_string());
                self.note(format!("policy {on} {to}"));
                reply.send(Ok(policies()));
            }
            Query::Hint { name, in_ms, reply } => {
                self.note(format!("hint {name} {in_ms}"));
                let name = name.to_string();
                reply.send(Ok(Hinted { name, in_ms }));
            }
            Query::Pin { name, on, reply } => {
                self.note(format!("pin {name} {on}"));
                let name = name.to_string();
                reply.send(Ok(Pinned {
                    name,
                    pinned: on,
                    changed: true,
                }));
            }
            Query::Warm {
                name,
                on,
                wait_ms,
                reply,
            } => {
                self.note(format!("warm {name} {on} {wait_ms}"));
                reply.send(warmed(name.as_str(), on));
            }
            Query::Evict { name, from, reply } => self.evict(name, from, reply),
            Query::Verify { name, reply } => {
                let name = name.map_or_else(|| "everything".to_owned(), |name| name.to_string());
                self.note(format!("verify {name}"));
                reply.send(Ok(verified(&name)));
            }
            Query::Drain { reply } => self.drain(reply),
        }
    }

    fn drain(&mut self, reply: ReplyTo<Drained>) {
        self.note("drain");
        self.state = DaemonState::Draining;
        self.log.push(1, Event::of(EventKind::Drain));
        reply.send(Ok(Drained {
            sessions: 2,
            leases: 3,
        }));
    }

    fn evict(&mut self, name: ModelName, from: Option<Place>, reply: ReplyTo<Evicted>) {
        match name.as_str() {
            "held" => reply.send(Err(refusal(ErrorCode::InUse))),
            "stuck" => {
                self.note("evict stuck");
                self.kept.push(Query::Evict { name, from, reply });
            }
            name => {
                let from = from.map_or_else(|| "everywhere".to_owned(), |p| p.to_string());
                self.note(format!("evict {name} {from}"));
                reply.send(Ok(Evicted {
                    name: name.to_owned(),
                    freed_bytes: 4096,
                }));
            }
        }
    }
}

fn verified(name: &str) -> Verified {
    let segment = VerifiedSegment {
        model: Some(name.to_owned()),
        part: "file",
        tier: "host".to_owned(),
        bytes: 7,
        digest: "00".repeat(32),
        outcome: VerifiedOutcome::Intact,
        detail: None,
    };
    Verified {
        intact: true,
        bytes: 7,
        took_ms: 1.5,
        segments: vec![segment],
    }
}

fn warmed(name: &str, on: WarmOn) -> Result<Warmed, ErrorReply> {
    match name {
        "slow" => Err(refusal(ErrorCode::TimedOut).with_effect()),
        "big" => Err(refusal(ErrorCode::NoRoom)),
        "giant" => Err(refusal(ErrorCode::TooLarge)),
        name => Ok(Warmed {
            name: name.to_owned(),
            tier: on.to_string(),
            origin: OriginView::Loaded,
            bytes: 7,
            took_ms: 1.5,
        }),
    }
}

fn policies() -> PoliciesView {
    PoliciesView {
        tiers: vec![TierPolicyView {
            tier: "host".into(),
            policy: "gc".into(),
            configured: "lru".into(),
            differs: true,
        }],
        prefetch: PrefetchView {
            share_percent: 20,
            hints: 1,
            ..PrefetchView::default()
        },
    }
}

fn refusal(code: ErrorCode) -> ErrorReply {
    ErrorReply::new(code, format!("made up: {code}"))
}

pub(super) fn status(state: DaemonState) -> StatusView {
    StatusView {
        daemon: DaemonView {
            version: "0.1.0".into(),
            pid: 812,
            instance: "9f0c".into(),
            uptime_s: 1.5,
            state,
            protocol: ProtocolView { min: 1, max: 1 },
            runtime_dir: "/run/mrm".into(),
        },
        host: HostView {
            limit_bytes: 100,
            charged_bytes: 60,
            freeing_bytes: 10,
            resident_bytes: 50,
            huge_bytes: 40,
            segments: 2,
            stock_bytes: 67_108_864,
            stock_pending_bytes: 16_777_216,
        },
        devices: devices(),
        sessions: 1,
        leases: 2,
        waiting: 3,
        loading: 4,
        counters: CountersView {
            opens_total: 9,
            hits_total: 8,
            ..CountersView::default()
        },
        integrity: IntegrityView::default(),
        degraded: vec![DegradedView {
            id: "huge_\"pages\"\\\n".into(),
            cause: "never".into(),
            cure: "echo".into(),
        }],
    }
}

/// One device, and one that was lost.
fn devices() -> DevicesView {
    let ready = DeviceView {
        uuid: "GPU-5a3c1b2e-0f1d-4c9a-8a77-0123456789ab".into(),
        name: Some("H100".into()),
        pci_bus_id: Some("0000:3b:00.0".into()),
        state: DeviceStateView::Ready,
        cause: None,
        cure: None,
        sharing: Some(SharingView::Vmm),
        sharing_why: Some("a child process could read".into()),
        granularity: GranularityView::Block,
        block_bytes: Some(256),
        total_bytes: 1000,
        free_bytes: Some(400),
        reserve_bytes: 100,
        budget_bytes: 900,
        limit_bytes: 800,
        charged_bytes: 300,
        reserved_bytes: 30,
        freeing_bytes: 20,
        resident_bytes: 250,
        context_bytes: Some(5),
        images: 2,
        loading: 1,
        leases: 3,
        peers: vec![LOST.into()],
        registration: RegistrationView {
            state: RegistrationStateView::Failed,
            cause: Some("refused".into()),
        },
    };
    let lost = DeviceView {
        uuid: LOST.into(),
        state: DeviceStateView::Lost,
        cause: Some("CUDA error 719".into()),
        cure: Some("see dmesg".into()),
        granularity: GranularityView::Model,
        block_bytes: None,
        free_bytes: None,
        limit_bytes: 0,
        context_bytes: None,
        peers: Vec::new(),
        registration: RegistrationView {
            state: RegistrationStateView::On,
            cause: None,
        },
        ..ready.clone()
    };
    DevicesView {
        driver: DriverView {
            state: DriverStateView::Ready,
            version: Some("12.4".into()),
            library: Some("/usr/lib64/libcuda.so.1".into()),
            cause: None,
            cure: None,
        },
        devices: vec![ready, lost],
    }
}

pub(super) const LOST: &str = "GPU-00000000-0000-0000-0000-000000000001";

fn model(name: &str) -> ModelView {
    ModelView {
        name: name.into(),
        registered: true,
        kind: Some(ModelKindView::Safetensors),
        state: ModelStateView::Resident,
        bytes: 91,
        charged_bytes: 96,
        huge_bytes: 64,
        loaded_bytes: 91,
        eta_ms: None,
        leases: 2,
        sessions: 1,
        pinned: false,
        eager: true,
        version: Some(3),
        digest: None,
        last_used_s_ago: Some(0.25),
        load_ms: None,
        path: Some("/models/bert".into()),
        devices: vec![ModelDeviceView {
            uuid: LOST.into(),
            state: DeviceCopyStateView::Loading,
            bytes: 96,
            reserved_bytes: 7,
            loaded_bytes: 48,
            leases: 1,
        }],
    }
}

fn detail(name: &str) -> Result<ModelDetailView, ErrorReply> {
    if name != "org/bert" {
        let message = format!("there is no model `{name}`");
        return Err(ErrorReply::new(ErrorCode::ModelNotFound, message));
    }
    Ok(ModelDetailView {
        model: model("org/bert"),
        segments: vec![SegmentView {
            name: "model.safetensors".into(),
            bytes: 91,
            state: SegmentStateView::Resident,
            huge_bytes: 64,
            digest: Some("ab".into()),
            leases: 2,
            way: Some("direct_ring"),
        }],
        tensors: Some(103),
        holders: vec![HolderView {
            session: 5,
            pid: 77,
            uid: 1000,
            client: "py".into(),
            tier: "host".into(),
            leases: 2,
        }],
        reserve_lately_bytes: 21,
        worth: vec![WorthView {
            tier: "host".into(),
            policy: "gdsf".into(),
            worth: 0.5,
            factors: [("uses", 2.0)].into(),
            rank: 1,
            candidates: 4,
        }],
    })
}

fn sessions() -> SessionsView {
    SessionsView {
        sessions: vec![SessionView {
            id: 5,
            pid: 77,
            uid: 1000,
            gid: 100,
            client: "py".into(),
            leases: 2,
            waiting: 0,
            connected_s: 3.5,
            models: vec![HeldView {
                name: "org/bert".into(),
                leases: 2,
            }],
        }],
    }
}
