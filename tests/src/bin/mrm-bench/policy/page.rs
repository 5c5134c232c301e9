//! The page of figures.

use super::days::Days;
use super::figures::Study;
use super::{Figure, number};
use mrm_simulate::contender::Contender;
use std::fmt::Write as _;

const HEAD: &str = "# Policies, replayed

Written by `scripts/bench policy --traces DIR`. What each policy would have had to load for a recorded
day: Azure Functions 2019 (Microsoft, CC-BY 4.0; Shahrad et al., USENIX ATC 2020), prepared as
CremeBrulee does, where each function is drawn at random onto a model: of 11 CNNs with measured load
times (C1) or of 40 models of a fleet of 2026 with assumed ones (C2), three draws of each. Functions are
not models, and who is which is drawn: take the figures for the order of policies, not for what your
day would have been (`mrm simulate --from-daemon` tells that).

Loads are booked to the request that waits for them and take no time on the clock; running requests hold
their models; it begins with nothing in memory. Load seconds are what all requests waited for loads. The gap
is that from LRU (without giving victims back, as libraries have it) to `cremebrulee-oracle`, which knows
the future. Averages are over draws and caches of 10, 20 and 30 % of the bytes of all models.

`policies.md` has `cremebrulee` at 77 and 78 % of LRU's load seconds, as means over five draws. Three of the
five are here; what the other two were is not known, and how they were drawn neither. So other draws are made
from the same models, to tell how far a mean over three of five draws may be from that over the five.
";

pub(crate) fn render(days: &Days, study: &Study, figures: &[Figure]) -> String {
    let mut text = HEAD.to_owned();
    let day = &days.days[0].workload;
    let _ = writeln!(
        text,
        "\n{} requests for {} models. The default policy is `{}`.\n",
        day.requests.len(),
        day.models.len(),
        study.default()
    );
    text.push_str("## What is promised\n\n| what | figure | promised | |\n|---|---|---|---|\n");
    for figure in figures {
        let verdict = match (&figure.limit, figure.holds) {
            (None, _) => "",
            (Some(_), true) => "holds",
            (Some(_), false) => "**fails**",
        };
        let _ = writeln!(
            text,
            "| {} | {} {} | {} | {verdict} |",
            figure.what.trim(),
            number(figure.value),
            figure.unit,
            figure.limit.as_deref().unwrap_or_default(),
        );
    }
    text.push_str(
        "\n## All policies\n\n| policy | gap closed, C1 | C2 | load seconds of LRU's, C1 | C2 | of random's, C1 | C2 |\n\
         |---|---|---|---|---|---|---|\n",
    );
    let lru = Contender::textbook_lru().label;
    for policy in study.policies() {
        let _ = writeln!(
            text,
            "| `{policy}` | {:.1} % | {:.1} % | {:.1} % | {:.1} % | {:.1} % | {:.1} % |",
            study.gap("C1", &policy),
            study.gap("C2", &policy),
            study.against("C1", &policy, &lru),
            study.against("C2", &policy, &lru),
            study.against("C1", &policy, "random"),
            study.against("C2", &policy, "random"),
        );
    }
    text
}
