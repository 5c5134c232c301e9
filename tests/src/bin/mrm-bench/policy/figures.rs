//! The runs, and what is promised of them.

use super::Figure;
use super::days::{Day, Days, redrawn};
use mrm_core::policy::Choice;
use mrm_simulate::contender::{Contender, Contenders};
use mrm_simulate::figures::Row;
use mrm_simulate::size::{Extent, Sizes};
use mrm_simulate::study::{Options, study};
use mrm_simulate::workload::Workload;
use std::collections::BTreeMap;

/// Percent of the bytes of all models, over which averages are taken.
const USUAL: [u32; 3] = [10, 20, 30];
/// Where nothing may be much worse than LRU.
const ALL: [u32; 6] = [5, 10, 20, 30, 50, 75];
/// Those that do not look at what a load takes.
const COST_BLIND: [&str; 5] = ["lru", "fifo", "lfu", "sieve", "s3-fifo"];
/// Models of a small node, and how many of them are drawn.
const SMALL_MODELS: usize = 60;
const SMALL_DRAWS: u64 = 3;
/// What the published policy is to reach of LRU's load seconds: `policies.md`, C1 and C2, percent.
const PUBLISHED: [(&str, f64); 2] = [("C1", 77.0), ("C2", 78.0)];
/// Over how many draws that is a mean; three of them are here.
const PUBLISHED_DRAWS: f64 = 5.0;
/// Draws that are made besides, to tell how much they differ.
const REDRAWN: u64 = 5;

/// By policy, catalogue, seed and size in percent.
type Rows = BTreeMap<(String, &'static str, u64, u32), Row>;

/// All runs.
pub(crate) struct Study {
    rows: Rows,
    /// The worst of the default against LRU, and where that is.
    worst: (f64, String),
    whole: bool,
    default: String,
    /// What the published policy loads in draws that are made besides, of LRU's, percent.
    redrawn: BTreeMap<&'static str, Vec<f64>>,
}

impl Study {
    pub(crate) fn of(days: &Days, judged: Choice) -> Self {
        let default = judged.to_string();
        let (lru, oracle) = (Contender::textbook_lru().label, "cremebrulee-oracle");
        let ahead = format!("{default}+prefetch");
        let mut rows = Rows::new();
        let mut worst = (0.0, String::new());
        for day in &days.days {
            let mut add = |names: &str, sizes: &[u32], prefetch: bool| {
                for row in runs(&day.workload, names, sizes, prefetch) {
                    let name = format!("{}{}", row.policy, if prefetch { "+prefetch" } else { "" });
                    let size = percent(&row);
                    rows.insert((name, day.catalogue, day.seed, size), row);
                }
            };
            add(&format!("{lru},{default}"), &ALL, false);
            add(&default, &ALL, true);
            add(oracle, &USUAL, false);
            add("random", &[10, 20, 30, 50], false);
            let mut others = vec!["gdsf", "cremebrulee", "belady"];
            others.extend(COST_BLIND);
            others.extend(
                ["gc", "mix", "lru"]
                    .into_iter()
                    .filter(|name| *name != default),
            );
            others.sort_unstable();
            others.dedup();
            add(&others.join(","), &USUAL, false);
            eprintln!("{} seed {}: done", day.catalogue, day.seed);
            let name = format!("{} seed {}", day.catalogue, day.seed);
            let mut pair = |name: &str, lru: &Row, own: &Row| {
                let ratio = own.total_load_seconds / lru.total_load_seconds;
                if ratio > worst.0 {
                    let with = if own.prefetch { ", with prefetch" } else { "" };
                    worst = (ratio, format!("{name}, {}{with}", own.cache));
                }
            };
            for size in ALL {
                let of = |policy: &str| &rows[&(policy.to_owned(), day.catalogue, day.seed, size)];
                pair(&name, of(&lru), of(&default));
                pair(&name, of(&lru), of(&ahead));
            }
            for (small, workload) in parts(day) {
                let lru = runs(&workload, &lru, &ALL, false);
                for prefetch in [false, true] {
                    let own = runs(&workload, &default, &ALL, prefetch);
                    for (lru, own) in lru.iter().zip(&own) {
                        pair(&format!("{name}, {small}"), lru, own);
                    }
                }
            }
        }
        Self {
            rows,
            worst,
            whole: days.whole,
            default,
            redrawn: published_elsewhere(days),
        }
    }

    fn row(&self, policy: &str, day: (&'static str, u64), size: u32) -> &Row {
        let key = (policy.to_owned(), day.0, day.1, size);
        self.rows
            .get(&key)
            .unwrap_or_else(|| panic!("no run {key:?}"))
    }

    fn load_s(&self, policy: &str, day: (&'static str, u64), size: u32) -> f64 {
        self.row(policy, day, size).total_load_seconds
    }

    /// The mean over seeds and usual sizes of what `value` makes of each.
    pub(crate) fn mean(
        &self,
        catalogue: &'static str,
        value: impl Fn((&'static str, u64), u32) -> f64,
    ) -> f64 {
        let all = (0..3).flat_map(|seed| USUAL.map(|size| ((catalogue, seed), size)));
        let values: Vec<f64> = all.map(|(day, size)| value(day, size)).collect();
        values.iter().sum::<f64>() / values.len() as f64
    }

    /// The share of the gap from LRU to the oracle that a policy closes, percent.
    pub(crate) fn gap(&self, catalogue: &'static str, policy: &str) -> f64 {
        let lru = Contender::textbook_lru().label;
        self.mean(catalogue, |day, size| {
            let (lru, oracle) = (
                self.load_s(&lru, day, size),
                self.load_s("cremebrulee-oracle", day, size),
            );
            100.0 * (lru - self.load_s(policy, day, size)) / (lru - oracle)
        })
    }

    /// Load seconds of one policy by those of another, percent.
    pub(crate) fn against(&self, catalogue: &'static str, policy: &str, other: &str) -> f64 {
        self.mean(catalogue, |day, size| {
            100.0 * self.load_s(policy, day, size) / self.load_s(other, day, size)
        })
    }

    /// The names of all policies that ran at the usual sizes.
    pub(crate) fn policies(&self) -> Vec<String> {
        let all = self
            .rows
            .keys()
            .filter(|key| key.1 == "C1" && key.2 == 0 && key.3 == 10);
        all.map(|key| key.0.clone()).collect()
    }

    pub(crate) fn default(&self) -> &str {
        &self.default
    }

    /// Every figure, as soon as it is known.
    pub(crate) fn figures(&self, told: &mut dyn FnMut(Figure)) {
        let mut judged = |figure: Figure| {
            told(if self.whole {
                figure
            } else {
                figure.unjudged()
            })
        };
        let lru = Contender::textbook_lru().label;
        let ahead = format!("{}+prefetch", self.default);
        let default = self.default.as_str();
        let check = self.load_s(&lru, ("C1", 0), 30);
        judged(Figure::info(
            "LRU, C1 seed 0, 30 %: load seconds",
            check,
            "s",
        ));
        judged(Figure::most(
            "  its distance from 74,981",
            100.0 * (check / 74_981.0 - 1.0).abs(),
            "%",
            0.5,
        ));
        let both = |value: &dyn Fn(&'static str) -> f64| f64::midpoint(value("C1"), value("C2"));
        for catalogue in ["C1", "C2"] {
            let what = format!("gap closed by {default}, {catalogue}");
            judged(Figure::info(what, self.gap(catalogue, default), "%"));
        }
        let gap = both(&|catalogue| self.gap(catalogue, default));
        judged(Figure::least(
            format!("gap closed by {default}, mean of C1 and C2"),
            gap,
            "%",
            72.0,
        ));
        let gap = both(&|catalogue| self.gap(catalogue, &ahead));
        judged(Figure::least("  the same with prefetch", gap, "%", 80.0));
        judged(Figure::least(
            "  share of prefetches used",
            self.used(&ahead),
            "%",
            75.0,
        ));
        let random = both(&|catalogue| self.against(catalogue, default, "random")) / 100.0;
        judged(Figure::most(
            format!("{default} against random"),
            random,
            "x",
            0.5,
        ));
        self.claims(&mut judged);
        for (catalogue, published) in PUBLISHED {
            let own = self.against(catalogue, "cremebrulee", &lru);
            judged(Figure::info(
                format!("cremebrulee against LRU, {catalogue}"),
                own,
                "%",
            ));
            judged(Figure::most(
                format!("  its distance from the {published} % of policies.md"),
                100.0 * (own / published - 1.0).abs(),
                "%",
                2.0,
            ));
            self.draws(catalogue, published, &mut judged);
        }
        let what = format!(
            "{default} against LRU, the worst of all sizes and nodes: {}",
            self.worst.1
        );
        // That holds of every trace.
        told(Figure::most(what, self.worst.0, "x", 1.08));
    }

    /// What draws make of the published policy's figure: that of `policies.md` is a mean over five.
    fn draws(&self, catalogue: &'static str, published: f64, judged: &mut dyn FnMut(Figure)) {
        let lru = Contender::textbook_lru().label;
        let of_draw = |seed| {
            let of = |size| {
                let own = self.load_s("cremebrulee", (catalogue, seed), size);
                100.0 * own / self.load_s(&lru, (catalogue, seed), size)
            };
            USUAL.map(of).iter().sum::<f64>() / USUAL.len() as f64
        };
        let known: Vec<f64> = (0..3).map(of_draw).collect();
        let redrawn = self.redrawn.get(catalogue).into_iter().flatten().copied();
        let all: Vec<f64> = known.iter().copied().chain(redrawn).collect();
        let mean = |of: &[f64]| of.iter().sum::<f64>() / of.len() as f64;
        let squares: Vec<f64> = all.iter().map(|one| (one - mean(&all)).powi(2)).collect();
        let spread = (squares.iter().sum::<f64>() / (all.len() - 1) as f64).sqrt();
        let least = all.iter().copied().fold(f64::MAX, f64::min);
        let most = all.iter().copied().fold(f64::MIN, f64::max);
        let what = format!(
            "  standard deviation of one draw, of {} from {least:.1} to {most:.1} %",
            all.len()
        );
        judged(Figure::info(what, spread, "%"));
        // Three of five differ from the five by what the other two bring.
        let expected = spread * (1.0 / known.len() as f64 - 1.0 / PUBLISHED_DRAWS).sqrt();
        let what = "  its distance by what three of the row's five draws differ from it, usually";
        let distance = (mean(&known) - published).abs() / expected;
        judged(Figure::info(what, distance, "x"));
    }

    /// CremeBrulee's three.
    fn claims(&self, judged: &mut dyn FnMut(Figure)) {
        let default = self.default.as_str();
        let at_half = |value: &dyn Fn((&'static str, u64)) -> f64| {
            (0..3).map(|seed| value(("C1", seed))).sum::<f64>() / 3.0
        };
        let random = at_half(&|day| self.load_s(default, day, 50) / self.load_s("random", day, 50));
        judged(Figure::most(
            format!("{default} against random, C1, 50 %"),
            random,
            "x",
            0.36,
        ));
        let exec = at_half(&|day| {
            self.row(default, day, 50)
                .load_over_exec
                .unwrap_or(f64::NAN)
        });
        judged(Figure::most(
            format!("load over execution, {default}, C1, 50 %"),
            exec,
            "",
            0.92,
        ));
        let of = |policy: &str| {
            f64::midpoint(
                self.against("C1", default, policy),
                self.against("C2", default, policy),
            )
        };
        let best = COST_BLIND.iter().map(|policy| (of(policy), *policy));
        let best = best.max_by(|a, b| a.0.total_cmp(&b.0));
        if let Some((share, policy)) = best {
            judged(Figure::least(
                format!("{default} below the best that ignores load cost, {policy}"),
                100.0 - share,
                "%",
                16.6,
            ));
        }
    }

    /// Of all prefetches, those that were used, percent.
    fn used(&self, policy: &str) -> f64 {
        let rows = self
            .rows
            .iter()
            .filter(|(key, _)| key.0 == policy && USUAL.contains(&key.3));
        let sum = |of: fn(&Row) -> u64| rows.clone().map(|(_, row)| of(row)).sum::<u64>() as f64;
        100.0 * sum(|row| row.prefetches_used) / sum(|row| row.prefetches)
    }
}

/// Load seconds of the published policy by those of LRU, percent: of each draw that is made besides.
fn published_elsewhere(days: &Days) -> BTreeMap<&'static str, Vec<f64>> {
    let of_draw = |catalogue, seed| {
        let workload = redrawn(days, catalogue, seed);
        let lru = Contender::textbook_lru().label;
        let rows = runs(&workload, &format!("{lru},cremebrulee"), &USUAL, false);
        let (lru, own) = rows.split_at(USUAL.len());
        let shares = lru.iter().zip(own);
        let shares = shares.map(|(lru, own)| own.total_load_seconds / lru.total_load_seconds);
        100.0 * shares.sum::<f64>() / USUAL.len() as f64
    };
    let all = PUBLISHED.map(|(catalogue, _)| {
        let draws = if days.whole { REDRAWN } else { 0 };
        let shares = (0..draws).map(|seed| of_draw(catalogue, seed)).collect();
        (catalogue, shares)
    });
    BTreeMap::from(all)
}

fn percent(row: &Row) -> u32 {
    let number = row.cache.trim_end_matches('%').parse();
    number.expect("a whole share")
}

fn runs(workload: &Workload, names: &str, sizes: &[u32], prefetch: bool) -> Vec<Row> {
    let contenders: Contenders = names.parse().expect("policies");
    let sizes = Sizes::host(sizes.iter().map(|size| Extent::Percent(f64::from(*size))));
    let mut options = Options::new(contenders, sizes);
    options.gap = false;
    options.prefetch = prefetch;
    study(workload, &options, &|_, _| {})
        .expect("no rule is broken")
        .rows
}

/// Small nodes.
fn parts(day: &Day) -> impl Iterator<Item = (String, Workload)> {
    // The sample is one already.
    let draws = if day.workload.models.len() > SMALL_MODELS {
        SMALL_DRAWS
    } else {
        0
    };
    (0..draws).map(|draw| {
        let small = day.workload.subset(SMALL_MODELS, draw);
        (format!("{SMALL_MODELS} models, draw {draw}"), small)
    })
}
