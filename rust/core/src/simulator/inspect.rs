//! What can be said about a batch the moment it is planned.

use crate::batch::{Batch, StepArrays};
use crate::ids::{BlockId, RowId};
use crate::scheduler::Scheduler;

/// Checks a batch that `scheduler` has just planned: budgets, shapes, distinct rows and slots, and
/// that every slot is written in a block that no one else can see.
///
/// # Errors
/// The first statement found to be false.
pub fn inspect_batch(
    batch: &Batch,
    arrays: &StepArrays<'_>,
    scheduler: &Scheduler,
) -> Result<(), String> {
    let config = scheduler.config();
    let (rows, tokens) = (batch.num_rows as usize, batch.num_tokens as usize);
    if batch.num_rows > config.max_num_seqs() || batch.num_tokens > config.max_num_batched_tokens {
        return Err(format!("batch {batch:?} is over budget"));
    }
    if rows == 0
        || arrays.query_start_loc[0] != 0
        || arrays.query_start_loc[rows] as usize != tokens
    {
        return Err("query_start_loc does not cover the batch".to_owned());
    }
    for r in 0..rows {
        let [start, end] = [r, r + 1].map(|i| arrays.query_start_loc[i]);
        if start >= end || arrays.seq_lens[r] < end - start {
            return Err(format!("scheduled row {r} runs {start}..{end} of {}", arrays.seq_lens[r]));
        }
    }
    if !all_distinct(arrays.row_ids[..rows].iter().map(|row| i64::from(*row))) {
        return Err("a row is scheduled twice".to_owned());
    }
    let samples = &arrays.sample_rows[..batch.num_samples as usize];
    if !all_distinct(samples.iter().map(|row| i64::from(*row))) {
        return Err("a row is sampled twice".to_owned());
    }
    inspect_slots(batch, arrays, scheduler)?;
    inspect_tables(batch, arrays, scheduler)?;
    inspect_copies(batch, arrays, scheduler)
}

/// A written block belongs to the row that writes it, and to the rows that this batch forks from it
/// once it is written.
fn inspect_slots(
    batch: &Batch,
    arrays: &StepArrays<'_>,
    scheduler: &Scheduler,
) -> Result<(), String> {
    let kv = scheduler.kv_cache();
    let size = i64::from(kv.config().block_size);
    let forks = &arrays.row_forks[..2 * batch.num_row_forks as usize];
    let rows = &arrays.row_ids[..batch.num_rows as usize];
    let mut slots = Vec::new();
    for r in 0..batch.num_rows as usize {
        // A row that was forked before the batch and runs in it has its own copy by now.
        let is_owner = |fork: &&[i32]| fork[0] == rows[r] && !rows.contains(&fork[1]);
        let num_owners = 1 + forks.chunks(2).filter(is_owner).count();
        let [start, end] = [r, r + 1].map(|i| arrays.query_start_loc[i] as usize);
        for group in 0..kv.config().groups.len() {
            for slot in &arrays.slot_mapping[group * arrays.slot_stride..][start..end] {
                let block = BlockId::new((slot / size) as u32);
                let (ref_count, entry) = (kv.pool().ref_count(block), kv.pool().entry(block));
                if block.is_null() || ref_count as usize != num_owners || entry.is_some() {
                    return Err(format!(
                        "slot {slot} is written, but {ref_count} rows see its block, which holds \
                         {entry:?}"
                    ));
                }
                slots.push(*slot);
            }
        }
    }
    if !all_distinct(slots.into_iter()) {
        return Err("two tokens are written to one slot".to_owned());
    }
    Ok(())
}

/// The host's tables are those of the cache, as far as the batch can see.
fn inspect_tables(
    batch: &Batch,
    arrays: &StepArrays<'_>,
    scheduler: &Scheduler,
) -> Result<(), String> {
    let config = scheduler.kv_cache().config();
    let width = config.blocks_per_row() as usize;
    for r in 0..batch.num_rows as usize {
        let row = arrays.row_ids[r];
        let num_columns = arrays.seq_lens[r].unsigned_abs().div_ceil(config.block_size) as usize;
        for group in 0..config.groups.len() {
            let start = (group * config.num_rows as usize + row as usize) * width;
            let host = arrays.block_tables[start..start + num_columns].iter();
            let line = scheduler.kv_cache().tables().line(group, RowId::new(row as u32));
            if !host.zip(&line[..num_columns]).all(|(host, own)| *host == *own as i32) {
                return Err(format!("the host's table of row {row} is another than the cache's"));
            }
        }
    }
    Ok(())
}

fn inspect_copies(
    batch: &Batch,
    arrays: &StepArrays<'_>,
    scheduler: &Scheduler,
) -> Result<(), String> {
    let pool = scheduler.kv_cache().pool();
    for copy in arrays.block_copies.chunks(3).take(batch.num_block_copies as usize) {
        let [from, to] = [1, 2].map(|i| BlockId::new(copy[i] as u32));
        if pool.is_free(from) || pool.is_free(to) {
            return Err(format!("copy {copy:?} touches a free block"));
        }
    }
    Ok(())
}

/// The blocks that a batch just planned reads, writes or copies: none of them may become free before
/// its update.
pub fn touched_blocks(
    batch: &Batch,
    arrays: &StepArrays<'_>,
    scheduler: &Scheduler,
) -> Vec<BlockId> {
    let kv = scheduler.kv_cache();
    let size = kv.config().block_size;
    let copies = arrays.block_copies.chunks(3).take(batch.num_block_copies as usize);
    let mut touched: Vec<_> =
        copies.flat_map(|copy| [1, 2].map(|i| BlockId::new(copy[i] as u32))).collect();
    for r in 0..batch.num_rows as usize {
        let num_tokens = arrays.query_start_loc[r + 1] - arrays.query_start_loc[r];
        let end = arrays.seq_lens[r] as u32;
        let row = RowId::new(arrays.row_ids[r] as u32);
        for (group, kind) in kv.config().groups.iter().enumerate() {
            let first = kind.first_visible(end - num_tokens as u32) / size;
            let line = &kv.tables().line(group, row)[..end.div_ceil(size) as usize];
            touched.extend(line[first as usize..].iter().map(|block| BlockId::new(*block)));
        }
    }
    touched.sort_unstable();
    touched.dedup();
    touched
}

fn all_distinct(values: impl Iterator<Item = i64>) -> bool {
    let mut values: Vec<_> = values.collect();
    let count = values.len();
    values.sort_unstable();
    values.dedup();
    values.len() == count
}
