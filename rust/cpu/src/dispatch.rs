//! One source, compiled for the widest vectors of the CPU it runs on.

/// A loop nest that the compiler vectorises.
///
/// `run` and everything it calls must be `#[inline(always)]`: only inlined code takes on the wider
/// instruction set.
pub(crate) trait Kernel {
    /// Does the work.
    fn run(self);
}

/// Runs `kernel` with 256-bit vectors where the CPU has them.
///
/// Both versions round alike: they do the same operations in the same order, and the compiler may
/// not fuse them.
pub(crate) fn dispatch(kernel: impl Kernel) {
    #[cfg(target_arch = "x86_64")]
    if std::arch::is_x86_feature_detected!("avx2") {
        // SAFETY: the CPU has just been asked whether it knows the instructions.
        unsafe { run_avx2(kernel) };
        return;
    }
    kernel.run();
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn run_avx2(kernel: impl Kernel) {
    kernel.run();
}
