//! The largest numbers of a row, by selection: no row is ever sorted.

use std::cmp::Ordering;

use crate::sample::reduce::vector_at;
use crate::simd::{LANES, Simd};

/// Vectors that are looked at together for a number that is large enough.
const STRIDE: usize = 4 * LANES;

/// A number and its place.
pub(crate) type Candidate = (f32, u32);

/// Memory of a selection.
#[derive(Default)]
pub(crate) struct Selection {
    maxima: Vec<f32>,
    pub(crate) candidates: Vec<Candidate>,
}

/// The larger number first, of equals the lower place.
#[expect(clippy::trivially_copy_pass_by_ref, reason = "the shape that sorts want")]
pub(crate) fn best_first(a: &Candidate, b: &Candidate) -> Ordering {
    b.0.partial_cmp(&a.0).unwrap_or(Ordering::Equal).then(a.1.cmp(&b.1))
}

/// The `count` largest numbers of a row without NaN, best first, of equals the lower place first;
/// all of them if there are no more.
#[inline(always)]
pub(crate) fn best<'a, S: Simd>(
    numbers: &[f32],
    count: usize,
    selection: &'a mut Selection,
) -> &'a [Candidate] {
    gather_best::<S>(numbers, count, selection);
    let candidates = &mut selection.candidates;
    if count == 0 {
        candidates.clear();
    } else if count < candidates.len() {
        candidates.select_nth_unstable_by(count - 1, best_first);
        candidates.truncate(count);
    }
    candidates.sort_unstable_by(best_first);
    candidates
}

/// The `k`-th largest number of a row without NaN; `k` is positive. The smallest if there are no
/// more.
#[inline(always)]
pub(crate) fn kth_largest<S: Simd>(numbers: &[f32], k: usize, selection: &mut Selection) -> f32 {
    gather_best::<S>(numbers, k, selection);
    let candidates = &mut selection.candidates;
    let k = k.min(candidates.len());
    candidates.select_nth_unstable_by(k - 1, best_first).1.0
}

/// Gathers numbers among which are the `count` largest.
#[inline(always)]
fn gather_best<S: Simd>(numbers: &[f32], count: usize, selection: &mut Selection) {
    let bound = lower_bound::<S>(numbers, count, &mut selection.maxima);
    selection.candidates.clear();
    for start in (0..numbers.len()).step_by(STRIDE) {
        let end = numbers.len().min(start + STRIDE);
        let mut largest = vector_at::<S>(numbers, start);
        for first in (start + LANES..end).step_by(LANES) {
            largest = S::max(vector_at::<S>(numbers, first), largest);
        }
        if S::largest(largest) < bound {
            continue;
        }
        for (place, &number) in numbers[start..end].iter().enumerate() {
            if number >= bound {
                selection.candidates.push((number, (start + place) as u32));
            }
        }
    }
}

/// A number that at least `count` numbers of the row reach: the `count`-th largest of the maxima of
/// parts that do not overlap. Minus infinity if there would be fewer parts.
#[inline(always)]
fn lower_bound<S: Simd>(numbers: &[f32], count: usize, maxima: &mut Vec<f32>) -> f32 {
    // With eight parts for each number wanted, the bound lets in few more than are wanted.
    let parts = (count / 2).max(4);
    let part = (numbers.len() / parts).next_multiple_of(LANES);
    if count == 0 || part <= LANES {
        return f32::NEG_INFINITY;
    }
    maxima.clear();
    for start in (0..numbers.len()).step_by(part) {
        let mut largest = S::splat(f32::NEG_INFINITY);
        for first in (start..numbers.len().min(start + part)).step_by(LANES) {
            largest = S::max(vector_at::<S>(numbers, first), largest);
        }
        let place = maxima.len();
        maxima.resize(place + LANES, 0.0);
        // SAFETY: room for a vector was just made.
        unsafe { S::store(largest, maxima.as_mut_ptr().add(place)) };
    }
    if maxima.len() < count {
        return f32::NEG_INFINITY;
    }
    *maxima.select_nth_unstable_by(count - 1, |a, b| b.total_cmp(a)).1
}
