//! The scheduler under a seeded load, with an executor that knows what every slot must hold.
//!
//! ```
//! let report = pagedkv_core::simulator::simulate(7)?;
//! assert_eq!(report.trace, pagedkv_core::simulator::simulate(7)?.trace);
//! # Ok::<(), pagedkv_core::simulator::Failure>(())
//! ```
//!
//! [`Scenario`] turns a seed into a configuration and requests, [`Truth`] says what each request
//! must get, [`Oracle`] runs the batches, [`Simulation`] plays them against a
//! [`Scheduler`](crate::Scheduler) and checks everything after every call. Nothing here is random:
//! a seed always gives the same run.

mod inspect;
mod oracle;
mod report;
mod rng;
mod scenario;
mod simulation;
mod toy_text;
mod truth;

pub use inspect::{inspect_batch, touched_blocks};
pub use oracle::{Oracle, Samples};
pub use report::{Failure, Report};
pub use rng::{Rng, mix};
pub use scenario::{Events, Scenario};
pub use simulation::{Simulation, simulate};
pub use toy_text::ToyText;
pub use truth::{Truth, Voice};
