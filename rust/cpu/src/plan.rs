//! The cut of a step into items of work that write distinct memory.
//!
//! Positions are cut into chunks of [`CHUNK`] keys, whatever the batch. An item computes the states
//! of some queries over a run of chunks, for the query heads of one KV head. Most items go through
//! all chunks of their queries, keep the merged state to themselves, and write outputs. Two kinds
//! of leading chunks are computed in a first phase, by items that store the state of each chunk
//! apart, for the final items to start from:
//!
//! - chunks whose blocks several rows have in common: read once for all of them;
//! - the chunks of a row that is too long for one thread.
//!
//! Which chunks these are changes who computes a state, never how, nor the order of the merge.

use std::ops::Range;

use crate::attention::{AttentionParams, PagedKv, StepRows};
use crate::element::Element;
use crate::error::Error;
use crate::mask::Mask;
use crate::product::CHUNK;
use crate::rows::RowSpan;
use crate::share::{Shared, shared_chunks};

/// Queries (tokens x heads) of one item: enough to use rearranged keys many times, few enough that
/// their states stay in the second-level cache.
pub(crate) const MAX_QUERIES_PER_ITEM: usize = 192;

/// Rows with at most so many queries (tokens x heads of a KV head) take part in the first phase;
/// states of longer rows would take more memory than keys do.
const MAX_QUERIES_OF_PART: usize = 64;

/// Chunks whose states are merged among themselves before they are merged with those of earlier spans:
/// a part that goes through all of them stores one state, not one for each.
pub(crate) const SPAN: usize = 4;

/// Reading a key costs as much as multiplying it by so many queries.
const READING: usize = 8;

/// An item is small enough if there are so many of its cost per thread.
const ITEMS_PER_THREAD: usize = 4;

/// Items that a thread has in hand at most: the one it does, and the next.
const ITEMS_TAKEN: usize = 2;

/// One query token.
#[derive(Clone, Copy)]
pub(crate) struct Query {
    /// Row of the query tensor.
    pub(crate) token: usize,
    pub(crate) position: usize,
    /// The first chunk with a key that the token's row attends.
    pub(crate) first_chunk: usize,
    /// Where the states of its first chunk are stored, those of all heads side by side.
    pub(crate) first_state: usize,
}

/// Tokens, a KV head, and a run of chunks.
#[derive(Clone)]
pub(crate) struct Item {
    /// Indices into the plan's queries.
    pub(crate) queries: Range<usize>,
    pub(crate) kv_head: usize,
    pub(crate) chunks: Range<usize>,
    /// For final items: the first chunk of the row that was no part.
    pub(crate) parts_end: usize,
    pub(crate) table_row: usize,
    cost: usize,
}

/// The items of a step.
pub(crate) struct Plan {
    pub(crate) queries: Vec<Query>,
    /// Items that store the state of each chunk.
    pub(crate) parts: Vec<Item>,
    /// Items that write outputs, after all parts; earlier chunks than theirs were parts.
    pub(crate) finals: Vec<Item>,
    /// How many states the parts store.
    pub(crate) num_states: usize,
    /// Multiply-adds in all.
    pub(crate) work: usize,
}

/// A row and what was decided about it.
pub(crate) struct PlannedRow {
    pub(crate) span: RowSpan,
    pub(crate) queries: Range<usize>,
    pub(crate) chunks: Range<usize>,
    /// The first chunk that is no part.
    pub(crate) parts_end: usize,
}

/// Sizes that costs depend on.
#[derive(Clone, Copy)]
struct Sizes {
    group: usize,
    num_kv_heads: usize,
    /// Numbers of a key and a value.
    per_key: usize,
}

impl Plan {
    pub(crate) fn new<E: Element>(
        query_shape: [usize; 3],
        kv: PagedKv<'_, E>,
        rows: StepRows<'_>,
        params: AttentionParams<'_>,
        num_threads: usize,
    ) -> Result<Self, Error> {
        let [_, num_heads, k_dim] = query_shape;
        let [_, num_kv_heads, block_size, v_dim] = kv.values.shape();
        let group = num_heads / num_kv_heads;
        let sizes = Sizes { group, num_kv_heads, per_key: k_dim + v_dim };
        let mut plan =
            Self { queries: vec![], parts: vec![], finals: vec![], num_states: 0, work: 0 };
        let mut planned = plan.rows(kv, rows, params)?;
        let costs = planned.iter().map(|row| sizes.cost(row.chunks.len(), row.queries.len()));
        let largest_item =
            (costs.sum::<usize>() * num_kv_heads / (num_threads * ITEMS_PER_THREAD)).max(1);
        let groups =
            shared_chunks(&mut planned, rows.block_tables, block_size, params.mask, |row| {
                row.queries.len() * group <= MAX_QUERIES_OF_PART
            });
        let first_own: Vec<usize> = planned.iter().map(|row| row.parts_end).collect();
        plan.place_states(&mut planned, sizes, num_heads, largest_item);
        plan.share(&planned, &groups, sizes, largest_item);
        for (row, first_own) in planned.iter().zip(first_own) {
            plan.split(row, first_own, params.mask, sizes, largest_item);
        }
        for items in [&mut plan.parts, &mut plan.finals] {
            // The dearest first: what is left at the end is small.
            items.sort_by_key(|item| std::cmp::Reverse(item.cost));
            // Heads side by side in the same blocks are not read by two threads at a time, but one soon
            // after the other: the processor's own prefetch reads on into the next head.
            for group in items.chunks_mut(num_kv_heads * num_threads * ITEMS_TAKEN) {
                group.sort_by_key(|item| item.kv_head);
            }
        }
        Ok(plan)
    }

    /// Checks the rows and lists their queries.
    fn rows<E: Element>(
        &mut self,
        kv: PagedKv<'_, E>,
        rows: StepRows<'_>,
        params: AttentionParams<'_>,
    ) -> Result<Vec<PlannedRow>, Error> {
        let [_, _, block_size, _] = kv.keys.shape();
        let mut planned = Vec::with_capacity(rows.row_ids.shape()[0]);
        for index in 0..rows.row_ids.shape()[0] {
            let Some(span) = RowSpan::new(rows, index, block_size)? else { continue };
            let first_key = params.mask.first_key(span.first_position);
            span.check_table(rows.block_tables, first_key, kv.keys.shape())?;
            let first_chunk = first_key / CHUNK;
            let first_query = self.queries.len();
            self.queries.extend((0..span.query_len()).map(|index| Query {
                token: span.first_token + index,
                position: span.first_position + index,
                first_chunk,
                first_state: 0,
            }));
            planned.push(PlannedRow {
                queries: first_query..self.queries.len(),
                chunks: first_chunk..span.seq_len.div_ceil(CHUNK),
                parts_end: first_chunk,
                span,
            });
        }
        Ok(planned)
    }

    /// Decides which rows are split, and where the states of parts are stored.
    fn place_states(
        &mut self,
        planned: &mut [PlannedRow],
        sizes: Sizes,
        num_heads: usize,
        largest_item: usize,
    ) {
        for row in planned {
            let num_own = row.chunks.end - row.parts_end;
            let is_short = row.queries.len() * sizes.group <= MAX_QUERIES_OF_PART;
            let is_too_long = sizes.cost(num_own, row.queries.len()) > largest_item;
            if is_short && is_too_long && num_own > 1 {
                row.parts_end = row.chunks.end;
            }
            let states_per_query = (row.parts_end - row.chunks.start) * num_heads;
            for query in &mut self.queries[row.queries.clone()] {
                query.first_state = self.num_states;
                self.num_states += states_per_query;
            }
        }
    }

    /// Parts for chunks that rows have in common.
    fn share(
        &mut self,
        planned: &[PlannedRow],
        groups: &[Shared],
        sizes: Sizes,
        largest_item: usize,
    ) {
        for Shared { rows, chunks } in groups {
            let mut rest = rows.as_slice();
            while !rest.is_empty() {
                let first_query = self.queries.len();
                let mut count = 0;
                while let Some((&row, others)) = rest.split_first() {
                    let tokens = planned[row].queries.clone();
                    if count > 0 && (count + tokens.len()) * sizes.group > MAX_QUERIES_PER_ITEM {
                        break;
                    }
                    count += tokens.len();
                    self.queries.extend_from_within(tokens);
                    rest = others;
                }
                let table_row = planned[rows[0]].span.table_row;
                let queries = first_query..self.queries.len();
                self.add_parts(&queries, chunks.clone(), table_row, sizes, largest_item);
            }
        }
    }

    /// Items for the chunks of a row that it has for itself.
    fn split(
        &mut self,
        row: &PlannedRow,
        first_own: usize,
        mask: Mask,
        sizes: Sizes,
        largest_item: usize,
    ) {
        let (table_row, parts_end) = (row.span.table_row, row.parts_end);
        let own_parts = first_own..row.parts_end;
        self.add_parts(&row.queries, own_parts, table_row, sizes, largest_item);
        let most = (MAX_QUERIES_PER_ITEM / sizes.group).max(1);
        let fewest = most.div_ceil(4);
        let cheap_enough = largest_item / sizes.cost(row.chunks.len(), 1);
        let tokens = row.queries.len().min(cheap_enough.clamp(fewest, most));
        for first in row.queries.clone().step_by(tokens) {
            let queries = first..row.queries.end.min(first + tokens);
            let chunks_end = self.queries[queries.end - 1].position / CHUNK + 1;
            let first_chunk = mask.first_key(self.queries[first].position) / CHUNK;
            let chunks = first_chunk.max(parts_end)..chunks_end.max(parts_end);
            let cost = sizes.cost(chunks.len(), queries.len());
            for kv_head in 0..sizes.num_kv_heads {
                let (queries, chunks) = (queries.clone(), chunks.clone());
                self.finals.push(Item { queries, kv_head, chunks, parts_end, table_row, cost });
                self.work += cost;
            }
        }
    }

    /// Parts of no more than `largest_item`, or one chunk.
    fn add_parts(
        &mut self,
        queries: &Range<usize>,
        chunks: Range<usize>,
        table_row: usize,
        sizes: Sizes,
        largest_item: usize,
    ) {
        let step = (largest_item / sizes.cost(1, queries.len())).max(1);
        let mut first = chunks.start;
        while first < chunks.end {
            let mut end = first + step;
            if end / SPAN > first / SPAN {
                end = end / SPAN * SPAN;
            }
            let chunks = first..chunks.end.min(end);
            first = chunks.end;
            let cost = sizes.cost(chunks.len(), queries.len());
            for kv_head in 0..sizes.num_kv_heads {
                let (queries, chunks) = (queries.clone(), chunks.clone());
                self.parts.push(Item { queries, kv_head, chunks, parts_end: 0, table_row, cost });
                self.work += cost;
            }
        }
    }
}

impl Sizes {
    /// Cost of some query tokens over some chunks, for one KV head: about their multiply-adds.
    fn cost(self, num_chunks: usize, num_tokens: usize) -> usize {
        num_chunks * CHUNK * self.per_key * (READING + num_tokens * self.group)
    }
}
