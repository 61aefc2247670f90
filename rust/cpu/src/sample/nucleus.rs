//! The nucleus of a row: its most likely tokens up to the first whose running sum reaches a share
//! of the whole (Holtzman et al., 2020, arXiv 1904.09751), by selection.
//!
//! Weights are told apart by their leading bits, sixteen bins to a power of two. The masses of the
//! bins, added up from the top, say in which one the sum is reached; only that one is sorted.

use crate::sample::best::{Candidate, best_first};
use crate::sample::reduce::{vector_at, weights};
use crate::simd::{LANES, Simd};

/// Bits of a weight that do not count for its bin.
const SHIFT: u32 = 19;
/// Weights are at most 1.
const NUM_BINS: usize = (1.0_f32.to_bits() >> SHIFT) as usize + 1;
/// Numbers that are looked at together for a weight that matters.
const STRIDE: usize = 4 * LANES;

/// Memory of a nucleus.
#[derive(Default)]
pub(crate) struct Nucleus {
    weights: Vec<f32>,
    masses: Vec<f64>,
    candidates: Vec<Candidate>,
}

/// The smallest scaled logit of the nucleus among those at or above `threshold`; `threshold` itself
/// if the sum is not reached.
#[inline(always)]
pub(crate) fn nucleus_threshold<S: Simd>(
    scaled: &[f32],
    largest: f32,
    threshold: f32,
    top_p: f32,
    nucleus: &mut Nucleus,
) -> f32 {
    let Nucleus { weights: row_weights, masses, candidates } = nucleus;
    let whole = weights::<S>(scaled, largest, threshold, row_weights);
    let wanted = f64::from(top_p) * whole;
    // All weights below this one together are half of what may be missing: they need no look.
    let least = ((whole - wanted) / (2.0 * scaled.len() as f64)) as f32;
    masses.clear();
    masses.resize(NUM_BINS, 0.0);
    add_masses::<S>(row_weights, least, masses);
    let mut sum = 0.0;
    let mut bin = NUM_BINS;
    while bin > 0 && sum + masses[bin - 1] < wanted {
        bin -= 1;
        sum += masses[bin];
    }
    if bin == 0 {
        return threshold;
    }
    gather_bin::<S>(scaled, row_weights, bin - 1, candidates);
    candidates.sort_unstable_by(best_first);
    for &(logit, place) in candidates.iter() {
        sum += f64::from(row_weights[place as usize]);
        if sum >= wanted {
            return logit.max(threshold);
        }
    }
    candidates.last().map_or(threshold, |last| last.0.max(threshold))
}

/// The bin of a weight.
#[inline(always)]
fn bin_of(weight: f32) -> usize {
    (weight.to_bits() >> SHIFT) as usize
}

/// Adds the weights of at least `least` to the masses of their bins.
#[inline(always)]
fn add_masses<S: Simd>(weights: &[f32], least: f32, masses: &mut [f64]) {
    for start in (0..weights.len()).step_by(STRIDE) {
        let end = weights.len().min(start + STRIDE);
        if largest_of::<S>(weights, start, end) < least {
            continue;
        }
        for &weight in &weights[start..end] {
            if weight >= least {
                masses[bin_of(weight)] += f64::from(weight);
            }
        }
    }
}

/// The logits whose weights are in a bin.
#[inline(always)]
fn gather_bin<S: Simd>(
    scaled: &[f32],
    weights: &[f32],
    bin: usize,
    candidates: &mut Vec<Candidate>,
) {
    candidates.clear();
    let least = f32::from_bits((bin as u32) << SHIFT);
    for start in (0..scaled.len()).step_by(STRIDE) {
        let end = scaled.len().min(start + STRIDE);
        if largest_of::<S>(weights, start, end) < least {
            continue;
        }
        for place in start..end {
            if bin_of(weights[place]) == bin {
                candidates.push((scaled[place], place as u32));
            }
        }
    }
}

#[inline(always)]
fn largest_of<S: Simd>(weights: &[f32], start: usize, end: usize) -> f32 {
    let mut largest = vector_at::<S>(weights, start);
    for first in (start + LANES..end).step_by(LANES) {
        largest = S::max(vector_at::<S>(weights, first), largest);
    }
    S::largest(largest)
}
