//! The server's role in a delivery, Fig. 4 of the source from the ticket to the farewell, one function.

use crate::keys::ServerKeys;
use crate::packing::Packing;
use crate::server::{Clock, Server};
use crate::storage::{Repository, StoredOrder};
use chipbound_session::Context;
use chipbound_session::path::Path;
use chipbound_session::server::{Purpose, begin};
use chipbound_session::tls::{TimeProvider, server_config};
use chipbound_wire::documents::Manifest;
use chipbound_wire::messages::Kind;
use chipbound_wire::signed::read_claims;
use chipbound_wire::{Result, SystemRandom};
use rustls::pki_types::UnixTime;
use std::io::{Read, Write};
use std::sync::Arc;
use std::time::Duration;
use tokio::runtime::Handle;

/// Delivers `order`, which a ticket admitted (steps 1201 and 1203 of Fig. 4 were on the first path), to the processor at the other end
/// of `stream`. Blocks; `runtime` is where the repository lives.
///
/// # Errors
/// Whatever either end refused; the other end was told.
pub fn deliver<R: Repository, S: Read + Write>(server: &Server<R>, order: &StoredOrder, stream: S, runtime: &Handle) -> Result<()> {
    let keys = server.keys.get();

    // Step 1003 (Fig. 4: 1205): the second path, TLS with both certificates, ending inside the processor.
    let clock = Arc::new(TlsClock(server.clock.clone()));
    let mut path = Path::accept(stream, &server_config(&keys.second_path, server.trust.clone(), clock)?)?;

    let conversed = converse(server, &keys, order, &mut path, runtime);
    if let Err(refusal) = &conversed {
        path.abort(refusal);
    }
    conversed
}

fn converse<R: Repository, S: Read + Write>(
    server: &Server<R>,
    keys: &ServerKeys,
    order: &StoredOrder,
    path: &mut Path<S>,
    runtime: &Handle,
) -> Result<()> {
    let signer = keys.second_path.signer();
    let trust = || server.trust.get();
    let (now, random) = (|| server.now(), &mut SystemRandom);

    // Step 1003: only the very processor of the order.
    let statement_key = keys.statement.key.key_id();
    let awaiting_hello = begin(path.channel(), Purpose { order: order.order, processor: order.processor, statement_key })?;

    // Step 1004 (1207): the processor's challenge.
    let hello = path.expect(Kind::Hello)?;
    let (awaiting_processor, ours) = awaiting_hello.hello(hello, &Context { trust: &trust(), now: now(), signer: &signer }, random)?;

    // Step 1005 (1209): our challenge and our signature over both.
    path.send(Kind::ServerExchange, &ours)?;

    // Step 1006 (1211, 1213): the processor's signature and certificate, verified.
    let theirs = path.expect(Kind::ProcessorExchange)?;
    let authenticated = awaiting_processor.processor_exchange(theirs, &Context { trust: &trust(), now: now(), signer: &signer })?;

    // Source [61]: what can you process?
    path.send(Kind::AskCapabilities, &[])?;
    let offer = path.expect(Kind::Offer)?;
    let negotiating = authenticated.offer(offer, &Context { trust: &trust(), now: now(), signer: &signer })?;
    let release = runtime.block_on(server.repository.release(order.manifest))?;
    let manifest: Manifest = read_claims(&release.signed_manifest)?;
    let choice = negotiating.choose(&server.policy.for_order(order.key_mode), &manifest)?;

    // Step 1007 (1215): terms, wrapped key, …
    let sealing_key = negotiating.sealing_key(choice.suite)?.to_vec();
    let session_key = negotiating.session_key();
    let packing = Packing { server, keys, runtime, order, release: &release, choice, sealing_key: &sealing_key, session_key };
    let again = negotiating.kept().map(|kept| packing.again(kept)).transpose()?.flatten();
    let parcel = again.map_or_else(|| packing.parcel(), Ok)?;
    let (sending, start) = negotiating.start(parcel.consignment.clone(), &Context { trust: &trust(), now: now(), signer: &signer })?;
    path.send(Kind::Start, &start)?;

    parcel.send(server, runtime, |body, stored| {
        // … encrypted program, from where the processor has it, …
        let roots = body.send(|chunk| path.send_chunk(chunk))?;

        // … seal. It is on record before it leaves, so that no acknowledgement ever finds us without it.
        let (awaiting_acknowledgement, seal) = sending.seal(&roots, &keys.statement.signer())?;
        runtime.block_on(server.repository.record_delivery(&stored.sealed_by(seal.clone(), now()), order.processor))?;
        path.send(Kind::Seal, &seal)?;

        // Step 1008 (1217): received, opened, compared. The charge (1219) is captured when the owner brings this on the first path.
        let acknowledgement = path.expect(Kind::Acknowledgement)?;
        awaiting_acknowledgement.acknowledgement(acknowledgement, &Context { trust: &trust(), now: now(), signer: &signer })?;

        // Step 1012 (1221): close_notify both ways.
        path.farewell()
    })
}

/// The server's clock as TLS asks for it.
struct TlsClock(Clock);

impl std::fmt::Debug for TlsClock {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("TlsClock")
    }
}

impl TimeProvider for TlsClock {
    fn current_time(&self) -> Option<UnixTime> {
        Some(UnixTime::since_unix_epoch(Duration::from_secs((self.0)().0)))
    }
}
