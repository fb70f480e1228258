//! Tar layers: apply and diff with OCI whiteouts.
