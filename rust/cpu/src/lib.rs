//! CPU kernels of pagedkv, in their plain form: the twin that hand-written SIMD is compared with.
//!
//! One rule shapes every kernel: **a result depends on its own inputs only.** Not on what else is
//! in the batch, how a prompt was cut into chunks, the block size, or the number of threads, bit
//! for bit. So every sum has a fixed order (eight lanes by element index, then one tree), keys are
//! visited by position in tiles with absolute bounds, and threads share out whole results, never
//! parts of a sum. There is no fused multiply-add, so that the vectors of one CPU and the scalars
//! of another round alike.
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
mod lanes;
mod mask;
mod math;
mod philox;
mod threads;
mod tile;
mod view;

pub use activation::{Activation, activate};
pub use attention::{AttentionParams, PagedKv, StepRows, paged_attention};
pub use blocks::{copy_blocks, kv_write};
pub use element::Element;
pub use error::Error;
pub use half::{bf16, f16};
pub use mask::Mask;
pub use philox::{NoiseRow, gumbel_noise, philox4x32_10};
pub use threads::{num_threads, set_num_threads};
pub use view::{View, ViewMut, row_major};
