//! The C and C++ examples: compiled with every warning an error, run under the address and leak
//! sanitizers against a fake daemon, and against a real one where it is built.
#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::wildcard_enum_match_arm,
    reason = "a test fails by panicking"
)]

#[path = "../../mrm-client/tests/fake/mod.rs"]
mod fake;
#[path = "../../mrm-client/tests/machine/lent.rs"]
mod lent;
#[path = "../../mrm-client/tests/machine/mod.rs"]
mod machine;

use fake::{Content, Fake};
use std::io::{BufRead, BufReader, Read};
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

const MODEL: &str = "fake/model";

/// Where cargo has put `libmrm.so`: beside this test.
fn library_dir() -> PathBuf {
    let this = std::env::current_exe().expect("tests know their path");
    this.parent().expect("a file has a directory").to_owned()
}

/// Compiles `source` (under `examples`) into `into`; `None` where the machine has no compiler.
fn compile(source: &str, into: &Path) -> Option<PathBuf> {
    let ffi = Path::new(env!("CARGO_MANIFEST_DIR"));
    let (variable, default, standard) = if source.ends_with(".cpp") {
        ("CXX", "c++", "-std=c++17")
    } else {
        ("CC", "cc", "-std=c11")
    };
    let compiler = std::env::var(variable).unwrap_or_else(|_| default.to_owned());
    let source = ffi.join("examples").join(source);
    let program = into.join(source.file_stem().expect("a name"));
    let output = Command::new(&compiler)
        .args([
            standard,
            "-Wall",
            "-Wextra",
            "-Werror",
            "-pedantic",
            "-g",
            "-O1",
        ])
        .args(["-fsanitize=address,undefined", "-fno-sanitize-recover=all"])
        .arg("-I")
        .arg(ffi.join("include"))
        .arg(&source)
        .arg("-o")
        .arg(&program)
        .arg("-L")
        .arg(library_dir())
        .arg("-lmrm")
        .output();
    let output = match output {
        Ok(output) => output,
        Err(error) => {
            eprintln!("SKIPPED: cannot run {compiler}: {error}; install a C and C++ compiler");
            return None;
        }
    };
    let complaint = String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.success(),
        "{} does not compile:\n{complaint}",
        source.display()
    );
    // The programs ask for the soname; cargo makes only the plain name.
    let soname = into.join("libmrm.so.0");
    if !soname.exists() {
        std::os::unix::fs::symlink(library_dir().join("libmrm.so"), soname).expect("a link");
    }
    Some(program)
}

fn command(program: &Path, socket: &Path, argument: &str) -> Command {
    let mut command = Command::new(program);
    command
        .arg(argument)
        .env("MRM_SOCKET", socket)
        .env("LD_LIBRARY_PATH", program.parent().expect("a directory"))
        .env("ASAN_OPTIONS", "detect_leaks=1:abort_on_error=0")
        .env("UBSAN_OPTIONS", "print_stacktrace=1");
    command
}

fn run(program: &Path, socket: &Path, argument: &str) -> Output {
    command(program, socket, argument)
        .output()
        .expect("the program runs")
}

fn stdout_of(output: &Output) -> String {
    let complaint = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{}: {complaint}", output.status);
    String::from_utf8(output.stdout.clone()).expect("UTF-8")
}

fn fake() -> Fake {
    Fake::start(|_, session| session.serve(&Content::sample(100_000)))
}

/// A real daemon, killed when dropped.
struct Daemon(Child);

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Starts `mrmd` (of `MRMD`, or the one that cargo built) with one model, and waits until it is
/// ready; `None` where there is none.
fn real_daemon(runtime: &Path, model: &Path) -> Option<Daemon> {
    let built = library_dir().parent().map(|profile| profile.join("mrmd"));
    let binary = std::env::var_os("MRMD").map(PathBuf::from).or(built)?;
    if !binary.exists() {
        eprintln!(
            "SKIPPED: {} is missing; run cargo build -p mrm-daemon",
            binary.display()
        );
        return None;
    }
    let notify = UnixDatagram::bind(runtime.join("notify")).expect("binds");
    notify.set_read_timeout(Some(fake::PATIENCE)).expect("sets");
    let child = Command::new(binary)
        .arg("--runtime-dir")
        .arg(runtime)
        .arg("--model")
        .arg(format!("{MODEL}={}", model.display()))
        // Killed is killed: a keeper would start the next one.
        .args(["--keeper-kind", "none"])
        .env("NOTIFY_SOCKET", runtime.join("notify"))
        .spawn()
        .expect("the daemon runs");
    let daemon = Daemon(child);
    let mut message = [0; 4096];
    loop {
        let got = notify
            .recv(&mut message)
            .expect("the daemon says that it is ready");
        if String::from_utf8_lossy(&message[..got]).contains("READY=1") {
            return Some(daemon);
        }
    }
}

#[test]
fn the_examples_read_a_model_of_a_real_daemon() {
    let directory = tempfile::tempdir().expect("a directory");
    let Some(open_model) = compile("c/open_model.c", directory.path()) else {
        return;
    };
    let Some(raii) = compile("cpp/raii.cpp", directory.path()) else {
        return;
    };
    let file = directory.path().join("one.safetensors");
    let header = br#"{"ones":{"dtype":"F32","shape":[2,2],"data_offsets":[0,16]}}    "#;
    let mut image = (header.len() as u64).to_le_bytes().to_vec();
    image.extend_from_slice(header);
    image.extend_from_slice(&[1.0f32.to_le_bytes(); 4].concat());
    std::fs::write(&file, image).expect("writes");
    let Some(_daemon) = real_daemon(directory.path(), &file) else {
        return;
    };
    let socket = directory.path().join("mrmd.sock");

    let by_name = stdout_of(&run(&open_model, &socket, MODEL));
    assert!(
        by_name.contains("ones F32 [2, 2] 16 bytes, sum 764\n"),
        "{by_name}"
    );
    let by_path = stdout_of(&run(&open_model, &socket, file.to_str().expect("UTF-8")));
    assert!(
        by_path.contains("ones F32 [2, 2] 16 bytes, sum 764\n"),
        "{by_path}"
    );
    let text = stdout_of(&run(&raii, &socket, MODEL));
    assert!(
        text.contains("largest: ones [2, 2]\nits first element: 1\n"),
        "{text}"
    );
    let refused = run(&raii, &socket, "no/such/model");
    let complaint = String::from_utf8_lossy(&refused.stderr);
    assert!(complaint.contains("(model_not_found, 201)"), "{complaint}");
}

#[test]
fn open_model_lists_the_tensors() {
    let directory = tempfile::tempdir().expect("a directory");
    let Some(program) = compile("c/open_model.c", directory.path()) else {
        return;
    };
    let fake = fake();
    let text = stdout_of(&run(&program, &fake.socket(), MODEL));
    let lines: Vec<_> = text.lines().collect();
    assert_eq!(
        lines[0],
        format!("{MODEL}: 3 tensors, 1 files, 400077 bytes")
    );
    assert!(lines[1].starts_with("w F32 [1, 100000] 400000 bytes, sum "));
    assert_eq!(lines[3], "odd BF16 [2] 4 bytes, sum 10");
    fake.seen.wait_closed(1);

    let output = run(&program, Path::new("/nonexistent/mrmd.sock"), MODEL);
    let complaint = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1));
    assert!(complaint.contains("no_daemon, 700"), "{complaint}");
}

#[test]
fn open_model_lists_what_is_on_a_device() {
    machine::on_machine("open_model_lists_what_is_on_a_device", &[], |_| {
        let directory = tempfile::tempdir().expect("a directory");
        let Some(program) = compile("c/open_model.c", directory.path()) else {
            return;
        };
        let lent = lent::Lent::vmm(2, mrm_client::device::Granularity::Model);
        let fake = Fake::start(move |n, session| {
            session.hello();
            lent.serve(session, n as u64 + 1);
        });
        let socket = fake.socket();
        let driver = std::env::var("LD_LIBRARY_PATH").expect("set for this process");
        // The driver's library stays loaded for the life of the process, and so does its handle.
        let kept = directory.path().join("kept");
        std::fs::write(&kept, "leak:mrm_cuda::probe\n").expect("writes");
        let kept = format!("suppressions={}:print_suppressions=0", kept.display());
        let on = |device: &str| {
            let mut command = command(&program, &socket, MODEL);
            let paths = format!("{}:{driver}", directory.path().display());
            command
                .arg(device)
                .env("LD_LIBRARY_PATH", paths)
                .env("LSAN_OPTIONS", &kept);
            command.output().expect("the program runs")
        };
        for (n, device) in ["cuda:0", "best"].into_iter().enumerate() {
            let text = stdout_of(&on(device));
            let lines: Vec<_> = text.lines().collect();
            assert_eq!(lines[0], format!("{MODEL}: 3 tensors, 0 files, 2024 bytes"));
            let tensor = lines[1];
            assert!(
                tensor.starts_with("t0 U8 [10, 100] 1000 bytes, at 0x"),
                "{text}"
            );
            assert!(tensor.ends_with(" on cuda:0"), "{text}");
            fake.seen.wait_closed(n as u64 + 1);
        }
        let complaint = String::from_utf8_lossy(&on("cuda:7").stderr).into_owned();
        assert!(complaint.contains("device_not_visible, 716"), "{complaint}");
    });
}

#[test]
fn hold_says_what_it_has_and_holds_it() {
    let directory = tempfile::tempdir().expect("a directory");
    let Some(program) = compile("c/hold.c", directory.path()) else {
        return;
    };
    let fake = fake();
    let mut child = command(&program, &fake.socket(), MODEL)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("the program runs");
    let mut output = BufReader::new(child.stdout.take().expect("piped"));
    let mut line = String::new();
    output.read_line(&mut line).expect("one line");
    let said: serde_json::Value = serde_json::from_str(&line).expect("JSON");
    assert_eq!(
        (&said["tensors"], &said["bytes"]),
        (&3.into(), &400_077.into())
    );
    assert!(said["open_us"].as_f64().is_some_and(|us| us > 0.0));
    assert!(
        child.try_wait().expect("a child").is_none(),
        "it holds the model"
    );
    drop(child.stdin.take());
    assert!(child.wait().expect("a child").success());
    output.read_to_string(&mut line).expect("nothing more");
    fake.seen.wait_closed(1);
}

#[test]
fn raii_closes_what_it_opens() {
    let directory = tempfile::tempdir().expect("a directory");
    let Some(program) = compile("cpp/raii.cpp", directory.path()) else {
        return;
    };
    let fake = fake();
    let text = stdout_of(&run(&program, &fake.socket(), MODEL));
    assert!(
        text.contains("largest: w [1, 100000]\nits first element: 0\n"),
        "{text}"
    );
    assert!(
        text.contains("a copy of 400077 bytes, of which 400000 are of w\n"),
        "{text}"
    );
    assert!(text.ends_with("as expected: tensor_not_found\n"), "{text}");
    fake.seen.wait_closed(1);
}

#[test]
fn the_leak_sanitizer_is_on() {
    let directory = tempfile::tempdir().expect("a directory");
    let source = directory.path().join("leak.c");
    let leaky = "#include <mrm.h>\n#include <stddef.h>\n\
        int main(int n, char **v) { mrm_client_h c = NULL; mrm_model_h m = NULL; (void)n;\n\
        mrm_client_connect(NULL, &c); mrm_client_open(c, v[1], NULL, &m);\n\
        mrm_client_close(c); m = NULL; c = NULL; return 0; }\n";
    std::fs::write(&source, leaky).expect("writes");
    let Some(program) = compile(source.to_str().expect("UTF-8"), directory.path()) else {
        return;
    };
    let fake = fake();
    let output = run(&program, &fake.socket(), MODEL);
    let complaint = String::from_utf8_lossy(&output.stderr);
    assert!(
        complaint.contains("LeakSanitizer"),
        "a leaked model goes unseen: {complaint}"
    );
}
