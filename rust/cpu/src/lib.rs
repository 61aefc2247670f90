//! CPU kernels of pagedkv: attention over paged keys and values, writes to them, linear
//! layers, norms, activations, sampling, masks of tokens.
//!
//! One rule shapes every kernel: **a result depends on its own inputs only.** Not on what else is
//! in the batch, how a prompt was cut into chunks, the block size, the number of threads, or who
//! shares blocks with whom, bit for bit. So every sum has a fixed order, and threads share out
//! parts whose bounds are absolute positions. Nor does it depend on the instruction set, as long as
//! that has a fused multiply-add: vectors have sixteen lanes everywhere, see `simd`.
//!
//! Memory belongs to the caller: kernels see it through [`View`] and [`ViewMut`], which are checked
//! when made; block tables, slots and lengths are checked once per call, before anything is
//! written.

#![warn(clippy::undocumented_unsafe_blocks)]
#![expect(clippy::inline_always, reason = "only inlined code is compiled for the wider vectors")]

mod activation;
mod attention;
mod blocks;
mod dispatch;
mod element;
mod error;
mod isa;
mod item;
mod keys;
mod linear;
mod mask;
mod math;
mod norm;
mod pack;
mod philox;
mod places;
mod plan;
mod product;
mod rotary;
mod rows;
mod sample;
mod share;
mod simd;
mod softmax;
mod team;
mod threads;
mod token_mask;
mod values;
mod view;

pub use activation::{Activation, activate};
pub use attention::{AttentionParams, Keys, PagedKv, StepRows, paged_attention};
pub use blocks::{copy_blocks, kv_write, kv_write_columns};
pub use element::Element;
pub use error::Error;
pub use half::{bf16, f16};
pub use isa::{ISA_VARIABLE, Isa};
pub use linear::linear;
pub use mask::Mask;
pub use norm::{RmsNorm, rms_norm};
pub use philox::{NoiseRow, gumbel_noise, philox4x32_10};
pub use rotary::rotate;
pub use sample::{NO_TOKEN, Reported, SampleOutputs, SampleRow, best_tokens, sample};
pub use threads::{num_threads, set_num_threads};
pub use token_mask::apply_masks;
pub use view::{View, ViewMut, row_major};
