//! Sampling against a plain twin that sorts, in f64.

use pagedkv_cpu::{
    Isa, NO_TOKEN, NoiseRow, Reported, SampleOutputs, SampleRow, View, ViewMut, best_tokens,
    gumbel_noise, philox4x32_10, sample,
};

const GREEDY: SampleRow = SampleRow {
    noise: NoiseRow { seed: 7, sample_index: 0, position: 0 },
    temperature: 0.0,
    log_min_p: f32::NEG_INFINITY,
    top_k: 0,
    top_p: 1.0,
    edited: None,
    num_top: None,
};

/// Numbers of deviation 1 and mean 0, that are a function of `seed`.
fn normal(count: usize, seed: u64) -> Vec<f32> {
    let word = |index: usize, word: usize| {
        philox4x32_10([index as u32, 0, 0, 9], [seed as u32, (seed >> 32) as u32])[word]
    };
    let uniform = |bits: u32| (f64::from(bits) + 0.5) / 4_294_967_296.0;
    (0..count)
        .map(|index| {
            let radius = (-2.0 * uniform(word(index, 0)).ln()).sqrt();
            (radius * (std::f64::consts::TAU * uniform(word(index, 1))).cos()) as f32
        })
        .collect()
}

/// Rows of different shapes: flat, peaked, full of ties, with much that is masked.
fn rows_of_all_shapes(vocabulary: usize, seed: u64) -> Vec<Vec<f32>> {
    let normal = normal(vocabulary, seed);
    let map = |change: &dyn Fn(f32) -> f32| normal.iter().map(|x| change(*x)).collect();
    vec![
        normal.clone(),
        map(&|x| 4.0 * x),
        map(&|x| 30.0 * x - 100.0),
        map(&|x| (2.0 * x).round()),
        map(&|x| if x < 1.0 { f32::NEG_INFINITY } else { x }),
        map(&|x| if x < 0.0 { -0.0 } else { 0.0 }),
        map(&|x| 1e-6 * x),
    ]
}

/// Filters alone and together.
fn settings(seed: u64) -> Vec<SampleRow> {
    let mut rows = vec![GREEDY];
    for (temperature, log_min_p, top_k, top_p) in [
        (1.0, f32::NEG_INFINITY, 0, 1.0),
        (0.8, f32::NEG_INFINITY, 0, 0.95),
        (1.3, f32::NEG_INFINITY, 0, 0.3),
        (0.01, f32::NEG_INFINITY, 0, 0.999),
        (1.0, f32::NEG_INFINITY, 1, 1.0),
        (0.7, f32::NEG_INFINITY, 40, 1.0),
        (2.0, f32::NEG_INFINITY, 700, 0.9),
        (1.0, 0.1_f32.ln(), 0, 1.0),
        (1.5, 0.02_f32.ln(), 5, 0.5),
        (1.0, f32::NEG_INFINITY, 0, 0.999_999_9),
        (1.0, f32::NEG_INFINITY, 0, 1e-6),
    ] {
        let noise = NoiseRow { seed, sample_index: rows.len() as u32, position: 3 };
        rows.push(SampleRow { noise, temperature, log_min_p, top_k, top_p, ..GREEDY });
    }
    rows
}

struct Results {
    token_ids: Vec<i32>,
    numbers: Vec<f32>,
    ranks: Vec<i32>,
}

impl Results {
    fn bits(&self) -> (Vec<i32>, Vec<u32>, Vec<i32>) {
        let numbers = self.numbers.iter().map(|number| number.to_bits()).collect();
        (self.token_ids.clone(), numbers, self.ranks.clone())
    }
}

fn run(
    logits: &[Vec<f32>],
    edited: Option<&[Vec<f32>]>,
    rows: &[SampleRow],
    reported: Reported,
) -> Results {
    let width = 1 + rows.iter().filter_map(|row| row.num_top).max().unwrap_or(0);
    let (count, vocabulary) = (logits.len(), logits[0].len());
    let mut results = Results {
        token_ids: vec![99; count * width],
        numbers: vec![99.0; count * width],
        ranks: vec![99; count],
    };
    let edited = edited.map(|edited| (edited.concat(), edited.len()));
    let edited = edited
        .as_ref()
        .map(|(numbers, count)| View::contiguous("edited", numbers, [*count, vocabulary]).unwrap());
    let logits = logits.concat();
    let logits = View::contiguous("logits", &logits, [count, vocabulary]).unwrap();
    let shape = [count, width];
    let mut outputs = SampleOutputs {
        token_ids: ViewMut::contiguous("token_ids", &mut results.token_ids, shape).unwrap(),
        numbers: ViewMut::contiguous("numbers", &mut results.numbers, shape).unwrap(),
        ranks: ViewMut::contiguous("ranks", &mut results.ranks, [count, 1]).unwrap(),
    };
    sample(logits, edited, rows, reported, &mut outputs).unwrap();
    results
}

/// The scaled logits of a row, what is filtered out at minus infinity; by sorting.
fn plain_filtered(logits: &[f32], row: SampleRow) -> Vec<f32> {
    let mut scaled: Vec<f32> = logits.iter().map(|logit| logit / row.temperature).collect();
    let drop_below = |scaled: &mut Vec<f32>, threshold: f32| {
        for logit in scaled.iter_mut().filter(|logit| **logit < threshold) {
            *logit = f32::NEG_INFINITY;
        }
    };
    let sorted = |scaled: &[f32]| {
        let mut sorted = scaled.to_vec();
        sorted.sort_by(|a, b| b.partial_cmp(a).unwrap());
        sorted
    };
    let largest = sorted(&scaled)[0];
    drop_below(&mut scaled, largest + row.log_min_p);
    if row.top_k > 0 {
        let threshold = sorted(&scaled)[row.top_k.min(scaled.len()) - 1];
        drop_below(&mut scaled, threshold);
    }
    if row.top_p < 1.0 {
        let weight = |logit: f32| (f64::from(logit) - f64::from(largest)).exp();
        let sorted = sorted(&scaled);
        let whole: f64 = sorted.iter().map(|logit| weight(*logit)).sum();
        let mut sum = 0.0;
        let reached = sorted.iter().find(|logit| {
            sum += weight(**logit);
            sum >= f64::from(row.top_p) * whole
        });
        drop_below(&mut scaled, *reached.unwrap_or(&f32::NEG_INFINITY));
    }
    scaled
}

fn plain_token(logits: &[f32], row: SampleRow) -> usize {
    let mut sums = logits.to_vec();
    if row.temperature > 0.0 {
        let mut noise = vec![0.0; logits.len()];
        let mut view = ViewMut::contiguous("noise", &mut noise, [1, logits.len()]).unwrap();
        gumbel_noise(&[row.noise], &mut view).unwrap();
        sums = plain_filtered(logits, row).iter().zip(noise).map(|(x, noise)| x + noise).collect();
    }
    let best = |best: usize, place: usize| if sums[place] > sums[best] { place } else { best };
    (0..sums.len()).reduce(best).unwrap()
}

fn plain_logprob(logits: &[f32], token: usize) -> f64 {
    let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let distance = |logit: f32| f64::from(logit) - f64::from(largest);
    let sum: f64 = logits.iter().map(|logit| distance(*logit).exp()).sum();
    distance(logits[token]) - sum.ln()
}

#[test]
fn tokens_and_logprobs_are_those_of_a_plain_sort_for_rows_of_all_shapes() {
    for (index, vocabulary) in [1, 7, 16, 33, 64, 500, 1000, 5003, 20_011].into_iter().enumerate() {
        for row in settings(index as u64) {
            let logits = rows_of_all_shapes(vocabulary, index as u64);
            let logits: Vec<_> = logits
                .into_iter()
                .filter(|logits| logits.iter().any(|logit| logit.is_finite()))
                .collect();
            let rows = vec![row; logits.len()];
            let results = run(&logits, None, &rows, Reported::RawLogprobs);
            for (shape, logits) in logits.iter().enumerate() {
                let token = plain_token(logits, row);
                let got = results.token_ids[shape];
                assert_eq!(got, token as i32, "{vocabulary} tokens, shape {shape}, {row:?}");
                let (got, expected) = (results.numbers[shape], plain_logprob(logits, token));
                let tolerance = 3e-6 + 1e-6 * expected.abs();
                assert!((f64::from(got) - expected).abs() < tolerance, "{got} {expected}");
            }
        }
    }
}

#[test]
fn a_row_has_the_same_bits_alone_and_in_any_company() {
    let shapes = rows_of_all_shapes(30_000, 5);
    let rows = settings(11);
    let rows: Vec<_> = (0..21)
        .map(|index| SampleRow { num_top: Some(index % 5), ..rows[index % rows.len()] })
        .collect();
    let logits: Vec<_> = (0..21).map(|index| shapes[index % shapes.len()].clone()).collect();
    for reported in [Reported::RawLogprobs, Reported::ProcessedLogprobs] {
        let together = run(&logits, None, &rows, reported);
        let width = together.token_ids.len() / 21;
        for index in 0..21 {
            let alone = run(&logits[index..=index], None, &rows[index..=index], reported);
            let own = 1 + index % 5;
            let range = index * width..index * width + own;
            assert_eq!(alone.token_ids[..own], together.token_ids[range.clone()]);
            let bits = |numbers: &[f32]| numbers.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
            assert_eq!(bits(&alone.numbers[..own]), bits(&together.numbers[range]));
            assert_eq!(alone.ranks[0], together.ranks[index]);
        }
    }
}

#[test]
fn all_instruction_sets_give_the_same_bits_except_the_plain_one() {
    let best = Isa::chosen().unwrap();
    let logits = rows_of_all_shapes(3001, 8);
    let results = || {
        let results = settings(2).into_iter().map(|row| {
            let rows = vec![SampleRow { num_top: Some(6), ..row }; logits.len()];
            run(&logits, None, &rows, Reported::ProcessedLogprobs).bits()
        });
        results.collect::<Vec<_>>()
    };
    Isa::Fused.choose().unwrap();
    let twin = results();
    for isa in Isa::ALL.into_iter().filter(|isa| *isa != Isa::Plain && isa.is_available()) {
        isa.choose().unwrap();
        assert_eq!(results(), twin, "{}", isa.name());
    }
    best.choose().unwrap();
}

#[test]
fn reports_follow_their_mode() {
    let logits = rows_of_all_shapes(700, 3).swap_remove(1);
    let row = SampleRow { temperature: 0.7, top_k: 30, num_top: Some(8), ..GREEDY };
    let filtered = plain_filtered(&logits, row);
    let token = plain_token(&logits, row);
    for (reported, basis, is_logprob) in [
        (Reported::RawLogprobs, &logits, true),
        (Reported::RawLogits, &logits, false),
        (Reported::ProcessedLogprobs, &filtered, true),
        (Reported::ProcessedLogits, &filtered, false),
    ] {
        let results = run(std::slice::from_ref(&logits), None, &[row], reported);
        let mut order: Vec<usize> = (0..basis.len()).collect();
        order.sort_by(|a, b| basis[*b].partial_cmp(&basis[*a]).unwrap().then(a.cmp(b)));
        assert_eq!(results.ranks, [order.iter().position(|at| *at == token).unwrap() as i32 + 1]);
        for (place, expected) in [token].iter().chain(&order[..8]).enumerate() {
            assert_eq!(results.token_ids[place], *expected as i32);
            let logit = f64::from(basis[*expected]);
            let number = if is_logprob { plain_logprob(basis, *expected) } else { logit };
            assert!((f64::from(results.numbers[place]) - number).abs() < 1e-5, "{reported:?}");
        }
    }
}

#[test]
fn a_row_is_drawn_from_its_edited_logits_and_reported_from_the_raw_ones() {
    let logits = vec![normal(300, 1), normal(300, 2), normal(300, 3)];
    let mut edited = vec![vec![f32::NEG_INFINITY; 300], vec![f32::NEG_INFINITY; 300]];
    edited[0][17] = -3.0;
    edited[1][250] = 1.0;
    edited[1][251] = 1.0;
    let drawn = SampleRow { temperature: 1.0, num_top: Some(0), ..GREEDY };
    let rows = [
        SampleRow { edited: Some(1), ..drawn },
        drawn,
        SampleRow { edited: Some(0), temperature: 0.0, ..drawn },
    ];
    let results = run(&logits, Some(&edited), &rows, Reported::RawLogits);
    let first = results.token_ids[0] as usize;
    assert!([250, 251].contains(&first));
    assert_eq!(results.token_ids[1..], [plain_token(&logits[1], drawn) as i32, 17]);
    assert_eq!(results.numbers[0].to_bits(), logits[0][first].to_bits());
    assert_eq!(results.numbers[2].to_bits(), logits[2][17].to_bits());
}

#[test]
fn rows_without_a_choice_say_so_and_leave_the_others_alone() {
    let mut logits = vec![normal(100, 1); 5];
    logits[1][40] = f32::NAN;
    let mut edited = vec![vec![f32::NEG_INFINITY; 100], normal(100, 4), normal(100, 5)];
    edited[1][99] = f32::NAN;
    edited[2][50] = f32::INFINITY;
    for temperature in [0.0, 1.0] {
        let row = SampleRow { temperature, top_p: 0.9, ..GREEDY };
        let rows = [
            row,
            row,
            SampleRow { edited: Some(0), ..row },
            SampleRow { edited: Some(1), ..row },
            SampleRow { edited: Some(2), ..row },
        ];
        let results = run(&logits, Some(&edited), &rows, Reported::RawLogprobs);
        let first = plain_token(&logits[0], row) as i32;
        assert_eq!(results.token_ids, [first, 0, NO_TOKEN, NO_TOKEN, 50]);
        assert!(results.numbers[1].is_nan());
        assert!(results.numbers[0].is_finite() && results.numbers[4].is_finite());
    }
}

#[test]
fn the_best_numbers_come_sorted_and_of_equals_the_first_ones() {
    for vocabulary in [1, 15, 64, 1000, 30_000] {
        for numbers in rows_of_all_shapes(vocabulary, 6) {
            for count in [1, 2, 33, 500, 1000].map(|count: usize| count.min(vocabulary)) {
                let mut order: Vec<usize> = (0..vocabulary).collect();
                order.sort_by(|a, b| numbers[*b].partial_cmp(&numbers[*a]).unwrap());
                let (mut token_ids, mut values) = (vec![0; count], vec![0.0; count]);
                let view = View::contiguous("numbers", &numbers, [1, vocabulary]).unwrap();
                let mut ids = ViewMut::contiguous("ids", &mut token_ids, [1, count]).unwrap();
                let mut best = ViewMut::contiguous("values", &mut values, [1, count]).unwrap();
                best_tokens(view, false, &mut ids, &mut best).unwrap();
                for ((token, value), expected) in token_ids.iter().zip(&values).zip(order) {
                    assert_eq!(*token, expected as i32, "{count} of {vocabulary}");
                    assert_eq!(value.to_bits(), numbers[expected].to_bits());
                }
            }
        }
    }
}

#[test]
fn the_best_logits_come_with_their_log_probabilities_and_a_row_without_any_with_nan() {
    for vocabulary in [1, 15, 1000, 30_000] {
        let count = vocabulary.min(40);
        let mut logits = normal(2 * vocabulary, 3);
        let (first, second) = logits.split_at_mut(vocabulary);
        second.copy_from_slice(first);
        second[vocabulary / 2] = f32::NAN;
        let (mut token_ids, mut values) = (vec![-7; 2 * count], vec![0.0; 2 * count]);
        let view = View::contiguous("logits", &logits, [2, vocabulary]).unwrap();
        let mut ids = ViewMut::contiguous("ids", &mut token_ids, [2, count]).unwrap();
        let mut best = ViewMut::contiguous("values", &mut values, [2, count]).unwrap();
        best_tokens(view, true, &mut ids, &mut best).unwrap();
        let sum: f64 = logits[..vocabulary].iter().map(|logit| f64::from(*logit).exp()).sum();
        for (token, value) in token_ids[..count].iter().zip(&values) {
            let expected = f64::from(logits[*token as usize]) - sum.ln();
            assert!((f64::from(*value) - expected).abs() < 2e-6, "{value} is not {expected}");
        }
        assert!(values[..count].is_sorted_by(|a, b| a >= b));
        assert!(values[count..].iter().all(|value| value.is_nan()));
        assert!(token_ids[count..].iter().all(|token| *token == 0));
    }
}

#[test]
fn shapes_and_rows_that_do_not_fit_are_refused() {
    let logits = normal(20, 1);
    let (mut token_ids, mut numbers, mut ranks) = ([0; 6], [0.0; 6], [0; 2]);
    let mut refusal = |rows: &[SampleRow]| {
        let mut outputs = SampleOutputs {
            token_ids: ViewMut::contiguous("token_ids", &mut token_ids, [2, 3]).unwrap(),
            numbers: ViewMut::contiguous("numbers", &mut numbers, [2, 3]).unwrap(),
            ranks: ViewMut::contiguous("ranks", &mut ranks, [2, 1]).unwrap(),
        };
        let logits = View::contiguous("logits", &logits, [2, 10]).unwrap();
        sample(logits, None, rows, Reported::RawLogits, &mut outputs).map_err(|e| e.to_string())
    };
    assert!(refusal(&[GREEDY]).unwrap_err().contains("rows has size 1"));
    let wide = SampleRow { num_top: Some(3), ..GREEDY };
    assert!(refusal(&[GREEDY, wide]).unwrap_err().contains("token_ids has size 3"));
    let absent = SampleRow { edited: Some(0), ..GREEDY };
    assert!(refusal(&[GREEDY, absent]).is_err());
    assert_eq!(refusal(&[GREEDY, GREEDY]), Ok(()));
    let (mut ids, mut values) = ([0; 22], [0.0; 22]);
    let mut ids = ViewMut::contiguous("token_ids", &mut ids, [2, 11]).unwrap();
    let mut values = ViewMut::contiguous("values", &mut values, [2, 11]).unwrap();
    let logits = View::contiguous("numbers", &logits, [2, 10]).unwrap();
    assert!(best_tokens(logits, true, &mut ids, &mut values).is_err());
}
