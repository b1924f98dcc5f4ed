//! What a daemon says when something is wrong: as the answer to a request ([`ApiError`]) or as part of a status
//! ([`Reason`]). Both end in the next step a person can take.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::Code;

/// The kind of an [`ApiError`]; decides the HTTP status and the exit code of the command line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum ErrorCode {
    /// The request itself makes no sense (400).
    BadRequest,
    /// No such volume, group or point (404).
    NotFound,
    /// It exists already, or is in a state that does not allow this (409).
    Conflict,
    /// A safety rule says no; a person has to decide (403).
    Refused,
    /// Not paired, or the receiver cannot be reached (503).
    NotConnected,
    /// It would work later (429).
    Busy,
    /// A local resource failed: disk, permission, kernel (507).
    Unavailable,
    /// Known and not part of this version (501).
    NotYet,
    /// A bug of ours (500).
    Internal,
    /// A newer daemon's code.
    #[serde(other)]
    Unknown,
}

impl ErrorCode {
    /// The HTTP status that goes with it.
    pub fn http_status(self) -> u16 {
        match self {
            Self::BadRequest => 400,
            Self::NotFound => 404,
            Self::Conflict => 409,
            Self::Refused => 403,
            Self::NotConnected => 503,
            Self::Busy => 429,
            Self::Unavailable => 507,
            Self::NotYet => 501,
            Self::Internal | Self::Unknown => 500,
        }
    }
}

/// The body of every answer whose HTTP status is not 2xx.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema, thiserror::Error)]
#[error("{message}")]
pub struct ApiError {
    /// Its kind.
    pub code: ErrorCode,
    /// What happened, and to what.
    pub message: String,
    /// The next step; empty if there is none.
    #[serde(default)]
    pub what_to_do: String,
}

impl ApiError {
    /// An error of one kind.
    pub fn new(code: ErrorCode, message: impl Into<String>, what_to_do: impl Into<String>) -> Self {
        Self { code, message: message.into(), what_to_do: what_to_do.into() }
    }

    /// [`ErrorCode::NotFound`].
    pub fn not_found(kind: &str, name: &str, what_to_do: impl Into<String>) -> Self {
        Self::new(ErrorCode::NotFound, format!("there is no {kind} `{name}`"), what_to_do)
    }

    /// [`ErrorCode::NotYet`]: `who` was asked for something that it has no such request for. Another daemon may, or another version of it.
    pub fn unknown_request(who: &str) -> Self {
        Self::new(
            ErrorCode::NotYet,
            format!("{who} knows no such request"),
            "ask the other daemon (a host's volumes and groups: farsided on that host; a store's points: farside-receiver), or install the same \
             version of farside here",
        )
    }

    /// [`ErrorCode::Internal`].
    pub fn internal(error: impl fmt::Display) -> Self {
        Self::new(
            ErrorCode::Internal,
            format!("internal error: {error}"),
            "look into the daemon's log; this is a bug worth reporting",
        )
    }
}

/// How bad a [`Reason`] is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Severity {
    /// Good to know.
    Info,
    /// Replication suffers or would after the next fault.
    #[default]
    Warning,
    /// Replication does not advance until somebody acts.
    Error,
}

/// Something that is wrong now, and what to do about it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(default)]
pub struct Reason {
    /// A stable word in `snake_case`, one of [`Code`](crate::Code): `gateway_full`, `not_connected`… `farside explain` has its page.
    pub code: String,
    /// How bad.
    pub severity: Severity,
    /// What happened, and to what.
    pub message: String,
    /// The next step; empty if it heals by itself.
    pub what_to_do: String,
}

impl Reason {
    /// A reason.
    pub fn new(severity: Severity, code: Code, message: impl Into<String>, what_to_do: impl Into<String>) -> Self {
        Self { code: code.word().to_owned(), severity, message: message.into(), what_to_do: what_to_do.into() }
    }
}
