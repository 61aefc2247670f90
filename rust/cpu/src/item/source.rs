//! Where the keys and values of an item are stored, and what of them is sent for before it is used.

use std::ops::Range;

use crate::attention::Keys;
use crate::element::Element;
use crate::item::Step;
use crate::places::{ChunkRows, Places, Slots};
use crate::plan::Item;
use crate::product::CHUNK;
use crate::simd::Simd;

impl<'a, E: Element> Step<'a, E> {
    /// Numbers of a key.
    #[inline(always)]
    pub(super) fn k_dim(&self) -> usize {
        self.kv.keys.shape()[3]
    }

    /// Numbers of a value.
    #[inline(always)]
    pub(super) fn v_dim(&self) -> usize {
        self.kv.values.shape()[3]
    }

    /// The positions in a chunk that some query of the item attends: those of a row's queries leave
    /// no gap, and rows that share a chunk attend it whole.
    #[inline(always)]
    pub(super) fn read(&self, item: &Item, chunk: usize) -> Range<usize> {
        let queries = &self.plan.queries[item.queries.clone()];
        let first_key = self.params.mask.first_key(queries[0].position);
        let end = queries[queries.len() - 1].position + 1;
        first_key.max(chunk * CHUNK)..end.min((chunk + 1) * CHUNK)
    }

    /// The keys and values of a chunk, and the first of those that the thread uses after them: of the
    /// next chunk, or of the `next` item.
    #[inline(always)]
    pub(super) fn stored(
        &self,
        item: &Item,
        chunk: usize,
        next: Option<&Item>,
    ) -> (Places<E>, Places<E>) {
        let own = self.slots(item, chunk);
        let following = following(item, chunk, next).map(|(item, chunk)| self.slots(item, chunk));
        let following = following.as_ref();
        let keys = match self.kv.keys {
            Keys::Rows(rows) => Places::Rows(ChunkRows::new(rows, &own, following)),
            Keys::Columns(columns) => Places::of_columns(columns, &own, following),
        };
        (keys, Places::of_rows(self.kv.values, &own, following))
    }

    #[inline(always)]
    fn slots(&self, item: &Item, chunk: usize) -> Slots<'a> {
        let table = self.block_tables.run([item.table_row, 0]);
        Slots { table, kv_head: item.kv_head, positions: self.read(item, chunk) }
    }

    /// Sends for an item's first keys and values: those after them are sent for as these are used.
    #[inline(always)]
    pub(super) fn send_for_start<S: Simd>(&self, item: &Item) {
        let chunk = item.chunks.start;
        if !item.chunks.is_empty() {
            let first = self.read(item, chunk).start - chunk * CHUNK;
            let (keys, values) = self.stored(item, chunk, None);
            keys.send_for::<S>(first);
            values.send_for::<S>(first);
        }
    }
}

/// The item and chunk that a thread goes on with.
#[inline(always)]
fn following<'a>(
    item: &'a Item,
    chunk: usize,
    next: Option<&'a Item>,
) -> Option<(&'a Item, usize)> {
    if chunk + 1 < item.chunks.end {
        return Some((item, chunk + 1));
    }
    next.filter(|next| !next.chunks.is_empty()).map(|next| (next, next.chunks.start))
}
