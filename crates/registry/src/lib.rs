//! Registry client: hosts, authentication, resolve, fetch and push.
