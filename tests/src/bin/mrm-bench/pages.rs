//! `mrm-bench report`: pages from what runs have measured.
//!
//! `tests/bench/results/NAME.json` is the last run of a benchmark that was kept, and
//! `tests/bench/notes/NAME.md` what is to be said of it. From both come `tests/bench/README.md`, a
//! plot for each, and the section of the project's README between its two marks.

use crate::plot;
use crate::report::{Row, figure};
use crate::results::Results;
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

const PAGES: &str = "tests/bench";
const BEGIN: &str = "<!-- figures: written by scripts/bench report -->\n";
const END: &str = "<!-- end of figures -->\n";

/// Every file that the report consists of, with its text.
pub(crate) fn render(root: &Path) -> BTreeMap<PathBuf, String> {
    let pages = root.join(PAGES);
    let mut files = BTreeMap::new();
    let mut page = String::from(
        "# What mrm costs, beside what nothing could do without\n\n\
         Written by `scripts/bench report` from `results`, the last run of each benchmark that\n\
         was kept (`scripts/bench NAME --keep`): raw values, machine and commit are there. Each case is\n\
         measured in turn with its floor in one run, because such machines are noisy: a ratio says\n\
         more than a time. The bar is the ratio of the medians, the line across it the limit.\n",
    );
    let mut summary = String::new();
    for name in names(&pages) {
        let results = Results::read(&pages.join(format!("results/{name}.json")));
        let plot = plot::ratios(&results.rows);
        files.insert(pages.join(format!("plots/{name}.svg")), plot);
        page += &section(&name, &results, &pages);
        summary += &shortened(&name, &results);
    }
    files.insert(pages.join("README.md"), page);
    let readme = root.join("README.md");
    let text = fs::read_to_string(&readme).expect("is there");
    files.insert(readme, replaced(&text, &summary));
    files
}

/// Writes them.
pub(crate) fn write(root: &Path) {
    for (path, text) in render(root) {
        fs::create_dir_all(path.parent().expect("in a directory")).expect("a directory");
        fs::write(&path, text).expect("writes");
        println!("{}", path.strip_prefix(root).unwrap_or(&path).display());
    }
}

fn names(pages: &Path) -> Vec<String> {
    let Ok(entries) = fs::read_dir(pages.join("results")) else {
        return Vec::new();
    };
    let mut names: Vec<String> = entries
        .map(|entry| entry.expect("listed").path())
        .filter(|path| path.extension().is_some_and(|it| it == "json"))
        .filter_map(|path| Some(path.file_stem()?.to_str()?.to_owned()))
        .collect();
    names.sort();
    names
}

fn section(name: &str, results: &Results, pages: &Path) -> String {
    let machine = &results.machine;
    let mut out = format!("\n## {name}\n\n");
    let _ = writeln!(
        out,
        "{}, commit {}: {}, {} cores, {} GiB, Linux {}, `shmem_enabled` {}; load average {:.1} before, {:.1} after.\n",
        results.day(),
        results.commit,
        machine.processor,
        machine.cores,
        machine.memory_bytes >> 30,
        machine.kernel,
        machine.shmem_huge_pages,
        results.load_average[0],
        results.load_average[1],
    );
    let _ = writeln!(out, "![{name}](plots/{name}.svg)\n");
    out += "| case | unit | n | p50 | min | max | p99 | against | its p50 | ratio | limit |\n";
    out += "|---|---|---:|---:|---:|---:|---:|---|---:|---:|---:|\n";
    for row in &results.rows {
        let _ = writeln!(
            out,
            "| {} | {} | {} | {} | {} | {} | {} | {} | {} | {} | {} |",
            cell(&row.case),
            row.unit,
            row.n,
            figure(row.p50),
            figure(row.min),
            figure(row.max),
            figure(row.p99),
            cell(&row.floor),
            figure(row.floor_p50),
            ratio(row),
            limit(row),
        );
    }
    if let Ok(note) = fs::read_to_string(pages.join(format!("notes/{name}.md"))) {
        let _ = write!(out, "\n{}\n", note.trim_end());
    }
    out
}

/// What has a limit, a line each; a line for all that differ by no more than the model.
fn shortened(name: &str, results: &Results) -> String {
    let limited = results.rows.iter().filter(|row| row.limit.is_some());
    let limited: Vec<&Row> = limited.collect();
    let mut out = String::new();
    let mut summed_up: Vec<&str> = Vec::new();
    for row in &limited {
        let alike: Vec<&Row> = match kind(row) {
            Some(kind) if summed_up.contains(&kind) => continue,
            Some(_) => limited
                .iter()
                .copied()
                .filter(|other| kind(other) == kind(row))
                .collect(),
            None => Vec::new(),
        };
        match kind(row) {
            Some(kind) if alike.len() > 1 => {
                summed_up.push(kind);
                out += &sum(name, kind, &alike);
            }
            Some(_) | None => {
                let _ = writeln!(
                    out,
                    "| {name} | {} | {} {} | {} | {} | {} |",
                    cell(&row.case),
                    figure(row.p50),
                    row.unit,
                    cell(&row.floor),
                    ratio(row),
                    limit(row),
                );
            }
        }
    }
    out
}

/// What a case is that is measured of several models: `MODEL: what`.
fn kind(row: &Row) -> Option<&str> {
    row.case.split_once(": ").map(|(_, what)| what)
}

fn sum(name: &str, kind: &str, alike: &[&Row]) -> String {
    let mean = alike.iter().map(|row| row.ratio.ln()).sum::<f64>() / alike.len() as f64;
    let over = alike.iter().filter(|row| !row.holds()).count();
    let over = match over {
        0 => String::new(),
        over => format!("; **{over} over**"),
    };
    let (models, floor) = (alike.len(), cell(&alike[0].floor));
    format!(
        "| {name} | {}, {models} models | | {floor} | {:.2} in the geometric mean{over} | {} |\n",
        cell(kind),
        mean.exp(),
        limit(alike[0]),
    )
}

fn ratio(row: &Row) -> String {
    let mark = if row.holds() { "" } else { " **over**" };
    format!("{:.2}{mark}", row.ratio)
}

fn limit(row: &Row) -> String {
    row.limit
        .map_or_else(String::new, |limit| format!("{limit:.2}"))
}

fn cell(text: &str) -> String {
    text.replace('|', "\\|")
}

fn replaced(readme: &str, summary: &str) -> String {
    let (before, rest) = readme.split_once(BEGIN).expect("the first mark");
    let (_, after) = rest.split_once(END).expect("the second mark");
    let head = "| bench | case | p50 | against | ratio | limit |\n|---|---|---:|---|---:|---:|\n";
    let none = "No run of this state of the code has been kept yet.\n";
    let table = if summary.is_empty() { none } else { head };
    format!("{before}{BEGIN}{table}{summary}{END}{after}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_are_what_the_results_say() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
        for (path, text) in render(&root) {
            let there = fs::read_to_string(&path).unwrap_or_default();
            assert_eq!(
                there,
                text,
                "{} is out of step: run scripts/bench report",
                path.display()
            );
        }
    }

    #[test]
    fn a_figure_over_its_limit_is_marked() {
        let mut row = Row::of("b", "c", "us", &mut [3.0], "f", &mut [1.0], Some(2.0));
        assert_eq!(ratio(&row), "3.00 **over**");
        row.limit = None;
        assert_eq!(ratio(&row), "3.00");
    }
}
