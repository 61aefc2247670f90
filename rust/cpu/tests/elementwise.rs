//! Activations and noise: each number has the same bits wherever it stands, in whatever company.

use pagedkv_cpu::{
    Activation, NoiseRow, View, ViewMut, activate, bf16, f16, gumbel_noise, philox4x32_10, rotate,
    row_major,
};

const ACTIVATIONS: [Activation; 3] = [Activation::Silu, Activation::Gelu, Activation::GeluTanh];

fn numbers(count: usize) -> Vec<f32> {
    (0..count).map(|index| ((index * 7919) % 4001) as f32 / 200.0 - 10.0).collect()
}

fn activated(activation: Activation, input: &[f32], shape: [usize; 2]) -> Vec<f32> {
    let mut output = vec![f32::NAN; input.len()];
    let input = View::contiguous("input", input, shape).unwrap();
    let mut view = ViewMut::contiguous("output", &mut output, shape).unwrap();
    activate(activation, input, &mut view).unwrap();
    output
}

#[test]
fn an_activation_has_the_same_bits_alone_and_in_any_row() {
    let input = numbers(60 * 5000);
    for activation in ACTIVATIONS {
        // Large enough for several threads, and rows that are no multiple of a vector.
        let together = activated(activation, &input, [300, 1000]);
        let other_rows = activated(activation, &input, [1000, 300]);
        assert_eq!(together, other_rows);
        for (number, expected) in input.iter().zip(&together).step_by(97) {
            assert_eq!(activated(activation, &[*number], [1, 1]), [*expected]);
        }
    }
}

#[test]
fn narrow_formats_are_the_f32_result_rounded_once() {
    for activation in ACTIVATIONS {
        let narrow: Vec<bf16> = numbers(1000).into_iter().map(bf16::from_f32).collect();
        let wide: Vec<f32> = narrow.iter().map(|number| number.to_f32()).collect();
        let expected = activated(activation, &wide, [1, 1000]);
        let mut output = vec![bf16::NAN; 1000];
        let mut view = ViewMut::contiguous("output", &mut output, [1, 1000]).unwrap();
        activate(activation, View::contiguous("input", &narrow, [1, 1000]).unwrap(), &mut view)
            .unwrap();
        assert!(output.iter().zip(&expected).all(|(got, wide)| *got == bf16::from_f32(*wide)));

        let narrow: Vec<f16> = wide.iter().map(|number| f16::from_f32(*number)).collect();
        let mut output = vec![f16::NAN; 1000];
        let mut view = ViewMut::contiguous("output", &mut output, [1, 1000]).unwrap();
        activate(activation, View::contiguous("input", &narrow, [1, 1000]).unwrap(), &mut view)
            .unwrap();
        let wide: Vec<f32> = narrow.iter().map(|number| number.to_f32()).collect();
        let expected = activated(activation, &wide, [1, 1000]);
        assert!(output.iter().zip(&expected).all(|(got, wide)| *got == f16::from_f32(*wide)));
    }
}

#[test]
fn heads_are_rotated_in_the_roundings_of_one_operation_after_the_other() {
    for dim in [2, 24, 64, 80, 256] {
        let [num_tokens, num_heads] = [3, 2];
        let shape = [num_tokens, num_heads, dim];
        // Heads as a model passes them: with those of another token in between.
        let strides = [row_major(shape)[0] + 16, dim, 1];
        let numbers: Vec<bf16> =
            numbers(num_tokens * strides[0]).into_iter().map(bf16::from_f32).collect();
        let angles: Vec<f32> = (0..num_tokens * dim).map(|index| (index as f32).sin()).collect();
        let cos: Vec<bf16> = angles.iter().map(|angle| bf16::from_f32(angle.cos())).collect();
        let sin: Vec<bf16> = angles.iter().map(|angle| bf16::from_f32(angle.sin())).collect();
        let mut output = vec![bf16::NAN; shape.iter().product()];
        let [cos_view, sin_view] =
            [&cos, &sin].map(|table| View::contiguous("table", table, [num_tokens, dim]).unwrap());
        rotate(
            View::new("heads", &numbers, shape, strides).unwrap(),
            cos_view,
            sin_view,
            &mut ViewMut::contiguous("output", &mut output, shape).unwrap(),
        )
        .unwrap();
        let product = |a: bf16, b: bf16| bf16::from_f32(a.to_f32() * b.to_f32()).to_f32();
        for (index, got) in output.iter().enumerate() {
            let (token, head, i) =
                (index / (num_heads * dim), index / dim % num_heads, index % dim);
            let number = |i: usize| numbers[token * strides[0] + head * dim + i];
            let half = dim / 2;
            let other = if i < half { -number(i + half) } else { number(i - half) };
            let at = token * dim + i;
            let expected = product(number(i), cos[at]) + product(other, sin[at]);
            assert_eq!(got.to_bits(), bf16::from_f32(expected).to_bits(), "{i} of {dim}");
        }
    }
}

#[test]
fn shapes_that_differ_are_refused() {
    let input = numbers(6);
    let mut output = [0.0; 6];
    let input = View::contiguous("input", &input, [2, 3]).unwrap();
    let mut output = ViewMut::contiguous("output", &mut output, [3, 2]).unwrap();
    assert!(activate(Activation::Silu, input, &mut output).is_err());
    assert!(gumbel_noise(&[], &mut output).is_err());
    let (table, mut output) = (numbers(9), [0.0; 9]);
    let heads = View::contiguous("heads", &table, [3, 1, 3]).unwrap();
    let table = View::contiguous("table", &table, [3, 3]).unwrap();
    let mut output = ViewMut::contiguous("output", &mut output, [3, 1, 3]).unwrap();
    let refusal = rotate(heads, table, table, &mut output).unwrap_err().to_string();
    assert_eq!(refusal, "heads has size 3 in dimension 2, expected 4");
}

#[test]
fn noise_is_a_function_of_seed_sequence_position_and_token_alone() {
    let rows: Vec<NoiseRow> = (0..7)
        .map(|index| NoiseRow {
            seed: 0x1234_5678_9abc_def0 + (index / 4),
            sample_index: index as u32 % 2,
            position: index as u32 % 4 / 2,
        })
        .collect();
    let vocabulary = 10_001;
    let mut noise = vec![f32::NAN; rows.len() * vocabulary];
    let mut view = ViewMut::contiguous("output", &mut noise, [rows.len(), vocabulary]).unwrap();
    gumbel_noise(&rows, &mut view).unwrap();
    for (row, noise) in rows.iter().zip(noise.chunks(vocabulary)) {
        let mut alone = vec![f32::NAN; 100];
        gumbel_noise(&[*row], &mut ViewMut::contiguous("output", &mut alone, [1, 100]).unwrap())
            .unwrap();
        assert_eq!(alone, noise[..100]);
        for (token, noise) in noise.iter().enumerate().step_by(501) {
            let counter = [row.sample_index, row.position, token as u32, 0];
            let key = [row.seed as u32, (row.seed >> 32) as u32];
            let uniform = (f64::from(philox4x32_10(counter, key)[0] >> 8) + 0.5) / 16_777_216.0;
            let expected = -(-uniform.ln()).ln() as f32;
            assert!((noise - expected).abs() <= expected.abs() * 1.2e-7, "{noise} {expected}");
        }
    }
    let mean = noise.iter().sum::<f32>() / noise.len() as f32;
    assert!((mean - 0.577_215_7).abs() < 0.02, "Euler's constant is the mean, got {mean}");
}
