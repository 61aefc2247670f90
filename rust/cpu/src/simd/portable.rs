//! Vectors as arrays of sixteen numbers: what the others are compared with, and what runs where
//! there is nothing better.

use half::{bf16, f16};

use crate::element::Element;
use crate::simd::{Kernel, LANES, Simd};

/// With `mul_add`: the same bits as every level with a fused instruction. Exact, and slow on a CPU
/// without it.
pub(crate) type Fused = Portable<true>;

/// With a product and a sum, each rounded: fast on any CPU.
pub(crate) type Unfused = Portable<false>;

/// An array for a vector, fused or not.
#[derive(Clone, Copy)]
pub(crate) struct Portable<const FUSED: bool>;

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "fma")]
fn run_fma(kernel: impl Kernel) {
    kernel.run::<Fused>();
}

/// One number per lane. A plain loop: closures behind `array::from_fn` are not always inlined.
#[inline(always)]
fn lanes(number: impl Fn(usize) -> f32) -> [f32; LANES] {
    let mut numbers = [0.0; LANES];
    let mut lane = 0;
    while lane < LANES {
        numbers[lane] = number(lane);
        lane += 1;
    }
    numbers
}

/// Sixteen elements, widened.
///
/// # Safety
/// They are readable.
#[inline(always)]
unsafe fn load<E: Element>(from: *const E) -> [f32; LANES] {
    let mut numbers = [0.0; LANES];
    // SAFETY: the caller vouches for sixteen elements; a tensor's elements are aligned.
    E::copy_widened(unsafe { std::slice::from_raw_parts(from, LANES) }, &mut numbers);
    numbers
}

impl<const FUSED: bool> Simd for Portable<FUSED> {
    type V = [f32; LANES];

    const MAX_ROWS: usize = 2;
    const MAX_SUMS: usize = 2;

    unsafe fn run(kernel: impl Kernel) {
        #[cfg(target_arch = "x86_64")]
        if FUSED && is_x86_feature_detected!("fma") {
            // SAFETY: the CPU has just been asked. The bits are the same, without a function call.
            unsafe { run_fma(kernel) };
            return;
        }
        kernel.run::<Self>();
    }

    #[inline(always)]
    fn splat(number: f32) -> Self::V {
        [number; LANES]
    }

    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self::V {
        // SAFETY: the caller's promise.
        unsafe { load(from) }
    }

    #[inline(always)]
    unsafe fn load_bf16(from: *const bf16) -> Self::V {
        // SAFETY: the caller's promise.
        unsafe { load(from) }
    }

    #[inline(always)]
    unsafe fn load_f16(from: *const f16) -> Self::V {
        // SAFETY: the caller's promise.
        unsafe { load(from) }
    }

    #[inline(always)]
    unsafe fn store(v: Self::V, to: *mut f32) {
        // SAFETY: the caller's promise.
        unsafe { to.cast::<Self::V>().write_unaligned(v) }
    }

    #[inline(always)]
    fn fma(a: Self::V, b: Self::V, c: Self::V) -> Self::V {
        if FUSED {
            lanes(|lane| a[lane].mul_add(b[lane], c[lane]))
        } else {
            lanes(|lane| a[lane] * b[lane] + c[lane])
        }
    }

    #[inline(always)]
    fn add(a: Self::V, b: Self::V) -> Self::V {
        lanes(|lane| a[lane] + b[lane])
    }

    #[inline(always)]
    fn sub(a: Self::V, b: Self::V) -> Self::V {
        lanes(|lane| a[lane] - b[lane])
    }

    #[inline(always)]
    fn mul(a: Self::V, b: Self::V) -> Self::V {
        lanes(|lane| a[lane] * b[lane])
    }

    #[inline(always)]
    fn div(a: Self::V, b: Self::V) -> Self::V {
        lanes(|lane| a[lane] / b[lane])
    }

    #[inline(always)]
    fn max(a: Self::V, b: Self::V) -> Self::V {
        lanes(|lane| if a[lane] > b[lane] { a[lane] } else { b[lane] })
    }

    #[inline(always)]
    fn select_less(a: Self::V, b: Self::V, yes: Self::V, no: Self::V) -> Self::V {
        lanes(|lane| if a[lane] < b[lane] { yes[lane] } else { no[lane] })
    }

    #[inline(always)]
    fn copysign(a: Self::V, b: Self::V) -> Self::V {
        lanes(|lane| a[lane].copysign(b[lane]))
    }

    #[inline(always)]
    fn shift_to_exponent(a: Self::V) -> Self::V {
        lanes(|lane| f32::from_bits(a[lane].to_bits() << 23))
    }

    #[inline(always)]
    fn largest(v: Self::V) -> f32 {
        let larger = |a: f32, b: f32| if a > b { a } else { b };
        let mut numbers = v;
        for half in [8, 4, 2, 1] {
            for lane in 0..half {
                numbers[lane] = larger(numbers[lane + half], numbers[lane]);
            }
        }
        numbers[0]
    }

    #[inline(always)]
    fn sum(v: Self::V) -> f32 {
        let mut numbers = v;
        for half in [8, 4, 2, 1] {
            for lane in 0..half {
                numbers[lane] += numbers[lane + half];
            }
        }
        numbers[0]
    }
}
