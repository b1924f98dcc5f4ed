//! How a command fails: a sentence, the next step, and the exit code that scripts go by (documented in `farside --help`).

use std::fmt::Display;

use farside_control::{ApiError, ClientError, ErrorCode};

/// Exit codes beside success.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Exit {
    /// It failed.
    Failed = 1,
    /// The command line makes no sense. (clap uses the same number.)
    Usage = 2,
    /// The daemon could not be reached.
    Unreachable = 3,
    /// A safety rule, a state or this version says no.
    Refused = 4,
    /// No such volume, group or point.
    NotFound = 5,
    /// Damage was found.
    Damaged = 6,
    /// `status --check`: something needs attention.
    Attention = 7,
    /// `status --check`: not protected.
    Unprotected = 8,
}

/// A command that did not succeed.
#[derive(Debug)]
pub(crate) struct Failure {
    /// The exit code.
    pub(crate) exit: Exit,
    /// What happened.
    pub(crate) message: String,
    /// The next step; empty if there is none.
    pub(crate) what_to_do: String,
    /// It is of one object of a store, and says nothing of others.
    pub(crate) of_object: bool,
}

impl Failure {
    /// A failure.
    pub(crate) fn new(exit: Exit, message: impl Into<String>, what_to_do: impl Into<String>) -> Self {
        Self { exit, message: message.into(), what_to_do: what_to_do.into(), of_object: false }
    }

    /// A failure with the causes of an error in its sentence.
    pub(crate) fn from_error(exit: Exit, error: &(dyn std::error::Error + 'static), what_to_do: impl Into<String>) -> Self {
        Self::new(exit, farside_service::in_words(error), what_to_do)
    }

    /// Says it on standard error.
    pub(crate) fn print(&self, json: bool) {
        if json {
            let error =
                serde_json::json!({"exit_code": self.exit as i32, "message": self.message, "what_to_do": self.what_to_do});
            eprintln!("{}", serde_json::json!({ "error": error }));
            return;
        }
        eprintln!("farside: {}", self.message);
        if !self.what_to_do.is_empty() {
            eprintln!("         {}", self.what_to_do);
        }
    }
}

/// The context of something that plainly failed.
pub(crate) trait OrFail<T> {
    /// Turns an error into [`Exit::Failed`] with what was tried in front.
    fn or_fail(self, what: impl Display) -> Result<T, Failure>;
}

impl<T, E: std::error::Error + 'static> OrFail<T> for Result<T, E> {
    fn or_fail(self, what: impl Display) -> Result<T, Failure> {
        self.map_err(|error| {
            let failure = Failure::from_error(Exit::Failed, &error, "");
            Failure { message: format!("{what}: {}", failure.message), ..failure }
        })
    }
}

impl From<anyhow::Error> for Failure {
    fn from(error: anyhow::Error) -> Self {
        Self::new(Exit::Failed, format!("{error:#}"), "")
    }
}

impl From<ApiError> for Failure {
    fn from(error: ApiError) -> Self {
        let exit = match error.code {
            ErrorCode::NotFound => Exit::NotFound,
            ErrorCode::Refused | ErrorCode::Conflict | ErrorCode::NotYet => Exit::Refused,
            ErrorCode::BadRequest => Exit::Usage,
            _ => Exit::Failed,
        };
        Self::new(exit, error.message, error.what_to_do)
    }
}

impl From<ClientError> for Failure {
    fn from(error: ClientError) -> Self {
        let what_to_do = error.what_to_do();
        match error {
            ClientError::Api(error) => error.into(),
            error if error.is_unreachable() => Self::from_error(Exit::Unreachable, &error, what_to_do),
            error => Self::from_error(Exit::Failed, &error, what_to_do),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exit_codes_follow_the_daemon_s_words() {
        for (code, exit) in [
            (ErrorCode::NotFound, Exit::NotFound),
            (ErrorCode::Refused, Exit::Refused),
            (ErrorCode::NotYet, Exit::Refused),
            (ErrorCode::BadRequest, Exit::Usage),
            (ErrorCode::Internal, Exit::Failed),
            (ErrorCode::NotConnected, Exit::Failed),
        ] {
            assert_eq!(Failure::from(ApiError::new(code, "m", "w")).exit, exit, "{code:?}");
        }
        let gone = ClientError::NotRunning { program: "farsided", socket: "/s".into() };
        assert_eq!(Failure::from(gone).exit, Exit::Unreachable);
    }
}
