//! The event exchange and journal.
