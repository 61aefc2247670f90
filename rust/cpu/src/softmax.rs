//! Softmax over a chunk of keys, and the merge of chunks.
//!
//! A state `(m, l, O)` stands for the keys seen so far: their largest score, and the sums of
//! `e^(s - m)` and `e^(s - m) v`. Two states add up to
//!
//! ```text
//! m = max(m1, m2)    l = e^(m1 - m) l1 + e^(m2 - m) l2    O = e^(m1 - m) O1 + e^(m2 - m) O2
//! ```
//!
//! (online softmax: Milakov and Gimelshein, 2018). Each chunk starts from nothing, and chunks are
//! merged in order of position, so the result does not depend on who computed which chunk.

use std::ops::Range;

use crate::math::{exp_weight, tanh};
use crate::product::{CHUNK, MAX_ROWS};
use crate::simd::{LANES, Line, Simd};

/// Largest scores and sums of weights of a block of rows, a lane each.
#[derive(Clone, Copy)]
pub(crate) struct State {
    pub(crate) largest: Line,
    pub(crate) sum: Line,
}

impl State {
    /// No keys yet.
    pub(crate) const EMPTY: Self =
        Self { largest: Line([f32::NEG_INFINITY; LANES]), sum: Line::ZERO };
}

/// What happens to scores between the product and the softmax.
#[derive(Clone, Copy)]
pub(crate) struct Bias {
    pub(crate) softcap: Option<f32>,
    /// Factor of (key position - query position).
    pub(crate) slope: Option<f32>,
    /// Position of the chunk's first key, less the query's.
    pub(crate) first_distance: f32,
}

/// Caps and biases the scores of the panels around `keys`.
#[inline(always)]
pub(crate) fn adjust<S: Simd>(scores: &mut [f32; CHUNK], keys: &Range<usize>, bias: Bias) {
    let mut lanes = [0.0; LANES];
    for (lane, number) in lanes.iter_mut().enumerate() {
        *number = lane as f32;
    }
    for first in (keys.start / LANES * LANES..keys.end).step_by(LANES) {
        // SAFETY: a chunk is a whole number of vectors; the lanes are one.
        unsafe {
            let mut score = S::load(scores.as_ptr().add(first));
            if let Some(cap) = bias.softcap {
                let cap = S::splat(cap);
                score = S::mul(cap, tanh::<S>(S::div(score, cap)));
            }
            if let Some(slope) = bias.slope {
                // Whole numbers, exact up to 2^24.
                let distance = S::splat(bias.first_distance + first as f32);
                let distance = S::add(distance, S::load(lanes.as_ptr()));
                score = S::fma(S::splat(slope), distance, score);
            }
            S::store(score, scores.as_mut_ptr().add(first));
        }
    }
}

/// Turns the scores of the keys that each of some rows attends into weights `e^(s - m)`; returns m
/// and their sum for each row that attends one.
#[inline(always)]
pub(crate) fn weigh<S: Simd>(scores: &mut [[f32; CHUNK]], attended: &[Range<usize>]) -> State {
    let mut state = State::EMPTY;
    for (lane, keys) in attended.iter().enumerate().filter(|(_, keys)| !keys.is_empty()) {
        let around = keys.start / LANES * LANES..keys.end.next_multiple_of(LANES);
        let scores = &mut scores[lane];
        scores[around.start..keys.start].fill(f32::NEG_INFINITY);
        scores[keys.end..around.end].fill(f32::NEG_INFINITY);
        let scores = scores.as_mut_ptr();
        let mut largest = S::splat(f32::NEG_INFINITY);
        let mut sum = S::splat(0.0);
        // SAFETY: the vectors around the keys are inside the chunk.
        unsafe {
            for first in around.clone().step_by(LANES) {
                largest = S::max(S::load(scores.add(first)), largest);
            }
            let largest = S::largest(largest);
            let reference = S::splat(reference(largest));
            for first in around.step_by(LANES) {
                let weight = exp_weight::<S>(S::sub(S::load(scores.add(first)), reference));
                S::store(weight, scores.add(first));
                sum = S::add(sum, weight);
            }
            (state.largest.0[lane], state.sum.0[lane]) = (largest, S::sum(sum));
        }
    }
    state
}

/// Scores of minus infinity only: any finite reference gives them weight 0.
#[inline(always)]
fn reference(largest: f32) -> f32 {
    if largest == f32::NEG_INFINITY { 0.0 } else { largest }
}

/// A state of some of a block's rows: those with `outputs` (`length` numbers each).
pub(crate) struct Part {
    pub(crate) state: State,
    pub(crate) outputs: [Option<*const f32>; MAX_ROWS],
}

impl Part {
    /// A state without outputs yet.
    #[inline(always)]
    pub(crate) fn new(state: State) -> Self {
        Self { state, outputs: [None; MAX_ROWS] }
    }

    /// Takes up the outputs of a row, unless its state stands for no keys.
    #[inline(always)]
    pub(crate) fn add(&mut self, lane: usize, outputs: *const f32) {
        let State { largest, sum } = &self.state;
        let is_empty = largest.0[lane] == f32::NEG_INFINITY && sum.0[lane] == 0.0;
        self.outputs[lane] = (!is_empty).then_some(outputs);
    }
}

/// Adds `part` to `state` and its outputs, rows of `length` numbers, a multiple of sixteen.
///
/// # Safety
/// `outputs` and those of the part are as long as said.
#[inline(always)]
pub(crate) unsafe fn merge<S: Simd>(
    state: &mut State,
    outputs: *mut f32,
    length: usize,
    part: &Part,
) {
    let mut factors = [Line::ZERO; 2];
    // SAFETY: lines are vectors.
    unsafe {
        let [old, new] = [&state.largest, &part.state.largest].map(|line| S::load(line.0.as_ptr()));
        let [old_sum, new_sum] = [&state.sum, &part.state.sum].map(|line| S::load(line.0.as_ptr()));
        let largest = S::max(new, old);
        let lowest = S::splat(f32::NEG_INFINITY);
        let reference = S::select_less(lowest, largest, largest, S::splat(0.0));
        let old_factor = exp_weight::<S>(S::sub(old, reference));
        let new_factor = exp_weight::<S>(S::sub(new, reference));
        let sum = S::fma(old_sum, old_factor, S::mul(new_sum, new_factor));
        S::store(old_factor, factors[0].0.as_mut_ptr());
        S::store(new_factor, factors[1].0.as_mut_ptr());
        S::store(largest, state.largest.0.as_mut_ptr());
        S::store(sum, state.sum.0.as_mut_ptr());
    }
    for (row, added) in part.outputs.iter().enumerate() {
        let Some(added) = *added else { continue };
        let [old, new] = [S::splat(factors[0].0[row]), S::splat(factors[1].0[row])];
        for first in (0..length).step_by(LANES) {
            // SAFETY: both rows have `length` numbers.
            unsafe {
                let output = outputs.add(row * length + first);
                let added = S::mul(S::load(added.add(first)), new);
                S::store(S::fma(S::load(output), old, added), output);
            }
        }
    }
}
