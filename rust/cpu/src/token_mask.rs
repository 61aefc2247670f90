//! Masks of tokens over logits.

use crate::error::Error;
use crate::view::{View, ViewMut};

/// Bits per word of a mask.
const WORD: usize = u32::BITS as usize;

/// Sets logits `[P, V]` of excluded tokens to minus infinity: in row `rows[i]`, those whose bit in row `i` of
/// `masks` `[A, ceil(V / 32)]` is clear. Bit `b` of word `w` is token `32 w + b`.
///
/// # Errors
/// [`Error::Size`] or [`Error::Index`], before anything is written.
pub fn apply_masks(
    logits: &mut ViewMut<'_, f32, 2>,
    rows: View<'_, i64, 1>,
    masks: View<'_, u32, 2>,
) -> Result<(), Error> {
    let [num_rows, vocab_size] = logits.shape();
    let [num_masks, num_words] = masks.shape();
    for (dimension, got, expected) in
        [(0, num_masks, rows.shape()[0]), (1, num_words, vocab_size.div_ceil(WORD))]
    {
        if got != expected {
            return Err(Error::Size { argument: "masks", dimension, got, expected });
        }
    }
    let rows = rows.as_slice();
    let bad = |row: &i64| !(0..num_rows as i64).contains(row);
    if let Some(index) = rows.iter().position(bad) {
        let got = rows[index];
        return Err(Error::Index { argument: "rows", index, got, bound: num_rows });
    }
    if vocab_size == 0 {
        return Ok(());
    }
    for (i, row) in rows.iter().enumerate() {
        let row = logits.run_mut([*row as usize, 0]);
        for (logits, word) in row.chunks_mut(WORD).zip(masks.run([i, 0])) {
            exclude(logits, *word);
        }
    }
    Ok(())
}

fn exclude(logits: &mut [f32], word: u32) {
    match word {
        0 => logits.fill(f32::NEG_INFINITY),
        u32::MAX => {}
        _ => {
            for (bit, logit) in logits.iter_mut().enumerate() {
                if word >> bit & 1 == 0 {
                    *logit = f32::NEG_INFINITY;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clear_bit_excludes_its_token_in_its_row_alone() {
        for vocab_size in [1_usize, 31, 32, 33, 100] {
            let num_words = vocab_size.div_ceil(WORD);
            let words: Vec<u32> = [0x0F0F_1234, 0, u32::MAX, 0x8000_0001, 7, 0, 1, 2]
                .into_iter()
                .cycle()
                .take(2 * num_words)
                .collect();
            let mut values: Vec<f32> = (0..3 * vocab_size).map(|i| i as f32).collect();
            let before = values.clone();
            let mut logits = ViewMut::contiguous("logits", &mut values, [3, vocab_size]).unwrap();
            let rows = View::contiguous("rows", &[2, 0], [2]).unwrap();
            let masks = View::contiguous("masks", &words, [2, num_words]).unwrap();
            apply_masks(&mut logits, rows, masks).unwrap();
            for token in 0..vocab_size {
                let bit = |mask: usize| words[mask * num_words + token / 32] >> (token % 32) & 1;
                for (row, is_kept) in [(0, bit(1) == 1), (1, true), (2, bit(0) == 1)] {
                    let at = row * vocab_size + token;
                    let expected = if is_kept { before[at] } else { f32::NEG_INFINITY };
                    assert_eq!(values[at].to_bits(), expected.to_bits(), "{vocab_size} {at}");
                }
            }
        }
    }

    #[test]
    fn rows_and_masks_that_do_not_fit_are_refused() {
        let mut values = [0.0; 66];
        let mut logits = ViewMut::contiguous("logits", &mut values, [2, 33]).unwrap();
        let masks = View::contiguous("masks", &[0, 0], [1, 2]).unwrap();
        let rows = View::contiguous("rows", &[2], [1]).unwrap();
        let error = apply_masks(&mut logits, rows, masks).unwrap_err();
        assert_eq!(error, Error::Index { argument: "rows", index: 0, got: 2, bound: 2 });
        let rows = View::contiguous("rows", &[0], [1]).unwrap();
        let narrow = View::contiguous("masks", &[0], [1, 1]).unwrap();
        let error = apply_masks(&mut logits, rows, narrow).unwrap_err();
        assert_eq!(error, Error::Size { argument: "masks", dimension: 1, got: 1, expected: 2 });
        assert!(values.iter().all(|value| *value == 0.0));
    }
}
