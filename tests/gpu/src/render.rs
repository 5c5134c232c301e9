//! Results as Markdown, which is also what is printed.

use crate::report::{Status, Step, Table};
use crate::suite::Results;
use serde_json::Value;
use std::fmt::Write as _;

/// One step: what was found, and why it did not pass.
pub(crate) fn step(step: &Step) -> String {
    let mut text = format!(
        "## {}: {} ({:.1} s)\n\n",
        step.name,
        status(step.status),
        step.seconds
    );
    for table in step
        .found
        .tables
        .iter()
        .filter(|table| !table.rows.is_empty())
    {
        text.push_str(&self::table(table));
    }
    let found = &step.found;
    let figures = found.figures.iter().map(|figure| {
        let sign = if figure.at_most { "<=" } else { ">=" };
        let verdict = match (figure.judged, figure.holds()) {
            (false, _) => "not judged",
            (true, true) => "holds",
            (true, false) => "DOES NOT HOLD",
        };
        format!(
            "figure: {}: {} (limit {sign} {}): {verdict}",
            figure.name,
            number(figure.value),
            figure.limit
        )
    });
    let checks = found.checks.iter().map(|check| {
        let verdict = if check.holds { "ok" } else { "FAILED" };
        format!("{verdict}: {} ({})", check.what, one_line(&check.detail))
    });
    let skipped = found
        .skipped
        .iter()
        .map(|skipped| format!("skipped: {}: {}", skipped.what, one_line(&skipped.why)));
    let lines: Vec<String> = figures.chain(checks).chain(skipped).collect();
    for line in &lines {
        let _ = writeln!(text, "- {line}");
    }
    if !lines.is_empty() {
        text.push('\n');
    }
    if let Some(error) = &step.error {
        let _ = writeln!(text, "```text\n{error}\n```\n");
    }
    text
}

/// The end of what is printed: one line a step, and the answers.
pub(crate) fn summary(results: &Results) -> String {
    let mut text = "## Summary\n\n".to_owned();
    for step in &results.steps {
        let (name, seconds) = (&step.name, step.seconds);
        let skipped = match step.found.skipped.len() {
            0 => String::new(),
            count => format!(", {count} things skipped"),
        };
        let _ = writeln!(
            text,
            "- {name}: {}, {seconds:.1} s{skipped}",
            status(step.status)
        );
        for broken in step.found.broken() {
            let _ = writeln!(text, "  - {}", one_line(&broken));
        }
    }
    text.push('\n');
    text + &answers(results)
}

/// The whole, for RESULTS.md.
pub(crate) fn document(results: &Results) -> String {
    let mut text = format!(
        "# {} on {}\n\nDriver {}, commit {}.\n\n",
        results.date, results.device, results.driver, results.commit
    );
    text.push_str("| fact | |\n|---|---|\n");
    for (name, value) in &results.facts {
        let _ = writeln!(text, "| {name} | {} |", one_line(value));
    }
    text.push('\n');
    text.push_str(&summary(results));
    for one in &results.steps {
        text.push_str(&step(one));
    }
    text
}

fn answers(results: &Results) -> String {
    let mut all: Vec<_> = results
        .steps
        .iter()
        .flat_map(|step| &step.found.answers)
        .collect();
    if all.is_empty() {
        return String::new();
    }
    all.sort_by_key(|answer| answer.question);
    let mut text = "## Open questions\n\n".to_owned();
    for answer in all {
        let _ = writeln!(text, "{}. {}", answer.question, one_line(&answer.text));
    }
    text.push('\n');
    text
}

fn table(table: &Table) -> String {
    let rows: Vec<Vec<String>> = table
        .rows
        .iter()
        .map(|row| row.iter().map(cell).collect())
        .collect();
    let width = |at: usize| {
        let cells = rows.iter().filter_map(|row| row.get(at));
        let widest = cells.map(|cell| cell.chars().count()).max().unwrap_or(0);
        widest
            .max(table.columns.get(at).map_or(0, |name| name.chars().count()))
            .max(3)
    };
    let widths: Vec<usize> = (0..table.columns.len()).map(width).collect();
    let line = |cells: &[String]| {
        let padded = cells
            .iter()
            .zip(&widths)
            .map(|(cell, width)| format!(" {cell:width$} |"));
        format!("|{}\n", padded.collect::<String>())
    };
    let rule: String = widths
        .iter()
        .map(|width| format!("{}|", "-".repeat(width + 2)))
        .collect();
    let body: String = rows.iter().map(|row| line(row)).collect();
    format!(
        "### {}\n\n{}|{rule}\n{body}\n",
        table.title,
        line(&table.columns)
    )
}

fn cell(value: &Value) -> String {
    match value {
        Value::Null => String::new(),
        Value::Number(value) => value.as_f64().map_or_else(|| value.to_string(), number),
        Value::String(text) => one_line(text),
        Value::Bool(_) | Value::Array(_) | Value::Object(_) => value.to_string(),
    }
}

/// Three digits that mean something.
fn number(value: f64) -> String {
    let digits = match value.abs() {
        size if size == 0.0 || size >= 100.0 || value.fract() == 0.0 => 0,
        size if size >= 10.0 => 1,
        size if size >= 1.0 => 2,
        _ => 3,
    };
    format!("{value:.digits$}")
}

/// So that it fits into a cell of a table.
fn one_line(text: &str) -> String {
    text.split_whitespace()
        .collect::<Vec<_>>()
        .join(" ")
        .replace('|', "\\|")
}

fn status(status: Status) -> &'static str {
    match status {
        Status::Passed => "passed",
        Status::Failed => "FAILED",
        Status::TimedOut => "TIMED OUT",
        Status::NotRun => "NOT RUN",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::Found;

    #[test]
    fn a_table_is_aligned_and_keeps_to_its_cells() {
        let table = Table {
            title: "T".to_owned(),
            columns: vec!["name".to_owned(), "us".to_owned()],
            rows: vec![
                vec!["a|b\nc".into(), 12.345.into()],
                vec![Value::Null, 1300.into()],
            ],
        };
        let text = super::table(&table);
        assert_eq!(
            text,
            "### T\n\n| name   | us   |\n|--------|------|\n| a\\|b c | 12.3 |\n|        | 1300 |\n\n"
        );
    }

    #[test]
    fn what_did_not_hold_is_loud() {
        let step = Step {
            name: "attach".to_owned(),
            status: Status::TimedOut,
            found: Found::default(),
            seconds: 1.0,
            error: Some("not done".to_owned()),
        };
        let text = super::step(&step);
        assert!(
            text.contains("attach: TIMED OUT") && text.contains("not done"),
            "{text}"
        );
    }
}
