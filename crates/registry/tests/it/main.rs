//! The registry client against a fake registry that fails to order, and against a real one.
#![allow(clippy::unwrap_used)]

mod auth;
mod fake;
mod faults;
mod pushes;
mod ranges;
mod real;
mod referrers;
mod tls;
