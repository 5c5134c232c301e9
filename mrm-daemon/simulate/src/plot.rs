//! Pictures as SVG: delay and miss ratio against memory, and what is resident when.
//!
//! ```
//! use mrm_simulate::plot::{Line, Lines};
//! let lines = Lines {
//!     title: "Mean delay".into(),
//!     x: "memory, % of all models".into(),
//!     y: "seconds".into(),
//!     lines: vec![Line { name: "gc".into(), points: vec![(5.0, 3.0), (10.0, 1.5)] }],
//! };
//! let svg = lines.svg();
//! assert!(svg.starts_with("<svg ") && svg.contains(">gc</text>"));
//! ```

mod canvas;
mod residency;

pub use residency::residency;

use crate::figures::Row;
use crate::size::{Extent, MemorySize};
use canvas::{Canvas, Scale, colour, escape};
use std::fmt::Write as _;

const WIDTH: f64 = 760.0;
const HEIGHT: f64 = 420.0;
const LEFT: f64 = 70.0;
const RIGHT: f64 = 190.0;
const TOP: f64 = 40.0;
const BOTTOM: f64 = 50.0;

/// One line of a picture.
#[derive(Debug, Clone, PartialEq)]
pub struct Line {
    /// What it is of.
    pub name: String,
    /// Its points.
    pub points: Vec<(f64, f64)>,
}

/// A picture of lines.
#[derive(Debug, Clone, PartialEq)]
pub struct Lines {
    /// What it shows.
    pub title: String,
    /// What its horizontal axis is, with its unit.
    pub x: String,
    /// What its vertical axis is, with its unit.
    pub y: String,
    /// The lines.
    pub lines: Vec<Line>,
}

impl Lines {
    /// The picture.
    #[must_use]
    pub fn svg(&self) -> String {
        let all = || self.lines.iter().flat_map(|line| line.points.iter());
        let finite = |value: &f64| value.is_finite();
        let most =
            |values: &mut dyn Iterator<Item = f64>| values.filter(finite).fold(0.0, f64::max);
        let x = Scale::new(most(&mut all().map(|point| point.0)), LEFT, WIDTH - RIGHT);
        let y = Scale::new(most(&mut all().map(|point| point.1)), HEIGHT - BOTTOM, TOP);
        let mut canvas = Canvas::new(WIDTH, HEIGHT, &self.title);
        canvas.axes(&x, &y, (&self.x, &self.y));
        for (place, line) in self.lines.iter().enumerate() {
            let (stroke, dash) = colour(place);
            let mut path = String::new();
            for (at, value) in line.points.iter().filter(|point| finite(&point.1)) {
                let _ = write!(path, "{:.1},{:.1} ", x.at(*at), y.at(*value));
            }
            canvas.add(&format!(
                r#"<polyline fill="none" stroke="{stroke}" stroke-width="2" stroke-dasharray="{dash}" points="{}"/>"#,
                path.trim_end()
            ));
            for (at, value) in line.points.iter().filter(|point| finite(&point.1)) {
                canvas.add(&format!(
                    r#"<circle cx="{:.1}" cy="{:.1}" r="2.5" fill="{stroke}"/>"#,
                    x.at(*at),
                    y.at(*value)
                ));
            }
            let top = TOP + 10.0 + 18.0 * place as f64;
            let left = WIDTH - RIGHT + 14.0;
            canvas.add(&format!(
                r#"<line x1="{left}" y1="{top}" x2="{}" y2="{top}" stroke="{stroke}" stroke-width="2" stroke-dasharray="{dash}"/>"#,
                left + 24.0
            ));
            canvas.add(&format!(
                r#"<text x="{}" y="{}">{}</text>"#,
                left + 30.0,
                top + 4.0,
                escape(&line.name)
            ));
        }
        canvas.done()
    }
}

/// The mean delay and the ratio of misses against memory, one line for each policy.
#[must_use]
pub fn against_memory(rows: &[Row], sizes: &[MemorySize]) -> [(&'static str, Lines); 2] {
    let shares = sizes
        .iter()
        .all(|size| matches!(size.host, Extent::Percent(_)) && size.device.is_none());
    let at = |row: &Row| {
        let size = sizes.iter().find(|size| size.label == row.cache);
        match size.map(|size| size.host) {
            Some(Extent::Percent(percent)) if shares => percent,
            Some(_) | None => row.cache_bytes as f64 / (1u64 << 30) as f64,
        }
    };
    let x = match shares {
        true => "memory, % of the bytes of all models",
        false => "memory, GiB",
    };
    let picture = |title: &str, y: &str, value: fn(&Row) -> f64| {
        let mut lines: Vec<Line> = Vec::new();
        for row in rows {
            let point = (at(row), value(row));
            match lines.iter_mut().find(|line| line.name == row.policy) {
                Some(line) => line.points.push(point),
                None => lines.push(Line {
                    name: row.policy.clone(),
                    points: vec![point],
                }),
            }
        }
        for line in &mut lines {
            line.points.sort_by(|a, b| a.0.total_cmp(&b.0));
        }
        Lines {
            title: title.to_owned(),
            x: x.to_owned(),
            y: y.to_owned(),
            lines,
        }
    };
    [
        (
            "delay.svg",
            picture("Mean delay of a request", "seconds", |row| row.mean_s),
        ),
        (
            "miss-ratio.svg",
            picture(
                "Requests that wait for a load",
                "share of requests",
                |row| row.object_miss_ratio,
            ),
        ),
    ]
}
