//! Strided views of tensors that somebody else owns.
//!
//! A view is checked once, when it is made; every access asserts its indices, so that safe code
//! cannot leave the tensor. Only runs along the last dimension become slices: the gaps between them
//! may belong to other tensors (padded blocks do share memory) and are never touched.

use std::marker::PhantomData;

use crate::error::Error;

/// A tensor to read: `N` dimensions, any strides, rows (last dimension) contiguous.
pub struct View<'a, E, const N: usize> {
    start: *const E,
    shape: [usize; N],
    strides: [usize; N],
    lifetime: PhantomData<&'a [E]>,
}

/// A tensor to write: as [`View`], and no two indices name the same element.
pub struct ViewMut<'a, E, const N: usize> {
    start: *mut E,
    shape: [usize; N],
    strides: [usize; N],
    lifetime: PhantomData<&'a mut [E]>,
}

impl<E, const N: usize> Clone for View<'_, E, N> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<E, const N: usize> Copy for View<'_, E, N> {}

// SAFETY: a view stands for `&[E]`, which may be sent and shared when `E` may be shared.
unsafe impl<E: Sync, const N: usize> Send for View<'_, E, N> {}
// SAFETY: as above.
unsafe impl<E: Sync, const N: usize> Sync for View<'_, E, N> {}
// SAFETY: a mutable view stands for `&mut [E]`, which may be sent when `E` may be sent.
unsafe impl<E: Send, const N: usize> Send for ViewMut<'_, E, N> {}
// SAFETY: through `&ViewMut` elements are reached only by an unsafe function whose callers promise
// disjoint runs.
unsafe impl<E: Send + Sync, const N: usize> Sync for ViewMut<'_, E, N> {}

impl<'a, E, const N: usize> View<'a, E, N> {
    /// A view of `elements` with strides counted in elements.
    ///
    /// # Errors
    /// [`Error::InnerStride`] if rows are not contiguous, [`Error::Span`] if the view would leave
    /// `elements`.
    pub fn new(
        argument: &'static str,
        elements: &'a [E],
        shape: [usize; N],
        strides: [usize; N],
    ) -> Result<Self, Error> {
        check_span(argument, elements.len(), span(shape, strides))?;
        // SAFETY: the span of the view was just compared with the slice, which lives for 'a.
        unsafe { Self::from_raw(argument, elements.as_ptr(), shape, strides) }
    }

    /// A view of `elements` in row-major order.
    ///
    /// # Errors
    /// [`Error::Span`] if `elements` is too short.
    pub fn contiguous(
        argument: &'static str,
        elements: &'a [E],
        shape: [usize; N],
    ) -> Result<Self, Error> {
        Self::new(argument, elements, shape, row_major(shape))
    }

    /// A view of memory that has no slice, such as a tensor with gaps.
    ///
    /// # Safety
    /// For 'a, every element that `shape` and `strides` reach from `start` is readable,
    /// initialised, aligned and not written by anybody.
    ///
    /// # Errors
    /// [`Error::InnerStride`] if rows are not contiguous.
    pub unsafe fn from_raw(
        argument: &'static str,
        start: *const E,
        shape: [usize; N],
        strides: [usize; N],
    ) -> Result<Self, Error> {
        check_inner_stride(argument, shape, strides)?;
        Ok(Self { start, shape, strides, lifetime: PhantomData })
    }

    /// The sizes of the dimensions.
    #[inline]
    pub fn shape(&self) -> [usize; N] {
        self.shape
    }

    /// Elements from one index of a dimension to the next.
    #[inline]
    pub(crate) fn strides(&self) -> [usize; N] {
        self.strides
    }

    /// The elements from `index` to the end of its row.
    #[inline(always)]
    pub fn run(&self, index: [usize; N]) -> &'a [E] {
        let offset = checked_offset(index, self.shape, self.strides);
        // SAFETY: `checked_offset` asserted the index, rows are contiguous, and the constructor's
        // caller vouched for every element in the shape.
        unsafe {
            std::slice::from_raw_parts(self.start.add(offset), self.shape[N - 1] - index[N - 1])
        }
    }
}

impl<'a, E> View<'a, E, 1> {
    /// All elements.
    #[inline]
    pub fn as_slice(&self) -> &'a [E] {
        if self.shape == [0] { &[] } else { self.run([0]) }
    }
}

impl<'a, E> View<'a, E, 4> {
    /// The matrix at `[first, second]`: for block storage, the slots of one head in one block.
    #[inline(always)]
    pub fn matrix(&self, first: usize, second: usize) -> View<'a, E, 2> {
        let offset = checked_offset([first, second, 0, 0], self.shape, self.strides);
        View {
            // SAFETY: the element at the asserted index is inside the tensor.
            start: unsafe { self.start.add(offset) },
            shape: [self.shape[2], self.shape[3]],
            strides: [self.strides[2], self.strides[3]],
            lifetime: PhantomData,
        }
    }
}

impl<'a, E> View<'a, E, 4> {
    /// The tensor at `[.., second]`: for block storage, the slots of one head in all blocks.
    #[inline(always)]
    pub(crate) fn column(&self, second: usize) -> View<'a, E, 3> {
        assert!(second < self.shape[1], "outside the view");
        View {
            start: self.start.wrapping_add(second * self.strides[1]),
            shape: [self.shape[0], self.shape[2], self.shape[3]],
            strides: [self.strides[0], self.strides[2], self.strides[3]],
            lifetime: PhantomData,
        }
    }
}

impl<E> View<'_, E, 2> {
    /// Where rows start, from `first` on, one for each of `starts`. Each has as many elements as the
    /// last dimension.
    #[inline(always)]
    pub(crate) fn row_starts(&self, first: usize, starts: &mut [*const E]) {
        assert!(first + starts.len() <= self.shape[0], "row outside the view");
        for (row, start) in (first..).zip(starts) {
            // SAFETY: the row is inside the view.
            *start = unsafe { self.start.add(row * self.strides[0]) };
        }
    }
}

impl<E> View<'_, E, 3> {
    /// Where an element lies.
    #[inline(always)]
    pub(crate) fn start(&self, index: [usize; 3]) -> *const E {
        let offset = checked_offset(index, self.shape, self.strides);
        // SAFETY: the element is inside the view.
        unsafe { self.start.add(offset) }
    }
}

impl<'a, E, const N: usize> ViewMut<'a, E, N> {
    /// A writeable view of `elements` with strides counted in elements.
    ///
    /// # Errors
    /// As [`View::new`], and [`Error::Overlap`] if two indices would name one element.
    pub fn new(
        argument: &'static str,
        elements: &'a mut [E],
        shape: [usize; N],
        strides: [usize; N],
    ) -> Result<Self, Error> {
        check_span(argument, elements.len(), span(shape, strides))?;
        // SAFETY: the span of the view was just compared with the slice, which lives for 'a.
        unsafe { Self::from_raw(argument, elements.as_mut_ptr(), shape, strides) }
    }

    /// A writeable view of `elements` in row-major order.
    ///
    /// # Errors
    /// [`Error::Span`] if `elements` is too short.
    pub fn contiguous(
        argument: &'static str,
        elements: &'a mut [E],
        shape: [usize; N],
    ) -> Result<Self, Error> {
        Self::new(argument, elements, shape, row_major(shape))
    }

    /// A writeable view of memory that has no slice.
    ///
    /// # Safety
    /// For 'a, every element that `shape` and `strides` reach from `start` is writeable,
    /// initialised, aligned and used by nobody else.
    ///
    /// # Errors
    /// [`Error::InnerStride`] if rows are not contiguous, [`Error::Overlap`] if elements overlap.
    pub unsafe fn from_raw(
        argument: &'static str,
        start: *mut E,
        shape: [usize; N],
        strides: [usize; N],
    ) -> Result<Self, Error> {
        check_inner_stride(argument, shape, strides)?;
        if overlaps(shape, strides) {
            return Err(Error::Overlap { argument });
        }
        Ok(Self { start, shape, strides, lifetime: PhantomData })
    }

    /// The sizes of the dimensions.
    #[inline]
    pub fn shape(&self) -> [usize; N] {
        self.shape
    }

    /// The same elements, each index of the first dimension in rows as long as leave no gap.
    pub(crate) fn merged(&mut self) -> ViewMut<'_, E, N> {
        let mut shape = self.shape;
        for dimension in (1..N - 1).rev() {
            if self.strides[dimension] != shape[N - 1] {
                break;
            }
            shape[N - 1] *= std::mem::replace(&mut shape[dimension], 1);
        }
        ViewMut { start: self.start, shape, strides: self.strides, lifetime: PhantomData }
    }

    /// The elements from `index` to the end of its row.
    #[inline]
    pub fn run_mut(&mut self, index: [usize; N]) -> &mut [E] {
        // SAFETY: `&mut self` excludes every other run of this view.
        unsafe { self.run_shared(index) }
    }

    /// As [`run_mut`](Self::run_mut), for threads that write different rows of one view.
    ///
    /// # Safety
    /// No other live slice covers this row.
    #[inline]
    #[expect(clippy::mut_from_ref, reason = "rows are disjoint, which the caller promises")]
    pub(crate) unsafe fn run_shared(&self, index: [usize; N]) -> &mut [E] {
        let offset = checked_offset(index, self.shape, self.strides);
        // SAFETY: `checked_offset` asserted the index, rows are contiguous, the constructor's
        // caller vouched for every element in the shape, and this function's caller for exclusive
        // use.
        unsafe {
            std::slice::from_raw_parts_mut(self.start.add(offset), self.shape[N - 1] - index[N - 1])
        }
    }

    /// `length` elements from `index` on, for threads that write different parts of a row.
    ///
    /// # Safety
    /// No other live slice covers any of these elements.
    #[inline]
    #[expect(clippy::mut_from_ref, reason = "parts are disjoint, which the caller promises")]
    pub(crate) unsafe fn part_shared(&self, index: [usize; N], length: usize) -> &mut [E] {
        let offset = checked_offset(index, self.shape, self.strides);
        assert!(length <= self.shape[N - 1] - index[N - 1], "part outside the row");
        // SAFETY: the asserted elements are in the shape, rows are contiguous, the constructor's
        // caller vouched for every element in the shape, and this function's caller for exclusive
        // use.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(offset), length) }
    }
}

impl<E: Copy> ViewMut<'_, E, 4> {
    /// Writes `elements` down a column of the matrix at `[first, second]`, as many as it has rows.
    #[inline(always)]
    pub(crate) fn write_column(
        &mut self,
        [first, second]: [usize; 2],
        column: usize,
        elements: &[E],
    ) {
        assert_eq!(elements.len(), self.shape[2], "elements of another length than the column");
        if elements.is_empty() {
            return;
        }
        let offset = checked_offset([first, second, 0, column], self.shape, self.strides);
        for (row, element) in elements.iter().enumerate() {
            // SAFETY: the column was asserted, and its rows are those of the shape.
            unsafe { *self.start.add(offset + row * self.strides[2]) = *element };
        }
    }
}

/// Strides of a dense row-major tensor.
pub fn row_major<const N: usize>(shape: [usize; N]) -> [usize; N] {
    let mut strides = [1; N];
    for dimension in (1..N).rev() {
        strides[dimension - 1] = strides[dimension] * shape[dimension];
    }
    strides
}

#[inline(always)]
fn checked_offset<const N: usize>(
    index: [usize; N],
    shape: [usize; N],
    strides: [usize; N],
) -> usize {
    let mut offset = 0;
    for dimension in 0..N {
        assert!(index[dimension] < shape[dimension], "index outside the view");
        offset += index[dimension] * strides[dimension];
    }
    offset
}

/// Elements from the first to one past the last, or None if that is no `usize`.
fn span<const N: usize>(shape: [usize; N], strides: [usize; N]) -> Option<usize> {
    if shape.contains(&0) {
        return Some(0);
    }
    shape.iter().zip(strides).try_fold(1_usize, |total, (&size, stride)| {
        (size - 1).checked_mul(stride).and_then(|reach| total.checked_add(reach))
    })
}

fn check_span(
    argument: &'static str,
    available: usize,
    needed: Option<usize>,
) -> Result<(), Error> {
    match needed {
        Some(needed) if needed <= available => Ok(()),
        _ => Err(Error::Span { argument, needed: needed.unwrap_or(usize::MAX), available }),
    }
}

fn check_inner_stride<const N: usize>(
    argument: &'static str,
    shape: [usize; N],
    strides: [usize; N],
) -> Result<(), Error> {
    if shape[N - 1] > 1 && strides[N - 1] != 1 {
        return Err(Error::InnerStride { argument, got: strides[N - 1] });
    }
    Ok(())
}

/// Whether two indices may name one element: ordered by stride, each dimension must step over the
/// ones inside it.
fn overlaps<const N: usize>(shape: [usize; N], strides: [usize; N]) -> bool {
    if shape.contains(&0) {
        return false;
    }
    let mut order: [usize; N] = std::array::from_fn(|dimension| dimension);
    order.sort_unstable_by_key(|&dimension| strides[dimension]);
    let mut reach = 1;
    for dimension in order {
        if shape[dimension] > 1 {
            if strides[dimension] < reach {
                return true;
            }
            reach += (shape[dimension] - 1) * strides[dimension];
        }
    }
    false
}
