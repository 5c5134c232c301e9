//! Clients: connect, open, list, stat, close.
//!
//! ```
//! use mrm::client::mrm_client_connect;
//! let mut client = std::ptr::null_mut();
//! // SAFETY: the path is NUL-terminated, and `client` may be written.
//! let number = unsafe { mrm_client_connect(c"/nonexistent/mrmd.sock".as_ptr(), &raw mut client) };
//! assert_eq!(number, mrm::number::mrm_error_e::NoDaemon as i32);
//! assert!(client.is_null());
//! ```

use crate::error::Failure;
use crate::guard;
use crate::model::{mrm_model_h, mrm_model_h_t};
use crate::number::Local;
use crate::pointer::{Out, borrow, give, optional_path, optional_text, path, read_sized, take};
use crate::pointer::{null, text, text_of, write_sized};
use crate::types::{
    MRM_WAIT_DEFAULT, mrm_list_f, mrm_open_options_t, mrm_stat_t, mrm_state_e, mrm_tier_e,
    mrm_wait_for_e,
};
use mrm_client::{
    Client, ConnectOptions, Devices, Model, ModelRow, ModelState, OpenError, OpenOptions, Tier,
    WaitFor,
};
use std::ffi::{c_char, c_int, c_void};
use std::mem::offset_of;
use std::time::Duration;

/// A client: a session with the daemon. Opaque.
pub struct mrm_client_h_t {
    client: Client,
}

/// A client that you own; give it to `mrm_client_close`.
pub type mrm_client_h = *mut mrm_client_h_t;

/// A client, borrowed for the call.
pub type mrm_client_ref = *const mrm_client_h_t;

/// Connects to the daemon behind the socket `socket_path`; NULL: to the node's daemon, found as
/// `$MRM_SOCKET`, `$MRM_RUNTIME_DIR/mrmd.sock`, `$XDG_RUNTIME_DIR/mrm/mrmd.sock`, then
/// `/run/mrm/mrmd.sock`. Waits for two seconds at most.
///
/// A client that outlives the daemon connects anew by itself, and what is open stays open: see
/// `mrm_model_leased`. Opens wait, as long as their options say, for a daemon that is away. While
/// models are open, a thread of the library waits for the end of the session; it takes no signals.
/// With `MRM_RECONNECT=0` in the environment there is none: the next call connects anew, and opens
/// fail at once where no daemon listens.
///
/// Threads: any, at any time.
///
/// # Safety
/// `socket_path` is NULL or NUL-terminated; `client` may be written.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mrm_client_connect(
    socket_path: *const c_char,
    client: *mut mrm_client_h,
) -> c_int {
    guard::call(|| {
        // SAFETY: the caller says that `client` may be written.
        let out = unsafe { Out::handle(client, "client") }?;
        // SAFETY: the caller says that it is NULL or NUL-terminated.
        let connected = match unsafe { optional_path(socket_path) } {
            Some(path) => Client::connect_to(path),
            None => Client::connect(),
        };
        let client = connected.map_err(|e| Failure::of(&e))?;
        out.set(give(mrm_client_h_t { client }));
        Ok(())
    })
}

/// Connects as `mrm_client_connect` does and opens `name` as `mrm_client_open` does, with one message
/// there: what a process does that was just started and needs one model. It saves the wait for the
/// daemon's hello. When either fails, there is neither a client nor a model.
///
/// Threads: any, at any time.
///
/// # Safety
/// As `mrm_client_connect` and `mrm_client_open`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mrm_client_connect_open(
    socket_path: *const c_char,
    name: *const c_char,
    options: *const mrm_open_options_t,
    client: *mut mrm_client_h,
    model: *mut mrm_model_h,
) -> c_int {
    guard::call(|| {
        // SAFETY: the caller says that both may be written.
        let outs = unsafe { (Out::handle(client, "client"), Out::handle(model, "model")) };
        let (client, model) = (outs.0?, outs.1?);
        // SAFETY: the caller says that it is NULL or NUL-terminated, and the name NUL-terminated.
        let (path, name) = unsafe { (optional_path(socket_path), text(name, "name")?) };
        // SAFETY: the caller's promise about `options`, passed on.
        let options = unsafe { open_options(options) }?;
        let connect = match path {
            Some(path) => ConnectOptions::new().socket(path),
            None => ConnectOptions::new(),
        };
        let opened = Client::connect_and_open_with(&connect, name, &options);
        let (connected, opened) = opened.map_err(|e| Failure::of(&e))?;
        client.set(give(mrm_client_h_t { client: connected }));
        hand_out(&model, Ok(opened))
    })
}

/// Gives a client back. Models that it opened stay open; the session ends with the last of them.
///
/// Threads: any, but no other call may be using this handle, then or later.
///
/// # Safety
/// `client` came from `mrm_client_connect` and was not closed before.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mrm_client_close(client: mrm_client_h) -> c_int {
    guard::call(|| {
        // SAFETY: the caller owns the handle and gives it up.
        drop(unsafe { take(client, "client") }?);
        Ok(())
    })
}

/// Opens the registered model `name`. `options` may be NULL.
///
/// While a model of this name is open in the process, this is the same memory and asks nobody;
/// every handle must be closed all the same. Blocks until the model is in memory, or as much of it
/// as `options->wait_for` says, for as long as the options say.
///
/// Threads: any, at any time; opens of several threads wait side by side.
///
/// # Safety
/// `client` is open; `name` is NUL-terminated; `options` is NULL or begins with its size;
/// `model` may be written.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mrm_client_open(
    client: mrm_client_ref,
    name: *const c_char,
    options: *const mrm_open_options_t,
    model: *mut mrm_model_h,
) -> c_int {
    guard::call(|| {
        // SAFETY: the caller says that `model` may be written.
        let out = unsafe { Out::handle(model, "model") }?;
        // SAFETY: the caller says that the client is open and the name NUL-terminated.
        let (client, name) = unsafe { (borrow(client, "client")?, text(name, "name")?) };
        // SAFETY: the caller's promise about `options`, passed on.
        let options = unsafe { open_options(options) }?;
        hand_out(&out, client.client.open_with(name, &options))
    })
}

/// Opens `count` registered models, whose names `names` points to, with one message there and as few
/// back as hold the descriptors of all. All of them or none: when one cannot be opened, those that
/// were are given back, and the error is that of the first that was not. Otherwise as
/// `mrm_client_open`; `models` gets one handle a name, in order.
///
/// Threads: any, at any time.
///
/// # Safety
/// `client` is open; `names` has `count` texts, each NUL-terminated; `options` is NULL or begins
/// with its size; `models` has room for `count` handles.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mrm_client_open_many(
    client: mrm_client_ref,
    names: *const *const c_char,
    count: usize,
    options: *const mrm_open_options_t,
    models: *mut mrm_model_h,
) -> c_int {
    guard::call(|| {
        if count == 0 {
            return Ok(());
        }
        let place = |at: usize| models.wrapping_add(at);
        // SAFETY: the caller says that there is room for so many handles.
        let out = |at| unsafe { Out::handle(place(at), "models") };
        let outs = (0..count).map(out).collect::<Result<Vec<_>, _>>()?;
        // SAFETY: the caller says that the client is open.
        let client = unsafe { borrow(client, "client") }?;
        // SAFETY: the caller says that there are so many names, each NUL-terminated.
        let name = |at: usize| unsafe {
            let name = borrow(names.wrapping_add(at), "names")?;
            text(*name, "a name")
        };
        let names = (0..count).map(name).collect::<Result<Vec<_>, _>>()?;
        // SAFETY: the caller's promise about `options`, passed on.
        let options = unsafe { open_options(options) }?;
        let opened = client.client.open_many(&names, &options).into_iter();
        let opened: Result<Vec<Model>, OpenError> = opened.collect();
        for (out, model) in outs.iter().zip(opened.map_err(|e| Failure::of(&e))?) {
            out.set(give(mrm_model_h_t::new(model)));
        }
        Ok(())
    })
}

/// Opens local files that nobody registered: `path` is one file, a directory that holds one model,
/// or a `model.safetensors.index.json`. The calling process opens them, so that its own
/// permissions count, and passes the descriptors. `options` may be NULL. Otherwise as
/// `mrm_client_open`.
///
/// Threads: any, at any time.
///
/// # Safety
/// `client` is open; `path` is NUL-terminated; `options` is NULL or begins with its size;
/// `model` may be written.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mrm_client_open_path(
    client: mrm_client_ref,
    path: *const c_char,
    options: *const mrm_open_options_t,
    model: *mut mrm_model_h,
) -> c_int {
    guard::call(|| {
        // SAFETY: the caller says that `model` may be written.
        let out = unsafe { Out::handle(model, "model") }?;
        // SAFETY: the caller says that the client is open and the path NUL-terminated.
        let (client, path) = unsafe { (borrow(client, "client")?, self::path(path, "path")?) };
        // SAFETY: the caller's promise about `options`, passed on.
        let options = unsafe { open_options(options) }?;
        hand_out(&out, client.client.open_path_with(path, &options))
    })
}

/// Calls `callback` for every model whose name begins with `prefix` (NULL: for every model), in
/// the order of their names, until it returns false.
///
/// Threads: any, at any time; the callback runs on the calling thread.
///
/// # Safety
/// `client` is open; `prefix` is NULL or NUL-terminated; `callback` keeps to `mrm_list_f`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mrm_client_list(
    client: mrm_client_ref,
    prefix: *const c_char,
    callback: mrm_list_f,
    user: *mut c_void,
) -> c_int {
    guard::call(|| {
        // SAFETY: the caller says that the client is open and the prefix NUL-terminated.
        let (client, prefix) =
            unsafe { (borrow(client, "client")?, optional_text(prefix, "prefix")?) };
        let callback = callback.ok_or_else(|| null("callback"))?;
        let rows = client
            .client
            .list(prefix.unwrap_or(""))
            .map_err(|e| Failure::of(&e))?;
        for row in &rows {
            let stat = describe(row, None);
            // SAFETY: the caller's own function, given what its text promises.
            if !unsafe { callback(&raw const stat, user) } {
                break;
            }
        }
        Ok(())
    })
}

/// Tells what the daemon knows of the model `name`, without opening it. `stat->name` is empty.
///
/// Threads: any, at any time.
///
/// # Safety
/// `client` is open; `name` is NUL-terminated; `stat` begins with its size and may be written.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mrm_client_stat(
    client: mrm_client_ref,
    name: *const c_char,
    stat: *mut mrm_stat_t,
) -> c_int {
    guard::call(|| {
        // SAFETY: the caller says that the client is open and the name NUL-terminated.
        let (client, name) = unsafe { (borrow(client, "client")?, text(name, "name")?) };
        let stated = client.client.stat(name).map_err(|e| Failure::of(&e))?;
        let mut filled = describe(&stated.row, stated.version.map(|version| version.0));
        filled.name = text_of("");
        // SAFETY: the caller says that `stat` begins with its size and may be written.
        unsafe { write_sized(stat, offset_of!(mrm_stat_t, name), filled, "stat") }
    })
}

/// Says that the registered model `name` will be opened in `in_ms` milliseconds (at most 3,600,000),
/// by this process or another: the daemon may load it before that, while nobody waits for anything
/// else, where it was used last. What is said later takes the place of what was said before.
///
/// Threads: any, at any time.
///
/// # Safety
/// `client` is open; `name` is NUL-terminated.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mrm_client_hint(
    client: mrm_client_ref,
    name: *const c_char,
    in_ms: u64,
) -> c_int {
    guard::call(|| {
        // SAFETY: the caller says that the client is open and the name NUL-terminated.
        let (client, name) = unsafe { (borrow(client, "client")?, text(name, "name")?) };
        let hinted = client.client.hint(name, Duration::from_millis(in_ms));
        hinted.map_err(|e| Failure::of(&e))
    })
}

/// The options as Rust has them.
///
/// # Safety
/// `options` is NULL, or begins with its size and has as many bytes; its callback keeps to
/// `mrm_progress_f`, and its device is NULL or NUL-terminated.
unsafe fn open_options<'a>(options: *const mrm_open_options_t) -> Result<OpenOptions<'a>, Failure> {
    let mut chosen = OpenOptions::new();
    if options.is_null() {
        return Ok(chosen);
    }
    let absent = mrm_open_options_t {
        size: 0,
        wait_ms: MRM_WAIT_DEFAULT,
        progress: None,
        user: std::ptr::null_mut(),
        tier: mrm_tier_e::Host as u32,
        reserved: 0,
        device: std::ptr::null(),
        populate: 0,
        wait_for: mrm_wait_for_e::All as u32,
        reserve_bytes: 0,
    };
    let least_bytes = offset_of!(mrm_open_options_t, progress);
    // SAFETY: this function's own contract; any bytes are a valid mrm_open_options_t.
    let given = unsafe { read_sized(options, least_bytes, absent, "options") }?;
    if given.wait_ms != MRM_WAIT_DEFAULT {
        chosen = chosen.wait(Duration::from_millis(given.wait_ms));
    }
    // SAFETY: this function's own contract.
    chosen = chosen.tier(unsafe { tier(&given) }?);
    if given.populate > 1 {
        let message = "`options->populate` is neither 0 nor 1";
        return Err(Failure::local(Local::BadArgument, message.to_owned()));
    }
    chosen = chosen.populate(given.populate == 1);
    chosen = chosen.wait_for(wait_for(given.wait_for)?);
    chosen = chosen.reserve_bytes(given.reserve_bytes);
    if let Some(callback) = given.progress {
        let user = given.user;
        chosen = chosen.on_progress(move |progress| {
            // SAFETY: the caller's own function with its own pointer, on its own thread.
            unsafe { callback(progress.loaded_bytes, progress.total_bytes, user) };
        });
    }
    Ok(chosen)
}

fn wait_for(number: u32) -> Result<WaitFor, Failure> {
    match number {
        all if all == mrm_wait_for_e::All as u32 => Ok(WaitFor::All),
        layout if layout == mrm_wait_for_e::Layout as u32 => Ok(WaitFor::Layout),
        other => Err(Failure::local(
            Local::BadArgument,
            format!("`options->wait_for` is {other}, which is no number of mrm_wait_for_e"),
        )),
    }
}

/// In which memory the weights are wanted.
///
/// # Safety
/// `given.device` is NULL or NUL-terminated.
unsafe fn tier(given: &mrm_open_options_t) -> Result<Tier, Failure> {
    let bad = |message: String| Failure::local(Local::BadArgument, message);
    // SAFETY: this function's own contract.
    let device = unsafe { optional_text(given.device, "options->device") }?;
    let devices = match device.map(str::parse::<Devices>) {
        None => Devices::Visible,
        Some(Ok(devices)) => devices,
        Some(Err(why)) => return Err(bad(format!("`options->device`: {why}"))),
    };
    if given.reserved != 0 {
        return Err(bad(
            "`options->reserved` is not 0; upgrade libmrm".to_owned()
        ));
    }
    match given.tier {
        tier if tier == mrm_tier_e::Device as u32 => Ok(Tier::Device(devices)),
        tier if tier == mrm_tier_e::Best as u32 => Ok(Tier::Best(devices)),
        tier if tier != mrm_tier_e::Host as u32 => Err(bad(format!(
            "`options->tier` is {tier}, which is no number of mrm_tier_e"
        ))),
        _ if device.is_some() => Err(bad(
            "`options->device` is set, but `options->tier` asks for host memory; set both"
                .to_owned(),
        )),
        _ => Ok(Tier::Host),
    }
}

fn hand_out(out: &Out<mrm_model_h>, opened: Result<Model, OpenError>) -> Result<(), Failure> {
    let model = opened.map_err(|e| Failure::of(&e))?;
    out.set(give(mrm_model_h_t::new(model)));
    Ok(())
}

fn describe(row: &ModelRow, version: Option<u64>) -> mrm_stat_t {
    let state = match row.state {
        ModelState::Absent => mrm_state_e::Absent,
        ModelState::Loading => mrm_state_e::Loading,
        ModelState::Resident => mrm_state_e::Resident,
        ModelState::Partial => mrm_state_e::Partial,
    };
    mrm_stat_t {
        size: size_of::<mrm_stat_t>(),
        name: text_of(row.name.as_str()),
        bytes: row.bytes,
        leases: row.leases,
        version: version.unwrap_or(0),
        state: state as u32,
        registered: row.registered,
        pinned: row.pinned,
        has_version: version.is_some(),
    }
}
