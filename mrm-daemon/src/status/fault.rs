//! What is answered when a request does not succeed.

use super::query::AskError;
use super::view::{ErrorBody, ErrorView};
use hyper::StatusCode;
use mrm_proto::error::{ErrorCode, ErrorReply};

/// Faults of the HTTP exchange itself, which the other socket cannot have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum HttpCode {
    /// No such path.
    UnknownRoute,
    /// The path exists, not for this method.
    MethodNotAllowed,
    /// A query parameter that is unknown, repeated or not what it should be.
    BadParameter,
    /// A body over the bound.
    BodyTooLarge,
    /// A body that does not arrive.
    BodyTooSlow,
    /// As many connections as there may be.
    TooManyConnections,
    /// The decider has too many questions waiting.
    Busy,
    /// The decider did not answer.
    NoAnswer,
    /// Starting or draining.
    NotReady,
}

impl HttpCode {
    #[cfg(test)]
    pub(super) const ALL: &'static [Self] = &[
        Self::UnknownRoute,
        Self::MethodNotAllowed,
        Self::BadParameter,
        Self::BodyTooLarge,
        Self::BodyTooSlow,
        Self::TooManyConnections,
        Self::Busy,
        Self::NoAnswer,
        Self::NotReady,
    ];

    /// Stable number and name, HTTP status, and whether to try again.
    pub(super) const fn row(self) -> (u16, &'static str, StatusCode, bool) {
        use StatusCode as S;
        match self {
            Self::UnknownRoute => (700, "unknown_route", S::NOT_FOUND, false),
            Self::MethodNotAllowed => (701, "method_not_allowed", S::METHOD_NOT_ALLOWED, false),
            Self::BadParameter => (702, "bad_parameter", S::BAD_REQUEST, false),
            Self::BodyTooLarge => (703, "body_too_large", S::PAYLOAD_TOO_LARGE, false),
            Self::BodyTooSlow => (704, "body_too_slow", S::REQUEST_TIMEOUT, false),
            Self::TooManyConnections => (705, "too_many_connections", S::SERVICE_UNAVAILABLE, true),
            Self::Busy => (706, "busy", S::SERVICE_UNAVAILABLE, true),
            Self::NoAnswer => (707, "no_answer", S::SERVICE_UNAVAILABLE, true),
            Self::NotReady => (708, "not_ready", S::SERVICE_UNAVAILABLE, true),
        }
    }
}

/// An answer that is not a success.
#[derive(Debug)]
pub(super) struct Fault {
    pub(super) status: StatusCode,
    /// Value of `Allow`, for a method that is not.
    pub(super) allow: Option<&'static str>,
    /// Whether the rest of the request cannot be told from the next one.
    pub(super) closes: bool,
    pub(super) view: ErrorView,
}

impl Fault {
    pub(super) fn http(code: HttpCode, message: impl Into<String>) -> Self {
        let (number, name, status, retryable) = code.row();
        let error = ErrorBody {
            code: name.to_owned(),
            number,
            message: message.into(),
            retryable,
            took_effect: false,
        };
        Self {
            status,
            allow: None,
            closes: false,
            view: ErrorView { error },
        }
    }

    pub(super) fn code(code: ErrorCode, message: impl Into<String>) -> Self {
        Self::reply(ErrorReply::new(code, message))
    }

    pub(super) fn reply(reply: ErrorReply) -> Self {
        let code = reply.code();
        let error = ErrorBody {
            code: code.map_or("unknown", ErrorCode::name).to_owned(),
            number: reply.number,
            message: reply.message,
            retryable: reply.retryable,
            took_effect: reply.took_effect,
        };
        let status = code.map_or(StatusCode::INTERNAL_SERVER_ERROR, status_of);
        Self {
            status,
            allow: None,
            closes: false,
            view: ErrorView { error },
        }
    }

    /// A question without an answer. `changes` says whether the question was to change something:
    /// then it cannot be excluded that it did.
    pub(super) fn ask(error: AskError, changes: bool) -> Self {
        let code = match error {
            AskError::Refused(reply) => return Self::reply(reply),
            AskError::Busy => HttpCode::Busy,
            AskError::NoAnswer { .. } | AskError::Gone => HttpCode::NoAnswer,
        };
        let mut fault = Self::http(code, error.to_string());
        fault.view.error.took_effect = changes && code == HttpCode::NoAnswer;
        fault
    }

    pub(super) fn allowing(mut self, methods: &'static str) -> Self {
        self.allow = Some(methods);
        self
    }

    pub(super) fn closing(mut self) -> Self {
        self.closes = true;
        self
    }
}

/// The HTTP status of an error code.
pub(super) const fn status_of(code: ErrorCode) -> StatusCode {
    use ErrorCode as E;
    match code {
        E::BadMagic
        | E::VersionMismatch
        | E::UnknownKind
        | E::OutOfOrder
        | E::WrongFdCount
        | E::MalformedBody
        | E::BadRequestId
        | E::ReservedBits
        | E::BadName => StatusCode::BAD_REQUEST,
        E::NotPermitted => StatusCode::FORBIDDEN,
        E::ModelNotFound | E::UnknownLease | E::SourceMissing | E::UnknownDevice => {
            StatusCode::NOT_FOUND
        }
        E::TooSlow | E::NotReading => StatusCode::REQUEST_TIMEOUT,
        E::Cancelled | E::SourceChanged | E::InUse => StatusCode::CONFLICT,
        E::FrameTooLong => StatusCode::PAYLOAD_TOO_LARGE,
        E::BadFileSet
        | E::FdNotReadable
        | E::NotRegularFile
        | E::FilesystemRefused
        | E::OutsideRoot
        | E::ManifestMissing
        | E::ManifestMismatch
        | E::ManifestMalformed
        | E::HeaderTruncated
        | E::HeaderLength
        | E::HeaderMalformed
        | E::HeaderNotUtf8
        | E::HeaderTooDeep
        | E::DuplicateTensor
        | E::TensorOverlap
        | E::TensorOutOfBounds
        | E::TensorSize
        | E::TensorOverflow
        | E::TooManyTensors
        | E::UnknownDtype
        | E::IndexMalformed
        | E::ShardMissing
        | E::ShardMismatch
        | E::ShardOutside
        | E::EmptyFile
        | E::NoTensors
        | E::TooManyAllocations => StatusCode::UNPROCESSABLE_ENTITY,
        E::TooManyInFlight | E::TooManyLeases => StatusCode::TOO_MANY_REQUESTS,
        E::Internal => StatusCode::INTERNAL_SERVER_ERROR,
        E::SourceUnreadable
        | E::TooManySessions
        | E::NoRoom
        | E::OutOfMemory
        | E::QueueFull
        | E::Draining
        | E::Exhausted
        | E::DeviceLost
        | E::DeviceFailed
        | E::Damaged => StatusCode::SERVICE_UNAVAILABLE,
        E::TimedOut => StatusCode::GATEWAY_TIMEOUT,
        E::TooLarge => StatusCode::INSUFFICIENT_STORAGE,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_is_in_the_documentation_with_its_status() {
        let page = include_str!("API.md");
        let rows = ErrorCode::ALL
            .iter()
            .filter(|code| !code.ends_session())
            .map(|code| (code.number(), code.name(), status_of(*code)));
        let own = HttpCode::ALL.iter().map(|code| {
            let (number, name, status, _) = code.row();
            (number, name, status)
        });
        for (number, name, status) in rows.chain(own) {
            let row = format!("| {number} | `{name}` | {} |", status.as_u16());
            assert!(page.contains(&row), "API.md lacks the row\n{row}");
        }
    }

    #[test]
    fn retryable_codes_are_never_blamed_on_the_request() {
        for code in ErrorCode::ALL {
            let status = status_of(*code);
            assert!(
                !code.retryable() || status != StatusCode::BAD_REQUEST,
                "{code}"
            );
            assert!(
                status.is_client_error() || status.is_server_error(),
                "{code}"
            );
        }
    }

    #[test]
    fn a_lost_answer_to_a_change_may_have_taken_effect() {
        let lost = || AskError::NoAnswer { waited_ms: 1 };
        assert!(Fault::ask(lost(), true).view.error.took_effect);
        assert!(!Fault::ask(lost(), false).view.error.took_effect);
        assert!(!Fault::ask(AskError::Busy, true).view.error.took_effect);
    }

    #[test]
    fn a_number_from_the_future_is_still_an_error_of_the_documented_shape() {
        let mut reply = ErrorReply::new(ErrorCode::Internal, "new");
        reply.number = 6999;
        let fault = Fault::reply(reply);
        assert_eq!(fault.status, StatusCode::INTERNAL_SERVER_ERROR);
        assert_eq!(
            (fault.view.error.code.as_str(), fault.view.error.number),
            ("unknown", 6999)
        );
    }
}
