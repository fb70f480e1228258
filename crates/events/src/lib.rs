//! The event exchange and journal.
//!
//! An [`Exchange`] takes events ([`Exchange::publish`] from the daemon itself,
//! [`Exchange::forward`] from shims) and hands each to every [`Subscription`] whose filters match.
//!
//! * **Order.** All subscribers see events in one order, that of the calls.
//! * **No waiting.** Publishing never blocks and never fails because of a reader. Each
//!   subscription has a queue of [`SUBSCRIBER_QUEUE_LEN`] events; one that falls further behind
//!   gets what is queued and then ResourceExhausted, so that it knows to list and subscribe anew.
//! * **Live, with one exception.** Nothing is replayed, except facts from before the start (an exit
//!   while there was no daemon): a subscription made within [`RECOVERED_KEPT`] of the start begins
//!   with those that were published before it. If the daemon is killed before a client has had one,
//!   the next daemon shows it ([`Exchange::open`]). Which facts have been published is in the
//!   journals of the tasks (`runtime::journal`); [`Exchange::hand_over`] tells when they may say so.
//!
//! Payloads stay opaque. Filters on `event.<field>` read them through [`FieldAccess`], which the
//! crate that knows the message types implements.
#![forbid(unsafe_code)]

mod exchange;
mod recovered;
mod topic;

#[cfg(test)]
mod tests;

pub use exchange::{
    Envelope, Event, Exchange, FieldAccess, GATHERED, GATHERED_EACH, GATHERED_MAX, HANDOVER_MAX,
    Handed, NoFields, RECOVERED_KEPT, RECOVERED_MAX, SUBSCRIBER_QUEUE_LEN, SUBSCRIBERS_MAX,
    Subscription,
};
pub use topic::validate_topic;
