//! Normalisation of rows by their root mean square (Zhang and Sennrich, 2019, arXiv 1910.07467).

use crate::dispatch::dispatch;
use crate::element::Element;
use crate::error::Error;
use crate::isa::Isa;
use crate::simd::{Kernel, LANES, Simd};
use crate::threads::for_each;
use crate::view::{View, ViewMut};

/// One number, as the multiply-adds that cost as much.
const WORK_PER_NUMBER: usize = 8;

/// What is done with the normalised numbers.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RmsNorm {
    /// Added to the mean of the squares.
    pub epsilon: f32,
    /// Added to every weight: 0, or 1 where weights are stored as what they differ from 1.
    pub weight_offset: f32,
    /// Round to the element before the weight is applied, as well as after.
    pub rounds_twice: bool,
}

/// `input / sqrt(mean(input^2) + epsilon) * (weight + offset)` of each row of `[rows, columns]`, in
/// f32 and rounded to the element.
///
/// # Errors
/// [`Error::Size`] if shapes disagree.
pub fn rms_norm<E: Element>(
    norm: RmsNorm,
    input: View<'_, E, 2>,
    weight: View<'_, E, 1>,
    output: &mut ViewMut<'_, E, 2>,
) -> Result<(), Error> {
    let [rows, columns] = input.shape();
    for (argument, dimension, got, expected) in [
        ("weight", 0, weight.shape()[0], columns),
        ("output", 0, output.shape()[0], rows),
        ("output", 1, output.shape()[1], columns),
    ] {
        if got != expected {
            return Err(Error::Size { argument, dimension, got, expected });
        }
    }
    if columns == 0 {
        return Ok(());
    }
    let (isa, output) = (Isa::chosen()?, &*output);
    let mut factors = vec![0.0; columns];
    E::copy_widened(weight.as_slice(), &mut factors);
    for factor in &mut factors {
        *factor += norm.weight_offset;
    }
    for_each(rows, rows * columns * WORK_PER_NUMBER, |row| {
        // SAFETY: each row is handed out once, so no other thread has it.
        let output = unsafe { output.run_shared([row, 0]) };
        dispatch(isa, RowKernel { norm, input: input.run([row, 0]), factors: &factors, output });
    })
}

struct RowKernel<'a, E> {
    norm: RmsNorm,
    input: &'a [E],
    factors: &'a [f32],
    output: &'a mut [E],
}

impl<E: Element> Kernel for RowKernel<'_, E> {
    #[inline(always)]
    fn run<S: Simd>(self) {
        let Self { norm, input, factors, output } = self;
        let mut numbers = [0.0; LANES];
        let mut squares = S::splat(0.0);
        for part in input.chunks(LANES) {
            let vector = load::<S, E>(part, &mut numbers);
            squares = S::fma(vector, vector, squares);
        }
        let mean = S::sum(squares) / input.len() as f32;
        let scale = S::splat(1.0 / (mean + norm.epsilon).sqrt());
        let parts = input.chunks(LANES).zip(factors.chunks(LANES));
        for ((part, factors), output) in parts.zip(output.chunks_mut(LANES)) {
            let mut vector = S::mul(load::<S, E>(part, &mut numbers), scale);
            if norm.rounds_twice {
                // SAFETY: a vector is stored to an array of its size.
                unsafe { S::store(vector, numbers.as_mut_ptr()) };
                E::narrow(&numbers[..output.len()], output);
                vector = load::<S, E>(output, &mut numbers);
            }
            vector = S::mul(vector, load::<S, f32>(factors, &mut numbers));
            // SAFETY: as above.
            unsafe { S::store(vector, numbers.as_mut_ptr()) };
            E::narrow(&numbers[..output.len()], output);
        }
    }
}

/// A vector of `part`, zero after its end, by way of `buffer` if it is not whole.
#[inline(always)]
fn load<S: Simd, E: Element>(part: &[E], buffer: &mut [f32; LANES]) -> S::V {
    if part.len() == LANES {
        // SAFETY: it has just been counted.
        return unsafe { E::load::<S>(part.as_ptr()) };
    }
    *buffer = [0.0; LANES];
    E::copy_widened(part, &mut buffer[..part.len()]);
    // SAFETY: a vector is loaded from an array of its size.
    unsafe { S::load(buffer.as_ptr()) }
}
