//! `mrm`: the command line of `mrmd`.
//!
//! Everything but `open` asks the daemon's status socket over HTTP; `open` is a client like any
//! other, through the library.

mod args;
mod commands;
mod doctor;
mod failure;
mod http;
mod look;
mod out;
mod probe;
mod progress;
mod signals;
mod sockets;
mod table;
mod terminal;
mod units;
mod wire;

use args::{Cli, ColorWhen, Global};
use clap::Parser;
use failure::{Failure, exit};
use look::Look;
use out::Out;
use std::io::{self, Write};
use std::process::ExitCode;

fn main() -> ExitCode {
    match Cli::try_parse() {
        Ok(cli) => {
            let out = Out::new(&cli.global);
            ExitCode::from(match commands::run(cli, out) {
                Ok(status) => status,
                Err(failure) => report(out, &failure),
            })
        }
        Err(error) => ExitCode::from(usage(&error)),
    }
}

/// Tells what failed, unless nobody reads any more or the report was the result.
fn report(out: Out, failure: &Failure) -> u8 {
    if failure.is_closed_pipe() {
        return exit::OK;
    }
    if !failure.is_reported() {
        out.failure(failure);
    }
    failure.exit_status()
}

/// Help and version are results; anything else is a mistake in the arguments.
fn usage(error: &clap::Error) -> u8 {
    let before_command = std::env::args_os().skip(1).take_while(|arg| arg != "--");
    let wants_json = before_command.into_iter().any(|arg| arg == "--json");
    if error.use_stderr() && wants_json {
        let global = Global {
            json: true,
            socket: None,
            status_socket: None,
            color: ColorWhen::Never,
            quiet: true,
        };
        let message = error.to_string();
        let message = message.trim_start_matches("error: ").trim_end().to_owned();
        Out::new(&global).failure(&Failure::Usage(message));
        return exit::USAGE;
    }
    if error.use_stderr() {
        let rendered = error.render();
        let look = Look::of(&io::stderr(), ColorWhen::Auto);
        let text = if look.color {
            rendered.ansi().to_string()
        } else {
            rendered.to_string()
        };
        let _ = write!(io::stderr(), "{}", text.replacen("error:", "mrm:", 1));
    } else {
        // A closed pipe is not worth a message.
        let _ = error.print();
    }
    u8::try_from(error.exit_code()).unwrap_or(exit::USAGE)
}
