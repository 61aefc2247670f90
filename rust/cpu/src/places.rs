//! Where the keys and values of a chunk are stored, and what of them is sent for before it is used.
//!
//! Blocks are used one after the other, from distinct places: the processor's own prefetch does not
//! follow, and it is the latency that would count.

use std::ops::Range;

use crate::element::Element;
use crate::product::CHUNK;
use crate::simd::{LANES, RowPointers, Simd};
use crate::view::View;

/// The most panels (of sixteen positions) that are sent for ahead of their use.
const MAX_PANELS_AHEAD: usize = 8;

/// Bytes that are sent for ahead of their use: what comes in while a memory under load answers, and
/// well below the first-level cache.
const FAR: usize = 12 * 1024;
/// Bytes that are sent for once more, as a processor drops some while many are on their way.
const NEAR: usize = 4 * 1024;

/// The most rows that are sent for ahead where they are not in panels.
const MAX_ROWS_AHEAD: usize = 4 * LANES;

/// Elements in a cache line.
pub(crate) const fn line<E>() -> usize {
    64 / size_of::<E>()
}

/// How many panels of keys or values of `dim` elements are in so many bytes.
#[inline(always)]
fn panels_in<E>(bytes: usize, dim: usize) -> usize {
    bytes / (LANES * dim * size_of::<E>()).max(1)
}

/// Positions of a sequence, not necessarily all in one chunk, for one KV head.
pub(crate) struct Slots<'a> {
    /// The sequence's blocks.
    pub(crate) table: &'a [i32],
    pub(crate) kv_head: usize,
    pub(crate) positions: Range<usize>,
}

/// The keys or the values in the slots of a chunk, and behind them those in the slots that follow.
/// Those that no query reads repeat a neighbour that one does.
#[expect(clippy::large_enum_variant, reason = "one at a time, on the stack")]
pub(crate) enum Places<E> {
    Rows(ChunkRows<E>),
    Panels(ChunkPanels<E>),
}

impl<E: Element> Places<E> {
    /// Of `storage` `[num_blocks, num_kv_heads, block_size, dim]`: in panels, if blocks have whole ones.
    #[inline(always)]
    pub(crate) fn of_rows(
        storage: View<'_, E, 4>,
        own: &Slots<'_>,
        following: Option<&Slots<'_>>,
    ) -> Self {
        if storage.shape()[2].is_multiple_of(LANES) {
            Self::Panels(ChunkPanels::new(storage, false, own, following))
        } else {
            Self::Rows(ChunkRows::new(storage, own, following))
        }
    }

    /// Of `storage` `[num_blocks, num_kv_heads, dim, block_size]`, blocks of whole panels.
    #[inline(always)]
    pub(crate) fn of_columns(
        storage: View<'_, E, 4>,
        own: &Slots<'_>,
        following: Option<&Slots<'_>>,
    ) -> Self {
        Self::Panels(ChunkPanels::new(storage, true, own, following))
    }

    /// Sends for those from position `first` of the chunk on that are not sent for as others of the
    /// chunk are used.
    #[inline(always)]
    pub(crate) fn send_for<S: Simd>(&self, first: usize) {
        match self {
            Self::Rows(rows) => rows.send_for::<S>(first),
            Self::Panels(panels) => panels.send_for::<S>(first),
        }
    }
}

/// Where each of them starts, by position.
pub(crate) struct ChunkRows<E> {
    starts: [*const E; CHUNK + MAX_ROWS_AHEAD],
    dim: usize,
    /// How many are sent for ahead of their use, a multiple of sixteen.
    ahead: usize,
}

impl<E: Element> ChunkRows<E> {
    /// Of `storage` `[num_blocks, num_kv_heads, block_size, dim]`.
    #[inline(always)]
    pub(crate) fn new(
        storage: View<'_, E, 4>,
        own: &Slots<'_>,
        following: Option<&Slots<'_>>,
    ) -> Self {
        let [_, _, block_size, dim] = storage.shape();
        let mut starts = [std::ptr::null(); CHUNK + MAX_ROWS_AHEAD];
        let first = own.positions.start % CHUNK;
        let mut end = first;
        for Slots { table, kv_head, positions } in [Some(own), following].into_iter().flatten() {
            let mut position = positions.start;
            while position < positions.end {
                let offset = position % block_size;
                let count = (block_size - offset).min(positions.end - position);
                let count = count.min(starts.len() - end);
                if count == 0 {
                    break;
                }
                let block = storage.matrix(table[position / block_size] as usize, *kv_head);
                block.row_starts(offset, &mut starts[end..end + count]);
                position += count;
                end += count;
            }
        }
        let (before, after) = (starts[first], starts[end - 1]);
        starts[..first].fill(before);
        starts[end..].fill(after);
        let ahead = panels_in::<E>(FAR, dim).max(1) * LANES;
        Self { starts, dim, ahead: ahead.min(MAX_ROWS_AHEAD) }
    }

    #[inline(always)]
    fn send_for<S: Simd>(&self, first: usize) {
        for row in &self.starts[first..][..self.ahead] {
            for column in (0..self.dim).step_by(line::<E>()) {
                S::prefetch(row.wrapping_add(column).cast());
            }
        }
    }

    /// Those of a panel, and those that are sent for as they are used.
    #[inline(always)]
    pub(crate) fn panel(&self, panel: usize) -> [&RowPointers<E>; 2] {
        let rows = &self.starts[panel * LANES..];
        [0, self.ahead].map(|first| rows[first..].first_chunk().expect("sixteen rows"))
    }
}

/// The same by panels, sixteen positions side by side in a block.
pub(crate) struct ChunkPanels<E> {
    starts: [*const E; CHUNK / LANES + MAX_PANELS_AHEAD],
    /// Elements from one row of a panel to the next: from one position, or of keys in columns from one
    /// number, to the next.
    stride: usize,
    /// Rows of a panel, and elements of a row.
    size: [usize; 2],
    /// How many ahead of their use they are sent for, first and once more.
    ahead: [usize; 2],
}

impl<E: Element> ChunkPanels<E> {
    /// Of `storage`, whose positions are its columns or its rows.
    #[inline(always)]
    fn new(
        storage: View<'_, E, 4>,
        is_in_columns: bool,
        own: &Slots<'_>,
        following: Option<&Slots<'_>>,
    ) -> Self {
        let [_, _, rows, columns] = storage.shape();
        // Two panels of keys in columns are used side by side.
        let (block_size, dim, least, size) = if is_in_columns {
            (columns, rows, 2, [rows, LANES])
        } else {
            (rows, columns, 1, [LANES, columns])
        };
        let mut starts = [std::ptr::null(); CHUNK / LANES + MAX_PANELS_AHEAD];
        let first = own.positions.start % CHUNK / LANES;
        let mut end = first;
        for Slots { table, kv_head, positions } in [Some(own), following].into_iter().flatten() {
            let head = storage.column(*kv_head);
            let position = positions.start / LANES * LANES;
            let (mut column, mut offset) = (position / block_size, position % block_size);
            let count = positions.end.div_ceil(LANES) - position / LANES;
            for start in starts[end..].iter_mut().take(count) {
                let within = if is_in_columns { [0, offset] } else { [offset, 0] };
                *start = head.start([table[column] as usize, within[0], within[1]]);
                offset += LANES;
                if offset == block_size {
                    (column, offset) = (column + 1, 0);
                }
                end += 1;
            }
        }
        let (before, after) = (starts[first], starts[end - 1]);
        starts[..first].fill(before);
        starts[end..].fill(after);
        let [near, far] = [NEAR, FAR].map(|bytes| panels_in::<E>(bytes, dim));
        let ahead = [far, near].map(|count| count.clamp(least, MAX_PANELS_AHEAD));
        Self { starts, stride: storage.strides()[2], size, ahead }
    }

    #[inline(always)]
    fn send_for<S: Simd>(&self, first: usize) {
        let [rows, columns] = self.size;
        for panel in &self.starts[first / LANES..][..self.ahead[0]] {
            for row in 0..rows {
                for column in (0..columns).step_by(line::<E>()) {
                    S::prefetch(panel.wrapping_add(row * self.stride + column).cast());
                }
            }
        }
    }

    /// Where a panel is, and those that are sent for as it is used.
    ///
    /// # Safety
    /// The chunk has it.
    #[inline(always)]
    pub(crate) unsafe fn panel(&self, panel: usize) -> Panel<E> {
        let [far, near] = self.ahead;
        let starts = &self.starts;
        // SAFETY: the caller's promise; as many as are ahead lie behind those of the chunk.
        unsafe {
            Panel {
                start: *starts.get_unchecked(panel),
                ahead: [*starts.get_unchecked(panel + far), *starts.get_unchecked(panel + near)],
                stride: self.stride,
            }
        }
    }
}

/// Where a panel is.
pub(crate) struct Panel<E> {
    pub(crate) start: *const E,
    /// Where those start that are sent for as it is used.
    pub(crate) ahead: [*const E; 2],
    /// Elements from one row of a panel to the next.
    pub(crate) stride: usize,
}

impl<E> Clone for Panel<E> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<E> Copy for Panel<E> {}
