//! Sixteen f32 side by side, the unit in which every kernel counts, on each instruction set.
//!
//! Kernels are generic over [`Simd`] and `#[inline(always)]` down to the instructions, so that they
//! take on the instruction set of the function they are inlined into. A vector has sixteen lanes
//! whatever the registers: two of AVX2, one of AVX-512, four of NEON. So no kernel has a case that
//! exists for one register width only, and all levels with a fused multiply-add give the same bits;
//! [`Fused`] is their scalar twin.

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
#[cfg(target_arch = "aarch64")]
mod neon;
mod portable;

#[cfg(target_arch = "x86_64")]
pub(crate) use avx2::Avx2;
#[cfg(target_arch = "x86_64")]
pub(crate) use avx512::Avx512;
use half::{bf16, f16};
#[cfg(target_arch = "aarch64")]
pub(crate) use neon::Neon;
pub(crate) use portable::{Fused, Unfused};

/// Lanes of a vector.
pub(crate) const LANES: usize = 16;

/// Memory of one vector, aligned for all levels.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
pub(crate) struct Line(pub(crate) [f32; LANES]);

impl Line {
    pub(crate) const ZERO: Self = Self([0.0; LANES]);
}

/// Rows of a matrix in storage, of sixteen keys.
pub(crate) type RowPointers<E> = [*const E; LANES];

/// Work that is compiled for each instruction set.
///
/// `run` and everything it calls must be `#[inline(always)]`: only inlined code takes on the
/// instruction set.
pub trait Kernel {
    /// Does the work.
    fn run<S: Simd>(self);
}

/// An instruction set.
///
/// Its methods may be called only where the CPU has the instructions: inside a kernel that
/// [`dispatch`](crate::dispatch::dispatch) runs. Operations are lane by lane in IEEE f32.
pub trait Simd: Copy {
    /// A vector.
    type V: Copy;

    /// The most rows (queries) of a product that have their sums in registers: 6 or, where vectors
    /// are arrays, 2.
    const MAX_ROWS: usize;

    /// Vectors of sums there are registers for.
    const MAX_SUMS: usize;

    /// Runs `kernel` as a function of its own, compiled for this level.
    ///
    /// # Safety
    /// The CPU has the instructions.
    unsafe fn run(kernel: impl Kernel);

    /// The same number in every lane.
    fn splat(number: f32) -> Self::V;

    /// Sixteen numbers.
    ///
    /// # Safety
    /// They are readable; any alignment.
    unsafe fn load(from: *const f32) -> Self::V;

    /// Sixteen numbers, widened.
    ///
    /// # Safety
    /// They are readable; any alignment.
    unsafe fn load_bf16(from: *const bf16) -> Self::V;

    /// Sixteen numbers, widened.
    ///
    /// # Safety
    /// They are readable; any alignment.
    unsafe fn load_f16(from: *const f16) -> Self::V;

    /// Writes sixteen numbers.
    ///
    /// # Safety
    /// They are writeable; any alignment.
    unsafe fn store(v: Self::V, to: *mut f32);

    /// `a * b + c`, rounded once if the level has the instruction.
    fn fma(a: Self::V, b: Self::V, c: Self::V) -> Self::V;

    /// `a + b`
    fn add(a: Self::V, b: Self::V) -> Self::V;

    /// `a - b`
    fn sub(a: Self::V, b: Self::V) -> Self::V;

    /// `a * b`
    fn mul(a: Self::V, b: Self::V) -> Self::V;

    /// `a / b`
    fn div(a: Self::V, b: Self::V) -> Self::V;

    /// `a` where it is larger, else `b`: a NaN in `a` is passed over.
    fn max(a: Self::V, b: Self::V) -> Self::V;

    /// `yes` where `a < b`, else `no`.
    fn select_less(a: Self::V, b: Self::V, yes: Self::V, no: Self::V) -> Self::V;

    /// The magnitude of `a` with the sign of `b`.
    fn copysign(a: Self::V, b: Self::V) -> Self::V;

    /// The number whose bits are those of `a` moved up by 23: `2^n` if the last nine bits of `a`
    /// are `n + 127`.
    fn shift_to_exponent(a: Self::V) -> Self::V;

    /// The largest lane; NaN is passed over unless lane 0 has it.
    fn largest(v: Self::V) -> f32;

    /// The sum of the lanes: lanes eight apart first, then four, two and one.
    fn sum(v: Self::V) -> f32;

    /// Transposes the first columns of sixteen rows into `to` `[dim, 16]` and says how many of `dim`:
    /// none where the plain loop does as well.
    ///
    /// # Safety
    /// Each row has `dim` readable elements, and `to` has room.
    #[inline(always)]
    unsafe fn transpose_f32(_rows: &RowPointers<f32>, _dim: usize, _to: *mut f32) -> usize {
        0
    }

    /// As [`transpose_f32`](Self::transpose_f32), widening.
    ///
    /// # Safety
    /// As there.
    #[inline(always)]
    unsafe fn transpose_bf16(_rows: &RowPointers<bf16>, _dim: usize, _to: *mut f32) -> usize {
        0
    }

    /// As [`transpose_f32`](Self::transpose_f32), widening.
    ///
    /// # Safety
    /// As there.
    #[inline(always)]
    unsafe fn transpose_f16(_rows: &RowPointers<f16>, _dim: usize, _to: *mut f32) -> usize {
        0
    }

    /// Asks for a cache line that will be read soon; any address will do.
    #[inline(always)]
    fn prefetch(_address: *const u8) {}
}
