//! The one answer that each piece of work gives.

use mrm_proto::error::ErrorCode;

/// Why work ended without a result of its own. What it held is dropped by the time this is sent.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Lost {
    /// It panicked: a fault of the daemon's own.
    #[error("the daemon failed while it did this ({message}); try again, and report it")]
    Panicked {
        /// What the panic said.
        message: String,
    },
    /// As much work waits as may wait.
    #[error("{waiting} pieces of work wait already; try again later")]
    QueueFull {
        /// How many.
        waiting: usize,
    },
    /// The daemon is about to exit.
    #[error("the daemon is shutting down; try again when it is back")]
    ShuttingDown,
    /// It was thrown away before it gave a result: a fault of the daemon's own.
    #[error("the daemon lost this piece of work; try again, and report it")]
    Dropped,
}

impl Lost {
    /// The code for the client.
    #[must_use]
    pub const fn code(&self) -> ErrorCode {
        match self {
            Self::Panicked { .. } | Self::Dropped => ErrorCode::Internal,
            Self::QueueFull { .. } => ErrorCode::QueueFull,
            Self::ShuttingDown => ErrorCode::Draining,
        }
    }
}

type SendOutcome<T> = Box<dyn FnOnce(Result<T, Lost>) + Send>;

/// Sends exactly one outcome: the result that it is given, or [`Lost`].
pub struct Completion<T> {
    // `None` once it was called.
    send: Option<SendOutcome<T>>,
}

impl<T> Completion<T> {
    /// A completion that hands the outcome to `send`, which must not block.
    pub fn new(send: impl FnOnce(Result<T, Lost>) + Send + 'static) -> Self {
        Self {
            send: Some(Box::new(send)),
        }
    }

    /// Sends the result.
    pub fn done(self, result: T) {
        self.settle(Ok(result));
    }

    /// Sends why there is no result.
    pub fn lost(self, lost: Lost) {
        self.settle(Err(lost));
    }

    fn settle(mut self, outcome: Result<T, Lost>) {
        if let Some(send) = self.send.take() {
            send(outcome);
        }
    }
}

impl<T> Drop for Completion<T> {
    fn drop(&mut self) {
        if let Some(send) = self.send.take() {
            send(Err(Lost::Dropped));
        }
    }
}

impl<T> std::fmt::Debug for Completion<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Completion")
            .field("sent", &self.send.is_none())
            .finish()
    }
}
