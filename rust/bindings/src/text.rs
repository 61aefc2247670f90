//! Token tables and sequence texts as Python sees them.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use pagedkv_core::text::SequenceText;
use pagedkv_text::{
    ConstrainedText, Spelling, StopSet, StopText, Strip, TableText, TableTextOptions, TextError,
};
use pyo3::exceptions::{PyRuntimeError, PyTypeError, PyValueError};
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::pybacked::PyBackedStr;
use pyo3::sync::MutexExt;
use pyo3::types::PyBytes;

use crate::grammar::Grammar;

/// The sequence text that a `text=` argument describes: a copy, so that one decoder may serve as
/// the template of several requests.
pub(crate) fn extract_text(obj: &Bound<'_, PyAny>) -> PyResult<Box<dyn SequenceText>> {
    let decoder = obj.cast::<TextDecoder>().map_err(|_| {
        let kind = obj.get_type();
        PyTypeError::new_err(format!("text must be a TextDecoder or None, got {kind}"))
    })?;
    Ok(decoder.get().lock(obj.py())?.fork())
}

fn value_error(error: &TextError) -> PyErr {
    PyValueError::new_err(error.to_string())
}

/// The bytes of every token of a tokenizer.
#[pyclass(frozen, module = "pagedkv._core")]
pub(crate) struct TokenTable(Arc<pagedkv_text::TokenTable>);

impl TokenTable {
    pub(crate) fn inner(&self) -> &pagedkv_text::TokenTable {
        &self.0
    }
}

#[pymethods]
impl TokenTable {
    /// A tokenizer whose decoder is `ByteLevel`.
    #[staticmethod]
    #[pyo3(signature = (tokens, *, special_tokens))]
    fn byte_level(
        tokens: Vec<Option<PyBackedStr>>,
        special_tokens: HashSet<String>,
    ) -> PyResult<Self> {
        build_table(Spelling::ByteLevel, tokens, special_tokens)
    }

    /// A tokenizer whose decoder is a `Sequence` of `Replace`, `ByteFallback`, `Fuse` and `Strip`.
    #[staticmethod]
    #[pyo3(signature = (tokens, *, special_tokens, replacements, has_byte_tokens, strip=None))]
    fn byte_fallback(
        tokens: Vec<Option<PyBackedStr>>,
        special_tokens: HashSet<String>,
        replacements: Vec<(String, String)>,
        has_byte_tokens: bool,
        strip: Option<(char, u32)>,
    ) -> PyResult<Self> {
        let strip = strip.map(|(character, max_count)| Strip { character, max_count });
        let spelling = Spelling::Fallback { replacements, has_byte_tokens, strip };
        build_table(spelling, tokens, special_tokens)
    }

    /// A tokenizer whose decoder is `Metaspace`.
    #[staticmethod]
    #[pyo3(signature = (tokens, *, special_tokens, marker, first_loses_marker))]
    fn metaspace(
        tokens: Vec<Option<PyBackedStr>>,
        special_tokens: HashSet<String>,
        marker: char,
        first_loses_marker: bool,
    ) -> PyResult<Self> {
        let spelling = Spelling::Metaspace { marker, first_loses_marker };
        build_table(spelling, tokens, special_tokens)
    }

    fn __len__(&self) -> usize {
        self.0.len()
    }

    fn __repr__(&self) -> String {
        format!("TokenTable({} ids, {} bytes)", self.0.len(), self.0.num_bytes())
    }

    /// Heap memory of the table.
    #[getter]
    fn num_bytes(&self) -> usize {
        self.0.num_bytes()
    }

    /// The bytes that a token stands for; `None` for an id that the tokenizer does not have.
    fn token_bytes<'py>(&self, py: Python<'py>, token_id: u32) -> Option<Bound<'py, PyBytes>> {
        self.0.token(token_id).map(|token| PyBytes::new(py, token.bytes))
    }

    /// Whether `skip_special_tokens` leaves the token out.
    fn is_special(&self, token_id: u32) -> bool {
        self.0.is_special(token_id)
    }

    /// The full decode of a text.
    #[pyo3(signature = (token_ids, *, skip_special_tokens=true))]
    #[expect(clippy::needless_pass_by_value, reason = "PyO3 extracts owned lists")]
    fn decode(&self, token_ids: Vec<u32>, skip_special_tokens: bool) -> String {
        self.0.decode(&token_ids, skip_special_tokens)
    }
}

#[expect(clippy::needless_pass_by_value, reason = "PyO3 extracts owned lists")]
fn build_table(
    spelling: Spelling,
    tokens: Vec<Option<PyBackedStr>>,
    special_tokens: HashSet<String>,
) -> PyResult<TokenTable> {
    let strings = tokens.iter().map(Option::as_deref);
    pagedkv_text::TokenTable::new(spelling, strings, move |token| special_tokens.contains(token))
        .map(|table| TokenTable(Arc::new(table)))
        .map_err(|error| value_error(&error))
}

/// The text of one sequence; given to `Scheduler.add_request(text=...)` it is the template of the
/// request's sequences.
#[pyclass(frozen, module = "pagedkv._core")]
pub(crate) struct TextDecoder {
    text: Mutex<Box<dyn SequenceText>>,
    error: SharedError,
}

#[pymethods]
impl TextDecoder {
    /// An empty text after `prompt_token_ids`, decoded by a table.
    #[new]
    #[pyo3(signature = (table, prompt_token_ids, *, stop, include_stop_str_in_output, skip_special_tokens))]
    #[expect(clippy::needless_pass_by_value, reason = "PyO3 extracts owned lists")]
    fn new(
        table: &TokenTable,
        prompt_token_ids: Vec<u32>,
        stop: Vec<String>,
        include_stop_str_in_output: bool,
        skip_special_tokens: bool,
    ) -> PyResult<Self> {
        let stops = stop_set(&stop, include_stop_str_in_output)?;
        let options = TableTextOptions { stops, skip_special_tokens };
        let text = TableText::new(Arc::clone(&table.0), &prompt_token_ids, options);
        Ok(Self { text: Mutex::new(Box::new(text)), error: SharedError::default() })
    }

    /// An empty text whose pieces a Python object decodes: `step(token_id) -> str`,
    /// `flush() -> str`, `fork()` -> an independent copy.
    #[staticmethod]
    #[pyo3(signature = (stream, *, stop, include_stop_str_in_output))]
    #[expect(clippy::needless_pass_by_value, reason = "PyO3 extracts owned lists")]
    fn from_stream(
        stream: Py<PyAny>,
        stop: Vec<String>,
        include_stop_str_in_output: bool,
    ) -> PyResult<Self> {
        let text = StopText::new(stop_set(&stop, include_stop_str_in_output)?);
        let error = SharedError::default();
        let text = StreamText { stream: Some(stream), text, error: error.clone() };
        Ok(Self { text: Mutex::new(Box::new(text)), error })
    }

    /// This text under a grammar, from its start; without a text, the grammar alone.
    #[staticmethod]
    #[pyo3(signature = (grammar, text=None))]
    fn constrained(py: Python<'_>, grammar: &Grammar, text: Option<&Self>) -> PyResult<Self> {
        let error = text.map(|text| text.error.clone()).unwrap_or_default();
        let text = text.map(|text| Ok::<_, PyErr>(text.lock(py)?.fork())).transpose()?;
        let text = ConstrainedText::new(text, grammar.inner());
        Ok(Self { text: Mutex::new(Box::new(text)), error })
    }

    /// Appends one generated token; returns the index of the stop string that is complete.
    #[pyo3(signature = (token_id, *, may_stop=true))]
    fn push(&self, py: Python<'_>, token_id: u32, may_stop: bool) -> PyResult<Option<u32>> {
        Ok(self.lock(py)?.push(token_id, may_stop))
    }

    /// Releases what was held back.
    fn finish(&self, py: Python<'_>) -> PyResult<()> {
        self.lock(py)?.finish();
        Ok(())
    }

    /// The text that no later token can change.
    #[getter]
    fn text(&self, py: Python<'_>) -> PyResult<String> {
        Ok(self.lock(py)?.text().to_owned())
    }

    /// The first exception of a Python decoder in this text or a fork of it; its text ended there.
    #[getter]
    fn error(&self, py: Python<'_>) -> Option<PyErr> {
        self.error.lock(py).as_ref().map(|error| error.clone_ref(py))
    }

    /// An independent copy.
    fn fork(&self, py: Python<'_>) -> PyResult<Self> {
        let text = self.lock(py)?.fork();
        Ok(Self { text: Mutex::new(text), error: self.error.clone() })
    }

    fn __repr__(&self, py: Python<'_>) -> String {
        match self.lock(py) {
            Ok(text) => format!("TextDecoder(text={:?})", text.text()),
            Err(_) => "TextDecoder(lost)".to_owned(),
        }
    }
}

impl TextDecoder {
    fn lock<'a>(&'a self, py: Python<'_>) -> PyResult<MutexGuard<'a, Box<dyn SequenceText>>> {
        self.text
            .lock_py_attached(py)
            .map_err(|_| PyRuntimeError::new_err("the text is lost: an earlier call panicked"))
    }
}

fn stop_set(stops: &[String], include_in_text: bool) -> PyResult<Option<Arc<StopSet>>> {
    if stops.is_empty() {
        return Ok(None);
    }
    StopSet::new(stops, include_in_text)
        .map(|set| Some(Arc::new(set)))
        .map_err(|error| value_error(&error))
}

/// The first error of a text and its forks.
#[derive(Clone, Default)]
struct SharedError(Arc<Mutex<Option<PyErr>>>);

impl SharedError {
    fn lock(&self, py: Python<'_>) -> MutexGuard<'_, Option<PyErr>> {
        self.0.lock_py_attached(py).unwrap_or_else(PoisonError::into_inner)
    }

    fn store(&self, py: Python<'_>, error: PyErr) {
        self.lock(py).get_or_insert(error);
    }
}

/// A text whose pieces come from Python, under the same stop strings. After an exception the text
/// grows no further; the exception is kept for whoever asks.
struct StreamText {
    stream: Option<Py<PyAny>>,
    text: StopText,
    error: SharedError,
}

impl StreamText {
    /// Calls the stream, unless it has failed or ended; a failure is its last call.
    fn call<T>(
        &mut self,
        method: impl for<'py> FnOnce(&Bound<'py, PyAny>) -> PyResult<T>,
    ) -> Option<T> {
        let stream = self.stream.as_ref()?;
        let result = Python::attach(|py| {
            method(stream.bind(py)).map_err(|error| self.error.store(py, error))
        });
        if result.is_err() {
            self.stream = None;
        }
        result.ok()
    }
}

impl SequenceText for StreamText {
    fn push(&mut self, token: u32, may_stop: bool) -> Option<u32> {
        if self.text.is_stopped() {
            return None;
        }
        let piece: PyBackedStr = self.call(|stream| {
            stream.call_method1(intern!(stream.py(), "step"), (token,))?.extract()
        })?;
        let stop = self.text.append(&piece, may_stop);
        self.text.release();
        stop
    }

    fn finish(&mut self) {
        if !self.text.is_stopped() {
            let piece: Option<PyBackedStr> =
                self.call(|stream| stream.call_method0(intern!(stream.py(), "flush"))?.extract());
            if let Some(piece) = piece {
                self.text.append(&piece, false);
            }
        }
        self.stream = None;
        self.text.finish();
    }

    fn text(&self) -> &str {
        self.text.released()
    }

    fn fork(&self) -> Box<dyn SequenceText> {
        let stream = self.stream.as_ref().and_then(|stream| {
            Python::attach(|py| {
                let fork = stream.bind(py).call_method0(intern!(py, "fork"));
                fork.map(Bound::unbind).map_err(|error| self.error.store(py, error)).ok()
            })
        });
        Box::new(Self { stream, text: self.text.clone(), error: self.error.clone() })
    }
}
