//! A language model of eleven tokens, and beam search over it as a paper would write it.

use pagedkv_core::{BeamOptions, EarlyStopping, StopConditions, TokenId};

const VOCABULARY: u32 = 11;
/// The ending id.
pub(crate) const EOS: TokenId = 3;

/// A language model: log-probabilities that depend on all tokens so far.
pub(crate) fn logprobs(tokens: &[TokenId]) -> Vec<f32> {
    let mut hash = 0x9e37_79b9_u32;
    for token in tokens {
        hash = (hash ^ token).wrapping_mul(0x85eb_ca6b);
        hash ^= hash >> 13;
    }
    let weights: Vec<f32> = (0..VOCABULARY)
        .map(|token| {
            let mixed = (hash ^ token.wrapping_mul(0xc2b2_ae35)).wrapping_mul(0x27d4_eb2f);
            ((mixed >> 8) as f32 / 16_777_216.0 * 5.0).exp()
        })
        .collect();
    let total: f32 = weights.iter().sum();
    weights.iter().map(|weight| (weight / total).ln()).collect()
}

/// The search as a paper would write it: all continuations of all beams, sorted.
pub(crate) fn search(
    prompt: &[TokenId],
    width: usize,
    stop: &StopConditions,
    options: BeamOptions,
) -> Vec<(f32, Vec<TokenId>)> {
    let score = |sum: f32, length: usize| sum / (length as f64).powf(options.length_penalty) as f32;
    let mut beams: Vec<(f32, Vec<TokenId>)> = vec![(0.0, vec![])];
    let mut ended: Vec<(f32, Vec<TokenId>)> = vec![];
    for length in 1..=stop.max_tokens as usize {
        let mut all: Vec<(f32, Vec<TokenId>)> = vec![];
        for (sum, output) in &beams {
            let tokens = [prompt, output].concat();
            for (token, logprob) in (0..).zip(logprobs(&tokens)) {
                all.push((sum + logprob, [output.as_slice(), &[token]].concat()));
            }
        }
        all.sort_by(|a, b| b.0.total_cmp(&a.0));
        all.truncate(2 * width);
        let ends = |output: &[TokenId]| {
            (output[length - 1] == EOS && length >= stop.min_tokens as usize)
                || length == stop.max_tokens as usize
                || repeats(stop, output)
        };
        for (sum, output) in all.iter().take(width).filter(|(_, output)| ends(output)) {
            ended.push((score(*sum, length), output.clone()));
        }
        ended.sort_by(|a, b| b.0.total_cmp(&a.0));
        ended.truncate(width);
        beams = all.into_iter().filter(|(_, output)| !ends(output)).take(width).collect();
        let Some((best, _)) = beams.first() else { break };
        if ended.len() < width {
            continue;
        }
        let reach = match options.early_stopping {
            EarlyStopping::Always => break,
            EarlyStopping::Never if options.length_penalty > 0.0 => stop.max_tokens as usize,
            EarlyStopping::Never | EarlyStopping::Heuristic => length,
        };
        if score(*best, reach) <= ended[width - 1].0 {
            break;
        }
    }
    ended.truncate(options.num_returned as usize);
    ended
}

/// Whether the last tokens are copies of one pattern, where that ends a beam.
fn repeats(stop: &StopConditions, output: &[TokenId]) -> bool {
    let Some(limits) = stop.repetition else { return false };
    let count = limits.min_count as usize;
    output.len() >= stop.min_tokens as usize
        && (limits.min_pattern as usize..=limits.max_pattern as usize).any(|size| {
            output.len() >= size * count
                && output.ends_with(&output[output.len() - size..].repeat(count))
        })
}
