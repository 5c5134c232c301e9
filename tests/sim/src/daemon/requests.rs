//! What clients ask, as in `shell/requests.rs` and `shell/grant.rs` of the daemon.

use super::Daemon;
use super::names::Names;
use super::sessions::{Pending, Who};
use crate::breach::Checked;
use crate::env::Env;
use crate::link::Passed;
use mrm_core::event::{AnyOf, Event, Wanted};
use mrm_core::id::{Bytes, DeviceId, LeaseId, ModelId, RequestId, SessionId};
use mrm_proto::error::{ErrorCode, ErrorReply};
use mrm_proto::hello::{ClientHello, ServerHello, ServerLimits, features};
use mrm_proto::ids;
use mrm_proto::limits;
use mrm_proto::reply::Reply;
use mrm_proto::request::{Devices, Request, WaitFor};

/// Most opens of one session that may await their reply.
pub(crate) const IN_FLIGHT_MAX: usize = 8;

/// Gives a model its number.
type Naming<'a> = dyn Fn(&mut Names, Option<u32>) -> ModelId + 'a;

/// Where an open wants its model, and what it waits for.
type Place<'a> = (Option<&'a Devices>, Option<WaitFor>);

/// Keeps to the protocol, or ends the session.
type Kept = Result<(), ErrorReply>;

impl Daemon {
    pub(super) fn hello(&self, hello: &ClientHello) -> Result<ServerHello, ErrorReply> {
        let version = hello.pick_version().ok_or_else(|| {
            ErrorReply::new(ErrorCode::VersionMismatch, "no version that both speak")
        })?;
        let served = match self.budgets.is_empty() {
            true => features::ALL & !features::DEVICE,
            false => features::ALL,
        };
        Ok(ServerHello {
            version,
            features: hello.features & served,
            instance: ids::InstanceId(self.run.0),
            daemon: "simulated".to_owned(),
            limits: ServerLimits {
                frame_body_bytes_max: u32::MAX,
                requests_in_flight_max: u32::MAX,
                leases_max: u32::MAX,
                wait_ms_max: limits::WAIT_MS_MAX,
            },
        })
    }

    pub(super) fn request(
        &mut self,
        env: &mut Env,
        session: SessionId,
        request: ids::RequestId,
        (body, cargo): (Request, Vec<Passed>),
    ) -> Checked<Kept> {
        if let Err(error) = self.check_id(session, request, &body) {
            return Ok(Err(error));
        }
        let answer = (!request.wants_no_reply()).then_some(RequestId(request.0));
        let key = (session, request);
        match body {
            Request::Open(open) => {
                let name = index_of(open.model.as_str());
                let model = |names: &mut Names, owner| names.registered(name, owner);
                let asked = (open.wait_ms, open.progress, false);
                let place = (open.devices.as_ref(), open.wait_for);
                return self.open(env, key, (place, &model), asked);
            }
            Request::OpenFiles(open) => {
                let file = |passed: &Passed| match passed {
                    Passed::File(inode) => Some(*inode),
                    Passed::Memory(_) => None,
                };
                let model = |names: &mut Names, owner| {
                    names.passed(cargo.iter().filter_map(file).collect(), owner)
                };
                let asked = (open.wait_ms, open.progress, true);
                let place = (open.devices.as_ref(), open.wait_for);
                return self.open(env, key, (place, &model), asked);
            }
            Request::Close(close) => {
                let lease = LeaseId(close.lease.0);
                self.step(
                    env,
                    Event::Close {
                        session,
                        request: answer,
                        lease,
                    },
                )?;
            }
            Request::Cancel(cancel) => {
                let target = RequestId(cancel.target.0);
                self.step(
                    env,
                    Event::Cancel {
                        session,
                        request: answer,
                        target,
                    },
                )?;
            }
            Request::Resume(resume) => self.resume(env, key, &resume)?,
            Request::Heard(_) => {}
            Request::Touched(_) | Request::Hint(_) | Request::List(_) | Request::Stat(_) => {
                let error = ErrorReply::new(ErrorCode::NotPermitted, "not simulated");
                return self.turned_away(env, key, error);
            }
        }
        Ok(Ok(()))
    }

    fn turned_away(
        &mut self,
        env: &mut Env,
        (session, request): (SessionId, ids::RequestId),
        error: ErrorReply,
    ) -> Checked<Kept> {
        self.send(env, session, request, &Reply::Error(error), Vec::new())?;
        Ok(Ok(()))
    }

    fn check_id(&self, session: SessionId, request: ids::RequestId, body: &Request) -> Kept {
        let silent = matches!(body, Request::Close(_) | Request::Cancel(_));
        if request.wants_no_reply() && !silent {
            return Err(ErrorReply::new(ErrorCode::BadRequestId, "id 0"));
        }
        let Some(record) = self.sessions.get(&session) else {
            return Err(ErrorReply::new(ErrorCode::Internal, "the session is over"));
        };
        if record.pending.contains_key(&RequestId(request.0)) {
            return Err(ErrorReply::new(
                ErrorCode::BadRequestId,
                "still awaits its reply",
            ));
        }
        if !silent && record.pending.len() >= IN_FLIGHT_MAX {
            return Err(ErrorReply::new(
                ErrorCode::TooManyInFlight,
                "await some replies first",
            ));
        }
        Ok(())
    }

    fn uid_of(&self, session: SessionId) -> Option<u32> {
        match &self.sessions.get(&session)?.who {
            Who::Client(client) => Some(client.uid),
            Who::Operator => None,
        }
    }

    fn wanted(&self, session: SessionId, place: Place<'_>) -> Result<Wanted, ErrorReply> {
        let (devices, wait_for) = place;
        let who = self.sessions.get(&session).map(|session| &session.who);
        let agreed = match who {
            Some(Who::Client(client)) => client.features,
            Some(Who::Operator) | None => 0,
        };
        let Some(devices) = devices else {
            let early = agreed & features::EARLY != 0 && wait_for == Some(WaitFor::Layout);
            return Ok(if early { Wanted::Layout } else { Wanted::Host });
        };
        let own = |uuid: &ids::DeviceUuid| self.devices().find(|device| uuid_of(*device) == *uuid);
        let mut known: Vec<DeviceId> = Vec::new();
        for device in devices.any_of.iter().filter_map(own) {
            if !known.contains(&device) {
                known.push(device);
            }
        }
        let reserve = match agreed & features::RESERVE {
            0 => None,
            _ => devices.reserve_bytes,
        };
        let keeping_free =
            |known: Vec<DeviceId>| AnyOf::from(known).with_reserve(Bytes(reserve.unwrap_or(0)));
        let agreed = agreed & features::DEVICE != 0;
        match (known.is_empty() || !agreed, devices.else_host) {
            (true, true) => Ok(Wanted::Host),
            (true, false) => Err(ErrorReply::new(ErrorCode::UnknownDevice, "no such device")),
            (false, true) => Ok(Wanted::Best(keeping_free(known))),
            (false, false) => Ok(Wanted::Device(keeping_free(known))),
        }
    }

    fn open(
        &mut self,
        env: &mut Env,
        key: (SessionId, ids::RequestId),
        (place, model): (Place<'_>, &Naming<'_>),
        (wait_ms, progress, passed): (u64, bool, bool),
    ) -> Checked<Kept> {
        let wanted = match self.wanted(key.0, place) {
            Ok(wanted) => wanted,
            Err(error) => return self.turned_away(env, key, error),
        };
        let own = &env.settings.private_uids;
        let owner = self.uid_of(key.0).filter(|uid| own.contains(uid));
        let owner = match wanted {
            Wanted::Host | Wanted::Layout => None,
            Wanted::Device(_) | Wanted::Best(_) => owner,
        };
        let model = model(&mut self.names, owner);
        let wait_ms = match wait_ms {
            0 => env.settings.wait_ms_default,
            ms => ms.min(limits::WAIT_MS_MAX),
        };
        let (session, request) = (key.0, RequestId(key.1.0));
        if let Some(asker) = self.sessions.get_mut(&session) {
            let pending = Pending {
                model,
                progress,
                passed,
            };
            asker.pending.insert(request, pending);
        }
        let deadline = env.time().after_ms(wait_ms);
        self.step(
            env,
            Event::Open {
                session,
                request,
                model,
                wanted,
                deadline,
            },
        )?;
        Ok(Ok(()))
    }
}

/// The place of a model in the catalogue, from its name.
fn index_of(name: &str) -> usize {
    let number = name
        .strip_prefix('m')
        .and_then(|number| number.parse().ok());
    number.unwrap_or(usize::MAX)
}

/// What a device is called by clients.
pub(crate) fn uuid_of(device: DeviceId) -> ids::DeviceUuid {
    let mut uuid = [0; 16];
    uuid[..2].copy_from_slice(&device.0.to_le_bytes());
    uuid[15] = 1;
    ids::DeviceUuid(uuid)
}
