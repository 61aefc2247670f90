//! Grammars and their masks as Python sees them.

use std::time::Duration;

use numpy::{Element, PyReadwriteArrayDyn, PyUntypedArray, PyUntypedArrayMethods};
use pagedkv_core::SampleMasks;
use pagedkv_text::{GrammarError, GrammarLimits, GrammarSource, JsonOptions};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;

use crate::results::Batch;
use crate::scheduler::Scheduler;
use crate::text::TokenTable;
use crate::views::{borrow, borrow_mut, value_error, view, view_mut};

/// Compiles grammars over the tokens of one tokenizer.
#[pyclass(frozen, module = "pagedkv._core")]
pub(crate) struct GrammarCompiler(pagedkv_text::GrammarCompiler);

#[pymethods]
impl GrammarCompiler {
    /// Builds the trie of the tokens.
    #[new]
    #[pyo3(signature = (table, *, vocab_size, compile_seconds=10, num_compilations=2))]
    fn new(
        py: Python<'_>,
        table: &TokenTable,
        vocab_size: usize,
        compile_seconds: u64,
        num_compilations: usize,
    ) -> PyResult<Self> {
        let compile_time = Duration::from_secs(compile_seconds);
        let limits = GrammarLimits { compile_time, num_compilations };
        py.detach(|| pagedkv_text::GrammarCompiler::new(table.inner(), vocab_size, limits))
            .map(Self)
            .map_err(|error| grammar_error(&error))
    }

    /// Compiles the JSON that satisfies a schema.
    #[pyo3(signature = (schema, *, any_whitespace=true, whitespace_pattern=None, additional_properties=true))]
    fn json_schema(
        &self,
        py: Python<'_>,
        schema: String,
        any_whitespace: bool,
        whitespace_pattern: Option<String>,
        additional_properties: bool,
    ) -> PyResult<Grammar> {
        let options = JsonOptions { any_whitespace, whitespace_pattern, additional_properties };
        self.compile(py, &GrammarSource::JsonSchema { schema, options })
    }

    /// Compiles the texts that a regular expression matches as a whole.
    fn regex(&self, py: Python<'_>, pattern: String) -> PyResult<Grammar> {
        self.compile(py, &GrammarSource::Regex(pattern))
    }

    /// Compiles a list of texts.
    fn choice(&self, py: Python<'_>, choices: Vec<String>) -> PyResult<Grammar> {
        self.compile(py, &GrammarSource::Choice(choices))
    }

    /// Compiles a grammar in the notation of Lark or GBNF.
    fn grammar(&self, py: Python<'_>, grammar: String) -> PyResult<Grammar> {
        self.compile(py, &GrammarSource::Grammar(grammar))
    }

    /// Compiles text of any form between parts that have one.
    #[pyo3(signature = (tag, *, any_whitespace=true, whitespace_pattern=None, additional_properties=true))]
    fn structural_tag(
        &self,
        py: Python<'_>,
        tag: String,
        any_whitespace: bool,
        whitespace_pattern: Option<String>,
        additional_properties: bool,
    ) -> PyResult<Grammar> {
        let options = JsonOptions { any_whitespace, whitespace_pattern, additional_properties };
        self.compile(py, &GrammarSource::StructuralTag { tag, options })
    }

    fn __repr__(&self) -> String {
        format!("GrammarCompiler(vocab_size={})", self.0.vocab_size())
    }
}

impl GrammarCompiler {
    fn compile(&self, py: Python<'_>, source: &GrammarSource) -> PyResult<Grammar> {
        py.detach(|| self.0.compile(source)).map(Grammar).map_err(|error| grammar_error(&error))
    }
}

fn grammar_error(error: &GrammarError) -> PyErr {
    PyValueError::new_err(error.to_string())
}

/// A compiled grammar.
#[pyclass(frozen, module = "pagedkv._core")]
pub(crate) struct Grammar(pagedkv_text::Grammar);

impl Grammar {
    pub(crate) fn inner(&self) -> &pagedkv_text::Grammar {
        &self.0
    }
}

#[pymethods]
impl Grammar {
    /// Heap memory, about.
    #[getter]
    fn num_bytes(&self) -> usize {
        self.0.num_bytes()
    }

    fn __repr__(&self) -> String {
        format!("Grammar({} bytes)", self.0.num_bytes())
    }
}

/// Writes what grammars allow the samples of a batch.
#[pyfunction]
#[pyo3(signature = (scheduler, batch, *, words, is_constrained))]
pub(crate) fn fill_masks<'py>(
    scheduler: &Scheduler,
    batch: &Batch,
    words: &Bound<'py, PyUntypedArray>,
    is_constrained: &Bound<'py, PyUntypedArray>,
) -> PyResult<Vec<(u32, String)>> {
    let mut words = borrow_mut::<u32>("words", words)?;
    let mut is_constrained = borrow_mut::<bool>("is_constrained", is_constrained)?;
    let num_words = words.shape().last().copied().unwrap_or(0);
    let mut masks = SampleMasks {
        words: slice_mut("words", &mut words)?,
        num_words,
        is_constrained: slice_mut("is_constrained", &mut is_constrained)?,
    };
    scheduler.fill_masks(batch, &mut masks)
}

/// Sets the logits of tokens that masks exclude to minus infinity.
#[pyfunction]
#[pyo3(signature = (logits, *, rows, masks))]
pub(crate) fn apply_masks<'py>(
    logits: &Bound<'py, PyUntypedArray>,
    rows: &Bound<'py, PyUntypedArray>,
    masks: &Bound<'py, PyUntypedArray>,
) -> PyResult<()> {
    let rows = borrow::<i64>("rows", rows)?;
    let masks = borrow::<u32>("masks", masks)?;
    let mut logits = borrow_mut::<f32>("logits", logits)?;
    let rows = view("rows", &rows)?;
    let masks = view("masks", &masks)?;
    let mut logits = view_mut::<_, f32, 2>("logits", &mut logits)?;
    pagedkv_cpu::apply_masks(&mut logits, rows, masks).map_err(value_error)
}

/// All elements of an array.
fn slice_mut<'a, T: Element>(
    name: &str,
    array: &'a mut PyReadwriteArrayDyn<'_, T>,
) -> PyResult<&'a mut [T]> {
    array
        .as_slice_mut()
        .map_err(|_| PyValueError::new_err(format!("{name} must be contiguous in memory")))
}
