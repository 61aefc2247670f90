//! Rotary position embedding (Su et al., `RoFormer`, 2021, section 3.2.2), in the form that rotates number
//! i of a head together with number i + dim / 2.

use crate::dispatch::dispatch;
use crate::element::Element;
use crate::error::Error;
use crate::isa::Isa;
use crate::simd::{Kernel, LANES, Simd};
use crate::threads::for_each;
use crate::view::{View, ViewMut};

/// One number, as the multiply-adds that cost as much.
const WORK_PER_NUMBER: usize = 4;

/// Writes `heads` `[T, H, dim]`, rotated, into `output` of the same shape:
///
/// ```text
/// output = heads * cos + (-second half of heads, first half of heads) * sin
/// ```
///
/// `cos` and `sin` are `[T, dim]`. Each product and the sum are rounded to the element, as they are when
/// computed one after the other.
///
/// # Errors
/// [`Error::Size`] if the shapes differ or `dim` is odd.
pub fn rotate<E: Element>(
    heads: View<'_, E, 3>,
    cos: View<'_, E, 2>,
    sin: View<'_, E, 2>,
    output: &mut ViewMut<'_, E, 3>,
) -> Result<(), Error> {
    let [num_tokens, num_heads, dim] = heads.shape();
    for (argument, dimension, got, expected) in [
        ("heads", 2, dim, dim.next_multiple_of(2)),
        ("cos", 0, cos.shape()[0], num_tokens),
        ("cos", 1, cos.shape()[1], dim),
        ("sin", 0, sin.shape()[0], num_tokens),
        ("sin", 1, sin.shape()[1], dim),
        ("output", 0, output.shape()[0], num_tokens),
        ("output", 1, output.shape()[1], num_heads),
        ("output", 2, output.shape()[2], dim),
    ] {
        if got != expected {
            return Err(Error::Size { argument, dimension, got, expected });
        }
    }
    if num_heads * dim == 0 {
        return Ok(());
    }
    let (isa, output) = (Isa::chosen()?, &*output);
    for_each(num_tokens, num_tokens * num_heads * dim * WORK_PER_NUMBER, |token| {
        let (cos, sin) = (cos.run([token, 0]), sin.run([token, 0]));
        dispatch(isa, TokenKernel { heads, cos, sin, output, token });
    })
}

struct TokenKernel<'a, E> {
    heads: View<'a, E, 3>,
    cos: &'a [E],
    sin: &'a [E],
    /// Rows of a token are written by nobody else.
    output: &'a ViewMut<'a, E, 3>,
    token: usize,
}

impl<E: Element> Kernel for TokenKernel<'_, E> {
    #[inline(always)]
    fn run<S: Simd>(self) {
        let half = self.cos.len() / 2;
        let (first_cos, second_cos) = self.cos.split_at(half);
        let (first_sin, second_sin) = self.sin.split_at(half);
        for head in 0..self.heads.shape()[1] {
            let (first, second) = self.heads.run([self.token, head, 0]).split_at(half);
            // SAFETY: each token is handed out once, so no other thread has its rows.
            let output = unsafe { self.output.run_shared([self.token, head, 0]) };
            let (first_output, second_output) = output.split_at_mut(half);
            for start in (0..half).step_by(LANES) {
                let at = start..half.min(start + LANES);
                let (x, y) = (load::<S, E>(&first[at.clone()]), load::<S, E>(&second[at.clone()]));
                let x_cos = product::<S, E>(x, load::<S, E>(&first_cos[at.clone()]));
                let y_sin = product::<S, E>(y, load::<S, E>(&first_sin[at.clone()]));
                let y_cos = product::<S, E>(y, load::<S, E>(&second_cos[at.clone()]));
                let x_sin = product::<S, E>(x, load::<S, E>(&second_sin[at.clone()]));
                store::<S, E>(S::sub(x_cos, y_sin), &mut first_output[at.clone()]);
                store::<S, E>(S::add(y_cos, x_sin), &mut second_output[at]);
            }
        }
    }
}

/// Up to sixteen numbers, and zeros.
#[inline(always)]
fn load<S: Simd, E: Element>(from: &[E]) -> S::V {
    if from.len() == LANES {
        // SAFETY: there are sixteen.
        return unsafe { E::load::<S>(from.as_ptr()) };
    }
    let mut numbers = [0.0; LANES];
    E::copy_widened(from, &mut numbers[..from.len()]);
    // SAFETY: an array of a vector's size.
    unsafe { S::load(numbers.as_ptr()) }
}

/// The products, rounded to the element.
#[inline(always)]
fn product<S: Simd, E: Element>(a: S::V, b: S::V) -> S::V {
    let mut rounded = [E::ZERO; LANES];
    store::<S, E>(S::mul(a, b), &mut rounded);
    load::<S, E>(&rounded)
}

/// Rounds the first numbers, as many as there is room for.
#[inline(always)]
fn store<S: Simd, E: Element>(v: S::V, to: &mut [E]) {
    let mut numbers = [0.0; LANES];
    // SAFETY: an array of a vector's size.
    unsafe { S::store(v, numbers.as_mut_ptr()) };
    E::narrow(&numbers[..to.len()], to);
}
