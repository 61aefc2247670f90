//! Products and norms against their formula in f64; a row's bits do not depend on the other rows.

#[expect(dead_code, reason = "attention uses the rest")]
mod support;

use pagedkv_cpu::{
    Isa, RmsNorm, View, ViewMut, bf16, f16, linear, rms_norm, row_major, set_num_threads,
};
use proptest::prelude::*;
use support::Stored;

/// Numbers between -1 and 1 that repeat after a long while.
fn numbers<E: Stored>(count: usize, seed: usize) -> Vec<E> {
    let number = |index: usize| ((index + seed * 31) * 7919 % 4001) as f32 / 2000.0 - 1.0;
    (0..count).map(|index| E::from_f32(number(index))).collect()
}

/// A product whose rows are followed by elements that belong to nobody.
#[derive(Debug, Clone, Copy)]
struct Product {
    rows: usize,
    inputs: usize,
    columns: usize,
    gap: usize,
    has_bias: bool,
}

impl Product {
    fn strides(self, width: usize) -> [usize; 2] {
        [width + self.gap, 1]
    }

    fn input<E: Stored>(self) -> Vec<E> {
        numbers(self.rows * (self.inputs + self.gap), 1)
    }

    /// `[columns, inputs]`.
    fn weight<E: Stored>(self) -> Vec<E> {
        numbers(self.columns * self.inputs, 2)
    }

    /// Strips of sixteen columns, the numbers of one input beside each other. What no column owns is
    /// infinite: it would be seen in any sum.
    fn packed_weight<E: Stored>(self) -> Vec<E> {
        let weight = self.weight::<E>();
        let row = self.inputs * 16 + self.gap;
        let mut packed = vec![E::from_f32(f32::INFINITY); self.columns.div_ceil(16) * row];
        for (index, number) in weight.into_iter().enumerate() {
            let (column, input) = (index / self.inputs, index % self.inputs);
            packed[column / 16 * row + input * 16 + column % 16] = number;
        }
        packed
    }

    fn output<E: Stored>(self) -> Vec<E> {
        self.output_of(&self.input::<E>())
    }

    fn output_of<E: Stored>(self, input: &[E]) -> Vec<E> {
        let weight = self.packed_weight::<E>();
        let bias = numbers::<E>(self.columns, 3);
        let shape = [self.columns.div_ceil(16), self.inputs * 16];
        let weight = View::new("weight", &weight, shape, self.strides(shape[1])).unwrap();
        let bias = View::contiguous("bias", &bias, [self.columns]).unwrap();
        let shape = [self.rows, self.inputs];
        let input = View::new("input", input, shape, self.strides(self.inputs)).unwrap();
        let untouched = E::from_f32(-77.0);
        let mut output = vec![untouched; self.rows * (self.columns + self.gap)];
        let (shape, strides) = ([self.rows, self.columns], self.strides(self.columns));
        let mut view = ViewMut::new("output", &mut output, shape, strides).unwrap();
        linear(input, weight, self.has_bias.then_some(bias), &mut view).unwrap();
        let rows = output.chunks(self.columns + self.gap);
        rows.flat_map(|row| {
            assert!(row[self.columns..].iter().all(|number| number.bits() == untouched.bits()));
            row[..self.columns].to_vec()
        })
        .collect()
    }

    fn assert_close<E: Stored>(self, relative: f64) {
        let input = self.input::<E>();
        let weight = self.weight::<E>();
        let bias = numbers::<E>(self.columns, 3);
        let width = self.inputs + self.gap;
        for (index, got) in self.output::<E>().iter().enumerate() {
            let (row, column) = (index / self.columns, index % self.columns);
            let pairs = input[row * width..].iter().zip(&weight[column * self.inputs..]);
            let products = pairs.take(self.inputs).map(|(x, w)| x.to_f64() * w.to_f64());
            let (mut sum, mut size) =
                products.fold((0.0, 0.0), |(sum, size), p: f64| (sum + p, size + p.abs()));
            if self.has_bias {
                sum += bias[column].to_f64();
                size += bias[column].to_f64().abs();
            }
            // Sums round by f32, 512 times one after the other; each result once more by its own format.
            let allowed = 5e-6 * size + relative * sum.abs() + 1e-7;
            assert!((got.to_f64() - sum).abs() <= allowed, "{got:?} is not {sum}: {self:?}");
        }
    }
}

prop_compose! {
    fn products()(
        rows in prop_oneof![1_usize..6, 6_usize..40, 120_usize..140],
        inputs in prop_oneof![0_usize..70, 500_usize..1100],
        columns in 1_usize..70,
        gap in 0_usize..3,
        has_bias: bool,
    ) -> Product {
        Product { rows, inputs, columns, gap, has_bias }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    #[test]
    fn a_product_equals_the_formula_and_writes_its_columns_only(product in products()) {
        product.assert_close::<f32>(0.0);
        product.assert_close::<bf16>(1.0 / 256.0);
        product.assert_close::<f16>(1.0 / 2048.0);
    }

    #[test]
    fn a_row_has_the_same_bits_alone_and_among_others(product in products()) {
        let together = product.output::<f32>();
        let input = product.input::<f32>();
        for (row, outputs) in together.chunks(product.columns).enumerate() {
            let alone = Product { rows: 1, ..product };
            let start = row * (product.inputs + product.gap);
            let alone = alone.output_of(&input[start..start + product.inputs + product.gap]);
            prop_assert!(alone.iter().zip(outputs).all(|(a, b)| a.to_bits() == b.to_bits()));
        }
    }
}

#[test]
fn a_product_has_the_same_bits_on_any_number_of_threads() {
    let product = Product { rows: 150, inputs: 700, columns: 333, gap: 0, has_bias: true };
    let mut seen = Vec::new();
    for num_threads in [1, 2, 5] {
        set_num_threads(num_threads).unwrap();
        seen.push(product.output::<f32>());
    }
    assert_eq!(seen[0], seen[1]);
    assert_eq!(seen[0], seen[2]);
}

#[test]
fn rows_of_a_product_are_alone_with_their_nan() {
    let product = Product { rows: 6, inputs: 40, columns: 30, gap: 0, has_bias: false };
    let clean = product.output::<f32>();
    let mut input = product.input::<f32>();
    input[2 * 40 + 7] = f32::NAN;
    let output = product.output_of(&input);
    for (row, (got, expected)) in output.chunks(30).zip(clean.chunks(30)).enumerate() {
        assert_eq!(got.iter().all(|number| number.is_nan()), row == 2);
        assert_eq!(got == expected, row != 2);
    }
}

#[test]
fn a_product_whose_shapes_disagree_is_refused() {
    let numbers = [0.0_f32; 96];
    let matrix = |shape| View::new("numbers", &numbers, shape, row_major(shape)).unwrap();
    let bias = View::contiguous("bias", &numbers[..3], [3]).unwrap();
    let refused = |input, weight, bias, shape: [usize; 2]| {
        let mut output = vec![0.0_f32; shape[0] * shape[1]];
        let mut output = ViewMut::contiguous("output", &mut output, shape).unwrap();
        linear(matrix(input), matrix(weight), bias, &mut output).unwrap_err().to_string()
    };
    assert_eq!(
        [
            refused([2, 4], [2, 48], None, [2, 17]),
            refused([2, 4], [1, 64], None, [2, 17]),
            refused([2, 1], [2, 16], Some(bias), [2, 17]),
            refused([2, 1], [2, 16], None, [3, 17]),
        ],
        [
            "weight has size 48 in dimension 1, expected 64",
            "weight has size 1 in dimension 0, expected 2",
            "bias has size 3 in dimension 0, expected 17",
            "output has size 3 in dimension 0, expected 2",
        ]
    );
}

fn normed<E: Stored>(norm: RmsNorm, input: &[E], shape: [usize; 2]) -> Vec<E> {
    let weight = numbers::<E>(shape[1], 5);
    let mut output = vec![E::from_f32(-77.0); input.len()];
    rms_norm(
        norm,
        View::contiguous("input", input, shape).unwrap(),
        View::contiguous("weight", &weight, [shape[1]]).unwrap(),
        &mut ViewMut::contiguous("output", &mut output, shape).unwrap(),
    )
    .unwrap();
    output
}

fn assert_normed<E: Stored>(norm: RmsNorm, shape: [usize; 2], relative: f64) {
    let (input, weight) = (numbers::<E>(shape[0] * shape[1], 4), numbers::<E>(shape[1], 5));
    for (got, input) in normed(norm, &input, shape).chunks(shape[1]).zip(input.chunks(shape[1])) {
        let squares = input.iter().map(|x| x.to_f64().powi(2)).sum::<f64>();
        let scale = (squares / shape[1] as f64 + f64::from(norm.epsilon)).sqrt().recip();
        for ((got, x), w) in got.iter().zip(input).zip(&weight) {
            let expected = x.to_f64() * scale * (w.to_f64() + f64::from(norm.weight_offset));
            assert!((got.to_f64() - expected).abs() <= relative * expected.abs() + 1e-7);
        }
    }
}

#[test]
fn a_norm_equals_the_formula_in_each_form_and_format() {
    for (weight_offset, rounds_twice) in [(0.0, true), (0.0, false), (1.0, false)] {
        let norm = RmsNorm { epsilon: 1e-5, weight_offset, rounds_twice };
        for shape in [[1, 1], [3, 7], [5, 64], [4, 333]] {
            assert_normed::<f32>(norm, shape, 2e-6);
            assert_normed::<bf16>(norm, shape, 2.1 / 256.0);
            assert_normed::<f16>(norm, shape, 2.1 / 2048.0);
        }
    }
}

#[test]
fn a_row_of_a_norm_has_the_same_bits_alone_and_among_others() {
    let norm = RmsNorm { epsilon: 1e-6, weight_offset: 1.0, rounds_twice: false };
    let input = numbers::<f32>(400 * 515, 4);
    let together = normed(norm, &input, [400, 515]);
    for (row, outputs) in input.chunks(515).zip(together.chunks(515)).step_by(37) {
        assert_eq!(normed(norm, row, [1, 515]), outputs);
    }
}

#[test]
fn every_level_with_a_fused_multiply_add_gives_the_bits_of_its_scalar_twin() {
    let few = Product { rows: 5, inputs: 1031, columns: 53, gap: 1, has_bias: true };
    let many = Product { rows: 23, ..few };
    let norm = RmsNorm { epsilon: 1e-6, weight_offset: 1.0, rounds_twice: true };
    let input = numbers::<bf16>(9 * 515, 4);
    let best = Isa::best();
    let results = || {
        let narrow = normed(norm, &input, [9, 515]).iter().map(|number| number.to_bits()).collect();
        let wide = [few, many].map(Product::output::<f32>).concat();
        let half = [few, many].map(Product::output::<bf16>).concat();
        let product = wide.iter().map(|number| number.to_bits());
        (product.chain(half.iter().map(|number| number.to_bits().into())).collect(), narrow)
    };
    Isa::Fused.choose().unwrap();
    let twin: (Vec<u32>, Vec<u16>) = results();
    for isa in Isa::ALL.into_iter().filter(|isa| *isa != Isa::Plain && isa.is_available()) {
        isa.choose().unwrap();
        assert_eq!(results(), twin, "{}", isa.name());
    }
    best.choose().unwrap();
}
