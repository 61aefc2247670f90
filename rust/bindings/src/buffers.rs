//! The step arrays: allocated by Python, borrowed for the time of one `schedule`.

use numpy::{
    Element, PyArrayDescrMethods, PyReadwriteArrayDyn, PyUntypedArray, PyUntypedArrayMethods,
};
use pagedkv_core::{StepArrays, StepSizes};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;

use crate::views::borrow_mut;

const NUM_INT32: usize = 17;
const NUM_INT64: usize = 2;

/// Names in the order of the constructor; the 64-bit arrays come last.
const NAMES: [&str; NUM_INT32 + NUM_INT64] = [
    "row_ids",
    "query_start_loc",
    "seq_lens",
    "input_ids",
    "input_source",
    "positions",
    "block_tables",
    "table_updates",
    "row_forks",
    "logits_indices",
    "sample_rows",
    "sample_index",
    "sample_positions",
    "num_candidates",
    "block_copies",
    "swap_out",
    "swap_in",
    "slot_mapping",
    "row_fills",
];
const BLOCK_TABLES: usize = 6;
const SLOT_MAPPING: usize = 17;

/// The shape that each array needs.
fn shapes(sizes: &StepSizes) -> [Vec<usize>; NAMES.len()] {
    let (rows, tokens, groups) = (sizes.num_rows, sizes.num_tokens, sizes.num_groups);
    [
        vec![rows],
        vec![rows + 1],
        vec![rows],
        vec![tokens],
        vec![tokens],
        vec![tokens],
        vec![groups, rows, sizes.blocks_per_row],
        vec![sizes.num_table_updates, 4],
        vec![2 * rows, 2],
        vec![rows],
        vec![rows],
        vec![rows],
        vec![rows],
        vec![rows],
        vec![sizes.num_block_copies, 3],
        vec![sizes.num_swap_blocks, 3],
        vec![sizes.num_swap_blocks, 3],
        vec![groups, tokens],
        vec![2 * rows, 3],
    ]
}

/// The arrays of a step, registered once.
#[pyclass(frozen, module = "pagedkv._core")]
pub(crate) struct StepBuffers {
    arrays: [Py<PyUntypedArray>; NAMES.len()],
}

#[pymethods]
impl StepBuffers {
    /// Registers the arrays.
    #[new]
    #[pyo3(signature = (
        *, row_ids, query_start_loc, seq_lens, input_ids, input_source, positions, block_tables,
        table_updates, row_forks, logits_indices, sample_rows, sample_index, sample_positions,
        num_candidates, block_copies, swap_out, swap_in, slot_mapping, row_fills
    ))]
    #[expect(clippy::too_many_arguments, reason = "one per array, by keyword")]
    fn new(
        py: Python<'_>,
        row_ids: Py<PyUntypedArray>,
        query_start_loc: Py<PyUntypedArray>,
        seq_lens: Py<PyUntypedArray>,
        input_ids: Py<PyUntypedArray>,
        input_source: Py<PyUntypedArray>,
        positions: Py<PyUntypedArray>,
        block_tables: Py<PyUntypedArray>,
        table_updates: Py<PyUntypedArray>,
        row_forks: Py<PyUntypedArray>,
        logits_indices: Py<PyUntypedArray>,
        sample_rows: Py<PyUntypedArray>,
        sample_index: Py<PyUntypedArray>,
        sample_positions: Py<PyUntypedArray>,
        num_candidates: Py<PyUntypedArray>,
        block_copies: Py<PyUntypedArray>,
        swap_out: Py<PyUntypedArray>,
        swap_in: Py<PyUntypedArray>,
        slot_mapping: Py<PyUntypedArray>,
        row_fills: Py<PyUntypedArray>,
    ) -> PyResult<Self> {
        let buffers = Self {
            arrays: [
                row_ids,
                query_start_loc,
                seq_lens,
                input_ids,
                input_source,
                positions,
                block_tables,
                table_updates,
                row_forks,
                logits_indices,
                sample_rows,
                sample_index,
                sample_positions,
                num_candidates,
                block_copies,
                swap_out,
                swap_in,
                slot_mapping,
                row_fills,
            ],
        };
        buffers.borrow(py)?;
        Ok(buffers)
    }

    fn __repr__(&self, py: Python<'_>) -> String {
        let shape = |i: usize| self.arrays[i].bind(py).shape().to_vec();
        format!(
            "StepBuffers(block_tables={:?}, slot_mapping={:?})",
            shape(BLOCK_TABLES),
            shape(SLOT_MAPPING)
        )
    }
}

impl StepBuffers {
    /// The array of the block tables, whose content outlives a step.
    pub(crate) fn block_tables(&self) -> &Py<PyUntypedArray> {
        &self.arrays[BLOCK_TABLES]
    }

    /// Borrows all arrays. Python may have changed them in place since they were registered, so that
    /// everything is checked each time.
    ///
    /// # Errors
    /// Dtype, layout or writeability is wrong, arrays overlap, or another call uses one.
    pub(crate) fn borrow<'py>(&self, py: Python<'py>) -> PyResult<BorrowedBuffers<'py>> {
        self.check_overlap(py)?;
        let (int32s, int64s) = self.arrays.split_at(NUM_INT32);
        let (int32_names, int64_names) = NAMES.split_at(NUM_INT32);
        Ok(BorrowedBuffers {
            int32s: borrow_each(py, int32_names, int32s)?,
            int64s: borrow_each(py, int64_names, int64s)?,
        })
    }

    fn check_overlap(&self, py: Python<'_>) -> PyResult<()> {
        let mut ranges = [(0, 0, 0); NAMES.len()];
        for (i, (range, array)) in ranges.iter_mut().zip(&self.arrays).enumerate() {
            let array = array.bind(py);
            if !array.is_c_contiguous() {
                let name = NAMES[i];
                return Err(PyValueError::new_err(format!("{name} must be C-contiguous")));
            }
            let start = address(array);
            *range = (start, start + array.len() * array.dtype().itemsize(), i);
        }
        ranges.sort_unstable();
        for pair in ranges.windows(2) {
            let ((_, end, a), (start, _, b)) = (pair[0], pair[1]);
            if start < end {
                let (a, b) = (NAMES[a.min(b)], NAMES[a.max(b)]);
                let message = format!("{a} and {b} share memory; every array needs its own");
                return Err(PyValueError::new_err(message));
            }
        }
        Ok(())
    }
}

/// The step arrays while the core fills them.
pub(crate) struct BorrowedBuffers<'py> {
    int32s: Vec<PyReadwriteArrayDyn<'py, i32>>,
    int64s: Vec<PyReadwriteArrayDyn<'py, i64>>,
}

impl BorrowedBuffers<'_> {
    /// The arrays as `schedule` takes them. The first dimension of a list of things may be longer
    /// than needed, and so may the rows of `slot_mapping`.
    ///
    /// # Errors
    /// `ValueError` for a shape that does not fit `sizes`.
    pub(crate) fn arrays(&mut self, sizes: &StepSizes) -> PyResult<StepArrays<'_>> {
        self.check_shapes(sizes)?;
        let slot_stride = self.int64s[0].shape()[1];
        let mut int32s = self.int32s.iter_mut().map(slice);
        let mut next = || int32s.next().expect("one per field");
        let [slot_mapping, row_fills] = self.int64s.as_mut_slice() else {
            unreachable!("two are borrowed")
        };
        Ok(StepArrays {
            row_ids: next()?,
            query_start_loc: next()?,
            seq_lens: next()?,
            input_ids: next()?,
            input_source: next()?,
            positions: next()?,
            block_tables: next()?,
            table_updates: next()?,
            row_forks: next()?,
            logits_indices: next()?,
            sample_rows: next()?,
            sample_index: next()?,
            sample_positions: next()?,
            num_candidates: next()?,
            block_copies: next()?,
            swap_out: next()?,
            swap_in: next()?,
            slot_mapping: slice(slot_mapping)?,
            slot_stride,
            row_fills: slice(row_fills)?,
        })
    }

    fn check_shapes(&self, sizes: &StepSizes) -> PyResult<()> {
        let int32s = self.int32s.iter().map(|array| array.shape());
        let int64s = self.int64s.iter().map(|array| array.shape());
        for (i, (shape, needed)) in int32s.chain(int64s).zip(shapes(sizes)).enumerate() {
            let longer = match i {
                BLOCK_TABLES => None,
                SLOT_MAPPING => Some(1),
                _ => Some(0),
            };
            let fits = |(axis, (got, want)): (usize, (&usize, &usize))| {
                if Some(axis) == longer { got >= want } else { got == want }
            };
            let is_fit =
                shape.len() == needed.len() && shape.iter().zip(&needed).enumerate().all(fits);
            if !is_fit {
                let name = NAMES[i];
                return Err(PyValueError::new_err(format!(
                    "{name} must have shape {needed:?} (Scheduler.sizes), got {shape:?}"
                )));
            }
        }
        Ok(())
    }
}

fn borrow_each<'py, T: Element>(
    py: Python<'py>,
    names: &[&str],
    arrays: &[Py<PyUntypedArray>],
) -> PyResult<Vec<PyReadwriteArrayDyn<'py, T>>> {
    names.iter().zip(arrays).map(|(name, array)| borrow_mut(name, array.bind(py))).collect()
}

fn slice<'a, T: Element>(array: &'a mut PyReadwriteArrayDyn<'_, T>) -> PyResult<&'a mut [T]> {
    array.as_slice_mut().map_err(|error| PyValueError::new_err(error.to_string()))
}

fn address(array: &Bound<'_, PyUntypedArray>) -> usize {
    // SAFETY: the pointer of a live array object; only its data address is read.
    unsafe { (*array.as_array_ptr()).data as usize }
}
