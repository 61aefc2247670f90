//! Sampling: from logits to tokens, a row at a time, without sorting one.

mod best;
mod draw;
mod nucleus;
mod reduce;
mod row;

use std::cell::RefCell;

use crate::dispatch::dispatch;
use crate::error::Error;
use crate::isa::Isa;
use crate::sample::best::{Selection, best};
use crate::sample::reduce::LogSum;
use crate::sample::row::{RowKernel, Scratch};
use crate::simd::{Kernel, Simd};
use crate::threads::for_each;
use crate::view::{View, ViewMut};

pub use row::{NO_TOKEN, Reported, SampleRow};

/// One logit, as the multiply-adds that cost as much.
const WORK_PER_LOGIT: usize = 30;

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::default();
    static SELECTION: RefCell<Selection> = RefCell::default();
}

/// Where results go. S rows; N is the most that a row reports.
pub struct SampleOutputs<'a> {
    /// `[S, 1 + N]`: the chosen token, or [`NO_TOKEN`], then the most likely ones, best first.
    pub token_ids: ViewMut<'a, i32, 2>,
    /// `[S, 1 + N]`: what is reported of them; NaN if a logit of the model was, minus infinity where
    /// a row reports fewer.
    pub numbers: ViewMut<'a, f32, 2>,
    /// `[S, 1]`: rank of the chosen token, 1 for the most likely; 0 where nothing is reported.
    pub ranks: ViewMut<'a, i32, 2>,
}

/// Chooses a token for each row of `logits` `[S, V]`: the most likely one, or the largest sum of
/// scaled logit and noise among those that `min_p`, `top_k` and `top_p` keep, in that order. A filter
/// keeps every token at or above a value, ties included; of equals the lower id is chosen.
///
/// Rows that name one are drawn from their row of `edited` `[P, V]`.
///
/// # Errors
/// [`Error::Size`] or [`Error::TooSmall`] for shapes that disagree, [`Error::Row`] for an edited row
/// that is not there.
pub fn sample(
    logits: View<'_, f32, 2>,
    edited: Option<View<'_, f32, 2>>,
    rows: &[SampleRow],
    reported: Reported,
    outputs: &mut SampleOutputs<'_>,
) -> Result<(), Error> {
    let [num_rows, vocabulary] = logits.shape();
    let edited_shape = edited.map_or([0, vocabulary], |edited| edited.shape());
    check(logits.shape(), edited_shape, rows, outputs)?;
    if vocabulary == 0 {
        return Ok(());
    }
    let (isa, outputs) = (Isa::chosen()?, &*outputs);
    for_each(num_rows, num_rows * vocabulary * WORK_PER_LOGIT, |index| {
        let row = rows[index];
        // SAFETY: each row is handed out once, so no other thread has it.
        let (token_ids, numbers, rank) = unsafe {
            (
                outputs.token_ids.run_shared([index, 0]),
                outputs.numbers.run_shared([index, 0]),
                &mut outputs.ranks.run_shared([index, 0])[0],
            )
        };
        SCRATCH.with_borrow_mut(|scratch| {
            let raw = logits.run([index, 0]);
            let edited = edited.zip(row.edited).map(|(edited, row)| edited.run([row, 0]));
            let kernel =
                RowKernel { row, reported, raw, edited, token_ids, numbers, rank, scratch };
            dispatch(isa, kernel);
        });
    })
}

fn check(
    [num_rows, vocabulary]: [usize; 2],
    [num_edited, edited_columns]: [usize; 2],
    rows: &[SampleRow],
    outputs: &SampleOutputs<'_>,
) -> Result<(), Error> {
    let most = rows.iter().filter_map(|row| row.num_top).max().unwrap_or(0);
    let (token_ids, numbers) = (outputs.token_ids.shape(), outputs.numbers.shape());
    for (argument, dimension, got, expected) in [
        ("rows", 0, rows.len(), num_rows),
        ("edited", 1, edited_columns, vocabulary),
        ("token_ids", 0, token_ids[0], num_rows),
        ("numbers", 0, numbers[0], num_rows),
        ("numbers", 1, numbers[1], token_ids[1]),
        ("ranks", 0, outputs.ranks.shape()[0], num_rows),
        ("ranks", 1, outputs.ranks.shape()[1], 1),
    ] {
        if got != expected {
            return Err(Error::Size { argument, dimension, got, expected });
        }
    }
    let (got, minimum) = (token_ids[1], 1 + most);
    if got < minimum {
        return Err(Error::TooSmall { argument: "token_ids", dimension: 1, got, minimum });
    }
    for (index, row) in rows.iter().enumerate() {
        if let Some(row) = row.edited.filter(|row| *row >= num_edited) {
            let row = row as i32;
            return Err(Error::Row { index, row, num_rows: num_edited });
        }
    }
    Ok(())
}

/// Writes the C largest numbers of each row of `numbers` `[S, V]`, best first, of equals the lower
/// place first, into `values` `[S, C]` and their places into `token_ids` `[S, C]`. Rows hold no NaN.
///
/// With `as_logprobs` the numbers are logits, and the values their log-probabilities; NaN for a row that
/// has none, because it holds a NaN, plus infinity or nothing finite.
///
/// # Errors
/// [`Error::Size`] for shapes that disagree, [`Error::TooSmall`] if C is more than V.
pub fn best_tokens(
    numbers: View<'_, f32, 2>,
    as_logprobs: bool,
    token_ids: &mut ViewMut<'_, i32, 2>,
    values: &mut ViewMut<'_, f32, 2>,
) -> Result<(), Error> {
    let [num_rows, vocabulary] = numbers.shape();
    let [_, count] = token_ids.shape();
    for (argument, dimension, got, expected) in [
        ("token_ids", 0, token_ids.shape()[0], num_rows),
        ("values", 0, values.shape()[0], num_rows),
        ("values", 1, values.shape()[1], count),
    ] {
        if got != expected {
            return Err(Error::Size { argument, dimension, got, expected });
        }
    }
    if vocabulary < count {
        let (got, minimum) = (vocabulary, count);
        return Err(Error::TooSmall { argument: "numbers", dimension: 1, got, minimum });
    }
    if count == 0 {
        return Ok(());
    }
    let (isa, token_ids, values) = (Isa::chosen()?, &*token_ids, &*values);
    let work = num_rows * vocabulary * if as_logprobs { WORK_PER_LOGIT } else { 1 };
    for_each(num_rows, work, |index| {
        // SAFETY: each row is handed out once, so no other thread has it.
        let (token_ids, values) =
            unsafe { (token_ids.run_shared([index, 0]), values.run_shared([index, 0])) };
        SELECTION.with_borrow_mut(|selection| {
            let numbers = numbers.run([index, 0]);
            dispatch(isa, BestKernel { numbers, as_logprobs, token_ids, values, selection });
        });
    })
}

struct BestKernel<'a> {
    numbers: &'a [f32],
    as_logprobs: bool,
    token_ids: &'a mut [i32],
    values: &'a mut [f32],
    selection: &'a mut Selection,
}

impl Kernel for BestKernel<'_> {
    #[inline(always)]
    fn run<S: Simd>(self) {
        // No closure: it would be compiled for another instruction set.
        let log_sum = if self.as_logprobs { Some(LogSum::new::<S>(self.numbers)) } else { None };
        if log_sum.is_some_and(|sum| sum.ln_sum.is_nan()) {
            self.token_ids.fill(0);
            self.values.fill(f32::NAN);
            return;
        }
        let best = best::<S>(self.numbers, self.values.len(), self.selection);
        for ((token, value), &(number, place)) in
            self.token_ids.iter_mut().zip(self.values).zip(best)
        {
            *token = place as i32;
            *value = log_sum.map_or(number, |sum| sum.logprob(number));
        }
    }
}
