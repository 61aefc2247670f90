//! The CPU kernels as Python sees them: functions over numpy arrays that share memory with torch
//! tensors.

use numpy::{PyReadonlyArrayDyn, PyUntypedArray};
use pagedkv_cpu::{
    Activation, AttentionParams, Element, Isa, Mask, PagedKv, RmsNorm, StepRows, bf16, f16,
};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;

use crate::views::{
    SeenAs, borrow, borrow_mut, keys_view, keys_view_mut, rows_view, rows_view_mut, value_error,
    view, view_mut,
};

pub(crate) type Array<'a, 'py> = &'a Bound<'py, PyUntypedArray>;

/// A number format, and the numpy element that carries it: numpy has no bfloat16.
trait Stored: Element {
    type Carrier: SeenAs<Self>;
}

impl Stored for f32 {
    type Carrier = Self;
}

impl Stored for bf16 {
    type Carrier = i16;
}

impl Stored for f16 {
    type Carrier = i16;
}

/// Calls a function generic over [`Stored`] for the format that `dtype` names.
macro_rules! for_dtype {
    ($dtype:expr, $function:ident($($argument:expr),* $(,)?)) => {
        match $dtype {
            "float32" => $function::<f32>($($argument),*),
            "bfloat16" => $function::<bf16>($($argument),*),
            "float16" => $function::<f16>($($argument),*),
            other => Err(PyValueError::new_err(format!(
                "dtype must be 'float32', 'bfloat16' or 'float16', got '{other}'"
            ))),
        }
    };
}

/// How many threads one call may use, the calling one included.
#[pyfunction]
pub(crate) fn num_threads() -> PyResult<usize> {
    pagedkv_cpu::num_threads().map_err(value_error)
}

/// Sets how many threads one call may use. Results do not depend on it.
#[pyfunction]
pub(crate) fn set_num_threads(py: Python<'_>, num_threads: usize) -> PyResult<()> {
    py.detach(|| pagedkv_cpu::set_num_threads(num_threads)).map_err(value_error)
}

/// The instruction set that kernels use.
#[pyfunction]
pub(crate) fn cpu_isa() -> PyResult<&'static str> {
    Isa::chosen().map(Isa::name).map_err(value_error)
}

/// Makes kernels use another instruction set from here on.
#[pyfunction]
pub(crate) fn set_cpu_isa(name: &str) -> PyResult<()> {
    name.parse::<Isa>().and_then(Isa::choose).map_err(value_error)
}

/// Stores keys and values of tokens in the slots of their blocks.
#[pyfunction]
#[pyo3(signature = (key, value, *, keys, values, slot_mapping, dtype))]
pub(crate) fn kv_write<'py>(
    key: Array<'_, 'py>,
    value: Array<'_, 'py>,
    keys: Array<'_, 'py>,
    values: Array<'_, 'py>,
    slot_mapping: Array<'_, 'py>,
    dtype: &str,
) -> PyResult<()> {
    for_dtype!(dtype, write_one(["key", "keys"], key, keys, slot_mapping))?;
    for_dtype!(dtype, write_one(["value", "values"], value, values, slot_mapping))
}

fn write_one<E: Stored>(
    [tokens_name, storage_name]: [&'static str; 2],
    tokens: Array<'_, '_>,
    storage: Array<'_, '_>,
    slot_mapping: Array<'_, '_>,
) -> PyResult<()> {
    let tokens = borrow::<E::Carrier>(tokens_name, tokens)?;
    let slots = borrow::<i64>("slot_mapping", slot_mapping)?;
    let mut storage_array = borrow_mut::<E::Carrier>(storage_name, storage)?;
    let tokens = view::<_, E, 3>(tokens_name, &tokens)?;
    let slots = view("slot_mapping", &slots)?;
    let (mut target, in_columns) = keys_view_mut::<_, E>(storage_name, &mut storage_array)?;
    let write = if in_columns { pagedkv_cpu::kv_write_columns } else { pagedkv_cpu::kv_write };
    storage.py().detach(|| write(tokens, slots, &mut target)).map_err(value_error)
}

/// Copies whole blocks in each of the storages.
#[pyfunction]
#[pyo3(signature = (storages, *, pairs, dtype))]
#[expect(clippy::needless_pass_by_value, reason = "PyO3 extracts owned lists")]
pub(crate) fn copy_blocks<'py>(
    storages: Vec<Bound<'py, PyUntypedArray>>,
    pairs: Array<'_, 'py>,
    dtype: &str,
) -> PyResult<()> {
    storages.iter().try_for_each(|storage| for_dtype!(dtype, copy_in_one(storage, pairs)))
}

fn copy_in_one<E: Stored>(storage: Array<'_, '_>, pairs: Array<'_, '_>) -> PyResult<()> {
    let mut storage_array = borrow_mut::<E::Carrier>("storages", storage)?;
    let pairs = borrow::<i32>("pairs", pairs)?;
    let (mut target, _) = keys_view_mut::<_, E>("storages", &mut storage_array)?;
    let pairs = view("pairs", &pairs)?;
    storage.py().detach(|| pagedkv_cpu::copy_blocks(&mut target, pairs)).map_err(value_error)
}

/// Attention of the queries of a step over the keys and values in its blocks.
#[pyfunction]
#[pyo3(signature = (query, output, *, keys, values, dtype, row_ids, query_start_loc, seq_lens,
                    block_tables, scale, mask="full", window=None, softcap=None, sinks=None,
                    alibi_slopes=None))]
#[expect(clippy::too_many_arguments, reason = "by keyword; a class would be made anew each step")]
pub(crate) fn paged_attention<'py>(
    query: Array<'_, 'py>,
    output: Array<'_, 'py>,
    keys: Array<'_, 'py>,
    values: Array<'_, 'py>,
    dtype: &str,
    row_ids: Array<'_, 'py>,
    query_start_loc: Array<'_, 'py>,
    seq_lens: Array<'_, 'py>,
    block_tables: Array<'_, 'py>,
    scale: f32,
    mask: &str,
    window: Option<usize>,
    softcap: Option<f32>,
    sinks: Option<Array<'_, 'py>>,
    alibi_slopes: Option<Array<'_, 'py>>,
) -> PyResult<()> {
    let sinks = sinks.map(|sinks| borrow::<f32>("sinks", sinks)).transpose()?;
    let slopes = alibi_slopes.map(|slopes| borrow::<f32>("alibi_slopes", slopes)).transpose()?;
    let params = AttentionParams {
        scale,
        mask: parse_mask(mask, window)?,
        softcap,
        sinks: per_head("sinks", sinks.as_ref())?,
        alibi_slopes: per_head("alibi_slopes", slopes.as_ref())?,
    };
    let row_ids = borrow::<i32>("row_ids", row_ids)?;
    let query_start_loc = borrow::<i32>("query_start_loc", query_start_loc)?;
    let seq_lens = borrow::<i32>("seq_lens", seq_lens)?;
    let block_tables = borrow::<i32>("block_tables", block_tables)?;
    let rows = StepRows {
        row_ids: view("row_ids", &row_ids)?,
        query_start_loc: view("query_start_loc", &query_start_loc)?,
        seq_lens: view("seq_lens", &seq_lens)?,
        block_tables: view("block_tables", &block_tables)?,
    };
    for_dtype!(dtype, attend(query, [keys, values], rows, params, output))
}

fn per_head<'a>(
    argument: &'static str,
    numbers: Option<&'a PyReadonlyArrayDyn<'_, f32>>,
) -> PyResult<Option<&'a [f32]>> {
    Ok(numbers
        .map(|numbers| view::<_, f32, 1>(argument, numbers))
        .transpose()?
        .map(|v| v.as_slice()))
}

fn attend<E: Stored>(
    query: Array<'_, '_>,
    [keys, values]: [Array<'_, '_>; 2],
    rows: StepRows<'_>,
    params: AttentionParams<'_>,
    output: Array<'_, '_>,
) -> PyResult<()> {
    let py = query.py();
    let query = borrow::<E::Carrier>("query", query)?;
    let keys = borrow::<E::Carrier>("keys", keys)?;
    let values = borrow::<E::Carrier>("values", values)?;
    let mut output = borrow_mut::<E::Carrier>("output", output)?;
    let query = view::<_, E, 3>("query", &query)?;
    let kv = PagedKv { keys: keys_view("keys", &keys)?, values: view("values", &values)? };
    let mut output = view_mut::<_, E, 3>("output", &mut output)?;
    py.detach(|| pagedkv_cpu::paged_attention(query, kv, rows, params, &mut output))
        .map_err(value_error)
}

fn parse_mask(mask: &str, window: Option<usize>) -> PyResult<Mask> {
    match (mask, window) {
        ("full", None) => Ok(Mask::Full),
        ("sliding", Some(window)) => Ok(Mask::Sliding { window }),
        ("chunked", Some(window)) => Ok(Mask::Chunked { window }),
        ("full" | "sliding" | "chunked", _) => {
            let got = window.map_or_else(|| "None".to_owned(), |window| window.to_string());
            Err(PyValueError::new_err(format!(
                "window must be None for mask='full' and a number otherwise, \
                 got mask='{mask}' with window={got}"
            )))
        }
        _ => Err(PyValueError::new_err(format!(
            "mask must be 'full', 'sliding' or 'chunked', got '{mask}'"
        ))),
    }
}

/// `numbers` times the transpose of `weight`, plus `bias`.
#[pyfunction]
#[pyo3(signature = (numbers, weight, bias, output, *, dtype))]
pub(crate) fn linear<'py>(
    numbers: Array<'_, 'py>,
    weight: Array<'_, 'py>,
    bias: Option<Array<'_, 'py>>,
    output: Array<'_, 'py>,
    dtype: &str,
) -> PyResult<()> {
    for_dtype!(dtype, multiply(numbers, weight, bias, output))
}

fn multiply<E: Stored>(
    numbers: Array<'_, '_>,
    weight: Array<'_, '_>,
    bias: Option<Array<'_, '_>>,
    output: Array<'_, '_>,
) -> PyResult<()> {
    let py = numbers.py();
    let numbers = borrow::<E::Carrier>("numbers", numbers)?;
    let weight = borrow::<E::Carrier>("weight", weight)?;
    let bias = bias.map(|bias| borrow::<E::Carrier>("bias", bias)).transpose()?;
    let mut output = borrow_mut::<E::Carrier>("output", output)?;
    let numbers = rows_view::<_, E>("numbers", &numbers)?;
    let weight = view::<_, E, 2>("weight", &weight)?;
    let bias = bias.as_ref().map(|bias| view::<_, E, 1>("bias", bias)).transpose()?;
    let mut output = rows_view_mut::<_, E>("output", &mut output)?;
    py.detach(|| pagedkv_cpu::linear(numbers, weight, bias, &mut output)).map_err(value_error)
}

/// Each row divided by its root mean square, times a weight.
#[pyfunction]
#[pyo3(signature = (numbers, weight, output, *, epsilon, weight_offset, rounds_twice, dtype))]
pub(crate) fn rms_norm<'py>(
    numbers: Array<'_, 'py>,
    weight: Array<'_, 'py>,
    output: Array<'_, 'py>,
    epsilon: f32,
    weight_offset: f32,
    rounds_twice: bool,
    dtype: &str,
) -> PyResult<()> {
    let norm = RmsNorm { epsilon, weight_offset, rounds_twice };
    for_dtype!(dtype, normalise(norm, numbers, weight, output))
}

fn normalise<E: Stored>(
    norm: RmsNorm,
    numbers: Array<'_, '_>,
    weight: Array<'_, '_>,
    output: Array<'_, '_>,
) -> PyResult<()> {
    let py = numbers.py();
    let numbers = borrow::<E::Carrier>("numbers", numbers)?;
    let weight = borrow::<E::Carrier>("weight", weight)?;
    let mut output = borrow_mut::<E::Carrier>("output", output)?;
    let numbers = rows_view::<_, E>("numbers", &numbers)?;
    let weight = view::<_, E, 1>("weight", &weight)?;
    let mut output = rows_view_mut::<_, E>("output", &mut output)?;
    py.detach(|| pagedkv_cpu::rms_norm(norm, numbers, weight, &mut output)).map_err(value_error)
}

/// Rotary position embedding of each head's halves.
#[pyfunction]
#[pyo3(signature = (heads, cos, sin, output, *, dtype))]
pub(crate) fn rotate<'py>(
    heads: Array<'_, 'py>,
    cos: Array<'_, 'py>,
    sin: Array<'_, 'py>,
    output: Array<'_, 'py>,
    dtype: &str,
) -> PyResult<()> {
    for_dtype!(dtype, rotate_heads(heads, [cos, sin], output))
}

fn rotate_heads<E: Stored>(
    heads: Array<'_, '_>,
    [cos, sin]: [Array<'_, '_>; 2],
    output: Array<'_, '_>,
) -> PyResult<()> {
    let py = heads.py();
    let heads = borrow::<E::Carrier>("heads", heads)?;
    let [cos, sin] = [borrow::<E::Carrier>("cos", cos)?, borrow::<E::Carrier>("sin", sin)?];
    let mut output = borrow_mut::<E::Carrier>("output", output)?;
    let heads = view::<_, E, 3>("heads", &heads)?;
    let [cos, sin] = [view::<_, E, 2>("cos", &cos)?, view::<_, E, 2>("sin", &sin)?];
    let mut output = view_mut::<_, E, 3>("output", &mut output)?;
    py.detach(|| pagedkv_cpu::rotate(heads, cos, sin, &mut output)).map_err(value_error)
}

/// `x / (1 + e^-x)` of each number.
#[pyfunction]
#[pyo3(signature = (numbers, output, *, dtype))]
pub(crate) fn silu<'py>(
    numbers: Array<'_, 'py>,
    output: Array<'_, 'py>,
    dtype: &str,
) -> PyResult<()> {
    for_dtype!(dtype, apply(Activation::Silu, numbers, output))
}

/// `x * (1 + erf(x / sqrt 2)) / 2` of each number.
#[pyfunction]
#[pyo3(signature = (numbers, output, *, dtype))]
pub(crate) fn gelu<'py>(
    numbers: Array<'_, 'py>,
    output: Array<'_, 'py>,
    dtype: &str,
) -> PyResult<()> {
    for_dtype!(dtype, apply(Activation::Gelu, numbers, output))
}

/// The form of gelu with a hyperbolic tangent.
#[pyfunction]
#[pyo3(signature = (numbers, output, *, dtype))]
pub(crate) fn gelu_tanh<'py>(
    numbers: Array<'_, 'py>,
    output: Array<'_, 'py>,
    dtype: &str,
) -> PyResult<()> {
    for_dtype!(dtype, apply(Activation::GeluTanh, numbers, output))
}

fn apply<E: Stored>(
    activation: Activation,
    numbers: Array<'_, '_>,
    output: Array<'_, '_>,
) -> PyResult<()> {
    let py = numbers.py();
    let numbers = borrow::<E::Carrier>("numbers", numbers)?;
    let mut output = borrow_mut::<E::Carrier>("output", output)?;
    let numbers = rows_view::<_, E>("numbers", &numbers)?;
    let mut output = rows_view_mut::<_, E>("output", &mut output)?;
    py.detach(|| pagedkv_cpu::activate(activation, numbers, &mut output)).map_err(value_error)
}
