//! What `schedule`, `update` and `take_output` return.

use numpy::PyArray1;
use pagedkv_core as core;
use pagedkv_core::FinishReason;
use pyo3::prelude::*;
use pyo3::types::{PyList, PyTuple};

/// A batch in flight; the counts say how much of each step array is in use.
#[pyclass(frozen, module = "pagedkv._core")]
pub(crate) struct Batch {
    pub(crate) batch: core::Batch,
    /// The scheduler that made it.
    pub(crate) owner: u64,
}

#[pymethods]
impl Batch {
    /// Number of this batch, from 1.
    #[getter]
    fn id(&self) -> u64 {
        self.batch.id
    }

    /// Scheduled sequences.
    #[getter]
    fn num_rows(&self) -> u32 {
        self.batch.num_rows
    }

    /// Tokens to run.
    #[getter]
    fn num_tokens(&self) -> u32 {
        self.batch.num_tokens
    }

    /// Tokens to sample.
    #[getter]
    fn num_samples(&self) -> u32 {
        self.batch.num_samples
    }

    /// Changed entries of the block tables.
    #[getter]
    fn num_table_updates(&self) -> u32 {
        self.batch.num_table_updates
    }

    /// Rows filled by sharing another's blocks.
    #[getter]
    fn num_row_forks(&self) -> u32 {
        self.batch.num_row_forks
    }

    /// How many of the row forks come before the table updates.
    #[getter]
    fn num_first_forks(&self) -> u32 {
        self.batch.num_first_forks
    }

    /// The most candidates that a sample wants.
    #[getter]
    fn num_candidates(&self) -> u32 {
        self.batch.num_candidates
    }

    /// Blocks to copy before the forward pass.
    #[getter]
    fn num_block_copies(&self) -> u32 {
        self.batch.num_block_copies
    }

    /// Blocks to move to the host.
    #[getter]
    fn num_swap_out(&self) -> u32 {
        self.batch.num_swap_out
    }

    /// Blocks to move back.
    #[getter]
    fn num_swap_in(&self) -> u32 {
        self.batch.num_swap_in
    }

    /// Sequences that got a row.
    #[getter]
    fn num_row_fills(&self) -> u32 {
        self.batch.num_row_fills
    }

    /// Samples that a grammar constrains.
    #[getter]
    fn num_constrained(&self) -> u32 {
        self.batch.num_constrained
    }

    fn __repr__(&self) -> String {
        let batch = &self.batch;
        format!(
            "Batch(id={}, num_rows={}, num_tokens={}, num_samples={})",
            batch.id, batch.num_rows, batch.num_tokens, batch.num_samples
        )
    }
}

/// What a step led to.
#[pyclass(frozen, get_all, module = "pagedkv._core")]
pub(crate) struct StepOutput {
    /// Per sample: whether the token counts.
    accepted: Py<PyArray1<bool>>,
    /// Requests that got their first token.
    first_tokens: Py<PyList>,
    /// Tokens of streamed requests.
    deltas: Py<PyList>,
    /// Requests whose sequences have all ended.
    finished: Py<PyList>,
}

impl StepOutput {
    pub(crate) fn new(py: Python<'_>, output: &core::StepOutput) -> PyResult<Self> {
        let deltas = PyList::empty(py);
        for delta in &output.deltas {
            let reason = delta.finish_reason.map(reason_name);
            let token_ids = &delta.token_ids;
            deltas.append((delta.request_id, delta.index, &delta.text, token_ids, reason))?;
        }
        Ok(Self {
            accepted: PyArray1::from_slice(py, &output.accepted).unbind(),
            first_tokens: PyList::new(py, &output.first_tokens)?.unbind(),
            deltas: deltas.unbind(),
            finished: PyList::new(py, &output.finished)?.unbind(),
        })
    }
}

#[pymethods]
impl StepOutput {
    fn __repr__(&self, py: Python<'_>) -> PyResult<String> {
        let num_accepted: usize =
            self.accepted.bind(py).call_method0(pyo3::intern!(py, "sum"))?.extract()?;
        let finished = self.finished.bind(py);
        Ok(format!("StepOutput(num_accepted={num_accepted}, finished={finished})"))
    }
}

/// Log-probability, rank, and the most likely tokens with theirs.
type TokenLogprob = (f32, u32, Vec<(u32, f32)>);

/// A sequence that has ended.
#[pyclass(frozen, get_all, module = "pagedkv._core")]
pub(crate) struct SequenceResult {
    /// Index within the request.
    index: u32,
    /// The generated tokens, an ending id included.
    token_ids: Py<PyArray1<i32>>,
    /// The generated text; empty without a decoder.
    text: String,
    /// Sum of the tokens' log-probabilities.
    cumulative_logprob: f64,
    /// Of beams: the sum, divided by the length to the power of the length penalty.
    score: Option<f32>,
    /// Of beams: log-probability, rank and the most likely tokens, for each token.
    logprobs: Option<Vec<TokenLogprob>>,
    /// `stop`, `length`, `repetition` or `abort`.
    finish_reason: &'static str,
    /// The ending id or stop string of the request that ended it, or `repetition_detected`.
    stop_reason: Py<PyAny>,
}

impl SequenceResult {
    fn new(py: Python<'_>, result: core::SequenceResult, stops: &[String]) -> PyResult<Self> {
        let stop_reason = match result.finish_reason {
            FinishReason::StopToken(id) => id.into_pyobject(py)?.into_any().unbind(),
            FinishReason::StopString(i) => stops.get(i as usize).into_pyobject(py)?.unbind(),
            FinishReason::Repetition => {
                "repetition_detected".into_pyobject(py)?.into_any().unbind()
            }
            FinishReason::Eos
            | FinishReason::Grammar
            | FinishReason::Length
            | FinishReason::Abort => py.None(),
        };
        Ok(Self {
            index: result.index,
            token_ids: token_array(py, &result.token_ids).unbind(),
            text: result.text,
            cumulative_logprob: result.cumulative_logprob,
            score: result.score,
            logprobs: result.logprobs.map(|tokens| {
                tokens.into_iter().map(|token| (token.logprob, token.rank, token.top)).collect()
            }),
            finish_reason: reason_name(result.finish_reason),
            stop_reason,
        })
    }
}

#[pymethods]
impl SequenceResult {
    fn __repr__(&self, py: Python<'_>) -> PyResult<String> {
        let num_tokens = self.token_ids.bind(py).len()?;
        let (index, reason) = (self.index, self.finish_reason);
        Ok(format!(
            "SequenceResult(index={index}, num_tokens={num_tokens}, finish_reason='{reason}')"
        ))
    }
}

/// A request that has ended.
#[pyclass(frozen, get_all, module = "pagedkv._core")]
pub(crate) struct RequestResult {
    /// Its sequences, by index.
    sequences: Py<PyTuple>,
    /// Prompt tokens that were found in the prefix cache when it first ran.
    num_cached_tokens: u32,
    /// How often it gave up its blocks.
    num_preemptions: u32,
    /// Of those, how often they were moved to the host.
    num_swaps: u32,
    /// Tokens whose computation was lost because it gave up its blocks.
    num_tokens_lost: u64,
    /// The slots of its blocks when the first of its sequences ended.
    num_held_slots: u64,
    /// Of those, slots that held tokens.
    num_used_slots: u64,
}

impl RequestResult {
    /// `stops` are the request's stop strings.
    pub(crate) fn new(
        py: Python<'_>,
        result: core::RequestResult,
        stops: &[String],
    ) -> PyResult<Self> {
        let sequences: Vec<SequenceResult> = result
            .sequences
            .into_iter()
            .map(|sequence| SequenceResult::new(py, sequence, stops))
            .collect::<PyResult<_>>()?;
        Ok(Self {
            sequences: PyTuple::new(py, sequences)?.unbind(),
            num_cached_tokens: result.num_cached_tokens,
            num_preemptions: result.num_preemptions,
            num_swaps: result.num_swaps,
            num_tokens_lost: result.num_tokens_lost,
            num_held_slots: result.slot_use.num_held,
            num_used_slots: result.slot_use.num_used,
        })
    }
}

#[pymethods]
impl RequestResult {
    fn __repr__(&self, py: Python<'_>) -> String {
        let sequences = self.sequences.bind(py);
        let num_cached_tokens = self.num_cached_tokens;
        format!("RequestResult(sequences={sequences}, num_cached_tokens={num_cached_tokens})")
    }
}

/// Token ids as an int32 array.
pub(crate) fn token_array<'py>(py: Python<'py>, ids: &[u32]) -> Bound<'py, PyArray1<i32>> {
    PyArray1::from_iter(py, ids.iter().map(|id| *id as i32))
}

fn reason_name(reason: FinishReason) -> &'static str {
    match reason {
        FinishReason::Eos
        | FinishReason::StopToken(_)
        | FinishReason::StopString(_)
        | FinishReason::Grammar => "stop",
        FinishReason::Length => "length",
        FinishReason::Repetition => "repetition",
        FinishReason::Abort => "abort",
    }
}
