//! Where results and messages go: results to standard output, messages to standard error.

use crate::args::Global;
use crate::failure::Failure;
use crate::look::{Look, Tone, safe};
use serde_json::{Value, json};
use std::io::{self, Write};

/// The outputs of one command.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Out {
    /// Print JSON.
    pub(crate) json: bool,
    /// Only what was asked for.
    pub(crate) quiet: bool,
    /// The look of standard output.
    pub(crate) look: Look,
    errors: Look,
}

impl Out {
    /// As the flags and the terminal say.
    pub(crate) fn new(global: &Global) -> Self {
        Self {
            json: global.json,
            quiet: global.quiet,
            look: Look::of(&io::stdout(), global.color),
            errors: Look::of(&io::stderr(), global.color),
        }
    }

    /// Prints a result.
    pub(crate) fn text(self, text: &str) -> Result<(), Failure> {
        let mut stdout = io::stdout().lock();
        stdout.write_all(text.as_bytes())?;
        stdout.flush()?;
        Ok(())
    }

    /// Prints a document: indented for a person, in one line for a program.
    pub(crate) fn document(self, document: &Value) -> Result<(), Failure> {
        let text = if self.look.terminal {
            format!("{document:#}")
        } else {
            document.to_string()
        };
        self.text(&(text + "\n"))
    }

    /// Prints a document in one line, whoever reads it: one of a stream.
    pub(crate) fn document_line(self, document: &Value) -> Result<(), Failure> {
        self.text(&(document.to_string() + "\n"))
    }

    /// Says that something was done, unless `--quiet`.
    pub(crate) fn confirm(self, text: &str) -> Result<(), Failure> {
        if self.quiet || self.json {
            Ok(())
        } else {
            self.text(&(safe(text) + "\n"))
        }
    }

    /// Tells a person something beside the result, on standard error.
    pub(crate) fn note(self, text: &str) {
        if !self.quiet {
            self.message(&format!(
                "{}: {}",
                self.errors.paint(Tone::Strong, "mrm"),
                safe(text)
            ));
        }
    }

    /// Reports a failure: on standard error, with `--json` as a document on standard output.
    pub(crate) fn failure(self, failure: &Failure) {
        if self.json {
            // Nothing is left to tell if even this cannot be printed; the exit status speaks.
            let _ = self.document(&json!({"error": failure.to_json()}));
        } else {
            self.failure_text(failure, "");
        }
    }

    /// The same for one of several objects, always as text.
    pub(crate) fn failure_text(self, failure: &Failure, object: &str) {
        let prefix = self.errors.paint(Tone::Bad, "mrm:");
        let object = if object.is_empty() {
            String::new()
        } else {
            format!("{object}: ")
        };
        self.message(&format!("{prefix} {}", safe(&format!("{object}{failure}"))));
        if let Some(remedy) = failure.remedy() {
            self.message(&format!("     {}", safe(&remedy)));
        }
    }

    /// The look of standard error, which progress is drawn on.
    pub(crate) fn errors(self) -> Look {
        self.errors
    }

    fn message(self, line: &str) {
        let _ = writeln!(io::stderr().lock(), "{line}");
    }
}
