//! Questions about what the catalogue lists, answered from a listing that is fresh if the disk lets it.
//!
//! Listing the roots reads directories, so it runs on a thread of its own, one at a time. A question
//! starts one if the last is old, and waits for it, but not longer than a person would.

use super::work::Completed;
use super::{State, Who};
use crate::catalogue::Scan;
use crate::status::Query;
use crate::transfer::{Completion, Lost};
use mrm_core::id::SessionId;
use mrm_proto::ids::RequestId;
use mrm_proto::name::ModelName;
use mrm_proto::reply::Reply;
use mrm_proto::request::{Hint, List, Stat};
use std::ops::Bound;
use std::time::{Duration, Instant};

/// How old a listing may be before a question starts a new one.
const SCAN_EVERY: Duration = Duration::from_secs(2);
/// How long a question waits for a new listing before it is answered from the old one.
const PATIENCE: Duration = Duration::from_secs(1);
/// Most questions that wait.
const QUESTIONS_MAX: usize = 256;

/// What the catalogue's roots held when they were last looked at.
pub(super) struct Listing {
    scan: Scan,
    due: Instant,
    running: bool,
    /// The catalogue is another since the listing was begun.
    outdated: bool,
    questions: Vec<Question>,
    /// When those who wait are answered without a new listing.
    patience_ends: Option<Instant>,
}

/// Who asks what.
pub(super) enum Question {
    /// The status socket.
    Operator(Query),
    /// A client.
    List(SessionId, RequestId, List),
    /// A client.
    Stat(SessionId, RequestId, Stat),
    /// A client, which says that it comes.
    Hint(SessionId, RequestId, Hint),
}

impl Listing {
    pub(super) fn new() -> Self {
        Self {
            scan: Scan::default(),
            due: Instant::now(),
            running: false,
            outdated: false,
            questions: Vec::new(),
            patience_ends: None,
        }
    }

    /// The names from `first` on, in order.
    pub(super) fn names(&self, first: Bound<&str>) -> impl Iterator<Item = &ModelName> {
        let models = &self.scan.models;
        let from = models.partition_point(|model| match first {
            Bound::Included(first) => model.name.as_str() < first,
            Bound::Excluded(after) => model.name.as_str() <= after,
            Bound::Unbounded => false,
        });
        models[from..].iter().map(|model| &model.name)
    }

    /// Whether a name is listed.
    pub(super) fn lists(&self, name: &ModelName) -> bool {
        let found = self.names(Bound::Included(name.as_str())).next();
        found == Some(name)
    }

    /// When [`State::listing_is_late`] is due.
    pub(super) const fn wake_at(&self) -> Option<Instant> {
        self.patience_ends
    }
}

impl State {
    /// Answers as soon as the listing is fresh.
    pub(super) fn ask_listing(&mut self, question: Question) {
        self.refresh_listing();
        if self.listing.running && self.listing.questions.len() < QUESTIONS_MAX {
            self.owe(&question, true);
            self.listing.questions.push(question);
            self.listing
                .patience_ends
                .get_or_insert_with(|| Instant::now() + PATIENCE);
        } else {
            self.answer_question(question);
        }
    }

    /// The catalogue is another: what was listed is old.
    pub(super) fn outdate_listing(&mut self) {
        self.listing.due = Instant::now();
        self.listing.outdated = self.listing.running;
        self.refresh_listing();
    }

    /// Starts a new listing if the last one is old.
    pub(super) fn refresh_listing(&mut self) {
        if self.listing.running || Instant::now() < self.listing.due {
            return;
        }
        self.listing.running = true;
        let done = self.completed.clone();
        let completion = Completion::new(move |scan: Result<Scan, Lost>| {
            drop(done.send(Completed::Scanned(scan.ok())));
        });
        let catalogue = std::sync::Arc::clone(&self.catalogue);
        let thread = std::thread::Builder::new().name("mrm-scan".to_owned());
        if let Err(error) = thread.spawn(move || completion.done(catalogue.scan())) {
            // The completion was dropped with the closure, and so was sent.
            tracing::warn!(%error, "the catalogue cannot be listed");
        }
    }

    pub(super) fn listed(&mut self, scan: Option<Scan>) {
        self.listing.running = false;
        if std::mem::take(&mut self.listing.outdated) {
            return self.refresh_listing();
        }
        self.listing.due = Instant::now() + SCAN_EVERY;
        if let Some(scan) = scan {
            self.listing.scan = scan;
        }
        self.answer_questions();
    }

    /// Answers from the old listing if the new one takes too long.
    pub(super) fn listing_is_late(&mut self) {
        if self
            .listing
            .patience_ends
            .is_some_and(|at| at <= Instant::now())
        {
            self.answer_questions();
        }
    }

    fn answer_questions(&mut self) {
        self.listing.patience_ends = None;
        for question in std::mem::take(&mut self.listing.questions) {
            self.owe(&question, false);
            self.answer_question(question);
        }
    }

    /// A client that waits for large answers is not read beyond a few.
    fn owe(&self, question: &Question, owed: bool) {
        match question {
            Question::List(session, ..) => {
                if let Some(Who::Client { io, .. }) = self.sessions.get(session).map(|s| &s.who) {
                    io.owe(owed);
                }
            }
            Question::Operator(_) | Question::Stat(..) | Question::Hint(..) => {}
        }
    }

    pub(super) fn answer_question(&mut self, question: Question) {
        match question {
            Question::Operator(query) => self.answer_query_now(query),
            Question::List(session, request, list) => {
                let listed = self.list(&list);
                self.send(session, request, &Reply::Listed(listed));
            }
            Question::Stat(session, request, stat) => {
                let reply = match self.stat(&stat.model) {
                    Some(stated) => Reply::Stated(stated),
                    None => Reply::Error(self.not_found(&stat.model)),
                };
                self.send(session, request, &reply);
            }
            Question::Hint(session, request, hint) => self.answer_hint(session, request, hint),
        }
    }
}
