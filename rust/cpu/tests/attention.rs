//! Attention against a naive oracle in f64, and the promise that a result depends on nothing but
//! its own inputs.

mod support;

use std::fmt::Write;

use pagedkv_cpu::{
    AttentionParams, Error, Keys, Mask, PagedKv, StepRows, View, ViewMut, bf16, f16,
    paged_attention, set_num_threads,
};
use proptest::prelude::*;
use support::{Expected, Layer, Row, Stored, vector};

fn masks(max_window: usize) -> impl Strategy<Value = Mask> {
    prop_oneof![
        Just(Mask::Full),
        (1..max_window).prop_map(|window| Mask::Sliding { window }),
        (1..max_window).prop_map(|window| Mask::Chunked { window }),
    ]
}

/// Sizes of heads: any, and those of whole vectors.
fn dims(max_dim: usize) -> impl Strategy<Value = usize> {
    prop_oneof![1..max_dim, (1..=max_dim / 16).prop_map(|vectors| vectors * 16)]
}

prop_compose! {
    fn layers(max_dim: usize, max_window: usize)(
        num_kv_heads in 1_usize..4,
        group in 1_usize..5,
        k_dim in dims(max_dim),
        v_dim in dims(max_dim),
        mask in masks(max_window),
        softcap in proptest::option::of(0.5_f32..5.0),
        has_sinks: bool,
        has_alibi: bool,
    ) -> Layer {
        let sink = |head| head as f32 * 0.3 - 0.5;
        let sinks = has_sinks.then(|| (0..num_kv_heads * group).map(sink).collect());
        let slope = |head| 0.5_f32.powi(head as i32 + 2);
        let alibi_slopes = has_alibi.then(|| (0..num_kv_heads * group).map(slope).collect());
        Layer { num_kv_heads, group, k_dim, v_dim, mask, softcap, sinks, alibi_slopes }
    }
}

/// Up to four rows. Those of one identity have their first blocks in common.
fn rows(
    identities: usize,
    max_seq_len: usize,
    max_query_len: usize,
) -> impl Strategy<Value = Vec<Row>> {
    let row = (0..identities, 1..max_seq_len, 1..max_query_len).prop_map(
        |(identity, seq_len, query_len)| Row {
            identity,
            seq_len,
            query_len: query_len.min(seq_len),
        },
    );
    proptest::collection::vec(row, 1..5)
}

fn block_sizes() -> impl Strategy<Value = usize> {
    prop_oneof![Just(8), Just(16), Just(32), Just(64), Just(7)]
}

fn bits<E: Stored>(outputs: &[E]) -> Vec<u32> {
    outputs.iter().map(|output| output.bits()).collect()
}

fn assert_close<E: Stored>(layer: &Layer, rows: &[Row], block_size: usize) {
    for (outputs, row) in layer.attend::<E>(rows, block_size).iter().zip(rows) {
        for (output, expected) in outputs.iter().zip(layer.expected::<E>(*row)) {
            let Expected { output: expected, error } = expected;
            let is_close = (output.to_f64() - expected).abs() <= error;
            assert!(is_close, "{output:?} is not {expected} +- {error}: {row:?} of {layer:?}");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    #[test]
    fn attention_over_pages_equals_the_formula_and_reads_no_slot_outside_the_mask(
        layer in layers(90, 90), rows in rows(1000, 150, 40), block_size in block_sizes(),
    ) {
        assert_close::<f32>(&layer, &rows, block_size);
    }

    #[test]
    fn narrow_formats_lose_only_their_own_rounding(
        layer in layers(90, 90), rows in rows(1000, 150, 40), block_size in block_sizes(),
    ) {
        assert_close::<bf16>(&layer, &rows, block_size);
        assert_close::<f16>(&layer, &rows, block_size);
    }

    #[test]
    fn a_row_has_the_same_bits_alone_and_in_a_batch_and_for_any_block_size(
        layer in layers(90, 90), rows in rows(1000, 150, 40), block_size in block_sizes(),
    ) {
        let together = layer.attend::<f32>(&rows, block_size);
        for (row, outputs) in rows.iter().zip(&together) {
            let alone = layer.attend::<f32>(&[*row], 16);
            prop_assert_eq!(bits(&alone[0]), bits(outputs));
        }
    }

    #[test]
    fn long_rows_have_the_same_bits_alone_on_one_thread_and_sharing_blocks_on_several(
        layer in layers(24, 900), rows in rows(2, 1700, 20), block_size in block_sizes(), num_threads in 1_usize..6,
    ) {
        set_num_threads(num_threads).unwrap();
        let together = layer.attend::<f32>(&rows, block_size);
        set_num_threads(1).unwrap();
        for (row, outputs) in rows.iter().zip(&together) {
            let alone = layer.attend::<f32>(&[*row], 16);
            prop_assert_eq!(bits(&alone[0]), bits(outputs));
        }
        assert_close::<f32>(&layer, &rows[..1], block_size);
    }

    #[test]
    fn a_prompt_has_the_same_bits_in_one_chunk_and_token_by_token(
        layer in layers(90, 90), seq_len in 1_usize..150, block_size in block_sizes(),
    ) {
        let row = Row { identity: 7, seq_len, query_len: seq_len };
        let whole = &layer.attend::<bf16>(&[row], block_size)[0];
        let by_token: Vec<bf16> = (1..=seq_len)
            .map(|seq_len| Row { seq_len, query_len: 1, ..row })
            .flat_map(|row| layer.attend(&[row], block_size).remove(0))
            .collect();
        prop_assert_eq!(bits(whole), bits(&by_token));
    }
}

#[test]
fn results_have_the_same_bits_on_any_number_of_threads() {
    let layer = Layer {
        num_kv_heads: 3,
        group: 2,
        k_dim: 64,
        v_dim: 40,
        mask: Mask::Full,
        softcap: None,
        sinks: None,
        alibi_slopes: None,
    };
    // 4 rows x 300 queries: millions of multiply-adds, so that threads are used at all.
    let rows: Vec<Row> =
        (0..4).map(|identity| Row { identity, seq_len: 500, query_len: 300 }).collect();
    let mut seen = Vec::new();
    for num_threads in [1, 2, 5] {
        set_num_threads(num_threads).unwrap();
        assert_eq!(pagedkv_cpu::num_threads(), Ok(num_threads));
        seen.push(layer.attend::<f32>(&rows, 16).concat());
    }
    assert_eq!(bits(&seen[0]), bits(&seen[1]));
    assert_eq!(bits(&seen[0]), bits(&seen[2]));
    assert!(set_num_threads(0).is_err());
}

/// Arrays of one row of four tokens over two blocks of four slots, in which one thing at a time is
/// spoiled.
struct Call {
    row_ids: Vec<i32>,
    query_start_loc: Vec<i32>,
    seq_lens: Vec<i32>,
    block_tables: Vec<i32>,
    mask: Mask,
    num_heads: usize,
}

impl Default for Call {
    fn default() -> Self {
        Self {
            row_ids: vec![1],
            query_start_loc: vec![0, 4],
            seq_lens: vec![6],
            block_tables: vec![9, 9, 1, 2],
            mask: Mask::Full,
            num_heads: 2,
        }
    }
}

impl Call {
    fn output(&self) -> Result<Vec<f32>, Error> {
        let storage = vec![1.0_f32; 3 * 2 * 4 * 8];
        let query = vec![1.0_f32; 6 * self.num_heads * 8];
        let mut output = vec![f32::NAN; query.len()];
        let storage = View::contiguous("storage", &storage, [3, 2, 4, 8])?;
        let shape = [6, self.num_heads, 8];
        let rows = StepRows {
            row_ids: vector(&self.row_ids),
            query_start_loc: vector(&self.query_start_loc),
            seq_lens: vector(&self.seq_lens),
            block_tables: View::contiguous("block_tables", &self.block_tables, [2, 2])?,
        };
        let params = AttentionParams {
            scale: 1.0,
            mask: self.mask,
            softcap: None,
            sinks: None,
            alibi_slopes: None,
        };
        paged_attention(
            View::contiguous("query", &query, shape)?,
            PagedKv { keys: Keys::Rows(storage), values: storage },
            rows,
            params,
            &mut ViewMut::contiguous("output", &mut output, shape)?,
        )?;
        Ok(output)
    }
}

#[test]
fn padding_tokens_and_rows_without_context_give_zeros() {
    let output = Call::default().output().unwrap();
    assert!(output[..4 * 16].iter().all(|&number| (number - 1.0).abs() < 1e-6));
    assert!(output[4 * 16..].iter().all(|&number| number == 0.0));
    let empty = Call { seq_lens: vec![0], ..Call::default() }.output().unwrap();
    assert!(empty.iter().all(|&number| number == 0.0));
    let no_rows =
        Call { row_ids: vec![], query_start_loc: vec![0], seq_lens: vec![], ..Call::default() };
    assert!(no_rows.output().unwrap().iter().all(|&number| number == 0.0));
}

#[test]
fn a_wrong_argument_is_named_with_its_value_and_bound() {
    let spoiled = [
        Call { row_ids: vec![2], ..Call::default() },
        Call { row_ids: vec![-1], ..Call::default() },
        Call { query_start_loc: vec![0, 7], ..Call::default() },
        Call { query_start_loc: vec![1, 4], ..Call::default() },
        Call { query_start_loc: vec![0, -1], ..Call::default() },
        Call { query_start_loc: vec![0, 4, 5], ..Call::default() },
        Call { seq_lens: vec![3], ..Call::default() },
        Call { seq_lens: vec![9], ..Call::default() },
        Call { seq_lens: vec![-1], ..Call::default() },
        Call { block_tables: vec![0, 0, 1, 3], ..Call::default() },
        Call { block_tables: vec![0, 0, 0, 2], ..Call::default() },
        Call { mask: Mask::Sliding { window: 0 }, ..Call::default() },
        Call { num_heads: 3, ..Call::default() },
    ];
    let mut messages = String::new();
    for call in spoiled {
        writeln!(messages, "{}", call.output().unwrap_err()).unwrap();
    }
    assert_eq!(
        messages,
        "\
row_ids[0] is 2, expected 0 <= row < 2
row_ids[0] is -1, expected 0 <= row < 2
query_start_loc[1] is 7, expected prefix sums: 0 first, never falling, at most 6 tokens
query_start_loc[0] is 1, expected prefix sums: 0 first, never falling, at most 6 tokens
query_start_loc[1] is -1, expected prefix sums: 0 first, never falling, at most 6 tokens
query_start_loc has size 3 in dimension 0, expected 2
seq_lens[0] is 3, expected 0 or 4 (query length) <= seq_len <= 8 (columns of block_tables x block size)
seq_lens[0] is 9, expected 0 or 4 (query length) <= seq_len <= 8 (columns of block_tables x block size)
seq_lens[0] is -1, expected 0 or 4 (query length) <= seq_len <= 8 (columns of block_tables x block size)
block_tables[1, 1] is 3, but its keys are read: expected 1 <= block < 3 (block 0 is the null block)
block_tables[1, 0] is 0, but its keys are read: expected 1 <= block < 3 (block 0 is the null block)
window must be at least 1, got 0
query has size 3 in dimension 1, expected 4
"
    );
}
