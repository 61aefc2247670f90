//! Keys and values of a chunk in f32, rearranged as the products read them.

use std::ops::Range;

use crate::element::Element;
use crate::product::{CHUNK, UNIT};
use crate::simd::{Kernel, LANES, RowPointers, Simd};
use crate::view::View;

/// The most rows that are sent for ahead of their use.
pub(crate) const MAX_AHEAD: usize = 4 * LANES;
/// Bytes that are sent for ahead of their use: what comes in while a memory under load answers, and
/// well below the first-level cache.
const BYTES_AHEAD: usize = 8192;

/// Where the rows of a chunk are stored, by position, and behind the last of them the first that are
/// used after it; those that no query reads repeat a neighbour that one does.
pub(crate) type ChunkRows<E> = [*const E; CHUNK + MAX_AHEAD];

/// How many rows of `dim` elements are sent for ahead of their use, a multiple of sixteen. Rows are
/// used one block after the other, from distinct places: the processor's own prefetch does not
/// follow, and it is the latency that would count.
#[inline(always)]
pub(crate) fn rows_ahead<E>(dim: usize) -> usize {
    let rows = BYTES_AHEAD / (dim * size_of::<E>()).max(1);
    rows.clamp(LANES, MAX_AHEAD) / LANES * LANES
}

/// Sends for the rows from `first` on that none of the same chunk sends for as it is used.
#[inline(always)]
pub(crate) fn send_for_rows<S: Simd, E: Element>(rows: &ChunkRows<E>, dim: usize, first: usize) {
    for row in &rows[first..][..rows_ahead::<E>(dim)] {
        for column in (0..dim).step_by(line::<E>()) {
            S::prefetch(row.wrapping_add(column).cast());
        }
    }
}

/// Positions of a sequence, not necessarily all in one chunk, for one KV head.
pub(crate) struct Slots<'a> {
    /// The sequence's blocks.
    pub(crate) table: &'a [i32],
    pub(crate) kv_head: usize,
    pub(crate) positions: Range<usize>,
}

impl Slots<'_> {
    /// At most the first `count` of them.
    #[inline(always)]
    pub(crate) fn first(mut self, count: usize) -> Self {
        self.positions.end = self.positions.end.min(self.positions.start + count);
        self
    }
}

/// The rows of `storage` in the slots of a chunk, `own`, and behind them those `following`.
#[inline(always)]
pub(crate) fn chunk_rows<E: Element>(
    storage: View<'_, E, 4>,
    own: &Slots<'_>,
    following: Option<&Slots<'_>>,
) -> ChunkRows<E> {
    let mut rows = [std::ptr::null(); CHUNK + MAX_AHEAD];
    let first = own.positions.start % CHUNK;
    let mut end = first;
    for slots in [Some(own), following].into_iter().flatten() {
        let start = end;
        end += slots.positions.len();
        slot_rows(storage, slots, &mut rows[start..end]);
    }
    let (before, after) = (rows[first], rows[end - 1]);
    rows[..first].fill(before);
    rows[end..].fill(after);
    rows
}

/// Where the rows of `storage` in some slots start.
#[inline(always)]
fn slot_rows<E: Element>(storage: View<'_, E, 4>, slots: &Slots<'_>, rows: &mut [*const E]) {
    let block_size = storage.shape()[2];
    let mut done = 0;
    while done < rows.len() {
        let position = slots.positions.start + done;
        let block = slots.table[position / block_size] as usize;
        let offset = position % block_size;
        let count = (block_size - offset).min(rows.len() - done);
        let block = storage.matrix(block, slots.kv_head);
        block.row_starts(offset, &mut rows[done..done + count]);
        done += count;
    }
}

/// Writes the keys of `panels` to `packed` `[panel, dim, 16]`.
///
/// # Safety
/// `rows` are keys of `dim` numbers, `packed` has room for the panels.
#[inline(always)]
pub(crate) unsafe fn pack_keys<S: Simd, E: Element>(
    rows: &ChunkRows<E>,
    dim: usize,
    panels: Range<usize>,
    packed: *mut f32,
) {
    for panel in panels {
        for columns in Lines::new(rows, dim, panel) {
            // SAFETY: the caller's promise.
            unsafe {
                let to = packed.add((panel * dim + columns.first) * LANES);
                if columns.is_whole() {
                    S::run(Packed::<E, true>(columns, to));
                } else {
                    S::run(Packed::<E, false>(columns, to));
                }
            }
        }
    }
}

/// The columns of sixteen keys, a cache line after the other. While they are used, sixteen keys of a
/// later panel are sent for, row by row for the sake of the memory.
struct Lines<'a, E> {
    rows: &'a RowPointers<E>,
    dim: usize,
    first: usize,
    next: std::slice::Chunks<'a, *const E>,
}

impl<'a, E: Element> Lines<'a, E> {
    #[inline(always)]
    fn new(rows: &'a ChunkRows<E>, dim: usize, panel: usize) -> Self {
        let rows_at_once = LANES.div_ceil(dim.div_ceil(line::<E>()));
        let (rows, next) = rows[panel * LANES..].split_first_chunk().expect("sixteen rows");
        let next = &next[rows_ahead::<E>(dim) - LANES..][..LANES];
        Self { rows, dim, first: 0, next: next.chunks(rows_at_once) }
    }
}

impl<'a, E: Element> Iterator for Lines<'a, E> {
    type Item = Columns<'a, E>;

    #[inline(always)]
    fn next(&mut self) -> Option<Columns<'a, E>> {
        let Self { rows, dim, first, .. } = *self;
        self.first += line::<E>();
        let next = self.next.next().unwrap_or(&[]);
        (first < dim).then_some(Columns { rows, dim, first, next })
    }
}

/// Elements in a cache line.
pub(crate) const fn line<E>() -> usize {
    64 / size_of::<E>()
}

/// The columns of sixteen keys from `first` on, a cache line of them or what is left.
#[derive(Clone, Copy)]
struct Columns<'a, E> {
    rows: &'a RowPointers<E>,
    dim: usize,
    first: usize,
    /// Keys to be sent for.
    next: &'a [*const E],
}

impl<E: Element> Columns<'_, E> {
    #[inline(always)]
    fn is_whole(&self) -> bool {
        self.first + line::<E>() <= self.dim
    }

    /// How many. A constant where they are a whole line, so that addresses are too.
    #[inline(always)]
    fn count<const WHOLE: bool>(&self) -> usize {
        if WHOLE { line::<E>() } else { self.dim - self.first }
    }

    /// Sends for the next keys.
    #[inline(always)]
    fn prefetch<S: Simd>(&self) {
        for row in self.next {
            for column in (0..self.dim).step_by(line::<E>()) {
                S::prefetch(row.wrapping_add(column).cast());
            }
        }
    }

    /// Widens and transposes the `count` of them into `to` `[count, 16]`.
    ///
    /// # Safety
    /// There are as many, the rows are readable, and `to` has room.
    #[inline(always)]
    unsafe fn transpose<S: Simd>(&self, count: usize, to: *mut f32) {
        // SAFETY: the caller's promise.
        unsafe {
            let rows = self.rows.map(|row| row.add(self.first));
            let done = E::transpose::<S>(&rows, count, to);
            if done == count {
                return;
            }
            for (lane, row) in rows.iter().enumerate() {
                let rest = std::slice::from_raw_parts(row.add(done), count - done);
                for (column, element) in rest.iter().enumerate() {
                    let mut number = [0.0];
                    E::copy_widened(std::slice::from_ref(element), &mut number);
                    *to.add((done + column) * LANES + lane) = number[0];
                }
            }
        }
    }
}

/// Columns on their way to memory `[count, 16]`.
struct Packed<'a, E, const WHOLE: bool>(Columns<'a, E>, *mut f32);

impl<E: Element, const WHOLE: bool> Kernel for Packed<'_, E, WHOLE> {
    #[inline(always)]
    fn run<S: Simd>(self) {
        let Self(columns, to) = self;
        columns.prefetch::<S>();
        // SAFETY: as `pack_keys` was promised.
        unsafe { columns.transpose::<S>(columns.count::<WHOLE>(), to) };
    }
}

/// Writes the values of `keys` to `packed` `[unit, UNIT, 16]`, with zeros after the last column.
///
/// # Safety
/// `rows` are values of `dim` numbers, `packed` has room for all units.
#[inline(always)]
pub(crate) unsafe fn pack_values<S: Simd, E: Element>(
    rows: &ChunkRows<E>,
    dim: usize,
    keys: Range<usize>,
    packed: *mut f32,
) {
    let ahead = rows_ahead::<E>(dim);
    for key in keys {
        let (row, next) = (rows[key], rows[key + ahead]);
        // SAFETY: the caller's promise.
        unsafe {
            for unit in 0..dim / LANES {
                let to = packed.add((unit * UNIT + key) * LANES);
                S::prefetch(next.wrapping_add(unit * LANES).cast());
                S::store(E::load::<S>(row.add(unit * LANES)), to);
            }
            let done = dim / LANES * LANES;
            if done < dim {
                let mut numbers = [0.0; LANES];
                let rest = std::slice::from_raw_parts(row.add(done), dim - done);
                E::copy_widened(rest, &mut numbers[..dim - done]);
                let to = packed.add((dim / LANES * UNIT + key) * LANES);
                S::store(S::load(numbers.as_ptr()), to);
            }
        }
    }
}
