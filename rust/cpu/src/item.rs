//! One item of work: queries against the keys of a KV head, chunk by chunk.
//!
//! With scores `s_k = cap(scale * q . k) + slope * (k - q)` over the keys that the mask allows, and
//! a sink as one more score without a value,
//!
//! ```text
//! out = sum_k e^(s_k - m) v_k / (sum_k e^(s_k - m) + e^(sink - m)),    m = the largest score
//! ```
//!
//! A chunk's keys and values are widened and rearranged once for all queries of the item, or, if these
//! are few, used where they are stored. Queries go in blocks of up to six rows (tokens x heads of the group).

mod fold;

use std::cell::RefCell;
use std::marker::PhantomData;
use std::ops::Range;

use crate::attention::{AttentionParams, PagedKv};
use crate::dispatch::dispatch;
use crate::element::Element;
use crate::error::Error;
use crate::isa::Isa;
use crate::keys::{ChunkKeys, chunk_keys, send_for_keys};
use crate::pack::{ChunkRows, MAX_AHEAD, chunk_rows, send_for_rows};
use crate::plan::{Item, Plan, Query};
use crate::product::{CHUNK, MAX_ROWS, UNIT, block_size};
use crate::simd::{Kernel, LANES, Line, Simd};
use crate::softmax::{Part, State, merge};
use crate::threads::for_each_in_two;
use crate::view::{View, ViewMut};

/// Rows from which on it pays to rearrange values that are read more often than `MAX_READS`.
const MIN_ROWS_TO_PACK: usize = 3;
/// Times that values may be read where they are stored.
const MAX_READS: usize = 2;

/// Panels of keys that are packed and used together where there is one block of rows.
const PANELS_AT_ONCE: usize = 4;

/// Numbers before the outputs of a stored state: its largest score and its sum, in a whole line.
const STATE_HEADER: usize = LANES;

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::default();
    static STATES: RefCell<Vec<f32>> = RefCell::default();
}

/// Memory of one thread, kept between calls.
#[derive(Default)]
struct Scratch {
    /// `[block, k_dim, rows]`
    query: Vec<f32>,
    /// `[k_dim]`: one query
    wide: Vec<f32>,
    /// `[panel, k_dim, 16]`
    keys: Vec<Line>,
    /// `[unit, UNIT, 16]`
    values: Vec<Line>,
    /// `[row, v_lines]`: outputs over the chunks so far
    outputs: Vec<Line>,
    /// `[MAX_ROWS, v_lines]`: outputs of a block over one chunk
    added: Vec<Line>,
    /// `[MAX_ROWS, CHUNK]`: scores, then weights of a block in one chunk
    weights: Vec<[f32; CHUNK]>,
    /// One for each block, at the index of its first row
    states: Vec<State>,
}

/// Cuts rows into blocks, of which all but the last few are the largest that S has registers for.
struct Blocks<S> {
    rows: Range<usize>,
    simd: PhantomData<S>,
}

impl<S: Simd> Iterator for Blocks<S> {
    type Item = Range<usize>;

    #[inline(always)]
    fn next(&mut self) -> Option<Range<usize>> {
        let start = self.rows.start;
        self.rows.start += block_size::<S>(self.rows.len());
        (start < self.rows.end).then_some(start..self.rows.start)
    }
}

/// What all items of a step have in common.
#[derive(Clone, Copy)]
pub struct Step<'a, E> {
    pub(crate) plan: &'a Plan,
    pub(crate) query: View<'a, E, 3>,
    pub(crate) kv: PagedKv<'a, E>,
    pub(crate) block_tables: View<'a, i32, 2>,
    pub(crate) params: AttentionParams<'a>,
    /// Rows `[token, head]` of an item are written by nobody else.
    pub(crate) output: &'a ViewMut<'a, E, 3>,
}

/// Runs the items of a step, parts first.
#[expect(clippy::large_types_passed_by_value, reason = "once per call")]
pub(crate) fn run_items<E: Element>(step: Step<'_, E>, isa: Isa) -> Result<(), Error> {
    let plan = step.plan;
    let state_size = STATE_HEADER + step.kv.values.shape()[3].next_multiple_of(LANES);
    STATES.with_borrow_mut(|memory| {
        let shape = [plan.num_states, state_size];
        if memory.len() < shape.iter().product() {
            memory.resize(shape.iter().product(), 0.0);
        }
        let states = &ViewMut::contiguous("states", memory, shape)?;
        let num_parts = plan.parts.len();
        for_each_in_two(num_parts, plan.finals.len(), plan.work, |index| {
            SCRATCH.with_borrow_mut(|scratch| {
                let is_final = index >= num_parts;
                let item =
                    if is_final { &plan.finals[index - num_parts] } else { &plan.parts[index] };
                dispatch(isa, ItemKernel { step, states, item, is_final, scratch });
            });
        })
    })
}

struct ItemKernel<'a, E> {
    step: Step<'a, E>,
    /// States of chunks, each used by one item at a time.
    states: &'a ViewMut<'a, f32, 2>,
    item: &'a Item,
    is_final: bool,
    scratch: &'a mut Scratch,
}

impl<E: Element> Kernel for ItemKernel<'_, E> {
    #[inline(always)]
    fn run<S: Simd>(mut self) {
        self.send_for_start::<S>();
        self.prepare::<S>();
        if self.is_final {
            self.start_from_parts::<S>();
        }
        for chunk in self.item.chunks.clone() {
            self.fold_chunk::<S>(chunk);
        }
        if self.is_final {
            self.write_outputs::<S>();
        }
    }
}

impl<E: Element> ItemKernel<'_, E> {
    /// Query heads per KV head.
    #[inline(always)]
    fn group(&self) -> usize {
        self.step.query.shape()[1] / self.step.kv.keys.shape()[1]
    }

    #[inline(always)]
    fn k_dim(&self) -> usize {
        self.step.kv.keys.shape()[3]
    }

    #[inline(always)]
    fn v_dim(&self) -> usize {
        self.step.kv.values.shape()[3]
    }

    /// Numbers of an output in scratch memory.
    #[inline(always)]
    fn output_length(&self) -> usize {
        self.v_dim().next_multiple_of(LANES)
    }

    #[inline(always)]
    fn num_rows(&self) -> usize {
        self.item.queries.len() * self.group()
    }

    /// The blocks of rows, one after the other.
    #[inline(always)]
    fn blocks<S: Simd>(&self) -> Blocks<S> {
        Blocks { rows: 0..self.num_rows(), simd: PhantomData }
    }

    /// Query token and query head of a row.
    #[inline(always)]
    fn query_and_head(&self, row: usize) -> (Query, usize) {
        let query = self.step.plan.queries[self.item.queries.start + row / self.group()];
        (query, self.item.kv_head * self.group() + row % self.group())
    }

    /// The keys of a chunk that a query attends, from the chunk's first.
    #[inline(always)]
    fn attended(&self, query: Query, chunk: usize) -> Range<usize> {
        let start = chunk * CHUNK;
        let end = (query.position + 1).clamp(start, start + CHUNK) - start;
        let first = self.step.params.mask.first_key(query.position).max(start) - start;
        first.min(end)..end
    }

    /// The positions in a chunk that some query of the item attends: those of a row's queries leave
    /// no gap, and rows that share a chunk attend it whole.
    #[inline(always)]
    fn read(&self, chunk: usize) -> Range<usize> {
        let queries = &self.step.plan.queries[self.item.queries.clone()];
        let first_key = self.step.params.mask.first_key(queries[0].position);
        let end = queries[queries.len() - 1].position + 1;
        first_key.max(chunk * CHUNK)..end.min((chunk + 1) * CHUNK)
    }

    /// Makes room, and lays out the scaled queries block by block if they are used.
    #[inline(always)]
    fn prepare<S: Simd>(&mut self) {
        let (k_dim, lines) = (self.k_dim(), self.output_length() / LANES);
        let num_rows = self.num_rows();
        let scratch = &mut *self.scratch;
        scratch.query.resize(num_rows * k_dim, 0.0);
        scratch.keys.resize(CHUNK / LANES * k_dim, Line::ZERO);
        scratch.values.resize(UNIT * lines, Line::ZERO);
        scratch.added.resize(MAX_ROWS * lines, Line::ZERO);
        scratch.weights.resize(MAX_ROWS, [0.0; CHUNK]);
        scratch.outputs.clear();
        scratch.outputs.resize(num_rows * lines, Line::ZERO);
        scratch.states.clear();
        scratch.states.resize(num_rows, State::EMPTY);
        if !self.item.chunks.is_empty() {
            self.lay_out_queries::<S>();
        }
    }

    #[inline(always)]
    fn lay_out_queries<S: Simd>(&mut self) {
        let (k_dim, scale) = (self.k_dim(), self.step.params.scale);
        self.scratch.wide.resize(k_dim, 0.0);
        for block in self.blocks::<S>() {
            for (lane, row) in block.clone().enumerate() {
                let (query, head) = self.query_and_head(row);
                let elements = self.step.query.run([query.token, head, 0]);
                let Scratch { query, wide, .. } = &mut *self.scratch;
                E::copy_widened(elements, wide);
                let numbers = &mut query[block.start * k_dim..block.end * k_dim];
                let numbers = numbers[lane..].iter_mut().step_by(block.len());
                for (number, wide) in numbers.zip(wide) {
                    *number = *wide * scale;
                }
            }
        }
    }

    /// Sends for the first keys and values: those after them are sent for as these are used.
    #[inline(always)]
    fn send_for_start<S: Simd>(&self) {
        let chunk = self.item.chunks.start;
        if !self.item.chunks.is_empty() {
            let first = self.read(chunk).start - chunk * CHUNK;
            let (keys, values) = self.stored(chunk);
            send_for_keys::<S, E>(&keys, self.k_dim(), first);
            send_for_rows::<S, E>(&values, self.v_dim(), first);
        }
    }

    /// Starts from the sinks and the chunks that were parts.
    #[inline(always)]
    fn start_from_parts<S: Simd>(&mut self) {
        let length = self.output_length();
        for block in self.blocks::<S>() {
            let mut state = State::EMPTY;
            if let Some(sinks) = self.step.params.sinks {
                for (lane, row) in block.clone().enumerate() {
                    state.largest.0[lane] = sinks[self.query_and_head(row).1];
                    state.sum.0[lane] = 1.0;
                }
            }
            let outputs = self.scratch.outputs.as_mut_ptr().cast::<f32>();
            let first_query = self.query_and_head(block.start).0;
            for chunk in first_query.first_chunk..self.item.parts_end {
                let mut part = Part { state: State::EMPTY, outputs: [None; MAX_ROWS] };
                for (lane, row) in block.clone().enumerate() {
                    let (query, head) = self.query_and_head(row);
                    if self.attended(query, chunk).is_empty() {
                        continue;
                    }
                    let stored = &*self.stored_state(query, head, chunk);
                    part.state.largest.0[lane] = stored[0];
                    part.state.sum.0[lane] = stored[1];
                    part.outputs[lane] = Some(stored[STATE_HEADER..].as_ptr());
                }
                // SAFETY: outputs have room for all rows of the item, stored ones are as long.
                unsafe { merge::<S>(&mut state, outputs.add(block.start * length), length, &part) };
            }
            self.scratch.states[block.start] = state;
        }
    }

    /// Where the state of a query over one chunk is stored.
    #[inline(always)]
    #[expect(clippy::mut_from_ref, reason = "states are disjoint, and used by one item at a time")]
    fn stored_state(&self, query: Query, head: usize, chunk: usize) -> &mut [f32] {
        let num_heads = self.step.query.shape()[1];
        let index = query.first_state + (chunk - query.first_chunk) * num_heads + head;
        // SAFETY: one part writes it, then one final item reads it.
        unsafe { self.states.run_shared([index, 0]) }
    }

    /// The keys and values of a chunk, and the first of the next.
    #[inline(always)]
    fn stored(&self, chunk: usize) -> (ChunkKeys<E>, ChunkRows<E>) {
        let table = self.step.block_tables.run([self.item.table_row, 0]);
        let mut read = self.read(chunk);
        if chunk + 1 < self.item.chunks.end {
            read.end += self.read(chunk + 1).len().min(MAX_AHEAD);
        }
        let PagedKv { keys, values } = self.step.kv;
        let kv_head = self.item.kv_head;
        (chunk_keys(keys, table, kv_head, &read), chunk_rows(values, table, kv_head, &read))
    }

    /// Divides by the sums, and rounds to the element.
    #[inline(always)]
    fn write_outputs<S: Simd>(&mut self) {
        let length = self.output_length();
        for block in self.blocks::<S>() {
            for (lane, row) in block.clone().enumerate() {
                let sum = S::splat(self.scratch.states[block.start].sum.0[lane]);
                let numbers = self.scratch.outputs.as_mut_ptr().cast::<f32>();
                // SAFETY: the row has `length` numbers, a multiple of sixteen.
                let numbers = unsafe {
                    let numbers = numbers.add(row * length);
                    for first in (0..length).step_by(LANES) {
                        let number = S::div(S::load(numbers.add(first)), sum);
                        S::store(number, numbers.add(first));
                    }
                    std::slice::from_raw_parts(numbers, self.v_dim())
                };
                let (query, head) = self.query_and_head(row);
                // SAFETY: final items are distinct (tokens, KV head), so no one else has this row.
                E::narrow(numbers, unsafe { self.step.output.run_shared([query.token, head, 0]) });
            }
        }
    }
}
