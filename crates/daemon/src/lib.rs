//! gantryd: configuration, wiring, listeners and in-process use.
