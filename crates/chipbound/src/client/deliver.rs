//! Fig. 3 from top to bottom: what the client device does, with the source's step numbers (those of Fig. 2 in brackets).

use super::place::{Buyer, Placed, place, verify_again};
use super::receive::{Received, receive, release};
use super::store::{Partial, default_target};
use super::{Device, blocking};
use crate::{log, receipts};
use chipbound_host::lossy;
use chipbound_wire::api::{Account, OrderState, Payment, Settled};
use chipbound_wire::certificate::Trust;
use chipbound_wire::documents::{Confirmation, Receipt, ReleaseToken};
use chipbound_wire::signed::{Verified, read_claims};
use chipbound_wire::suite::KeyMode;
use chipbound_wire::{Amount, Code, Refusal, Result};
use serde_json::json;
use std::path::PathBuf;

/// How the second path reaches the server (source \[31\]).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Way {
    /// Inside the first path; the client relays.
    #[default]
    Tunnel,
    /// On a line that the processor dials itself.
    OwnLine,
}

/// How a delivery is to go over the line.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Wanted {
    /// How the second path reaches the server.
    pub way: Way,
    /// No more than so many bytes a second; as many as come if none.
    pub rate: Option<u32>,
}

/// What is to be bought.
#[derive(Clone, Debug)]
pub struct Wish {
    /// A program id, or the name after its slash.
    pub program: String,
    /// The version; the newest if none.
    pub version: Option<String>,
    /// The key mode; the server's policy if none.
    pub key_mode: Option<KeyMode>,
    /// How it is to come.
    pub line: Wanted,
    /// The most that may be charged.
    pub max_price: Option<Amount>,
    /// Where the package goes; the program's name in the current folder if none.
    pub target: Option<PathBuf>,
    /// Buy even if this release was bought for this processor before.
    pub again: bool,
    /// How it is paid.
    pub payment: Payment,
}

/// A delivery that ended well.
#[derive(Clone, Debug)]
pub struct Delivered {
    /// The complete package.
    pub package: PathBuf,
    /// Its size in bytes.
    pub size: u64,
    /// The receipt.
    pub receipt: Verified<Receipt>,
    /// Where the receipt is kept.
    pub receipt_path: PathBuf,
    /// Suite and key mode, for people.
    pub chosen: String,
}

/// What `carry` needs to know besides the order.
struct Errand {
    line: Wanted,
    target: PathBuf,
    /// About how many bytes will come, for people; 0 where nobody said.
    size: u64,
    /// Whether the charge was taken before: then none is taken now.
    paid: bool,
    /// Whether the order was for another processor when its receipt was made.
    transferred: bool,
    /// What the kernel is to start the package by.
    interpreter: Option<Vec<u8>>,
}

/// Buys a program for the processor of this device. Interrupted at any moment it is gone on with by calling it again: the
/// idempotency key was stored before the order was placed, so nothing is ordered or charged twice, and of a large package only what is
/// missing comes.
pub async fn buy(device: &Device<'_>, wish: &Wish) -> Result<Delivered> {
    let processor = device.processor().await?;
    let trust = Trust::new(&processor.root)?;

    // 1101 (1001): the first path, on which the server knows the user by the log-in.
    let account = first_path(device).await?;

    // 1103 (1002): order; verify what the server confirms; then agree to it.
    let buyer = Buyer { account: account.account, processor: processor.processor };
    let Placed { pending, order, confirmation } = place(device, wish, buyer, &trust).await?;
    device.home.remember_authority(&processor.root)?;
    let facts = json!({ "order": confirmation.order, "program": confirmation.program, "version": &*confirmation.version,
        "price": confirmation.price, "processor": confirmation.processor, "expires_at": confirmation.expires_at });
    let what = format!("{} {}", confirmation.program.name(), &*confirmation.version);
    device.story.step(1002, &format!("order {} of {what} confirmed: {}", confirmation.order, confirmation.price), facts);
    let target = wish.target.clone().unwrap_or_else(|| pending.target.clone());
    let errand = Errand {
        line: wish.line,
        target,
        size: pending.expected_size,
        paid: false,
        transferred: false,
        interpreter: processor.interpreter,
    };
    let (delivered, in_log) = match order.state {
        OrderState::Confirmed => {
            Partial::beside(&errand.target)?; // A place that cannot be written is found out before anything is held.
            device.api.agree(&confirmation.order, confirmation.digest(), wish.payment.clone()).await?;
            device.story.step(1002, &format!("agreed: {} held, nothing taken", confirmation.price), json!({ "held": confirmation.price }));
            carry(device, &confirmation, &trust, &errand).await
        }
        OrderState::Authorised | OrderState::Delivering | OrderState::Acknowledged | OrderState::CaptureRequested => {
            device.story.step(1002, &format!("going on with order {}: {} held", confirmation.order, confirmation.price), json!({}));
            carry(device, &confirmation, &trust, &errand).await
        }
        // The last run ended between 1009 and 1011: it is paid, so the receipt buys the rest.
        OrderState::Captured | OrderState::Released => {
            let receipt = order.receipt.ok_or_else(|| Refusal::new(Code::OrderState, "a paid order came without its receipt"))?;
            device.home.store_receipt(&confirmation.order, &receipt.0)?;
            device.story.step(1009, &format!("order {} was charged before; its receipt fetches the rest", confirmation.order), json!({}));
            fetch_again(device, &receipt.0, &trust, Errand { paid: true, ..errand }).await
        }
        OrderState::Expired => return Err(Refusal::new(Code::OrderExpired, format!("order {} ran out", confirmation.order))),
        OrderState::Cancelled => return Err(Refusal::new(Code::OrderCancelled, format!("order {} was cancelled", confirmation.order))),
        OrderState::Refunded => return Err(Refusal::new(Code::OrderRefunded, format!("order {} was refunded", confirmation.order))),
    }?;
    pending.done()?;
    in_log?;
    Ok(delivered)
}

/// Downloads again what a receipt was given for (source \[60\]): that release, for that processor, without a charge. Interrupted it is gone
/// on with as a purchase is.
pub async fn redownload(device: &Device<'_>, receipt: &[u8], line: Wanted, target: Option<PathBuf>) -> Result<Delivered> {
    let processor = device.processor().await?;
    let trust = Trust::new(&processor.root)?;
    first_path(device).await?;
    let claims: Receipt = read_claims(receipt)?;
    let target = target.map_or_else(|| default_target(claims.program.name()), Ok)?;
    let errand = Errand { line, target, size: 0, paid: true, transferred: false, interpreter: processor.interpreter };
    let (delivered, in_log) = fetch_again(device, receipt, &trust, errand).await?;
    in_log?;
    Ok(delivered)
}

/// Sets the first path up: TLS to the server, whose certificate the log-in pinned or a public root signed, and the user's session.
async fn first_path(device: &Device<'_>) -> Result<Account> {
    let account = device.api.account().await?;
    let server = &device.session.server;
    device.story.step(1001, &format!("first path to {server} as {}", account.user), json!({ "server": server, "user": account.user }));
    Ok(account)
}

/// The way of a receipt: asks for the delivery, agrees to nothing, carries it.
async fn fetch_again(device: &Device<'_>, receipt: &[u8], trust: &Trust, errand: Errand) -> Result<(Delivered, Result<()>)> {
    let order = device.api.redownload(receipt).await?;
    let (confirmation, transferred) = verify_again(&order, receipt, trust)?;
    if let Some(word) = order.transfer.as_ref().filter(|_| transferred) {
        device.home.store_transfer(&confirmation.order, &word.0)?;
    }
    let errand = Errand { transferred, ..errand };
    device.story.step(
        1002,
        &format!("receipt accepted for order {}: no charge", confirmation.order),
        json!({ "order": confirmation.order }),
    );
    carry(device, &confirmation, trust, &errand).await
}

/// From an order that is paid or whose price is held to the package on the disk. Beside it: whether the receipt is in the server's log
/// and the log the one that it was. Where it is not, the customer has what he paid for, and is told.
async fn carry(
    device: &Device<'_>,
    confirmation: &Verified<Confirmation>,
    trust: &Trust,
    errand: &Errand,
) -> Result<(Delivered, Result<()>)> {
    let order = confirmation.order;
    let mut partial = Partial::beside(&errand.target)?; // A folder that cannot be written is found out before anything is delivered.

    // 1105 (1003-1007): server and processor authenticate each other and the program goes over; the client relays or stands by.
    let Received { mut conversation, acknowledgement, body_size, chosen, relayed } = match admitted(device, confirmation, errand).await {
        // What was kept of an earlier delivery was damaged, and is gone now.
        Err(refusal) if refusal.code == Code::KeptPartAltered => {
            device.story.step(1007, &format!("{}; beginning anew", refusal.detail), json!({ "kept": 0 }));
            admitted(device, confirmation, errand).await
        }
        other => other,
    }?;
    let text = "server and processor proved themselves to each other (1004-1006) and the encrypted program went over";
    device.story.step(1007, text, json!({ "relayed": relayed, "chosen": chosen }));

    // 1107 (1008): the processor has received, opened and compared everything.
    let facts = json!({ "bytes": body_size });
    device.story.step(1008, &format!("the processor received and compared {body_size} bytes ({chosen})"), facts);

    partial.reserve(body_size)?; // A disk that is too full is found out before anything is charged.

    // 1109 (1009): now, and only now, the charge is taken.
    let Settled { receipt, token, proof } = device.api.acknowledge(&order, acknowledgement).await?;

    // 1111 (1009): receipt and release token; the receipt is verified and on the disk before anything else is done with them.
    let receipt = receipts::verify(&receipt.0, &[trust.root().to_vec()])?;
    check_receipt(&receipt, confirmation, errand.transferred)?;
    let receipt_path = device.home.store_receipt(&order, receipt.bytes())?;
    let in_log = log::check(device.home, device.api, &receipt, proof.as_deref(), trust).await;
    check_token(&read_claims(&token.0)?, confirmation)?;
    let facts = json!({ "receipt": receipt.number, "charged": !errand.paid, "amount": receipt.amount, "payment": &*receipt.payment, "path": lossy(&receipt_path) });
    let charged = if errand.paid { "nothing charged; the same".to_owned() } else { format!("{} charged;", receipt.amount) };
    device.story.step(1009, &format!("{charged} receipt {} stored", receipt.number), facts);

    // 1113 (1010): the token goes to the processor, which verifies it.
    let (mut conversation, package, size) = blocking(move || {
        let (package, size) = release(&mut conversation, order, token.0)?;
        Ok((conversation, package, size))
    })
    .await?;
    device.story.step(1010, "the processor verified the release token", json!({}));

    // 1115 (1011): the processor gives out the encrypted program; it is whole on this disk before its spool goes.
    let package = partial.take(package, size, errand.interpreter.clone()).await?;
    blocking(move || super::receive::taken(&mut conversation)).await?;
    device.story.step(1011, &format!("{size} bytes stored as {}", package.display()), json!({ "bytes": size, "path": lossy(&package) }));

    // 1117 (1012): the second path ended with close_notify in `receive`; the conversation and the first path end here.
    device.story.step(1012, "both paths closed", json!({}));
    let in_log = in_log.map_err(|e| Refusal::new(e.code, format!("{}; the package is whole in {}", e.detail, package.display())));
    Ok((Delivered { package, size, receipt, receipt_path, chosen }, in_log))
}

/// Has a ticket and the delivery that it admits.
async fn admitted(device: &Device<'_>, confirmation: &Verified<Confirmation>, errand: &Errand) -> Result<Received> {
    let ticket = device.api.ticket(&confirmation.order).await?;
    receive(device, confirmation, &ticket, errand.line, errand.size).await
}

/// The token must be for this order and processor; its signature is for the processor to verify.
fn check_token(token: &ReleaseToken, confirmation: &Confirmation) -> Result<()> {
    if token.order != confirmation.order || token.processor != confirmation.processor {
        return Err(Refusal::new(Code::TokenMismatch, "the release token is for another order or processor"));
    }
    Ok(())
}

/// The receipt must be for what was agreed to.
fn check_receipt(receipt: &Receipt, confirmation: &Confirmation, transferred: bool) -> Result<()> {
    let mismatch = |what: &str| Refusal::new(Code::ReceiptMismatch, format!("the receipt names another {what} than the confirmation"));
    let same = [
        (receipt.order == confirmation.order, "order"),
        (receipt.account == confirmation.account, "account"),
        (receipt.program == confirmation.program && receipt.version == confirmation.version, "release"),
        (receipt.manifest == confirmation.manifest, "manifest"),
        (transferred || receipt.processor == confirmation.processor, "processor"),
        (receipt.amount == confirmation.price, "price"),
    ];
    same.iter().find(|(same, _)| !same).map_or(Ok(()), |(_, what)| Err(mismatch(what)))
}
