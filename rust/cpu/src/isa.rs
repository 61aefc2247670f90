//! Which instruction set the kernels use: the best of the CPU, unless one is named.

use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::atomic::{AtomicU8, Ordering};

use crate::error::Error;

/// Environment variable that names the instruction set.
pub const ISA_VARIABLE: &str = "PAGEDKV_CPU_ISA";

/// An instruction set for which there are kernels. All but [`Plain`](Isa::Plain) give the same
/// bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Isa {
    /// No vectors but those that the compiler finds, no fused multiply-add: for any CPU.
    Plain,
    /// No vectors, multiply-add as one operation: the scalar twin of the ones below, and slow.
    Fused,
    /// AVX2 with FMA and F16C.
    Avx2,
    /// AVX-512 (F, BW, DQ, VL).
    Avx512,
    /// NEON of 64-bit ARM.
    Neon,
}

/// The choice as `Isa as u8 + 1`; 0 before the first look at the environment.
static CHOSEN: AtomicU8 = AtomicU8::new(0);
static FIRST_CHOICE: Mutex<()> = Mutex::new(());

impl Isa {
    /// From the worst to the best.
    pub const ALL: [Self; 5] = [Self::Plain, Self::Fused, Self::Avx2, Self::Avx512, Self::Neon];

    /// The name by which users know it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Plain => "plain",
            Self::Fused => "fused",
            Self::Avx2 => "avx2",
            Self::Avx512 => "avx512",
            Self::Neon => "neon",
        }
    }

    /// Whether this CPU has the instructions.
    pub fn is_available(self) -> bool {
        match self {
            Self::Plain | Self::Fused => true,
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 => {
                is_x86_feature_detected!("avx2")
                    && is_x86_feature_detected!("fma")
                    && is_x86_feature_detected!("f16c")
            }
            #[cfg(target_arch = "x86_64")]
            Self::Avx512 => {
                Self::Avx2.is_available()
                    && is_x86_feature_detected!("avx512f")
                    && is_x86_feature_detected!("avx512bw")
                    && is_x86_feature_detected!("avx512dq")
                    && is_x86_feature_detected!("avx512vl")
            }
            #[cfg(target_arch = "aarch64")]
            Self::Neon => std::arch::is_aarch64_feature_detected!("neon"),
            #[cfg(not(all(target_arch = "x86_64", target_arch = "aarch64")))]
            _ => false,
        }
    }

    /// The best one of this CPU.
    pub fn best() -> Self {
        let fast = [Self::Avx512, Self::Avx2, Self::Neon];
        fast.into_iter().find(|isa| isa.is_available()).unwrap_or(Self::Plain)
    }

    /// The one that kernels use from here on, in all threads.
    ///
    /// # Errors
    /// [`Error::Isa`] if this CPU lacks it.
    pub fn choose(self) -> Result<(), Error> {
        if !self.is_available() {
            return Err(unusable(self.name()));
        }
        CHOSEN.store(self as u8 + 1, Ordering::Relaxed);
        Ok(())
    }

    /// The one that kernels use.
    ///
    /// # Errors
    /// [`Error::Isa`] if the environment names none of this CPU.
    pub fn chosen() -> Result<Self, Error> {
        if let Some(isa) = Self::stored() {
            return Ok(isa);
        }
        let _one_at_a_time = FIRST_CHOICE.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(isa) = Self::stored() {
            return Ok(isa);
        }
        let isa = match std::env::var(ISA_VARIABLE) {
            Ok(name) if !name.is_empty() => name.parse()?,
            _ => Self::best(),
        };
        isa.choose()?;
        Ok(isa)
    }

    fn stored() -> Option<Self> {
        let index = CHOSEN.load(Ordering::Relaxed).checked_sub(1)?;
        Some(Self::ALL[usize::from(index)])
    }
}

impl std::str::FromStr for Isa {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self, Error> {
        Self::ALL.into_iter().find(|isa| isa.name() == name).ok_or_else(|| unusable(name))
    }
}

fn unusable(name: &str) -> Error {
    let usable: Vec<&str> =
        Isa::ALL.into_iter().filter(|isa| isa.is_available()).map(Isa::name).collect();
    Error::Isa { got: name.to_owned(), usable: usable.join(", ") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unknown_or_absent_instruction_set_is_named_with_those_there_are() {
        let message = "sse9".parse::<Isa>().unwrap_err().to_string();
        assert!(message.contains("got 'sse9'") && message.contains("plain, fused"), "{message}");
        let absent = Isa::ALL.into_iter().find(|isa| !isa.is_available());
        let absent = absent.expect("no CPU has both AVX-512 and NEON");
        let message = absent.choose().unwrap_err().to_string();
        assert!(message.contains(absent.name()) && message.contains(ISA_VARIABLE), "{message}");
    }

    #[test]
    fn names_lead_back_to_their_instruction_set() {
        for isa in Isa::ALL {
            assert_eq!(isa.name().parse(), Ok(isa));
            assert_eq!(Isa::ALL[isa as usize], isa);
        }
        assert!(Isa::best().is_available());
    }
}
