//! c
use crate::{Context, Result};
use prost::Message;
/// A connection.
#[derive(Clone, Debug)]
pub struct Client;
impl Client {
    /// Calls.
    ///
    /// # Errors
    /// x
    pub async fn call<Req: Message, Res: Message + Default>(&self, _service: &str, _method: &str, _request: &Req, _ctx: &Context) -> Result<Res> { todo!() }
}
