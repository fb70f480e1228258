//! Development tasks: code generation, wire dump, tidy checks.

fn main() {}
