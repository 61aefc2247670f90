//! The draw: the largest sum of a scaled logit and its noise, among the tokens that are kept.

use crate::philox::{NoiseRow, gumbel, uniform_bits};
use crate::sample::reduce::vector_at;
use crate::simd::{LANES, Simd};

/// The token with the largest sum of logit and Gumbel noise among those at or above `threshold`, of
/// equals the first; None if no logit above minus infinity is kept.
///
/// Noise is computed for few of the tokens: a uniform number that is too small for its token to win
/// even with the largest logit needs no logarithm.
#[inline(always)]
pub(crate) fn draw<S: Simd>(
    scaled: &[f32],
    largest: f32,
    threshold: f32,
    noise: NoiseRow,
) -> Option<usize> {
    let mut winner = None;
    let mut best = f32::NEG_INFINITY;
    let mut least_bits = 0;
    for first in (0..scaled.len()).step_by(LANES) {
        if S::largest(vector_at::<S>(scaled, first)) < threshold {
            continue;
        }
        let bits = uniform_bits(noise, first as u32);
        let end = scaled.len().min(first + LANES);
        for (lane, &logit) in scaled[first..end].iter().enumerate() {
            if logit >= threshold && bits[lane] >= least_bits {
                let sum = logit + gumbel(bits[lane]);
                if sum > best {
                    (best, winner) = (sum, Some(first + lane));
                    least_bits = least_winning_bits(best, largest);
                }
            }
        }
    }
    winner
}

/// A bound below which no uniform number makes a sum larger than `best`, on the safe side: it
/// decides what is looked at, not what comes out.
fn least_winning_bits(best: f32, largest: f32) -> u32 {
    let (best, largest) = (f64::from(best), f64::from(largest));
    let slack = 1e-3 + 1e-6 * (best.abs() + largest.abs());
    let uniform = (-(-(best - largest - slack)).exp()).exp();
    (uniform * 16_777_216.0 - 2.0).max(0.0) as u32
}
