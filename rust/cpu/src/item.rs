//! One item of work: queries against the keys of a KV head, chunk by chunk.
//!
//! With scores `s_k = cap(scale * q . k) + slope * (k - q)` over the keys that the mask allows, and
//! a sink as one more score without a value,
//!
//! ```text
//! out = sum_k e^(s_k - m) v_k / (sum_k e^(s_k - m) + e^(sink - m)),    m = the largest score
//! ```
//!
//! Queries go in blocks of up to six rows (tokens x heads of the group). A chunk's keys and values are
//! widened and rearranged once for all blocks of the item, or used where they are stored: if there is
//! one block, or if there are few and the numbers are f32.

mod fold;
mod source;
mod span;

use std::cell::RefCell;
use std::marker::PhantomData;
use std::ops::Range;

use crate::attention::{AttentionParams, PagedKv};
use crate::dispatch::dispatch;
use crate::element::Element;
use crate::error::Error;
use crate::isa::Isa;
use crate::plan::{Item, Plan, Query};
use crate::product::{CHUNK, MAX_ROWS, UNIT, block_size};
use crate::simd::{Kernel, LANES, Line, Simd};
use crate::softmax::State;
use crate::threads::for_each_in_two;
use crate::view::{View, ViewMut};

/// Rows from which on it pays to rearrange values that are read more often than `MAX_READS`.
const MIN_ROWS_TO_PACK: usize = 3;
/// Times that values may be read where they are stored.
const MAX_READS: usize = 2;

/// Rows (several blocks) that use keys and values in f32 where they are stored: reading them goes on
/// beside the products then. For more rows, it pays to rearrange them.
const MAX_ROWS_IN_PLACE: usize = 96;

/// Panels of keys that are packed and used together where there is one block of rows.
const PANELS_AT_ONCE: usize = 4;

/// Numbers before the outputs of a stored state, in a whole line: its largest score, its sum, and how many
/// chunks it stands for.
const STATE_HEADER: usize = LANES;

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::default();
    static STATES: RefCell<Vec<f32>> = RefCell::default();
}

/// Memory of one thread, kept between calls.
#[derive(Default)]
struct Scratch {
    /// Query token and query head of each row
    rows: Vec<(Query, usize)>,
    /// `[block, k_dim, rows]`
    query: Vec<f32>,
    /// `[k_dim]`: one query
    wide: Vec<f32>,
    /// `[panel, k_dim, 16]`
    keys: Vec<Line>,
    /// `[unit, UNIT, 16]`
    values: Vec<Line>,
    /// `[row, v_lines]`: outputs over the spans so far, of final items
    outputs: Vec<Line>,
    /// `[row, v_lines]`: outputs over the chunks of the open span so far
    span_outputs: Vec<Line>,
    /// `[MAX_ROWS, v_lines]`: outputs of a block over one chunk
    added: Vec<Line>,
    /// `[MAX_ROWS, CHUNK]`: scores, then weights of a block in one chunk
    weights: Vec<[f32; CHUNK]>,
    /// One for each block, at the index of its first row: of the spans so far, of final items
    states: Vec<State>,
    /// The same of the open span
    span_states: Vec<State>,
    /// The item whose first keys and values the one before it has sent for
    sent_for: Option<usize>,
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
        let item = |index: usize| match index.checked_sub(num_parts) {
            Some(index) => &plan.finals[index],
            None => &plan.parts[index],
        };
        for_each_in_two(num_parts, plan.finals.len(), plan.work, |index, next| {
            SCRATCH.with_borrow_mut(|scratch| {
                let is_sent_for = scratch.sent_for == Some(index);
                let (own, is_final) = (item(index), index >= num_parts);
                scratch.sent_for = next.filter(|_| !own.chunks.is_empty());
                let next = next.map(item);
                let kernel = ItemKernel {
                    step,
                    states,
                    item: own,
                    next,
                    is_final,
                    is_sent_for,
                    span: 0..0,
                    scratch,
                };
                dispatch(isa, kernel);
            });
        })
    })
}

struct ItemKernel<'a, E> {
    step: Step<'a, E>,
    /// States of chunks, each used by one item at a time.
    states: &'a ViewMut<'a, f32, 2>,
    item: &'a Item,
    /// The item that the thread does after this one, if that is known.
    next: Option<&'a Item>,
    is_final: bool,
    is_sent_for: bool,
    /// The chunks of the open span whose states are merged already.
    span: Range<usize>,
    scratch: &'a mut Scratch,
}

impl<E: Element> Kernel for ItemKernel<'_, E> {
    #[inline(always)]
    fn run<S: Simd>(mut self) {
        if !self.is_sent_for {
            self.step.send_for_start::<S>(self.item);
        }
        self.prepare::<S>();
        if self.is_final {
            self.start_from_parts::<S>();
        }
        for chunk in self.item.chunks.clone() {
            self.enter::<S>(chunk);
            self.fold_chunk::<S>(chunk);
            self.span.end = chunk + 1;
        }
        self.close::<S>();
        if self.is_final {
            self.write_outputs::<S>();
        }
    }
}

impl<E: Element> ItemKernel<'_, E> {
    /// Numbers of an output in scratch memory.
    #[inline(always)]
    fn output_length(&self) -> usize {
        self.step.v_dim().next_multiple_of(LANES)
    }

    #[inline(always)]
    fn num_rows(&self) -> usize {
        self.scratch.rows.len()
    }

    /// The blocks of rows, one after the other.
    #[inline(always)]
    fn blocks<S: Simd>(&self) -> Blocks<S> {
        Blocks { rows: 0..self.num_rows(), simd: PhantomData }
    }

    /// Query token and query head of a row.
    #[inline(always)]
    fn query_and_head(&self, row: usize) -> (Query, usize) {
        self.scratch.rows[row]
    }

    /// The keys of a chunk that a query attends, from the chunk's first.
    #[inline(always)]
    fn attended(&self, query: Query, chunk: usize) -> Range<usize> {
        let start = chunk * CHUNK;
        let end = (query.position + 1).clamp(start, start + CHUNK) - start;
        let first = self.step.params.mask.first_key(query.position).max(start) - start;
        first.min(end)..end
    }

    /// Makes room, and lays out the scaled queries block by block if they are used.
    #[inline(always)]
    fn prepare<S: Simd>(&mut self) {
        let (k_dim, lines) = (self.step.k_dim(), self.output_length() / LANES);
        let group = self.step.query.shape()[1] / self.step.kv.keys.shape()[1];
        let heads = self.item.kv_head * group..(self.item.kv_head + 1) * group;
        let scratch = &mut *self.scratch;
        scratch.rows.clear();
        for query in &self.step.plan.queries[self.item.queries.clone()] {
            scratch.rows.extend(heads.clone().map(|head| (*query, head)));
        }
        let num_rows = scratch.rows.len();
        scratch.query.resize(num_rows * k_dim, 0.0);
        scratch.keys.resize(CHUNK / LANES * k_dim, Line::ZERO);
        scratch.values.resize(UNIT * lines, Line::ZERO);
        scratch.added.resize(MAX_ROWS * lines, Line::ZERO);
        scratch.weights.resize(MAX_ROWS, [0.0; CHUNK]);
        scratch.span_outputs.resize(num_rows * lines, Line::ZERO);
        scratch.span_states.resize(num_rows, State::EMPTY);
        if self.is_final {
            scratch.outputs.clear();
            scratch.outputs.resize(num_rows * lines, Line::ZERO);
            scratch.states.clear();
            scratch.states.resize(num_rows, State::EMPTY);
        }
        if !self.item.chunks.is_empty() {
            self.lay_out_queries::<S>();
        }
    }

    #[inline(always)]
    fn lay_out_queries<S: Simd>(&mut self) {
        let (k_dim, scale) = (self.step.k_dim(), self.step.params.scale);
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
                    std::slice::from_raw_parts(numbers, self.step.v_dim())
                };
                let (query, head) = self.query_and_head(row);
                // SAFETY: final items are distinct (tokens, KV head), so no one else has this row.
                E::narrow(numbers, unsafe { self.step.output.run_shared([query.token, head, 0]) });
            }
        }
    }
}
