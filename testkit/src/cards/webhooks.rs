//! What the provider tells the server of its own accord: events, signed as Stripe signs them.

use aws_lc_rs::hmac;
use chipbound_transport::Client;
use chipbound_wire::Result;
use data_encoding::HEXLOWER;
use http::{Method, StatusCode};
use serde_json::Value;

/// The header that carries the signature.
pub const SIGNATURE: &str = "stripe-signature";

/// `t=…,v1=…`: HMAC-SHA256 over the time, a full stop and the body, under the endpoint's secret.
#[must_use]
pub fn signature(secret: &str, at: u64, body: &[u8]) -> String {
    let key = hmac::Key::new(hmac::HMAC_SHA256, secret.as_bytes());
    let signed = [at.to_string().as_bytes(), b".", body].concat();
    format!("t={at},v1={}", HEXLOWER.encode(hmac::sign(&key, &signed).as_ref()))
}

/// Posts one event to `path` at the server, signed at the time `at`; the status that it answers.
pub async fn post(server: &Client, path: &str, event: &Value, secret: &str, at: u64) -> Result<StatusCode> {
    let body = event.to_string().into_bytes();
    post_signed(server, path, body.clone(), &signature(secret, at, &body)).await
}

/// Posts any bytes with any signature.
pub async fn post_signed(server: &Client, path: &str, body: Vec<u8>, signature: &str) -> Result<StatusCode> {
    let headers = [(SIGNATURE, signature)];
    let answer = server.request_foreign(Method::POST, path, None, &headers, "application/json", body, 64 * 1024).await?;
    Ok(answer.status())
}
