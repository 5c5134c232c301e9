//! `hostile`: what 64 clients that keep no rule cost an honest one.

use crate::hit::open_cycle;
use crate::report::Row;
use mrm_tests::breaches::{self, Breach};
use mrm_tests::hostile::{NOBODY, as_user, close, copies, encoded, let_everybody_in, open};
use mrm_tests::node::{Node, Setup};
use mrm_tests::raw::Raw;
use mrm_tests::{Random, eventually, model};
use rustix::net::RecvFlags;
use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

const CLIENTS: u64 = 64;
const ROUNDS: usize = 3;
const CYCLES: usize = 200;
/// An honest open beside them, against one alone.
const RATIO_MAX: f64 = 3.0;

pub(crate) fn measure() -> Vec<Row> {
    let dir = tempfile::tempdir().expect("a directory");
    let path = model::write_zeros(dir.path(), "m.safetensors", 1_000_000, 10);
    let setup = Setup::new()
        .setting("limits.idle_hello_ms = 1000")
        .setting("limits.write_stall_ms = 1000")
        .model("m", &path);
    let node = Node::start(&setup);
    let_everybody_in(node.dir.path());
    let client = node.client();
    drop(client.open("m").expect("loads"));
    let (mut beside, mut alone) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        alone.extend((0..CYCLES).map(|_| open_cycle(&client, "m") / 1e3));
        // At the lowest priority, for what is measured is the daemon and not how many cores there
        // are for 65 clients.
        let mut command = Command::new("nice");
        command
            .args(["-n", "19"])
            .arg(std::env::current_exe().expect("own path"))
            .arg("hostile-clients")
            .arg(node.socket())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped());
        // Another user, whose share is not the honest one's.
        let mut spawn = || command.spawn();
        let mut hostile = as_user(NOBODY, &mut spawn)
            .unwrap_or_else(spawn)
            .expect("starts");
        let said = BufReader::new(hostile.stdout.take().expect("piped")).lines();
        let at_it = said.take(1).next().expect("it says when").expect("text");
        assert_eq!(at_it, "at it");
        beside.extend((0..CYCLES).map(|_| open_cycle(&client, "m") / 1e3));
        drop(hostile.stdin.take());
        hostile.wait().expect("ends");
        eventually("only the honest one is left", || {
            (node.number("/sessions") == 1).then_some(())
        });
    }
    vec![Row::of(
        "hostile",
        format!("open + first byte + close beside {CLIENTS} hostile"),
        "us",
        &mut beside,
        "the same, alone",
        &mut alone,
        Some(RATIO_MAX),
    )]
}

/// The hostile clients, until the input ends.
pub(crate) fn clients(socket: &Path) {
    // Each end that it brings upon itself would be reported.
    std::panic::set_hook(Box::new(|_| {}));
    let breaches = breaches::all("m");
    let began = std::sync::Barrier::new(usize::try_from(CLIENTS).expect("few") + 1);
    std::thread::scope(|scope| {
        for client in 0..CLIENTS {
            let (breaches, began) = (&breaches, &began);
            scope.spawn(move || {
                began.wait();
                let mut random = Random(client);
                loop {
                    // The daemon may end any of it at any time, or have enough of this user.
                    let once = || misbehave(socket, client, breaches, &mut random);
                    let _ = std::panic::catch_unwind(std::panic::AssertUnwindSafe(once));
                }
            });
        }
        began.wait();
        println!("at it");
        let _ = std::io::stdin().read(&mut [0]);
        std::process::exit(0);
    });
}

fn misbehave(
    socket: &Path,
    client: u64,
    breaches: &[Breach],
    random: &mut Random,
) -> std::io::Result<()> {
    let mut raw = Raw::hello(socket);
    let many = |request: &dyn Fn(u64) -> Vec<u8>| (2..1000).flat_map(request).collect::<Vec<u8>>();
    match client % 4 {
        // Every rule, one after another, each on a connection of its own.
        0 => {
            let count = breaches.len() as u64;
            let breach = &breaches[usize::try_from(random.below(count)).expect("few")];
            let mut raw = breach.commit(socket);
            raw.stream.set_read_timeout(Some(Duration::from_secs(2)))?;
            let _ = raw.stream.read(&mut [0; 4096]);
        }
        // A flood of opens whose replies are never read.
        1 => {
            raw.stream.set_write_timeout(Some(Duration::from_secs(2)))?;
            let flood = many(&|id| encoded(id, 0, &open("m", 0)));
            while raw.stream.write_all(&flood).is_ok() {}
        }
        // A flood that is read, so that it never ends.
        2 => {
            let flood = many(&|id| match id % 2 {
                0 => encoded(id, 0, &open("none", 0)),
                _ => encoded(0, 0, &close(mrm_proto::ids::LeaseId(id))),
            });
            for _ in 0..20 {
                raw.stream.write_all(&flood)?;
                let mut replies = [0; 1 << 16];
                while rustix::net::recv(&raw.stream, &mut replies, RecvFlags::DONTWAIT).is_ok() {}
            }
        }
        // Half a frame with as many descriptors as there may be, and then silence.
        _ => {
            let null = File::open("/dev/null")?;
            raw.send_bytes(&encoded(2, 253, &open("m", 0))[..30], &copies(&null, 253))?;
            raw.stream.set_read_timeout(Some(Duration::from_secs(2)))?;
            let _ = raw.stream.read(&mut [0; 4096]);
        }
    }
    Ok(())
}
