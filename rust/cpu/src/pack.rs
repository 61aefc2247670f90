//! Keys and values of a chunk in f32, rearranged as the products read them.

use std::ops::Range;

use crate::element::Element;
use crate::product::CHUNK;
use crate::simd::{LANES, RowPointers, Simd};
use crate::view::View;

/// Where the rows of a chunk are stored, by position; those that no query reads repeat a neighbour
/// that one does.
pub(crate) type ChunkRows<E> = [*const E; CHUNK];

/// The rows of `storage` at the positions `read`, of one chunk.
#[inline(always)]
pub(crate) fn chunk_rows<E: Element>(
    storage: View<'_, E, 4>,
    table: &[i32],
    kv_head: usize,
    read: &Range<usize>,
) -> ChunkRows<E> {
    let block_size = storage.shape()[2];
    let mut rows = [std::ptr::null(); CHUNK];
    let mut position = read.start;
    while position < read.end {
        let slots = storage.matrix(table[position / block_size] as usize, kv_head);
        let offset = position % block_size;
        let count = (block_size - offset).min(read.end - position);
        let first = position % CHUNK;
        for (index, row) in rows[first..first + count].iter_mut().enumerate() {
            *row = slots.row_start(offset + index);
        }
        position += count;
    }
    let first = read.start % CHUNK;
    let end = first + read.len();
    let (before, after) = (rows[first], rows[end - 1]);
    rows[..first].fill(before);
    rows[end..].fill(after);
    rows
}

/// Writes the keys of `panels` to `packed` `[panel, dim, 16]`, and sends for the rows `next`, of
/// `next_dim` numbers, on the way.
///
/// # Safety
/// `rows` are keys of `dim` numbers, `packed` has room for the panels.
#[inline(always)]
pub(crate) unsafe fn pack_keys<S: Simd, E: Element>(
    rows: &ChunkRows<E>,
    dim: usize,
    panels: Range<usize>,
    packed: *mut f32,
    next: &ChunkRows<E>,
    next_dim: usize,
) {
    for panel in panels {
        let line = 64 / size_of::<E>();
        for row in of_panel(next, panel) {
            for column in (0..next_dim).step_by(line) {
                S::prefetch(row.wrapping_add(column).cast());
            }
        }
        let rows = of_panel(rows, panel);
        // SAFETY: the caller's promise.
        unsafe {
            let packed = packed.add(panel * dim * LANES);
            let done = E::transpose::<S>(rows, dim, packed);
            if done == dim {
                continue;
            }
            for (lane, row) in rows.iter().enumerate() {
                let rest = std::slice::from_raw_parts(row.add(done), dim - done);
                for (column, element) in rest.iter().enumerate() {
                    let mut number = [0.0];
                    E::copy_widened(std::slice::from_ref(element), &mut number);
                    *packed.add((done + column) * LANES + lane) = number[0];
                }
            }
        }
    }
}

#[inline(always)]
fn of_panel<E: Element>(rows: &ChunkRows<E>, panel: usize) -> &RowPointers<E> {
    rows[panel * LANES..].first_chunk().expect("sixteen rows per panel")
}

/// Writes the values of `keys` to `packed` `[unit, CHUNK, 16]`, with zeros after the last column.
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
        let row = rows[key];
        // SAFETY: the caller's promise.
        unsafe {
            for unit in 0..dim / LANES {
                let to = packed.add((unit * CHUNK + key) * LANES);
                S::store(E::load::<S>(row.add(unit * LANES)), to);
            }
            let done = dim / LANES * LANES;
            if done < dim {
                let mut numbers = [0.0; LANES];
                let rest = std::slice::from_raw_parts(row.add(done), dim - done);
                E::copy_widened(rest, &mut numbers[..dim - done]);
                let to = packed.add((dim / LANES * CHUNK + key) * LANES);
                S::store(S::load(numbers.as_ptr()), to);
            }
        }
    }
}
