//! A progress bar for what takes longer than two seconds.

use crate::look::safe;
use crate::out::Out;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::time::{Duration, Instant};

/// What is quicker than this needs no bar.
pub(crate) const APPEARS_AFTER: Duration = Duration::from_secs(2);

/// A bar that appears late, and only before a person.
#[derive(Debug)]
pub(crate) struct Progress {
    started: Instant,
    label: String,
    enabled: bool,
    bar: Option<ProgressBar>,
}

impl Progress {
    /// Nothing is drawn yet.
    pub(crate) fn new(out: Out, label: &str) -> Self {
        let enabled = out.errors().terminal && !out.quiet && !out.json;
        Self {
            started: Instant::now(),
            label: safe(label),
            enabled,
            bar: None,
        }
    }

    /// Whether anybody would see it.
    pub(crate) fn enabled(&self) -> bool {
        self.enabled
    }

    /// Draws how far it is, if it has taken long enough.
    pub(crate) fn update(&mut self, done_bytes: u64, total_bytes: u64) {
        if !self.enabled || self.started.elapsed() < APPEARS_AFTER {
            return;
        }
        let label = &self.label;
        let bar = self.bar.get_or_insert_with(|| bar(label));
        bar.set_length(total_bytes);
        bar.set_position(done_bytes.min(total_bytes));
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

fn bar(label: &str) -> ProgressBar {
    let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
    let template = "{msg} [{bar:30}] {binary_bytes} of {binary_total_bytes}, {eta} left";
    // A template that does not parse leaves indicatif's own; a test keeps ours parsing.
    if let Ok(style) = ProgressStyle::with_template(template) {
        bar.set_style(style.progress_chars("##-"));
    }
    bar.set_message(label.to_owned());
    bar
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_template_is_known_to_the_library() {
        let bar = bar("x");
        bar.set_draw_target(ProgressDrawTarget::hidden());
        bar.set_length(10);
        bar.set_position(3);
        assert_eq!(bar.position(), 3);
    }
}
