//! Products of few rows: dot products of two contiguous runs, in sixteen lanes that are summed at the
//! end of a run. While a strip of the weight is multiplied, the next one is sent for.

use std::ops::Range;

use super::panel::{Panel, PanelRun, Products};
use crate::element::Element;
use crate::simd::{LANES, Simd};
use crate::view::View;

/// Rows of the weight in a tile of accumulators: with four rows, twelve of sixteen registers.
const TILE_COLUMNS: usize = 3;
/// Rows of the weight that are used by all rows of the input before the next ones: a run of them
/// and of a tile's inputs fits the first-level cache.
const STRIP_COLUMNS: usize = 12;
const CACHE_LINE: usize = 64;

/// `input` itself if it is f32, else widened into `buffer`.
pub(super) fn wide_inputs<'a, E: Element>(
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

/// The products of an input with a weight.
pub(super) struct Dots<'a, E> {
    pub(super) inputs: View<'a, f32, 2>,
    pub(super) weight: View<'a, E, 2>,
}

impl<E: Element> Products for Dots<'_, E> {
    #[inline(always)]
    fn add_run<S: Simd>(&self, run: &PanelRun<'_>, sums: &mut [f32]) {
        let Panel { rows, columns } = run.panel;
        for strip in columns.clone().step_by(STRIP_COLUMNS) {
            let strip = strip..columns.end.min(strip + STRIP_COLUMNS);
            let mut fetch = run.distance_to_next(&strip, self.weight.strides()[0]);
            let mut row = rows.start;
            while row < rows.end {
                let count = rows.end - row;
                let tiles = Tiles { run, strip: &strip, fetch: fetch.take() };
                if count >= 4 && S::MAX_SUMS >= 4 * TILE_COLUMNS {
                    self.add_tiles::<S, 4>(row, tiles, sums);
                    row += 4;
                } else if count >= 2 && S::MAX_SUMS >= 2 * TILE_COLUMNS {
                    self.add_tiles::<S, 2>(row, tiles, sums);
                    row += 2;
                } else {
                    self.add_tiles::<S, 1>(row, tiles, sums);
                    row += 1;
                }
            }
        }
    }
}

/// Some rows' tiles along a strip.
#[derive(Clone, Copy)]
struct Tiles<'a> {
    run: &'a PanelRun<'a>,
    strip: &'a Range<usize>,
    /// Elements to the next strip, where it is to be sent for.
    fetch: Option<isize>,
}

impl<E: Element> Dots<'_, E> {
    /// The tiles of `ROWS` rows along a strip.
    #[inline(always)]
    fn add_tiles<S: Simd, const ROWS: usize>(
        &self,
        first_row: usize,
        tiles: Tiles<'_>,
        sums: &mut [f32],
    ) {
        let Tiles { run: PanelRun { panel, run, .. }, strip, fetch } = tiles;
        let mut inputs: [&[f32]; ROWS] = [&[]; ROWS];
        for (row, input) in inputs.iter_mut().enumerate() {
            *input = &self.inputs.run([first_row + row, 0])[run.clone()];
        }
        let width = panel.width();
        let sums = &mut sums[(first_row - panel.rows.start) * width..];
        for column in strip.clone().step_by(TILE_COLUMNS) {
            let count = (strip.end - column).min(TILE_COLUMNS);
            let mut weights: [&[E]; TILE_COLUMNS] = [&[]; TILE_COLUMNS];
            for (place, weight) in weights.iter_mut().enumerate() {
                // A strip's last tile may repeat a row of the weight: those products are dropped.
                *weight = &self.weight.run([column + place.min(count - 1), 0])[run.clone()];
            }
            let products = tile::<S, E, ROWS>(inputs, weights, fetch);
            let place = column - panel.columns.start;
            for (sums, products) in sums.chunks_exact_mut(width).zip(&products) {
                for (sum, product) in sums[place..place + count].iter_mut().zip(products) {
                    *sum += product;
                }
            }
        }
    }
}

/// The dot products of `ROWS` runs of the input with [`TILE_COLUMNS`] runs of the weight.
///
/// `fetch`, where given, is the distance in elements to as many later runs, fetched on the way.
#[inline(always)]
fn tile<S: Simd, E: Element, const ROWS: usize>(
    inputs: [&[f32]; ROWS],
    weights: [&[E]; TILE_COLUMNS],
    fetch: Option<isize>,
) -> [[f32; TILE_COLUMNS]; ROWS] {
    let length = weights[0].len();
    let whole = length - length % LANES;
    let mut sums = [[S::splat(0.0); TILE_COLUMNS]; ROWS];
    let mut input_starts = [std::ptr::null(); ROWS];
    for row in 0..ROWS {
        input_starts[row] = inputs[row].as_ptr();
    }
    let weight_starts = [weights[0].as_ptr(), weights[1].as_ptr(), weights[2].as_ptr()];
    let mut k = 0;
    // SAFETY: every run has `length` elements; both loops stay below, whole vectors at a time.
    unsafe {
        if let Some(distance) = fetch {
            let per_line = (CACHE_LINE / size_of::<E>()).max(LANES);
            while k + per_line <= length {
                for start in weight_starts {
                    S::prefetch(start.wrapping_add(k).wrapping_offset(distance).cast());
                }
                let end = k + per_line;
                while k < end {
                    step::<S, E, ROWS>(input_starts, weight_starts, k, &mut sums);
                    k += LANES;
                }
            }
        }
        while k < whole {
            step::<S, E, ROWS>(input_starts, weight_starts, k, &mut sums);
            k += LANES;
        }
    }
    if whole < length {
        add_tail::<S, E, ROWS>(inputs, weights, whole, &mut sums);
    }
    let mut products = [[0.0; TILE_COLUMNS]; ROWS];
    for row in 0..ROWS {
        for column in 0..TILE_COLUMNS {
            products[row][column] = S::sum(sums[row][column]);
        }
    }
    products
}

/// Adds the products of one vector of each run.
///
/// # Safety
/// `LANES` elements are readable at `k` of every run.
#[inline(always)]
unsafe fn step<S: Simd, E: Element, const ROWS: usize>(
    inputs: [*const f32; ROWS],
    weights: [*const E; TILE_COLUMNS],
    k: usize,
    sums: &mut [[S::V; TILE_COLUMNS]; ROWS],
) {
    // Loops, not `map`: a closure would not be compiled for the wider vectors.
    let mut vectors = [S::splat(0.0); TILE_COLUMNS];
    for column in 0..TILE_COLUMNS {
        // SAFETY: as promised by the caller.
        vectors[column] = unsafe { E::load::<S>(weights[column].add(k)) };
    }
    for row in 0..ROWS {
        // SAFETY: as promised by the caller.
        let input = unsafe { S::load(inputs[row].add(k)) };
        for column in 0..TILE_COLUMNS {
            sums[row][column] = S::fma(input, vectors[column], sums[row][column]);
        }
    }
}

/// Adds the elements from `whole` on, the lanes beyond them zero.
#[inline(always)]
fn add_tail<S: Simd, E: Element, const ROWS: usize>(
    inputs: [&[f32]; ROWS],
    weights: [&[E]; TILE_COLUMNS],
    whole: usize,
    sums: &mut [[S::V; TILE_COLUMNS]; ROWS],
) {
    let mut tails = [[0.0; LANES]; TILE_COLUMNS];
    for (tail, weight) in tails.iter_mut().zip(weights) {
        E::copy_widened(&weight[whole..], &mut tail[..weight.len() - whole]);
    }
    for (sums, input) in sums.iter_mut().zip(inputs) {
        let mut numbers = [0.0; LANES];
        numbers[..input.len() - whole].copy_from_slice(&input[whole..]);
        for (sum, tail) in sums.iter_mut().zip(&tails) {
            // SAFETY: no vector has more lanes than the buffers.
            *sum = unsafe { S::fma(S::load(numbers.as_ptr()), S::load(tail.as_ptr()), *sum) };
        }
    }
}
