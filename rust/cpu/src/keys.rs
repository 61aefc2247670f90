//! The keys of a chunk, in panels of sixteen: where they are stored, and as the products read them.

use std::ops::Range;

use crate::attention::Keys;
use crate::element::Element;
use crate::pack::{
    ChunkRows, MAX_AHEAD, Slots, chunk_rows, line, pack_keys, rows_ahead, send_for_rows,
};
use crate::product::CHUNK;
use crate::simd::{LANES, Simd};
use crate::view::View;

/// The most panels that are sent for ahead of their use.
const MAX_PANELS_AHEAD: usize = MAX_AHEAD / LANES;

/// Where the keys of a chunk are stored.
#[expect(clippy::large_enum_variant, reason = "one at a time, on the stack")]
pub(crate) enum ChunkKeys<E> {
    Rows(ChunkRows<E>),
    Columns(ChunkColumns<E>),
}

/// Where the panels of a chunk of keys in columns start, and behind the last of them the first that are
/// used after it; those that no query reads repeat a neighbour that one does.
pub(crate) struct ChunkColumns<E> {
    panels: [*const E; CHUNK / LANES + MAX_PANELS_AHEAD],
    /// Elements from one number of a key to the next.
    stride: usize,
    /// How many panels ahead of their use they are sent for.
    ahead: usize,
}

/// The keys in the slots of a chunk, `own`, and behind them those `following`.
#[inline(always)]
pub(crate) fn chunk_keys<E: Element>(
    keys: Keys<'_, E>,
    own: &Slots<'_>,
    following: Option<&Slots<'_>>,
) -> ChunkKeys<E> {
    match keys {
        Keys::Rows(rows) => ChunkKeys::Rows(chunk_rows(rows, own, following)),
        Keys::Columns(columns) => ChunkKeys::Columns(ChunkColumns::new(columns, own, following)),
    }
}

impl<E: Element> ChunkColumns<E> {
    #[inline(always)]
    fn new(keys: View<'_, E, 4>, own: &Slots<'_>, following: Option<&Slots<'_>>) -> Self {
        let [_, _, dim, block_size] = keys.shape();
        let mut panels = [std::ptr::null(); CHUNK / LANES + MAX_PANELS_AHEAD];
        let first = own.positions.start % CHUNK / LANES;
        let mut end = first;
        for Slots { table, kv_head, positions } in [Some(own), following].into_iter().flatten() {
            for panel in positions.start / LANES..positions.end.div_ceil(LANES) {
                let Some(start) = panels.get_mut(end) else { break };
                let position = panel * LANES;
                let columns = keys.matrix(table[position / block_size] as usize, *kv_head);
                *start = columns.column_start(position % block_size);
                end += 1;
            }
        }
        let (before, after) = (panels[first], panels[end - 1]);
        panels[..first].fill(before);
        panels[end..].fill(after);
        let ahead = rows_ahead::<E>(dim).div_ceil(LANES).clamp(2, MAX_PANELS_AHEAD);
        Self { panels, stride: keys.strides()[2], ahead }
    }
}

/// Sends for the keys from `first` on that none of the same chunk sends for as it is used.
#[inline(always)]
pub(crate) fn send_for_keys<S: Simd, E: Element>(keys: &ChunkKeys<E>, dim: usize, first: usize) {
    match keys {
        ChunkKeys::Rows(rows) => send_for_rows::<S, E>(rows, dim, first),
        ChunkKeys::Columns(ChunkColumns { panels, stride, ahead }) => {
            for panel in &panels[first / LANES..][..*ahead] {
                for index in (0..dim).step_by((line::<E>() / stride).max(1)) {
                    S::prefetch(panel.wrapping_add(index * stride).cast());
                }
            }
        }
    }
}

/// Writes the keys of `panels` to `packed` `[panel, dim, 16]`.
///
/// # Safety
/// `keys` are of `dim` numbers, `packed` has room for the panels.
#[inline(always)]
pub(crate) unsafe fn pack<S: Simd, E: Element>(
    keys: &ChunkKeys<E>,
    dim: usize,
    panels: Range<usize>,
    packed: *mut f32,
) {
    // SAFETY: the caller's promise.
    unsafe {
        match keys {
            ChunkKeys::Rows(rows) => pack_keys::<S, E>(rows, dim, panels, packed),
            ChunkKeys::Columns(columns) => {
                for panel in panels {
                    for index in 0..dim {
                        let vector = InColumns(columns).vector::<S>(panel, index);
                        S::store(vector, packed.add((panel * dim + index) * LANES));
                    }
                }
            }
        }
    }
}

/// Keys of a chunk, in vectors of a number of sixteen of them.
pub(crate) trait Panels: Copy {
    /// How many panels may be used side by side.
    const MAX_PANELS: usize;

    /// Number `index` of the keys of `panel`.
    ///
    /// # Safety
    /// There are such.
    unsafe fn vector<S: Simd>(self, panel: usize, index: usize) -> S::V;
}

/// Keys widened and rearranged: `[panel, dim, 16]`.
#[derive(Clone, Copy)]
pub(crate) struct PackedKeys {
    pub(crate) start: *const f32,
    pub(crate) dim: usize,
}

impl Panels for PackedKeys {
    const MAX_PANELS: usize = 4;

    #[inline(always)]
    unsafe fn vector<S: Simd>(self, panel: usize, index: usize) -> S::V {
        // SAFETY: the caller's promise.
        unsafe { S::load(self.start.add((panel * self.dim + index) * LANES)) }
    }
}

/// Keys where they are stored. Panels ahead are sent for on the way, so no more are used side by side
/// than are certainly ahead.
pub(crate) struct InColumns<'a, E>(pub(crate) &'a ChunkColumns<E>);

impl<E> Clone for InColumns<'_, E> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<E> Copy for InColumns<'_, E> {}

impl<E: Element> Panels for InColumns<'_, E> {
    const MAX_PANELS: usize = 2;

    #[inline(always)]
    unsafe fn vector<S: Simd>(self, panel: usize, index: usize) -> S::V {
        let Self(ChunkColumns { panels, stride, ahead }) = self;
        // SAFETY: the caller's promise; a prefetch may name any address.
        unsafe {
            let next = *panels.get_unchecked(panel + ahead);
            S::prefetch(next.wrapping_add(index * stride).cast());
            E::load::<S>(panels.get_unchecked(panel).add(index * stride))
        }
    }
}
