//! Settlement, receipts and re-download (step 1009; source \[51\]\[52\]\[60\]).

use crate::keys::ServerKeys;
use crate::server::Server;
use crate::storage::{Delivery, Principal, ReceiptEntry, Repository, Settlement, StoredOrder};
use chipbound_sealing::{ReleaseSecret, seal_release};
use chipbound_session::server::{Expected, verify_acknowledgement};
use chipbound_wire::api::{Acknowledge, Base64, Order, Receipts, Redownload, Settled};
use chipbound_wire::bounded::Text;
use chipbound_wire::certificate::Trust;
use chipbound_wire::documents::{Acknowledgement, Confirmation, Receipt, ReleaseToken};
use chipbound_wire::signed::{read_claims, verify_document};
use chipbound_wire::{Code, Digest, OrderId, Refusal, Result, SystemRandom, Time};

/// What release secrets are sealed as, at rest.
pub(crate) const RELEASE_SECRET: &str = "release secret";

impl<R: Repository> Server<R> {
    /// Step 1009: the owner brings the processor's acknowledgement. The charge is captured once; receipt and release token are the
    /// same bytes on every repeat.
    ///
    /// Refuses an acknowledgement that does not verify (the processor's certificate and its revocation are checked now), or is not
    /// about a delivery of this order ([`Code::AcknowledgementMismatch`]), and an order that ran out ([`Code::OrderExpired`]).
    pub async fn acknowledge(&self, customer: &Principal, order: OrderId, request: &Acknowledge) -> Result<Settled> {
        let now = self.now();
        let order = self.repository.order(customer.account, order).await?;
        let acknowledgement = &request.acknowledgement.0;
        let claims: Acknowledgement = read_claims(acknowledgement)?;
        let delivery = self.repository.delivery(order.order, claims.seal).await?;
        let expected = Expected {
            order: order.order,
            terms: Digest::of(&delivery.terms),
            seal: Digest::of(&delivery.seal),
            processor: order.processor,
        };
        verify_acknowledgement(acknowledgement, &self.trust.get(), now, &expected)?;
        let token = self.release_token(&order, &delivery)?;
        let settlement = Settlement {
            order: order.order,
            account: customer.account,
            seal: expected.seal,
            acknowledgement: request.acknowledgement.0.clone(),
            token,
            at: now,
        };
        let (keys, id) = (self.keys.get(), order.order);
        let settled = self.repository.settle(settlement, Box::new(move |entry| receipt(&keys, &order, entry, now))).await?;
        tracing::info!(order = %id, "settled");
        Ok(Settled { receipt: Base64(settled.receipt), token: Base64(settled.token) })
    }

    /// The signed token that opens this delivery (step 1010).
    fn release_token(&self, order: &StoredOrder, delivery: &Delivery) -> Result<Vec<u8>> {
        let secret = ReleaseSecret::from_bytes(&self.kek.open(RELEASE_SECRET, &delivery.release_secret)?)?;
        let terms = Digest::of(&delivery.terms);
        let release =
            seal_release(&delivery.sealing_key, delivery.kem, &order.order, &terms, &order.processor, &secret, &mut SystemRandom)?;
        let token = ReleaseToken { order: order.order, terms, processor: order.processor, release };
        self.keys.get().statement.signer().sign(&token)
    }

    /// The account's newest 256 receipts, newest first.
    pub async fn receipts(&self, customer: &Principal) -> Result<Receipts> {
        let receipts = self.repository.receipts(customer.account).await?;
        Ok(Receipts { receipts: receipts.into_iter().map(Base64).collect() })
    }

    /// A receipt buys the same release for the same processor again, or for the one that its order was transferred to (source \[60\]): its order, for which tickets are issued from
    /// now on for as long as an order runs, with a confirmation signed anew: a receipt outlives the certificate under which the first
    /// one was signed, and processors take none but those that are valid now. Nothing in it is to be agreed to.
    ///
    /// Refuses a receipt that does not verify or is another server's ([`Code::ReceiptMismatch`]), another account's
    /// ([`Code::AccountMismatch`]), or too old ([`Code::ReceiptExpired`]).
    pub async fn redownload(&self, customer: &Principal, request: &Redownload) -> Result<Order> {
        let now = self.now();
        let bytes = &request.receipt.0;
        let issued_at = read_claims::<Receipt>(bytes)?.issued_at;
        // At the time that it was issued, and without a revocation list: a receipt outlives the certificate of its signature, and
        // below only the very bytes that were kept count.
        let trust = Trust::new(self.trust.get().root())?;
        let receipt = verify_document::<Receipt>(bytes, &trust, issued_at)?;
        let ours = self.trust.get();
        let own = ours.verify(&self.keys.get().receipt.chain, chipbound_wire::certificate::Role::ServerReceipt, now)?;
        if receipt.signer().subject() != own.subject() {
            return Err(Refusal::new(Code::ReceiptMismatch, "the receipt was signed by another server"));
        }
        if receipt.account != customer.account {
            return Err(Refusal::new(Code::AccountMismatch, "the receipt is another account's"));
        }
        if now > receipt.redownload_until {
            return Err(Refusal::new(Code::ReceiptExpired, "the receipt does not buy a re-download any more"));
        }
        let until = now.after(self.policy.order_seconds);
        let mut order = self.repository.readmit(customer.account, receipt.order, bytes, until).await?;
        let agreed: Confirmation = read_claims(&order.confirmation)?;
        let anew = Confirmation { issued_at: now, expires_at: until, processor: order.processor, ..agreed };
        order.confirmation = self.keys.get().statement.signer().sign(&anew)?;
        let transfer = self.repository.transfer_to(order.order, order.processor).await?.map(Base64);
        Ok(Order { transfer, ..crate::ordering::shown(order) })
    }
}

/// The signed receipt of an order whose price is captured by `entry`.
fn receipt(keys: &ServerKeys, order: &StoredOrder, entry: &ReceiptEntry, at: Time) -> Result<Vec<u8>> {
    let agreed: Confirmation = read_claims(&order.confirmation)?;
    keys.receipt.signer().sign(&Receipt {
        number: entry.number,
        order: order.order,
        account: order.account,
        program: agreed.program,
        version: agreed.version,
        manifest: order.manifest,
        processor: order.processor,
        amount: order.price,
        payment: Text::new(entry.payment.clone())?,
        issued_at: at,
        redownload_until: order.redownload_until,
        sale: None,
        log: None,
    })
}
