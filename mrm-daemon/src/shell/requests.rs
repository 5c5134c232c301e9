//! What clients ask.

use super::grant::Unwanted;
use super::listing::Question;
use super::{Pending, Shell, State, Who};
use crate::failpoint::{self, Point};
use crate::source::PassedFd;
use crate::status::events::{Event as LogEvent, EventKind};
use crate::transfer::Urgency;
use mrm_core::event::{Event, ResumedLease, Wanted};
use mrm_core::id::{Bytes, CopyId, LeaseId, ModelId, RequestId, SessionId, VersionId};
use mrm_proto::error::{ErrorCode, ErrorReply};
use mrm_proto::hello::{ClientHello, ServerHello, ServerLimits, features};
use mrm_proto::ids::{self, Digest};
use mrm_proto::limits;
use mrm_proto::name::{FileName, ModelName};
use mrm_proto::reply::{Listed, ModelRow, Reply, Stated};
use mrm_proto::request::{HadLease, List, Open, OpenFiles, Request, Resume};
use std::sync::Arc;
use std::time::Instant;

/// Room that one row of a listing takes at most besides its name.
const ROW_BYTES_MAX: usize = 64;

impl Shell {
    /// The first frame of a session.
    pub(crate) fn hello(
        &self,
        session: SessionId,
        hello: &ClientHello,
    ) -> Result<ServerHello, ErrorReply> {
        self.with(|state| state.hello(session, hello))
    }

    /// Any later frame. An error ends the session.
    pub(crate) fn request(
        &self,
        session: SessionId,
        request: ids::RequestId,
        body: Request,
        fds: Vec<PassedFd>,
    ) -> Result<(), ErrorReply> {
        self.with(|state| state.request(session, request, body, fds))
    }
}

impl State {
    fn hello(
        &mut self,
        session: SessionId,
        hello: &ClientHello,
    ) -> Result<ServerHello, ErrorReply> {
        let version = hello.pick_version().ok_or_else(|| {
            let message = format!(
                "this daemon speaks versions {} to {}, the client {} to {}: update the older one",
                limits::VERSION_MIN,
                limits::VERSION_MAX,
                hello.version_min,
                hello.version_max
            );
            ErrorReply::new(ErrorCode::VersionMismatch, message)
        })?;
        let served = match self.tier.devices.is_empty() {
            true => features::ALL & !features::DEVICE & !features::RESERVE,
            false => features::ALL,
        };
        let agreed = hello.features & served;
        if let Some(Who::Client {
            name,
            said_hello,
            features,
            ..
        }) = self.sessions.get_mut(&session).map(|s| &mut s.who)
        {
            // Operators read it on a terminal.
            let client = ClientHello::new(&hello.client).client;
            *name = Arc::from(client.replace(char::is_control, "?"));
            *said_hello = true;
            *features = agreed;
        }
        Ok(ServerHello {
            version,
            features: agreed,
            instance: self.instance,
            daemon: concat!("mrmd ", env!("CARGO_PKG_VERSION")).to_owned(),
            limits: ServerLimits {
                frame_body_bytes_max: narrow(limits::FRAME_BODY_BYTES_MAX),
                requests_in_flight_max: narrow(limits::REQUESTS_IN_FLIGHT_MAX),
                leases_max: narrow(limits::LEASES_PER_SESSION_MAX),
                wait_ms_max: limits::WAIT_MS_MAX,
            },
        })
    }

    fn request(
        &mut self,
        session: SessionId,
        request: ids::RequestId,
        body: Request,
        fds: Vec<PassedFd>,
    ) -> Result<(), ErrorReply> {
        self.check_id(session, request, &body)?;
        let answer = (!request.wants_no_reply()).then_some(RequestId(request.0));
        match body {
            Request::Open(open) => {
                let wanted = match self.wanted(session, (open.devices.as_ref(), open.wait_for)) {
                    Ok(wanted) => wanted,
                    Err(unwanted) => return self.unwanted(session, request, unwanted),
                };
                let model = match self.owner(session, &wanted) {
                    Some(uid) => self.names.private(&open.model, uid),
                    None => self.names.registered(&open.model),
                };
                self.open(session, request, model, Asked::of(&open, wanted));
            }
            Request::OpenFiles(open) => {
                let wanted = match self.wanted(session, (open.devices.as_ref(), open.wait_for)) {
                    Ok(wanted) => wanted,
                    Err(unwanted) => return self.unwanted(session, request, unwanted),
                };
                self.open_files(session, request, open, (wanted, fds));
            }
            Request::Close(close) => {
                let lease = LeaseId(close.lease.0);
                self.end_early((session, lease));
                let before = self.core.view().leases_len();
                self.step(Event::Close {
                    session,
                    request: answer,
                    lease,
                });
                // Most clients want no reply, so that the books say whether it was theirs.
                if self.core.view().leases_len() < before {
                    self.note(LogEvent::of(EventKind::Close).session(session.0));
                }
            }
            Request::Cancel(cancel) => {
                let target = RequestId(cancel.target.0);
                self.step(Event::Cancel {
                    session,
                    request: answer,
                    target,
                });
            }
            Request::Resume(resume) => self.resume(session, request, &resume)?,
            Request::List(list) => self.ask_listing(Question::List(session, request, list)),
            Request::Stat(stat) => self.ask_listing(Question::Stat(session, request, stat)),
            Request::Hint(hint) => self.client_hints(session, request, hint)?,
            Request::Touched(touched) => {
                self.check_early(session, touched.tensors.len())?;
                self.touched(session, &touched);
            }
            Request::Heard(heard) => {
                self.check_early(session, 0)?;
                self.heard((session, LeaseId(heard.lease.0)));
            }
        }
        Ok(())
    }

    /// What is said of models that are being filled was agreed on, and is not too much.
    fn check_early(&self, session: SessionId, tensors: usize) -> Result<(), ErrorReply> {
        let message = if !self.knows_early(session) {
            "Touched and Heard need feature bit 3, which was not agreed on".to_owned()
        } else if tensors > limits::TOUCHED_MAX {
            let max = limits::TOUCHED_MAX;
            format!("{tensors} tensors were named, a request may name {max}")
        } else {
            return Ok(());
        };
        Err(ErrorReply::new(ErrorCode::MalformedBody, message))
    }

    fn check_id(
        &self,
        session: SessionId,
        request: ids::RequestId,
        body: &Request,
    ) -> Result<(), ErrorReply> {
        let Some(record) = self.sessions.get(&session) else {
            return Err(ErrorReply::new(ErrorCode::Internal, "the session is over"));
        };
        let told = matches!(body, Request::Touched(_) | Request::Heard(_));
        let silent = told || matches!(body, Request::Close(_) | Request::Cancel(_));
        if request.wants_no_reply() && !silent {
            let message = "request id 0 asks for no reply: only Close and Cancel may carry it, \
                           and what is told";
            return Err(ErrorReply::new(ErrorCode::BadRequestId, message));
        }
        if told && !request.wants_no_reply() {
            let message = "Touched and Heard are not answered: they carry request id 0";
            return Err(ErrorReply::new(ErrorCode::BadRequestId, message));
        }
        if record.pending.contains_key(&RequestId(request.0)) {
            let message = format!("request id {request} still awaits its reply");
            return Err(ErrorReply::new(ErrorCode::BadRequestId, message));
        }
        let opens = matches!(body, Request::Open(_) | Request::OpenFiles(_));
        if opens && record.pending.len() >= limits::REQUESTS_IN_FLIGHT_MAX {
            let message = format!(
                "{} opens are in flight, which is the limit: await some replies first",
                record.pending.len()
            );
            return Err(ErrorReply::new(ErrorCode::TooManyInFlight, message));
        }
        Ok(())
    }

    /// The user of a session, if what it opens is to be for that user alone.
    fn owner(&self, session: SessionId, wanted: &Wanted) -> Option<u32> {
        let uid = self.uid_of(session)?;
        let own = &self.tier.config.private_uids;
        match wanted {
            Wanted::Host | Wanted::Layout => None,
            Wanted::Device(_) | Wanted::Best(_) => own.contains(&uid).then_some(uid),
        }
    }

    fn open(&mut self, session: SessionId, request: ids::RequestId, model: ModelId, asked: Asked) {
        let Asked {
            wanted,
            wait_ms,
            progress,
            known,
        } = asked;
        let wait_ms = match wait_ms {
            0 => self.config.open_wait_ms_default,
            ms => ms.min(limits::WAIT_MS_MAX),
        };
        let (Some(record), Some(asker)) =
            (self.names.model(model), self.sessions.get_mut(&session))
        else {
            return;
        };
        let pending = Pending {
            model,
            label: Arc::clone(&record.text),
            began: Instant::now(),
            progress,
            passed: matches!(record.origin, super::names::ModelOrigin::Passed(_)),
            known: known.filter(|_| asker.agreed(features::KNOWN)),
        };
        let request = RequestId(request.0);
        asker.pending.insert(request, pending);
        self.progress_waiters += usize::from(progress);
        let deadline = self.now().after_ms(wait_ms);
        let wanted = wanted.with_reserve_at_least(self.workspace_of(model));
        self.step(Event::Open {
            session,
            request,
            model,
            wanted,
            deadline,
        });
        self.hasten(model, Urgency::Foreground);
    }

    fn open_files(
        &mut self,
        session: SessionId,
        request: ids::RequestId,
        open: OpenFiles,
        (wanted, fds): (Wanted, Vec<PassedFd>),
    ) {
        if let Err(message) = check_file_set(&open.files) {
            let error = ErrorReply::new(ErrorCode::BadFileSet, message);
            return self.send(session, request, &Reply::Error(error));
        }
        let files = open.files.into_iter().zip(fds).collect();
        let private = self.owner(session, &wanted).is_some();
        let Some(uid) = self.uid_of(session) else {
            return;
        };
        let model = self.names.passed(open.label, files, (uid, private));
        let asked = Asked {
            wanted,
            wait_ms: open.wait_ms,
            progress: open.progress,
            known: None,
        };
        self.open(session, request, model, asked);
    }

    /// A client has leases from before: of this daemon's versions, if this daemon took over what
    /// the one that gave them had.
    fn resume(
        &mut self,
        session: SessionId,
        request: ids::RequestId,
        resume: &Resume,
    ) -> Result<(), ErrorReply> {
        if resume.leases.len() > limits::RESUMED_MAX {
            let message = format!(
                "{} leases were named, a request may name {}: send several",
                resume.leases.len(),
                limits::RESUMED_MAX
            );
            return Err(ErrorReply::new(ErrorCode::MalformedBody, message));
        }
        failpoint::pass(Point::Resuming);
        let known = self.ancestors.contains(&resume.instance);
        // A number is no proof that somebody had it: what he could not have had is not there.
        let uid = self.uid_of(session);
        let leases = resume.leases.iter().map(|had| {
            let could = |copy: &CopyId| uid.is_some_and(|uid| self.names.is_for(copy.version, uid));
            let copy = self.had(*had).filter(|copy| known && could(copy));
            // No version has the number 0.
            copy.unwrap_or(CopyId::host(VersionId(0)))
        });
        let leases = leases.zip(&resume.leases).map(|(copy, had)| {
            let model = self.model_of(copy.version);
            let asked = Bytes(had.reserve_bytes.unwrap_or(0));
            ResumedLease {
                model,
                copy,
                reserve: asked.max(self.workspace_of(model)),
            }
        });
        let leases: Vec<ResumedLease> = leases.collect();
        self.note_lost_leases(resume, known, &leases);
        self.step(Event::Resume {
            session,
            request: RequestId(request.0),
            leases,
        });
        Ok(())
    }

    fn had(&self, had: HadLease) -> Option<CopyId> {
        let version = VersionId(had.version.0);
        match had.device {
            None => Some(CopyId::host(version)),
            Some(uuid) => Some(CopyId::device(version, self.tier.find(uuid)?)),
        }
    }

    /// A model that stands for a version; the number 0, which none has, if none does.
    fn model_of(&self, version: VersionId) -> ModelId {
        let model = self.core.view().models_of(version).next();
        model.unwrap_or(ModelId(0))
    }

    /// An open that cannot even be asked for.
    fn unwanted(
        &mut self,
        session: SessionId,
        request: ids::RequestId,
        unwanted: Unwanted,
    ) -> Result<(), ErrorReply> {
        match unwanted {
            Unwanted::Refused(error) => {
                self.send(session, request, &Reply::Error(error));
                Ok(())
            }
            Unwanted::Broken(error) => Err(error),
        }
    }

    /// Sends to a client; the status socket's sessions are answered elsewhere.
    pub(super) fn send(&self, session: SessionId, request: ids::RequestId, reply: &Reply) {
        if let Some(Who::Client { io, .. }) = self.sessions.get(&session).map(|s| &s.who) {
            io.send(request, reply, Vec::new());
        }
    }

    pub(super) fn not_found(&self, name: &ModelName) -> ErrorReply {
        let message = self.catalogue.not_found(name).to_string();
        ErrorReply::new(ErrorCode::ModelNotFound, message)
    }

    pub(super) fn list(&self, list: &List) -> Listed {
        let after = list.after.as_ref().map(ModelName::as_str);
        let mut rows = Vec::new();
        let mut room = limits::FRAME_BODY_BYTES_MAX - ROW_BYTES_MAX;
        let (page, mut more) = self.rows(&list.prefix, after, limits::LIST_ROWS_MAX);
        for row in page {
            let bytes = row.name.as_str().len() + ROW_BYTES_MAX;
            if bytes > room {
                more = true;
                break;
            }
            room -= bytes;
            rows.push(row);
        }
        Listed { models: rows, more }
    }

    pub(super) fn stat(&self, name: &ModelName) -> Option<Stated> {
        let row: ModelRow = self.row(name)?;
        let version = self.version_named(name);
        let digests = version.map_or_else(Vec::new, |version| {
            let segments = self.segments_of(version);
            let files = segments.iter().skip(1);
            files
                .map(|s| s.and_then(|s| self.names.digest_of(s)).map(Digest))
                .collect()
        });
        Some(Stated {
            row,
            version: version.map(|v| ids::VersionId(v.0)),
            digests,
        })
    }

    /// Tells each waiting client that asked for it how far its load is.
    pub(super) fn report_progress(&self) {
        for (&session, record) in &self.sessions {
            for (&request, pending) in record.pending.iter().filter(|(_, p)| p.progress) {
                let Some(progress) = self.progress_of(session, request) else {
                    continue;
                };
                tracing::trace!(label = %pending.label, ?progress, "progress");
                self.send(
                    session,
                    ids::RequestId(request.0),
                    &Reply::Progress(progress),
                );
            }
        }
    }
}

/// How a model is to be opened.
struct Asked {
    wanted: Wanted,
    wait_ms: u64,
    progress: bool,
    known: Option<VersionId>,
}

impl Asked {
    fn of(open: &Open, wanted: Wanted) -> Self {
        Self {
            wanted,
            wait_ms: open.wait_ms,
            progress: open.progress,
            known: open.known.map(|version| VersionId(version.0)),
        }
    }
}

fn check_file_set(files: &[FileName]) -> Result<(), String> {
    if files.is_empty() {
        return Err("no files were passed: pass one descriptor per file".to_owned());
    }
    if files.len() > limits::SEGMENTS_PER_MODEL_MAX {
        return Err(format!(
            "{} files were passed, a model may have {}",
            files.len(),
            limits::SEGMENTS_PER_MODEL_MAX
        ));
    }
    let mut names: Vec<&FileName> = files.iter().collect();
    names.sort_unstable();
    match names.windows(2).find(|pair| pair[0] == pair[1]) {
        Some(pair) => Err(format!(
            "`{}` was passed twice: pass each file once",
            pair[0]
        )),
        None => Ok(()),
    }
}

fn narrow(n: usize) -> u32 {
    u32::try_from(n).unwrap_or(u32::MAX)
}
