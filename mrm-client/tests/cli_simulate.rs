//! `mrm simulate`: what it prints, draws and refuses.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests"
)]

mod cli_support;

use cli_support::mrm;
use serde_json::Value;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Output;

const TRACE: &str = "t_s,model\n0,a\n10,b\n20,a\n30,c\n40,b\n50,a\n";
const MODELS: &str = "model,bytes,load_s,exec_s\na,10,1,1\nb,10,2,1\nc,10,4,1\n";

struct Files {
    dir: tempfile::TempDir,
}

impl Files {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("trace.csv"), TRACE).unwrap();
        fs::write(dir.path().join("models.csv"), MODELS).unwrap();
        Self { dir }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn run(&self, more: &[&str]) -> Output {
        let (trace, models) = (self.path("trace.csv"), self.path("models.csv"));
        let own = [
            "simulate",
            "--trace",
            text(&trace),
            "--models",
            text(&models),
        ];
        mrm(&[&own, more].concat()).output().unwrap()
    }
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

#[test]
fn json_is_a_list_of_rows() {
    let output = Files::new().run(&["--policy", "lru,belady", "--cache", "20B,30B", "--json"]);
    assert!(output.status.success(), "{}", stderr(&output));
    let rows: Value = serde_json::from_slice(&output.stdout).unwrap();
    let rows = rows.as_array().unwrap();
    let of = |row: &Value| (row["policy"].clone(), row["cache"].clone());
    let names: Vec<(Value, Value)> = rows.iter().map(of).collect();
    let expected = [
        ("lru", "20B"),
        ("lru", "30B"),
        ("belady", "20B"),
        ("belady", "30B"),
    ];
    assert_eq!(
        names,
        expected.map(|(policy, cache)| (policy.into(), cache.into()))
    );
    assert_eq!(rows[0]["total_load_seconds"], 10.0);
    assert_eq!(rows[0]["load_over_exec"], 10.0 / 6.0);
    assert_eq!(rows[0]["gap_closed"], 0.0);
    assert!(rows[1]["gap_closed"].is_null());
}

#[test]
fn a_table_has_a_line_for_each() {
    let output = Files::new().run(&["--policy", "lru,random,seed=3,gc", "--cache", "20B"]);
    let table = stdout(&output);
    assert!(table.starts_with("POLICY"), "{table}");
    assert!(
        table.lines().nth(2).unwrap().starts_with("random,seed=3"),
        "{table}"
    );
    assert_eq!(table.lines().count(), 4, "{table}");
    assert!(table.contains("83.3 %"), "{table}");
}

#[test]
fn pictures_are_drawn() {
    let files = Files::new();
    let plots = files.path("plots/of the day");
    let output = files.run(&[
        "--policy",
        "lru,gc",
        "--cache",
        "20B",
        "--plot",
        text(&plots),
    ]);
    assert!(output.status.success(), "{}", stderr(&output));
    for name in [
        "delay.svg",
        "miss-ratio.svg",
        "residency-lru.svg",
        "residency-gc.svg",
    ] {
        let svg = fs::read_to_string(plots.join(name)).expect(name);
        assert!(
            svg.starts_with("<svg") && svg.ends_with("</svg>\n"),
            "{name}"
        );
    }
    assert!(
        stdout(&output).contains("4 pictures"),
        "{}",
        stdout(&output)
    );
}

#[test]
fn tiers_are_simulated_together() {
    let tiers = [
        "--tiers",
        "device=20B,host=30B",
        "--upload",
        "10B/s",
        "--policy",
        "lru",
    ];
    let output = Files::new().run(&[&tiers[..], &["--json"]].concat());
    assert!(output.status.success(), "{}", stderr(&output));
    let rows: Value = serde_json::from_slice(&output.stdout).unwrap();
    // From files 1, 2 and 4 s, from the host 1 s each for b and a.
    assert_eq!(rows[0]["total_load_seconds"], 9.0, "{rows}");
    assert_eq!(rows[0]["cache"], "device=20B,host=30B");
}

#[test]
fn what_never_fits_is_told_and_may_be_refused() {
    let files = Files::new();
    fs::write(files.path("models.csv"), MODELS.replace("c,10", "c,50")).unwrap();
    let output = files.run(&["--policy", "lru", "--cache", "20B"]);
    assert!(
        stderr(&output).contains("1 model will never fit"),
        "{}",
        stderr(&output)
    );
    let refuse = [
        "--policy",
        "lru",
        "--cache",
        "20B",
        "--refuse-oversize",
        "--json",
    ];
    let rows: Value = serde_json::from_slice(&files.run(&refuse).stdout).unwrap();
    assert_eq!(
        (&rows[0]["refused"], &rows[0]["requests"]),
        (&1.into(), &5.into())
    );
}

#[test]
fn mistakes_are_refused_with_the_way_out() {
    let files = Files::new();
    let refused = |more: &[&str], status: i32, words: &str| {
        let output = files.run(more);
        assert_eq!(
            output.status.code(),
            Some(status),
            "{more:?}: {}",
            stderr(&output)
        );
        assert!(
            stderr(&output).contains(words),
            "{more:?}: {}",
            stderr(&output)
        );
    };
    refused(&["--policy", "best"], 2, "no policy `best`");
    refused(&["--cache", "many"], 2, "5%..75%");
    refused(&["--tiers", "gpu=1GiB"], 2, "device=80GiB");
    refused(&["--from-daemon"], 2, "--trace");
    fs::write(files.path("trace.csv"), "t_s,model\n5,a\n4,a\n").unwrap();
    refused(&[], 2, "trace.csv:3: time goes back");
    fs::write(files.path("trace.csv"), "t_s,model\n5,a\n6,x\n").unwrap();
    refused(&[], 2, "--skip-unknown");
    assert!(
        files
            .run(&["--skip-unknown", "--cache", "20B"])
            .status
            .success()
    );
    assert!(files.run(&["--draw", "--cache", "20B"]).status.success());
    fs::remove_file(files.path("models.csv")).unwrap();
    refused(&[], 5, "models.csv");
    let trace = files.path("trace.csv");
    let output = mrm(&["simulate", "--trace", text(&trace)])
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert!(stderr(&output).contains("--models"), "{}", stderr(&output));
    let neither = mrm(&["simulate"]).output().unwrap();
    assert!(
        stderr(&neither).contains("--from-daemon"),
        "{}",
        stderr(&neither)
    );
}
