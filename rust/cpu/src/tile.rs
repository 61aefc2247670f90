//! Attention of a few queries of one row over the keys of one KV head, tile by tile.
//!
//! With scores `s_k = cap(scale * q . k)` over the keys that the mask allows, and a sink as one
//! more score without a value,
//!
//! ```text
//! out = sum_k exp(s_k - m) v_k / (sum_k exp(s_k - m) + exp(sink - m)),    m = the largest score
//! ```
//!
//! Tiles start at multiples of [`TILE`] positions, whatever the blocks and the chunks of the
//! prompt, and each query folds them in order of position into a running state (m, sum, out),
//! passing over tiles without a key of its own. That order, and the order inside a tile, are
//! functions of the query's position alone. (Online softmax: Milakov and Gimelshein, 2018.)

use std::ops::Range;

use crate::attention::{AttentionParams, PagedKv};
use crate::dispatch::Kernel;
use crate::element::Element;
use crate::lanes::{LANES, Lanes, sum_each};
use crate::math::{exp_weight, tanh};
use crate::view::{View, ViewMut};

/// Key positions per tile: the keys of one head fit the first-level cache.
const TILE: usize = 64;

/// The rows of a tile by position; those that no query reads repeat a neighbour that one does.
type Rows<'a> = [&'a [f32]; TILE];

/// Tokens `first_token .. first_token + num_tokens` of the batch, the first at `first_position` of
/// its row, and the query heads that read `kv_head`.
#[derive(Clone, Copy)]
pub(crate) struct Item {
    pub(crate) first_token: usize,
    pub(crate) num_tokens: usize,
    pub(crate) first_position: usize,
    pub(crate) table_row: usize,
    pub(crate) kv_head: usize,
}

/// Memory of one thread, kept between calls.
#[derive(Default)]
pub(crate) struct Scratch {
    /// `[queries, k_dim]`
    query: Vec<f32>,
    /// `[TILE, k_dim]`, unless keys are f32 in place
    keys: Vec<f32>,
    /// `[TILE, v_dim]`, likewise
    values: Vec<f32>,
    /// `[queries, v_dim]`: the sums of weighted values so far
    output: Vec<f32>,
    states: Vec<State>,
}

/// The softmax of one query and head over the tiles so far.
#[derive(Clone, Copy)]
struct State {
    largest: f32,
    sum: f32,
}

/// One item and all it reads and writes.
pub(crate) struct TileKernel<'a, E> {
    pub(crate) item: Item,
    pub(crate) query: View<'a, E, 3>,
    pub(crate) kv: PagedKv<'a, E>,
    pub(crate) block_tables: View<'a, i32, 2>,
    pub(crate) params: AttentionParams<'a>,
    /// Rows `[token, head]` of the item are written, by nobody else meanwhile.
    pub(crate) output: &'a ViewMut<'a, E, 3>,
    pub(crate) scratch: &'a mut Scratch,
}

impl<E: Element> Kernel for TileKernel<'_, E> {
    #[inline(always)]
    fn run(self) {
        let Self { item, query, kv, block_tables, params, output, scratch } = self;
        let [_, num_heads, k_dim] = query.shape();
        let [_, num_kv_heads, _, v_dim] = kv.values.shape();
        let group = num_heads / num_kv_heads;
        let first_head = item.kv_head * group;
        let token_and_head =
            |index: usize| [item.first_token + index / group, first_head + index % group, 0];

        scratch.prepare(item.num_tokens * group, k_dim, v_dim);
        for (index, numbers) in scratch.query.chunks_exact_mut(k_dim).enumerate() {
            E::copy_widened(query.run(token_and_head(index)), numbers);
            if let Some(sinks) = params.sinks {
                scratch.states[index] =
                    State { largest: sinks[first_head + index % group], sum: 1.0 };
            }
        }

        let table = block_tables.run([item.table_row, 0]);
        let first_key = params.mask.first_key(item.first_position);
        let end = item.first_position + item.num_tokens;
        for start in (first_key - first_key % TILE..end).step_by(TILE) {
            let read = first_key.max(start)..end.min(start + TILE);
            let at = Tile { table, kv_head: item.kv_head, start, read };
            let keys = at.rows(kv.keys, &mut scratch.keys);
            let values = at.rows(kv.values, &mut scratch.values);
            let queries = scratch.query.chunks_exact(k_dim);
            let outputs = scratch.output.chunks_exact_mut(v_dim);
            for (index, (query, output)) in queries.zip(outputs).enumerate() {
                let position = item.first_position + index / group;
                let from = params.mask.first_key(position).max(start) - start;
                let to = (position + 1).min(start + TILE).saturating_sub(start);
                if from < to {
                    let state = &mut scratch.states[index];
                    fold(query, &keys, &values, from..to, params, state, output);
                }
            }
        }

        for (index, numbers) in scratch.output.chunks_exact_mut(v_dim).enumerate() {
            let sum = scratch.states[index].sum;
            for number in &mut *numbers {
                *number /= sum;
            }
            // SAFETY: items are distinct (tokens, KV head), so no other thread has this row.
            E::narrow(numbers, unsafe { output.run_shared(token_and_head(index)) });
        }
    }
}

impl Scratch {
    #[inline(always)]
    fn prepare(&mut self, num_queries: usize, k_dim: usize, v_dim: usize) {
        self.query.resize(num_queries * k_dim, 0.0);
        self.keys.resize(TILE * k_dim, 0.0);
        self.values.resize(TILE * v_dim, 0.0);
        self.output.clear();
        self.output.resize(num_queries * v_dim, 0.0);
        self.states.clear();
        self.states.resize(num_queries, State { largest: f32::NEG_INFINITY, sum: 0.0 });
    }
}

/// Where a tile's rows are: positions `start .. start + TILE`, of which `read` may be touched.
struct Tile<'a> {
    table: &'a [i32],
    kv_head: usize,
    start: usize,
    read: Range<usize>,
}

impl Tile<'_> {
    /// The rows of `storage` at the tile's positions, in f32; `buffer` holds them if they are
    /// stored otherwise.
    #[inline(always)]
    fn rows<'b, E: Element>(&self, storage: View<'b, E, 4>, buffer: &'b mut [f32]) -> Rows<'b> {
        let [_, _, block_size, dim] = storage.shape();
        let mut rows: Rows<'b> = [&[]; TILE];
        let mut buffers = buffer.chunks_exact_mut(dim);
        let mut position = self.read.start;
        while position < self.read.end {
            let block = self.table[position / block_size] as usize;
            let slots = storage.matrix(block, self.kv_head);
            let end = self.read.end.min(position - position % block_size + block_size);
            for position in position..end {
                let buffer = buffers.next().expect("a tile has TILE rows");
                rows[position - self.start] =
                    E::widen(slots.run([position % block_size, 0]), buffer);
            }
            position = end;
        }
        let (first, end) = (self.read.start - self.start, self.read.end - self.start);
        let (before, after) = (rows[first], rows[end - 1]);
        rows[..first].fill(before);
        rows[end..].fill(after);
        rows
    }
}

/// Adds the keys and values `attended` of a tile to the state and output of one query.
#[inline(always)]
fn fold(
    query: &[f32],
    keys: &Rows<'_>,
    values: &Rows<'_>,
    attended: Range<usize>,
    params: AttentionParams<'_>,
    state: &mut State,
    output: &mut [f32],
) {
    // Whole vectors around the attended keys; the others of the tile stay untouched.
    let around = attended.start / LANES * LANES..attended.end.next_multiple_of(LANES);
    let mut weights = [0.0; TILE];
    for first in around.clone().step_by(LANES) {
        dot_products(query, &keys[first..first + LANES]).store(&mut weights[first..]);
    }
    // Loops over single numbers: the compiler vectorises these, not the same inside a vector type.
    for score in &mut weights[around.clone()] {
        *score *= params.scale;
    }
    if let Some(cap) = params.softcap {
        for score in &mut weights[around.clone()] {
            *score = cap * tanh(*score / cap);
        }
    }
    weights[around.start..attended.start].fill(f32::NEG_INFINITY);
    weights[attended.end..around.end].fill(f32::NEG_INFINITY);

    let mut largest = Lanes::splat(state.largest);
    for first in around.clone().step_by(LANES) {
        largest = largest.max(Lanes::load(&weights[first..]));
    }
    let largest = largest.largest();
    // Scores of minus infinity only: any finite reference gives them weight 0.
    let reference = if largest == f32::NEG_INFINITY { 0.0 } else { largest };
    let correction = exp_weight(state.largest - reference);
    for weight in &mut weights[around.clone()] {
        *weight = exp_weight(*weight - reference);
    }
    let mut sum = Lanes::splat(0.0);
    for first in around.step_by(LANES) {
        sum = sum.add(Lanes::load(&weights[first..]));
    }
    *state = State { largest, sum: state.sum * correction + sum.sum() };
    add_weighted(&weights, values, attended, correction, output);
}

/// `query . key` of eight keys.
#[inline(always)]
fn dot_products(query: &[f32], keys: &[&[f32]]) -> Lanes {
    let keys: &[&[f32]; LANES] = keys.try_into().expect("eight keys");
    let (parts, rest) = query.as_chunks::<LANES>();
    // Cut to one length, so that the loop needs no check of its own.
    let key_parts = keys.map(|key| &key.as_chunks::<LANES>().0[..parts.len()]);
    let mut sums = [Lanes::splat(0.0); LANES];
    for (index, part) in parts.iter().enumerate() {
        for (sum, key) in sums.iter_mut().zip(key_parts) {
            *sum = sum.add_product(Lanes(*part), Lanes(key[index]));
        }
    }
    for (lane, number) in rest.iter().enumerate() {
        for (sum, key) in sums.iter_mut().zip(keys) {
            sum.0[lane] += number * key[parts.len() * LANES + lane];
        }
    }
    sum_each(&sums)
}

/// `output = output * correction + sum over rows of weight * value`, row after row.
#[inline(always)]
fn add_weighted(
    weights: &[f32; TILE],
    values: &Rows<'_>,
    rows: Range<usize>,
    correction: f32,
    output: &mut [f32],
) {
    let dim = output.len();
    let (weights, values) = (&weights[rows.clone()], &values[rows]);
    let mut column = 0;
    while column + 8 * LANES <= dim {
        add_weighted_columns::<8>(weights, values, column, correction, output);
        column += 8 * LANES;
    }
    while column + 2 * LANES <= dim {
        add_weighted_columns::<2>(weights, values, column, correction, output);
        column += 2 * LANES;
    }
    for column in column..dim {
        let mut number = output[column] * correction;
        for (weight, value) in weights.iter().zip(values) {
            number += weight * value[column];
        }
        output[column] = number;
    }
}

/// `N * LANES` columns of [`add_weighted`], kept in registers.
#[inline(always)]
fn add_weighted_columns<const N: usize>(
    weights: &[f32],
    values: &[&[f32]],
    column: usize,
    correction: f32,
    output: &mut [f32],
) {
    let columns = &mut output[column..column + N * LANES];
    let mut sums = [Lanes::splat(0.0); N];
    for (index, sum) in sums.iter_mut().enumerate() {
        *sum = Lanes::load(&columns[index * LANES..]).mul(Lanes::splat(correction));
    }
    for (&weight, value) in weights.iter().zip(values) {
        let value = &value[column..column + N * LANES];
        for (index, sum) in sums.iter_mut().enumerate() {
            *sum = sum.add_product(Lanes::splat(weight), Lanes::load(&value[index * LANES..]));
        }
    }
    for (index, sum) in sums.iter().enumerate() {
        sum.store(&mut columns[index * LANES..]);
    }
}
