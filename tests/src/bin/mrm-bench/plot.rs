//! Bars for people: how much more than its floor each case takes.

use crate::report::Row;
use std::fmt::Write as _;

const BAR: f64 = 18.0;
const TEXT_WIDTH: f64 = 430.0;
const PLOT_WIDTH: f64 = 420.0;
const TOP: f64 = 34.0;

/// A bar for each row, as long as the logarithm of its ratio, with a line where its limit is.
pub(crate) fn ratios(rows: &[Row]) -> String {
    let shown: Vec<&Row> = rows
        .iter()
        .filter(|row| row.ratio.is_finite() && row.ratio > 0.0)
        .collect();
    let ends = shown
        .iter()
        .flat_map(|row| [row.ratio, row.limit.unwrap_or(1.0)]);
    let (mut low, mut high) = (0.5_f64, 2.0_f64);
    for end in ends {
        low = low.min(end);
        high = high.max(end);
    }
    let (low, high) = (low.log2().floor(), high.log2().ceil());
    let at = |ratio: f64| TEXT_WIDTH + (ratio.log2() - low) / (high - low) * PLOT_WIDTH;
    let width = TEXT_WIDTH + PLOT_WIDTH + 70.0;
    let height = TOP + BAR * shown.len() as f64 + 10.0;
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" \
         font-family=\"sans-serif\" font-size=\"11\">\n\
         <rect width=\"{width}\" height=\"{height}\" fill=\"#ffffff\"/>\n\
         <text x=\"8\" y=\"14\">times what it is compared with (logarithmic); less is better</text>\n"
    );
    let step = ((high - low) / 8.0).ceil().max(1.0);
    let mut exponent = low;
    while exponent <= high {
        let x = at(exponent.exp2());
        let ink = if exponent == 0.0 {
            "#555555"
        } else {
            "#dddddd"
        };
        let _ = writeln!(
            out,
            "<line x1=\"{x:.1}\" y1=\"{TOP}\" x2=\"{x:.1}\" y2=\"{:.1}\" stroke=\"{ink}\"/>\
             <text x=\"{x:.1}\" y=\"{:.1}\" text-anchor=\"middle\" fill=\"#555555\">{}</text>",
            height - 8.0,
            TOP - 6.0,
            exponent.exp2(),
        );
        exponent += step;
    }
    for (index, row) in shown.iter().enumerate() {
        out += &bar(row, TOP + BAR * index as f64, &at);
    }
    out + "</svg>\n"
}

fn bar(row: &Row, top: f64, at: &dyn Fn(f64) -> f64) -> String {
    let (zero, end) = (at(1.0), at(row.ratio));
    let (left, right) = (zero.min(end), zero.max(end));
    let ink = if row.holds() { "#4878a8" } else { "#c44e52" };
    let middle = top + BAR / 2.0 + 4.0;
    let mut out = String::new();
    let _ = writeln!(
        out,
        "<text x=\"{:.1}\" y=\"{middle:.1}\" text-anchor=\"end\">{}</text>\
         <rect x=\"{left:.1}\" y=\"{:.1}\" width=\"{:.1}\" height=\"{:.1}\" fill=\"{ink}\"/>\
         <text x=\"{:.1}\" y=\"{middle:.1}\">{:.2}</text>",
        TEXT_WIDTH - 8.0,
        escaped(&format!("{} / {}", row.case, row.floor)),
        top + 3.0,
        (right - left).max(1.0),
        BAR - 6.0,
        right + 4.0,
        row.ratio,
    );
    if let Some(limit) = row.limit {
        let x = at(limit);
        let _ = writeln!(
            out,
            "<line x1=\"{x:.1}\" y1=\"{top:.1}\" x2=\"{x:.1}\" y2=\"{:.1}\" stroke=\"#222222\" stroke-width=\"2\"/>",
            top + BAR,
        );
    }
    out
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plot_has_a_bar_and_a_limit_for_each_row() {
        let row = |limit| Row::of("b", "a < b", "us", &mut [3.0], "f", &mut [1.0], limit);
        let plot = ratios(&[row(Some(2.0)), row(None)]);
        assert_eq!(plot.matches("<rect").count(), 3);
        assert_eq!(plot.matches("stroke-width").count(), 1);
        assert!(plot.contains("a &lt; b / f") && !plot.contains("NaN"));
    }
}
