//! Scripts: what the decider does, event by event. One file per subject.

mod opens;
mod operator;
mod room;
mod support;
