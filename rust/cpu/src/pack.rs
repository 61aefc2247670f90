//! Keys of a chunk that lie in rows, widened and rearranged as the product with queries reads them.

use std::ops::Range;

use crate::element::Element;
use crate::places::{ChunkRows, line};
use crate::simd::{Kernel, LANES, RowPointers, Simd};

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
        let [rows, next] = rows.panel(panel);
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
