//! Eight f32 side by side, the unit in which every kernel counts.

/// Lanes of a vector.
pub(crate) const LANES: usize = 8;

/// Eight numbers; operations are lane by lane, in IEEE f32, never fused.
#[derive(Clone, Copy)]
#[repr(align(32))]
pub(crate) struct Lanes(pub(crate) [f32; LANES]);

impl Lanes {
    /// The same number in every lane.
    #[inline(always)]
    pub(crate) fn splat(number: f32) -> Self {
        Self([number; LANES])
    }

    /// The first eight elements of `elements`.
    #[inline(always)]
    pub(crate) fn load(elements: &[f32]) -> Self {
        let mut lanes = [0.0; LANES];
        lanes.copy_from_slice(&elements[..LANES]);
        Self(lanes)
    }

    /// Writes the lanes to the first eight elements of `elements`.
    #[inline(always)]
    pub(crate) fn store(self, elements: &mut [f32]) {
        elements[..LANES].copy_from_slice(&self.0);
    }

    /// `self + a * b`, rounded twice.
    #[inline(always)]
    pub(crate) fn add_product(self, a: Self, b: Self) -> Self {
        lanes(|lane| self.0[lane] + a.0[lane] * b.0[lane])
    }

    /// `self + other`.
    #[inline(always)]
    pub(crate) fn add(self, other: Self) -> Self {
        lanes(|lane| self.0[lane] + other.0[lane])
    }

    /// `self * other`.
    #[inline(always)]
    pub(crate) fn mul(self, other: Self) -> Self {
        lanes(|lane| self.0[lane] * other.0[lane])
    }

    /// The larger of each pair; a NaN in `other` is passed over.
    #[inline(always)]
    pub(crate) fn max(self, other: Self) -> Self {
        lanes(|lane| if other.0[lane] > self.0[lane] { other.0[lane] } else { self.0[lane] })
    }

    /// The sum of the lanes, in the one order that all sums of this crate use.
    #[inline(always)]
    pub(crate) fn sum(self) -> f32 {
        let n = self.0;
        ((n[0] + n[4]) + (n[2] + n[6])) + ((n[1] + n[5]) + (n[3] + n[7]))
    }

    /// The largest lane.
    #[inline(always)]
    pub(crate) fn largest(self) -> f32 {
        let larger = |a: f32, b: f32| if b > a { b } else { a };
        let n = self.0;
        larger(
            larger(larger(n[0], n[4]), larger(n[2], n[6])),
            larger(larger(n[1], n[5]), larger(n[3], n[7])),
        )
    }
}

/// The sums of eight vectors, each as [`Lanes::sum`] has it.
#[inline(always)]
pub(crate) fn sum_each(vectors: &[Lanes; LANES]) -> Lanes {
    lanes(|lane| vectors[lane].sum())
}

/// One number per lane. A plain loop: closures behind `array::from_fn` are not always inlined.
#[inline(always)]
fn lanes(number: impl Fn(usize) -> f32) -> Lanes {
    let mut numbers = [0.0; LANES];
    let mut lane = 0;
    while lane < LANES {
        numbers[lane] = number(lane);
        lane += 1;
    }
    Lanes(numbers)
}
