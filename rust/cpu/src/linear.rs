//! Products with a weight matrix, as a step of a decoder runs them: for few rows above all.
//!
//! `output[i, n] = sum_k input[i, k] * weight[n, k] + bias[n]`, summed in f32 whatever the element.
//!
//! Weights stay as they are, row by row: each product is a dot product of two contiguous runs, in
//! sixteen lanes that are summed at the end of a run of [`RUN`](panel::RUN) elements. That order
//! depends on `k` alone: a row has the same bits among any number of rows, on any number of threads
//! and at every level with a fused multiply-add.
//!
//! The limit for few rows is reading the weights once: [dot products](dot) of the rows as they are.
//! The limit for many rows is arithmetic: the weight is transposed, strip by strip, and the same lanes
//! are summed by [outer products](outer). Both send for the next strip while they use the present one.

mod dot;
mod lanes;
mod outer;
mod panel;

use std::cell::RefCell;

use self::dot::{Dots, wide_inputs};
use self::lanes::{LaneInputs, PackInputs};
use self::outer::Outer;
use self::panel::{Panel, PanelKernel, Products};
use crate::dispatch::dispatch;
use crate::element::Element;
use crate::error::Error;
use crate::isa::Isa;
use crate::threads::for_each_with_next;
use crate::view::{View, ViewMut};

/// Rows of the weight, and so columns of the output, in one piece of work.
const PANEL_COLUMNS: usize = 48;
/// Rows of the input in one piece of work: a run of them fits the second-level cache.
const PANEL_ROWS: usize = 128;

/// Rows whose arithmetic takes about as long as reading the weights.
const READING_ROWS: usize = 4;

thread_local! {
    static BUFFER: RefCell<Vec<f32>> = RefCell::default();
}

/// `input` `[rows, k]` times the transpose of `weight` `[columns, k]`, plus `bias` `[columns]`, into
/// `output` `[rows, columns]`.
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
    let ([num_rows, num_inputs], [num_columns, _]) = (input.shape(), weight.shape());
    if num_rows == 0 || num_columns == 0 {
        return Ok(());
    }
    let isa = Isa::chosen()?;
    let mut buffer = BUFFER.take();
    let result = if num_rows < outer::min_rows::<E>() {
        let inputs = wide_inputs(input, &mut buffer);
        multiply(isa, &Dots { inputs, weight }, num_inputs, bias, output)
    } else {
        dispatch(isa, PackInputs { input, buffer: &mut buffer });
        let inputs = LaneInputs::new(&buffer, num_rows);
        multiply(isa, &Outer { inputs, weight }, num_inputs, bias, output)
    };
    BUFFER.set(buffer);
    result
}

/// Computes all panels.
fn multiply<E: Element>(
    isa: Isa,
    products: &impl Products,
    num_inputs: usize,
    bias: Option<View<'_, E, 1>>,
    output: &ViewMut<'_, E, 2>,
) -> Result<(), Error> {
    let [num_rows, num_columns] = output.shape();
    let panels_across = num_columns.div_ceil(PANEL_COLUMNS);
    let panels_down = num_rows.div_ceil(PANEL_ROWS);
    let height = num_rows.div_ceil(panels_down);
    let panel = |index: usize| {
        let first_row = index / panels_across * height;
        let first_column = index % panels_across * PANEL_COLUMNS;
        Panel {
            rows: first_row..num_rows.min(first_row + height),
            columns: first_column..num_columns.min(first_column + PANEL_COLUMNS),
        }
    };
    let work = num_rows.max(READING_ROWS) * num_columns * num_inputs;
    for_each_with_next(panels_across * panels_down, work, |index, next| {
        let next_column = next.map(|next| panel(next).columns.start);
        let panel = panel(index);
        dispatch(isa, PanelKernel { panel, next_column, num_inputs, products, bias, output });
    })
}

fn check_shapes<E: Element>(
    input: View<'_, E, 2>,
    weight: View<'_, E, 2>,
    bias: Option<View<'_, E, 1>>,
    output_shape: [usize; 2],
) -> Result<(), Error> {
    let ([num_rows, num_inputs], [num_columns, _]) = (input.shape(), weight.shape());
    for (argument, dimension, got, expected) in [
        ("weight", 1, weight.shape()[1], num_inputs),
        ("bias", 0, bias.map_or(num_columns, |bias| bias.shape()[0]), num_columns),
        ("output", 0, output_shape[0], num_rows),
        ("output", 1, output_shape[1], num_columns),
    ] {
        if got != expected {
            return Err(Error::Size { argument, dimension, got, expected });
        }
    }
    Ok(())
}
