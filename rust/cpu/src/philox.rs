//! Sampling noise that is a function of its coordinates, not of a stream.
//!
//! Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011) turns a
//! key and a counter into four random words. For sampling, key = the 64-bit seed (low word first),
//! counter = (index of the sequence within its request, output position, token id, purpose), and
//! from the first word
//!
//! ```text
//! u = ((word >> 8) + 0.5) * 2^-24 in (0, 1)        noise = -ln(-ln(u)), in f64, rounded to f32
//! ```

use crate::dispatch::dispatch;
use crate::error::Error;
use crate::isa::Isa;
use crate::math::ln;
use crate::simd::{Kernel, Simd};
use crate::threads::for_each;
use crate::view::ViewMut;

/// The last word of the counter of token noise; other words are for other uses of a seed.
const PURPOSE_TOKEN: u32 = 0;
/// Noise of one token, as the multiply-adds that cost as much.
const WORK_PER_TOKEN: usize = 60;

/// Whose noise a row of the output is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NoiseRow {
    /// Seed of the request.
    pub seed: u64,
    /// Index of the sequence within the request.
    pub sample_index: u32,
    /// Output position: 0 for the first generated token.
    pub position: u32,
}

/// Fills `output` `[rows, vocabulary]` with Gumbel noise: row r, column t is that of token t for
/// `rows[r]`.
///
/// # Errors
/// [`Error::Size`] if there are not as many rows.
pub fn gumbel_noise(rows: &[NoiseRow], output: &mut ViewMut<'_, f32, 2>) -> Result<(), Error> {
    let [num_rows, vocabulary] = output.shape();
    if rows.len() != num_rows {
        let (argument, expected) = ("output", rows.len());
        return Err(Error::Size { argument, dimension: 0, got: num_rows, expected });
    }
    if vocabulary == 0 {
        return Ok(());
    }
    let (isa, output) = (Isa::chosen()?, &*output);
    for_each(num_rows, num_rows * vocabulary * WORK_PER_TOKEN, |index| {
        // SAFETY: each index is handed out once, so no other thread has this row.
        let noise = unsafe { output.run_shared([index, 0]) };
        dispatch(isa, GumbelKernel { row: rows[index], noise });
    })
}

/// Ten rounds of Philox on a counter.
#[inline(always)]
pub fn philox4x32_10(counter: [u32; 4], key: [u32; 2]) -> [u32; 4] {
    let [mut c0, mut c1, mut c2, mut c3] = counter;
    let [mut k0, mut k1] = key;
    for _ in 0..10 {
        let product0 = u64::from(c0) * 0xd251_1f53;
        let product1 = u64::from(c2) * 0xcd9e_8d57;
        (c0, c1, c2, c3) = (
            (product1 >> 32) as u32 ^ c1 ^ k0,
            product1 as u32,
            (product0 >> 32) as u32 ^ c3 ^ k1,
            product0 as u32,
        );
        k0 = k0.wrapping_add(0x9e37_79b9);
        k1 = k1.wrapping_add(0xbb67_ae85);
    }
    [c0, c1, c2, c3]
}

/// Writes the uniform numbers, of 24 bits, behind the noise of the tokens. Many at a time, so that the
/// compiler finds its vectors.
#[inline(always)]
pub(crate) fn uniform_bits(row: NoiseRow, token_ids: &[u32], bits: &mut [u32]) {
    let key = [row.seed as u32, (row.seed >> 32) as u32];
    for (token, bits) in token_ids.iter().zip(bits) {
        let [word, ..] =
            philox4x32_10([row.sample_index, row.position, *token, PURPOSE_TOKEN], key);
        *bits = word >> 8;
    }
}

struct GumbelKernel<'a> {
    row: NoiseRow,
    noise: &'a mut [f32],
}

impl Kernel for GumbelKernel<'_> {
    #[inline(always)]
    fn run<S: Simd>(self) {
        // In f64, by the compiler's own vectors: the same bits on every level, fused or not.
        let NoiseRow { seed, sample_index, position } = self.row;
        let key = [seed as u32, (seed >> 32) as u32];
        for (token, noise) in self.noise.iter_mut().enumerate() {
            let [word, ..] =
                philox4x32_10([sample_index, position, token as u32, PURPOSE_TOKEN], key);
            *noise = gumbel(word >> 8);
        }
    }
}

/// The noise of one of the 2^24 uniform numbers.
#[inline(always)]
pub(crate) fn gumbel(uniform_24_bits: u32) -> f32 {
    let uniform = (f64::from(uniform_24_bits as i32) + 0.5) * (1.0 / 16_777_216.0);
    -ln(-ln(uniform)) as f32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_vectors_published_with_the_generator_come_out() {
        let known = [
            ([0; 4], [0; 2], [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]),
            ([u32::MAX; 4], [u32::MAX; 2], [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]),
            (
                [0x243f_6a88, 0x85a3_08d3, 0x1319_8a2e, 0x0370_7344],
                [0xa409_3822, 0x299f_31d0],
                [0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1],
            ),
        ];
        for (counter, key, expected) in known {
            assert_eq!(philox4x32_10(counter, key), expected);
        }
    }

    #[test]
    fn noise_is_that_of_the_system_logarithm_but_for_the_last_bit_of_a_few_uniform_numbers() {
        let mut num_different = 0;
        for bits in 0..1_u32 << 24 {
            let uniform = (f64::from(bits) + 0.5) / 16_777_216.0;
            let expected = -(-uniform.ln()).ln() as f32;
            let got = gumbel(bits);
            num_different += u32::from(got.to_bits() != expected.to_bits());
            assert!(got >= expected.next_down() && got <= expected.next_up(), "{bits}");
        }
        assert!(num_different <= 16, "{num_different} of 2^24 differ");
    }
}
