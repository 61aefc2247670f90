//! The number formats of tensors: stored narrow, computed in f32.

use half::{bf16, f16};

use crate::error::Error;
use crate::isa::Isa;
use crate::item::{Step, run_items};
use crate::simd::{RowPointers, Simd};
use crate::view::View;

/// A format in which keys, values and activations are stored.
pub trait Element: Copy + Send + Sync + 'static {
    /// The number 0.
    const ZERO: Self;

    /// Whether it takes no work to widen an element.
    #[doc(hidden)]
    const IS_WIDE: bool = false;

    /// Writes the numbers of `row` to `buffer`, which is as long.
    fn copy_widened(row: &[Self], buffer: &mut [f32]);

    /// Sixteen numbers as a vector.
    ///
    /// # Safety
    /// They are readable.
    #[doc(hidden)]
    unsafe fn load<S: Simd>(from: *const Self) -> S::V;

    /// Transposes the first columns of sixteen rows and says how many of `dim`.
    ///
    /// # Safety
    /// Each row has `dim` readable elements, and `to` as many columns.
    #[doc(hidden)]
    unsafe fn transpose<S: Simd>(rows: &RowPointers<Self>, dim: usize, to: *mut f32) -> usize;

    /// Runs the items of a step: here, so that they are compiled with this crate, once per format.
    #[doc(hidden)]
    fn run_items(step: Step<'_, Self>, isa: Isa) -> Result<(), Error>;

    /// `view` itself if its elements are f32.
    #[doc(hidden)]
    fn as_f32<const N: usize>(view: View<'_, Self, N>) -> Option<View<'_, f32, N>> {
        let _ = view;
        None
    }

    /// Rounds `numbers` to the nearest, ties to even, into `row`, which is as long.
    fn narrow(numbers: &[f32], row: &mut [Self]);
}

impl Element for f32 {
    const ZERO: Self = 0.0;
    const IS_WIDE: bool = true;

    #[inline(always)]
    fn copy_widened(row: &[Self], buffer: &mut [f32]) {
        buffer.copy_from_slice(row);
    }

    #[inline(always)]
    unsafe fn load<S: Simd>(from: *const Self) -> S::V {
        // SAFETY: the caller's promise.
        unsafe { S::load(from) }
    }

    #[inline(always)]
    unsafe fn transpose<S: Simd>(rows: &RowPointers<Self>, dim: usize, to: *mut f32) -> usize {
        // SAFETY: the caller's promise.
        unsafe { S::transpose_f32(rows, dim, to) }
    }

    fn run_items(step: Step<'_, Self>, isa: Isa) -> Result<(), Error> {
        run_items(step, isa)
    }

    fn as_f32<const N: usize>(view: View<'_, Self, N>) -> Option<View<'_, f32, N>> {
        Some(view)
    }

    #[inline(always)]
    fn narrow(numbers: &[f32], row: &mut [Self]) {
        row.copy_from_slice(numbers);
    }
}

impl Element for bf16 {
    const ZERO: Self = Self::ZERO;

    #[inline(always)]
    fn copy_widened(row: &[Self], buffer: &mut [f32]) {
        for (number, element) in buffer.iter_mut().zip(row) {
            *number = f32::from_bits(u32::from(element.to_bits()) << 16);
        }
    }

    #[inline(always)]
    unsafe fn load<S: Simd>(from: *const Self) -> S::V {
        // SAFETY: the caller's promise.
        unsafe { S::load_bf16(from) }
    }

    #[inline(always)]
    unsafe fn transpose<S: Simd>(rows: &RowPointers<Self>, dim: usize, to: *mut f32) -> usize {
        // SAFETY: the caller's promise.
        unsafe { S::transpose_bf16(rows, dim, to) }
    }

    fn run_items(step: Step<'_, Self>, isa: Isa) -> Result<(), Error> {
        run_items(step, isa)
    }

    #[inline(always)]
    fn narrow(numbers: &[f32], row: &mut [Self]) {
        for (element, number) in row.iter_mut().zip(numbers) {
            *element = Self::from_bits(bf16_bits(*number));
        }
    }
}

impl Element for f16 {
    const ZERO: Self = Self::ZERO;

    #[inline(always)]
    fn copy_widened(row: &[Self], buffer: &mut [f32]) {
        for (number, element) in buffer.iter_mut().zip(row) {
            *number = f16_to_f32(element.to_bits());
        }
    }

    #[inline(always)]
    unsafe fn load<S: Simd>(from: *const Self) -> S::V {
        // SAFETY: the caller's promise.
        unsafe { S::load_f16(from) }
    }

    #[inline(always)]
    unsafe fn transpose<S: Simd>(rows: &RowPointers<Self>, dim: usize, to: *mut f32) -> usize {
        // SAFETY: the caller's promise.
        unsafe { S::transpose_f16(rows, dim, to) }
    }

    fn run_items(step: Step<'_, Self>, isa: Isa) -> Result<(), Error> {
        run_items(step, isa)
    }

    #[inline(always)]
    fn narrow(numbers: &[f32], row: &mut [Self]) {
        for (element, number) in row.iter_mut().zip(numbers) {
            *element = Self::from_bits(f16_bits(*number));
        }
    }
}

// The conversions are free of branches, so that loops over them vectorise; `half`'s own are not.

#[inline(always)]
fn bf16_bits(number: f32) -> u16 {
    let bits = number.to_bits();
    // A little under half of the last kept bit, and a little over where that bit is odd: ties go to
    // even.
    let rounded = bits.wrapping_add(0x7fff + ((bits >> 16) & 1)) >> 16;
    let quiet_nan = (bits >> 16) | 0x40;
    (if number.is_nan() { quiet_nan } else { rounded }) as u16
}

#[inline(always)]
fn f16_to_f32(half_bits: u16) -> f32 {
    let bits = u32::from(half_bits);
    let exponent_and_fraction = (bits & 0x7fff) << 13;
    // Multiplying moves the exponent from the narrow bias to the wide one and normalises subnormal
    // numbers.
    let magnitude = (f32::from_bits(exponent_and_fraction) * f32::from_bits(0x7780_0000)).to_bits();
    let special = exponent_and_fraction | 0x7f80_0000;
    let is_special = bits & 0x7c00 == 0x7c00;
    f32::from_bits(if is_special { special } else { magnitude } | ((bits & 0x8000) << 16))
}

#[inline(always)]
fn f16_bits(number: f32) -> u16 {
    let bits = number.to_bits();
    let magnitude = bits & 0x7fff_ffff;
    // Subnormal results: adding 0.5 leaves exactly their bits at the end of the fraction, rounded
    // by the addition.
    let subnormal = (f32::from_bits(magnitude) + 0.5).to_bits().wrapping_sub(0.5_f32.to_bits());
    let rebias = 0x3800_0000 - 0x0fff;
    let normal = magnitude.wrapping_sub(rebias).wrapping_add((magnitude >> 13) & 1) >> 13;
    let finite = if magnitude < 0x3880_0000 { subnormal } else { normal };
    // From 65520 on numbers round to infinity.
    let or_infinite = if magnitude >= 0x477f_f000 { 0x7c00 } else { finite };
    let or_nan = if number.is_nan() { 0x7e00 } else { or_infinite };
    (or_nan | ((bits >> 16) & 0x8000)) as u16
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_f16_widens_as_the_half_crate_says_and_narrows_back() {
        for bits in 0..=u16::MAX {
            let expected = f16::from_bits(bits).to_f32();
            let widened = f16_to_f32(bits);
            if expected.is_nan() {
                assert!(widened.is_nan() && f16::from_bits(f16_bits(widened)).is_nan());
            } else {
                assert_eq!(widened.to_bits(), expected.to_bits(), "{bits:#06x}");
                assert_eq!(f16_bits(widened), bits);
            }
        }
    }

    #[test]
    fn narrowing_rounds_to_nearest_even_as_the_half_crate_does() {
        let mut bits = 0_u32;
        // An odd step visits signs, exponents, ties and neighbours of ties.
        for _ in 0..2_000_000 {
            bits = bits.wrapping_add(0x0000_87ff);
            let number = f32::from_bits(bits);
            if number.is_nan() {
                assert!(f16::from_bits(f16_bits(number)).is_nan());
                assert!(bf16::from_bits(bf16_bits(number)).is_nan());
            } else {
                assert_eq!(f16_bits(number), f16::from_f32(number).to_bits(), "{bits:#010x}");
                assert_eq!(bf16_bits(number), bf16::from_f32(number).to_bits(), "{bits:#010x}");
            }
        }
    }
}
