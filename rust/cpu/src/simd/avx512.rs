//! AVX-512 (F, BW, DQ, VL): a vector is one register.
//!
//! The BF16 extension has no part here: its dot product adds pairs of products and flushes
//! subnormal numbers, so it cannot give the bits of the other levels.

#![allow(clippy::wildcard_imports, reason = "every second line is an instruction")]

use std::arch::x86_64::*;

use half::{bf16, f16};

use crate::simd::{Avx2, Kernel, RowPointers, Simd};

/// The level. Only kernels dispatched to it use it.
#[derive(Clone, Copy)]
pub(crate) struct Avx512;

/// Instructions of this level, in its own methods.
macro_rules! avx512 {
    ($expression:expr) => {
        // SAFETY: methods of a level run only where dispatch found its instructions; memory is the
        // caller's promise.
        unsafe { $expression }
    };
}

// Not inlined: many small functions compile far sooner than one large one.
#[inline(never)]
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl")]
fn run(kernel: impl Kernel) {
    kernel.run::<Avx512>();
}

impl Simd for Avx512 {
    type V = __m512;

    const MAX_ROWS: usize = 6;
    const MAX_SUMS: usize = 24;

    #[inline(always)]
    unsafe fn run(kernel: impl Kernel) {
        avx512!(run(kernel));
    }

    #[inline(always)]
    fn splat(number: f32) -> __m512 {
        avx512!(_mm512_set1_ps(number))
    }

    #[inline(always)]
    unsafe fn load(from: *const f32) -> __m512 {
        avx512!(_mm512_loadu_ps(from))
    }

    #[inline(always)]
    unsafe fn load_bf16(from: *const bf16) -> __m512 {
        avx512!({
            let words = _mm512_cvtepu16_epi32(_mm256_loadu_si256(from.cast()));
            _mm512_castsi512_ps(_mm512_slli_epi32::<16>(words))
        })
    }

    #[inline(always)]
    unsafe fn load_f16(from: *const f16) -> __m512 {
        avx512!(_mm512_cvtph_ps(_mm256_loadu_si256(from.cast())))
    }

    #[inline(always)]
    unsafe fn store(v: __m512, to: *mut f32) {
        avx512!(_mm512_storeu_ps(to, v));
    }

    #[inline(always)]
    fn fma(a: __m512, b: __m512, c: __m512) -> __m512 {
        avx512!(_mm512_fmadd_ps(a, b, c))
    }

    #[inline(always)]
    fn add(a: __m512, b: __m512) -> __m512 {
        avx512!(_mm512_add_ps(a, b))
    }

    #[inline(always)]
    fn sub(a: __m512, b: __m512) -> __m512 {
        avx512!(_mm512_sub_ps(a, b))
    }

    #[inline(always)]
    fn mul(a: __m512, b: __m512) -> __m512 {
        avx512!(_mm512_mul_ps(a, b))
    }

    #[inline(always)]
    fn div(a: __m512, b: __m512) -> __m512 {
        avx512!(_mm512_div_ps(a, b))
    }

    #[inline(always)]
    fn max(a: __m512, b: __m512) -> __m512 {
        // The instruction gives its second operand unless the first is larger.
        avx512!(_mm512_max_ps(a, b))
    }

    #[inline(always)]
    fn select_less(a: __m512, b: __m512, yes: __m512, no: __m512) -> __m512 {
        avx512!(_mm512_mask_blend_ps(_mm512_cmp_ps_mask::<_CMP_LT_OQ>(a, b), no, yes))
    }

    #[inline(always)]
    fn copysign(a: __m512, b: __m512) -> __m512 {
        avx512!({
            let sign = _mm512_set1_ps(-0.0);
            _mm512_or_ps(_mm512_andnot_ps(sign, a), _mm512_and_ps(sign, b))
        })
    }

    #[inline(always)]
    fn shift_to_exponent(a: __m512) -> __m512 {
        avx512!(_mm512_castsi512_ps(_mm512_slli_epi32::<23>(_mm512_castps_si512(a))))
    }

    #[inline(always)]
    fn largest(v: __m512) -> f32 {
        Avx2::largest(halves(v))
    }

    #[inline(always)]
    fn sum(v: __m512) -> f32 {
        Avx2::sum(halves(v))
    }

    #[inline(always)]
    unsafe fn transpose_f32(rows: &RowPointers<f32>, dim: usize, to: *mut f32) -> usize {
        avx512!(Avx2::transpose_f32(rows, dim, to))
    }

    #[inline(always)]
    unsafe fn transpose_bf16(rows: &RowPointers<bf16>, dim: usize, to: *mut f32) -> usize {
        avx512!(Avx2::transpose_bf16(rows, dim, to))
    }

    #[inline(always)]
    unsafe fn transpose_f16(rows: &RowPointers<f16>, dim: usize, to: *mut f32) -> usize {
        avx512!(Avx2::transpose_f16(rows, dim, to))
    }

    #[inline(always)]
    fn prefetch(address: *const u8) {
        Avx2::prefetch(address);
    }
}

/// Lanes 0 to 7 and 8 to 15, a vector of AVX2.
#[inline(always)]
fn halves(v: __m512) -> [__m256; 2] {
    avx512!([_mm512_castps512_ps256(v), _mm512_extractf32x8_ps::<1>(v)])
}
