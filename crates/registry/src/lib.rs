//! Registry client: hosts, authentication, resolve, fetch and push.
//!
//! A [`Resolver`] holds what all transfers share: the host configuration ([`Hosts`], from
//! `hosts.toml` directories), [`Credentials`], connections and tokens. From it comes one
//! [`Repository`] per reference, which resolves ([`Repository::resolve`]), fetches
//! ([`Repository::fetch`]: a [`BlobStream`] that resumes by itself) and pushes
//! ([`Repository::push_blob`], [`Repository::push_manifest`]) and lists what refers to a manifest
//! ([`Repository::referrers`]).
//!
//! Every operation walks the hosts configured for the registry in order. A host that is down,
//! refuses, lacks the object, is overloaded or shows a bad certificate is skipped, logged once
//! per repository, and named with its reason in the error when no host is left. When the last
//! host's failure may pass (network, 429, 5xx), the walk is repeated with growing pauses.
//!
//! Connections speak HTTP/2 where TLS negotiates it, else HTTP/1.1. Parts of a big blob that are
//! fetched side by side have TCP connections of their own in any case: one connection shared by
//! all of them would be no faster than it is for one.
//!
//! What is not here: no image knowledge beyond "manifests live under `manifests/`", no storage.
#![forbid(unsafe_code)]

mod auth;
mod challenge;
mod client;
mod credentials;
mod failure;
mod fetch;
mod hosts;
mod http_log;
pub mod limits;
mod push;
mod referrers;
mod repository;
mod resolve;
mod schema1;
mod steps;
mod transport;

pub use client::TlsFiles;
pub use credentials::{Anonymous, AuthRequest, Credential, Credentials, StaticCredentials};
pub use fetch::BlobStream;
pub use hosts::{Capabilities, Host, Hosts, HostsOptions, Scheme, parse_hosts_toml};
pub use http_log::HttpLog;
pub use push::{BlobSource, Pushed};
pub use repository::{Repository, Resolver, ResolverOptions};
pub use resolve::Resolved;
pub use steps::{HostStep, Observer, Step};
