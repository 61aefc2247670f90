//! Products with a weight matrix, as a step of a decoder runs them: for few rows above all.
//!
//! `output[i, n] = sum_k input[i, k] * weight[n, k] + bias[n]`, summed in f32 whatever the element.
//!
//! Weights stay as they are, row by row: each product is a dot product of two contiguous runs, in
//! sixteen lanes that are summed at the end of a run of [`RUN`](panel::RUN) elements. That order
//! depends on `k` alone: a row has the same bits among any number of rows, on any number of threads
//! and at every level with a fused multiply-add.
//!
//! The limit for few rows is reading the weights once; the next rows of the weight are therefore
//! fetched while the present ones are multiplied. The limit for many rows is arithmetic: tiles of
//! accumulators fill the registers, strips of the weight stay in the first-level cache.

mod panel;

use std::cell::RefCell;

use self::panel::{Inputs, Panel, PanelKernel};
use crate::dispatch::dispatch;
use crate::element::Element;
use crate::error::Error;
use crate::isa::Isa;
use crate::threads::for_each;
use crate::view::{View, ViewMut};

/// Rows of the weight, and so columns of the output, in one piece of work.
const PANEL_COLUMNS: usize = 48;
/// Rows of the input in one piece of work: a run of them fits the second-level cache.
const PANEL_ROWS: usize = 128;

/// Rows whose arithmetic takes about as long as reading the weights.
const READING_ROWS: usize = 4;

thread_local! {
    static WIDENED: RefCell<Vec<f32>> = RefCell::default();
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
    let mut buffer = WIDENED.take();
    let inputs = Inputs::new(input, &mut buffer);
    let output = &*output;
    let panels_across = num_columns.div_ceil(PANEL_COLUMNS);
    let num_panels = panels_across * num_rows.div_ceil(PANEL_ROWS);
    let work = num_rows.max(READING_ROWS) * num_columns * num_inputs;
    let result = for_each(num_panels, work, |index| {
        let first_row = index / panels_across * PANEL_ROWS;
        let first_column = index % panels_across * PANEL_COLUMNS;
        let panel = Panel {
            rows: first_row..num_rows.min(first_row + PANEL_ROWS),
            columns: first_column..num_columns.min(first_column + PANEL_COLUMNS),
        };
        dispatch(isa, PanelKernel { panel, inputs, weight, bias, output });
    });
    WIDENED.set(buffer);
    result
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
