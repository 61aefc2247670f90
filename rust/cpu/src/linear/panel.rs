//! One panel of a product: sums over runs of `k`, then bias and rounding.

use std::cell::RefCell;
use std::ops::Range;

use super::PANEL_STRIPS;
use super::tile::{MAX_ROWS, Tile, width};
use crate::element::Element;
use crate::simd::{Kernel, LANES, Simd};
use crate::view::{View, ViewMut};

/// Elements of a chain that are summed before the next ones begin: a strip of them fits the
/// first-level cache.
pub(super) const RUN: usize = 512;
/// Bytes of a cache line.
const LINE: usize = 64;

thread_local! {
    static SUMS: RefCell<Vec<f32>> = RefCell::default();
}

/// A part of the output: rows, and columns in strips.
#[derive(Clone)]
pub(super) struct Panel {
    pub(super) rows: Range<usize>,
    pub(super) strips: Range<usize>,
}

impl Panel {
    /// Sums from one row to the next.
    #[inline(always)]
    fn width(&self) -> usize {
        self.strips.len() * LANES
    }
}

/// A panel and all it reads and writes.
pub(super) struct PanelKernel<'a, E> {
    pub(super) panel: Panel,
    /// First strip of the panel that this thread will do next.
    pub(super) next_strip: Option<usize>,
    pub(super) inputs: View<'a, f32, 2>,
    pub(super) weight: View<'a, E, 2>,
    pub(super) bias: Option<View<'a, E, 1>>,
    /// The panel's part is written, by nobody else meanwhile.
    pub(super) output: &'a ViewMut<'a, E, 2>,
}

impl<E: Element> Kernel for PanelKernel<'_, E> {
    #[inline(always)]
    fn run<S: Simd>(self) {
        let mut sums = SUMS.take();
        sums.clear();
        sums.resize(self.panel.rows.len() * self.panel.width(), 0.0);
        let num_inputs = self.inputs.shape()[1];
        for start in (0..num_inputs).step_by(RUN) {
            self.add_run::<S>(start..num_inputs.min(start + RUN), &mut sums);
        }
        self.store(&mut sums);
        SUMS.set(sums);
    }
}

impl<E: Element> PanelKernel<'_, E> {
    /// Adds the products over a run of `k` to `sums` `[rows, width]`.
    #[inline(always)]
    fn add_run<S: Simd>(&self, run: Range<usize>, sums: &mut [f32]) {
        let Panel { rows, strips } = &self.panel;
        let most = MAX_ROWS.min(S::MAX_ROWS);
        let highest = rows.len().div_ceil(rows.len().div_ceil(most));
        let mut strip = strips.start;
        while strip < strips.end {
            let count = width(strips.end - strip, highest, S::MAX_SUMS);
            let after = strip + count;
            let next = if after < strips.end { Some((after, run.start)) } else { self.after(&run) };
            let mut row = rows.start;
            while row < rows.end {
                let left = rows.end - row;
                // Of about the same height: a low tile waits for its own sums.
                let height = left.div_ceil(left.div_ceil(most));
                let tile = self.tile(row..row + height, strip, &run, next, sums);
                // SAFETY: the tile is made of parts of views and of sums.
                unsafe { tile.add::<S>(height, count) };
                row += height;
            }
            strip = after;
        }
    }

    /// Strip and start of the run that come after the last strip of this run.
    #[inline(always)]
    fn after(&self, run: &Range<usize>) -> Option<(usize, usize)> {
        if run.end < self.inputs.shape()[1] {
            return Some((self.panel.strips.start, run.end));
        }
        self.next_strip.map(|strip| (strip, 0))
    }

    /// The products of some rows with strips from `strip` on. It sends for its share of the `next`
    /// ones.
    #[inline(always)]
    fn tile<'a>(
        &self,
        rows: Range<usize>,
        strip: usize,
        run: &Range<usize>,
        next: Option<(usize, usize)>,
        sums: &'a mut [f32],
    ) -> Tile<'a, E> {
        let panel = &self.panel;
        let mut inputs = [std::ptr::null(); MAX_ROWS];
        for (row, input) in rows.clone().zip(&mut inputs) {
            *input = self.inputs.run([row, 0])[run.clone()].as_ptr();
        }
        let place = |(strip, k): (usize, usize)| self.weight.run([strip, k * LANES]);
        let weights = &place((strip, run.start))[..run.len() * LANES];
        let lines = size_of_val(weights).div_ceil(LINE);
        let part = |row: usize| (row - panel.rows.start) * lines / panel.rows.len();
        let first = (rows.start - panel.rows.start) * panel.width();
        let first = first + (strip - panel.strips.start) * LANES;
        assert!(first + (rows.len() - 1) * panel.width() + LANES <= sums.len(), "sums of all rows");
        Tile {
            inputs,
            weights: weights.as_ptr(),
            strip_stride: self.weight.strides()[0],
            length: run.len(),
            next: next.map_or(std::ptr::null(), |next| place(next).as_ptr().cast()),
            fetched: if next.is_some() { part(rows.start)..part(rows.end) } else { 0..0 },
            sums: &mut sums[first..],
            width: panel.width(),
        }
    }

    /// Writes the panel: sums plus bias, rounded once.
    #[inline(always)]
    fn store(&self, sums: &mut [f32]) {
        let first = self.panel.strips.start * LANES;
        let count = self.panel.width().min(self.output.shape()[1] - first);
        let mut bias = [0.0; PANEL_STRIPS * LANES];
        let bias = &mut bias[..count];
        if let Some(numbers) = self.bias {
            E::copy_widened(&numbers.as_slice()[first..first + count], bias);
        }
        let rows = self.panel.rows.clone();
        for (row, sums) in rows.zip(sums.chunks_exact_mut(self.panel.width())) {
            let sums = &mut sums[..count];
            if self.bias.is_some() {
                for (sum, bias) in sums.iter_mut().zip(&*bias) {
                    *sum += bias;
                }
            }
            // SAFETY: each panel is handed out once, and panels are disjoint.
            let output = unsafe { self.output.part_shared([row, first], count) };
            E::narrow(sums, output);
        }
    }
}
