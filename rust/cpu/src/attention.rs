//! Attention over a paged KV cache: checks, and the cut of a batch into pieces of work.

use std::cell::RefCell;
use std::ops::Range;

use crate::dispatch::dispatch;
use crate::element::Element;
use crate::error::Error;
use crate::mask::Mask;
use crate::threads::for_each;
use crate::tile::{Item, Scratch, TileKernel};
use crate::view::{View, ViewMut};

/// Queries (tokens x heads) of one piece of work: enough to use a tile of keys several times, few
/// enough to stay in cache.
const MAX_QUERIES_PER_ITEM: usize = 32;

/// Keys and values of one layer, `[num_blocks, num_kv_heads, block_size, dim]` each.
#[derive(Clone, Copy)]
pub struct PagedKv<'a, E> {
    /// Keys; `dim` is that of the queries.
    pub keys: View<'a, E, 4>,
    /// Values; `dim` is that of the output.
    pub values: View<'a, E, 4>,
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
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::default();
}

/// Attention of `query` `[T, num_query_heads, k_dim]` into `output` `[T, num_query_heads, v_dim]`.
///
/// Query i of row r stands at position `seq_lens[r] - query_len[r] + i` and attends keys up to
/// there, as the mask allows. Slots outside the mask are never read. Rows of `query` beyond the
/// last `query_start_loc` are padding: their output is zero. Softmax is in f32, whatever the
/// element.
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
    let plan = Plan::new(query.shape(), kv, rows, params)?;
    zero_padding(rows, output);

    let output = &*output;
    for_each(plan.items.len(), plan.work, |index| {
        SCRATCH.with_borrow_mut(|scratch| {
            let item = plan.items[index];
            let block_tables = rows.block_tables;
            dispatch(TileKernel { item, query, kv, block_tables, params, output, scratch });
        });
    })
}

/// A step cut into items that write distinct parts of the output.
struct Plan {
    items: Vec<Item>,
    /// Multiply-adds in all.
    work: usize,
}

impl Plan {
    fn new<E: Element>(
        [num_tokens, num_heads, k_dim]: [usize; 3],
        kv: PagedKv<'_, E>,
        rows: StepRows<'_>,
        params: AttentionParams<'_>,
    ) -> Result<Self, Error> {
        let [_, num_kv_heads, _, v_dim] = kv.values.shape();
        let tokens_per_item = (MAX_QUERIES_PER_ITEM * num_kv_heads / num_heads).max(1);
        let mut plan = Self { items: Vec::new(), work: 0 };
        check_rows(rows, num_tokens)?;
        for row in 0..rows.row_ids.shape()[0] {
            let Some(span) = RowSpan::new(rows, row, kv.keys.shape()[2])? else { continue };
            let first_key = params.mask.first_key(span.first_position);
            span.check_table(rows.block_tables, first_key, kv.keys.shape())?;
            let query_len = span.seq_len - span.first_position;
            plan.work += query_len * (span.seq_len - first_key) * num_heads * (k_dim + v_dim);
            for token in (0..query_len).step_by(tokens_per_item) {
                plan.items.extend((0..num_kv_heads).map(|kv_head| Item {
                    first_token: span.first_token + token,
                    num_tokens: tokens_per_item.min(query_len - token),
                    first_position: span.first_position + token,
                    table_row: span.table_row,
                    kv_head,
                }));
            }
        }
        Ok(plan)
    }
}

/// One row with queries and keys, its numbers checked.
struct RowSpan {
    first_token: usize,
    first_position: usize,
    seq_len: usize,
    table_row: usize,
}

impl RowSpan {
    /// None if there is nothing to attend.
    fn new(rows: StepRows<'_>, index: usize, block_size: usize) -> Result<Option<Self>, Error> {
        let [num_rows, num_columns] = rows.block_tables.shape();
        let row = rows.row_ids.run([index])[0];
        let seq_len = rows.seq_lens.run([index])[0];
        let &[start, stop, ..] = rows.query_start_loc.run([index]) else {
            unreachable!("query_start_loc is one longer than row_ids")
        };
        let query_len = (stop - start) as usize;
        let capacity = num_columns * block_size;
        if !(0..num_rows as i64).contains(&i64::from(row)) {
            return Err(Error::Row { index, row, num_rows });
        }
        let is_possible = |tokens| (query_len..=capacity).contains(&tokens);
        if seq_len != 0 && !usize::try_from(seq_len).is_ok_and(is_possible) {
            return Err(Error::SeqLen { index, seq_len, query_len, capacity });
        }
        let seq_len = seq_len as usize;
        Ok((seq_len > 0 && query_len > 0).then_some(Self {
            first_token: start as usize,
            first_position: seq_len.saturating_sub(query_len),
            seq_len,
            table_row: row as usize,
        }))
    }

    /// Every block that holds a key from `first_key` on must be one.
    fn check_table(
        &self,
        block_tables: View<'_, i32, 2>,
        first_key: usize,
        [num_blocks, _, block_size, _]: [usize; 4],
    ) -> Result<(), Error> {
        let row = self.table_row;
        let columns = first_key / block_size..self.seq_len.div_ceil(block_size);
        for (column, &block) in (columns.start..).zip(&block_tables.run([row, 0])[columns]) {
            if !(1..num_blocks as i64).contains(&i64::from(block)) {
                return Err(Error::TableEntry { row, column, block, num_blocks });
            }
        }
        Ok(())
    }
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
    match params.sinks.map(<[f32]>::len) {
        Some(got) if got != num_heads => {
            Err(Error::Size { argument: "sinks", dimension: 0, got, expected: num_heads })
        }
        _ => Ok(()),
    }
}

/// Lengths of the row arrays, and prefix sums that are some.
fn check_rows(rows: StepRows<'_>, num_tokens: usize) -> Result<(), Error> {
    let [num_rows] = rows.row_ids.shape();
    for (argument, got, expected) in [
        ("query_start_loc", rows.query_start_loc.shape()[0], num_rows + 1),
        ("seq_lens", rows.seq_lens.shape()[0], num_rows),
    ] {
        if got != expected {
            return Err(Error::Size { argument, dimension: 0, got, expected });
        }
    }
    let mut previous = 0;
    for (index, &got) in rows.query_start_loc.run([0]).iter().enumerate() {
        let is_first = index == 0;
        if got < previous || (is_first && got != 0) || got as usize > num_tokens {
            return Err(Error::QueryStart { index, got, num_tokens });
        }
        previous = got;
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
