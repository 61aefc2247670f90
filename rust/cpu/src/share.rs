//! Which rows have which chunks in common.

use std::ops::Range;

use crate::mask::Mask;
use crate::plan::PlannedRow;
use crate::product::CHUNK;
use crate::view::View;

/// Rows (indices into the planned ones, at least two) with the same blocks in some chunks.
pub(crate) struct Shared {
    pub(crate) rows: Vec<usize>,
    pub(crate) chunks: Range<usize>,
}

/// Groups of rows whose block tables start with the same blocks; their `parts_end` moves past the
/// chunks in common.
///
/// Rows take part if `may_share` says so, for as long as every query of theirs attends a chunk
/// whole. The cost is that of looking at the tables once, up to the first difference.
pub(crate) fn shared_chunks(
    planned: &mut [PlannedRow],
    block_tables: View<'_, i32, 2>,
    block_size: usize,
    mask: Mask,
    may_share: impl Fn(&PlannedRow) -> bool,
) -> Vec<Shared> {
    let candidates = (0..planned.len())
        .filter(|&row| planned[row].chunks.start == 0 && may_share(&planned[row]))
        .collect();
    let mut open = vec![Shared { rows: candidates, chunks: 0..0 }];
    let mut done = Vec::new();
    let mut chunk = 0;
    while !open.is_empty() {
        let columns = chunk * CHUNK / block_size..((chunk + 1) * CHUNK).div_ceil(block_size);
        let mut next = Vec::new();
        for mut group in open {
            let whole = |&row: &usize| attends_whole(&planned[row], chunk, mask);
            let mut rows: Vec<usize> = group.rows.iter().copied().filter(whole).collect();
            let blocks =
                |row: usize| &block_tables.run([planned[row].span.table_row, 0])[columns.clone()];
            let first = rows.first().map(|&row| blocks(row));
            if !rows.iter().all(|&row| Some(blocks(row)) == first) {
                rows.sort_by(|&a, &b| blocks(a).cmp(blocks(b)).then(a.cmp(&b)));
            }
            let mut alike =
                rows.chunk_by(|&a, &b| blocks(a) == blocks(b)).filter(|rows| rows.len() > 1);
            if rows.len() == group.rows.len()
                && alike.clone().any(|rows| rows.len() == group.rows.len())
            {
                group.chunks.end = chunk + 1;
                next.push(group);
                continue;
            }
            next.extend(
                alike.by_ref().map(|rows| Shared { rows: rows.to_vec(), chunks: chunk..chunk + 1 }),
            );
            if !group.chunks.is_empty() {
                done.push(group);
            }
        }
        open = next;
        chunk += 1;
    }
    for group in &done {
        for &row in &group.rows {
            planned[row].parts_end = planned[row].parts_end.max(group.chunks.end);
        }
    }
    done
}

/// Whether every query of the row attends every key of the chunk.
fn attends_whole(row: &PlannedRow, chunk: usize, mask: Mask) -> bool {
    let keys = chunk * CHUNK..(chunk + 1) * CHUNK;
    keys.end <= row.span.first_position + 1 && mask.first_key(row.span.seq_len - 1) <= keys.start
}
