//! Medians, and how far to believe them.

use serde::{Deserialize, Serialize};

/// Resamples of a bootstrap: the ends of the interval then wobble by less than it is rounded to.
const RESAMPLES: usize = 4000;
/// Fixed, so that the same numbers always give the same interval.
const SEED: u64 = 0x51_1c_e2;

/// A median with its 95 % bootstrap interval (percentile method).
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub(crate) struct Estimate {
    /// The median of what was measured.
    pub(crate) median: f64,
    /// Where 2.5 % of the resampled medians are below.
    pub(crate) low: f64,
    /// Where 2.5 % of the resampled medians are above.
    pub(crate) high: f64,
    /// How many were measured.
    pub(crate) count: usize,
}

impl Estimate {
    /// Estimates from samples; all zero for none.
    pub(crate) fn of(samples: &[f64]) -> Self {
        let mut rng = fastrand::Rng::with_seed(SEED);
        let mut resampled = vec![0.0; samples.len()];
        let mut medians = Vec::with_capacity(RESAMPLES);
        if !samples.is_empty() {
            for _ in 0..RESAMPLES {
                resampled.fill_with(|| samples[rng.usize(..samples.len())]);
                medians.push(median(&resampled));
            }
        }
        Self {
            median: median(samples),
            low: quantile(&medians, 0.025),
            high: quantile(&medians, 0.975),
            count: samples.len(),
        }
    }

    /// Estimates the ratio of what was measured in pairs.
    pub(crate) fn of_ratios(over: &[f64], under: &[f64]) -> Self {
        let ratios: Vec<f64> = over.iter().zip(under).map(|(a, b)| a / b).collect();
        Self::of(&ratios)
    }
}

/// The middle of the samples; 0 for none.
pub(crate) fn median(samples: &[f64]) -> f64 {
    quantile(samples, 0.5)
}

/// The value a share of the samples is below, between two of them interpolated; 0 for none.
pub(crate) fn quantile(samples: &[f64], share: f64) -> f64 {
    let mut sorted = samples.to_vec();
    sorted.sort_by(f64::total_cmp);
    let Some(last) = sorted.len().checked_sub(1) else {
        return 0.0;
    };
    #[expect(
        clippy::cast_precision_loss,
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "an index into a few thousand samples"
    )]
    let (position, below) = {
        let position = share.clamp(0.0, 1.0) * last as f64;
        (position, position as usize)
    };
    let above = (below + 1).min(last);
    let part = position.fract();
    sorted[below] * (1.0 - part) + sorted[above] * part
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_interpolate() {
        let s = [4.0, 1.0, 3.0, 2.0];
        assert!((median(&s) - 2.5).abs() < 1e-9);
        assert!((quantile(&s, 0.0) - 1.0).abs() < 1e-9);
        assert!((quantile(&s, 1.0) - 4.0).abs() < 1e-9);
        assert!((quantile(&[7.0], 0.3) - 7.0).abs() < 1e-9);
        assert!(median(&[]).abs() < 1e-9);
    }

    #[test]
    fn the_interval_holds_the_median_and_is_repeatable() {
        let samples: Vec<f64> = (0..40).map(|n| 1.0 + f64::from(n % 7) / 10.0).collect();
        let e = Estimate::of(&samples);
        assert!(e.low <= e.median && e.median <= e.high, "{e:?}");
        assert!(e.low >= 1.0 && e.high <= 1.6, "{e:?}");
        assert_eq!(e, Estimate::of(&samples));
        assert_eq!(Estimate::of(&[]).count, 0);
    }

    #[test]
    fn ratios_are_of_pairs() {
        let e = Estimate::of_ratios(&[2.0, 30.0, 4.0], &[1.0, 10.0, 1.0]);
        assert!((e.median - 3.0).abs() < 1e-9);
    }
}
