//! One panel of a product: sums over runs of `k`, then bias and rounding.

use std::cell::RefCell;
use std::ops::Range;

use crate::element::Element;
use crate::simd::{Kernel, LANES, Simd};
use crate::view::{View, ViewMut};

/// Elements of a dot product whose lanes are summed before the next ones begin.
pub(super) const RUN: usize = 512;

thread_local! {
    static SUMS: RefCell<Vec<f32>> = RefCell::default();
}

/// A part of the output.
#[derive(Clone)]
pub(super) struct Panel {
    pub(super) rows: Range<usize>,
    pub(super) columns: Range<usize>,
}

impl Panel {
    /// Sums from one row to the next: the columns, in whole vectors.
    #[inline(always)]
    pub(super) fn width(&self) -> usize {
        self.columns.len().next_multiple_of(LANES)
    }
}

/// A run of `k` in the products of a panel.
pub(super) struct PanelRun<'a> {
    pub(super) panel: &'a Panel,
    pub(super) run: Range<usize>,
    /// The place in the weight from which its thread will go on.
    pub(super) next: Option<[usize; 2]>,
}

impl PanelRun<'_> {
    /// Elements from `columns` of this run, rows of the weight, to those that are used after them.
    #[inline(always)]
    pub(super) fn distance_to_next(&self, columns: &Range<usize>, stride: usize) -> Option<isize> {
        let [column, k] = if columns.end < self.panel.columns.end {
            [columns.end, self.run.start]
        } else {
            self.next?
        };
        let place = |column: usize, k: usize| (column * stride + k) as isize;
        Some(place(column, k) - place(columns.start, self.run.start))
    }
}

/// A way to multiply. All give the same bits.
pub(super) trait Products: Sync {
    /// Adds the products to `sums` `[rows, width]`; what is added beyond the panel's columns is not
    /// used.
    fn add_run<S: Simd>(&self, run: &PanelRun<'_>, sums: &mut [f32]);
}

/// A panel and all it reads and writes.
pub(super) struct PanelKernel<'a, E, P> {
    pub(super) panel: Panel,
    /// First row of the weight in the panel that this thread will do next.
    pub(super) next_column: Option<usize>,
    pub(super) num_inputs: usize,
    pub(super) products: &'a P,
    pub(super) bias: Option<View<'a, E, 1>>,
    /// The panel's part is written, by nobody else meanwhile.
    pub(super) output: &'a ViewMut<'a, E, 2>,
}

impl<E: Element, P: Products> Kernel for PanelKernel<'_, E, P> {
    #[inline(always)]
    fn run<S: Simd>(self) {
        let mut sums = SUMS.take();
        sums.clear();
        sums.resize(self.panel.rows.len() * self.panel.width(), 0.0);
        for start in (0..self.num_inputs).step_by(RUN) {
            let run = start..self.num_inputs.min(start + RUN);
            let next = if run.end < self.num_inputs {
                Some([self.panel.columns.start, run.end])
            } else {
                self.next_column.map(|column| [column, 0])
            };
            let run = PanelRun { panel: &self.panel, run, next };
            self.products.add_run::<S>(&run, &mut sums);
        }
        self.store(&mut sums);
        SUMS.set(sums);
    }
}

impl<E: Element, P> PanelKernel<'_, E, P> {
    /// Writes the panel: sums plus bias, rounded once.
    #[inline(always)]
    fn store(&self, sums: &mut [f32]) {
        let Panel { rows, columns } = &self.panel;
        let mut bias = [0.0; super::PANEL_COLUMNS];
        let bias = &mut bias[..columns.len()];
        if let Some(numbers) = self.bias {
            E::copy_widened(&numbers.as_slice()[columns.clone()], bias);
        }
        for (row, sums) in rows.clone().zip(sums.chunks_exact_mut(self.panel.width())) {
            let sums = &mut sums[..columns.len()];
            if self.bias.is_some() {
                for (sum, bias) in sums.iter_mut().zip(&*bias) {
                    *sum += bias;
                }
            }
            // SAFETY: each panel is handed out once, and panels are disjoint.
            let output = unsafe { self.output.part_shared([row, columns.start], columns.len()) };
            E::narrow(sums, output);
        }
    }
}
