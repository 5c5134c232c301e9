//! The whole screen of a terminal, lent for a live view and given back however the view ends.

use crate::failure::Failure;
use crate::signals::{Signals, listen_to};
use rustix::termios::{LocalModes, OptionalActions, Termios, tcgetattr, tcsetattr};
use std::fmt::Write as _;
use std::io::{self, IsTerminal, Read, Write};
use tokio::signal::unix::SignalKind;
use tokio::sync::mpsc;

const ENTER: &str = "\x1b[?1049h\x1b[?25l";
const LEAVE: &str = "\x1b[?25h\x1b[?1049l";
const HOME: &str = "\x1b[H";
const CLEAR_REST_OF_LINE: &str = "\x1b[K";
const CLEAR_BELOW: &str = "\x1b[J";
/// Ctrl-C and Ctrl-D arrive as these while the view is shown.
const CTRL_C: u8 = 3;
const CTRL_D: u8 = 4;

/// The alternate screen. Dropping it restores the terminal.
#[derive(Debug)]
pub(crate) struct Screen {
    saved: Option<Termios>,
}

impl Screen {
    /// Takes the screen; keys are no longer shown, and Ctrl-C becomes a key.
    pub(crate) fn enter() -> Result<Self, Failure> {
        let stdin = io::stdin();
        let saved = if stdin.is_terminal() {
            tcgetattr(&stdin).ok()
        } else {
            None
        };
        let screen = Self { saved };
        if let Some(saved) = &screen.saved {
            let mut keys = saved.clone();
            keys.local_modes
                .remove(LocalModes::ICANON | LocalModes::ECHO | LocalModes::ISIG);
            tcsetattr(&stdin, OptionalActions::Now, &keys)
                .map_err(|cause| Failure::System(format!("cannot set up the terminal: {cause}")))?;
        }
        write_all(ENTER)?;
        Ok(screen)
    }

    /// Shows `text`, cut to `rows`, in place of what was there.
    pub(crate) fn draw(&self, text: &str, rows: usize) -> Result<(), Failure> {
        let mut frame = String::from(HOME);
        for (index, line) in text.lines().take(rows).enumerate() {
            let _ = write!(
                frame,
                "{}{line}{CLEAR_REST_OF_LINE}",
                if index > 0 { "\n" } else { "" }
            );
        }
        frame.push_str(CLEAR_BELOW);
        write_all(&frame)
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        let _ = write_all(LEAVE);
        if let Some(saved) = &self.saved {
            let _ = tcsetattr(io::stdin(), OptionalActions::Now, saved);
        }
    }
}

fn write_all(text: &str) -> Result<(), Failure> {
    let mut stdout = io::stdout().lock();
    stdout.write_all(text.as_bytes())?;
    stdout.flush()?;
    Ok(())
}

/// The ways in which a person or the system ends a view, and a change of the window's size.
#[derive(Debug)]
pub(crate) struct Wishes {
    keys: mpsc::UnboundedReceiver<()>,
    // Kept so that without a keyboard the channel stays open, and silent.
    _keys: mpsc::UnboundedSender<()>,
    interrupt: Signals,
    terminate: Signals,
    hangup: Signals,
    resize: Signals,
}

/// What was wished.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Wish {
    Quit,
    Redraw,
}

impl Wishes {
    /// Begins to listen.
    pub(crate) fn listen() -> Result<Self, Failure> {
        let (sender, keys) = mpsc::unbounded_channel();
        if io::stdin().is_terminal() {
            let sender = sender.clone();
            // The thread ends with the process: a read of a terminal cannot be called off.
            std::thread::spawn(move || wait_for_quit_key(&sender));
        }
        Ok(Self {
            keys,
            _keys: sender,
            interrupt: listen_to(SignalKind::interrupt())?,
            terminate: listen_to(SignalKind::terminate())?,
            hangup: listen_to(SignalKind::hangup())?,
            resize: listen_to(SignalKind::window_change())?,
        })
    }

    /// Waits for the next.
    pub(crate) async fn next(&mut self) -> Wish {
        tokio::select! {
            _ = self.keys.recv() => Wish::Quit,
            _ = self.interrupt.recv() => Wish::Quit,
            _ = self.terminate.recv() => Wish::Quit,
            _ = self.hangup.recv() => Wish::Quit,
            _ = self.resize.recv() => Wish::Redraw,
        }
    }
}

fn wait_for_quit_key(sender: &mpsc::UnboundedSender<()>) {
    for key in io::stdin().lock().bytes() {
        if matches!(key, Ok(b'q' | b'Q' | CTRL_C | CTRL_D) | Err(_)) {
            break;
        }
    }
    let _ = sender.send(());
}
