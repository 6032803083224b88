//! The client device (91, Fig. 3): joins server and processor, and can read nothing of what it relays.

pub mod deliver;
pub mod pending;
pub mod place;
pub mod placing;
pub mod receive;
pub mod relay;
pub mod store;
pub mod transfer;

use crate::api::Api;
use crate::control::{self, Description};
use crate::home::{Home, Session};
use chipbound_wire::{Code, Refusal, Result};
use std::path::Path;

/// What the client device joins, and whom it tells.
pub struct Device<'a> {
    /// Receipts and purchases under way.
    pub home: &'a Home,
    /// The log-in.
    pub session: &'a Session,
    /// The server, over the first path.
    pub api: &'a Api,
    /// The processor's socket.
    pub socket: &'a Path,
    /// Who is told how it goes.
    pub story: &'a dyn Story,
}

/// Is told how a delivery goes.
pub trait Story: Send + Sync {
    /// A step of Fig. 2 was done: its number, one line for people, the same for machines.
    fn step(&self, step: u16, text: &str, facts: serde_json::Value);
    /// So many bytes of so many were received.
    fn progress(&self, done: u64, total: u64);
}

impl Device<'_> {
    /// Asks the processor who it is; [`Code::NotEnrolled`] when it has no certificate yet.
    pub async fn processor(&self) -> Result<Description> {
        let socket = self.socket.to_owned();
        let description = blocking(move || control::describe(&socket)).await?;
        if description.chain.is_empty() || description.root.is_empty() {
            return Err(Refusal::new(Code::NotEnrolled, format!("the processor at {} has no certificate yet", self.socket.display())));
        }
        Ok(description)
    }
}

/// Runs something that blocks on a thread of its own.
pub(crate) async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    tokio::task::spawn_blocking(work).await.map_err(|e| Refusal::new(Code::Internal, "a thread of the client ended").because(e))?
}
