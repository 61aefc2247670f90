//! Factors laid out lane by lane, as [tiles](super::outer) read them.

use super::panel::RUN;
use crate::element::Element;
use crate::pack::transpose;
use crate::simd::{Kernel, LANES, RowPointers, Simd, Transposed};
use crate::view::View;

/// The most elements of a lane in a run.
pub(super) const STEPS: usize = RUN / LANES;
/// Lines from one lane to the next in a strip: one more than there are steps, so that lanes do not all
/// fall into one set of the first-level cache.
pub(super) const LANE_LINES: usize = STEPS + 1;
/// Lines of a strip.
pub(super) const STRIP_LINES: usize = LANES * LANE_LINES;

/// The input in f32, `[run, row, lane, step]`.
#[derive(Clone, Copy)]
pub(super) struct LaneInputs<'a> {
    numbers: &'a [f32],
    num_rows: usize,
}

impl<'a> LaneInputs<'a> {
    /// What [`PackInputs`] has written.
    pub(super) fn new(numbers: &'a [f32], num_rows: usize) -> Self {
        Self { numbers, num_rows }
    }

    /// The part of a row in the run that starts at `first`.
    #[inline(always)]
    pub(super) fn run(&self, row: usize, first: usize) -> *const f32 {
        self.numbers[(first / RUN * self.num_rows + row) * RUN..][..RUN].as_ptr()
    }
}

/// Lays out `input` in `buffer`.
pub(super) struct PackInputs<'a, E> {
    pub(super) input: View<'a, E, 2>,
    pub(super) buffer: &'a mut Vec<f32>,
}

impl<E: Element> Kernel for PackInputs<'_, E> {
    #[inline(always)]
    fn run<S: Simd>(self) {
        let [num_rows, num_inputs] = self.input.shape();
        self.buffer.resize(num_inputs.next_multiple_of(RUN) * num_rows, 0.0);
        if num_inputs == 0 {
            return;
        }
        for row in 0..num_rows {
            for (index, run) in self.input.run([row, 0]).chunks(RUN).enumerate() {
                let lanes = &mut self.buffer[(index * num_rows + row) * RUN..][..RUN];
                pack_row::<S, E>(run, lanes);
            }
        }
    }
}

/// Writes the run of a row to `lanes` `[lane, step]`.
#[inline(always)]
fn pack_row<S: Simd, E: Element>(run: &[E], lanes: &mut [f32]) {
    let whole = run.len() / LANES;
    for first in (0..whole).step_by(LANES) {
        let mut steps = [std::ptr::null(); LANES];
        for (offset, step) in steps.iter_mut().enumerate() {
            // Steps beyond the last are written and not read.
            *step = run[(first + offset).min(whole - 1) * LANES..][..LANES].as_ptr();
        }
        let to = &mut lanes[first..];
        assert!(to.len() >= (LANES - 1) * STEPS + LANES, "a run has whole blocks of steps");
        // SAFETY: the steps are whole vectors, and the last lane has room for sixteen of them.
        unsafe {
            let to = Transposed { first: to.as_mut_ptr(), stride: STEPS };
            transpose::<S, E>(&steps, LANES, to);
        }
    }
    for (lane, element) in run[whole * LANES..].iter().enumerate() {
        let number = &mut lanes[lane * STEPS + whole..][..1];
        E::copy_widened(std::slice::from_ref(element), number);
    }
}

/// A run of sixteen rows of the weight, on its way to `to` `[lane, LANE_LINES, row]`.
pub(super) struct PackStrip<E> {
    pub(super) rows: RowPointers<E>,
    pub(super) length: usize,
    /// Room for a strip.
    pub(super) to: *mut f32,
}

impl<E: Element> Kernel for PackStrip<E> {
    #[inline(always)]
    fn run<S: Simd>(self) {
        let Self { rows, length, to } = self;
        let whole = length / LANES;
        // SAFETY: rows have `length` elements; each step goes to its line of every lane.
        unsafe {
            for step in 0..whole {
                let to = Transposed { first: to.add(step * LANES), stride: LANE_LINES * LANES };
                transpose::<S, E>(&rows.map(|row| row.add(step * LANES)), LANES, to);
            }
            let to = Transposed { first: to.add(whole * LANES), stride: LANE_LINES * LANES };
            transpose::<S, E>(&rows.map(|row| row.add(whole * LANES)), length % LANES, to);
        }
    }
}
