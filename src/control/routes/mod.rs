//! Routes while the gateway runs: those that a routing daemon or an operator brings, and what is known of all.

mod change;
mod list;

pub use change::{ChangeRoutes, Changed, Learned, RouteLine, Verb, apply};
pub use list::{ListRoutes, RoutePage, RouteRow, list};
