//! `pagedkv._core`: the Rust crates as seen from Python.
use pyo3::prelude::*;

mod arguments;
mod beams;
mod buffers;
mod cpu;
mod error;
mod grammar;
mod kv_cache;
mod kv_sequences;
mod prefix;
mod results;
mod sampling;
mod scheduler;
mod text;
mod views;

#[pymodule]
mod _core {
    #[pymodule_export]
    const VERSION: &str = env!("CARGO_PKG_VERSION");
    #[pymodule_export]
    const NO_TOKEN: i32 = pagedkv_cpu::NO_TOKEN;
    #[pymodule_export]
    use crate::beams::BeamOptions;
    #[pymodule_export]
    use crate::buffers::StepBuffers;
    #[pymodule_export]
    use crate::cpu::{
        copy_blocks, cpu_isa, gelu, gelu_tanh, kv_write, linear, num_threads, paged_attention,
        rms_norm, rotate, set_cpu_isa, set_num_threads, silu,
    };
    #[pymodule_export]
    use crate::grammar::{Grammar, GrammarCompiler, apply_masks, fill_masks};
    #[pymodule_export]
    use crate::kv_cache::{KvCacheManager, SequenceHandle};
    #[pymodule_export]
    use crate::prefix::PrefixMatch;
    #[pymodule_export]
    use crate::results::{Batch, RequestResult, SequenceResult, StepOutput};
    #[pymodule_export]
    use crate::sampling::{best_tokens, gumbel_noise, sample_tokens};
    #[pymodule_export]
    use crate::scheduler::Scheduler;
    #[pymodule_export]
    use crate::text::{TextDecoder, TokenTable};
}
