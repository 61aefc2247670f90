//! The draw: the largest sum of a scaled logit and its noise, among the tokens that are kept.
//!
//! Noise is computed for tokens that are kept and not hopeless, and logarithms are taken for few of
//! those. To win, a token at a distance d below the best sum needs noise above d, so a uniform number
//! u with `u > e^(-e^-d)`, for which `1 - u < e^-d`.

use crate::math::exp_weight;
use crate::philox::{NoiseRow, gumbel, uniform_bits};
use crate::sample::reduce::vector_at;
use crate::simd::{LANES, Line, Simd};

/// Tokens whose uniform numbers are computed together.
const RUN: usize = 16 * LANES;
/// How many uniform numbers there are.
const UNIFORM_NUMBERS: u32 = 1 << 24;
/// More than the noise of any of them, `-ln(-ln(1 - 2^-25))`. A sum that is not above the best one
/// before it is rounded is not above it afterwards.
const MAX_NOISE: f32 = 18.0;

/// The token with the largest sum of logit and Gumbel noise among those at or above `threshold`, of
/// equals the first; None if no logit above minus infinity is kept.
#[inline(always)]
pub(crate) fn draw<S: Simd>(scaled: &[f32], threshold: f32, noise: NoiseRow) -> Option<usize> {
    let mut drawing = Drawing::new(noise);
    for start in (0..scaled.len()).step_by(LANES) {
        let least = threshold.max(drawing.best - MAX_NOISE);
        if S::largest(vector_at::<S>(scaled, start)) < least {
            continue;
        }
        let end = scaled.len().min(start + LANES);
        for (lane, &logit) in scaled[start..end].iter().enumerate() {
            // Without a branch: written in any case, and overwritten if it is not kept.
            drawing.logits[drawing.count] = logit;
            drawing.token_ids[drawing.count] = (start + lane) as u32;
            drawing.count += usize::from(logit >= least);
        }
        if drawing.count > RUN - LANES {
            drawing.draw_gathered::<S>();
        }
    }
    drawing.draw_gathered::<S>();
    drawing.winner.map(|token| token as usize)
}

/// Tokens gathered for a draw, and the best one drawn so far.
struct Drawing {
    noise: NoiseRow,
    best: f32,
    winner: Option<u32>,
    count: usize,
    logits: [f32; RUN],
    token_ids: [u32; RUN],
}

impl Drawing {
    #[inline(always)]
    fn new(noise: NoiseRow) -> Self {
        let (best, winner, count) = (f32::NEG_INFINITY, None, 0);
        Self { noise, best, winner, count, logits: [0.0; RUN], token_ids: [0; RUN] }
    }

    /// Draws the gathered tokens, and gathers anew.
    #[inline(always)]
    fn draw_gathered<S: Simd>(&mut self) {
        let mut bits = [0; RUN];
        let (whole, count) = (self.count.next_multiple_of(LANES), self.count);
        self.count = 0;
        // What lies behind the last one is of no meaning, but must not look as if it could win.
        self.logits[count..whole].fill(f32::NEG_INFINITY);
        uniform_bits(self.noise, &self.token_ids[..whole], &mut bits[..whole]);
        for first in (0..whole).step_by(LANES) {
            let logits = vector_at::<S>(&self.logits, first);
            if !can_win::<S>(logits, &bits[first..first + LANES], self.best) {
                continue;
            }
            for (place, bits) in bits.iter().enumerate().take(count).skip(first).take(LANES) {
                let sum = self.logits[place] + gumbel(*bits);
                if sum > self.best {
                    (self.best, self.winner) = (sum, Some(self.token_ids[place]));
                }
            }
        }
    }
}

/// Whether one of the logits may come out above `best`; errs on the side of yes, so that it decides
/// what is looked at and not what comes out.
#[inline(always)]
fn can_win<S: Simd>(logits: S::V, bits: &[u32], best: f32) -> bool {
    let mut left = Line::ZERO;
    for (left, bits) in left.0.iter_mut().zip(bits) {
        // 1 - u in units of 2^-24, and half of one more; exact.
        *left = (UNIFORM_NUMBERS - *bits) as i32 as f32;
    }
    let zero = S::splat(0.0);
    // More than what is lost to rounding here.
    let slack = S::splat(1e-3);
    let distance = S::add(S::sub(logits, S::splat(best)), slack);
    let distance = S::select_less(distance, zero, distance, zero);
    let allowed = S::mul(exp_weight::<S>(distance), S::splat(UNIFORM_NUMBERS as f32));
    let allowed = S::add(allowed, S::splat(1.0));
    // SAFETY: a line is a vector.
    let left = unsafe { S::load(left.0.as_ptr()) };
    S::largest(S::select_less(allowed, left, zero, S::splat(1.0))) > 0.0
}
