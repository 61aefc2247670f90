//! Activations whose result for one number does not depend on how many others there are.

use crate::dispatch::{Kernel, dispatch};
use crate::element::Element;
use crate::error::Error;
use crate::math::{gelu, gelu_tanh, silu};
use crate::threads::for_each;
use crate::view::{View, ViewMut};

/// Numbers that are converted and computed at a time, on the stack.
const CHUNK: usize = 256;
/// One activation, as the multiply-adds that cost as much.
const WORK_PER_NUMBER: usize = 20;

/// A function of one number, computed in f32 or wider and rounded once to the element.
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
    let output = &*output;
    for_each(rows, rows * columns * WORK_PER_NUMBER, |row| {
        // SAFETY: each row is handed out once, so no other thread has it.
        let output = unsafe { output.run_shared([row, 0]) };
        dispatch(ActivationKernel { activation, input: input.run([row, 0]), output });
    })
}

struct ActivationKernel<'a, E> {
    activation: Activation,
    input: &'a [E],
    output: &'a mut [E],
}

impl<E: Element> Kernel for ActivationKernel<'_, E> {
    #[inline(always)]
    fn run(self) {
        let mut numbers = [0.0; CHUNK];
        for (input, output) in self.input.chunks(CHUNK).zip(self.output.chunks_mut(CHUNK)) {
            let numbers = &mut numbers[..input.len()];
            E::copy_widened(input, numbers);
            // Loops, not `for_each`: a closure would not be compiled for the wider vectors.
            match self.activation {
                Activation::Silu => {
                    for x in &mut *numbers {
                        *x = silu(*x);
                    }
                }
                Activation::Gelu => {
                    for x in &mut *numbers {
                        *x = gelu(*x);
                    }
                }
                Activation::GeluTanh => {
                    for x in &mut *numbers {
                        *x = gelu_tanh(*x);
                    }
                }
            }
            E::narrow(numbers, output);
        }
    }
}
