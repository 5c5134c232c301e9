//! A progress bar for what takes longer than two seconds.

use crate::look::safe;
use crate::out::Out;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::time::{Duration, Instant};

const OF_BYTES: &str = "{msg} [{bar:30}] {binary_bytes} of {binary_total_bytes}, {eta} left";
const OF_REQUESTS: &str = "{msg} [{bar:30}] {human_pos} of {human_len} requests, {eta} left";

/// What is quicker than this needs no bar.
pub(crate) const APPEARS_AFTER: Duration = Duration::from_secs(2);

/// A bar that appears late, and only before a person.
#[derive(Debug)]
pub(crate) struct Progress {
    started: Instant,
    label: String,
    template: &'static str,
    enabled: bool,
    bar: Option<ProgressBar>,
}

impl Progress {
    /// Of bytes. Nothing is drawn yet.
    pub(crate) fn new(out: Out, label: &str) -> Self {
        Self::with_template(out, label, OF_BYTES)
    }

    /// The same, of requests.
    pub(crate) fn counting(out: Out, label: &str) -> Self {
        Self::with_template(out, label, OF_REQUESTS)
    }

    fn with_template(out: Out, label: &str, template: &'static str) -> Self {
        let enabled = out.errors().terminal && !out.quiet && !out.json;
        Self {
            started: Instant::now(),
            label: safe(label),
            template,
            enabled,
            bar: None,
        }
    }

    /// Whether anybody would see it.
    pub(crate) fn enabled(&self) -> bool {
        self.enabled
    }

    /// Draws how far it is, if it has taken long enough.
    pub(crate) fn update(&mut self, done: u64, total: u64) {
        if !self.enabled || self.started.elapsed() < APPEARS_AFTER {
            return;
        }
        let (label, template) = (&self.label, self.template);
        let bar = self.bar.get_or_insert_with(|| bar(label, template));
        bar.set_length(total);
        bar.set_position(done.min(total));
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

fn bar(label: &str, template: &str) -> ProgressBar {
    let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
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
    fn the_templates_are_known_to_the_library() {
        for template in [OF_BYTES, OF_REQUESTS] {
            assert!(ProgressStyle::with_template(template).is_ok(), "{template}");
            let bar = bar("x", template);
            bar.set_draw_target(ProgressDrawTarget::hidden());
            bar.set_length(10);
            bar.set_position(3);
            assert_eq!(bar.position(), 3);
        }
    }
}
