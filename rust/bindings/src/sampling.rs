//! The sampling kernels as Python sees them.

use numpy::PyReadonlyArrayDyn;
use pagedkv_cpu::{NoiseRow, Reported, SampleOutputs, SampleRow};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;

use crate::cpu::Array;
use crate::views::{SeenAs, borrow, borrow_mut, value_error, view, view_mut};

/// Chooses a token for each row of logits.
#[pyfunction]
#[pyo3(signature = (logits, edited, *, token_ids, numbers, ranks, edited_rows, seeds, sample_index,
                    positions, temperature, log_min_p, top_k, top_p, num_top, reported))]
#[expect(clippy::too_many_arguments, reason = "by keyword; a class would be made anew each step")]
pub(crate) fn sample_tokens<'py>(
    logits: Array<'_, 'py>,
    edited: Option<Array<'_, 'py>>,
    token_ids: Array<'_, 'py>,
    numbers: Array<'_, 'py>,
    ranks: Array<'_, 'py>,
    edited_rows: Array<'_, 'py>,
    seeds: Array<'_, 'py>,
    sample_index: Array<'_, 'py>,
    positions: Array<'_, 'py>,
    temperature: Array<'_, 'py>,
    log_min_p: Array<'_, 'py>,
    top_k: Array<'_, 'py>,
    top_p: Array<'_, 'py>,
    num_top: Array<'_, 'py>,
    reported: &str,
) -> PyResult<()> {
    let py = logits.py();
    let reported = parse_reported(reported)?;
    let noise = borrow_noise(seeds, sample_index, positions)?;
    let columns = [
        ("temperature", borrow::<f32>("temperature", temperature)?),
        ("log_min_p", borrow::<f32>("log_min_p", log_min_p)?),
        ("top_p", borrow::<f32>("top_p", top_p)?),
    ];
    let counts = [
        ("edited_rows", borrow::<i32>("edited_rows", edited_rows)?),
        ("top_k", borrow::<i32>("top_k", top_k)?),
        ("num_top", borrow::<i32>("num_top", num_top)?),
    ];
    let [temperature, log_min_p, top_p] = each_as_long(&columns, noise.len())?;
    let [edited_rows, top_k, num_top] = each_as_long(&counts, noise.len())?;
    let rows: Vec<SampleRow> = noise
        .into_iter()
        .enumerate()
        .map(|(index, noise)| SampleRow {
            noise,
            temperature: temperature[index],
            log_min_p: log_min_p[index],
            top_k: usize::try_from(top_k[index]).unwrap_or(0),
            top_p: top_p[index],
            edited: usize::try_from(edited_rows[index]).ok(),
            num_top: usize::try_from(num_top[index]).ok(),
        })
        .collect();
    let logits = borrow::<f32>("logits", logits)?;
    let edited = edited.map(|edited| borrow::<f32>("edited", edited)).transpose()?;
    let logits = view("logits", &logits)?;
    let edited = edited.as_ref().map(|edited| view("edited", edited)).transpose()?;
    let mut token_ids = borrow_mut::<i32>("token_ids", token_ids)?;
    let mut numbers = borrow_mut::<f32>("numbers", numbers)?;
    let mut ranks = borrow_mut::<i32>("ranks", ranks)?;
    let mut outputs = SampleOutputs {
        token_ids: view_mut("token_ids", &mut token_ids)?,
        numbers: view_mut("numbers", &mut numbers)?,
        ranks: view_mut("ranks", &mut ranks)?,
    };
    py.detach(|| pagedkv_cpu::sample(logits, edited, &rows, reported, &mut outputs))
        .map_err(value_error)
}

/// Writes the largest numbers of each row, or their log-probabilities, and where they are.
#[pyfunction]
#[pyo3(signature = (numbers, *, as_logprobs, token_ids, values))]
pub(crate) fn best_tokens<'py>(
    numbers: Array<'_, 'py>,
    as_logprobs: bool,
    token_ids: Array<'_, 'py>,
    values: Array<'_, 'py>,
) -> PyResult<()> {
    let py = numbers.py();
    let numbers = borrow::<f32>("numbers", numbers)?;
    let mut token_ids = borrow_mut::<i32>("token_ids", token_ids)?;
    let mut values = borrow_mut::<f32>("values", values)?;
    let numbers = view("numbers", &numbers)?;
    let mut token_ids = view_mut("token_ids", &mut token_ids)?;
    let mut values = view_mut("values", &mut values)?;
    py.detach(|| pagedkv_cpu::best_tokens(numbers, as_logprobs, &mut token_ids, &mut values))
        .map_err(value_error)
}

/// Fills rows with the Gumbel noise of every token of the vocabulary.
#[pyfunction]
#[pyo3(signature = (output, *, seeds, sample_index, positions))]
pub(crate) fn gumbel_noise<'py>(
    output: Array<'_, 'py>,
    seeds: Array<'_, 'py>,
    sample_index: Array<'_, 'py>,
    positions: Array<'_, 'py>,
) -> PyResult<()> {
    let py = output.py();
    let rows = borrow_noise(seeds, sample_index, positions)?;
    let mut output = borrow_mut::<f32>("output", output)?;
    let mut output = view_mut::<_, f32, 2>("output", &mut output)?;
    py.detach(|| pagedkv_cpu::gumbel_noise(&rows, &mut output)).map_err(value_error)
}

fn borrow_noise(
    seeds: Array<'_, '_>,
    sample_index: Array<'_, '_>,
    positions: Array<'_, '_>,
) -> PyResult<Vec<NoiseRow>> {
    let seeds = borrow::<u64>("seeds", seeds)?;
    let counters = [
        ("sample_index", borrow::<i32>("sample_index", sample_index)?),
        ("positions", borrow::<i32>("positions", positions)?),
    ];
    let seeds = view::<_, u64, 1>("seeds", &seeds)?.as_slice();
    let [sample_index, positions] = each_as_long(&counters, seeds.len())?;
    let rows = seeds.iter().zip(sample_index).zip(positions);
    Ok(rows
        .map(|((&seed, &sample_index), &position)| NoiseRow {
            seed,
            // The counter's words are the bits, as in the readable twin.
            sample_index: sample_index as u32,
            position: position as u32,
        })
        .collect())
}

/// The named arrays as slices, one number for each of the seeds.
fn each_as_long<'a, T: SeenAs<T>, const N: usize>(
    arrays: &'a [(&'static str, PyReadonlyArrayDyn<'_, T>); N],
    expected: usize,
) -> PyResult<[&'a [T]; N]> {
    let mut slices: [&[T]; N] = [&[]; N];
    for (slice, (argument, array)) in slices.iter_mut().zip(arrays) {
        *slice = view::<T, T, 1>(argument, array)?.as_slice();
        let got = slice.len();
        if got != expected {
            return Err(PyValueError::new_err(format!(
                "{argument} must be as long as seeds ({expected}), got {got}"
            )));
        }
    }
    Ok(slices)
}

fn parse_reported(mode: &str) -> PyResult<Reported> {
    match mode {
        "raw_logprobs" => Ok(Reported::RawLogprobs),
        "raw_logits" => Ok(Reported::RawLogits),
        "processed_logprobs" => Ok(Reported::ProcessedLogprobs),
        "processed_logits" => Ok(Reported::ProcessedLogits),
        _ => Err(PyValueError::new_err(format!(
            "reported must be 'raw_logprobs', 'raw_logits', 'processed_logprobs' or \
             'processed_logits', got '{mode}'"
        ))),
    }
}
