//! Products with a weight matrix, as a step of a decoder runs them: for few rows above all.
//!
//! `output[i, n] = sum_k input[i, k] * weight[n, k] + bias[n]`, summed in f32 whatever the element.
//!
//! Weights are packed once, when a model is loaded, in strips of sixteen outputs: `[strip, k, output]`.
//! Then each vector of a strip is multiplied by one number of the input, an outer product, and every
//! output is one chain of multiply-adds over `k`, cut where a run of [`RUN`](panel::RUN) elements
//! ends. That order depends on `k` alone: a row has the same bits among any number of rows, on any
//! number of threads and at every level with a fused multiply-add.
//!
//! The limit for few rows is reading the weights once, in a stream; for many rows it is arithmetic.
//! [Tiles](tile) have as many rows and strips as there are registers for their sums.

mod panel;
mod tile;

use std::cell::RefCell;

use self::panel::{Panel, PanelKernel};
use crate::dispatch::dispatch;
use crate::element::Element;
use crate::error::Error;
use crate::isa::Isa;
use crate::simd::LANES;
use crate::threads::{for_each_with_next, num_threads};
use crate::view::{View, ViewMut};

/// The most strips in one piece of work.
const PANEL_STRIPS: usize = 4;
/// The most rows of the input in one piece of work: a run of them fits the second-level cache.
const PANEL_ROWS: usize = 128;
/// Pieces of work for each thread, where there are enough strips: the last to end is not far behind.
const PANELS_PER_THREAD: usize = 4;

/// Rows whose arithmetic takes about as long as reading the weights.
const READING_ROWS: usize = 4;

thread_local! {
    static BUFFER: RefCell<Vec<f32>> = RefCell::default();
}

/// `input` `[rows, k]` times the transpose of the weight, plus `bias` `[columns]`, into `output`
/// `[rows, columns]`.
///
/// `weight` is `[columns / 16, k * 16]`, rounded up: number `n` of `k` in a strip is the weight of
/// input `k` in output `n` of the strip. What it has for outputs that do not exist is not used.
///
/// # Errors
/// [`Error::Size`] if two shapes disagree.
pub fn linear<E: Element>(
    input: View<'_, E, 2>,
    weight: View<'_, E, 2>,
    bias: Option<View<'_, E, 1>>,
    output: &mut ViewMut<'_, E, 2>,
) -> Result<(), Error> {
    check_shapes(input, weight, bias, output.shape())?;
    let [num_rows, num_columns] = output.shape();
    if num_rows == 0 || num_columns == 0 {
        return Ok(());
    }
    let mut buffer = BUFFER.take();
    let result = multiply(wide_inputs(input, &mut buffer), weight, bias, output);
    BUFFER.set(buffer);
    result
}

/// `input` itself if it is f32, else widened into `buffer`.
fn wide_inputs<'a, E: Element>(
    input: View<'a, E, 2>,
    buffer: &'a mut Vec<f32>,
) -> View<'a, f32, 2> {
    if let Some(inputs) = E::as_f32(input) {
        return inputs;
    }
    let [num_rows, num_inputs] = input.shape();
    buffer.clear();
    buffer.resize(num_rows * num_inputs, 0.0);
    if num_inputs > 0 {
        for (row, wide) in buffer.chunks_exact_mut(num_inputs).enumerate() {
            E::copy_widened(input.run([row, 0]), wide);
        }
    }
    let inputs = View::contiguous("input", buffer, [num_rows, num_inputs]);
    inputs.expect("the buffer has just been given this size")
}

/// Computes all panels.
fn multiply<E: Element>(
    inputs: View<'_, f32, 2>,
    weight: View<'_, E, 2>,
    bias: Option<View<'_, E, 1>>,
    output: &ViewMut<'_, E, 2>,
) -> Result<(), Error> {
    let isa = Isa::chosen()?;
    let ([num_rows, num_inputs], [num_strips, _]) = (inputs.shape(), weight.shape());
    let strips_per_panel =
        (num_strips / (PANELS_PER_THREAD * num_threads()?)).clamp(1, PANEL_STRIPS);
    let panels_across = num_strips.div_ceil(strips_per_panel);
    let panels_down = num_rows.div_ceil(PANEL_ROWS);
    let height = num_rows.div_ceil(panels_down);
    let panel = |index: usize| {
        let first_row = index / panels_across * height;
        let first_strip = index % panels_across * strips_per_panel;
        Panel {
            rows: first_row..num_rows.min(first_row + height),
            strips: first_strip..num_strips.min(first_strip + strips_per_panel),
        }
    };
    let work = num_rows.max(READING_ROWS) * num_strips * LANES * num_inputs;
    for_each_with_next(panels_across * panels_down, work, |index, next| {
        let next_strip = next.map(|next| panel(next).strips.start);
        let panel = panel(index);
        dispatch(isa, PanelKernel { panel, next_strip, inputs, weight, bias, output });
    })
}

fn check_shapes<E: Element>(
    input: View<'_, E, 2>,
    weight: View<'_, E, 2>,
    bias: Option<View<'_, E, 1>>,
    [output_rows, num_columns]: [usize; 2],
) -> Result<(), Error> {
    let [num_rows, num_inputs] = input.shape();
    for (argument, dimension, got, expected) in [
        ("weight", 0, weight.shape()[0], num_columns.div_ceil(LANES)),
        ("weight", 1, weight.shape()[1], num_inputs * LANES),
        ("bias", 0, bias.map_or(num_columns, |bias| bias.shape()[0]), num_columns),
        ("output", 0, output_rows, num_rows),
    ] {
        if got != expected {
            return Err(Error::Size { argument, dimension, got, expected });
        }
    }
    Ok(())
}
