//! Rows of attention over a paged pool, and the same in plain f64 without pages.

use std::collections::HashMap;

use pagedkv_cpu::{
    AttentionParams, Element, Keys, Mask, PagedKv, StepRows, View, ViewMut, bf16, f16, kv_write,
    kv_write_columns, paged_attention, row_major,
};

/// Relative error of a rounding in f32.
const UNIT: f64 = 0.5 * f32::EPSILON as f64;

/// Roundings of a weight besides its score's: the exponential, its argument and its share of a merge.
const ROUNDINGS_PER_WEIGHT: f64 = 8.0;

/// An output by the formula, and how far rounding may take an output from it.
pub(crate) struct Expected {
    pub(crate) output: f64,
    pub(crate) error: f64,
}

/// A number format under test.
pub(crate) trait Stored: Element + std::fmt::Debug {
    /// Fills what must not be read.
    const NAN: Self;
    /// Relative error of rounding to this format.
    const UNIT: f64;
    /// Error of rounding to this format near zero: half of its smallest number.
    const NEAR_ZERO: f64;
    fn from_f32(number: f32) -> Self;
    fn to_f64(self) -> f64;
    fn bits(self) -> u32;
}

impl Stored for f32 {
    const NAN: Self = Self::NAN;
    const UNIT: f64 = UNIT;
    const NEAR_ZERO: f64 = 0.0;
    fn from_f32(number: f32) -> Self {
        number
    }
    fn to_f64(self) -> f64 {
        f64::from(self)
    }
    fn bits(self) -> u32 {
        self.to_bits()
    }
}

impl Stored for bf16 {
    const NAN: Self = Self::NAN;
    const UNIT: f64 = 1.0 / 256.0;
    const NEAR_ZERO: f64 = 0.0;
    fn from_f32(number: f32) -> Self {
        Self::from_f32(number)
    }
    fn to_f64(self) -> f64 {
        Self::to_f64(self)
    }
    fn bits(self) -> u32 {
        u32::from(self.to_bits())
    }
}

impl Stored for f16 {
    const NAN: Self = Self::NAN;
    const UNIT: f64 = 1.0 / 2048.0;
    const NEAR_ZERO: f64 = 1.0 / 33_554_432.0;
    fn from_f32(number: f32) -> Self {
        Self::from_f32(number)
    }
    fn to_f64(self) -> f64 {
        Self::to_f64(self)
    }
    fn bits(self) -> u32 {
        u32::from(self.to_bits())
    }
}

/// A layer.
#[derive(Debug, Clone)]
pub(crate) struct Layer {
    pub(crate) num_kv_heads: usize,
    pub(crate) group: usize,
    pub(crate) k_dim: usize,
    pub(crate) v_dim: usize,
    pub(crate) mask: Mask,
    pub(crate) softcap: Option<f32>,
    pub(crate) sinks: Option<Vec<f32>>,
    pub(crate) alibi_slopes: Option<Vec<f32>>,
}

/// One row: its identity (which decides all numbers, and rows with the same have their first blocks in
/// common), its context, and how many tokens at the end are queries.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Row {
    pub(crate) identity: usize,
    pub(crate) seq_len: usize,
    pub(crate) query_len: usize,
}

pub(crate) const SCALE: f32 = 0.37;
/// Rows of the same identity share the blocks that start before this position.
const SHARED: usize = 700;
const QUERY: usize = 0;
const KEY: usize = 1;
const VALUE: usize = 2;

/// A number in -1 .. 1 that depends on its coordinates only.
fn number<E: Stored>(coordinates: [usize; 5]) -> E {
    let mut hash = 0x9e37_79b9_u32;
    for part in coordinates {
        hash = (hash ^ part as u32).wrapping_mul(0x85eb_ca6b);
        hash ^= hash >> 15;
    }
    E::from_f32((hash >> 8) as f32 / 8_388_608.0 - 1.0)
}

impl Layer {
    pub(crate) fn num_heads(&self) -> usize {
        self.num_kv_heads * self.group
    }

    pub(crate) fn params(&self) -> AttentionParams<'_> {
        AttentionParams {
            scale: SCALE,
            mask: self.mask,
            softcap: self.softcap,
            sinks: self.sinks.as_deref(),
            alibi_slopes: self.alibi_slopes.as_deref(),
        }
    }

    /// Outputs `[query_len, heads, v_dim]` of each row, all rows in one batch, over a pool full of
    /// NaN in which only the keys that some query attends are stored, in shuffled blocks; blocks
    /// without such a key are given back. Where keys may be stored in columns, the outputs over such
    /// must have the same bits.
    pub(crate) fn attend<E: Stored>(&self, rows: &[Row], block_size: usize) -> Vec<Vec<E>> {
        let columns = rows.iter().map(|row| row.seq_len.div_ceil(block_size)).max().unwrap_or(0);
        let num_blocks = 1 + rows.len() * columns;
        let mut keys = self.pool::<E>(num_blocks, block_size, self.k_dim);
        let mut in_columns = block_size
            .is_multiple_of(16)
            .then(|| self.pool::<E>(num_blocks, self.k_dim, block_size));
        let mut values = self.pool::<E>(num_blocks, block_size, self.v_dim);
        let mut tables = vec![0_i32; rows.len() * columns];
        // A step that has no common factor with the number of blocks visits each once.
        let step = [7, 11, 13, 17, 19, 23].into_iter().find(|&step| gcd(step, num_blocks) == 1);
        let step = step.unwrap_or(1);
        let mut last = 0;
        let mut shared = HashMap::new();
        for (index, row) in rows.iter().enumerate() {
            let first_key = self.mask.first_key(row.seq_len - row.query_len);
            for column in first_key / block_size..row.seq_len.div_ceil(block_size) {
                let mut another = || {
                    last = (last + step) % num_blocks;
                    if last == 0 {
                        last = (last + step) % num_blocks;
                    }
                    last as i32
                };
                tables[index * columns + column] = match column * block_size {
                    ..SHARED => *shared.entry((row.identity, column)).or_insert_with(another),
                    _ => another(),
                };
            }
            let table = &tables[index * columns..(index + 1) * columns];
            let slots: Vec<i64> = (0..row.seq_len)
                .map(|position| match position {
                    _ if position < first_key => -1,
                    _ => {
                        i64::from(table[position / block_size]) * block_size as i64
                            + (position % block_size) as i64
                    }
                })
                .collect();
            keys.write(KEY, *row, &slots);
            values.write(VALUE, *row, &slots);
            if let Some(in_columns) = &mut in_columns {
                in_columns.write_columns(KEY, *row, &slots);
            }
        }
        let outputs = self.run(rows, Keys::Rows(keys.view()), &values, &tables, columns);
        if let Some(in_columns) = in_columns {
            let keys = Keys::Columns(in_columns.view());
            let again = self.run(rows, keys, &values, &tables, columns);
            for (outputs, again) in outputs.iter().flatten().zip(again.iter().flatten()) {
                assert_eq!(outputs.bits(), again.bits(), "keys in rows and in columns");
            }
        }
        outputs
    }

    fn pool<E: Stored>(&self, num_blocks: usize, rows: usize, columns: usize) -> Pool<E> {
        let shape = [num_blocks, self.num_kv_heads, rows, columns];
        let mut strides = row_major(shape);
        strides[0] += 5;
        Pool { elements: vec![E::NAN; num_blocks * strides[0]], shape, strides }
    }

    fn run<E: Stored>(
        &self,
        rows: &[Row],
        keys: Keys<'_, E>,
        values: &Pool<E>,
        tables: &[i32],
        columns: usize,
    ) -> Vec<Vec<E>> {
        let mut starts = vec![0_i32];
        let mut query = Vec::new();
        for row in rows {
            starts.push(starts[starts.len() - 1] + row.query_len as i32);
            for position in row.seq_len - row.query_len..row.seq_len {
                query.extend(row_numbers::<E>(
                    QUERY,
                    row.identity,
                    position,
                    self.num_heads(),
                    self.k_dim,
                ));
            }
        }
        let num_tokens = starts[rows.len()] as usize;
        let shape = [num_tokens, self.num_heads(), self.v_dim];
        let mut output = vec![E::NAN; shape.iter().product()];
        let row_ids: Vec<i32> = (0..rows.len() as i32).collect();
        let seq_lens: Vec<i32> = rows.iter().map(|row| row.seq_len as i32).collect();
        let kv = PagedKv { keys, values: values.view() };
        let step = StepRows {
            row_ids: vector(&row_ids),
            query_start_loc: vector(&starts),
            seq_lens: vector(&seq_lens),
            block_tables: View::contiguous("block_tables", tables, [rows.len(), columns]).unwrap(),
        };
        let query_shape = [num_tokens, self.num_heads(), self.k_dim];
        let query = View::contiguous("query", &query, query_shape).unwrap();
        let mut view = ViewMut::contiguous("output", &mut output, shape).unwrap();
        paged_attention(query, kv, step, self.params(), &mut view).unwrap();
        let per_token = shape[1] * shape[2];
        starts
            .windows(2)
            .map(|span| output[span[0] as usize * per_token..span[1] as usize * per_token].to_vec())
            .collect()
    }

    /// The same for one row by the formula, in f64.
    pub(crate) fn expected<E: Stored>(&self, row: Row) -> Vec<Expected> {
        let mut outputs = Vec::new();
        for position in row.seq_len - row.query_len..row.seq_len {
            for head in 0..self.num_heads() {
                outputs.extend(self.expected_one::<E>(row.identity, position, head));
            }
        }
        outputs
    }

    fn expected_one<E: Stored>(
        &self,
        identity: usize,
        position: usize,
        head: usize,
    ) -> Vec<Expected> {
        let get = |kind, position, head, column| {
            number::<E>([kind, identity, position, head, column]).to_f64()
        };
        let attended: Vec<usize> = (0..=position)
            .filter(|&key| match self.mask {
                Mask::Full => true,
                Mask::Sliding { window } => position - key < window,
                Mask::Chunked { window } => position / window == key / window,
            })
            .collect();
        let query: Vec<f64> =
            (0..self.k_dim).map(|column| get(QUERY, position, head, column)).collect();
        let scored: Vec<(f64, f64)> = attended
            .iter()
            .map(|&key| {
                let number = |column| get(KEY, key, head / self.group, column);
                let key_numbers: Vec<f64> = (0..self.k_dim).map(number).collect();
                self.score(&query, &key_numbers, head, key as f64 - position as f64)
            })
            .collect();
        let sink = self.sinks.as_ref().map_or(0.0, |sinks| f64::from(sinks[head]).exp());
        let total = scored.iter().map(|(score, _)| score.exp()).sum::<f64>() + sink;
        (0..self.v_dim)
            .map(|column| {
                let weighted: Vec<(f64, f64, f64)> = scored
                    .iter()
                    .zip(&attended)
                    .map(|(&(score, error), &key)| {
                        (score.exp() / total, error, get(VALUE, key, head / self.group, column))
                    })
                    .collect();
                output_of::<E>(&weighted)
            })
            .collect()
    }

    /// The score of a key, and how far rounding may take a score from it: each step of the sum over
    /// `k_dim` is rounded, then what the scale, the cap and the bias do.
    fn score(&self, query: &[f64], key: &[f64], head: usize, distance: f64) -> (f64, f64) {
        let (mut score, mut error) = (0.0_f64, 0.0);
        for (query, key) in query.iter().zip(key) {
            let product = query * f64::from(SCALE) * key;
            score += product;
            error += UNIT * (score.abs() + product.abs());
        }
        if let Some(cap) = self.softcap.map(f64::from) {
            score = cap * (score / cap).tanh();
            error += 4.0 * UNIT * score.abs();
        }
        if let Some(slopes) = &self.alibi_slopes {
            score += f64::from(slopes[head]) * distance;
            error += UNIT * score.abs();
        }
        (score, error)
    }
}

/// The sum of (weight, error of its score, value), and how far rounding may take it: a weight is off by
/// its score's error and a few roundings, which counts as far as its value differs from the output;
/// each step of the sum is rounded, and the result.
fn output_of<E: Stored>(weighted: &[(f64, f64, f64)]) -> Expected {
    let output: f64 = weighted.iter().map(|(weight, _, value)| weight * value).sum();
    let (mut sum, mut error) = (0.0_f64, 0.0);
    for (weight, score_error, value) in weighted {
        sum += weight * value;
        error += weight * (score_error + ROUNDINGS_PER_WEIGHT * UNIT) * (value - output).abs();
        error += UNIT * (sum.abs() + weight * value.abs());
    }
    error += ROUNDINGS_PER_WEIGHT * UNIT * output.abs();
    Expected { output, error: error + (E::UNIT * (output.abs() + error)).max(E::NEAR_ZERO) }
}

/// Block storage with a few elements of nobody between blocks.
struct Pool<E> {
    elements: Vec<E>,
    shape: [usize; 4],
    strides: [usize; 4],
}

impl<E: Stored> Pool<E> {
    fn view(&self) -> View<'_, E, 4> {
        View::new("pool", &self.elements, self.shape, self.strides).unwrap()
    }

    fn view_mut(&mut self) -> ViewMut<'_, E, 4> {
        ViewMut::new("pool", &mut self.elements, self.shape, self.strides).unwrap()
    }

    fn write(&mut self, kind: usize, row: Row, slots: &[i64]) {
        let [_, heads, _, dim] = self.shape;
        let tokens = tokens(kind, row, heads, dim);
        let tokens = View::contiguous("tokens", &tokens, [row.seq_len, heads, dim]).unwrap();
        kv_write(tokens, vector(slots), &mut self.view_mut()).unwrap();
    }

    fn write_columns(&mut self, kind: usize, row: Row, slots: &[i64]) {
        let [_, heads, dim, _] = self.shape;
        let tokens = tokens(kind, row, heads, dim);
        let tokens = View::contiguous("tokens", &tokens, [row.seq_len, heads, dim]).unwrap();
        kv_write_columns(tokens, vector(slots), &mut self.view_mut()).unwrap();
    }
}

pub(crate) fn vector<E>(elements: &[E]) -> View<'_, E, 1> {
    View::contiguous("vector", elements, [elements.len()]).unwrap()
}

fn tokens<E: Stored>(kind: usize, row: Row, heads: usize, dim: usize) -> Vec<E> {
    (0..row.seq_len)
        .flat_map(|position| row_numbers(kind, row.identity, position, heads, dim))
        .collect()
}

fn row_numbers<E: Stored>(
    kind: usize,
    identity: usize,
    position: usize,
    heads: usize,
    dim: usize,
) -> Vec<E> {
    (0..heads * dim)
        .map(|index| number([kind, identity, position, index / dim, index % dim]))
        .collect()
}

fn gcd(a: usize, b: usize) -> usize {
    if b == 0 { a } else { gcd(b, a % b) }
}
