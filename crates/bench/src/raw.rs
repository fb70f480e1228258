//! A client that costs next to nothing: it is the daemon that is to be measured, and both have the
//! same two cores. No more of gRPC than the lengths of messages; nothing is decoded.

use std::path::Path;

use bytes::{BufMut as _, Bytes, BytesMut};
use gantry_errdefs::{Error, Result};
use prost::Message;
use tokio::net::UnixStream;

/// Bytes that a message begins with: whether it is compressed, and its length (gRPC over HTTP/2,
/// *Length-Prefixed-Message*).
const PREFIX_LEN: usize = 5;

/// Receive windows: nobody ever waits for one.
const WINDOW_LEN: u32 = 1 << 30;

/// A connection in the runtime it was made in. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Connection {
    requests: h2::client::SendRequest<Bytes>,
}

/// A call whose answer may not have begun.
pub(crate) struct Call {
    answer: h2::client::ResponseFuture,
}

/// Messages as they come, still encoded.
pub(crate) struct Messages {
    body: h2::RecvStream,
    buffer: BytesMut,
}

impl Connection {
    pub(crate) async fn open(socket: &Path) -> Result<Self> {
        let io = UnixStream::connect(socket).await.map_err(|e| Error::io("connecting", e))?;
        let (requests, connection) = h2::client::Builder::new()
            .initial_window_size(WINDOW_LEN)
            .initial_connection_window_size(WINDOW_LEN)
            .handshake::<_, Bytes>(io)
            .await
            .map_err(broken)?;
        tokio::spawn(connection);
        Ok(Self { requests })
    }

    /// Calls `method`, as in `/package.Service/Method`, with one message.
    pub(crate) async fn call(
        &self,
        method: &str,
        namespace: &str,
        message: &impl Message,
    ) -> Result<Call> {
        let request = http::Request::post(format!("http://localhost{method}"))
            .header("content-type", "application/grpc")
            .header("te", "trailers")
            .header("containerd-namespace", namespace)
            .body(())
            .expect("methods and namespaces are plain text");
        let mut body = BytesMut::new();
        body.put_u8(0);
        body.put_u32(u32::try_from(message.encoded_len()).expect("requests are short"));
        message.encode(&mut body).expect("the buffer grows");
        let mut requests = self.requests.clone().ready().await.map_err(broken)?;
        let (answer, mut sender) = requests.send_request(request, false).map_err(broken)?;
        sender.send_data(body.freeze(), true).map_err(broken)?;
        Ok(Call { answer })
    }
}

impl Call {
    pub(crate) async fn answer(self) -> Result<Messages> {
        let body = self.answer.await.map_err(broken)?.into_body();
        Ok(Messages { body, buffer: BytesMut::new() })
    }
}

impl Messages {
    /// The next message.
    pub(crate) async fn next(&mut self) -> Result<BytesMut> {
        loop {
            if let Some(message) = next_message(&mut self.buffer) {
                return Ok(message);
            }
            let data = self.body.data().await;
            let data = data.ok_or_else(|| Error::data_loss("the answer has ended"))?;
            let data = data.map_err(broken)?;
            self.body.flow_control().release_capacity(data.len()).map_err(broken)?;
            self.buffer.extend_from_slice(&data);
        }
    }
}

/// Takes a message off the front, if it is there to its end.
fn next_message(buffer: &mut BytesMut) -> Option<BytesMut> {
    let [_, a, b, c, d] = *buffer.first_chunk::<PREFIX_LEN>()?;
    let len = PREFIX_LEN + usize::try_from(u32::from_be_bytes([a, b, c, d])).ok()?;
    (buffer.len() >= len).then(|| buffer.split_to(len).split_off(PREFIX_LEN))
}

fn broken(err: h2::Error) -> Error {
    Error::unavailable(format!("a bench's connection: {err}"))
}
