//! One number from a row of logits, in an order that the row alone fixes.

use crate::math::{exp_weight, ln};
use crate::simd::{LANES, Line, Simd};

/// Numbers whose sum is kept in f32 lanes; such sums are added up in f64.
const RUN: usize = 64 * LANES;

/// The logarithm of a row's sum of powers, in two parts: `ln(sum of e^x) = largest + ln_sum`.
#[derive(Clone, Copy)]
pub(crate) struct LogSum {
    /// The largest logit; NaN are passed over.
    pub(crate) largest: f32,
    /// `ln(sum of e^(x - largest))`: NaN if a logit is NaN or plus infinity, or if none is finite.
    pub(crate) ln_sum: f64,
}

impl LogSum {
    /// That of `logits`.
    #[inline(always)]
    pub(crate) fn new<S: Simd>(logits: &[f32]) -> Self {
        let largest = largest::<S>(logits);
        let sum = sum_of_powers::<S>(logits, largest);
        // Minus infinity minus itself is NaN, as is everything that has no sum.
        Self { largest, ln_sum: if sum.is_nan() { f64::NAN } else { ln(sum) } }
    }

    /// The log-probability of a logit of the row.
    #[inline(always)]
    pub(crate) fn logprob(self, logit: f32) -> f32 {
        (f64::from(logit) - f64::from(self.largest) - self.ln_sum) as f32
    }
}

/// Sixteen logits from `first` on, minus infinity after the end.
#[inline(always)]
pub(crate) fn vector_at<S: Simd>(logits: &[f32], first: usize) -> S::V {
    if first + LANES <= logits.len() {
        // SAFETY: there are sixteen.
        return unsafe { S::load(logits.as_ptr().add(first)) };
    }
    let mut line = Line([f32::NEG_INFINITY; LANES]);
    line.0[..logits.len() - first].copy_from_slice(&logits[first..]);
    // SAFETY: a line is a vector.
    unsafe { S::load(line.0.as_ptr()) }
}

/// The largest logit; NaN are passed over.
#[inline(always)]
pub(crate) fn largest<S: Simd>(logits: &[f32]) -> f32 {
    let mut largest = S::splat(f32::NEG_INFINITY);
    for first in (0..logits.len()).step_by(LANES) {
        largest = S::max(vector_at::<S>(logits, first), largest);
    }
    S::largest(largest)
}

/// Whether a logit is NaN.
#[inline(always)]
pub(crate) fn has_nan<S: Simd>(logits: &[f32]) -> bool {
    let (zero, infinity) = (S::splat(0.0), S::splat(f32::INFINITY));
    let mut is_odd = zero;
    for first in (0..logits.len()).step_by(LANES) {
        let odd = S::select_less(vector_at::<S>(logits, first), infinity, zero, infinity);
        is_odd = S::max(odd, is_odd);
    }
    // Odd are NaN and plus infinity, which no comparison of vectors tells apart.
    S::largest(is_odd) > 0.0 && logits.iter().any(|logit| logit.is_nan())
}

/// The sum of `e^(x - largest)`.
#[inline(always)]
fn sum_of_powers<S: Simd>(logits: &[f32], largest: f32) -> f64 {
    let reference = S::splat(largest);
    let mut sum = 0.0;
    for run in (0..logits.len()).step_by(RUN) {
        let mut lanes = S::splat(0.0);
        for first in (run..logits.len().min(run + RUN)).step_by(LANES) {
            let distance = S::sub(vector_at::<S>(logits, first), reference);
            lanes = S::add(lanes, exp_weight::<S>(distance));
        }
        sum += f64::from(S::sum(lanes));
    }
    sum
}

/// Writes `e^(x - largest)` of every logit at or above `threshold`, 0 for the others; returns the
/// sum.
#[inline(always)]
pub(crate) fn weights<S: Simd>(
    logits: &[f32],
    largest: f32,
    threshold: f32,
    weights: &mut Vec<f32>,
) -> f64 {
    let padded = logits.len().next_multiple_of(LANES);
    weights.resize(padded, 0.0);
    let (reference, threshold, zero) = (S::splat(largest), S::splat(threshold), S::splat(0.0));
    let mut sum = 0.0;
    for run in (0..logits.len()).step_by(RUN) {
        let mut lanes = zero;
        for first in (run..logits.len().min(run + RUN)).step_by(LANES) {
            let vector = vector_at::<S>(logits, first);
            let weight = exp_weight::<S>(S::sub(vector, reference));
            let weight = S::select_less(vector, threshold, zero, weight);
            // SAFETY: the weights are padded to whole vectors.
            unsafe { S::store(weight, weights.as_mut_ptr().add(first)) };
            lanes = S::add(lanes, weight);
        }
        sum += f64::from(S::sum(lanes));
    }
    sum
}

/// How many logits are above `threshold`.
#[inline(always)]
pub(crate) fn num_above<S: Simd>(logits: &[f32], threshold: f32) -> usize {
    let (threshold, zero, one) = (S::splat(threshold), S::splat(0.0), S::splat(1.0));
    let mut count = 0;
    for run in (0..logits.len()).step_by(RUN) {
        let mut lanes = zero;
        for first in (run..logits.len().min(run + RUN)).step_by(LANES) {
            let vector = vector_at::<S>(logits, first);
            lanes = S::add(lanes, S::select_less(threshold, vector, one, zero));
        }
        count += S::sum(lanes) as usize;
    }
    count
}

/// The first place of a number equal to `wanted`.
#[inline(always)]
pub(crate) fn first_equal<S: Simd>(logits: &[f32], wanted: f32) -> Option<usize> {
    for first in (0..logits.len()).step_by(LANES) {
        if S::largest(vector_at::<S>(logits, first)) >= wanted {
            let end = logits.len().min(first + LANES);
            if let Some(lane) = logits[first..end].iter().position(|logit| *logit >= wanted) {
                return Some(first + lane);
            }
        }
    }
    None
}
