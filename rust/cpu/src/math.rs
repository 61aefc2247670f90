//! Elementary functions without branches, so that loops over them vectorise, and without the
//! system's library, so that they give the same bits on every machine.

/// `e^x` in f32, within 1.1 ulp where the result is a normal number; 0 from about -104 down,
/// infinity from 88.73 up, NaN for NaN.
#[inline(always)]
pub(crate) fn exp(x: f32) -> f32 {
    let (fraction, low_scale, high_scale) = exp_parts(x);
    fraction * low_scale * high_scale
}

/// `e^x` for weights of a softmax: as [`exp`], but 0 below -87, where a product with a weight would
/// be subnormal.
#[inline(always)]
pub(crate) fn exp_weight(x: f32) -> f32 {
    let (fraction, low_scale, high_scale) = exp_parts(x);
    // Not `x >= -87`, which would turn NaN into 0.
    if x < -87.0 { 0.0 } else { fraction * low_scale * high_scale }
}

/// `x / (1 + e^-x)`, within 3.5 ulp also far to the left, where `e^-x` alone would overflow.
#[inline(always)]
pub(crate) fn silu(x: f32) -> f32 {
    // Below -110 the result is 0, and the exponential itself goes no further down.
    let clamped = if x < -110.0 { -110.0 } else { x };
    let (fraction, low_scale, high_scale) = exp_parts(-clamped.abs());
    let small = fraction * low_scale * high_scale;
    let numerator = if x < 0.0 { clamped * fraction * low_scale * high_scale } else { x };
    numerator / (1.0 + small)
}

/// `tanh x` in f32, within 2 ulp (Cephes `tanhf`).
#[inline(always)]
pub(crate) fn tanh(x: f32) -> f32 {
    let magnitude = x.abs();
    let square = x * x;
    let mut series = -5.704_988_7e-3_f32;
    for coefficient in [2.063_909e-2, -5.373_971e-2, 1.333_144_2e-1, -3.333_328e-1] {
        series = series * square + coefficient;
    }
    let near_zero = x + x * square * series;
    let far = (1.0 - 2.0 / (exp(2.0 * magnitude) + 1.0)).copysign(x);
    if magnitude < 0.625 { near_zero } else { far }
}

/// `e^x = fraction * low_scale * high_scale`, both scales powers of two. Products are to be taken
/// from the left: only the last one can leave the range of normal numbers.
#[inline(always)]
fn exp_parts(x: f32) -> (f32, f32, f32) {
    // Comparisons that are false for NaN, which therefore passes through.
    let clamped = if x < -110.0 { -110.0 } else { x };
    let clamped = if clamped > 90.0 { 90.0 } else { clamped };
    // Adding 1.5 * 2^23 rounds to an integer, which then stands in the low bits.
    let magic = 12_582_912.0_f32;
    let shifted = clamped * std::f32::consts::LOG2_E + magic;
    let exponent = shifted - magic;
    // ln 2 in two parts, the first so short that its product with the exponent is exact (Cephes
    // `expf`).
    let rest = clamped - exponent * 0.693_359_4 + exponent * 2.121_944_4e-4;
    let mut series = 1.987_569_1e-4_f32;
    for coefficient in [1.398_2e-3, 8.333_452e-3, 4.166_579_6e-2, 0.166_666_65, 0.5] {
        series = series * rest + coefficient;
    }
    let fraction = series * (rest * rest) + rest + 1.0;
    let exponent = (shifted.to_bits() as i32).wrapping_sub(magic.to_bits() as i32);
    let low = exponent >> 1;
    (fraction, power_of_two(low), power_of_two(exponent.wrapping_sub(low)))
}

#[inline(always)]
fn power_of_two(exponent: i32) -> f32 {
    f32::from_bits((exponent.wrapping_add(127) as u32) << 23)
}

/// `ln x` in f64 for normal positive x, within 1 ulp (fdlibm `e_log.c`).
#[inline(always)]
pub(crate) fn ln(x: f64) -> f64 {
    /// The bits of about sqrt(1/2), to which the fraction is scaled: it ends up within sqrt(1/2) ..
    /// sqrt(2).
    const SQRT_HALF: u64 = 0x3fe6_a09e << 32;
    const ONE: u64 = 0x3ff0_0000 << 32;
    let bits = x.to_bits().wrapping_add(ONE - SQRT_HALF);
    // The exponent as a number, by way of the fraction bits of 2^52: there is no vector conversion
    // for 64 bits.
    let exponent =
        f64::from_bits(0x4330_0000_0000_0000 | (bits >> 52)) - (4_503_599_627_370_496.0 + 1023.0);
    let fraction = f64::from_bits((bits & 0x000f_ffff_ffff_ffff).wrapping_add(SQRT_HALF)) - 1.0;
    let half_square = 0.5 * fraction * fraction;
    let s = fraction / (2.0 + fraction);
    let z = s * s;
    let w = z * z;
    let even = w
        * (0.399_999_999_994_094_2 + w * (0.222_221_984_321_497_84 + w * 0.153_138_376_992_093_73));
    let odd = z
        * (0.666_666_666_666_673_5
            + w * (0.285_714_287_436_623_9
                + w * (0.181_835_721_616_180_5 + w * 0.147_981_986_051_165_86)));
    let correction = exponent * 1.908_214_929_270_587_7e-10 + s * (half_square + (even + odd));
    exponent * 0.693_147_180_369_123_8 - ((half_square - correction) - fraction)
}

/// `x * (1 + erf(x / sqrt 2)) / 2` within 0.51 ulp: computed in f64 with a relative error of 3e-10
/// everywhere, also far to the left, where `1 + erf` would cancel.
#[inline(always)]
pub(crate) fn gelu(x: f32) -> f32 {
    let wide = f64::from(x);
    let z = wide.abs() * std::f64::consts::FRAC_1_SQRT_2;
    let t = 2.0 / (2.0 + z);
    // `ln(erfc(z) e^(z^2) / t)`, interpolated at Chebyshev's points for t from 2 / 13 to 1; the form
    // is that of Numerical Recipes' `erfcc`. Highest power first.
    let mut series = 0.192_928_729_299_811_06;
    for coefficient in [
        -1.421_656_315_269_235_9,
        4.543_858_465_303_344_5,
        -8.145_217_361_394_517,
        8.851_109_220_148_885,
        -6.008_049_769_844_058_5,
        2.809_324_659_455_127_5,
        -1.131_572_897_312_115_7,
        0.152_037_451_147_705_7,
        0.043_682_304_024_020_26,
        0.379_339_614_175_702,
        0.999_719_971_877_106_7,
        -1.265_504_071_338_702_7,
    ] {
        series = series * t + coefficient;
    }
    let tail = 0.5 * t * exp_f64(series - z * z);
    let other_tail = 1.0 - tail;
    (wide * if wide < 0.0 { tail } else { other_tail }) as f32
}

/// `x * (1 + tanh(sqrt(2 / pi) * (x + 0.044715 x^3))) / 2`, computed in f64 as `x / (1 + e^-2u)`.
#[inline(always)]
pub(crate) fn gelu_tanh(x: f32) -> f32 {
    /// `2 sqrt(2 / pi)`
    const FACTOR: f64 = 1.595_769_121_605_730_7;
    let wide = f64::from(x);
    let twice_u = FACTOR * (wide + 0.044_715 * wide * wide * wide);
    (wide / (1.0 + exp_f64(-twice_u))) as f32
}

/// `e^x` in f64 within 1e-14, for x clamped to -700 .. 700; NaN for NaN.
#[inline(always)]
fn exp_f64(x: f64) -> f64 {
    let clamped = if x < -700.0 { -700.0 } else { x };
    let clamped = if clamped > 700.0 { 700.0 } else { clamped };
    // Adding 1.5 * 2^52 rounds to an integer, which then stands in the low bits.
    let magic = 6_755_399_441_055_744.0_f64;
    let shifted = clamped * std::f64::consts::LOG2_E + magic;
    let exponent = shifted - magic;
    let rest =
        clamped - exponent * 0.693_147_180_369_123_8 - exponent * 1.908_214_929_270_587_7e-10;
    // Taylor's series: the next term is below 1e-14 for |rest| <= ln 2 / 2.
    let mut series = 1.0;
    for divisor in [11.0, 10.0, 9.0, 8.0, 7.0, 6.0, 5.0, 4.0, 3.0, 2.0, 1.0] {
        series = series * (rest / divisor) + 1.0;
    }
    let scale =
        f64::from_bits(shifted.to_bits().wrapping_sub(magic.to_bits()).wrapping_add(1023) << 52);
    series * scale
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Distance in units of the last place of the exact result.
    fn ulps(got: f32, exact: f64) -> f64 {
        let rounded = (exact as f32).abs().max(f32::MIN_POSITIVE);
        (f64::from(got) - exact).abs() / f64::from(rounded.next_up() - rounded)
    }

    fn largest_error(from: f32, to: f32, got: fn(f32) -> f32, exact: fn(f64) -> f64) -> f64 {
        (0..=200_000_u32)
            .map(|step| from + (to - from) * (step as f32 / 2e5))
            .map(|x| ulps(got(x), exact(f64::from(x))))
            .fold(0.0, f64::max)
    }

    #[test]
    fn functions_stay_within_their_error_on_a_dense_grid() {
        assert!(largest_error(-87.3, 88.7, exp, f64::exp) <= 1.1);
        assert!(largest_error(-1.0, 1.0, exp, f64::exp) <= 1.1);
        assert!(largest_error(-12.0, 12.0, tanh, f64::tanh) <= 2.0);
        assert!(largest_error(-0.7, 0.7, tanh, f64::tanh) <= 2.0);
        let silu_exact = |x: f64| x / (1.0 + (-x).exp());
        assert!(largest_error(-87.0, 90.0, silu, silu_exact) <= 3.5);
        assert!(largest_error(-104.0, -87.0, silu, silu_exact) <= 3.5);
        assert!(largest_error(-6.0, 6.0, silu, silu_exact) <= 3.5);
        let tanh_form = |x: f64| {
            x / (1.0
                + (-2.0 * (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044_715 * x.powi(3))).exp())
        };
        assert!(largest_error(-6.0, 6.0, gelu_tanh, tanh_form) <= 0.51);
        assert!(largest_error(-14.0, 14.0, gelu, gelu_exact) <= 0.51);
    }

    /// From the continued fraction of erfc for large arguments, and the power series of erf for
    /// small ones.
    fn gelu_exact(x: f64) -> f64 {
        let z = x.abs() / std::f64::consts::SQRT_2;
        let erfc = if z < 2.5 {
            let mut term = z;
            let mut sum = z;
            for n in 1..80 {
                term *= -z * z / f64::from(n);
                sum += term / f64::from(2 * n + 1);
            }
            1.0 - sum * std::f64::consts::FRAC_2_SQRT_PI
        } else {
            let fraction = (1..200).rev().fold(z, |below, n| z + f64::from(n) / 2.0 / below);
            (-z * z).exp() / fraction / std::f64::consts::PI.sqrt()
        };
        x * if x < 0.0 { erfc / 2.0 } else { 1.0 - erfc / 2.0 }
    }

    #[test]
    #[expect(clippy::float_cmp, reason = "limits are exact")]
    fn edges_come_out_as_the_limits_say() {
        assert_eq!(exp(f32::NEG_INFINITY), 0.0);
        assert_eq!(exp_weight(f32::NEG_INFINITY), 0.0);
        assert_eq!(exp(f32::INFINITY), f32::INFINITY);
        assert_eq!(exp(0.0), 1.0);
        assert_eq!(exp_weight(0.0), 1.0);
        assert_eq!(tanh(f32::INFINITY), 1.0);
        assert_eq!(tanh(f32::NEG_INFINITY), -1.0);
        for function in [exp, exp_weight, tanh, silu, gelu, gelu_tanh] {
            assert!(function(f32::NAN).is_nan());
        }
        for function in [silu, gelu, gelu_tanh] {
            assert_eq!(function(0.0), 0.0);
            assert_eq!(function(1e30), 1e30);
            assert!(function(-1e30).abs() < 1e-30);
        }
    }
}
