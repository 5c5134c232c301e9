//! Requests that await their replies.

use super::Connection;
use crate::desk::Left;
use crate::error::SessionError;
use crate::fork;
use mrm_proto::ids::RequestId;
use mrm_proto::request::{Cancel, Request};
use std::os::fd::BorrowedFd;

/// A request that awaits its reply. When it is dropped unanswered, it is cancelled, and its reply
/// has no addressee.
#[derive(Debug)]
pub(crate) struct Ticket<'a> {
    connection: &'a Connection,
    pub(crate) id: RequestId,
    /// Whether the daemon works on something that can be cancelled.
    pub(crate) to_cancel: bool,
}

impl<'a> Ticket<'a> {
    /// Of a request that is not sent yet.
    pub(super) const fn new(connection: &'a Connection, id: RequestId) -> Self {
        Self {
            connection,
            id,
            to_cancel: false,
        }
    }

    /// Of an open that is.
    pub(super) const fn sent(connection: &'a Connection, id: RequestId) -> Self {
        Self {
            connection,
            id,
            to_cancel: true,
        }
    }

    pub(crate) fn send(
        &mut self,
        request: &Request,
        fds: &[BorrowedFd<'_>],
    ) -> Result<(), SessionError> {
        self.to_cancel = match request {
            Request::Open(_) | Request::OpenFiles(_) => true,
            Request::Close(_)
            | Request::Cancel(_)
            | Request::Resume(_)
            | Request::List(_)
            | Request::Stat(_)
            | Request::Touched(_)
            | Request::Heard(_)
            | Request::Hint(_) => false,
        };
        self.connection.send(self.id, request, fds)
    }

    /// Tells the daemon, once, that the reply is not wanted any more; whether that can be told.
    pub(crate) fn cancel(&mut self) -> bool {
        let cancel = Request::Cancel(Cancel { target: self.id });
        std::mem::take(&mut self.to_cancel)
            && self
                .connection
                .send(RequestId::NO_REPLY, &cancel, &[])
                .is_ok()
    }
}

impl Drop for Ticket<'_> {
    fn drop(&mut self) {
        // A child must not write to its parent's connection, nor take its locks.
        if fork::generation() != self.connection.generation {
            return;
        }
        let left = self.connection.desk().abandon(self.id);
        match left {
            Left::Unanswered => {
                if self.connection.is_live() {
                    self.cancel();
                }
            }
            Left::Grant(lease) => {
                self.connection.give_back(lease, false);
            }
            Left::Nothing => {}
        }
    }
}
