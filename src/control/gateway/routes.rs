//! Routes that change while packets flow, by command.

use serde_json::{Value, json};

use super::{
    super::{
        routes::{self, ChangeRoutes, ListRoutes},
        view::{PAGE, refusal},
    },
    Gateway,
};
use crate::config::build;

impl Gateway {
    /// Changes routes as asked for: workers see all of it with their next burst.
    #[must_use]
    pub fn change_routes(&mut self, change: &ChangeRoutes) -> Value {
        let now = self.clock.now();
        // Workers have had time since the change before. Whoever sends one after the other would otherwise have the table
        // grow with each: what a tick finds is always of the newest, and too young.
        self.free_routes();
        match routes::apply(&self.config, &self.built, &mut self.kept, change, now) {
            Ok(changed) => {
                self.routes_changed();
                if changed.tunnels || self.kept.routes.is_untidy() {
                    self.renewal_due = true;
                    self.renew_routes();
                }
                json!({ "ok": { "changed": changed.routes } })
            }
            Err(wrong) => {
                json!({ "error": wrong.join("; "), "lines": wrong })
            }
        }
    }

    /// A page of routes.
    #[must_use]
    pub fn list_routes(&self, request: &ListRoutes) -> Value {
        match routes::list(&self.config, &self.built, &self.kept, request, PAGE) {
            Ok(page) => json!({ "ok": page }),
            Err(error) => refusal(&error),
        }
    }

    /// What was taken out of route tables is used again when every worker has begun a new burst.
    fn routes_changed(&mut self) {
        // Nothing else changes with it: whoever counts in the newest segment goes on doing so.
        let counts = self.counting == self.epoch;
        self.epoch += 1;
        self.mailboxes.iter().for_each(|mailbox| mailbox.want(self.epoch));
        if counts {
            self.counting = self.epoch;
        }
        self.routes_passed = false;
    }

    /// Does what is due about routes: frees what no worker can see any more, and has tunnels follow.
    pub(super) fn tick_routes(&mut self) {
        self.free_routes();
        if self.renewal_due {
            self.renew_routes();
        }
    }

    /// Frees what no worker can see any more.
    fn free_routes(&mut self) {
        if !self.routes_passed && self.mailboxes.iter().all(|mailbox| mailbox.has_passed(self.epoch)) {
            self.kept.quiesce();
            self.routes_passed = true;
        }
    }

    /// Has tunnels follow the routes as they are now. What cannot be done now is done later.
    fn renew_routes(&mut self) {
        if self.can_publish().is_err() {
            return;
        }
        let (now, tidy) = (self.clock.now(), self.kept.routes.is_untidy());
        self.renewal_due = false;
        let (tables, unpin) = match build::renewed(&self.config, &self.built, &mut self.kept, tidy, now) {
            Ok(Some(renewed)) => renewed,
            Ok(None) => return,
            Err(error) => {
                tracing::error!("tunnels do not follow the routes: {error}");
                return;
            }
        };
        let old = std::mem::replace(&mut self.built.tables, tables);
        match self.publish() {
            Ok(()) => self.unpin.push((self.epoch, unpin)),
            Err(error) => {
                self.built.tables = old;
                // Those of the tables in force, beside those of the ones that came to nothing.
                self.kept.keep_pinned(unpin);
                tracing::error!("tunnels do not follow the routes: {error}");
            }
        }
    }
}
