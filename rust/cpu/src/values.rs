//! The values of a chunk as the products read them, in vectors of sixteen columns.

use std::ops::Range;

use crate::element::Element;
use crate::places::{ChunkPanels, ChunkRows, Panel, line};
use crate::product::UNIT;
use crate::simd::{LANES, RowPointers, Simd};

/// Values of a chunk.
pub(crate) trait Values: Copy {
    /// Where those of a panel are.
    type Panel: Copy;

    /// Those of a panel.
    ///
    /// # Safety
    /// The chunk has it.
    unsafe fn panel(self, panel: usize) -> Self::Panel;

    /// Columns `16 * unit ..` of the value of key `lane` of a panel.
    ///
    /// # Safety
    /// There are such.
    unsafe fn vector<S: Simd>(panel: Self::Panel, lane: usize, unit: usize) -> S::V;

    /// Sends for values that are used later, as far as `count` units of the value of key `lane` of a
    /// panel stand for them.
    #[inline(always)]
    fn send_for<S: Simd>(_panel: Self::Panel, _lane: usize, _unit: usize, _count: usize) {}
}

/// Values widened and rearranged: `[unit, UNIT, 16]`.
#[derive(Clone, Copy)]
pub(crate) struct Packed(pub(crate) *const f32);

impl Values for Packed {
    type Panel = *const f32;

    #[inline(always)]
    unsafe fn panel(self, panel: usize) -> Self::Panel {
        // SAFETY: the caller's promise.
        unsafe { self.0.add(panel * LANES * LANES) }
    }

    #[inline(always)]
    unsafe fn vector<S: Simd>(panel: Self::Panel, lane: usize, unit: usize) -> S::V {
        // SAFETY: the caller's promise.
        unsafe { S::load(panel.add((unit * UNIT + lane) * LANES)) }
    }
}

/// Values in storage.
pub(crate) trait StoredValues: Copy {
    type Element: Element;

    /// Where those of a panel are, and those that are sent for as it is used.
    type Panel: Copy;

    /// Those of a panel.
    ///
    /// # Safety
    /// The chunk has it.
    unsafe fn panel(self, panel: usize) -> Self::Panel;

    /// Where the value of key `lane` of a panel starts.
    fn row(panel: Self::Panel, lane: usize) -> *const Self::Element;

    /// Where those start that are sent for as it is used.
    fn rows_ahead(panel: Self::Panel, lane: usize) -> [*const Self::Element; 2];
}

impl<'a, E: Element> StoredValues for &'a ChunkRows<E> {
    type Element = E;
    type Panel = [&'a RowPointers<E>; 2];

    #[inline(always)]
    unsafe fn panel(self, panel: usize) -> Self::Panel {
        ChunkRows::panel(self, panel)
    }

    #[inline(always)]
    fn row([rows, _]: Self::Panel, lane: usize) -> *const E {
        rows[lane]
    }

    #[inline(always)]
    fn rows_ahead([_, ahead]: Self::Panel, lane: usize) -> [*const E; 2] {
        [ahead[lane]; 2]
    }
}

impl<E: Element> StoredValues for &ChunkPanels<E> {
    type Element = E;
    type Panel = Panel<E>;

    #[inline(always)]
    unsafe fn panel(self, panel: usize) -> Panel<E> {
        // SAFETY: the caller's promise.
        unsafe { ChunkPanels::panel(self, panel) }
    }

    #[inline(always)]
    fn row(panel: Panel<E>, lane: usize) -> *const E {
        panel.start.wrapping_add(lane * panel.stride)
    }

    #[inline(always)]
    fn rows_ahead(panel: Panel<E>, lane: usize) -> [*const E; 2] {
        panel.ahead.map(|start| start.wrapping_add(lane * panel.stride))
    }
}

/// Values where they are stored. Others ahead are sent for on the way, if `SENDS`.
#[derive(Clone, Copy)]
pub(crate) struct InPlace<T, const SENDS: bool>(pub(crate) T);

impl<T: StoredValues, const SENDS: bool> Values for InPlace<T, SENDS> {
    type Panel = T::Panel;

    #[inline(always)]
    unsafe fn panel(self, panel: usize) -> Self::Panel {
        // SAFETY: the caller's promise.
        unsafe { self.0.panel(panel) }
    }

    #[inline(always)]
    unsafe fn vector<S: Simd>(panel: Self::Panel, lane: usize, unit: usize) -> S::V {
        // SAFETY: the caller's promise.
        unsafe { T::Element::load::<S>(T::row(panel, lane).add(unit * LANES)) }
    }

    #[inline(always)]
    fn send_for<S: Simd>(panel: Self::Panel, lane: usize, unit: usize, count: usize) {
        if !SENDS {
            return;
        }
        for row in T::rows_ahead(panel, lane) {
            for column in (0..count * LANES).step_by(line::<T::Element>()) {
                S::prefetch(row.wrapping_add(unit * LANES + column).cast());
            }
        }
    }
}

/// Writes the values of `keys` to `packed` `[unit, UNIT, 16]`, with zeros after the last column.
///
/// # Safety
/// `values` are of `dim` numbers, `packed` has room for all units.
#[inline(always)]
pub(crate) unsafe fn pack_values<S: Simd, T: StoredValues>(
    values: T,
    dim: usize,
    keys: Range<usize>,
    packed: *mut f32,
) {
    for (panel, lanes) in by_panel(&keys) {
        // SAFETY: the caller's promise.
        unsafe {
            let place = values.panel(panel);
            let packed = packed.add(panel * LANES * LANES);
            for lane in lanes {
                InPlace::<T, true>::send_for::<S>(place, lane, 0, dim / LANES);
                for unit in 0..dim / LANES {
                    let vector = InPlace::<T, true>::vector::<S>(place, lane, unit);
                    S::store(vector, packed.add((unit * UNIT + lane) * LANES));
                }
                let done = dim / LANES * LANES;
                if done < dim {
                    let row = T::row(place, lane);
                    let mut numbers = [0.0; LANES];
                    let rest = std::slice::from_raw_parts(row.add(done), dim - done);
                    T::Element::copy_widened(rest, &mut numbers[..dim - done]);
                    let to = packed.add((dim / LANES * UNIT + lane) * LANES);
                    S::store(S::load(numbers.as_ptr()), to);
                }
            }
        }
    }
}

/// Panels of the keys of a chunk, and the lanes in each.
#[inline(always)]
pub(crate) fn by_panel(keys: &Range<usize>) -> impl Iterator<Item = (usize, Range<usize>)> {
    let Range { start, end } = *keys;
    (start / LANES..end.div_ceil(LANES)).map(move |panel| {
        let first = panel * LANES;
        (panel, start.max(first) - first..end.min(first + LANES) - first)
    })
}
