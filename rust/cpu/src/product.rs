//! The two products of attention for a block of up to six rows (queries): scores, and sums of
//! weighted values.
//!
//! Each number of a result is one chain of multiply-adds in order of its index (of dimensions for a
//! score, of keys for an output), whatever the shape of the block: rows and vectors side by side
//! only fill the registers.

use std::ops::Range;

use crate::keys::Panels;
use crate::simd::{Kernel, LANES, Simd};
use crate::values::{Values, by_panel};

/// Keys whose softmax is taken together, at absolute positions `[i * CHUNK, (i + 1) * CHUNK)`.
pub(crate) const CHUNK: usize = 128;

/// Vectors from one unit of packed values to the next: one more than keys, so that the units of a key
/// do not all fall into one set of the first-level cache.
pub(crate) const UNIT: usize = CHUNK + 1;

/// The largest block: with one vector per row, its sums fill the registers of AVX2.
pub(crate) const MAX_ROWS: usize = 6;

/// The largest block that instruction set S has registers for, of at most `num_rows`.
#[inline(always)]
pub(crate) const fn block_size<S: Simd>(num_rows: usize) -> usize {
    match num_rows {
        6.. if S::MAX_ROWS >= 6 => 6,
        4.. if S::MAX_ROWS >= 4 => 4,
        2.. => 2,
        _ => 1,
    }
}

/// Vectors of sums that each of `rows` rows may have in registers: 4, 2 or 1.
pub(crate) const fn width(sums: usize, rows: usize) -> usize {
    match sums / rows {
        4.. => 4,
        2.. => 2,
        _ => 1,
    }
}

/// Scores of some rows over panels of sixteen keys.
#[derive(Clone)]
pub(crate) struct Scores<K> {
    /// `[dim, rows]` numbers.
    pub(crate) query: *const f32,
    pub(crate) keys: K,
    pub(crate) dim: usize,
    pub(crate) panels: Range<usize>,
    /// `[rows, CHUNK]`, of which those of the panels are written.
    pub(crate) results: *mut f32,
}

impl<K: Panels> Scores<K> {
    /// Computes the scores of a block of `rows` rows (see [`block_size`]).
    ///
    /// # Safety
    /// `keys` has the panels, pointers are as described, and the CPU has the instructions of S.
    #[inline(always)]
    pub(crate) unsafe fn compute<S: Simd>(self, rows: usize) {
        // SAFETY: the caller's promise.
        unsafe {
            match rows {
                6 if S::MAX_ROWS >= 6 => S::run(ScoresOf::<K, 6>(self)),
                4 if S::MAX_ROWS >= 4 => S::run(ScoresOf::<K, 4>(self)),
                2 => S::run(ScoresOf::<K, 2>(self)),
                _ => S::run(ScoresOf::<K, 1>(self)),
            }
        }
    }
}

struct ScoresOf<K, const R: usize>(Scores<K>);

impl<K: Panels, const R: usize> Kernel for ScoresOf<K, R> {
    #[inline(always)]
    fn run<S: Simd>(self) {
        let Self(mut scores) = self;
        let width = const { width(S::MAX_SUMS, R) };
        // SAFETY: as `Scores::compute` was promised.
        unsafe {
            if width == 4 && K::MAX_PANELS >= 4 {
                wide_scores::<S, K, R, 4>(&mut scores);
            } else if width >= 2 {
                wide_scores::<S, K, R, 2>(&mut scores);
            }
            wide_scores::<S, K, R, 1>(&mut scores);
        }
    }
}

/// Scores of `R` rows, `P` panels at a time while there are as many, which leaves the others.
///
/// # Safety
/// As for [`Scores::compute`].
#[inline(always)]
unsafe fn wide_scores<S: Simd, K: Panels, const R: usize, const P: usize>(scores: &mut Scores<K>) {
    let Scores { query, keys, dim, ref mut panels, results } = *scores;
    while panels.start + P <= panels.end {
        let mut sums = [[S::splat(0.0); P]; R];
        // SAFETY: dimensions, panels and rows stay below the counts that the caller vouches for.
        unsafe {
            let mut places = [keys.panel(panels.start); P];
            for (offset, place) in places.iter_mut().enumerate() {
                *place = keys.panel(panels.start + offset);
            }
            for pair in 0..dim / 2 {
                for place in places {
                    K::send_for::<S>(place, 2 * pair);
                }
                multiply::<S, K, R, P>(&mut sums, query, places, 2 * pair);
                multiply::<S, K, R, P>(&mut sums, query, places, 2 * pair + 1);
            }
            if !dim.is_multiple_of(2) {
                multiply::<S, K, R, P>(&mut sums, query, places, dim - 1);
            }
            for (row, sums) in sums.iter().enumerate() {
                for (offset, sum) in sums.iter().enumerate() {
                    S::store(*sum, results.add(row * CHUNK + (panels.start + offset) * LANES));
                }
            }
        }
        panels.start += P;
    }
}

/// Adds the products of number `index` of `R` rows and of the keys of `P` panels.
///
/// # Safety
/// As for [`Scores::compute`].
#[inline(always)]
unsafe fn multiply<S: Simd, K: Panels, const R: usize, const P: usize>(
    sums: &mut [[S::V; P]; R],
    query: *const f32,
    panels: [K::Panel; P],
    index: usize,
) {
    let mut key = [S::splat(0.0); P];
    // SAFETY: the caller's promise.
    unsafe {
        for (key, panel) in key.iter_mut().zip(panels) {
            *key = K::vector::<S>(panel, index);
        }
        for (row, sums) in sums.iter_mut().enumerate() {
            let query = S::splat(*query.add(index * R + row));
            for (sum, key) in sums.iter_mut().zip(key) {
                *sum = S::fma(query, key, *sum);
            }
        }
    }
}

/// Sums of weighted values of some rows, to which keys are added.
#[derive(Clone)]
pub(crate) struct Sums<T> {
    /// `[rows, CHUNK]`
    pub(crate) weights: *const f32,
    pub(crate) values: T,
    pub(crate) keys: Range<usize>,
    /// Vectors of sixteen columns.
    pub(crate) num_units: usize,
    /// `[rows, row_length]`
    pub(crate) outputs: *mut f32,
    /// At least the columns of the units.
    pub(crate) row_length: usize,
}

impl<T: Values> Sums<T> {
    /// Adds `weight * value` of the keys, one after the other, to `rows` rows (see [`block_size`]).
    ///
    /// # Safety
    /// `values` has the keys and units, pointers are as described, and the CPU has the instructions
    /// of S.
    #[inline(always)]
    pub(crate) unsafe fn add<S: Simd>(self, rows: usize) {
        // SAFETY: the caller's promise.
        unsafe {
            match rows {
                6 if S::MAX_ROWS >= 6 => S::run(SumsOf::<T, 6>(self)),
                4 if S::MAX_ROWS >= 4 => S::run(SumsOf::<T, 4>(self)),
                2 => S::run(SumsOf::<T, 2>(self)),
                _ => S::run(SumsOf::<T, 1>(self)),
            }
        }
    }
}

struct SumsOf<T, const R: usize>(Sums<T>);

impl<T: Values, const R: usize> Kernel for SumsOf<T, R> {
    #[inline(always)]
    fn run<S: Simd>(self) {
        let Self(Sums { weights, values, keys, num_units, outputs, row_length }) = self;
        let width = const { width(S::MAX_SUMS, R) };
        let mut unit = 0;
        // SAFETY: as `Sums::add` was promised.
        unsafe {
            if width == 4 {
                let units = unit..num_units;
                unit = add_wide::<S, T, R, 4>(weights, values, &keys, units, outputs, row_length);
            } else if width == 2 {
                let units = unit..num_units;
                unit = add_wide::<S, T, R, 2>(weights, values, &keys, units, outputs, row_length);
            }
            let units = unit..num_units;
            add_wide::<S, T, R, 1>(weights, values, &keys, units, outputs, row_length);
        }
    }
}

/// Adds to `R` rows, `U` units at a time while there are as many; returns the first unit left
/// over.
///
/// # Safety
/// As for [`Sums::add`].
#[inline(always)]
unsafe fn add_wide<S: Simd, T: Values, const R: usize, const U: usize>(
    weights: *const f32,
    values: T,
    keys: &Range<usize>,
    units: Range<usize>,
    outputs: *mut f32,
    row_length: usize,
) -> usize {
    let mut unit = units.start;
    while unit + U <= units.end {
        let mut sums = [[S::splat(0.0); U]; R];
        // SAFETY: keys, units and rows stay below the counts that the caller vouches for.
        unsafe {
            for (row, sums) in sums.iter_mut().enumerate() {
                for (offset, sum) in sums.iter_mut().enumerate() {
                    *sum = S::load(outputs.add(row * row_length + (unit + offset) * LANES));
                }
            }
            for (panel, lanes) in by_panel(keys) {
                let place = values.panel(panel);
                for lane in lanes {
                    T::send_for::<S>(place, lane, unit, U);
                    let mut value = [S::splat(0.0); U];
                    for (offset, value) in value.iter_mut().enumerate() {
                        *value = T::vector::<S>(place, lane, unit + offset);
                    }
                    for (row, sums) in sums.iter_mut().enumerate() {
                        let weight = row * CHUNK + panel * LANES + lane;
                        let weight = S::splat(*weights.add(weight));
                        for (sum, value) in sums.iter_mut().zip(value) {
                            *sum = S::fma(weight, value, *sum);
                        }
                    }
                }
            }
            for (row, sums) in sums.iter().enumerate() {
                for (offset, sum) in sums.iter().enumerate() {
                    S::store(*sum, outputs.add(row * row_length + (unit + offset) * LANES));
                }
            }
        }
        unit += U;
    }
    unit
}
