//! What a request with beam search asks for.

use pagedkv_core as core;
use pagedkv_core::EarlyStopping;
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;

use crate::arguments::Int;

const MAX_RETURNED: u32 = i32::MAX as u32;

/// Beam search instead of sampling; `n` of the request is its width.
#[pyclass(frozen, module = "pagedkv._core")]
pub(crate) struct BeamOptions {
    pub(crate) options: core::BeamOptions,
}

#[pymethods]
impl BeamOptions {
    /// The options of a search.
    #[new]
    #[pyo3(signature = (*, num_returned, length_penalty=1.0, early_stopping=None, track_rows=false, num_logprobs=None),
        text_signature = "(*, num_returned, length_penalty=1.0, early_stopping=False, track_rows=False, num_logprobs=None)")]
    fn new(
        num_returned: Int,
        length_penalty: f64,
        early_stopping: Option<&Bound<'_, PyAny>>,
        track_rows: bool,
        num_logprobs: Option<Int>,
    ) -> PyResult<Self> {
        if !length_penalty.is_finite() {
            let message = format!("length_penalty must be finite, got {length_penalty}");
            return Err(PyValueError::new_err(message));
        }
        let options = core::BeamOptions {
            num_returned: num_returned.within("num_returned", 1..=MAX_RETURNED)?,
            length_penalty,
            early_stopping: early_stopping.map_or(Ok(EarlyStopping::Heuristic), mode)?,
            track_rows,
            num_logprobs: num_logprobs
                .map(|number| number.within("num_logprobs", 0..=MAX_RETURNED))
                .transpose()?,
        };
        Ok(Self { options })
    }

    fn __repr__(&self) -> String {
        let core::BeamOptions { num_returned, length_penalty, .. } = self.options;
        format!("BeamOptions(num_returned={num_returned}, length_penalty={length_penalty})")
    }
}

fn mode(value: &Bound<'_, PyAny>) -> PyResult<EarlyStopping> {
    if let Ok(is_always) = value.extract::<bool>() {
        return Ok(if is_always { EarlyStopping::Always } else { EarlyStopping::Heuristic });
    }
    if value.extract::<&str>().is_ok_and(|name| name == "never") {
        return Ok(EarlyStopping::Never);
    }
    let got = value.repr()?;
    Err(PyValueError::new_err(format!("early_stopping must be True, False, or 'never', got {got}")))
}
