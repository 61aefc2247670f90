//! Writing to blocks: new keys and values by slot, and whole blocks by copy.

use crate::error::Error;
use crate::view::{View, ViewMut};

/// Slot of a token that is not stored.
const SKIP: i64 = -1;

/// Stores `tokens` `[T, heads, dim]` in `storage` `[num_blocks, heads, block_size, dim]`: token t
/// at slot `slot_mapping[t] = block * block_size + offset`, or nowhere if that is -1. Tokens beyond
/// `slot_mapping` are padding.
///
/// # Errors
/// [`Error::Size`], [`Error::TooSmall`] or [`Error::Slot`], before anything is written.
pub fn kv_write<E: Copy>(
    tokens: View<'_, E, 3>,
    slot_mapping: View<'_, i64, 1>,
    storage: &mut ViewMut<'_, E, 4>,
) -> Result<(), Error> {
    let [num_blocks, num_heads, block_size, dim] = storage.shape();
    let slots = checked_slots(tokens, slot_mapping, [num_blocks, num_heads, block_size, dim])?;
    for (token, block, offset) in slots {
        for head in 0..num_heads {
            storage.run_mut([block, head, offset, 0]).copy_from_slice(tokens.run([token, head, 0]));
        }
    }
    Ok(())
}

/// As [`kv_write`], to `storage` `[num_blocks, heads, dim, block_size]`.
///
/// # Errors
/// As there.
pub fn kv_write_columns<E: Copy>(
    tokens: View<'_, E, 3>,
    slot_mapping: View<'_, i64, 1>,
    storage: &mut ViewMut<'_, E, 4>,
) -> Result<(), Error> {
    let [num_blocks, num_heads, dim, block_size] = storage.shape();
    let slots = checked_slots(tokens, slot_mapping, [num_blocks, num_heads, block_size, dim])?;
    for (token, block, offset) in slots {
        for head in 0..num_heads {
            storage.write_column([block, head], offset, tokens.run([token, head, 0]));
        }
    }
    Ok(())
}

/// The tokens that are stored, and the block and offset of each.
fn checked_slots<'a, E: Copy>(
    tokens: View<'_, E, 3>,
    slot_mapping: View<'a, i64, 1>,
    [num_blocks, storage_heads, block_size, storage_dim]: [usize; 4],
) -> Result<impl Iterator<Item = (usize, usize, usize)> + use<'a, E>, Error> {
    let [num_tokens, num_heads, dim] = tokens.shape();
    let [num_slots] = slot_mapping.shape();
    if num_tokens < num_slots {
        let (argument, minimum) = ("tokens", num_slots);
        return Err(Error::TooSmall { argument, dimension: 0, got: num_tokens, minimum });
    }
    for (dimension, got, expected) in [(1, num_heads, storage_heads), (2, dim, storage_dim)] {
        if got != expected {
            return Err(Error::Size { argument: "tokens", dimension, got, expected });
        }
    }
    let slots = if num_heads * dim == 0 { &[] } else { slot_mapping.as_slice() };
    check_slots(slots, num_blocks * block_size)?;
    let kept = slots.iter().enumerate().filter(|&(_, &slot)| slot != SKIP);
    Ok(kept
        .map(move |(token, &slot)| (token, slot as usize / block_size, slot as usize % block_size)))
}

/// Copies whole blocks of `storage` `[num_blocks, heads, block_size, dim]`, or of one with the last two
/// dimensions exchanged: for each pair `[C, 2]` the first block over the second, in order.
///
/// # Errors
/// [`Error::Size`] or [`Error::Block`], before anything is written. The null block is never copied
/// or written.
pub fn copy_blocks<E: Copy>(
    storage: &mut ViewMut<'_, E, 4>,
    pairs: View<'_, i32, 2>,
) -> Result<(), Error> {
    let [num_blocks, num_heads, block_size, dim] = storage.shape();
    let [num_pairs, width] = pairs.shape();
    if width != 2 {
        return Err(Error::Size { argument: "pairs", dimension: 1, got: width, expected: 2 });
    }
    for index in 0..num_pairs {
        for &block in pairs.run([index, 0]) {
            if !(1..num_blocks as i64).contains(&i64::from(block)) {
                let (argument, first) = ("pairs", 1);
                return Err(Error::Block { argument, index, block, first, num_blocks });
            }
        }
    }
    if num_heads * block_size * dim == 0 {
        return Ok(());
    }
    let mut storage = storage.merged();
    let [_, num_heads, block_size, dim] = storage.shape();
    let mut row = Vec::with_capacity(dim);
    for index in 0..num_pairs {
        let &[from, to] = pairs.run([index, 0]) else { unreachable!("pairs have width 2") };
        for head in 0..num_heads {
            for offset in 0..block_size {
                row.clear();
                row.extend_from_slice(storage.run_mut([from as usize, head, offset, 0]));
                storage.run_mut([to as usize, head, offset, 0]).copy_from_slice(&row);
            }
        }
    }
    Ok(())
}

fn check_slots(slots: &[i64], num_slots: usize) -> Result<(), Error> {
    let bad = |&slot: &i64| slot != SKIP && !(0..num_slots as i64).contains(&slot);
    match slots.iter().position(bad) {
        Some(index) => Err(Error::Slot { index, slot: slots[index], num_slots }),
        None => Ok(()),
    }
}
