//! The first path (steps 1001, 1002, 1009) as calls: each route of [`chipbound_wire::api`] by its name.

use crate::home::Session;
use chipbound_transport::{Client, ClientRaw, ServerTrust};
use chipbound_wire::api::{
    Account, Acknowledge, Agreement, Base64, Catalogue, IDEMPOTENCY_HEADER, LogIn, MadeToken, NewOrder, NewRelease, NewToken, Order,
    Payment, Published, Receipts, Redownload, Release, Settled, TICKET_HEADER, Ticket, Tokens, TransferOrder, Transferring, Upload,
};
use chipbound_wire::tlog::{TILE_WIDTH, Tile};
use chipbound_wire::{Digest, KeyId, OrderId, Result};
use http::Method;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::io::AsyncRead;
use zeroize::Zeroizing;

/// Bytes of a bundle of entries of the receipts' log, the largest of its tiles.
pub(crate) const MAX_TILE: usize = 34 * TILE_WIDTH as usize;
/// Things on a page, at most.
const PAGE: usize = 256;
/// Pages of a catalogue that are read, of 256 programs each.
const MAX_PAGES: usize = 64;

/// A server's API in the name of one user.
pub struct Api {
    client: Client,
    token: Zeroizing<String>,
}

impl Api {
    /// Logs in at `server`; the session is what later calls need.
    pub async fn log_in(server: &str, trust: ServerTrust, user: &str, password: &str) -> Result<chipbound_wire::api::Session> {
        let body = LogIn { user: user.to_owned(), password: password.to_owned() };
        Client::new(server, trust)?.post_json("/v1/sessions", None, &[], &body).await
    }

    /// The API with a session that was kept.
    pub fn with(session: &Session) -> Result<Self> {
        Ok(Self { client: Client::new(&session.server, session.trust()?)?, token: Zeroizing::new(session.token.clone()) })
    }

    /// Ends the session at the server.
    pub async fn log_out(&self) -> Result<()> {
        self.client.request(Method::DELETE, "/v1/sessions", Some(&self.token), &[], "application/json", Vec::new(), 1024).await.map(drop)
    }

    /// The user's account.
    pub async fn account(&self) -> Result<Account> {
        self.get("/v1/account").await
    }

    /// The newest release of each program, page by page; at most 64 pages.
    pub async fn programs(&self) -> Result<Vec<Release>> {
        let mut page: Catalogue = self.get("/v1/programs").await?;
        let mut programs = page.programs;
        for _ in 1..MAX_PAGES {
            let Some(cursor) = page.next else { break };
            page = self.get(&format!("/v1/programs?cursor={cursor}")).await?;
            programs.append(&mut page.programs);
        }
        Ok(programs)
    }

    /// Makes an API token.
    pub async fn make_token(&self, new: &NewToken) -> Result<MadeToken> {
        self.post("/v1/tokens", &[], new).await
    }

    /// The account's API tokens.
    pub async fn tokens(&self) -> Result<Tokens> {
        self.get("/v1/tokens").await
    }

    /// Revokes an API token.
    pub async fn revoke_token(&self, name: &str) -> Result<()> {
        let path = format!("/v1/tokens/{name}");
        self.client.request(Method::DELETE, &path, Some(&self.token), &[], "application/json", Vec::new(), 1024).await.map(drop)
    }

    /// Announces a release.
    pub async fn announce(&self, release: &NewRelease) -> Result<Upload> {
        self.post("/v1/releases", &[], release).await
    }

    /// Sends the plaintext of an announced release, exactly `size` bytes.
    pub async fn upload(&self, upload: &Upload, size: u64, plaintext: impl AsyncRead + Send + 'static) -> Result<Published> {
        self.client.put_stream(&format!("/v1/releases/{}", upload.upload), Some(&self.token), &[], size, plaintext).await
    }

    /// Places an order; the same key places it once.
    pub async fn order(&self, key: &str, order: &NewOrder) -> Result<Order> {
        self.post("/v1/orders", &[(IDEMPOTENCY_HEADER, key)], order).await
    }

    /// Agrees to a confirmation: the price is held from now on.
    pub async fn agree(&self, order: &OrderId, confirmation: Digest, payment: Payment) -> Result<Order> {
        self.post(&format!("/v1/orders/{order}/agreement"), &[], &Agreement { confirmation, payment }).await
    }

    /// Gives an order up for which nothing was sealed yet; what is held is given back.
    pub async fn cancel(&self, order: &OrderId) -> Result<Order> {
        self.post(&format!("/v1/orders/{order}/cancellation"), &[], &serde_json::json!({})).await
    }

    /// A fresh ticket for one second path.
    pub async fn ticket(&self, order: &OrderId) -> Result<Ticket> {
        self.post(&format!("/v1/orders/{order}/tickets"), &[], &serde_json::json!({})).await
    }

    /// Opens the tunnel of a ticket.
    pub async fn tunnel(&self, ticket: &Ticket) -> Result<ClientRaw> {
        self.client.upgrade("/v1/second-path", Some(&self.token), &[(TICKET_HEADER, &ticket.ticket.to_string())]).await
    }

    /// Hands in the processor's acknowledgement; the charge is captured once, whatever is repeated.
    pub async fn acknowledge(&self, order: &OrderId, acknowledgement: Vec<u8>) -> Result<Settled> {
        let body = Acknowledge { acknowledgement: Base64(acknowledgement) };
        self.post(&format!("/v1/orders/{order}/acknowledgement"), &[], &body).await
    }

    /// A page of the account's receipts, newest first: the first one, or the one of a page's `next`; at most `limit`, 256 where more are
    /// wanted.
    pub async fn receipts(&self, next: Option<&str>, limit: usize) -> Result<Receipts> {
        let cursor = next.map(|cursor| format!("&cursor={cursor}")).unwrap_or_default();
        self.get(&format!("/v1/receipts?limit={}{cursor}", limit.clamp(1, PAGE))).await
    }

    /// Has a settled order be for the processor `to`, with the retirement of its own where that was had.
    pub async fn transfer(&self, order: &OrderId, to: KeyId, retirement: Option<Vec<u8>>) -> Result<Transferring> {
        let body = TransferOrder { to, retirement: retirement.map(Base64) };
        self.post(&format!("/v1/orders/{order}/transfers"), &[], &body).await
    }

    /// Asks for a receipted release again.
    pub async fn redownload(&self, receipt: &[u8]) -> Result<Order> {
        self.post("/v1/redownloads", &[], &Redownload { receipt: Base64(receipt.to_vec()) }).await
    }

    /// An order as it stands.
    pub async fn order_state(&self, order: &OrderId) -> Result<Order> {
        self.get(&format!("/v1/orders/{order}")).await
    }

    /// A tile of hashes of the receipts' log.
    pub async fn log_tile(&self, tile: &Tile) -> Result<Vec<u8>> {
        Ok(self.client.get_bytes(&format!("/log/tile/{tile}"), None, MAX_TILE).await?.into())
    }

    async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T> {
        self.client.get_json(path, Some(&self.token)).await
    }

    async fn post<B: Serialize, T: DeserializeOwned>(&self, path: &str, headers: &[(&str, &str)], body: &B) -> Result<T> {
        self.client.post_json(path, Some(&self.token), headers, body).await
    }
}
