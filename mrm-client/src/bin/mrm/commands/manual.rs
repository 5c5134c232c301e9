//! `mrm completions` and `mrm man`.

use crate::args::{Cli, Shell};
use crate::failure::Failure;
use crate::out::Out;
use clap::CommandFactory;
use std::io;

/// What follows the options in the manual page.
const SECTIONS: &str = r#".SH "EXIT STATUS"
.TP
0
Done. Also when the reader of the output closed its end, as in \fBmrm ls | head\fR.
.TP
1
The daemon refused, and its error code is printed; or \fBmrm doctor\fR found a failure, or \fBmrm verify\fR damage.
.TP
2
The arguments are wrong.
.TP
3
No daemon answers. The message names the socket that was tried.
.TP
4
Not permitted: the socket, or the daemon, refuses this user.
.TP
5
The model, or the file, is not there.
.TP
124
Timed out: the load did not end within \fB\-\-wait\fR, or the daemon did not answer.
.TP
126, 127
\fBmrm open MODEL \-\- CMD\fR: CMD cannot be run, or is not there.
.PP
\fBmrm open MODEL \-\- CMD\fR otherwise ends with the status of CMD: 128 and the number of the
signal if one ended it. A command on several models goes on past those that are refused, and ends
with the status of the first.
.SH "JSON OUTPUT"
With \fB\-\-json\fR, \fBstatus\fR, \fBls\fR, \fBshow\fR, \fBpolicy\fR and \fBevents\fR print the daemon's own document,
with fields that this release does not know. \fBtop\fR prints {"status", "models", "sessions"};
\fBpin\fR, \fBunpin\fR, \fBhint\fR, \fBevict\fR, \fBwarm\fR and \fBverify\fR print {"results": [...]}, one entry for each model;
\fBdoctor\fR prints {"checks": [{"id", "level", "finding", "cure"}], "pass", "info", "warn", "fail",
"device_tier": {"here": {"state", "version", "finding", "cure"}, "mrmd": state}};
\fBsimulate\fR prints a list of rows {"policy", "cache", "cache_bytes", "object_miss_ratio", "byte_miss_ratio",
"total_load_seconds", "mean_s", "p50_s", "p99_s", "load_over_exec", "gap_closed", ...};
\fBopen\fR prints {"name", "version", "origin", "kind", "open_ms", "daemon_us", "tensors", "bytes",
"segments"}, and nothing when it runs a command. \fBevents \-\-follow\fR prints one object per line, and \fBevents \-\-export\fR prints {"file", "bytes"}.
.PP
A failure is {"error": {"code", "message", "exit_status", ...}} on standard output, for a command on
several models beside its results. Fields are added in later releases; ignore those you do not know.
.SH "ENVIRONMENT"
.TP
MRM_SOCKET
The client socket, as \fB\-\-socket\fR.
.TP
MRM_STATUS_SOCKET
The status socket, as \fB\-\-status\-socket\fR.
.TP
MRM_RUNTIME_DIR
The daemon's runtime directory, searched before the places under FILES.
.TP
XDG_RUNTIME_DIR
Where a user's own daemon has its runtime directory.
.TP
NO_COLOR
If set and not empty, nothing is coloured unless \fB\-\-color always\fR.
.PP
The command of \fBmrm open MODEL \-\- CMD\fR finds in its environment MRM_MODEL (the name as
given), MRM_MODEL_VERSION, MRM_MODEL_ORIGIN (hit, loaded, joined or promoted), MRM_MODEL_BYTES,
MRM_MODEL_DEVICE (the UUID of the device that it is on; empty in host memory), and MRM_SOCKET (the
daemon that lent it, so that its own opens go there).
.SH "FILES"
.TP
$XDG_RUNTIME_DIR/mrm/mrmd.sock, /run/mrm/mrmd.sock
The client socket, in the order of search.
.TP
status.sock
The status socket, beside the client socket. It speaks HTTP/1.1:
\fBcurl \-\-unix\-socket /run/mrm/status.sock http://localhost/v1/status\fR
.TP
/etc/mrm/mrm.toml
The daemon's configuration.
.SH "EXAMPLES"
.TP
mrm warm org/model && mrm pin org/model
Load a model before it is needed, and keep it.
.TP
mrm open org/model \-\- python3 serve.py
Hold the model while a server runs, so that its own opens are hits.
.TP
mrm ls \-\-json | jq \-r '.models[] | select(.leases > 0) | .name'
The names of the models that are held.
.TP
mrm events \-\-follow \-\-json
One JSON object per line, as things happen.
.TP
mrm events \-\-export today.journal && mrmd \-\-replay today.journal
Run again what the daemon decided since its start, with every rule checked at every step.
.TP
mrm simulate \-\-from\-daemon \-\-policy lru,gc \-\-plot /tmp/day
What twice the memory, or another policy, would have meant for the daemon's own day.
"#;

/// Prints the completion script of `shell`.
pub(super) fn completions(shell: Shell, out: Out) -> Result<(), Failure> {
    let generator = match shell {
        Shell::Bash => clap_complete::Shell::Bash,
        Shell::Zsh => clap_complete::Shell::Zsh,
        Shell::Fish => clap_complete::Shell::Fish,
    };
    // The generator panics on a writer that fails, so that the pipe gets the whole at once.
    let mut script = Vec::new();
    clap_complete::generate(generator, &mut Cli::command(), "mrm", &mut script);
    out.text(&String::from_utf8_lossy(&script))
}

/// Prints the manual page: one page for all commands.
pub(super) fn page(out: Out) -> Result<(), Failure> {
    out.text(&roff().map_err(Failure::Output)?)
}

fn roff() -> io::Result<String> {
    let mut command = Cli::command();
    command.build();
    let page = clap_mangen::Man::new(command.clone()).manual("mrm manual");
    let mut text = Vec::new();
    page.render_title(&mut text)?;
    page.render_name_section(&mut text)?;
    page.render_synopsis_section(&mut text)?;
    page.render_description_section(&mut text)?;
    page.render_options_section(&mut text)?;
    text.extend_from_slice(b".SH COMMANDS\n");
    for sub in command
        .get_subcommands()
        .filter(|sub| sub.get_name() != "help")
    {
        text.extend_from_slice(subcommand(sub).as_bytes());
    }
    text.extend_from_slice(SECTIONS.as_bytes());
    page.render_version_section(&mut text)?;
    Ok(String::from_utf8_lossy(&text).into_owned())
}

/// A command with its own arguments; the global ones are under OPTIONS.
fn subcommand(command: &clap::Command) -> String {
    let own = || {
        command
            .get_arguments()
            .filter(|argument| !is_common(argument))
    };
    let mut usage = command.get_name().to_owned();
    for option in own().filter(|argument| !argument.is_positional()) {
        usage.push_str(&format!(" [{option}]"));
    }
    for argument in own().filter(|argument| argument.is_positional()) {
        usage.push_str(if argument.is_last_set() {
            " [-- CMD...]"
        } else {
            " "
        });
        if !argument.is_last_set() {
            usage.push_str(&argument.to_string());
        }
    }
    let mut text = format!(".TP\n\\fBmrm\\fR {}\n", escape(&usage));
    if let Some(about) = command.get_about() {
        text.push_str(&escape(&about.to_string()));
        text.push_str(".\n");
    }
    for argument in own() {
        if let Some(help) = argument.get_help() {
            let line = format!(".br\n{}: {}.\n", argument, help);
            text.push_str(&escape(&line));
        }
    }
    text
}

fn is_common(argument: &clap::Arg) -> bool {
    argument.is_global_set() || matches!(argument.get_id().as_str(), "help" | "version")
}

/// Hyphens that may be typed are not to become typographic ones.
fn escape(text: &str) -> String {
    text.replace('\\', "\\\\").replace('-', "\\-")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_has_every_command_and_section() {
        let page = roff().unwrap();
        for section in [
            "NAME",
            "SYNOPSIS",
            "OPTIONS",
            "COMMANDS",
            "\"EXIT STATUS\"",
            "FILES",
        ] {
            assert!(
                page.contains(&format!(".SH {section}"))
                    || page.contains(&format!(".SH \"{section}\"")),
                "{section}"
            );
        }
        for command in [
            "status",
            "ls",
            "show",
            "top",
            "open",
            "warm",
            "pin",
            "unpin",
            "evict",
            "hint",
            "policy",
            "events",
            "simulate",
            "doctor",
            "completions",
            "man",
        ] {
            assert!(
                page.contains(&format!("\\fBmrm\\fR {command}")),
                "{command}"
            );
        }
    }
}
