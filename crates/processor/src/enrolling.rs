//! The processor at its authority: enrolment with a voucher, on-line renewal with no human at the device (source \[33\]-\[35\]), and the
//! revocation list.

use crate::config::Renewal;
use crate::confine::{self, Work};
use crate::processor::Processor;
use crate::vault::Enrolment;
use chipbound_sealing::{Decapsulate, open_possession};
use chipbound_transport::enrolment::{self, Application, Enrolled};
use chipbound_trusted_core::KeyStore;
use chipbound_wire::bounded::{Bytes, List};
use chipbound_wire::certificate::{Role, SealingKey};
use chipbound_wire::documents::Wrap;
use chipbound_wire::enrolment::{Issued, Voucher};
use chipbound_wire::signature::Sign;
use chipbound_wire::{Code, Refusal, Result, Time};
use std::future::Future;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Enrolls at `authority` with the text of a voucher. An earlier enrolment is replaced.
pub fn enroll(us: &Processor, authority: &str, voucher: &str) -> Result<()> {
    let voucher: Voucher = voucher.parse()?;
    let _alone = us.enrolling();
    let keys = us.vault.keys();
    let application = application(us, keys.sealing_keys())?;
    let enrolled = block_on(enrolment::enroll(authority, &voucher, &application, |wrap, session| answer(&*keys, wrap, session), us.now()))?;
    us.vault.enroll(authority, issued(enrolled)?)?;
    us.drop_where("enrolled anew", |_| true);
    tracing::info!(processor = %keys.key_id(), "enrolled");
    Ok(())
}

/// Renews the certificate of `current`.
fn renew(us: &Processor, current: &Enrolment) -> Result<()> {
    let _alone = us.enrolling();
    let sealing = if us.config.renewal.fresh_sealing_keys { us.vault.fresh_sealing_keys()? } else { us.vault.keys().sealing_keys() };
    let keys = us.vault.keys();
    let application = application(us, sealing)?;
    let chain: Vec<Vec<u8>> = current.issued.chain.iter().map(|c| c.to_vec()).collect();
    let answer = |wrap: &Wrap, session: &[u8; 16]| answer(&*keys, wrap, session);
    let renewing = enrolment::renew(&current.authority, &current.issued.root, &chain, &*keys, &application, answer, us.now());
    let enrolled = block_on(renewing)?;
    let renewed = us.vault.enroll(&current.authority, issued(enrolled)?)?;
    tracing::info!(valid_until = renewed.certified.validity().1.0, "certificate renewed");
    Ok(())
}

fn application(us: &Processor, sealing_keys: Vec<SealingKey>) -> Result<Application> {
    let keys = us.vault.keys();
    let class = Some(keys.class());
    let request = chipbound_host::signing_request(keys)?;
    Ok(Application { role: Role::Processor, class, request, sealing_keys })
}

/// Opens a challenge with whichever of our newest sealing keys it was sealed to.
fn answer(keys: &dyn KeyStore, wrap: &Wrap, session: &[u8; 16]) -> Result<[u8; 32]> {
    let store: &dyn Decapsulate =
        keys.generation_of(&keys.sealing_keys()).ok_or_else(|| Refusal::new(Code::Internal, "there are no sealing keys"))?;
    open_possession(store, session, wrap)
}

fn issued(enrolled: Enrolled) -> Result<Issued> {
    let chain = enrolled.chain.into_iter().map(Bytes::new).collect::<Result<_>>()?;
    Ok(Issued { chain: List::new(chain)?, root: Bytes::new(enrolled.root)?, revocations: Bytes::new(enrolled.revocations)? })
}

/// Runs one exchange with the authority on this thread.
fn block_on<T>(exchange: impl Future<Output = Result<T>>) -> Result<T> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.map_err(|e| Refusal::io("the authority's client", e))?.block_on(exchange)
}

/// How long after the daemon's start it looks first: programs that are started together with it, at boot, do not share the machine with
/// a handshake that nobody waits for.
const SETTLING: Duration = Duration::from_secs(1);

/// Looks after certificate and revocation list for as long as the daemon runs. What fails is logged and tried again at the next
/// look.
pub fn keep_current(us: &Arc<Processor>) {
    if let Err(refusal) = confine::thread(Work::Session) {
        tracing::error!(reason = %refusal, "the certificate will not be renewed");
        return;
    }
    let Renewal { look_every_seconds, revocations_every_seconds, .. } = us.config.renewal;
    std::thread::sleep(SETTLING);
    let mut lists_due = Instant::now();
    loop {
        if let Ok(current) = us.vault.enrolment() {
            if is_due(&current, us.now())
                && let Err(refusal) = renew(us, &current)
            {
                tracing::warn!(reason = %refusal, "the certificate could not be renewed");
            }
            if Instant::now() >= lists_due {
                lists_due = Instant::now() + Duration::from_secs(revocations_every_seconds);
                if let Err(refusal) = read_revocations(us, &current) {
                    tracing::warn!(reason = %refusal, "the revocation list could not be read");
                }
            }
        }
        std::thread::sleep(Duration::from_secs(look_every_seconds));
    }
}

fn read_revocations(us: &Processor, current: &Enrolment) -> Result<()> {
    let list = block_on(enrolment::revocations(&current.authority, &current.issued.root))?;
    let _alone = us.enrolling();
    us.take_revocations(list)
}

/// A third of the validity is left, or less.
fn is_due(current: &Enrolment, now: Time) -> bool {
    let (from, until) = current.certified.validity();
    now.0 >= until.0.saturating_sub(until.0.saturating_sub(from.0) / 3)
}
