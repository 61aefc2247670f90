//! Products of many rows: sixteen rows of the weight are transposed once for all of them.
//!
//! Each lane of a [dot product](super::dot) becomes a chain of multiply-adds over every sixteenth
//! element, for up to six rows by sixteen outputs at a time, and the chains are summed in the order of
//! [`Simd::sum`]: the bits are those of the dot product.
//!
//! Both factors are [laid out](super::lanes) so that a chain reads them as streams. While a strip of
//! the weight is multiplied, the next one is sent for, a few lines per chain.

use std::cell::RefCell;
use std::ops::Range;

use super::lanes::{LANE_LINES, LaneInputs, PackStrip, STEPS, STRIP_LINES};
use super::panel::{PanelRun, Products};
use crate::element::Element;
use crate::simd::{Kernel, LANES, Line, Simd};
use crate::view::View;

/// Rows of a tile: with one vector per row, its sums fill the registers of AVX2.
const MAX_ROWS: usize = 6;
/// Lanes in the order in which their chains are summed: each with the one eight lanes off, then pairs
/// four lanes off, and so on.
const LANE_ORDER: [usize; LANES] = [0, 8, 4, 12, 2, 10, 6, 14, 1, 9, 5, 13, 3, 11, 7, 15];
/// Sums that can wait for their neighbours: of one chain, of two, four and eight.
const LEVELS: usize = LANES.ilog2() as usize;

thread_local! {
    static STRIP: RefCell<Vec<Line>> = RefCell::default();
}

/// Rows of the input from which transposing the weight costs less than it saves. Narrow elements are
/// widened on the way, once for all rows.
pub(super) const fn min_rows<E>() -> usize {
    if size_of::<E>() < size_of::<f32>() { 7 } else { 14 }
}

/// The products of an input with a weight.
pub(super) struct Outer<'a, E> {
    pub(super) inputs: LaneInputs<'a>,
    pub(super) weight: View<'a, E, 2>,
}

impl<E: Element> Products for Outer<'_, E> {
    #[inline(always)]
    fn add_run<S: Simd>(&self, run: &PanelRun<'_>, sums: &mut [f32]) {
        let mut lines = STRIP.take();
        lines.resize(STRIP_LINES, Line::ZERO);
        let to = lines.as_mut_ptr().cast::<f32>();
        let columns = &run.panel.columns;
        for first in columns.clone().step_by(LANES) {
            let strip = first..columns.end.min(first + LANES);
            let mut rows = [std::ptr::null(); LANES];
            for (lane, row) in rows.iter_mut().enumerate() {
                // The last strip may repeat a row of the weight: those products are not used.
                let column = (first + lane).min(strip.end - 1);
                *row = self.weight.run([column, 0])[run.run.clone()].as_ptr();
            }
            // SAFETY: the rows have the run, and there is room for a strip.
            unsafe { S::run(PackStrip { rows, length: run.run.len(), to }) };
            let distance = run.distance_to_next(&strip, self.weight.strides()[0]).unwrap_or(0);
            let next = rows.map(|row| row.wrapping_offset(distance).cast());
            let strip = Strip { lanes: to, next, line: LANES * size_of::<E>() };
            self.add_strip::<S>(run, &strip, &mut sums[first - columns.start..]);
        }
        STRIP.set(lines);
    }
}

/// Sixteen rows of the weight.
struct Strip {
    /// `[lane, LANE_LINES, row]`
    lanes: *const f32,
    /// Where the rows of the next strip are, or those of this one if there is none.
    next: [*const u8; LANES],
    /// Bytes of a vector in storage.
    line: usize,
}

impl<E: Element> Outer<'_, E> {
    /// Adds the products of all rows with a strip.
    #[inline(always)]
    fn add_strip<S: Simd>(&self, run: &PanelRun<'_>, strip: &Strip, sums: &mut [f32]) {
        let PanelRun { panel, run, .. } = run;
        let (rows, width) = (&panel.rows, panel.width());
        let num_lines = run.len().div_ceil(LANES);
        let mut row = 0;
        while row < rows.len() {
            let left = rows.len() - row;
            let most = MAX_ROWS.min(S::MAX_ROWS);
            // Of about the same height: a low tile waits for its own sums.
            let height = left.div_ceil(left.div_ceil(most));
            let mut inputs = [std::ptr::null(); MAX_ROWS];
            for (offset, input) in inputs[..height].iter_mut().enumerate() {
                *input = self.inputs.run(rows.start + row + offset, run.start);
            }
            let fetched = row * num_lines / rows.len()..(row + height) * num_lines / rows.len();
            let sums = &mut sums[row * width..];
            assert!(sums.len() >= (height - 1) * width + LANES, "a row has whole vectors of sums");
            let tile =
                Tile { inputs, strip, length: run.len(), fetched, sums: sums.as_mut_ptr(), width };
            // SAFETY: the inputs and the strip have the run; there are sums for each row.
            unsafe { tile.add::<S>(height) };
            row += height;
        }
    }
}

/// Some rows of the input and a strip of the weight.
struct Tile<'a> {
    /// `[lane, step]` each.
    inputs: [*const f32; MAX_ROWS],
    strip: &'a Strip,
    /// Elements of the run.
    length: usize,
    /// Lines of each row of the next strip to be sent for.
    fetched: Range<usize>,
    /// Of the first row.
    sums: *mut f32,
    /// Sums from one row to the next.
    width: usize,
}

impl Tile<'_> {
    /// Adds the products of the first `height` rows.
    ///
    /// # Safety
    /// Pointers are as described, and the CPU has the instructions of S.
    #[inline(always)]
    unsafe fn add<S: Simd>(self, height: usize) {
        // SAFETY: the caller's promise.
        unsafe {
            match height {
                6 if S::MAX_ROWS >= 6 => S::run(TileOf::<6>(self)),
                5 if S::MAX_ROWS >= 5 => S::run(TileOf::<5>(self)),
                4 if S::MAX_ROWS >= 4 => S::run(TileOf::<4>(self)),
                3 if S::MAX_ROWS >= 3 => S::run(TileOf::<3>(self)),
                2 => S::run(TileOf::<2>(self)),
                _ => S::run(TileOf::<1>(self)),
            }
        }
    }

    /// The sums of a lane.
    ///
    /// # Safety
    /// As for [`add`](Self::add).
    #[inline(always)]
    unsafe fn chains<S: Simd, const R: usize>(&self, lane: usize) -> [S::V; R] {
        let num_steps = (self.length + LANES - 1 - lane) / LANES;
        let mut sums = [S::splat(0.0); R];
        // SAFETY: the caller's promise; a prefetch may name any address.
        unsafe {
            let weights = self.strip.lanes.add(lane * LANE_LINES * LANES);
            let mut inputs = [std::ptr::null(); R];
            for (start, input) in inputs.iter_mut().zip(self.inputs) {
                *start = input.add(lane * STEPS);
            }
            for line in self.fetched.clone() {
                S::prefetch(self.strip.next[lane].wrapping_add(line * self.strip.line));
            }
            for step in 0..num_steps {
                let weights = S::load(weights.add(step * LANES));
                for row in 0..R {
                    let input = S::splat(*inputs[row].add(step));
                    sums[row] = S::fma(input, weights, sums[row]);
                }
            }
        }
        sums
    }
}

struct TileOf<'a, const R: usize>(Tile<'a>);

impl<const R: usize> Kernel for TileOf<'_, R> {
    #[inline(always)]
    fn run<S: Simd>(self) {
        let Self(tile) = self;
        let mut waiting = [[S::splat(0.0); R]; LEVELS];
        let mut sums = [S::splat(0.0); R];
        for (index, lane) in LANE_ORDER.into_iter().enumerate() {
            // SAFETY: as `Tile::add` was promised.
            sums = unsafe { tile.chains::<S, R>(lane) };
            let num_summed = index.trailing_ones() as usize;
            for waiting in &waiting[..num_summed] {
                for row in 0..R {
                    sums[row] = S::add(waiting[row], sums[row]);
                }
            }
            if num_summed < LEVELS {
                waiting[num_summed] = sums;
            }
        }
        for (row, sum) in sums.into_iter().enumerate() {
            // SAFETY: as above.
            unsafe {
                let to = tile.sums.add(row * tile.width);
                S::store(S::add(S::load(to), sum), to);
            }
        }
    }
}
