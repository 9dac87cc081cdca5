//! The icon: a pie of which a slice is taken.

/// Width and height. A Mac shows it at half of that, in points.
pub(crate) const SIZE: u32 = 44;
/// Points in each direction by which an edge is smoothed.
const SAMPLES: u32 = 4;

/// RGBA of the icon in one colour; pale while no VM runs.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a share of 255"
)]
pub(crate) fn draw(colour: [u8; 3], lit: bool) -> Vec<u8> {
    let strength = if lit { 1.0 } else { 0.45 };
    let mut pixels = Vec::with_capacity((SIZE * SIZE * 4) as usize);
    for y in 0..SIZE {
        for x in 0..SIZE {
            pixels.extend(colour);
            pixels.push((255.0 * strength * coverage(x, y)).round() as u8);
        }
    }
    pixels
}

/// How much of a pixel the drawing covers.
fn coverage(x: u32, y: u32) -> f64 {
    let at = |pixel: u32, sample: u32| {
        let offset = (f64::from(sample) + 0.5) / f64::from(SAMPLES);
        (f64::from(pixel) + offset) / f64::from(SIZE)
    };
    let inside = (0..SAMPLES * SAMPLES)
        .filter(|n| covered(at(x, n % SAMPLES), at(y, n / SAMPLES)))
        .count();
    f64::from(u32::try_from(inside).unwrap_or(0)) / f64::from(SAMPLES * SAMPLES)
}

/// Whether the drawing covers a point of the unit square: the lower left three quarters of a disc, and the
/// upper right one, moved away.
fn covered(x: f64, y: f64) -> bool {
    let disc = |cx: f64, cy: f64| {
        let (dx, dy) = (x - cx, y - cy);
        (dx.hypot(dy) < 0.42).then_some((dx, dy))
    };
    let slice = |(dx, dy): (f64, f64)| dx > 0.0 && dy < 0.0;
    disc(0.45, 0.55).is_some_and(|d| !slice(d)) || disc(0.54, 0.46).is_some_and(slice)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_fills_its_square_and_leaves_a_cut() {
        let alpha = |pixels: &[u8], x: u32, y: u32| pixels[((y * SIZE + x) * 4 + 3) as usize];
        let lit = draw([1, 2, 3], true);
        assert_eq!(lit.len(), (SIZE * SIZE * 4) as usize);
        assert_eq!(lit[..3], [1, 2, 3]);
        assert_eq!(alpha(&lit, 0, 0), 0);
        assert_eq!(alpha(&lit, SIZE / 3, SIZE * 2 / 3), 255);
        assert_eq!(alpha(&lit, SIZE * 3 / 5, SIZE * 2 / 5), 255);
        // Between the slice and the rest.
        assert_eq!(alpha(&lit, SIZE / 2, SIZE / 5), 0);
        let pale = draw([1, 2, 3], false);
        assert_eq!(alpha(&pale, SIZE / 3, SIZE * 2 / 3), 115);
        // The edges are smooth.
        assert!(lit.chunks(4).any(|p| p[3] > 0 && p[3] < 255));
    }
}
