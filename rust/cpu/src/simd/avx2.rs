//! AVX2 with FMA and F16C: a vector is two registers of eight lanes.

#![allow(clippy::wildcard_imports, reason = "every second line is an instruction")]
#![expect(clippy::cast_ptr_alignment, reason = "loads and stores that take any alignment")]

use std::arch::x86_64::*;

use half::{bf16, f16};

use crate::simd::{Kernel, LANES, RowPointers, Simd};

/// The level. Only kernels dispatched to it use it.
#[derive(Clone, Copy)]
pub(crate) struct Avx2;

type V = [__m256; 2];

/// Instructions of this level, in its own methods.
macro_rules! avx2 {
    ($expression:expr) => {
        // SAFETY: methods of a level run only where dispatch found its instructions (AVX2, FMA,
        // F16C); memory is the caller's promise.
        unsafe { $expression }
    };
}

/// One instruction on each register.
macro_rules! each {
    ($instruction:ident($($v:ident),+)) => {
        avx2!([$instruction($($v[0]),+), $instruction($($v[1]),+)])
    };
}

// Not inlined: many small functions compile far sooner than one large one.
#[inline(never)]
#[target_feature(enable = "avx2,fma,f16c")]
fn run(kernel: impl Kernel) {
    kernel.run::<Avx2>();
}

impl Simd for Avx2 {
    type V = V;

    const MAX_ROWS: usize = 6;
    const MAX_SUMS: usize = 6;

    #[inline(always)]
    unsafe fn run(kernel: impl Kernel) {
        avx2!(run(kernel));
    }

    #[inline(always)]
    fn splat(number: f32) -> V {
        let register = avx2!(_mm256_set1_ps(number));
        [register, register]
    }

    #[inline(always)]
    unsafe fn load(from: *const f32) -> V {
        avx2!([_mm256_loadu_ps(from), _mm256_loadu_ps(from.add(8))])
    }

    #[inline(always)]
    unsafe fn load_bf16(from: *const bf16) -> V {
        avx2!([widen_bf16(from), widen_bf16(from.add(8))])
    }

    #[inline(always)]
    unsafe fn load_f16(from: *const f16) -> V {
        let from = from.cast::<__m128i>();
        avx2!([
            _mm256_cvtph_ps(_mm_loadu_si128(from)),
            _mm256_cvtph_ps(_mm_loadu_si128(from.add(1)))
        ])
    }

    #[inline(always)]
    unsafe fn store(v: V, to: *mut f32) {
        avx2!({
            _mm256_storeu_ps(to, v[0]);
            _mm256_storeu_ps(to.add(8), v[1]);
        });
    }

    #[inline(always)]
    fn fma(a: V, b: V, c: V) -> V {
        each!(_mm256_fmadd_ps(a, b, c))
    }

    #[inline(always)]
    fn add(a: V, b: V) -> V {
        each!(_mm256_add_ps(a, b))
    }

    #[inline(always)]
    fn sub(a: V, b: V) -> V {
        each!(_mm256_sub_ps(a, b))
    }

    #[inline(always)]
    fn mul(a: V, b: V) -> V {
        each!(_mm256_mul_ps(a, b))
    }

    #[inline(always)]
    fn div(a: V, b: V) -> V {
        each!(_mm256_div_ps(a, b))
    }

    #[inline(always)]
    fn max(a: V, b: V) -> V {
        // The instruction gives its second operand unless the first is larger.
        each!(_mm256_max_ps(a, b))
    }

    #[inline(always)]
    fn select_less(a: V, b: V, yes: V, no: V) -> V {
        let less = each!(less_than(a, b));
        each!(_mm256_blendv_ps(no, yes, less))
    }

    #[inline(always)]
    fn copysign(a: V, b: V) -> V {
        let sign = Self::splat(-0.0);
        let (magnitude, sign) = (each!(_mm256_andnot_ps(sign, a)), each!(_mm256_and_ps(sign, b)));
        each!(_mm256_or_ps(magnitude, sign))
    }

    #[inline(always)]
    fn shift_to_exponent(a: V) -> V {
        each!(shift_to_exponent(a))
    }

    #[inline(always)]
    fn largest(v: V) -> f32 {
        avx2!({
            let eight = _mm256_max_ps(v[1], v[0]);
            let low = _mm256_castps256_ps128(eight);
            let four = _mm_max_ps(_mm256_extractf128_ps::<1>(eight), low);
            let two = _mm_max_ps(_mm_movehl_ps(four, four), four);
            _mm_cvtss_f32(_mm_max_ss(_mm_shuffle_ps::<1>(two, two), two))
        })
    }

    #[inline(always)]
    fn sum(v: V) -> f32 {
        avx2!({
            let eight = _mm256_add_ps(v[0], v[1]);
            let high = _mm256_extractf128_ps::<1>(eight);
            let four = _mm_add_ps(_mm256_castps256_ps128(eight), high);
            let two = _mm_add_ps(four, _mm_movehl_ps(four, four));
            _mm_cvtss_f32(_mm_add_ss(two, _mm_shuffle_ps::<1>(two, two)))
        })
    }

    #[inline(always)]
    unsafe fn transpose_f32(rows: &RowPointers<f32>, dim: usize, to: *mut f32) -> usize {
        let done = dim / 8 * 8;
        for column in (0..done).step_by(8) {
            for half in [0, 8] {
                avx2!({
                    let columns = transpose_8x8(rows, half, column);
                    for (index, register) in columns.into_iter().enumerate() {
                        _mm256_storeu_ps(to.add((column + index) * LANES + half), register);
                    }
                });
            }
        }
        done
    }

    #[inline(always)]
    unsafe fn transpose_bf16(rows: &RowPointers<bf16>, dim: usize, to: *mut f32) -> usize {
        // Pairs of neighbours are moved as one number and told apart at the end.
        let odd = avx2!(_mm256_set1_epi32(0xffff_0000_u32 as i32));
        let done = dim / 16 * 16;
        for column in (0..done).step_by(16) {
            for half in [0, 8] {
                avx2!({
                    let pairs = transpose_8x8(&rows.map(<*const bf16>::cast), half, column / 2);
                    for (index, pair) in pairs.into_iter().enumerate() {
                        let pair = _mm256_castps_si256(pair);
                        let column = column + 2 * index;
                        let even = _mm256_slli_epi32::<16>(pair);
                        _mm256_storeu_ps(to.add(column * LANES + half), _mm256_castsi256_ps(even));
                        let odd = _mm256_and_si256(pair, odd);
                        _mm256_storeu_ps(
                            to.add((column + 1) * LANES + half),
                            _mm256_castsi256_ps(odd),
                        );
                    }
                });
            }
        }
        done
    }

    #[inline(always)]
    unsafe fn transpose_f16(rows: &RowPointers<f16>, dim: usize, to: *mut f32) -> usize {
        // In each half register the four even numbers first, then the four odd ones.
        let order = avx2!(_mm256_broadcastsi128_si256(_mm_setr_epi8(
            0, 1, 4, 5, 8, 9, 12, 13, 2, 3, 6, 7, 10, 11, 14, 15
        )));
        let done = dim / 16 * 16;
        for column in (0..done).step_by(16) {
            for half in [0, 8] {
                avx2!({
                    let pairs = transpose_8x8(&rows.map(<*const f16>::cast), half, column / 2);
                    for (index, pair) in pairs.into_iter().enumerate() {
                        let sorted = _mm256_shuffle_epi8(_mm256_castps_si256(pair), order);
                        let sorted = _mm256_permute4x64_epi64::<0b11_01_10_00>(sorted);
                        let column = column + 2 * index;
                        let even = _mm256_cvtph_ps(_mm256_castsi256_si128(sorted));
                        _mm256_storeu_ps(to.add(column * LANES + half), even);
                        let odd = _mm256_cvtph_ps(_mm256_extracti128_si256::<1>(sorted));
                        _mm256_storeu_ps(to.add((column + 1) * LANES + half), odd);
                    }
                });
            }
        }
        done
    }

    #[inline(always)]
    fn prefetch(address: *const u8) {
        avx2!(_mm_prefetch::<_MM_HINT_T0>(address.cast()));
    }
}

// Functions, not closures: those are not always inlined, and then compiled without the instructions.

/// All ones where `a < b`.
///
/// # Safety
/// The CPU has AVX2.
#[inline(always)]
unsafe fn less_than(a: __m256, b: __m256) -> __m256 {
    avx2!(_mm256_cmp_ps::<_CMP_LT_OQ>(a, b))
}

/// The bits moved up by 23.
///
/// # Safety
/// The CPU has AVX2.
#[inline(always)]
unsafe fn shift_to_exponent(a: __m256) -> __m256 {
    avx2!(_mm256_castsi256_ps(_mm256_slli_epi32::<23>(_mm256_castps_si256(a))))
}

/// Eight numbers.
///
/// # Safety
/// They are readable, and the CPU has AVX2.
#[inline(always)]
unsafe fn widen_bf16(from: *const bf16) -> __m256 {
    avx2!({
        let words = _mm256_cvtepu16_epi32(_mm_loadu_si128(from.cast()));
        _mm256_castsi256_ps(_mm256_slli_epi32::<16>(words))
    })
}

/// Elements `column .. column + 8` of rows `first .. first + 8`, one register per column.
///
/// # Safety
/// They are readable, and the CPU has AVX2.
#[inline(always)]
unsafe fn transpose_8x8(rows: &RowPointers<f32>, first: usize, column: usize) -> [__m256; 8] {
    let mut columns = [avx2!(_mm256_setzero_ps()); 8];
    for half in [0, 4] {
        // Rows four apart share a register, so that no number has to change its half later.
        let mut four = [avx2!(_mm256_setzero_ps()); 4];
        for (index, two) in four.iter_mut().enumerate() {
            avx2!({
                let low = _mm_loadu_ps(rows[first + index].add(column + half));
                let high = _mm_loadu_ps(rows[first + index + 4].add(column + half));
                *two = _mm256_insertf128_ps::<1>(_mm256_castps128_ps256(low), high);
            });
        }
        avx2!({
            let low = [_mm256_unpacklo_ps(four[0], four[1]), _mm256_unpacklo_ps(four[2], four[3])];
            let high = [_mm256_unpackhi_ps(four[0], four[1]), _mm256_unpackhi_ps(four[2], four[3])];
            columns[half] = _mm256_shuffle_ps::<0x44>(low[0], low[1]);
            columns[half + 1] = _mm256_shuffle_ps::<0xee>(low[0], low[1]);
            columns[half + 2] = _mm256_shuffle_ps::<0x44>(high[0], high[1]);
            columns[half + 3] = _mm256_shuffle_ps::<0xee>(high[0], high[1]);
        });
    }
    columns
}
