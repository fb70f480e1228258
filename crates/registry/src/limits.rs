//! Every limit of the registry client, with its reason.

use std::time::Duration;

use gantry_core::deadlines;

/// Redirects followed for one request; Go's and every browser's bound.
pub const REDIRECTS_MAX: usize = 10;

/// How often the hosts are walked for one request before it fails.
pub const ATTEMPTS_MAX: u32 = 4;

/// How often a blob stream reconnects without a single byte of progress in between.
pub const RESUMES_WITHOUT_PROGRESS_MAX: u32 = 4;

/// Pause before the first repetition; it doubles with each one.
pub const BACKOFF_FIRST: Duration = Duration::from_millis(200);

/// Longest pause that we choose ourselves.
pub const BACKOFF_MAX: Duration = Duration::from_secs(5);

/// Longest `Retry-After` that is obeyed; a registry that asks for more fails the pull instead,
/// for nobody waits that long.
pub const RETRY_AFTER_MAX: Duration = Duration::from_secs(60);

/// Deadline of connecting, TLS included, unless `dial_timeout` says otherwise.
pub const DIAL_TIMEOUT: Duration = deadlines::REGISTRY_CONNECT;

/// Deadline from sending a request to its response head.
pub const RESPONSE_TIMEOUT: Duration = deadlines::REGISTRY_RESPONSE;

/// A body that brings less than [`STALL_BYTES_MIN`] in this much waiting is stalled. Only time
/// spent waiting for the network counts, never time spent unpacking.
pub const STALL_WINDOW: Duration = deadlines::REGISTRY_STALL;

/// See [`STALL_WINDOW`]: about one KiB a second, below any link worth waiting for.
pub const STALL_BYTES_MIN: u64 = 32 * 1024;

/// Slowest upload, in bytes per second, that a request's deadline allows for.
pub const UPLOAD_RATE_MIN: u64 = 32 * 1024;

/// Largest answer of a token server, in bytes. Real ones are below 16 KiB.
pub const TOKEN_SIZE_MAX: usize = 1 << 20;

/// How long a token is used that does not say how long it lives (the token spec's default).
pub const TOKEN_LIFETIME_DEFAULT: Duration = Duration::from_secs(60);

/// A token is renewed this much before it ends, for clocks differ and requests take time.
pub const TOKEN_LIFETIME_MARGIN: Duration = Duration::from_secs(10);

/// Tokens kept; the oldest goes first. One per repository and action in flight is enough.
pub const TOKENS_MAX: usize = 1024;

/// How much of an error's body is read and shown, in bytes.
pub const ERROR_BODY_MAX: usize = 4096;

/// Largest `hosts.toml`, in bytes.
pub const HOSTS_TOML_SIZE_MAX: u64 = 1 << 20;

/// Idle connections kept per host, above what one pull uses in parallel.
pub const IDLE_CONNECTIONS_PER_HOST_MAX: usize = 16;

/// How long an idle connection is kept.
pub const IDLE_CONNECTION_LIFETIME: Duration = Duration::from_secs(60);

/// Distinct client configurations kept: one per set of TLS files and dial timeout.
pub const CLIENTS_MAX: usize = 64;

/// Blobs up to this size are pushed in one request, in bytes.
pub const MONOLITHIC_PUSH_MAX: u64 = 16 << 20;

/// Size of an upload chunk, in bytes: what a broken connection makes us send again at most.
pub const PUSH_CHUNK: u64 = 16 << 20;

/// Size of the pieces in which a blob is read for upload, in bytes.
pub const PUSH_READ: usize = 256 * 1024;

/// Blobs in a row that a repository turns out not to have before small ones are sent without asking
/// for them: it is new then, or the image shares nothing with what is in it.
pub const MISSES_MIN: u32 = 4;

/// Blobs up to this size, in bytes, may be sent without asking: that costs less than the question.
pub const UNASKED_PUSH_MAX: u64 = 64 << 10;

/// Addresses outside the registry that are tried for one blob; real ones have one.
pub const FOREIGN_URLS_MAX: usize = 4;

/// Blobs from this size on, in bytes, may be fetched in parts side by side. Smaller ones are done
/// before it is known whether that helps.
pub const PARALLEL_SIZE_MIN: u64 = 32 << 20;

/// Connections for one blob, its first included: what other clients open, so that no registry
/// takes us for an attack.
pub const CONNECTIONS_PER_BLOB_MAX: u64 = 8;

/// Smallest part of a blob, in bytes: the answer's head is nothing beside it.
pub const PART_BYTES_MIN: u64 = 512 << 10;

/// Largest part of a blob, in bytes: what is held in memory for each connection.
pub const PART_BYTES_MAX: u64 = 4 << 20;

/// Bytes that all blobs of a resolver hold in memory ahead of their streams.
pub const AHEAD_BYTES_MAX: u64 = 32 << 20;

/// What one connection more must add to the rate to be kept, in percent.
pub const GAIN_PERCENT_MIN: u64 = 15;

/// HTTP/2: bytes under way for one response; a long, fast link needs as many.
pub const HTTP2_STREAM_WINDOW: u32 = 4 << 20;

/// HTTP/2: bytes under way on one connection.
pub const HTTP2_CONNECTION_WINDOW: u32 = 16 << 20;

/// Manifests that may refer to one: an image has some signatures and attestations, not thousands.
pub const REFERRERS_MAX: usize = 4096;

/// Pages in which a registry may list them.
pub const REFERRER_PAGES_MAX: usize = 64;
