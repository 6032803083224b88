//! Settlement, receipts and re-download (step 1009; source \[51\]\[52\]\[60\]).

use crate::config::{Policy, Tax};
use crate::keys::ServerKeys;
use crate::pages::{Page, moment_key, next};
use crate::server::Server;
use crate::storage::{
    Delivery, MakeReceipt, Principal, ReceiptEntry, Repository, SettledOrder, Settlement, Settling, Shares, StoredOrder, Unsettled,
};
use chipbound_sealing::{ReleaseSecret, seal_release};
use chipbound_session::server::{Expected, verify_acknowledgement};
use chipbound_wire::api::{Acknowledge, Base64, Order, Receipts, Redownload, Settled};
use chipbound_wire::bounded::{List, Text};
use chipbound_wire::certificate::Trust;
use chipbound_wire::documents::{Acknowledgement, Confirmation, LogPlace, Receipt, ReleaseToken, Sale, TaxLine};
use chipbound_wire::limits::MAX_CHOICES;
use chipbound_wire::random::fresh;
use chipbound_wire::signed::{read_claims, verify_document};
use chipbound_wire::{Amount, Code, Digest, OrderId, Refusal, Result, SystemRandom, Time};
use std::cmp::Ordering;
use std::sync::Arc;

/// What release secrets are sealed as, at rest.
pub(crate) const RELEASE_SECRET: &str = "release secret";

impl<R: Repository> Server<R> {
    /// Step 1009: the owner brings the processor's acknowledgement. The charge is captured once; receipt and release token are the
    /// same bytes on every repeat.
    ///
    /// Refuses an acknowledgement that does not verify (the processor's certificate and its revocation are checked now), or is not
    /// about a delivery of this order ([`Code::AcknowledgementMismatch`]), and an order that ran out and cannot be held once more
    /// ([`Code::OrderExpired`]).
    pub async fn acknowledge(&self, customer: &Principal, order: OrderId, request: &Acknowledge) -> Result<Settled> {
        let now = self.now();
        let acknowledgement = &request.acknowledgement.0;
        let claims: Acknowledgement = match read_claims(acknowledgement) {
            Ok(claims) => claims,
            // To whoever may not know of the order it is not there.
            Err(malformed) => return self.repository.order(customer.account, order).await.and(Err(malformed)),
        };
        let (order, delivery) = self.repository.sent(customer.account, order, claims.seal).await?;
        let expected = Expected {
            order: order.order,
            terms: Digest::of(&delivery.terms),
            seal: Digest::of(&delivery.seal),
            processor: order.processor,
        };
        verify_acknowledgement(acknowledgement, &self.trust.get(), now, &expected)?;
        let settled = self.settle(order, &delivery, acknowledgement.clone(), now).await?;
        Ok(Settled { receipt: Base64(settled.receipt), token: Base64(settled.token), proof: settled.proof })
    }

    /// Drives on what a killed server left between an acknowledgement and its capture; returns how many orders were settled. What
    /// is refused is logged and stays as it is.
    pub async fn recover(&self) -> Result<usize> {
        let mut recovered = 0;
        for Unsettled { order, seal, acknowledgement } in self.repository.unsettled().await? {
            let id = order.order;
            let delivery = self.repository.delivery(id, seal).await?;
            match self.settle(order, &delivery, acknowledgement, self.now()).await {
                Ok(_) => recovered += 1,
                Err(refusal) => tracing::error!(order = %id, %refusal, "an acknowledged order could not be settled"),
            }
        }
        Ok(recovered)
    }

    /// Takes an order whose acknowledgement was verified to its release.
    async fn settle(&self, order: StoredOrder, delivery: &Delivery, acknowledgement: Vec<u8>, now: Time) -> Result<SettledOrder> {
        let settlement = Settlement {
            order: order.order,
            account: order.account,
            seal: Digest::of(&delivery.seal),
            acknowledgement,
            token: self.release_token(&order, delivery)?,
            shares: self.shares(&order).await?,
            at: now,
            log: self.keys.get().log.clone(),
        };
        self.take_by_card(&settlement).await?;
        let (keys, policy, id) = (self.keys.get(), self.policy.clone(), order.order);
        let receipt: MakeReceipt = Arc::new(move |entry| receipt(&keys, &policy, &order, entry, now));
        let settled = self.sequencer.settle(Settling { settlement, receipt }).await?;
        tracing::info!(order = %id, "settled");
        Ok(settled)
    }

    /// Who gets what of the order's price.
    async fn shares(&self, order: &StoredOrder) -> Result<Shares> {
        let mut house = self.policy.house_share;
        if !self.policy.house_shares.is_empty()
            && let Some(user) = self.repository.user_of(order.seller).await?
        {
            house = self.policy.house_shares.get(&user).copied().unwrap_or(house);
        }
        Ok(Shares { house, taxes: tax_lines(&self.policy.taxes, order.price)?.to_vec() })
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

    /// A page of the account's receipts, newest first.
    pub async fn receipts(&self, customer: &Principal, page: &Page) -> Result<Receipts> {
        let (limit, before) = (page.limit()?, page.before("receipts")?);
        let mut found = self.repository.receipts(customer.account, before, limit + 1).await?;
        let next = next("receipts", &mut found, limit, |r| moment_key(r.issued_at, r.order));
        Ok(Receipts { receipts: found.into_iter().map(|r| Base64(r.receipt)).collect(), next })
    }

    /// The newest signed checkpoint of the receipts' log; [`Code::NotFound`] before the first receipt.
    pub async fn log_checkpoint(&self) -> Result<String> {
        let note = self.repository.log_checkpoint().await?;
        note.ok_or_else(|| Refusal::new(Code::NotFound, "no receipt was given yet"))
    }

    /// The tile of the receipts' log at that path below `/log/tile/`; [`Code::NotFound`] where there is none.
    pub async fn log_tile(&self, path: &str) -> Result<Vec<u8>> {
        let bytes = self.repository.log_tile(path.parse()?).await?;
        bytes.ok_or_else(|| Refusal::new(Code::NotFound, "the log is not that large"))
    }

    /// The receipt key's signed statement on the key that signs the log now.
    #[must_use]
    pub fn log_statement(&self) -> Vec<u8> {
        self.keys.get().log.statement().to_vec()
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
        // One that another server signed counts if it is on record here: its books were restored into this one.
        let foreign = receipt.signer().subject() != own.subject();
        if receipt.account != customer.account {
            return Err(Refusal::new(Code::AccountMismatch, "the receipt is another account's"));
        }
        if now > receipt.redownload_until {
            return Err(Refusal::new(Code::ReceiptExpired, "the receipt does not buy a re-download any more"));
        }
        let until = now.after(self.policy.order_seconds);
        let readmitted = self.repository.readmit(customer.account, receipt.order, bytes, until).await;
        let mut order = readmitted.map_err(|refusal| match refusal.code {
            Code::UnknownOrder if foreign => Refusal::new(Code::ReceiptMismatch, "the receipt was signed by another server"),
            _ => refusal,
        })?;
        let agreed: Confirmation = read_claims(&order.confirmation)?;
        let anew = Confirmation { issued_at: now, expires_at: until, processor: order.processor, ..agreed };
        order.confirmation = self.keys.get().statement.signer().sign(&anew)?;
        let transfer = self.repository.transfer_to(order.order, order.processor).await?.map(Base64);
        Ok(Order { transfer, ..crate::ordering::shown(order) })
    }
}

/// The signed receipt of an order whose price is captured by `entry`.
fn receipt(keys: &ServerKeys, policy: &Policy, order: &StoredOrder, entry: &ReceiptEntry, at: Time) -> Result<Vec<u8>> {
    let agreed: Confirmation = read_claims(&order.confirmation)?;
    let sale = Sale {
        seller: entry.seller,
        name: Text::new(policy.seller.clone())?,
        taxes: tax_lines(&policy.taxes, order.price)?,
        conditions: agreed.conditions,
    };
    let log = LogPlace { origin: Text::new(keys.log.key().origin())?, index: entry.index, salt: Digest(fresh(&mut SystemRandom)) };
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
        sale: Some(sale),
        log: Some(log),
    })
}

/// What of an amount each tax is: the price without taxes is such that all of them together with it come to the amount. Rounded to the
/// nearest minor unit, halves to even.
fn tax_lines(taxes: &[Tax], amount: Amount) -> Result<List<TaxLine, MAX_CHOICES>> {
    let whole = taxes.iter().fold(10_000, |sum, tax| sum + u128::from(tax.rate));
    let line = |tax: &Tax| {
        let share = u128::from(amount.minor) * u128::from(tax.rate);
        let (minor, rest) = (share / whole, share % whole);
        let up = match (rest * 2).cmp(&whole) {
            Ordering::Less => 0,
            Ordering::Equal => minor % 2,
            Ordering::Greater => 1,
        };
        let minor = u64::try_from(minor + up).map_err(|_| Refusal::new(Code::TooLarge, "a tax is larger than any amount"))?;
        Ok(TaxLine { name: Text::new(tax.name.clone())?, rate: tax.rate, minor })
    };
    List::new(taxes.iter().map(line).collect::<Result<_>>()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn taxes_are_contained_in_the_amount_and_rounded_to_the_nearest_unit_halves_to_even() {
        let amount = |minor| Amount { minor, currency: "EUR".parse().expect("a currency") };
        let tax = |name: &str, rate| Tax { name: name.to_owned(), rate };
        let minors = |taxes: &[Tax], of| tax_lines(taxes, amount(of)).expect("few").iter().map(|line| line.minor).collect::<Vec<_>>();
        assert_eq!(minors(&[], 1250), Vec::<u64>::new());
        assert_eq!(minors(&[tax("VAT", 1900)], 1190), [190]);
        assert_eq!(minors(&[tax("VAT", 1900)], 1250), [200], "199.58");
        assert_eq!(minors(&[tax("all", 10_000)], 1), [0], "a half goes to the even 0");
        assert_eq!(minors(&[tax("all", 10_000)], 3), [2], "one and a half to the even 2");
        assert_eq!(minors(&[tax("state", 500), tax("city", 250)], 10_750), [500, 250], "on one and the same price");
        assert_eq!(minors(&[tax("VAT", 1900)], 0), [0]);
        assert!(minors(&[tax("much", u32::MAX)], u64::MAX)[0] < u64::MAX);
    }
}
