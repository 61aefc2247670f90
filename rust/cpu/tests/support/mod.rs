//! Rows of attention over a paged pool, and the same in plain f64 without pages.

use pagedkv_cpu::{
    AttentionParams, Element, Mask, PagedKv, StepRows, View, ViewMut, bf16, f16, kv_write,
    paged_attention, row_major,
};

/// A number format under test.
pub(crate) trait Stored: Element + std::fmt::Debug {
    /// Fills what must not be read.
    const NAN: Self;
    /// Error of an output in -1 .. 1.
    const TOLERANCE: f64;
    fn from_f32(number: f32) -> Self;
    fn to_f64(self) -> f64;
    fn bits(self) -> u32;
}

impl Stored for f32 {
    const NAN: Self = Self::NAN;
    const TOLERANCE: f64 = 2e-6;
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
    const TOLERANCE: f64 = 4e-3;
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
    const TOLERANCE: f64 = 5e-4;
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

/// One row: its identity (which decides all numbers), its context, and how many tokens at the end
/// are queries.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Row {
    pub(crate) identity: usize,
    pub(crate) seq_len: usize,
    pub(crate) query_len: usize,
}

pub(crate) const SCALE: f32 = 0.37;
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
    /// without such a key are given back.
    pub(crate) fn attend<E: Stored>(&self, rows: &[Row], block_size: usize) -> Vec<Vec<E>> {
        let columns = rows.iter().map(|row| row.seq_len.div_ceil(block_size)).max().unwrap_or(0);
        let num_blocks = 1 + rows.len() * columns;
        let mut keys = self.pool::<E>(num_blocks, block_size, self.k_dim);
        let mut values = self.pool::<E>(num_blocks, block_size, self.v_dim);
        let mut tables = vec![0_i32; rows.len() * columns];
        // A step that has no common factor with the number of blocks visits each once.
        let step = [7, 11, 13, 17, 19, 23].into_iter().find(|&step| gcd(step, num_blocks) == 1);
        let step = step.unwrap_or(1);
        let mut block = 0;
        for (index, row) in rows.iter().enumerate() {
            let first_key = self.mask.first_key(row.seq_len - row.query_len);
            for column in first_key / block_size..row.seq_len.div_ceil(block_size) {
                block = (block + step) % num_blocks;
                if block == 0 {
                    block = (block + step) % num_blocks;
                }
                tables[index * columns + column] = block as i32;
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
        }
        self.run(rows, &keys, &values, &tables, columns)
    }

    fn pool<E: Stored>(&self, num_blocks: usize, block_size: usize, dim: usize) -> Pool<E> {
        let shape = [num_blocks, self.num_kv_heads, block_size, dim];
        let mut strides = row_major(shape);
        strides[0] += 5;
        Pool { elements: vec![E::NAN; num_blocks * strides[0]], shape, strides }
    }

    fn run<E: Stored>(
        &self,
        rows: &[Row],
        keys: &Pool<E>,
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
        let kv = PagedKv { keys: keys.view(), values: values.view() };
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
    pub(crate) fn expected<E: Stored>(&self, row: Row) -> Vec<f64> {
        let mut outputs = Vec::new();
        for position in row.seq_len - row.query_len..row.seq_len {
            for head in 0..self.num_heads() {
                outputs.extend(self.expected_one::<E>(row.identity, position, head));
            }
        }
        outputs
    }

    fn expected_one<E: Stored>(&self, identity: usize, position: usize, head: usize) -> Vec<f64> {
        let kv_head = head / self.group;
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
        let scores = attended.iter().map(|&key| {
            let dot: f64 = (0..self.k_dim)
                .map(|column| get(QUERY, position, head, column) * get(KEY, key, kv_head, column))
                .sum();
            let score = dot * f64::from(SCALE);
            let capped =
                self.softcap.map_or(score, |cap| f64::from(cap) * (score / f64::from(cap)).tanh());
            let slope = self.alibi_slopes.as_ref().map_or(0.0, |slopes| f64::from(slopes[head]));
            capped + slope * (key as f64 - position as f64)
        });
        let weights: Vec<f64> = scores.map(f64::exp).collect();
        let sink = self.sinks.as_ref().map_or(0.0, |sinks| f64::from(sinks[head]).exp());
        let total = weights.iter().sum::<f64>() + sink;
        (0..self.v_dim)
            .map(|column| {
                let weighted = weights.iter().zip(&attended);
                weighted
                    .map(|(weight, &key)| weight * get(VALUE, key, kv_head, column))
                    .sum::<f64>()
                    / total
            })
            .collect()
    }
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

    fn write(&mut self, kind: usize, row: Row, slots: &[i64]) {
        let [_, heads, _, dim] = self.shape;
        let tokens: Vec<E> = (0..row.seq_len)
            .flat_map(|position| row_numbers(kind, row.identity, position, heads, dim))
            .collect();
        let tokens = View::contiguous("tokens", &tokens, [row.seq_len, heads, dim]).unwrap();
        let mut pool = ViewMut::new("pool", &mut self.elements, self.shape, self.strides).unwrap();
        kv_write(tokens, vector(slots), &mut pool).unwrap();
    }
}

pub(crate) fn vector<E>(elements: &[E]) -> View<'_, E, 1> {
    View::contiguous("vector", elements, [elements.len()]).unwrap()
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
