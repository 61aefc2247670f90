//! Running a kernel on the instruction set that was chosen.

use crate::isa::Isa;
#[cfg(target_arch = "aarch64")]
use crate::simd::Neon;
#[cfg(target_arch = "x86_64")]
use crate::simd::{Avx2, Avx512};
use crate::simd::{Fused, Kernel, Simd, Unfused};

/// Runs `kernel` on `isa`.
pub(crate) fn dispatch(isa: Isa, kernel: impl Kernel) {
    debug_assert!(isa.is_available());
    // SAFETY: an instruction set is chosen only after the CPU has been asked for it.
    unsafe {
        match isa {
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => Avx2::run(kernel),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 => Avx512::run(kernel),
            #[cfg(target_arch = "aarch64")]
            Isa::Neon => Neon::run(kernel),
            Isa::Fused => Fused::run(kernel),
            _ => Unfused::run(kernel),
        }
    }
}
