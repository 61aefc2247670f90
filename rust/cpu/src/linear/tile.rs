//! The products of a few rows with a few strips of the weight, their sums in registers.

use std::ops::Range;

use super::PANEL_STRIPS;
use crate::element::Element;
use crate::simd::{Kernel, LANES, Simd};

/// The most rows: with one strip, their sums fill the registers of AVX2.
pub(super) const MAX_ROWS: usize = 6;
/// Steps of `k` after which the next lines are sent for.
const BLOCK: usize = 8;

/// How many of `left` strips `rows` rows are multiplied with at once. Enough sums hide the latency of a
/// multiply-add, and an input is used for as many strips.
#[inline(always)]
pub(super) const fn width(left: usize, rows: usize, max_sums: usize) -> usize {
    let mut width = PANEL_STRIPS;
    while width > 1 && (width > left || width * rows > max_sums) {
        width /= 2;
    }
    width
}

/// Some rows of the input and some strips of the weight, over a run of `k`.
pub(super) struct Tile<'a, E> {
    pub(super) inputs: [*const f32; MAX_ROWS],
    /// The run in the first strip.
    pub(super) weights: *const E,
    /// Elements from one strip to the next.
    pub(super) strip_stride: usize,
    /// Elements of the run.
    pub(super) length: usize,
    /// The first of the strips that will be used next.
    pub(super) next: *const u8,
    /// Cache lines of each of those to be sent for.
    pub(super) fetched: Range<usize>,
    /// From the first row and strip on.
    pub(super) sums: &'a mut [f32],
    /// Sums from one row to the next.
    pub(super) width: usize,
}

impl<E: Element> Tile<'_, E> {
    /// Adds the products of `rows` rows with `strips` strips.
    ///
    /// # Safety
    /// There are as many inputs and strips, each has the run, `width` has chosen the number of strips,
    /// and the CPU has the instructions of S.
    #[inline(always)]
    pub(super) unsafe fn add<S: Simd>(self, rows: usize, strips: usize) {
        // SAFETY: the caller's promise.
        unsafe {
            match rows {
                6 if S::MAX_ROWS >= 6 => self.add_rows::<S, 6>(strips),
                5 if S::MAX_ROWS >= 5 => self.add_rows::<S, 5>(strips),
                4 if S::MAX_ROWS >= 4 => self.add_rows::<S, 4>(strips),
                3 if S::MAX_ROWS >= 3 => self.add_rows::<S, 3>(strips),
                2 => self.add_rows::<S, 2>(strips),
                _ => self.add_rows::<S, 1>(strips),
            }
        }
    }

    /// # Safety
    /// As for [`add`](Self::add).
    #[inline(always)]
    unsafe fn add_rows<S: Simd, const R: usize>(self, strips: usize) {
        let most = const { width(PANEL_STRIPS, R, S::MAX_SUMS) };
        // SAFETY: the caller's promise.
        unsafe {
            match strips {
                4 if most >= 4 => S::run(TileOf::<E, R, 4>(self)),
                2 if most >= 2 => S::run(TileOf::<E, R, 2>(self)),
                _ => S::run(TileOf::<E, R, 1>(self)),
            }
        }
    }
}

/// A tile of `R` rows and `C` strips.
struct TileOf<'a, E, const R: usize, const C: usize>(Tile<'a, E>);

impl<E: Element, const R: usize, const C: usize> Kernel for TileOf<'_, E, R, C> {
    #[inline(always)]
    fn run<S: Simd>(self) {
        let Self(tile) = self;
        let mut sums = [[S::splat(0.0); C]; R];
        let mut fetched = tile.fetched;
        let lines_per_block = fetched.len().div_ceil(tile.length.div_ceil(BLOCK).max(1));
        let next_stride = tile.strip_stride * size_of::<E>();
        // SAFETY: as `Tile::add` was promised; a prefetch may name any address.
        unsafe {
            let mut k = 0;
            while k < tile.length {
                for line in fetched.by_ref().take(lines_per_block) {
                    for strip in 0..C {
                        S::prefetch(tile.next.wrapping_add(strip * next_stride + line * 64));
                    }
                }
                let end = tile.length.min(k + BLOCK);
                while k < end {
                    for strip in 0..C {
                        let weights = tile.weights.add(strip * tile.strip_stride + k * LANES);
                        let weights = E::load::<S>(weights);
                        for (sums, input) in sums.iter_mut().zip(tile.inputs) {
                            sums[strip] = S::fma(S::splat(*input.add(k)), weights, sums[strip]);
                        }
                    }
                    k += 1;
                }
            }
        }
        for (row, sums) in sums.into_iter().enumerate() {
            let to = &mut tile.sums[row * tile.width..][..C * LANES];
            for (strip, sum) in sums.into_iter().enumerate() {
                // SAFETY: the place of a vector in the slice.
                unsafe {
                    let to = to.as_mut_ptr().add(strip * LANES);
                    S::store(S::add(S::load(to), sum), to);
                }
            }
        }
    }
}
