//! The keys of a chunk as the products read them, in panels of sixteen.

use std::ops::Range;

use crate::element::Element;
use crate::pack::pack_keys;
use crate::places::{ChunkPanels, Panel, Places, line};
use crate::simd::{LANES, Simd};

/// Writes the keys of `panels` to `packed` `[panel, dim, 16]`.
///
/// # Safety
/// `keys` are of `dim` numbers, in rows or by panels of columns; `packed` has room for the panels.
#[inline(always)]
pub(crate) unsafe fn pack<S: Simd, E: Element>(
    keys: &Places<E>,
    dim: usize,
    panels: Range<usize>,
    packed: *mut f32,
) {
    // SAFETY: the caller's promise.
    unsafe {
        match keys {
            Places::Rows(rows) => pack_keys::<S, E>(rows, dim, panels, packed),
            Places::Panels(columns) => {
                for panel in panels {
                    let (place, packed) = (columns.panel(panel), packed.add(panel * dim * LANES));
                    for index in 0..dim {
                        if index.is_multiple_of(2) {
                            InColumns::<E, true>::send_for::<S>(place, index);
                        }
                        let vector = InColumns::<E, true>::vector::<S>(place, index);
                        S::store(vector, packed.add(index * LANES));
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

    /// Where those of a panel are.
    type Panel: Copy;

    /// Those of a panel.
    ///
    /// # Safety
    /// The chunk has it.
    unsafe fn panel(self, panel: usize) -> Self::Panel;

    /// Number `index` of the keys of a panel.
    ///
    /// # Safety
    /// There is such.
    unsafe fn vector<S: Simd>(panel: Self::Panel, index: usize) -> S::V;

    /// Sends for keys that are used later, as far as numbers `index` and the next of a panel stand for
    /// them.
    #[inline(always)]
    fn send_for<S: Simd>(_panel: Self::Panel, _index: usize) {}
}

/// Keys widened and rearranged: `[panel, dim, 16]`.
#[derive(Clone, Copy)]
pub(crate) struct PackedKeys {
    pub(crate) start: *const f32,
    pub(crate) dim: usize,
}

impl Panels for PackedKeys {
    const MAX_PANELS: usize = 4;

    type Panel = *const f32;

    #[inline(always)]
    unsafe fn panel(self, panel: usize) -> *const f32 {
        // SAFETY: the caller's promise.
        unsafe { self.start.add(panel * self.dim * LANES) }
    }

    #[inline(always)]
    unsafe fn vector<S: Simd>(panel: *const f32, index: usize) -> S::V {
        // SAFETY: the caller's promise.
        unsafe { S::load(panel.add(index * LANES)) }
    }
}

/// Keys where they are stored. Panels ahead are sent for on the way, if `SENDS`, so no more are used
/// side by side than are certainly ahead.
pub(crate) struct InColumns<'a, E, const SENDS: bool>(pub(crate) &'a ChunkPanels<E>);

impl<E, const SENDS: bool> Clone for InColumns<'_, E, SENDS> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<E, const SENDS: bool> Copy for InColumns<'_, E, SENDS> {}

impl<E: Element, const SENDS: bool> Panels for InColumns<'_, E, SENDS> {
    const MAX_PANELS: usize = 2;

    type Panel = Panel<E>;

    #[inline(always)]
    unsafe fn panel(self, panel: usize) -> Panel<E> {
        // SAFETY: the caller's promise.
        unsafe { self.0.panel(panel) }
    }

    #[inline(always)]
    unsafe fn vector<S: Simd>(panel: Panel<E>, index: usize) -> S::V {
        // SAFETY: the caller's promise.
        unsafe { E::load::<S>(panel.start.add(index * panel.stride)) }
    }

    #[inline(always)]
    fn send_for<S: Simd>(panel: Panel<E>, index: usize) {
        if !SENDS {
            return;
        }
        for start in panel.ahead {
            S::prefetch(start.wrapping_add(index * panel.stride).cast());
            if panel.stride >= line::<E>() {
                S::prefetch(start.wrapping_add((index + 1) * panel.stride).cast());
            }
        }
    }
}
