//! What a server serves.

use std::future::Future;
use std::pin::Pin;

use bytes::Bytes;
use gantry_errdefs::{Error, Result};
use prost::Message;

use crate::{Context, Stream};

/// The answer to come of one call: an encoded message.
pub type Reply = Pin<Box<dyn Future<Output = Result<Vec<u8>>> + Send>>;

/// The end of one stream: with a last message when only the client streams, without one when
/// the server does, or with an error.
pub type Finish = Pin<Box<dyn Future<Output = Result<Option<Vec<u8>>>> + Send>>;

/// Starts the handler of a stream.
pub type Open = Box<dyn FnOnce(Stream) -> Finish + Send>;

/// A service: a name and its methods. Generated servers implement it.
pub trait Service: Send + Sync + 'static {
    /// The full name on the wire, such as `containerd.task.v2.Task`.
    fn name(&self) -> &'static str;

    /// Starts a call with one message each way. The future runs to its end even when the caller
    /// has gone away ([`Context::done`]).
    fn call(&self, method: &str, ctx: Context, payload: Bytes) -> Reply;

    /// Starts a method with a stream on either side; none when the method has no streams, as
    /// is the case for all methods of most services.
    fn stream(&self, _method: &str, _ctx: &Context) -> Option<Open> {
        None
    }
}

/// Decodes the request, runs `handler` and encodes the answer.
pub fn reply<Req, Res, F>(payload: Bytes, handler: impl FnOnce(Req) -> F + Send + 'static) -> Reply
where
    Req: Message + Default + 'static,
    Res: Message,
    F: Future<Output = Result<Res>> + Send,
{
    Box::pin(async move {
        let request = Req::decode(payload)
            .map_err(|e| Error::invalid_argument(format!("request: {e}")).with_source(e))?;
        Ok(handler(request).await?.encode_to_vec())
    })
}

/// The error of a method that is not served.
pub fn unimplemented(service: &str, method: &str) -> Error {
    Error::unimplemented(format!("/{service}/{method}"))
}

/// A reply that says that `method` is not served.
pub fn unknown_method(service: &'static str, method: &str) -> Reply {
    let err = unimplemented(service, method);
    Box::pin(async move { Err(err) })
}
