//! Real processes and real kills. This binary plays the keeper, daemons and strangers by itself: see
//! [`role`].

mod cost;
mod described;
mod hostile;
mod kills;
mod limits;
mod lives;
mod stored;
mod support;

/// What this binary is when a test starts it again, by the word after `--`; else no test at all.
#[test]
fn role() {
    let mut args = std::env::args_os().skip_while(|arg| arg != "--").skip(1);
    let Some(role) = args.next() else { return };
    if role == super::KEEPER_ARGUMENT {
        let ended = super::keeper_main(args);
        // Not by the end of the test, which would print and wait for other threads.
        std::process::exit(i32::from(ended != std::process::ExitCode::SUCCESS));
    }
    let args: Vec<String> = args.map(|arg| arg.into_string().unwrap()).collect();
    match role.to_str().unwrap() {
        "--killed-at" => kills::stand_in(&args),
        "--visit" => hostile::visit(&args),
        "--adopt" => limits::adopt(&args),
        "--respawned" => lives::respawned(&args),
        "--first" => lives::first(&args),
        // The name of a test, which somebody ran.
        _ => {}
    }
}
