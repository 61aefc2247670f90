//! The rows of a step: sequences with queries, their numbers checked.

use crate::attention::StepRows;
use crate::error::Error;
use crate::view::View;

/// One row with queries and keys, its numbers checked.
pub(crate) struct RowSpan {
    pub(crate) first_token: usize,
    pub(crate) first_position: usize,
    pub(crate) seq_len: usize,
    pub(crate) table_row: usize,
}

impl RowSpan {
    /// None if there is nothing to attend.
    pub(crate) fn new(
        rows: StepRows<'_>,
        index: usize,
        block_size: usize,
    ) -> Result<Option<Self>, Error> {
        let [num_rows, num_columns] = rows.block_tables.shape();
        let row = rows.row_ids.run([index])[0];
        let seq_len = rows.seq_lens.run([index])[0];
        let &[start, stop, ..] = rows.query_start_loc.run([index]) else {
            unreachable!("query_start_loc is one longer than row_ids")
        };
        let query_len = (stop - start) as usize;
        let capacity = num_columns * block_size;
        if !(0..num_rows as i64).contains(&i64::from(row)) {
            return Err(Error::Row { index, row, num_rows });
        }
        let is_possible = |tokens| (query_len..=capacity).contains(&tokens);
        if seq_len != 0 && !usize::try_from(seq_len).is_ok_and(is_possible) {
            return Err(Error::SeqLen { index, seq_len, query_len, capacity });
        }
        let seq_len = seq_len as usize;
        Ok((seq_len > 0 && query_len > 0).then_some(Self {
            first_token: start as usize,
            first_position: seq_len.saturating_sub(query_len),
            seq_len,
            table_row: row as usize,
        }))
    }

    pub(crate) fn query_len(&self) -> usize {
        self.seq_len - self.first_position
    }

    /// Every block that holds a key from `first_key` on must be one.
    pub(crate) fn check_table(
        &self,
        block_tables: View<'_, i32, 2>,
        first_key: usize,
        [num_blocks, _, block_size, _]: [usize; 4],
    ) -> Result<(), Error> {
        let row = self.table_row;
        let columns = first_key / block_size..self.seq_len.div_ceil(block_size);
        for (column, &block) in (columns.start..).zip(&block_tables.run([row, 0])[columns]) {
            if !(1..num_blocks as i64).contains(&i64::from(block)) {
                return Err(Error::TableEntry { row, column, block, num_blocks });
            }
        }
        Ok(())
    }
}

/// Lengths of the row arrays, and prefix sums that are some.
pub(crate) fn check_rows(rows: StepRows<'_>, num_tokens: usize) -> Result<(), Error> {
    let [num_rows] = rows.row_ids.shape();
    for (argument, got, expected) in [
        ("query_start_loc", rows.query_start_loc.shape()[0], num_rows + 1),
        ("seq_lens", rows.seq_lens.shape()[0], num_rows),
    ] {
        if got != expected {
            return Err(Error::Size { argument, dimension: 0, got, expected });
        }
    }
    let mut previous = 0;
    for (index, &got) in rows.query_start_loc.run([0]).iter().enumerate() {
        let is_first = index == 0;
        if got < previous || (is_first && got != 0) || got as usize > num_tokens {
            return Err(Error::QueryStart { index, got, num_tokens });
        }
        previous = got;
    }
    Ok(())
}
