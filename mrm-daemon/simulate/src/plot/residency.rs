//! What is resident when.

use super::canvas::{Canvas, Scale, colour, escape};
use crate::study::Timeline;
use crate::workload::Workload;
use mrm_core::ledger::Tier;
use std::collections::BTreeMap;

/// Models that are shown: those that are asked for most.
const SHOWN_MAX: usize = 40;
const NAME_CHARS_MAX: usize = 26;
const ROW: f64 = 14.0;
const WIDTH: f64 = 900.0;
const LEFT: f64 = 200.0;
const RIGHT: f64 = 20.0;
const TOP: f64 = 54.0;
const BOTTOM: f64 = 50.0;
/// Bars nearer to each other than this are one.
const APART: f64 = 0.5;

/// A picture with a line for each of the models that are asked for most, and a bar for as long as
/// it was resident: thick in host memory, thin and of another colour on a device.
#[must_use]
pub fn residency(workload: &Workload, timeline: &Timeline) -> String {
    let shown = most_asked(workload);
    let height = TOP + ROW * shown.len() as f64 + BOTTOM;
    let ends = timeline.residents.iter().map(|one| one.to.0);
    let hours = ends.max().unwrap_or(0) as f64 / 3.6e9;
    let x = Scale::new(hours, LEFT, WIDTH - RIGHT);
    let y = Scale::new(1.0, height - BOTTOM, height - BOTTOM);
    let title = format!("Resident under {} at {}", timeline.policy, timeline.cache);
    let mut canvas = Canvas::new(WIDTH, height, &title);
    canvas.axes(&x, &y, ("hours", ""));
    let mut bars: BTreeMap<(usize, Tier), Vec<(f64, f64)>> = BTreeMap::new();
    for one in &timeline.residents {
        if let Some(row) = shown.iter().position(|model| *model == one.model) {
            let span = (one.from.0 as f64 / 3.6e9, one.to.0 as f64 / 3.6e9);
            bars.entry((row, one.tier)).or_default().push(span);
        }
    }
    for (row, model) in shown.iter().enumerate() {
        let name: String = workload.models[*model]
            .name
            .chars()
            .take(NAME_CHARS_MAX)
            .collect();
        canvas.label((LEFT - 8.0, TOP + ROW * row as f64 + 10.0), "end", &name);
    }
    for ((row, tier), mut spans) in bars {
        spans.sort_by(|a, b| a.0.total_cmp(&b.0));
        let (inset, thick, ink) = match tier {
            Tier::Host => (2.0, ROW - 4.0, colour(0).0),
            Tier::Device(_) => (5.0, ROW - 10.0, colour(1).0),
        };
        let top = TOP + ROW * row as f64 + inset;
        for (from, to) in merged(&spans, &x) {
            canvas.add(&format!(
                r#"<rect x="{from:.1}" y="{top:.1}" width="{:.1}" height="{thick:.1}" fill="{}"/>"#,
                (to - from).max(APART),
                escape(ink)
            ));
        }
    }
    canvas.done()
}

/// Those that are asked for most, the first of equals first.
fn most_asked(workload: &Workload) -> Vec<usize> {
    let mut counts: Vec<(u64, usize)> = (0..workload.models.len()).map(|at| (0, at)).collect();
    for request in &workload.requests {
        counts[request.model as usize].0 += 1;
    }
    counts.sort_by_key(|(count, at)| (std::cmp::Reverse(*count), *at));
    counts
        .into_iter()
        .take(SHOWN_MAX)
        .map(|(_, at)| at)
        .collect()
}

/// Spans on the picture, where those that nobody could tell apart are one.
fn merged(spans: &[(f64, f64)], x: &Scale) -> Vec<(f64, f64)> {
    let mut bars: Vec<(f64, f64)> = Vec::new();
    for (from, to) in spans {
        let (from, to) = (x.at(*from), x.at(*to));
        match bars.last_mut() {
            Some((_, end)) if from - *end < APART => *end = end.max(to),
            Some(_) | None => bars.push((from, to)),
        }
    }
    bars
}
