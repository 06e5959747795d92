//! The worker loop, the pipeline and the publication of tables.

pub mod clock;
pub mod mailbox;
pub mod pipeline;
pub mod waker;
pub mod worker;

pub use clock::Clock;
pub use mailbox::{Command, Mailbox, Retired, Snapshot};
pub use pipeline::Pipeline;
pub use waker::Waker;
pub use worker::{Idle, Ledger, Worker};
