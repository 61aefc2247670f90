//! Arrays of numpy as the strided views that the CPU kernels take, without copies.

use std::borrow::Cow;

use numpy::{
    Element, PyArrayDyn, PyArrayMethods, PyReadonlyArrayDyn, PyReadwriteArrayDyn, PyUntypedArray,
    PyUntypedArrayMethods, dtype,
};
use pagedkv_cpu::{Keys, View, ViewMut, bf16, f16, row_major};
use pyo3::exceptions::{PyRuntimeError, PyTypeError, PyValueError};
use pyo3::prelude::*;

/// An array element whose memory may be seen as an `E`.
///
/// # Safety
/// Same size, alignment no larger, every bit pattern valid.
pub(crate) unsafe trait SeenAs<E>: Element {}

// SAFETY: the same type.
unsafe impl SeenAs<Self> for f32 {}
// SAFETY: the same type.
unsafe impl SeenAs<Self> for i32 {}
// SAFETY: the same type.
unsafe impl SeenAs<Self> for i64 {}
// SAFETY: the same type.
unsafe impl SeenAs<Self> for u32 {}
// SAFETY: the same type.
unsafe impl SeenAs<Self> for u64 {}
// SAFETY: both are 16 bits in which every pattern is valid.
unsafe impl SeenAs<bf16> for i16 {}
// SAFETY: as above.
unsafe impl SeenAs<f16> for i16 {}

/// Borrows `array` for reading, as long as the result lives.
///
/// # Errors
/// `TypeError` for another dtype, `ValueError` for unaligned memory, `RuntimeError` while another
/// call writes it.
pub(crate) fn borrow<'py, T: Element>(
    argument: &str,
    array: &Bound<'py, PyUntypedArray>,
) -> PyResult<PyReadonlyArrayDyn<'py, T>> {
    typed::<T>(argument, array)?.try_readonly().map_err(|error| {
        PyRuntimeError::new_err(format!("{argument} is written by another call: {error}"))
    })
}

/// Borrows `array` for writing, as long as the result lives.
///
/// # Errors
/// As [`borrow`], and `RuntimeError` while another call reads it or if it is read-only.
pub(crate) fn borrow_mut<'py, T: Element>(
    argument: &str,
    array: &Bound<'py, PyUntypedArray>,
) -> PyResult<PyReadwriteArrayDyn<'py, T>> {
    typed::<T>(argument, array)?
        .try_readwrite()
        .map_err(|error| PyRuntimeError::new_err(format!("{argument} cannot be written: {error}")))
}

/// A borrowed array as a view with `N` dimensions.
///
/// # Errors
/// `ValueError` for another number of dimensions, or strides that are negative or leave gaps in
/// rows.
pub(crate) fn view<'a, T: SeenAs<E>, E, const N: usize>(
    argument: &'static str,
    array: &'a PyReadonlyArrayDyn<'_, T>,
) -> PyResult<View<'a, E, N>> {
    let (shape, strides) = geometry(argument, array)?;
    // SAFETY: numpy vouches for the memory of shape and strides, the borrow keeps this module's
    // other calls from writing it, `typed` checked the alignment and `SeenAs` the bits.
    unsafe { View::from_raw(argument, array.data().cast::<E>().cast_const(), shape, strides) }
        .map_err(value_error)
}

/// A borrowed array as a writeable view with `N` dimensions.
///
/// # Errors
/// As [`view`], and `ValueError` if elements overlap.
pub(crate) fn view_mut<'a, T: SeenAs<E>, E, const N: usize>(
    argument: &'static str,
    array: &'a mut PyReadwriteArrayDyn<'_, T>,
) -> PyResult<ViewMut<'a, E, N>> {
    let (shape, strides) = geometry(argument, array)?;
    // SAFETY: as in `view`, and the borrow is exclusive.
    unsafe { ViewMut::from_raw(argument, array.data().cast::<E>(), shape, strides) }
        .map_err(value_error)
}

/// A borrowed array of any number of dimensions as rows: all but the last one are one.
///
/// # Errors
/// As [`view`], and `ValueError` if rows do not lie in equal steps.
pub(crate) fn rows_view<'a, T: SeenAs<E>, E>(
    argument: &'static str,
    array: &'a PyReadonlyArrayDyn<'_, T>,
) -> PyResult<View<'a, E, 2>> {
    let (shape, strides) = rows_geometry(argument, array)?;
    // SAFETY: as in `view`.
    unsafe { View::from_raw(argument, array.data().cast::<E>().cast_const(), shape, strides) }
        .map_err(value_error)
}

/// As [`rows_view`], to be written.
///
/// # Errors
/// As there, and as [`view_mut`].
pub(crate) fn rows_view_mut<'a, T: SeenAs<E>, E>(
    argument: &'static str,
    array: &'a mut PyReadwriteArrayDyn<'_, T>,
) -> PyResult<ViewMut<'a, E, 2>> {
    let (shape, strides) = rows_geometry(argument, array)?;
    // SAFETY: as in `view_mut`.
    unsafe { ViewMut::from_raw(argument, array.data().cast::<E>(), shape, strides) }
        .map_err(value_error)
}

/// Keys `[num_blocks, num_kv_heads, block_size, dim]` in the layout that their strides tell of.
///
/// # Errors
/// As [`view`].
pub(crate) fn keys_view<'a, T: SeenAs<E>, E>(
    argument: &'static str,
    array: &'a PyReadonlyArrayDyn<'_, T>,
) -> PyResult<Keys<'a, E>> {
    let (shape, strides) = geometry(argument, array)?;
    let (start, in_columns) = (array.data().cast::<E>().cast_const(), is_in_columns(strides));
    let [shape, strides] = [shape, strides].map(|sizes| exchanged_if(in_columns, sizes));
    // SAFETY: as in `view`.
    let view = unsafe { View::from_raw(argument, start, shape, strides) }.map_err(value_error)?;
    Ok(if in_columns { Keys::Columns(view) } else { Keys::Rows(view) })
}

/// As [`keys_view`], to be written: a view of keys in columns has its last two dimensions exchanged.
///
/// # Errors
/// As [`view_mut`].
pub(crate) fn keys_view_mut<'a, T: SeenAs<E>, E>(
    argument: &'static str,
    array: &'a mut PyReadwriteArrayDyn<'_, T>,
) -> PyResult<(ViewMut<'a, E, 4>, bool)> {
    let (shape, strides) = geometry(argument, array)?;
    let in_columns = is_in_columns(strides);
    let [shape, strides] = [shape, strides].map(|sizes| exchanged_if(in_columns, sizes));
    // SAFETY: as in `view_mut`.
    unsafe { ViewMut::from_raw(argument, array.data().cast::<E>(), shape, strides) }
        .map(|view| (view, in_columns))
        .map_err(value_error)
}

/// Whether the slots of a block lie side by side, not the numbers of a slot.
fn is_in_columns([_, _, slot, number]: [usize; 4]) -> bool {
    number != 1 && slot == 1
}

fn exchanged_if(in_columns: bool, [first, second, third, fourth]: [usize; 4]) -> [usize; 4] {
    if in_columns { [first, second, fourth, third] } else { [first, second, third, fourth] }
}

/// A kernel's complaint as Python knows it.
#[expect(clippy::needless_pass_by_value, reason = "the shape that map_err wants")]
pub(crate) fn value_error(error: pagedkv_cpu::Error) -> PyErr {
    PyValueError::new_err(error.to_string())
}

fn typed<'a, 'py, T: Element>(
    argument: &str,
    array: &'a Bound<'py, PyUntypedArray>,
) -> PyResult<&'a Bound<'py, PyArrayDyn<T>>> {
    let py = array.py();
    let typed = array.cast::<PyArrayDyn<T>>().map_err(|_| {
        let (expected, got) = (dtype::<T>(py), array.dtype());
        PyTypeError::new_err(format!("{argument} must be an array of {expected}, got {got}"))
    })?;
    if !typed.is_aligned() {
        return Err(PyValueError::new_err(format!("{argument} must be aligned in memory")));
    }
    Ok(typed)
}

/// Shape, and strides in elements.
fn geometry<T: Element, const N: usize>(
    argument: &str,
    array: &Bound<'_, PyArrayDyn<T>>,
) -> PyResult<([usize; N], [usize; N])> {
    let shape: [usize; N] = array.shape().try_into().map_err(|_| {
        let got = array.ndim();
        PyValueError::new_err(format!("{argument} must have {N} dimensions, got {got}"))
    })?;
    if shape.contains(&0) {
        // The strides that numpy gives an array without elements mean nothing.
        return Ok((shape, row_major(shape)));
    }
    let mut strides = [0; N];
    for (stride, &bytes) in strides.iter_mut().zip(array.strides()) {
        *stride = whole_stride::<T>(argument, bytes)?;
    }
    Ok((shape, strides))
}

/// Shape and strides of an array's rows.
fn rows_geometry<T: Element>(
    argument: &str,
    array: &Bound<'_, PyArrayDyn<T>>,
) -> PyResult<([usize; 2], [usize; 2])> {
    let (Some((&columns, outer)), Some((&inner_bytes, outer_bytes))) =
        (array.shape().split_last(), array.strides().split_last())
    else {
        return Err(PyValueError::new_err(format!("{argument} must have rows, got a number")));
    };
    let num_rows = outer.iter().product();
    let shape = [num_rows, columns];
    if num_rows * columns == 0 {
        return Ok((shape, row_major(shape)));
    }
    // From the innermost of the outer dimensions that have a step at all.
    let mut steps = outer.iter().zip(outer_bytes).rev().filter(|(size, _)| **size > 1);
    let mut row_bytes = (columns * size_of::<T>()) as isize;
    if let Some((&size, &bytes)) = steps.next() {
        row_bytes = bytes;
        let mut next = bytes * size as isize;
        for (&size, &bytes) in steps {
            if bytes != next {
                let hint = "make it contiguous";
                let text = format!("{argument} must have rows in equal steps; {hint}");
                return Err(PyValueError::new_err(text));
            }
            next *= size as isize;
        }
    }
    let strides = [row_bytes, inner_bytes];
    let [rows, inner] = strides.map(|bytes| whole_stride::<T>(argument, bytes));
    Ok((shape, [rows?, inner?]))
}

/// A stride in elements.
fn whole_stride<T>(argument: &str, bytes: isize) -> PyResult<usize> {
    let item = size_of::<T>();
    let whole = usize::try_from(bytes).ok().filter(|bytes| bytes.is_multiple_of(item));
    whole.map(|bytes| bytes / item).ok_or_else(|| {
        PyValueError::new_err(format!(
            "{argument} must have strides of 0 or more whole elements of {item} bytes, \
             got {bytes} bytes"
        ))
    })
}

/// The samples of an array of shape `[S, C]`, or `[S]` for one candidate each.
pub(crate) fn samples<'a, T: Element + Copy>(
    name: &str,
    array: &'a PyReadonlyArrayDyn<'_, T>,
    num_samples: usize,
    num_candidates: usize,
) -> PyResult<Cow<'a, [T]>> {
    let shape = array.shape();
    let is_flat = num_candidates == 1 && shape == [num_samples];
    if !is_flat && shape != [num_samples, num_candidates] {
        let flat = if num_candidates == 1 { format!("[{num_samples}] or ") } else { String::new() };
        return Err(PyValueError::new_err(format!(
            "{name} must have shape {flat}[{num_samples}, {num_candidates}], got {shape:?}"
        )));
    }
    Ok(match array.as_slice() {
        Ok(values) => Cow::Borrowed(values),
        Err(_) => Cow::Owned(array.as_array().iter().copied().collect()),
    })
}
