//! What grammars allow the samples of a batch.

use super::{InFlight, Scheduler};
use crate::batch::Batch;
use crate::error::Error;
use crate::request::Request;

/// Where [`Scheduler::fill_masks`] writes. S = samples of the batch, W = words of 32 bits per mask.
pub struct SampleMasks<'a> {
    /// `[S, W]` bit per token: whether it may come next. Of unconstrained samples left as it is.
    pub words: &'a mut [u32],
    /// W
    pub num_words: usize,
    /// `[S]` whether the mask counts.
    pub is_constrained: &'a mut [bool],
}

impl Scheduler {
    /// Writes the masks of the constrained samples of the oldest batch in flight. Where the text may end, the
    /// request's ending ids are allowed too.
    ///
    /// Returns (sample, message) for each sequence that cannot go on; its mask does not count, and the caller is
    /// to abort the request.
    ///
    /// # Errors
    /// `batch` is not the oldest in flight, or the lengths differ from its samples; nothing has changed then.
    pub fn fill_masks(
        &mut self,
        batch: &Batch,
        masks: &mut SampleMasks<'_>,
    ) -> Result<Vec<(u32, String)>, Error> {
        let record = self.in_flight.front().filter(|record| record.id == batch.id);
        let record = record.ok_or_else(|| Error::BatchOrder {
            verb: "masked",
            given: batch.id,
            expected: self.in_flight.front().map_or(0, |record| record.id),
        })?;
        let expected = record.samples.len();
        for (name, expected, actual) in [
            ("words", expected * masks.num_words, masks.words.len()),
            ("is_constrained", expected, masks.is_constrained.len()),
        ] {
            if actual != expected {
                return Err(Error::Shape { name, expected, actual });
            }
        }
        let mut failures = Vec::new();
        for (i, sample) in record.samples.iter().enumerate() {
            let request = self.requests[sample.slot as usize].as_mut();
            let mask = &mut masks.words[i * masks.num_words..(i + 1) * masks.num_words];
            let filled = request
                .filter(|request| request.rank.arrival == sample.arrival)
                .and_then(|request| fill_mask(request, sample.index as usize, mask));
            masks.is_constrained[i] = matches!(filled, Some(Ok(())));
            if let Some(Err(message)) = filled {
                failures.push((i as u32, message));
            }
        }
        Ok(failures)
    }

    /// How many samples of a batch are constrained.
    pub(super) fn num_constrained(&self, record: &InFlight) -> u32 {
        let is_constrained = |sample: &&super::Sample| {
            let sequence = &self.request(sample.slot).sequences[sample.index as usize];
            sequence.text.as_ref().is_some_and(|text| text.is_constrained())
        };
        record.samples.iter().filter(is_constrained).count() as u32
    }
}

/// None for a sequence that nothing constrains, or that has ended.
fn fill_mask(request: &mut Request, index: usize, mask: &mut [u32]) -> Option<Result<(), String>> {
    let sequence = &mut request.sequences[index];
    if !sequence.is_live() {
        return None;
    }
    let text = sequence.text.as_mut().filter(|text| text.is_constrained())?;
    let may_end = match text.fill_mask(mask) {
        Ok(may_end) => may_end,
        Err(message) => return Some(Err(message)),
    };
    if may_end {
        for id in request.stop.ending_ids() {
            if let Some(word) = mask.get_mut(id as usize / 32) {
                *word |= 1 << (id % 32);
            }
        }
    }
    Some(Ok(()))
}
