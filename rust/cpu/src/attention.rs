//! Attention over a paged KV cache: what a caller passes, and its checks.

use std::ops::Range;

use crate::element::Element;
use crate::error::Error;
use crate::isa::Isa;
use crate::item::Step;
use crate::mask::Mask;
use crate::plan::Plan;
use crate::rows::check_rows;
use crate::simd::LANES;
use crate::threads::num_threads;
use crate::view::{View, ViewMut};

/// Keys and values of one layer.
#[derive(Clone, Copy)]
pub struct PagedKv<'a, E> {
    /// Keys; their `dim` is that of the queries.
    pub keys: Keys<'a, E>,
    /// Values `[num_blocks, num_kv_heads, block_size, dim]`; `dim` is that of the output.
    pub values: View<'a, E, 4>,
}

/// Keys of one layer, in either of two layouts.
#[derive(Clone, Copy)]
pub enum Keys<'a, E> {
    /// `[num_blocks, num_kv_heads, block_size, dim]`: a key's numbers lie side by side.
    Rows(View<'a, E, 4>),
    /// `[num_blocks, num_kv_heads, dim, block_size]`: a number of all keys of a block lies side by
    /// side, as the product with queries wants it. `block_size` is a multiple of sixteen.
    Columns(View<'a, E, 4>),
}

impl<E> Keys<'_, E> {
    /// `[num_blocks, num_kv_heads, block_size, dim]`
    pub fn shape(&self) -> [usize; 4] {
        match self {
            Self::Rows(rows) => rows.shape(),
            Self::Columns(columns) => {
                let [num_blocks, num_kv_heads, dim, block_size] = columns.shape();
                [num_blocks, num_kv_heads, block_size, dim]
            }
        }
    }
}

/// The rows of one step: R scheduled sequences. DESIGN calls these arrays the batch contract.
#[derive(Clone, Copy)]
pub struct StepRows<'a> {
    /// `[R]` rows of the block table.
    pub row_ids: View<'a, i32, 1>,
    /// `[R + 1]` prefix sums of query tokens.
    pub query_start_loc: View<'a, i32, 1>,
    /// `[R]` context length after this step; 0 makes the outputs of the row zero.
    pub seq_lens: View<'a, i32, 1>,
    /// `[rows, columns]` block of each run of `block_size` positions.
    pub block_tables: View<'a, i32, 2>,
}

/// What a layer does with its scores.
#[derive(Debug, Clone, Copy)]
pub struct AttentionParams<'a> {
    /// Factor of `query . key`.
    pub scale: f32,
    /// Which keys a query attends.
    pub mask: Mask,
    /// Scores become `softcap * tanh(score / softcap)`.
    pub softcap: Option<f32>,
    /// `[num_query_heads]` one more score per head, without a value.
    pub sinks: Option<&'a [f32]>,
    /// `[num_query_heads]` factor of (key position - query position), added to the capped scores.
    pub alibi_slopes: Option<&'a [f32]>,
}

/// Attention of `query` `[T, num_query_heads, k_dim]` into `output` `[T, num_query_heads, v_dim]`.
///
/// Query i of row r stands at position `seq_lens[r] - query_len[r] + i` and attends keys up to
/// there, as the mask allows. What slots outside the mask hold changes no result (of keys in columns
/// they may be read, together with neighbours that count). Rows of `query` beyond the
/// last `query_start_loc` are padding: their output is zero. Softmax is in f32, whatever the
/// element. Blocks that several rows of few queries start with are read once.
///
/// # Errors
/// Any variant of [`Error`] about sizes, rows, lengths and table entries, before anything is
/// written.
pub fn paged_attention<E: Element>(
    query: View<'_, E, 3>,
    kv: PagedKv<'_, E>,
    rows: StepRows<'_>,
    params: AttentionParams<'_>,
    output: &mut ViewMut<'_, E, 3>,
) -> Result<(), Error> {
    check_geometry(query, kv, output.shape())?;
    check_params(params, query.shape()[1])?;
    check_rows(rows, query.shape()[0])?;
    let isa = Isa::chosen()?;
    let plan = Plan::new(query.shape(), kv, rows, params, num_threads()?)?;
    zero_padding(rows, output);
    let block_tables = rows.block_tables;
    E::run_items(Step { plan: &plan, query, kv, block_tables, params, output }, isa)
}

fn check_geometry<E: Element>(
    query: View<'_, E, 3>,
    kv: PagedKv<'_, E>,
    output_shape: [usize; 3],
) -> Result<(), Error> {
    let [num_tokens, num_heads, k_dim] = query.shape();
    let [num_blocks, num_kv_heads, block_size, v_dim] = kv.values.shape();
    for (argument, got) in [
        ("number of query heads", num_heads),
        ("number of KV heads", num_kv_heads),
        ("block size", block_size),
        ("size of a key head", k_dim),
        ("size of a value head", v_dim),
    ] {
        if got == 0 {
            return Err(Error::NotPositive { argument, got });
        }
    }
    let keys = kv.keys.shape();
    for (argument, dimension, got, expected) in [
        ("keys", 0, keys[0], num_blocks),
        ("keys", 1, keys[1], num_kv_heads),
        ("keys", 2, keys[2], block_size),
        ("query", 2, k_dim, keys[3]),
        ("query", 1, num_heads, num_heads.next_multiple_of(num_kv_heads)),
        ("output", 0, output_shape[0], num_tokens),
        ("output", 1, output_shape[1], num_heads),
        ("output", 2, output_shape[2], v_dim),
    ] {
        if got != expected {
            return Err(Error::Size { argument, dimension, got, expected });
        }
    }
    if matches!(kv.keys, Keys::Columns(_)) && !block_size.is_multiple_of(LANES) {
        let expected = block_size.next_multiple_of(LANES);
        return Err(Error::Size {
            argument: "keys in columns",
            dimension: 3,
            got: block_size,
            expected,
        });
    }
    Ok(())
}

fn check_params(params: AttentionParams<'_>, num_heads: usize) -> Result<(), Error> {
    params.mask.check()?;
    if !params.scale.is_finite() {
        let (argument, got) = ("scale", params.scale.to_string());
        return Err(Error::Number { argument, expected: "finite", got });
    }
    if let Some(cap) = params.softcap.filter(|cap| !(cap.is_finite() && *cap > 0.0)) {
        let (argument, got) = ("softcap", cap.to_string());
        return Err(Error::Number { argument, expected: "finite and above 0", got });
    }
    for (argument, per_head) in [("sinks", params.sinks), ("alibi_slopes", params.alibi_slopes)] {
        if let Some(got) = per_head.map(<[f32]>::len).filter(|&got| got != num_heads) {
            return Err(Error::Size { argument, dimension: 0, got, expected: num_heads });
        }
    }
    Ok(())
}

/// Zeroes the outputs that no item writes: of padding tokens, and of rows without context.
fn zero_padding<E: Element>(rows: StepRows<'_>, output: &mut ViewMut<'_, E, 3>) {
    let [num_tokens, num_heads, _] = output.shape();
    let starts = rows.query_start_loc.run([0]);
    let mut zero = |tokens: Range<usize>| {
        for (token, head) in tokens.flat_map(|token| (0..num_heads).map(move |head| (token, head)))
        {
            output.run_mut([token, head, 0]).fill(E::ZERO);
        }
    };
    for (index, span) in starts.windows(2).enumerate() {
        if rows.seq_lens.run([index])[0] == 0 {
            zero(span[0] as usize..span[1] as usize);
        }
    }
    zero(starts[starts.len() - 1] as usize..num_tokens);
}
