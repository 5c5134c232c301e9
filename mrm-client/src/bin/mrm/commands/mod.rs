//! One file per command.

mod change;
mod events;
mod hold;
mod ls;
mod manual;
mod open;
mod policy;
mod show;
mod simulate;
mod status;
mod top;
mod verify;
mod warm;

use crate::args::{Cli, Command};
use crate::doctor;
use crate::failure::{Failure, exit};
use crate::http::Api;
use crate::out::Out;
use crate::sockets;
use change::Change;
use std::future::Future;

/// Does what `cli` says; returns the exit status.
pub(crate) fn run(cli: Cli, out: Out) -> Result<u8, Failure> {
    let global = cli.global;
    let api = || sockets::status_socket(&global).map(Api::new);
    match cli.command {
        Command::Status => block_on(status::run(&api()?, out)),
        Command::Ls { prefix } => block_on(ls::run(&api()?, prefix.as_deref(), out)),
        Command::Show { model } => block_on(show::run(&api()?, &model, out)),
        Command::Top { once } => block_on(top::run(&api()?, once, out)),
        Command::Open(open) => return open::run(&open, &global, out),
        Command::Warm(warm) => block_on(warm::run(&api()?, &warm, out)),
        Command::Pin(names) => block_on(change::run(&api()?, &names.models, &Change::Pin, out)),
        Command::Unpin(names) => block_on(change::run(&api()?, &names.models, &Change::Unpin, out)),
        Command::Evict(evict) => {
            let change = Change::Evict { from: evict.from };
            block_on(change::run(&api()?, &evict.models, &change, out))
        }
        Command::Verify(verify) => block_on(verify::run(&api()?, &verify, out)),
        Command::Hint(hint) => block_on(change::run(
            &api()?,
            &hint.models,
            &Change::Hint { due: hint.due },
            out,
        )),
        Command::Policy(policy) => block_on(policy::run(&api()?, &policy, out)),
        Command::Events(events) => block_on(events::run(&api()?, &events, out)),
        Command::Simulate(simulate) => simulate::run(&simulate, api, out),
        Command::Doctor => block_on(doctor::run(&global, out)),
        Command::Completions { shell } => manual::completions(shell, out),
        Command::Man => manual::page(out),
    }?;
    Ok(exit::OK)
}

/// Runs a command's asynchronous part on this thread.
fn block_on<T>(command: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|cause| Failure::System(format!("cannot start an event loop: {cause}")))?
        .block_on(command)
}
