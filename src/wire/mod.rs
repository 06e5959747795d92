//! Header views over bytes: checked constructors, getters and setters. Names nothing else of this crate.
