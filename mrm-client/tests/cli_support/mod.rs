//! A status socket with canned answers, and the real `mrm` to ask it.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test fails by panicking"
)]
#![allow(dead_code, unreachable_pub, reason = "each test file uses a part")]

use serde_json::Value;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::process::{Command, Output};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

/// What the fake answers to a method and a target: a status and a body.
pub type Answer = (u16, String);

/// Serves canned answers, one request per connection, each on a thread of its own.
pub struct Fake {
    directory: tempfile::TempDir,
    requests: Arc<Mutex<Vec<String>>>,
    stop: Arc<AtomicBool>,
    server: Option<JoinHandle<()>>,
}

impl Fake {
    /// Answers with the result of `answer`.
    pub fn serving(answer: impl Fn(&str, &str) -> Answer + Send + Sync + 'static) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(directory.path().join("status.sock")).unwrap();
        let requests = Arc::new(Mutex::new(Vec::new()));
        let stop = Arc::new(AtomicBool::new(false));
        let (seen, stopped) = (Arc::clone(&requests), Arc::clone(&stop));
        let answer = Arc::new(answer);
        let server = std::thread::spawn(move || {
            for stream in listener.incoming() {
                if stopped.load(Ordering::SeqCst) {
                    break;
                }
                let (stream, seen, answer) =
                    (stream.unwrap(), Arc::clone(&seen), Arc::clone(&answer));
                // A client may hang up early; that is its right.
                std::thread::spawn(move || drop(serve(&stream, &seen, &*answer)));
            }
        });
        Self {
            directory,
            requests,
            stop,
            server: Some(server),
        }
    }

    /// Answers as a daemon with two models and one client would.
    pub fn usual() -> Self {
        Self::serving(usual)
    }

    /// The client socket's path; nobody listens there.
    pub fn client_socket(&self) -> PathBuf {
        self.directory.path().join("mrmd.sock")
    }

    /// What was asked so far, as `METHOD target`.
    pub fn requests(&self) -> Vec<String> {
        self.requests.lock().unwrap().clone()
    }

    /// `mrm` with these arguments, directed at this fake.
    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = mrm(args);
        command.env("MRM_RUNTIME_DIR", self.directory.path());
        command
    }

    /// Runs `mrm` to its end.
    pub fn run(&self, args: &[&str]) -> Run {
        Run::of(&mut self.command(args))
    }
}

impl Drop for Fake {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        let _ = UnixStream::connect(self.directory.path().join("status.sock"));
        if let Some(server) = self.server.take() {
            let _ = server.join();
        }
    }
}

fn serve(
    stream: &UnixStream,
    seen: &Mutex<Vec<String>>,
    answer: &impl Fn(&str, &str) -> Answer,
) -> std::io::Result<()> {
    let mut lines = BufReader::new(stream).lines();
    let first = lines.next().transpose()?.unwrap_or_default();
    while lines
        .next()
        .transpose()?
        .is_some_and(|line| !line.is_empty())
    {}
    let mut words = first.split(' ');
    let (method, target) = (words.next().unwrap_or(""), words.next().unwrap_or(""));
    seen.lock().unwrap().push(format!("{method} {target}"));
    let (status, body) = answer(method, target);
    write!(
        &mut &*stream,
        "HTTP/1.1 {status} Whatever\r\ncontent-type: application/json\r\n\
         content-length: {}\r\nconnection: close\r\n\r\n{body}",
        body.len()
    )
}

/// What a run of `mrm` gave.
#[derive(Debug)]
pub struct Run {
    pub code: i32,
    pub stdout: String,
    pub stderr: String,
}

impl Run {
    pub fn of(command: &mut Command) -> Self {
        let Output {
            status,
            stdout,
            stderr,
        } = command.output().unwrap();
        Self {
            code: status.code().unwrap(),
            stdout: String::from_utf8(stdout).unwrap(),
            stderr: String::from_utf8(stderr).unwrap(),
        }
    }

    /// The whole output as one JSON document.
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.stdout).unwrap_or_else(|cause| panic!("{cause}: {self:?}"))
    }
}

/// `mrm` with a clean environment.
pub fn mrm(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_mrm"));
    command
        .args(args)
        .env_clear()
        .env("LC_ALL", "C.UTF-8")
        .env("TERM", "xterm");
    command
}

/// An error answer in the daemon's shape.
pub fn error(status: u16, code: &str, number: u16, message: &str) -> Answer {
    let body = serde_json::json!({"error": {
        "code": code, "number": number, "message": message,
        "retryable": false, "took_effect": false,
    }});
    (status, body.to_string())
}

const MODELS: &str = r#"{"models":[
  {"name":"org/bert","registered":true,"kind":"safetensors","state":"resident",
   "bytes":90868376,"charged_bytes":90869760,"huge_bytes":90177536,"loaded_bytes":90868376,
   "leases":2,"sessions":1,"pinned":true,"eager":false,"version":7,"digest":"ab12",
   "last_used_s_ago":3.2,"load_ms":45.25,"path":"/m/bert","a_field_of_the_future":[1]},
  {"name":"org/zero","registered":true,"kind":null,"state":"absent","bytes":0,
   "charged_bytes":0,"huge_bytes":0,"loaded_bytes":0,"leases":0,"sessions":0,"pinned":false,
   "eager":false,"version":null,"digest":null,"last_used_s_ago":null,"load_ms":null,
   "path":"/m/zero"}],"more":false}"#;

const STATUS: &str = r#"{"daemon":{"version":"0.1.0","pid":812,"instance":"9f0c",
  "uptime_s":7500.0,"state":"serving","protocol":{"min":1,"max":1},"runtime_dir":"/run/mrm"},
 "host":{"limit_bytes":8589934592,"charged_bytes":2147483648,"freeing_bytes":0,
  "resident_bytes":2147483648,"huge_bytes":2147483648,"segments":1},
 "sessions":1,"leases":2,"waiting":0,"loading":0,
 "counters":{"opens_total":9,"hits_total":8,"misses_total":1,"joined_total":0,"loads_total":1,
  "load_failures_total":0,"evictions_total":0,"refusals_total":0,
  "loaded_bytes_total":90868376,"sessions_total":9,"protocol_errors_total":0},
 "degraded":[{"id":"huge_pages","cause":"shmem_enabled is never","cure":"echo advise"}]}"#;

const SESSIONS: &str = r#"{"sessions":[{"id":4,"pid":99,"uid":1000,"gid":1000,
  "client":"evil\u001b[2J","leases":2,"waiting":0,"connected_s":12.0,
  "models":[{"name":"org/bert","leases":2}]}]}"#;

const EVENTS: &str = r#"{"events":[
  {"seq":1,"time_ms":1795326295123,"kind":"load_done","model":"org/bert","session":null,
   "bytes":90868376,"detail":"45 ms"},
  {"seq":2,"time_ms":1795326296000,"kind":"open_loaded","model":"org/bert","session":4,
   "bytes":null,"detail":null}],"next":3,"dropped":0}"#;

/// The answers of a daemon with two models, one of them held.
pub fn usual(method: &str, target: &str) -> Answer {
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let body = match (method, path) {
        ("GET", "/v1/status") => STATUS.into(),
        ("GET", "/v1/models") => MODELS.into(),
        ("GET", "/v1/sessions") => SESSIONS.into(),
        ("GET", "/v1/events") if query.contains("since=0") => EVENTS.into(),
        ("GET", "/v1/events") => r#"{"events":[],"next":3,"dropped":0}"#.into(),
        ("GET", "/v1/models/org/bert") => detail(),
        ("POST", "/v1/models/org/bert/pin" | "/v1/models/org/bert/unpin") => {
            r#"{"ok":true,"name":"org/bert","pinned":true,"changed":true}"#.into()
        }
        ("POST", "/v1/models/org/bert/warm") => {
            r#"{"ok":true,"name":"org/bert","origin":"loaded","bytes":90868376,"took_ms":45.25}"#
                .into()
        }
        ("POST", "/v1/models/org/bert/evict") => {
            return error(
                409,
                "in_use",
                506,
                "`org/bert` is held by 1 session: close it first",
            );
        }
        _ => {
            return error(
                404,
                "model_not_found",
                201,
                "no model `x`; did you mean `org/bert`?",
            );
        }
    };
    (200, body)
}

fn detail() -> String {
    let mut models: Value = serde_json::from_str(MODELS).unwrap();
    let mut model = models["models"][0].take();
    model["tensors"] = 103.into();
    model["reserve_lately_bytes"] = (3_u64 << 30).into();
    model["segments"] = serde_json::json!([{
        "name": "model.safetensors", "bytes": 90_868_376, "state": "resident",
        "huge_bytes": 90_177_536, "digest": "0123456789abcdef0123", "leases": 2,
    }]);
    model["holders"] = serde_json::json!([{
        "session": 4, "pid": 99, "uid": 1000, "client": "trainer", "leases": 2,
    }]);
    model.to_string()
}
