//! The envelopes of requests and answers.
//!
//! The api crate has the same messages as generated code; it stands above this crate, so the
//! four that the transport itself needs are written out here.

use std::time::Duration;

use bytes::Bytes;
use gantry_errdefs::{Error, Result};

use crate::Context;

/// What opens a stream.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct Request {
    #[prost(string, tag = "1")]
    pub(crate) service: String,
    #[prost(string, tag = "2")]
    pub(crate) method: String,
    #[prost(bytes = "bytes", tag = "3")]
    pub(crate) payload: Bytes,
    /// Nanoseconds that the caller waits; 0 means for ever.
    #[prost(int64, tag = "4")]
    pub(crate) timeout_nano: i64,
    #[prost(message, repeated, tag = "5")]
    pub(crate) metadata: Vec<KeyValue>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct KeyValue {
    #[prost(string, tag = "1")]
    pub(crate) key: String,
    #[prost(string, tag = "2")]
    pub(crate) value: String,
}

/// What ends a call.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct Response {
    #[prost(message, optional, tag = "1")]
    pub(crate) status: Option<Status>,
    #[prost(bytes = "bytes", tag = "2")]
    pub(crate) payload: Bytes,
}

/// `google.rpc.Status` without its details, which no client of shims reads.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct Status {
    #[prost(int32, tag = "1")]
    pub(crate) code: i32,
    #[prost(string, tag = "2")]
    pub(crate) message: String,
}

impl Request {
    pub(crate) fn new(service: &str, method: &str, payload: Vec<u8>, ctx: &Context) -> Self {
        let timeout_nano = ctx
            .timeout
            // Zero means no limit on the wire, so the shortest limit is one nanosecond.
            .map_or(0, |t| i64::try_from(t.as_nanos()).unwrap_or(i64::MAX).max(1));
        Self {
            service: service.to_owned(),
            method: method.to_owned(),
            payload: payload.into(),
            timeout_nano,
            metadata: ctx
                .metadata
                .iter()
                .map(|(key, value)| KeyValue { key: key.clone(), value: value.clone() })
                .collect(),
        }
    }

    /// The limit that the caller set; a negative one has passed already.
    pub(crate) fn timeout(&self) -> Option<Duration> {
        match self.timeout_nano {
            0 => None,
            nanos => Some(Duration::from_nanos(u64::try_from(nanos).unwrap_or(0))),
        }
    }
}

impl Response {
    pub(crate) fn ok(payload: Vec<u8>) -> Self {
        Self { status: None, payload: payload.into() }
    }

    pub(crate) fn err(err: &Error) -> Self {
        let status = Status { code: err.class().code(), message: err.text() };
        Self { status: Some(status), payload: Bytes::new() }
    }

    pub(crate) fn into_result(self) -> Result<Bytes> {
        match self.status {
            Some(status) if status.code != 0 => Err(Error::from_code(status.code, &status.message)),
            _ => Ok(self.payload),
        }
    }
}
