//! One row of the sampler, from its logits to what is reported of it.

use crate::philox::NoiseRow;
use crate::sample::best::{Selection, best, kth_largest};
use crate::sample::draw::draw;
use crate::sample::nucleus::{Nucleus, nucleus_threshold};
use crate::sample::reduce::{LogSum, first_equal, has_nan, largest, num_above, vector_at};
use crate::simd::{Kernel, LANES, Simd};

/// The token of a row that nothing can be chosen for.
pub const NO_TOKEN: i32 = -1;

/// Which numbers are reported of the chosen and the most likely tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reported {
    /// Log-probabilities of the logits as the model gave them.
    RawLogprobs,
    /// Those logits.
    RawLogits,
    /// Log-probabilities of what the token is drawn from: edited, divided, filtered.
    ProcessedLogprobs,
    /// What the token is drawn from; minus infinity for what was filtered out.
    ProcessedLogits,
}

/// How a row is sampled.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct SampleRow {
    /// Whose noise it draws with.
    pub noise: NoiseRow,
    /// 0 for the most likely token.
    pub temperature: f32,
    /// Logarithm of the least probability relative to the largest; minus infinity keeps all.
    pub log_min_p: f32,
    /// Keeps this many tokens, and ties; 0 keeps all.
    pub top_k: usize,
    /// Keeps the most likely tokens up to the first whose running sum reaches this share.
    pub top_p: f32,
    /// The row of the edited logits that it is drawn from, if not its own.
    pub edited: Option<usize>,
    /// How many of the most likely tokens to report, besides the rank of the chosen one.
    pub num_top: Option<usize>,
}

/// Memory of a row, kept by its thread.
#[derive(Default)]
pub(crate) struct Scratch {
    scaled: Vec<f32>,
    selection: Selection,
    nucleus: Nucleus,
}

/// A row, and where its results go: first the chosen token, then the most likely ones.
pub(crate) struct RowKernel<'a> {
    pub(crate) row: SampleRow,
    pub(crate) reported: Reported,
    pub(crate) raw: &'a [f32],
    pub(crate) edited: Option<&'a [f32]>,
    pub(crate) token_ids: &'a mut [i32],
    pub(crate) numbers: &'a mut [f32],
    pub(crate) rank: &'a mut i32,
    pub(crate) scratch: &'a mut Scratch,
}

/// What a row chose.
struct Choice {
    token: usize,
    /// Whether it was drawn, from the scaled logits in scratch memory.
    is_drawn: bool,
    threshold: f32,
}

impl Kernel for RowKernel<'_> {
    #[inline(always)]
    fn run<S: Simd>(mut self) {
        let raw_sum = LogSum::new::<S>(self.raw);
        self.token_ids.fill(0);
        self.numbers.fill(f32::NEG_INFINITY);
        *self.rank = 0;
        let choice = match self.edited {
            _ if raw_sum.ln_sum.is_nan() => {
                self.numbers.fill(f32::NAN);
                return;
            }
            None => choose::<S>(self.row, self.raw, raw_sum.largest, self.scratch),
            Some(edited) if has_nan::<S>(edited) => None,
            Some(edited) => choose::<S>(self.row, edited, largest::<S>(edited), self.scratch),
        };
        let Some(choice) = choice else {
            self.token_ids[0] = NO_TOKEN;
            return;
        };
        self.token_ids[0] = choice.token as i32;
        self.report::<S>(&choice, raw_sum);
    }
}

impl RowKernel<'_> {
    #[inline(always)]
    fn report<S: Simd>(&mut self, choice: &Choice, raw_sum: LogSum) {
        let Scratch { scaled, selection, .. } = &mut *self.scratch;
        let is_raw = matches!(self.reported, Reported::RawLogprobs | Reported::RawLogits);
        let logits: &[f32] = match self.edited {
            _ if is_raw => self.raw,
            _ if choice.is_drawn => {
                mask_below(scaled, choice.threshold);
                scaled
            }
            None => self.raw,
            Some(edited) => edited,
        };
        let log_sum = match self.reported {
            Reported::RawLogprobs => Some(raw_sum),
            Reported::ProcessedLogprobs => Some(LogSum::new::<S>(logits)),
            Reported::RawLogits | Reported::ProcessedLogits => None,
        };
        let own = logits[choice.token];
        self.numbers[0] = log_sum.map_or(own, |sum| sum.logprob(own));
        let Some(num_top) = self.row.num_top else { return };
        *self.rank = num_above::<S>(logits, own) as i32 + 1;
        let top = best::<S>(logits, num_top, selection);
        let places = self.token_ids[1..].iter_mut().zip(&mut self.numbers[1..]);
        for ((token, number), &(logit, place)) in places.zip(top) {
            *token = place as i32;
            *number = log_sum.map_or(logit, |sum| sum.logprob(logit));
        }
    }
}

/// The token of a row; None if no logit is above minus infinity.
#[inline(always)]
fn choose<S: Simd>(
    row: SampleRow,
    logits: &[f32],
    largest: f32,
    scratch: &mut Scratch,
) -> Option<Choice> {
    if largest == f32::NEG_INFINITY {
        return None;
    }
    let is_greedy = row.temperature <= 0.0;
    // No noise makes up for an infinite logit, which user processors may set.
    if is_greedy || !(largest / row.temperature).is_finite() {
        let token = first_equal::<S>(logits, largest)?;
        return Some(Choice { token, is_drawn: false, threshold: f32::NEG_INFINITY });
    }
    let Scratch { scaled, selection, nucleus } = scratch;
    divide::<S>(logits, row.temperature, scaled);
    let largest = largest / row.temperature;
    let mut threshold = largest + row.log_min_p;
    if (1..scaled.len()).contains(&row.top_k) {
        threshold = threshold.max(kth_largest::<S>(scaled, row.top_k, selection));
    }
    if row.top_p < 1.0 {
        threshold = nucleus_threshold::<S>(scaled, largest, threshold, row.top_p, nucleus);
    }
    let token = draw::<S>(scaled, threshold, row.noise)?;
    Some(Choice { token, is_drawn: true, threshold })
}

/// Writes logits divided by the temperature.
#[inline(always)]
fn divide<S: Simd>(logits: &[f32], temperature: f32, scaled: &mut Vec<f32>) {
    let temperature = S::splat(temperature);
    scaled.resize(logits.len().next_multiple_of(LANES), 0.0);
    for first in (0..logits.len()).step_by(LANES) {
        let vector = S::div(vector_at::<S>(logits, first), temperature);
        // SAFETY: the scaled logits are padded to whole vectors.
        unsafe { S::store(vector, scaled.as_mut_ptr().add(first)) };
    }
    scaled.truncate(logits.len());
}

/// Sets what is below `threshold` to minus infinity.
#[inline(always)]
fn mask_below(scaled: &mut [f32], threshold: f32) {
    for logit in scaled {
        *logit = if *logit < threshold { f32::NEG_INFINITY } else { *logit };
    }
}
