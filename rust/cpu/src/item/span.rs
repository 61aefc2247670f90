//! Spans: the states of their chunks are merged in order, then they are merged in order.
//!
//! A part leaves one state for a span, or for the chunks that a span starts with. In the middle of a
//! span it leaves the state of each chunk, for a sum's bits depend on where it is cut.

use crate::element::Element;
use crate::item::{ItemKernel, STATE_HEADER};
use crate::plan::{Query, SPAN};
use crate::simd::{LANES, Line, Simd};
use crate::softmax::{Part, State, merge};

impl<E: Element> ItemKernel<'_, E> {
    /// Makes ready for the states of some chunks from `first` on.
    #[inline(always)]
    pub(super) fn enter<S: Simd>(&mut self, first: usize) {
        let is_middle = !self.is_final && !self.span.start.is_multiple_of(SPAN);
        if is_middle || first / SPAN != self.span.start / SPAN {
            self.close::<S>();
        }
        if self.span.is_empty() {
            self.span = first..first;
            self.scratch.span_outputs.fill(Line::ZERO);
            self.scratch.span_states.fill(State::EMPTY);
        }
    }

    /// Merges the state of the open span with those before it, or stores it.
    #[inline(always)]
    pub(super) fn close<S: Simd>(&mut self) {
        if self.span.is_empty() {
            return;
        }
        for block in self.blocks::<S>() {
            if self.is_final {
                let (length, lines) = (self.output_length(), self.output_length() / LANES);
                let scratch = &mut *self.scratch;
                let mut part = Part::new(scratch.span_states[block.start]);
                for (lane, row) in block.clone().enumerate() {
                    part.add(lane, scratch.span_outputs[row * lines..].as_ptr().cast());
                }
                let outputs = scratch.outputs[block.start * lines..].as_mut_ptr().cast();
                let state = &mut scratch.states[block.start];
                // SAFETY: there is room for all rows of the item.
                unsafe { merge::<S>(state, outputs, length, &part) };
            } else {
                for (lane, row) in block.clone().enumerate() {
                    self.store(block.start, lane, row);
                }
            }
        }
        self.span.start = self.span.end;
    }

    /// Stores the open span's state of a row.
    #[inline(always)]
    fn store(&mut self, first_row: usize, lane: usize, row: usize) {
        let (query, head) = self.query_and_head(row);
        let stored = self.stored_state(query, head, self.span.start);
        let state = &self.scratch.span_states[first_row];
        stored[0] = state.largest.0[lane];
        stored[1] = state.sum.0[lane];
        stored[2] = self.span.len() as f32;
        let outputs = self.scratch.span_outputs[row * self.output_length() / LANES..].iter();
        for (numbers, line) in stored[STATE_HEADER..].chunks_exact_mut(LANES).zip(outputs) {
            numbers.copy_from_slice(&line.0);
        }
    }

    /// Starts from the sinks and the chunks that were parts.
    #[inline(always)]
    pub(super) fn start_from_parts<S: Simd>(&mut self) {
        if let Some(sinks) = self.step.params.sinks {
            for block in self.blocks::<S>() {
                for (lane, row) in block.clone().enumerate() {
                    let sink = sinks[self.query_and_head(row).1];
                    let state = &mut self.scratch.states[block.start];
                    (state.largest.0[lane], state.sum.0[lane]) = (sink, 1.0);
                }
            }
        }
        let (query, head) = self.query_and_head(0);
        let mut chunk = query.first_chunk;
        while chunk < self.item.parts_end {
            self.enter::<S>(chunk);
            for block in self.blocks::<S>() {
                let mut part = Part::new(State::EMPTY);
                for (lane, row) in block.clone().enumerate() {
                    let (query, head) = self.query_and_head(row);
                    let stored = &*self.stored_state(query, head, chunk);
                    part.state.largest.0[lane] = stored[0];
                    part.state.sum.0[lane] = stored[1];
                    part.add(lane, stored[STATE_HEADER..].as_ptr());
                }
                self.add_to_span::<S>(block.start, &part);
            }
            chunk += self.stored_state(query, head, chunk)[2] as usize;
            self.span.end = chunk;
        }
    }

    /// Merges a state of the block from `first_row` on with the open span's.
    #[inline(always)]
    pub(super) fn add_to_span<S: Simd>(&mut self, first_row: usize, part: &Part) {
        let length = self.output_length();
        let outputs = self.scratch.span_outputs[first_row * length / LANES..].as_mut_ptr().cast();
        let state = &mut self.scratch.span_states[first_row];
        // SAFETY: there is room for all rows of the item; those of the part are as long.
        unsafe { merge::<S>(state, outputs, length, part) };
    }

    /// Where the state of a query over chunks from `chunk` on is stored.
    #[inline(always)]
    #[expect(clippy::mut_from_ref, reason = "states are disjoint, and used by one item at a time")]
    fn stored_state(&self, query: Query, head: usize, chunk: usize) -> &mut [f32] {
        let num_heads = self.step.query.shape()[1];
        let index = query.first_state + (chunk - query.first_chunk) * num_heads + head;
        // SAFETY: one part writes it, then one final item reads it.
        unsafe { self.states.run_shared([index, 0]) }
    }
}
