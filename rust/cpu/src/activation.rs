//! Activations whose result for one number does not depend on how many others there are.

use crate::dispatch::dispatch;
use crate::element::Element;
use crate::error::Error;
use crate::isa::Isa;
use crate::math::{gelu, gelu_tanh, silu};
use crate::simd::{Kernel, LANES, Simd};
use crate::threads::for_each;
use crate::view::{View, ViewMut};

/// One activation, as the multiply-adds that cost as much.
const WORK_PER_NUMBER: usize = 20;

/// A function of one number, computed in f32 and rounded once to the element.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Activation {
    /// `x / (1 + e^-x)`
    Silu,
    /// `x * (1 + erf(x / sqrt 2)) / 2`
    Gelu,
    /// `x * (1 + tanh(sqrt(2 / pi) * (x + 0.044715 x^3))) / 2`
    GeluTanh,
}

/// Applies `activation` to `input` `[rows, columns]`, into `output`.
///
/// # Errors
/// [`Error::Size`] if the shapes differ.
pub fn activate<E: Element>(
    activation: Activation,
    input: View<'_, E, 2>,
    output: &mut ViewMut<'_, E, 2>,
) -> Result<(), Error> {
    for (dimension, (got, expected)) in output.shape().into_iter().zip(input.shape()).enumerate() {
        if got != expected {
            return Err(Error::Size { argument: "output", dimension, got, expected });
        }
    }
    let [rows, columns] = input.shape();
    if columns == 0 {
        return Ok(());
    }
    let (isa, output) = (Isa::chosen()?, &*output);
    for_each(rows, rows * columns * WORK_PER_NUMBER, |row| {
        // SAFETY: each row is handed out once, so no other thread has it.
        let output = unsafe { output.run_shared([row, 0]) };
        dispatch(isa, ActivationKernel { activation, input: input.run([row, 0]), output });
    })
}

struct ActivationKernel<'a, E> {
    activation: Activation,
    input: &'a [E],
    output: &'a mut [E],
}

/// `output = function(input)`, sixteen numbers at a time; the last ones with others of no meaning. A
/// macro: a function that is passed as an argument would not be compiled for the level.
macro_rules! map {
    ($function:ident, $kernel:expr) => {{
        let mut numbers = [0.0; LANES];
        let outputs = $kernel.output.chunks_mut(LANES);
        for (input, output) in $kernel.input.chunks(LANES).zip(outputs) {
            E::copy_widened(input, &mut numbers[..input.len()]);
            // SAFETY: a vector is loaded from, and stored to, an array of its size.
            unsafe {
                let result = $function::<S>(S::load(numbers.as_ptr()));
                S::store(result, numbers.as_mut_ptr());
            }
            E::narrow(&numbers[..output.len()], output);
        }
    }};
}

impl<E: Element> Kernel for ActivationKernel<'_, E> {
    #[inline(always)]
    fn run<S: Simd>(self) {
        match self.activation {
            Activation::Silu => map!(silu, self),
            Activation::Gelu => map!(gelu, self),
            Activation::GeluTanh => map!(gelu_tanh, self),
        }
    }
}
