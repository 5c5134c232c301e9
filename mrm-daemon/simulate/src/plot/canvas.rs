//! Axes and ink.

use std::fmt::Write as _;

/// Colours that the colour-blind tell apart (Okabe and Ito 2008), then the same with dashes.
const COLOURS: [&str; 8] = [
    "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000", "#8c6d31",
];
const DASHES: [&str; 3] = ["none", "6 3", "2 3"];
const TICKS: f64 = 6.0;

/// The colour and the dashes of one of many.
pub(super) fn colour(place: usize) -> (&'static str, &'static str) {
    let dashes = DASHES[place / COLOURS.len() % DASHES.len()];
    (COLOURS[place % COLOURS.len()], dashes)
}

/// Text that stands for itself.
pub(super) fn escape(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => safe.push_str("&amp;"),
            '<' => safe.push_str("&lt;"),
            '>' => safe.push_str("&gt;"),
            '"' => safe.push_str("&quot;"),
            // Nothing else may stand in XML 1.0.
            c if c.is_control() => safe.push('\u{fffd}'),
            c => safe.push(c),
        }
    }
    safe
}

/// From 0 to a round number that nothing exceeds.
pub(super) struct Scale {
    pub(super) most: f64,
    pub(super) step: f64,
    from: f64,
    to: f64,
}

impl Scale {
    pub(super) fn new(most: f64, from: f64, to: f64) -> Self {
        let most = if most > 0.0 && most.is_finite() {
            most
        } else {
            1.0
        };
        let rough = most / TICKS;
        let power = 10f64.powf(rough.log10().floor());
        let round = [1.0, 2.0, 2.5, 5.0, 10.0];
        let step = round.into_iter().find(|round| round * power >= rough);
        let step = step.unwrap_or(10.0) * power;
        Self {
            most: (most / step - 1e-9).ceil() * step,
            step,
            from,
            to,
        }
    }

    pub(super) fn at(&self, value: f64) -> f64 {
        self.from + (self.to - self.from) * (value / self.most)
    }

    fn ticks(&self) -> impl Iterator<Item = f64> {
        let count = (self.most / self.step).round() as u32;
        (0..=count).map(|tick| f64::from(tick) * self.step)
    }
}

/// An SVG under construction.
pub(super) struct Canvas {
    text: String,
}

impl Canvas {
    pub(super) fn new(width: f64, height: f64, title: &str) -> Self {
        let title = escape(title);
        let mut text = String::new();
        let _ = writeln!(
            text,
            r#"<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}" font-family="sans-serif" font-size="12">"#
        );
        let _ = writeln!(text, "<title>{title}</title>");
        let _ = writeln!(
            text,
            r##"<rect width="{width}" height="{height}" fill="#ffffff"/>"##
        );
        let _ = writeln!(
            text,
            r#"<text x="{}" y="22" font-size="15">{title}</text>"#,
            20
        );
        Self { text }
    }

    pub(super) fn add(&mut self, element: &str) {
        self.text.push_str(element);
        self.text.push('\n');
    }

    /// Lines at round numbers, and what they are.
    pub(super) fn axes(&mut self, x: &Scale, y: &Scale, (x_name, y_name): (&str, &str)) {
        for tick in x.ticks() {
            self.rule((x.at(tick), y.from), (x.at(tick), y.to));
            self.label((x.at(tick), y.from + 16.0), "middle", &number(tick));
        }
        for tick in y.ticks() {
            self.rule((x.from, y.at(tick)), (x.to, y.at(tick)));
            self.label((x.from - 6.0, y.at(tick) + 4.0), "end", &number(tick));
        }
        self.label(
            (f64::midpoint(x.from, x.to), y.from + 36.0),
            "middle",
            x_name,
        );
        self.label((x.from - 6.0, y.to - 8.0), "start", y_name);
    }

    fn rule(&mut self, from: (f64, f64), to: (f64, f64)) {
        self.add(&format!(
            r##"<line x1="{:.1}" y1="{:.1}" x2="{:.1}" y2="{:.1}" stroke="#dddddd"/>"##,
            from.0, from.1, to.0, to.1
        ));
    }

    pub(super) fn label(&mut self, at: (f64, f64), anchor: &str, text: &str) {
        self.add(&format!(
            r#"<text x="{:.1}" y="{:.1}" text-anchor="{anchor}">{}</text>"#,
            at.0,
            at.1,
            escape(text)
        ));
    }

    pub(super) fn done(mut self) -> String {
        self.text.push_str("</svg>\n");
        self.text
    }
}

/// A round number without the noise of its sum.
fn number(value: f64) -> String {
    let text = format!("{value:.6}");
    let text = text.trim_end_matches('0').trim_end_matches('.');
    if text.is_empty() {
        "0".to_owned()
    } else {
        text.to_owned()
    }
}
