//! Elementary functions on vectors, without branches and without the system's library: each lane
//! has the same bits in any company and on every machine with a fused multiply-add.

use crate::simd::Simd;

/// Added to a number of magnitude up to 2^22, it rounds to an integer n, and leaves n + 127 in the
/// last bits: `1.5 * 2^23 + 127`.
const ROUND: f32 = 12_583_039.0;

/// `e^x` for weights of a softmax, x from minus infinity to 0: 0 below -87, where a product with a
/// weight would be subnormal. NaN for NaN.
#[inline(always)]
pub(crate) fn exp_weight<S: Simd>(x: S::V) -> S::V {
    let (fraction, _, scale) = exp_parts::<S>(x);
    // Far to the left all is garbage, and passed over; not `x >= -87`, which would turn NaN into 0.
    S::select_less(x, S::splat(-87.0), S::splat(0.0), S::mul(fraction, scale))
}

/// `e^x` within 1.1 ulp where the result is a normal number; 0 from about -104 down, infinity from
/// 88.73 up, NaN for NaN.
#[inline(always)]
pub(crate) fn exp<S: Simd>(x: S::V) -> S::V {
    let [fraction, low, high] = exp_scaled::<S>(x);
    S::mul(S::mul(fraction, low), high)
}

/// `tanh x` within 2 ulp (Cephes `tanhf`).
#[inline(always)]
pub(crate) fn tanh<S: Simd>(x: S::V) -> S::V {
    let one = S::splat(1.0);
    let magnitude = S::copysign(x, one);
    let square = S::mul(x, x);
    let series = polynomial::<S>(
        square,
        &[-5.704_988_7e-3, 2.063_909e-2, -5.373_971e-2, 1.333_144_2e-1, -3.333_328e-1],
    );
    let near_zero = S::fma(S::mul(x, square), series, x);
    let power = S::add(exp::<S>(S::add(magnitude, magnitude)), one);
    let far = S::copysign(S::sub(one, S::div(S::splat(2.0), power)), x);
    S::select_less(magnitude, S::splat(0.625), near_zero, far)
}

/// `x / (1 + e^-x)` within 3.5 ulp also far to the left, where `e^-x` alone would overflow.
#[inline(always)]
pub(crate) fn silu<S: Simd>(x: S::V) -> S::V {
    x_times_sigmoid::<S>(x, x, S::splat(0.0))
}

/// `x * (1 + tanh(sqrt(2 / pi) * (x + 0.044715 x^3))) / 2`, as `x / (1 + e^-u)` with u in two
/// parts: rounded to one f32, it would cost 50 ulp far to the left. Within 4 ulp.
#[inline(always)]
pub(crate) fn gelu_tanh<S: Simd>(x: S::V) -> S::V {
    /// `2 sqrt(2 / pi)` and its remainder.
    const FACTOR: [f32; 2] = [1.595_769_2, -4.534_068e-8];
    /// 0.044715 and its remainder.
    const CUBIC: [f32; 2] = [0.044_715, 1.546_144_4e-9];
    // Beyond, the result is x or 0, and u stays finite.
    let limit = S::splat(15.0);
    let magnitude = S::copysign(x, S::splat(1.0));
    let y = S::copysign(S::select_less(magnitude, limit, magnitude, limit), x);
    let (square, square_rest) = product::<S>(y, y);
    let inner = S::fma(S::splat(CUBIC[0]), square, S::splat(1.0));
    let rest = S::fma(S::splat(CUBIC[0]), square, S::sub(S::splat(1.0), inner));
    let rest = S::fma(S::splat(CUBIC[1]), square, rest);
    let inner_rest = S::fma(S::splat(CUBIC[0]), square_rest, rest);
    let (outer, outer_rest) = product::<S>(S::splat(FACTOR[0]), y);
    let outer_rest = S::fma(S::splat(FACTOR[1]), y, outer_rest);
    let (u, u_rest) = product::<S>(outer, inner);
    let u_rest = S::fma(outer, inner_rest, S::fma(outer_rest, inner, u_rest));
    x_times_sigmoid::<S>(x, u, u_rest)
}

/// `x * (1 + erf(x / sqrt 2)) / 2`, from the tail of the normal distribution,
/// `e^(-x^2 / 2) * t * series(t)` with `t = 1 / (1 + |x| / 4)`, the series interpolated at
/// Chebyshev's points for |x| up to 13.4. Within 7 ulp also far to the left, where `1 + erf` would
/// cancel.
#[inline(always)]
pub(crate) fn gelu<S: Simd>(x: S::V) -> S::V {
    let (zero, one) = (S::splat(0.0), S::splat(1.0));
    // Beyond, the result is x or 0.
    let limit = S::splat(14.8);
    let magnitude = S::copysign(x, one);
    let magnitude = S::select_less(magnitude, limit, magnitude, limit);
    let t = S::div(one, S::fma(S::splat(0.25), magnitude, one));
    let series = polynomial::<S>(
        t,
        &[
            0.016_430_568,
            -0.061_918_106,
            0.049_423_747,
            0.031_673_364,
            0.009_764_512,
            0.088_397_026,
            0.071_334_49,
            0.095_673_96,
            0.099_471_31,
            0.099_749_126,
        ],
    );
    let (square, rest) = product::<S>(S::mul(S::splat(0.5), magnitude), magnitude);
    let [fraction, low, high] = exp_scaled::<S>(negative::<S>(square));
    let fraction = S::fma(negative::<S>(rest), fraction, fraction);
    let fraction = S::mul(S::mul(t, series), fraction);
    let on_the_left = S::mul(S::mul(S::mul(negative::<S>(magnitude), fraction), low), high);
    let tail = S::mul(S::mul(fraction, low), high);
    S::select_less(x, zero, on_the_left, S::mul(x, S::sub(one, tail)))
}

/// `x / (1 + e^-(u + rest))` for u of the sign of x and a rest far smaller. Only the last product
/// can leave the range of normal numbers.
#[inline(always)]
fn x_times_sigmoid<S: Simd>(x: S::V, u: S::V, rest: S::V) -> S::V {
    let (zero, one) = (S::splat(0.0), S::splat(1.0));
    let down = S::copysign(u, S::splat(-1.0));
    let rest = S::select_less(u, zero, rest, negative::<S>(rest));
    let [fraction, low, high] = exp_scaled::<S>(down);
    let fraction = S::fma(rest, fraction, fraction);
    let small = S::mul(S::mul(fraction, low), high);
    // Further down the exponential does not go, and the product is 0.
    let left = S::select_less(x, S::splat(-110.0), S::splat(-110.0), x);
    let left = S::mul(S::mul(S::mul(left, fraction), low), high);
    S::div(S::select_less(x, zero, left, x), S::add(one, small))
}

/// `a * b`, and what its rounding lost; the latter is exact where there is a fused multiply-add.
#[inline(always)]
fn product<S: Simd>(a: S::V, b: S::V) -> (S::V, S::V) {
    let product = S::mul(a, b);
    (product, S::fma(a, b, negative::<S>(product)))
}

#[inline(always)]
fn negative<S: Simd>(x: S::V) -> S::V {
    S::mul(x, S::splat(-1.0))
}

/// Horner's scheme, the coefficient of the highest power first.
#[inline(always)]
fn polynomial<S: Simd>(x: S::V, coefficients: &[f32]) -> S::V {
    let mut sum = S::splat(coefficients[0]);
    for coefficient in &coefficients[1..] {
        sum = S::fma(sum, x, S::splat(*coefficient));
    }
    sum
}

/// `e^x = fraction * low * high`, the last two powers of two, x clamped to -110 .. 90. Products are
/// to be taken from the left: only the last one can leave the range of normal numbers.
#[inline(always)]
fn exp_scaled<S: Simd>(x: S::V) -> [S::V; 3] {
    // Comparisons that are false for NaN, which therefore passes through.
    let x = S::select_less(x, S::splat(-110.0), S::splat(-110.0), x);
    let x = S::select_less(S::splat(90.0), x, S::splat(90.0), x);
    let (fraction, exponent, _) = exp_parts::<S>(x);
    let round = S::splat(ROUND);
    let low = S::fma(exponent, S::splat(0.5), round);
    let high = S::add(S::sub(exponent, S::sub(low, round)), round);
    [fraction, S::shift_to_exponent(low), S::shift_to_exponent(high)]
}

/// `e^x = fraction * 2^exponent`: those two and the power, if it is a normal number.
#[inline(always)]
fn exp_parts<S: Simd>(x: S::V) -> (S::V, S::V, S::V) {
    let round = S::splat(ROUND);
    let rounded = S::fma(x, S::splat(std::f32::consts::LOG2_E), round);
    let exponent = S::sub(rounded, round);
    // ln 2 in two parts, the first so short that its product with the exponent is exact (Cephes
    // `expf`).
    let rest = S::fma(exponent, S::splat(-0.693_359_4), x);
    let rest = S::fma(exponent, S::splat(2.121_944_4e-4), rest);
    let series = polynomial::<S>(
        rest,
        &[1.987_569_1e-4, 1.398_2e-3, 8.333_452e-3, 4.166_579_6e-2, 0.166_666_65, 0.5],
    );
    let fraction = S::add(S::fma(series, S::mul(rest, rest), rest), S::splat(1.0));
    (fraction, exponent, S::shift_to_exponent(rounded))
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::simd::Fused;

    fn lane(function: fn([f32; 16]) -> [f32; 16], x: f32) -> f32 {
        function([x; 16])[5]
    }

    /// Distance in units of the last place of the exact result.
    fn ulps(got: f32, exact: f64) -> f64 {
        let rounded = (exact as f32).abs().max(f32::MIN_POSITIVE);
        (f64::from(got) - exact).abs() / f64::from(rounded.next_up() - rounded)
    }

    fn largest_error(
        from: f32,
        to: f32,
        got: fn([f32; 16]) -> [f32; 16],
        exact: fn(f64) -> f64,
    ) -> f64 {
        (0..=200_000_u32)
            .map(|step| from + (to - from) * (step as f32 / 2e5))
            .map(|x| ulps(lane(got, x), exact(f64::from(x))))
            .fold(0.0, f64::max)
    }

    #[test]
    fn functions_stay_within_their_error_on_a_dense_grid() {
        assert!(largest_error(-87.3, 88.7, exp::<Fused>, f64::exp) <= 1.1);
        assert!(largest_error(-1.0, 1.0, exp::<Fused>, f64::exp) <= 1.1);
        assert!(largest_error(-12.0, 12.0, tanh::<Fused>, f64::tanh) <= 2.0);
        assert!(largest_error(-0.7, 0.7, tanh::<Fused>, f64::tanh) <= 2.0);
        let silu_exact = |x: f64| x / (1.0 + (-x).exp());
        assert!(largest_error(-87.0, 90.0, silu::<Fused>, silu_exact) <= 3.5);
        assert!(largest_error(-104.0, -87.0, silu::<Fused>, silu_exact) <= 3.5);
        assert!(largest_error(-6.0, 6.0, silu::<Fused>, silu_exact) <= 3.5);
        let tanh_form = |x: f64| {
            x / (1.0
                + (-2.0 * (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044_715 * x.powi(3))).exp())
        };
        assert!(largest_error(-6.0, 6.0, gelu_tanh::<Fused>, tanh_form) <= 4.0);
        assert!(largest_error(-14.0, 14.0, gelu::<Fused>, gelu_exact) <= 7.0);
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
        assert_eq!(lane(exp::<Fused>, f32::NEG_INFINITY), 0.0);
        assert_eq!(lane(exp_weight::<Fused>, f32::NEG_INFINITY), 0.0);
        assert_eq!(lane(exp::<Fused>, f32::INFINITY), f32::INFINITY);
        assert_eq!(lane(exp::<Fused>, 0.0), 1.0);
        assert_eq!(lane(exp_weight::<Fused>, 0.0), 1.0);
        assert_eq!(lane(tanh::<Fused>, f32::INFINITY), 1.0);
        assert_eq!(lane(tanh::<Fused>, f32::NEG_INFINITY), -1.0);
        let all = [exp::<Fused>, exp_weight::<Fused>, tanh::<Fused>];
        let activations = [silu::<Fused>, gelu::<Fused>, gelu_tanh::<Fused>];
        for function in all.into_iter().chain(activations) {
            assert!(lane(function, f32::NAN).is_nan());
        }
        for function in activations {
            assert_eq!(lane(function, 0.0), 0.0);
            assert_eq!(lane(function, 1e30), 1e30);
            assert_eq!(lane(function, f32::INFINITY), f32::INFINITY);
            assert!(lane(function, -1e30).abs() < 1e-30);
        }
    }
}
