//! What a policy would have had to load: recorded requests, replayed through the decider of `mrmd`.
//!
//! The decider is the daemon's own, with the daemon's own policies; only what it decides about is
//! pretended. A [`Trace`](trace::Trace) says who was asked for when, a
//! [`Catalogue`](catalogue::Catalogue) how large each model is and what it takes to load and to
//! run; [`Workload::of`](workload::Workload::of) joins them. A [`study`] runs each
//! [`Contender`](contender::Contender) at each [size](size::Sizes) and gives a
//! [`Row`](figures::Row) of figures for each; [`plot`] draws them.
//!
//! ```
//! use mrm_simulate::catalogue::Catalogue;
//! use mrm_simulate::study::{Options, study};
//! use mrm_simulate::trace::{Trace, TraceOptions};
//! use mrm_simulate::workload::{Binding, Workload};
//!
//! let trace = "t_s,model\n0,a\n1,b\n2,a\n3,c\n4,a\n";
//! let trace = Trace::read("trace.csv".as_ref(), trace.as_bytes(), &TraceOptions::default())?;
//! let models = "model,bytes,load_s,exec_s\na,100,2.5,0.1\nb,100,1,0.1\nc,100,1,0.1\n";
//! let models = Catalogue::read("models.csv".as_ref(), models.as_bytes())?;
//! let (workload, _) = Workload::of(&trace, &models, &Binding::default())?;
//! let options = Options::new("lru,gc".parse()?, "200B".parse()?);
//! let done = study(&workload, &options, &|_, _| {})?;
//! assert_eq!(done.rows[0].policy, "lru");
//! assert_eq!(done.rows[0].total_load_seconds, 4.5);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
#![forbid(unsafe_code)]

pub mod catalogue;
pub mod contender;
pub mod engine;
pub mod figures;
pub mod plot;
pub mod size;
pub mod study;
pub mod trace;
pub mod workload;

mod random;
mod text;
