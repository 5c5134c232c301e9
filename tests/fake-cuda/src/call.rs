//! What every call goes through: faults, delays, the log, and a wall against panics.

use std::cell::Cell;
use std::fs::{File, OpenOptions};
use std::io::Write as _;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;

use crate::code;
use crate::context;
use crate::faults::{self, Effect};
use crate::process::process;
use crate::settings::{Settings, settings};

/// What a function needs before it does anything.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Needs {
    /// Nothing at all.
    Nothing,
    /// `cuInit` in this process.
    Init,
}

thread_local! {
    static IN_CALLBACK: Cell<bool> = const { Cell::new(false) };
    /// The error of the work that the present call queues.
    static QUEUED_FAULT: Cell<u32> = const { Cell::new(0) };
    static FUNCTION: Cell<&'static str> = const { Cell::new("") };
}

/// The process that called `cuInit`, or zero: a forked child is not it.
static OWNER: AtomicU32 = AtomicU32::new(0);

/// Notes that this process is initialised.
pub(crate) fn initialised() {
    OWNER.store(std::process::id(), Ordering::SeqCst);
}

/// Whether this is a forked child of a process that was initialised.
pub(crate) fn is_forked() -> bool {
    let owner = OWNER.load(Ordering::SeqCst);
    owner != 0 && owner != std::process::id()
}

/// Runs one call of the driver and returns its `CUresult`.
pub(crate) fn call(
    function: &'static str,
    needs: Needs,
    body: impl FnOnce() -> Result<(), u32>,
) -> u32 {
    let guarded = AssertUnwindSafe(|| {
        let settings = settings()?;
        let outcome = before(settings, function, needs).and_then(|()| body());
        log(settings, function, outcome.err().unwrap_or(0));
        outcome
    });
    match catch_unwind(guarded) {
        Ok(outcome) => outcome.err().unwrap_or(0),
        Err(_) => code::UNKNOWN,
    }
}

fn before(settings: &Settings, function: &'static str, needs: Needs) -> Result<(), u32> {
    if settings.init_error == code::STUB_LIBRARY {
        return Err(code::STUB_LIBRARY);
    }
    if settings.missing.contains(function) {
        return Err(code::NOT_FOUND);
    }
    if needs != Needs::Nothing && IN_CALLBACK.get() {
        return Err(code::NOT_PERMITTED);
    }
    FUNCTION.set(function);
    QUEUED_FAULT.set(0);
    thread::sleep(settings.delay(function, false)); // The driver is told to be so slow.
    if let Some(rule) = faults::strike(settings, function) {
        match rule.effect {
            Effect::Once => return Err(rule.code),
            Effect::Sticky => {
                if let Ok(process) = process() {
                    let current =
                        context::top().and_then(|top| context::active(&process, top).ok());
                    process.poison(current, rule.code);
                }
                return Err(rule.code);
            }
            Effect::Queued => QUEUED_FAULT.set(rule.code),
        }
    }
    if needs == Needs::Init && OWNER.load(Ordering::SeqCst) != std::process::id() {
        return Err(code::NOT_INITIALIZED);
    }
    Ok(())
}

/// The function that this thread is in.
pub(crate) fn function() -> &'static str {
    FUNCTION.get()
}

/// The error that the work of this call is to end in, if any.
pub(crate) fn queued_fault() -> Option<u32> {
    Some(QUEUED_FAULT.get()).filter(|code| *code != 0)
}

/// Runs a host function, which must not call the driver.
pub(crate) fn on_callback_thread(work: impl FnOnce()) {
    IN_CALLBACK.set(true);
    work();
    IN_CALLBACK.set(false);
}

/// Appends `pid function result`; one write per line, so lines of several processes stay whole.
fn log(settings: &Settings, function: &str, result: u32) {
    static LOG: OnceLock<Option<File>> = OnceLock::new();
    let file = LOG.get_or_init(|| {
        let path = settings.log.as_ref()?;
        match OpenOptions::new().append(true).create(true).open(path) {
            Ok(file) => Some(file),
            Err(error) => {
                eprintln!("mrm-fake-cuda: {}: {error}", path.display());
                None
            }
        }
    });
    if let Some(mut file) = file.as_ref() {
        let line = format!("{} {function} {result}\n", std::process::id());
        // A full disk must not change what the driver does.
        let _written = file.write_all(line.as_bytes());
    }
}

/// Defines functions of the driver: exported, guarded, and listed for `cuGetProcAddress`.
macro_rules! driver {
    ($(
        $(#[$doc:meta])*
        $needs:ident fn $name:ident($($arg:ident: $ty:ty),* $(,)?) $body:block
    )*) => {
        $(
            $(#[$doc])*
            ///
            /// # Safety
            /// Arguments are as the CUDA driver API demands.
            #[unsafe(no_mangle)]
            pub unsafe extern "C" fn $name($($arg: $ty),*) -> u32 {
                $crate::call::call(stringify!($name), $crate::call::Needs::$needs, || $body)
            }
        )*

        /// The functions of this module by exported name.
        pub(crate) const SYMBOLS: &[(&str, $crate::call::Symbol)] = &[
            $((stringify!($name), $crate::call::Symbol($name as *const std::ffi::c_void)),)*
        ];
    };
}
pub(crate) use driver;

/// The address of a function.
#[derive(Clone, Copy)]
pub(crate) struct Symbol(pub(crate) *const std::ffi::c_void);

// SAFETY: the address of code, which any thread may read and call.
unsafe impl Sync for Symbol {}
