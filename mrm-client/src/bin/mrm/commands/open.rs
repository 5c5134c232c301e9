//! `mrm open`: a client like any other, through the library.

use super::hold;
use crate::args::{Global, Open};
use crate::failure::{Failure, exit};
use crate::out::Out;
use crate::progress::Progress;
use crate::table::{Align, Cell, Table};
use crate::wire::ErrorBody;
use crate::{look::Tone, sockets, units};
use mrm_client::device::Sharing;
use mrm_client::{
    Client, ConnectError, ConnectOptions, DType, DeviceWeights, Fault, Model, ModelKind, OpenError,
    OpenOptions, Origin, RequestError,
};
use serde_json::{Value, json};
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::io;
use std::path::Path;
use std::time::{Duration, Instant};

/// Opens a model; then reports, or holds it while a command runs. Returns the exit status.
pub(super) fn run(args: &Open, global: &Global, out: Out) -> Result<u8, Failure> {
    let socket = sockets::client_socket(global)?;
    let options = ConnectOptions::new().socket(&socket).name("mrm open");
    let started = Instant::now();
    let client = Client::connect_with(&options).map_err(|error| connect_failure(&error))?;
    let model = open(&client, args, out).map_err(|error| open_failure(&error))?;
    let took = started.elapsed();
    if let Some((program, arguments)) = args.command.split_first() {
        let environment = [
            ("MRM_MODEL", args.model.clone().into()),
            ("MRM_MODEL_VERSION", model.version().0.to_string().into()),
            ("MRM_MODEL_ORIGIN", origin(&model).into()),
            ("MRM_MODEL_BYTES", model.bytes_total().to_string().into()),
            ("MRM_MODEL_DEVICE", device_text(&model).into()),
            ("MRM_SOCKET", socket.into_os_string()),
        ];
        return super::block_on(hold::while_running(program, arguments, environment));
    }
    report(&model, took, out)?;
    if args.hold {
        super::block_on(hold::until_interrupted(|| out.note("held until Ctrl-C")))?;
    }
    Ok(exit::OK)
}

fn open(client: &Client, args: &Open, out: Out) -> Result<Model, OpenError> {
    let progress = RefCell::new(Progress::new(out, &args.model));
    let options = OpenOptions::new()
        .wait(args.wait)
        .tier(args.device.unwrap_or_default())
        .reserve_bytes(args.reserve.unwrap_or(0))
        .on_progress(|seen| {
            progress
                .borrow_mut()
                .update(seen.loaded_bytes, seen.total_bytes)
        });
    match kind_of(args) {
        Named::Name => client.open_with(&args.model, &options),
        Named::Path => client.open_path_with(&args.model, &options),
        Named::PathHere => {
            out.note(&format!(
                "`{}` exists here and is opened as a path; for a registered name add --name",
                args.model
            ));
            client.open_path_with(&args.model, &options)
        }
    }
}

/// What MODEL is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Named {
    Name,
    Path,
    /// It could be a name, but something of that path exists.
    PathHere,
}

/// No name begins with `/` or has a component `.` or `..`: such an argument can only be a path.
fn kind_of(args: &Open) -> Named {
    if args.name {
        return Named::Name;
    }
    let is_path = ["/", "./", "../"]
        .iter()
        .any(|start| args.model.starts_with(start));
    if args.path || is_path {
        return Named::Path;
    }
    if args.model.contains('/') && Path::new(&args.model).exists() {
        return Named::PathHere;
    }
    Named::Name
}

fn report(model: &Model, took: Duration, out: Out) -> Result<(), Failure> {
    if out.json {
        return out.document(&document(model, took)?);
    }
    if out.quiet {
        return Ok(());
    }
    let parts = match model.device() {
        Some(weights) => units::count(weights.allocations().len() as u64, "allocation"),
        None => units::count(model.segments().len() as u64, "file"),
    };
    let size = format!("{} in {parts}", units::bytes(model.bytes_total()));
    let mut table = Table::new(&[("", Align::Left), ("", Align::Left)]);
    let mut fact = |key: &str, value: String| {
        table.row([Cell::toned(key, Tone::Strong), value.into()]);
    };
    fact("model", model.name().to_owned());
    fact("version", model.version().0.to_string());
    fact("origin", origin_words(model.origin()).into());
    fact("opened in", units::seconds(took.as_secs_f64()));
    fact("kind", kind(model)?.into());
    fact("tensors", tensors(model)?);
    fact("size", size);
    if let Some(weights) = model.device() {
        let (uuid, ordinal) = (weights.uuid(), weights.ordinal());
        fact("device", format!("cuda:{ordinal} ({uuid})"));
        fact("sharing", sharing(weights).into());
    }
    if let Some(why) = model.why_host() {
        fact("device", format!("none, it is in host memory: {why}"));
    }
    out.text(&table.render(out.look))
}

/// How many tensors, by element type.
fn tensors(model: &Model) -> Result<String, Failure> {
    let tensors = model.tensors().map_err(|error| fault(&error))?;
    let mut by_dtype: BTreeMap<&'static str, u64> = BTreeMap::new();
    for tensor in tensors.iter() {
        *by_dtype.entry(DType::name(tensor.dtype())).or_default() += 1;
    }
    let total = tensors.len();
    match by_dtype.len() {
        0 => Ok("none".into()),
        1 => Ok(by_dtype
            .keys()
            .map(|dtype| format!("{total}, all {dtype}"))
            .collect()),
        _ => {
            let parts: Vec<_> = by_dtype
                .iter()
                .map(|(dtype, count)| format!("{count} {dtype}"))
                .collect();
            Ok(format!("{total}: {}", parts.join(", ")))
        }
    }
}

/// The device as other programs are told of it; empty in host memory.
fn device_text(model: &Model) -> String {
    let uuid = model.device().map(|weights| weights.uuid().to_string());
    uuid.unwrap_or_default()
}

const fn sharing(weights: &DeviceWeights) -> &'static str {
    match weights.sharing() {
        Sharing::Vmm => "vmm",
        Sharing::Legacy => "legacy",
    }
}

/// `null` in host memory.
fn device_document(model: &Model) -> Value {
    model.device().map_or(Value::Null, |weights| {
        let place = |(pointer, bytes): &(u64, u64)| json!({"pointer": pointer, "bytes": bytes});
        json!({
            "uuid": weights.uuid().to_string(),
            "ordinal": weights.ordinal(),
            "sharing": sharing(weights),
            "allocations": weights.allocations().iter().map(place).collect::<Vec<_>>(),
        })
    })
}

fn document(model: &Model, took: Duration) -> Result<Value, Failure> {
    let tensors = model.tensors().map_err(|error| fault(&error))?;
    let segments: Vec<Value> = model
        .segments()
        .map(|segment| json!({"name": segment.name(), "bytes": segment.bytes().len()}))
        .collect();
    Ok(json!({
        "name": model.name(),
        "version": model.version().0,
        "origin": origin(model),
        "kind": kind(model)?,
        "open_ms": took.as_secs_f64() * 1e3,
        "daemon_us": model.took_us(),
        "tensors": tensors.len(),
        "bytes": model.bytes_total(),
        "segments": segments,
        "device": device_document(model),
        "why_host": model.why_host().map(ToString::to_string),
    }))
}

fn kind(model: &Model) -> Result<&'static str, Failure> {
    Ok(match model.kind().map_err(|error| fault(&error))? {
        ModelKind::Opaque => "opaque",
        ModelKind::Safetensors => "safetensors",
    })
}

fn origin(model: &Model) -> &'static str {
    match model.origin() {
        Origin::Hit => "hit",
        Origin::Loaded => "loaded",
        Origin::Joined => "joined",
        Origin::Promoted => "promoted",
    }
}

const fn origin_words(origin: Origin) -> &'static str {
    match origin {
        Origin::Hit => "hit (it was resident)",
        Origin::Loaded => "loaded for this open",
        Origin::Joined => "joined another's load",
        Origin::Promoted => "copied up from memory",
    }
}

fn open_failure(error: &OpenError) -> Failure {
    match error {
        OpenError::Request(RequestError::Connect(error)) => connect_failure(error),
        OpenError::File { source, .. } if source.kind() == io::ErrorKind::NotFound => {
            Failure::NotFound(error.to_string())
        }
        OpenError::File { source, .. } if source.kind() == io::ErrorKind::PermissionDenied => {
            Failure::NotPermitted(error.to_string())
        }
        OpenError::File { .. } => fault(error),
        OpenError::Request(
            RequestError::BadName { .. }
            | RequestError::Session(_)
            | RequestError::Refused(_)
            | RequestError::NoHints(_),
        )
        | OpenError::Segment { .. }
        | OpenError::Incomplete(_)
        | OpenError::Device(_)
        | OpenError::NotAModel { .. } => fault(error),
    }
}

fn connect_failure(error: &ConnectError) -> Failure {
    match error {
        ConnectError::NoDaemon { tried } => Failure::NoListener(tried.clone()),
        ConnectError::Io { path, source } => Failure::connecting(path, source),
        ConnectError::TimedOut { path, timeout } => Failure::TimedOut {
            what: format!("mrmd on {}", path.display()),
            after: *timeout,
        },
        ConnectError::Session { .. } => fault(error),
    }
}

/// Any error of the library, in the shape of the daemon's.
fn fault(error: &impl Fault) -> Failure {
    Failure::Refused(ErrorBody {
        code: error.name().into(),
        number: error.number(),
        message: error.to_string(),
        retryable: error.retryable(),
        took_effect: error.took_effect(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn args(model: &str, path: bool, name: bool) -> Open {
        Open {
            model: model.into(),
            path,
            name,
            hold: false,
            device: None,
            reserve: None,
            wait: Duration::ZERO,
            command: Vec::new(),
        }
    }

    #[test]
    fn a_path_is_told_from_a_name() {
        for (model, path, name, expected) in [
            ("org/model", false, false, Named::Name),
            ("./nothing/here", false, false, Named::Path),
            ("../x", false, false, Named::Path),
            ("/x", false, false, Named::Path),
            ("file", true, false, Named::Path),
            // Tests run in the package's directory.
            ("src/bin", false, false, Named::PathHere),
            ("src/bin", false, true, Named::Name),
            ("src", false, false, Named::Name),
        ] {
            assert_eq!(kind_of(&args(model, path, name)), expected, "{model}");
        }
    }
}
