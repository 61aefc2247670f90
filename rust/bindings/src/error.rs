//! The core's errors as Python exceptions, and the lock that every class takes.

use std::sync::{Mutex, MutexGuard, TryLockError};

use pagedkv_core::Error;
use pyo3::exceptions::{PyRuntimeError, PyValueError};
use pyo3::prelude::*;

/// The classes that users catch; they live in Python, where they have several bases.
mod exceptions {
    pyo3::import_exception!(pagedkv.errors, QueueFullError);
    pyo3::import_exception!(pagedkv.errors, RequestTooLongError);
    pyo3::import_exception!(pagedkv.errors, UnknownRequestError);
}

/// The exception that stands for `error`.
#[expect(clippy::needless_pass_by_value, reason = "the shape that map_err wants")]
pub(crate) fn core_error(error: Error) -> PyErr {
    let message = error.to_string();
    match error {
        Error::Config { .. }
        | Error::Parameter { .. }
        | Error::EmptyPrompt
        | Error::DuplicateRequest { .. }
        | Error::Shape { .. } => PyValueError::new_err(message),
        Error::PromptTooLong { .. } | Error::NeverFits { .. } => {
            exceptions::RequestTooLongError::new_err(message)
        }
        Error::QueueFull { .. } => exceptions::QueueFullError::new_err(message),
        Error::UnknownRequest { .. } => exceptions::UnknownRequestError::new_err(message),
        Error::NotFinished { .. } | Error::BatchOrder { .. } => PyRuntimeError::new_err(message),
    }
}

/// Takes the lock of a `class` without waiting: whoever holds it may be waiting for Python code, of
/// this thread even.
///
/// # Errors
/// `RuntimeError` while another call runs, or after a call panicked: its state is not trusted then.
pub(crate) fn enter<'a, T>(state: &'a Mutex<T>, class: &str) -> PyResult<MutexGuard<'a, T>> {
    state.try_lock().map_err(|error| match error {
        TryLockError::WouldBlock => PyRuntimeError::new_err(format!(
            "{class} is in use by another call; call it from one thread at a time"
        )),
        TryLockError::Poisoned(_) => PyRuntimeError::new_err(format!(
            "{class} is lost: an earlier call failed half-way; make a new one"
        )),
    })
}
