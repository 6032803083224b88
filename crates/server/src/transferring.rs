//! A purchase moves to another processor when its own is retired or revoked, or was never reached: no second charge, and the old one is
//! never served again.

use crate::server::Server;
use crate::storage::{Leaving, NewTransfer, Principal, Repository, StoredOrder};
use chipbound_wire::api::{Base64, TransferOrder, Transferring};
use chipbound_wire::documents::{Acknowledgement, Confirmation, Retirement, RetirementRequest, Terms, Transfer};
use chipbound_wire::signed::{Verified, read_claims, verify_document};
use chipbound_wire::{Code, KeyId, OrderId, Refusal, Result};

/// Seconds for which a processor may answer the request to give an order up.
const REQUEST_SECONDS: u64 = 600;

impl<R: Repository> Server<R> {
    /// Moves a settled order to the processor `request.to`: with the signed retirement of its own processor, or at once where that one is
    /// revoked or nothing was ever delivered to it: a mistyped key, under which nobody is, is mended by a second transfer. Otherwise gives the request that its own processor is to answer. Within the time of the receipt, as a re-download.
    ///
    /// Refuses a retirement that does not verify, or is of another order ([`Code::OrderMismatch`]), processor or destination
    /// ([`Code::ProcessorMismatch`]), an order that is not settled ([`Code::OrderState`]) or too old ([`Code::ReceiptExpired`]), and a
    /// destination that gave the order up before ([`Code::OrderRetired`]).
    pub async fn transfer(&self, customer: &Principal, order: OrderId, request: &TransferOrder) -> Result<Transferring> {
        let order = self.repository.order(customer.account, order).await?;
        if order.processor == request.to
            && let Some(done) = self.repository.transfer_to(order.order, request.to).await?
        {
            return Ok(Transferring { transfer: Some(Base64(done)), request: None });
        }
        self.check_transfer(&order, request.to)?;
        if self.repository.gave_up(order.order, request.to).await? {
            return Err(Refusal::new(Code::OrderRetired, "that processor gave this order up before"));
        }
        let leaving = match &request.retirement {
            Some(retirement) => Leaving::Retired(self.check_retirement(&order, request.to, &retirement.0)?),
            None if self.is_revoked(&order).await? => Leaving::Revoked,
            None if !self.repository.reached(order.order, order.processor).await? => Leaving::Unreached,
            None => return self.ask_to_retire(&order, request.to),
        };
        let at = self.now();
        let word = Transfer { order: order.order, account: order.account, from: order.processor, to: request.to, at };
        let transfer = self.keys.get().receipt.signer().sign(&word)?;
        let (from, to) = (order.processor, request.to);
        let new = NewTransfer { order: order.order, account: order.account, from, to, leaving, transfer, at };
        let transfer = self.repository.transfer(&new).await?;
        self.forget_parcel(order.order).await?;
        tracing::info!(order = %order.order, %from, %to, "transferred");
        Ok(Transferring { transfer: Some(Base64(transfer)), request: None })
    }

    fn check_transfer(&self, order: &StoredOrder, to: KeyId) -> Result<()> {
        if !order.state.is_paid() {
            return Err(Refusal::new(
                Code::OrderState,
                "only what is paid is transferred: let the delivery end first, or leave the order, which runs out by itself",
            ));
        }
        if self.now() > order.redownload_until {
            return Err(Refusal::new(
                Code::ReceiptExpired,
                "the receipt does not buy a re-download any more: there is nothing to transfer",
            ));
        }
        if order.processor == to {
            return Err(Refusal::new(Code::Conflict, "the order is for that processor already"));
        }
        Ok(())
    }

    /// The processor of the order says that it gave it up, for that destination. When it said so its certificate was good; it may have run
    /// out since.
    fn check_retirement(&self, order: &StoredOrder, to: KeyId, retirement: &[u8]) -> Result<Vec<u8>> {
        let claims: Retirement = read_claims(retirement)?;
        if claims.at > self.now().after(REQUEST_SECONDS) {
            return Err(Refusal::new(Code::CertificateNotYetValid, "the retirement is of a time to come"));
        }
        let word: Verified<Retirement> = verify_document(retirement, &self.trust.get(), claims.at)?;
        if word.order != order.order {
            return Err(Refusal::new(Code::OrderMismatch, "the retirement is of another order"));
        }
        if word.signer().key_id() != order.processor {
            return Err(Refusal::new(Code::ProcessorMismatch, "the retirement is not by the processor that the order is for"));
        }
        if word.to != to {
            return Err(Refusal::new(Code::ProcessorMismatch, "the retirement is for another destination"));
        }
        Ok(retirement.to_vec())
    }

    /// Whether the authority withdrew the certificate with which the order's processor signed its last acknowledgement.
    async fn is_revoked(&self, order: &StoredOrder) -> Result<bool> {
        let Some((terms, acknowledgement)) = self.repository.acknowledged(order.order).await? else { return Ok(false) };
        if read_claims::<Terms>(&terms)?.processor != order.processor {
            return Ok(false); // Of the one before.
        }
        let claims: Acknowledgement = read_claims(&acknowledgement)?;
        match verify_document::<Acknowledgement>(&acknowledgement, &self.trust.get(), claims.at) {
            Err(refusal) => Ok(refusal.code == Code::CertificateRevoked),
            Ok(_) => Ok(false),
        }
    }

    fn ask_to_retire(&self, order: &StoredOrder, to: KeyId) -> Result<Transferring> {
        let agreed: Confirmation = read_claims(&order.confirmation)?;
        let until = self.now().after(REQUEST_SECONDS);
        let request = RetirementRequest { order: order.order, from: order.processor, to, program: agreed.program, until };
        let request = self.keys.get().statement.signer().sign(&request)?;
        Ok(Transferring { transfer: None, request: Some(Base64(request)) })
    }
}
