//! Building OCI runtime specs from image configs and options.
