//! NEON of 64-bit ARM: a vector is four registers of four lanes.

#![allow(clippy::wildcard_imports, reason = "every second line is an instruction")]

use std::arch::aarch64::*;

use half::{bf16, f16};

use crate::element::Element;
use crate::simd::{Kernel, LANES, RowPointers, Simd};

/// The level. Only kernels dispatched to it use it.
#[derive(Clone, Copy)]
pub(crate) struct Neon;

type V = [float32x4_t; 4];

/// Instructions of this level, in its own methods.
macro_rules! neon {
    ($expression:expr) => {
        // SAFETY: methods of a level run only where dispatch found its instructions; memory is the
        // caller's promise.
        unsafe { $expression }
    };
}

/// One instruction on each register.
macro_rules! each {
    ($instruction:ident($($v:expr),+)) => {
        neon!([
            $instruction($($v[0]),+),
            $instruction($($v[1]),+),
            $instruction($($v[2]),+),
            $instruction($($v[3]),+),
        ])
    };
}

// Not inlined: many small functions compile far sooner than one large one.
#[inline(never)]
#[target_feature(enable = "neon")]
fn run(kernel: impl Kernel) {
    kernel.run::<Neon>();
}

impl Simd for Neon {
    type V = V;

    const MAX_ROWS: usize = 6;
    const MAX_SUMS: usize = 6;

    #[inline(always)]
    unsafe fn run(kernel: impl Kernel) {
        neon!(run(kernel));
    }

    #[inline(always)]
    fn splat(number: f32) -> V {
        [neon!(vdupq_n_f32(number)); 4]
    }

    #[inline(always)]
    unsafe fn load(from: *const f32) -> V {
        neon!([
            vld1q_f32(from),
            vld1q_f32(from.add(4)),
            vld1q_f32(from.add(8)),
            vld1q_f32(from.add(12)),
        ])
    }

    #[inline(always)]
    unsafe fn load_bf16(from: *const bf16) -> V {
        let from = from.cast::<u16>();
        neon!([
            widen_bf16(from),
            widen_bf16(from.add(4)),
            widen_bf16(from.add(8)),
            widen_bf16(from.add(12)),
        ])
    }

    #[inline(always)]
    unsafe fn load_f16(from: *const f16) -> V {
        // The instruction's type is not stable in Rust; this conversion is made of others.
        let mut numbers = [0.0; 16];
        // SAFETY: the caller's promise, and sixteen numbers of its own.
        unsafe {
            f16::copy_widened(std::slice::from_raw_parts(from, 16), &mut numbers);
            Self::load(numbers.as_ptr())
        }
    }

    #[inline(always)]
    unsafe fn store(v: V, to: *mut f32) {
        for (index, register) in v.into_iter().enumerate() {
            neon!(vst1q_f32(to.add(4 * index), register));
        }
    }

    #[inline(always)]
    fn fma(a: V, b: V, c: V) -> V {
        each!(vfmaq_f32(c, a, b))
    }

    #[inline(always)]
    fn add(a: V, b: V) -> V {
        each!(vaddq_f32(a, b))
    }

    #[inline(always)]
    fn sub(a: V, b: V) -> V {
        each!(vsubq_f32(a, b))
    }

    #[inline(always)]
    fn mul(a: V, b: V) -> V {
        each!(vmulq_f32(a, b))
    }

    #[inline(always)]
    fn div(a: V, b: V) -> V {
        each!(vdivq_f32(a, b))
    }

    #[inline(always)]
    fn max(a: V, b: V) -> V {
        // Not vmaxq, which would keep a NaN.
        let larger = each!(vcgtq_f32(a, b));
        each!(vbslq_f32(larger, a, b))
    }

    #[inline(always)]
    fn select_less(a: V, b: V, yes: V, no: V) -> V {
        let less = each!(vcltq_f32(a, b));
        each!(vbslq_f32(less, yes, no))
    }

    #[inline(always)]
    fn copysign(a: V, b: V) -> V {
        let sign = [neon!(vdupq_n_u32(1 << 31)); 4];
        each!(vbslq_f32(sign, b, a))
    }

    #[inline(always)]
    fn shift_to_exponent(a: V) -> V {
        each!(shift_to_exponent(a))
    }

    #[inline(always)]
    fn largest(v: V) -> f32 {
        neon!({
            let four = larger(larger(v[3], v[1]), larger(v[2], v[0]));
            let two = larger(vextq_f32::<2>(four, four), four);
            vgetq_lane_f32::<0>(larger(vextq_f32::<1>(two, two), two))
        })
    }

    #[inline(always)]
    fn sum(v: V) -> f32 {
        neon!({
            let four = vaddq_f32(vaddq_f32(v[0], v[2]), vaddq_f32(v[1], v[3]));
            let two = vaddq_f32(four, vextq_f32::<2>(four, four));
            vgetq_lane_f32::<0>(vaddq_f32(two, vextq_f32::<1>(two, two)))
        })
    }

    #[inline(always)]
    unsafe fn transpose_f32(rows: &RowPointers<f32>, dim: usize, to: *mut f32) -> usize {
        let done = dim / 4 * 4;
        for column in (0..done).step_by(4) {
            for first in [0, 4, 8, 12] {
                neon!({
                    let mut four = [vdupq_n_f32(0.0); 4];
                    for (index, row) in four.iter_mut().enumerate() {
                        *row = vld1q_f32(rows[first + index].add(column));
                    }
                    let low = [vzip1q_f32(four[0], four[2]), vzip1q_f32(four[1], four[3])];
                    let high = [vzip2q_f32(four[0], four[2]), vzip2q_f32(four[1], four[3])];
                    let columns = [
                        vzip1q_f32(low[0], low[1]),
                        vzip2q_f32(low[0], low[1]),
                        vzip1q_f32(high[0], high[1]),
                        vzip2q_f32(high[0], high[1]),
                    ];
                    for (index, register) in columns.into_iter().enumerate() {
                        vst1q_f32(to.add((column + index) * LANES + first), register);
                    }
                });
            }
        }
        done
    }
}

// Functions, not closures: those are not always inlined, and then compiled without the instructions.

/// `a` where it is larger, else `b`.
///
/// # Safety
/// The CPU has NEON.
#[inline(always)]
unsafe fn larger(a: float32x4_t, b: float32x4_t) -> float32x4_t {
    neon!(vbslq_f32(vcgtq_f32(a, b), a, b))
}

/// The bits moved up by 23.
///
/// # Safety
/// The CPU has NEON.
#[inline(always)]
unsafe fn shift_to_exponent(a: float32x4_t) -> float32x4_t {
    neon!(vreinterpretq_f32_u32(vshlq_n_u32::<23>(vreinterpretq_u32_f32(a))))
}

/// Four numbers.
///
/// # Safety
/// They are readable, and the CPU has NEON.
#[inline(always)]
unsafe fn widen_bf16(from: *const u16) -> float32x4_t {
    neon!(vreinterpretq_f32_u32(vshll_n_u16::<16>(vld1_u16(from))))
}
