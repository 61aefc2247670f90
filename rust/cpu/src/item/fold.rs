//! A chunk of keys against the queries of an item.

use std::ops::Range;

use crate::element::Element;
use crate::item::{ItemKernel, MAX_READS, MAX_ROWS_IN_PLACE, MIN_ROWS_TO_PACK, PANELS_AT_ONCE};
use crate::keys::{InColumns, PackedKeys, Panels, pack};
use crate::places::{ChunkPanels, Places};
use crate::product::{CHUNK, MAX_ROWS, Scores, Sums, block_size, width};
use crate::simd::{LANES, Line, Simd};
use crate::softmax::{Bias, Part, adjust, weigh};
use crate::values::{InPlace, Packed, Values, pack_values};

/// Values of a chunk.
struct Stored<'a, E> {
    /// Keys, if they are used where they are stored.
    columns: Option<&'a ChunkPanels<E>>,
    values: &'a Places<E>,
    /// Whether they are in scratch memory too.
    is_packed: bool,
    /// Whether the scores of the only block are there already.
    is_scored: bool,
    /// Whether others are sent for as these are used: once, by the first block.
    sends: bool,
}

impl<E: Element> ItemKernel<'_, E> {
    /// Computes the states of all blocks over one chunk, and merges them with the open span's.
    #[inline(always)]
    pub(super) fn fold_chunk<S: Simd>(&mut self, chunk: usize) {
        let (read, v_dim) = (self.step.read(self.item, chunk), self.step.v_dim());
        let (keys, values) = self.step.stored(self.item, chunk, self.next);
        let within = read.start - chunk * CHUNK..read.end - chunk * CHUNK;
        let packed_values = self.scratch.values.as_mut_ptr().cast::<f32>();
        let only = self.blocks::<S>().next().filter(|block| block.len() == self.num_rows());
        let is_in_place = only.is_some() || (E::IS_WIDE && self.num_rows() <= MAX_ROWS_IN_PLACE);
        let is_packed = self.packs_values::<S>(is_in_place);
        let columns = match &keys {
            Places::Panels(columns) => Some(columns).filter(|_| is_in_place),
            Places::Rows(_) => None,
        };
        let panels = within.start / LANES..within.end.div_ceil(LANES);
        match (columns, &only) {
            (None, _) => self.pack_keys::<S>(&keys, panels, only.as_ref()),
            (Some(columns), Some(block)) => {
                self.score::<S, _>(block, panels, InColumns::<_, true>(columns));
            }
            (Some(_), None) => {}
        }
        if is_packed {
            // SAFETY: the values come from a view of this size; `prepare` made room for a chunk.
            unsafe {
                match &values {
                    Places::Rows(rows) => pack_values::<S, _>(rows, v_dim, within, packed_values),
                    Places::Panels(panels) => {
                        pack_values::<S, _>(panels, v_dim, within, packed_values);
                    }
                }
            }
        }
        let is_scored = only.is_some();
        for block in self.blocks::<S>() {
            let sends = block.start == 0;
            let stored = Stored { columns, values: &values, is_packed, is_scored, sends };
            self.fold_block::<S>(&block, chunk, &stored);
        }
    }

    /// Widens and rearranges keys; if there is an `only` block, computes its scores.
    #[inline(always)]
    fn pack_keys<S: Simd>(
        &mut self,
        keys: &Places<E>,
        panels: Range<usize>,
        only: Option<&Range<usize>>,
    ) {
        // Keys that are used once are used before they leave the first-level cache.
        let step = if only.is_some() { PANELS_AT_ONCE } else { CHUNK / LANES };
        for first in panels.clone().step_by(step) {
            let panels = first..panels.end.min(first + step);
            let packed = self.scratch.keys.as_mut_ptr().cast();
            // SAFETY: the keys come from a view of this size; `prepare` made room for a chunk.
            unsafe { pack::<S, E>(keys, self.step.k_dim(), panels.clone(), packed) };
            if let Some(block) = only {
                self.score::<S, _>(block, panels, self.packed_keys());
            }
        }
    }

    #[inline(always)]
    fn packed_keys(&self) -> PackedKeys {
        PackedKeys { start: self.scratch.keys.as_ptr().cast(), dim: self.step.k_dim() }
    }

    /// Whether values are widened and rearranged before they are used: in place they come in whole
    /// vectors, and again for every few columns.
    #[inline(always)]
    fn packs_values<S: Simd>(&self, is_in_place: bool) -> bool {
        let (num_rows, num_units) = (self.num_rows(), self.step.v_dim() / LANES);
        let reads = num_units.div_ceil(width(S::MAX_SUMS, block_size::<S>(num_rows)));
        let is_read_often = num_rows >= MIN_ROWS_TO_PACK && (reads > MAX_READS || !is_in_place);
        is_read_often || !self.step.v_dim().is_multiple_of(LANES)
    }

    /// Computes the states of a block over one chunk, and merges them with the open span's.
    #[inline(always)]
    fn fold_block<S: Simd>(&mut self, block: &Range<usize>, chunk: usize, stored: &Stored<'_, E>) {
        let mut attended = [const { 0..0 }; MAX_ROWS];
        let attended = &mut attended[..block.len()];
        let (mut around, mut common) = (0..0, 0..CHUNK);
        for (keys, row) in attended.iter_mut().zip(block.clone()) {
            *keys = self.attended(self.query_and_head(row).0, chunk);
            common = common.start.max(keys.start)..common.end.min(keys.end);
            if keys.start < keys.end {
                let first = if around.end == 0 { CHUNK } else { around.start };
                around = first.min(keys.start)..around.end.max(keys.end);
            }
        }
        if around.is_empty() {
            return;
        }
        let length = self.output_length();
        if !stored.is_scored {
            let panels = around.start / LANES..around.end.div_ceil(LANES);
            match stored.columns {
                Some(columns) if stored.sends => {
                    self.score::<S, _>(block, panels, InColumns::<_, true>(columns));
                }
                Some(columns) => {
                    self.score::<S, _>(block, panels, InColumns::<_, false>(columns));
                }
                None => self.score::<S, _>(block, panels, self.packed_keys()),
            }
        }
        for (lane, keys) in attended.iter().enumerate().filter(|(_, keys)| !keys.is_empty()) {
            let bias = self.bias(block.start + lane, chunk);
            if bias.softcap.is_some() || bias.slope.is_some() {
                adjust::<S>(&mut self.scratch.weights[lane], keys, bias);
            }
        }
        let mut part = Part::new(weigh::<S>(&mut self.scratch.weights, attended));
        let added = self.scratch.added.as_ptr().cast::<f32>();
        for lane in 0..block.len() {
            part.add(lane, added.wrapping_add(lane * length));
        }
        self.scratch.added[..block.len() * length / LANES].fill(Line::ZERO);
        self.add_values::<S>(attended, &common, stored);
        self.add_to_span::<S>(block.start, &part);
    }

    /// Scores of a block over some panels of `keys`.
    #[inline(always)]
    fn score<S: Simd, K: Panels>(&mut self, block: &Range<usize>, panels: Range<usize>, keys: K) {
        let (dim, results) = (self.step.k_dim(), self.scratch.weights.as_mut_ptr().cast());
        let query = self.scratch.query[block.start * dim..].as_ptr();
        let scores = Scores { query, keys, dim, panels, results };
        // SAFETY: `prepare` made room for the queries and a block of scores; the keys are of a chunk.
        unsafe { scores.compute::<S>(block.len()) };
    }

    /// Adds the weighted values of the keys that each row attends: those `common` to all rows
    /// together, the others row by row, each row's in order.
    #[inline(always)]
    fn add_values<S: Simd>(
        &mut self,
        attended: &[Range<usize>],
        common: &Range<usize>,
        stored: &Stored<'_, E>,
    ) {
        // SAFETY: every key here is one that its rows attend.
        unsafe {
            if common.is_empty() {
                for (row, keys) in attended.iter().enumerate() {
                    self.add_to_rows::<S>(row..row + 1, keys.clone(), stored);
                }
                return;
            }
            for (row, keys) in attended.iter().enumerate() {
                self.add_to_rows::<S>(row..row + 1, keys.start..common.start, stored);
            }
            self.add_to_rows::<S>(0..attended.len(), common.clone(), stored);
            for (row, keys) in attended.iter().enumerate() {
                self.add_to_rows::<S>(row..row + 1, common.end..keys.end, stored);
            }
        }
    }

    /// Adds the weighted values of `keys` to the outputs of rows of the block.
    ///
    /// # Safety
    /// The rows attend the keys.
    #[inline(always)]
    unsafe fn add_to_rows<S: Simd>(
        &mut self,
        rows: Range<usize>,
        keys: Range<usize>,
        stored: &Stored<'_, E>,
    ) {
        if keys.is_empty() {
            return;
        }
        // SAFETY: the caller's promise.
        unsafe {
            if stored.is_packed {
                let values = Packed(self.scratch.values.as_ptr().cast());
                self.add_sums::<S, _>(rows, keys, values);
            } else {
                match stored.values {
                    Places::Rows(values) => {
                        self.add_sums::<S, _>(rows, keys, InPlace::<_, true>(values));
                    }
                    Places::Panels(values) if stored.sends => {
                        self.add_sums::<S, _>(rows, keys, InPlace::<_, true>(values));
                    }
                    Places::Panels(values) => {
                        self.add_sums::<S, _>(rows, keys, InPlace::<_, false>(values));
                    }
                }
            }
        }
    }

    /// The same, of values in one of their forms.
    ///
    /// # Safety
    /// As there, and `values` are of this chunk.
    #[inline(always)]
    unsafe fn add_sums<S: Simd, T: Values>(
        &mut self,
        rows: Range<usize>,
        keys: Range<usize>,
        values: T,
    ) {
        let row_length = self.output_length();
        let num_units = row_length / LANES;
        let weights = self.scratch.weights[rows.start].as_ptr();
        let outputs = self.scratch.added[rows.start * num_units..].as_mut_ptr().cast();
        let sums = Sums { weights, values, keys, num_units, outputs, row_length };
        // SAFETY: the caller's promise; `prepare` made room for a block.
        unsafe { sums.add::<S>(rows.len()) };
    }

    #[inline(always)]
    fn bias(&self, row: usize, chunk: usize) -> Bias {
        let (query, head) = self.query_and_head(row);
        Bias {
            softcap: self.step.params.softcap,
            slope: self.step.params.alibi_slopes.map(|slopes| slopes[head]),
            first_distance: (chunk * CHUNK) as f32 - query.position as f32,
        }
    }
}
