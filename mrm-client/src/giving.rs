//! Giving leases back, without waiting for an answer.

use crate::connection::{Connection, lock};
use crate::error::SessionError;
use crate::pace::Telling;
use mrm_proto::frame;
use mrm_proto::ids::{LeaseId, RequestId};
use mrm_proto::request::{Close, Request};
use std::time::{Duration, Instant};

impl Connection {
    /// Gives a lease back without blocking; does nothing when the session is over. Where there is
    /// a thread to look after it, it may be told a little later. Says whether that thread must be
    /// woken.
    pub(crate) fn give_back(&self, lease: LeaseId, looked_after: bool) -> bool {
        // A child must not write to its parent's connection, nor take its locks.
        if self.is_inherited() || !self.is_live() {
            return false;
        }
        let close = Request::Close(Close { lease });
        let Ok(frame) = frame::encode(RequestId::NO_REPLY, 0, &close) else {
            return false;
        };
        let mut outbox = lock(&self.outbox);
        let telling = outbox.pace.close(Instant::now(), looked_after);
        // Nobody is there to tell: an error ends the session, which gives everything back.
        let sent = match telling {
            Telling::Later if !outbox.hold(&frame) => return false,
            Telling::Later => outbox.send_held(self.socket()).map(drop),
            Telling::Now | Telling::NowAndLook => outbox.send(self.socket(), frame, &[]),
        };
        let backlog = !outbox.is_empty();
        drop(outbox);
        if let Err(why) = sent {
            self.end(why);
        }
        backlog || telling == Telling::NowAndLook
    }

    /// Tells the closes that were held; when to look again, if at all.
    pub(crate) fn look_after(&self) -> Option<Duration> {
        let mut outbox = lock(&self.outbox);
        let sent = outbox.send_held(self.socket());
        let found = matches!(sent, Ok(true));
        let again = outbox.pace.look(found);
        drop(outbox);
        match sent {
            // Reading will tell, and with what reason.
            Ok(_) | Err(SessionError::Disconnected) => {}
            Err(why) => {
                self.end(why);
            }
        }
        again
    }
}
