//! Keys and values of a chunk in f32, rearranged as the products read them.

use std::ops::Range;

use crate::element::Element;
use crate::product::{CHUNK, UNIT};
use crate::simd::{Kernel, LANES, RowPointers, Simd};
use crate::view::View;

/// Rows that are sent for ahead of their use. Rows are used one block after the other, from distinct
/// places: the processor's own prefetch does not follow, and it is the latency that would count.
pub(crate) const AHEAD: usize = LANES;

/// Where the rows of a chunk are stored, by position, and the first of the next; those that no query
/// reads repeat a neighbour that one does.
pub(crate) type ChunkRows<E> = [*const E; CHUNK + AHEAD];

/// The rows of `storage` at the positions `read`, of the chunk of the first of them and perhaps some
/// of the next.
#[inline(always)]
pub(crate) fn chunk_rows<E: Element>(
    storage: View<'_, E, 4>,
    table: &[i32],
    kv_head: usize,
    read: &Range<usize>,
) -> ChunkRows<E> {
    let block_size = storage.shape()[2];
    let mut rows = [std::ptr::null(); CHUNK + AHEAD];
    let first_position = read.start / CHUNK * CHUNK;
    let mut position = read.start;
    while position < read.end {
        let slots = storage.matrix(table[position / block_size] as usize, kv_head);
        let offset = position % block_size;
        let count = (block_size - offset).min(read.end - position);
        let first = position - first_position;
        slots.row_starts(offset, &mut rows[first..first + count]);
        position += count;
    }
    let first = read.start - first_position;
    let end = first + read.len();
    let (before, after) = (rows[first], rows[end - 1]);
    rows[..first].fill(before);
    rows[end..].fill(after);
    rows
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
    let line = 64 / size_of::<E>();
    // Row by row, for the sake of the memory.
    let rows_at_once = LANES.div_ceil(dim.div_ceil(line));
    for panel in panels {
        let mut next = of_panel(rows, panel + 1).chunks(rows_at_once);
        let rows = of_panel(rows, panel);
        // SAFETY: the caller's promise.
        unsafe {
            let packed = packed.add(panel * dim * LANES);
            for first in (0..dim).step_by(line) {
                let columns =
                    Columns { rows, dim, first, packed, next: next.next().unwrap_or(&[]) };
                if first + line <= dim {
                    S::run(Whole(columns));
                } else {
                    S::run(columns);
                }
            }
        }
    }
}

#[inline(always)]
fn of_panel<E: Element>(rows: &ChunkRows<E>, panel: usize) -> &RowPointers<E> {
    rows[panel * LANES..].first_chunk().expect("sixteen rows per panel")
}

/// A cache line's columns of sixteen keys, from `first` on, on their way to `packed` `[dim, 16]`.
struct Columns<'a, E> {
    rows: &'a RowPointers<E>,
    dim: usize,
    first: usize,
    packed: *mut f32,
    /// Keys to be sent for.
    next: &'a [*const E],
}

/// The same where they fill the line, which is most often so: all addresses are constants then.
struct Whole<'a, E>(Columns<'a, E>);

impl<E: Element> Columns<'_, E> {
    #[inline(always)]
    fn pack<S: Simd>(self, count: usize) {
        let Self { rows, dim, first, packed, next } = self;
        let line = 64 / size_of::<E>();
        for row in next {
            for column in (0..dim).step_by(line) {
                S::prefetch(row.wrapping_add(column).cast());
            }
        }
        // SAFETY: as `pack_keys` was promised.
        unsafe {
            let rows = rows.map(|row| row.add(first));
            let packed = packed.add(first * LANES);
            let done = E::transpose::<S>(&rows, count, packed);
            if done == count {
                return;
            }
            for (lane, row) in rows.iter().enumerate() {
                let rest = std::slice::from_raw_parts(row.add(done), count - done);
                for (column, element) in rest.iter().enumerate() {
                    let mut number = [0.0];
                    E::copy_widened(std::slice::from_ref(element), &mut number);
                    *packed.add((done + column) * LANES + lane) = number[0];
                }
            }
        }
    }
}

impl<E: Element> Kernel for Columns<'_, E> {
    #[inline(always)]
    fn run<S: Simd>(self) {
        let count = self.dim - self.first;
        self.pack::<S>(count);
    }
}

impl<E: Element> Kernel for Whole<'_, E> {
    #[inline(always)]
    fn run<S: Simd>(self) {
        self.0.pack::<S>(64 / size_of::<E>());
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
    for key in keys {
        let (row, next) = (rows[key], rows[key + AHEAD]);
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
