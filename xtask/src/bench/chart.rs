//! The ratios as a picture, readable on light and dark.

use super::report::{Bar, number};
use std::fmt::Write;

/// Places across, in pixels: names, the plot, values.
const NAMES: f64 = 170.0;
const PLOT: f64 = 520.0;
const VALUES: f64 = 150.0;
const MARGIN: f64 = 16.0;
/// Of a line, and what is above the first.
const LINE: f64 = 20.0;
const TOP: f64 = 64.0;

/// The ends of the scale, at least, and at most: it grows with what is shown.
const FROM: [f64; 2] = [0.1, 0.01];
const TO: [f64; 2] = [4.0, 20.0];
/// Where it is marked.
const MARKS: [f64; 10] = [0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0];

/// Colours that differ in lightness too, on both grounds; what misses differs by its shape.
const STYLE: &str = "\
text{font:13px system-ui,sans-serif;fill:#1f2328}\
.title{font-size:16px;font-weight:600}.head{font-weight:600}.small{font-size:11px;fill:#59636e}\
.ground{fill:#ffffff}.grid{stroke:#d1d9e0}.one{stroke:#1f2328;stroke-width:1.5}\
.range{stroke:#59636e;stroke-width:2}.limit{stroke:#0969da;stroke-width:3}\
.holds{fill:#1a7f37}.missed{fill:#d1242f}.note{fill:#59636e}\
@media(prefers-color-scheme:dark){text{fill:#f0f6fc}.small{fill:#9198a1}.ground{fill:#0d1117}\
.grid{stroke:#3d444d}.one{stroke:#f0f6fc}.range{stroke:#9198a1}.limit{stroke:#4493f8}\
.holds{fill:#3fb950}.missed{fill:#f85149}.note{fill:#9198a1}}";

/// A logarithmic scale.
struct Scale {
    from: f64,
    to: f64,
}

impl Scale {
    fn of(bars: &[&Bar]) -> Self {
        let ends = bars.iter().flat_map(|b| {
            let e = b.estimate;
            [e.map(|e| e.low), e.map(|e| e.high), b.limit]
        });
        let ends = ends.flatten().filter(|v| *v > 0.0 && v.is_finite());
        let (from, to) = ends.fold((FROM[0], TO[0]), |(from, to), v| {
            (f64::min(from, v), f64::max(to, v))
        });
        Self {
            from: from.max(FROM[1]) / 1.15,
            to: to.min(TO[1]) * 1.15,
        }
    }

    /// How far to the right a value is.
    fn at(&self, value: f64) -> f64 {
        let value = value.clamp(self.from, self.to);
        let share = (value / self.from).ln() / (self.to / self.from).ln();
        MARGIN + NAMES + PLOT * share
    }
}

/// Draws those bars that are ratios of pairs.
pub(crate) fn svg(bars: &[Bar]) -> String {
    let shown: Vec<&Bar> = bars
        .iter()
        .filter(|b| b.estimate.is_some() && b.pass.is_some())
        .collect();
    let mut svg = String::new();
    // Writing to a string doesn't fail.
    let _ = draw(&mut svg, &shown);
    svg
}

fn draw(svg: &mut String, bars: &[&Bar]) -> std::fmt::Result {
    let scale = Scale::of(bars);
    let mut lines = Vec::new();
    for bar in bars {
        let new = lines
            .last()
            .is_none_or(|last: &(Option<&str>, &Bar)| last.1.section != bar.section);
        if new {
            lines.push((Some(bar.section.as_str()), *bar));
        }
        lines.push((None, *bar));
    }
    let mut height = TOP;
    height += lines.iter().map(|_| LINE).sum::<f64>();
    let (bottom, width) = (height, NAMES + PLOT + VALUES + 2.0 * MARGIN);
    height += 2.0 * LINE;
    writeln!(
        svg,
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" width=\"{width}\" \
         height=\"{height}\" role=\"img\" aria-labelledby=\"title\">\n\
         <title id=\"title\">slicer's time over that of the same thing by hand</title>\n\
         <style>{STYLE}</style>\n\
         <rect class=\"ground\" width=\"{width}\" height=\"{height}\" rx=\"6\"/>\n\
         <text class=\"title\" x=\"{MARGIN}\" y=\"26\">slicer's time over that of the same thing by \
         hand</text>\n\
         <text class=\"small\" x=\"{MARGIN}\" y=\"44\">Left of 1 is faster. Point: median of pairs; bar: \
         95 % interval; blue: the most that is allowed; diamond: missed.</text>"
    )?;
    for mark in MARKS
        .into_iter()
        .filter(|m| (scale.from..scale.to).contains(m))
    {
        let (x, class) = (
            scale.at(mark),
            if mark.to_bits() == 1f64.to_bits() {
                "one"
            } else {
                "grid"
            },
        );
        writeln!(
            svg,
            "<line class=\"{class}\" x1=\"{x:.1}\" y1=\"{TOP}\" x2=\"{x:.1}\" y2=\"{bottom}\"/>\n\
             <text class=\"small\" x=\"{x:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{mark}</text>",
            bottom + 15.0
        )?;
    }
    let mut y = TOP;
    for (section, bar) in lines {
        y += LINE;
        match section {
            Some(section) => writeln!(
                svg,
                "<text class=\"head\" x=\"{MARGIN}\" y=\"{:.1}\">{}</text>",
                y - 4.0,
                escaped(section)
            )?,
            None => line(svg, &scale, bar, y)?,
        }
    }
    writeln!(svg, "</svg>")
}

fn line(svg: &mut String, scale: &Scale, bar: &Bar, y: f64) -> std::fmt::Result {
    let Some(e) = bar.estimate else {
        return Ok(());
    };
    let middle = y - LINE / 2.0;
    let missed = bar.pass == Some(false);
    writeln!(
        svg,
        "<text x=\"{:.1}\" y=\"{:.1}\">{}</text>",
        MARGIN + 10.0,
        middle + 4.5,
        escaped(&bar.name)
    )?;
    if let Some(limit) = bar.limit {
        let x = scale.at(limit);
        writeln!(
            svg,
            "<line class=\"limit\" x1=\"{x:.1}\" y1=\"{:.1}\" x2=\"{x:.1}\" y2=\"{:.1}\"/>",
            middle - 8.0,
            middle + 8.0
        )?;
    }
    let (from, to, x) = (scale.at(e.low), scale.at(e.high), scale.at(e.median));
    writeln!(
        svg,
        "<line class=\"range\" x1=\"{from:.1}\" y1=\"{middle:.1}\" x2=\"{to:.1}\" y2=\"{middle:.1}\"/>"
    )?;
    if missed {
        writeln!(
            svg,
            "<path class=\"missed\" d=\"M{x:.1} {:.1}l6 6l-6 6l-6-6z\"/>",
            middle - 6.0
        )?;
    } else {
        writeln!(
            svg,
            "<circle class=\"holds\" cx=\"{x:.1}\" cy=\"{middle:.1}\" r=\"4.5\"/>"
        )?;
    }
    let limit = bar.limit.map(|l| format!("of {l}")).unwrap_or_default();
    writeln!(
        svg,
        "<text x=\"{:.1}\" y=\"{:.1}\">{}<tspan class=\"small\" dx=\"6\">{limit}{}</tspan></text>",
        MARGIN + NAMES + PLOT + 14.0,
        middle + 4.5,
        number(e.median),
        if missed { " missed" } else { "" }
    )
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;")
}
