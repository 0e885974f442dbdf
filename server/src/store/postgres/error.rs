//! What an error of Postgres means to the caller.

use sqlx::postgres::{PgDatabaseError, PgSeverity};

use super::super::Error;

/// Whether a statement may have reached the database when its error came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Sent {
    /// No: it was being prepared, or a transaction around it stays open.
    No,
    /// Perhaps, and it was a write that commits by itself.
    Perhaps,
}

/// Works out the class of an error.
pub(super) fn classify(error: &sqlx::Error, sent: Sent) -> Error {
    let message = error.to_string();
    let unknown = |message| match sent {
        Sent::No => Error::Unavailable(message),
        Sent::Perhaps => Error::Unknown(message),
    };
    match error {
        sqlx::Error::Database(inner) => {
            let inner = inner.downcast_ref::<PgDatabaseError>();
            let message = format!("{message} (SQLSTATE {})", inner.code());
            // A backend that says goodbye may have committed before.
            if matches!(inner.severity(), PgSeverity::Fatal | PgSeverity::Panic) {
                return if certainly_refused(inner.code()) {
                    Error::Unavailable(message)
                } else {
                    unknown(message)
                };
            }
            match inner.code().as_bytes() {
                [b'0', b'8', ..] | b"57014" | b"57P01" | b"57P02" | b"40003" => unknown(message),
                [b'2', b'2' | b'3', ..] | [b'5', b'4', ..] => Error::Refused(message),
                b"XX001" | b"XX002" => Error::Corrupt(message),
                _ => Error::Unavailable(message),
            }
        }
        sqlx::Error::Encode(_) => Error::Refused(message),
        sqlx::Error::ColumnDecode { .. } | sqlx::Error::Decode(_) => Error::Corrupt(message),
        sqlx::Error::PoolTimedOut | sqlx::Error::PoolClosed | sqlx::Error::Configuration(_) => {
            Error::Unavailable(message)
        }
        _ => unknown(message),
    }
}

/// Fatal errors of a session that never began: starting up, too many connections, no such role.
fn certainly_refused(code: &str) -> bool {
    matches!(code, "57P03" | "53300" | "3D000") || code.starts_with("28")
}

/// Whether the connection is gone, so that a read may try another one.
pub(super) fn is_lost(error: &sqlx::Error) -> bool {
    match error {
        sqlx::Error::Io(_) | sqlx::Error::Protocol(_) | sqlx::Error::WorkerCrashed => true,
        sqlx::Error::Database(error) => {
            let error = error.downcast_ref::<PgDatabaseError>();
            // A pooler has one code for all that ends a client's session.
            let is_fatal = matches!(error.severity(), PgSeverity::Fatal | PgSeverity::Panic);
            match error.code() {
                "26000" | "0A000" => true,
                code => is_fatal && !certainly_refused(code),
            }
        }
        _ => false,
    }
}

/// The SQLSTATE of an error that has one.
pub(super) fn sqlstate(error: &sqlx::Error) -> Option<String> {
    let code = error.as_database_error()?.code()?;
    Some(code.into_owned())
}
