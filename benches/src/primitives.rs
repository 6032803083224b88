//! What one delivery of 100 KB costs a server in cryptography alone: each primitive measured by itself in one thread, and how
//! often the protocol makes it.

use crate::stats::{Series, Table};
use crate::{Outcome, failed};
use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use chipbound_sealing::{
    ContentKey, DirectWrap, ReleaseSecret, SealingKeyPair, SessionKey, open_wrap, seal_release, wrap_common, wrap_session,
};
use chipbound_session::path::Path;
use chipbound_session::tls::{self, DefaultTimeProvider, Identity, SharedTrust};
use chipbound_testkit::documents::{self, ORDER, SUITE};
use chipbound_testkit::{Holder, Pki};
use chipbound_transport::ServerTrust;
use chipbound_wire::certificate::Role;
use chipbound_wire::signature::{Sign, verify};
use chipbound_wire::suite::{Format, Kem, KeyMode};
use chipbound_wire::{Digest, SystemRandom, Time};
use rustix::time::{ClockId, clock_gettime};
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection, ServerConfig, ServerConnection};
use std::hint::black_box;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// Bytes of the delivery.
pub(crate) const SMALL: usize = 100 * 1000;
/// Bytes of a TLS record (RFC 8446 §5.1).
const RECORD: usize = 16 * 1024;
/// Bytes of a signed document of the usual size, its certificates in it.
const DOCUMENT: usize = 1500;

/// What the server makes for the first document of a signer alone, since it remembers good signatures.
const CERTIFICATES: &str = "verifications of the 2 certificates of each of these";

/// One primitive.
#[derive(Debug)]
struct Primitive {
    name: &'static str,
    /// How often the server makes it for one delivery; 0 where only the processor does.
    count: u32,
    micros: Series,
}

/// All of them.
#[derive(Debug, Default)]
pub(crate) struct Primitives(Vec<Primitive>);

impl Primitives {
    /// Measures each so many times more.
    pub(crate) fn add(&mut self, rounds: usize) -> Outcome<()> {
        let more = measure(rounds)?;
        if self.0.is_empty() {
            self.0 = more;
        } else {
            self.0.iter_mut().zip(more).for_each(|(have, more)| have.micros.append(more.micros));
        }
        Ok(())
    }

    /// Microseconds of one delivery at the server.
    pub(crate) fn sum(&self) -> f64 {
        self.0.iter().map(|p| f64::from(p.count) * p.micros.median()).sum()
    }

    /// The same without the verifications that a server which remembers good signatures saves.
    pub(crate) fn sum_remembered(&self) -> f64 {
        self.sum() - self.0.iter().filter(|p| p.name == CERTIFICATES).map(|p| f64::from(p.count) * p.micros.median()).sum::<f64>()
    }

    /// Prints each with its count.
    pub(crate) fn print(&self) {
        let mut table = Table::new(&["primitive", "count", "µs each: median (range)", "µs in all"]);
        for p in &self.0 {
            let all = format!("{:.1}", f64::from(p.count) * p.micros.median());
            table.row([p.name.to_owned(), p.count.to_string(), p.micros.show(1), all]);
        }
        table.row(["sum".to_owned(), String::new(), String::new(), format!("{:.1}", self.sum())]);
        table.print();
    }
}

fn measure(rounds: usize) -> Outcome<Vec<Primitive>> {
    let now = Time(SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs());
    let pki = Pki::new(now);
    let mut all = vec![
        Primitive { name: "TLS handshake of the first path, server's side", count: 2, micros: outer_handshakes(rounds)? },
        Primitive { name: "TLS handshake of the second path, mutual, server's side", count: 1, micros: inner_handshakes(&pki, rounds)? },
    ];
    all.extend(wraps(rounds)?);
    all.extend(signatures(&pki, rounds)?);
    all.extend(bulk(rounds)?);
    Ok(all)
}

/// Microseconds of each call of `work`.
fn timed<T>(rounds: usize, mut work: impl FnMut() -> Outcome<T>) -> Outcome<Series> {
    for _ in 0..rounds.div_ceil(10) {
        black_box(work()?); // The first calls warm caches and look up what the processor can do.
    }
    (0..rounds)
        .map(|_| {
            let begun = Instant::now();
            black_box(work()?);
            Ok(micros(begun.elapsed()))
        })
        .collect::<Outcome<Vec<_>>>()
        .map(Series::from_iter)
}

fn micros(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e6
}

/// The first path's handshake as server and client of `transport` configure it; only the server's calls are timed.
fn outer_handshakes(rounds: usize) -> Outcome<Series> {
    let made = rcgen::generate_simple_self_signed(vec!["127.0.0.1".to_owned()])?;
    let certificate = made.cert.der().clone();
    let key = rustls::pki_types::PrivateKeyDer::try_from(made.signing_key.serialize_der())?;
    let server = chipbound_transport::server_config(vec![certificate.clone()], key, &[chipbound_transport::tls::ALPN_HTTP1])?;
    let client = chipbound_transport::client_config(&ServerTrust::Root(certificate))?;
    (0..rounds + rounds.div_ceil(10))
        .map(|_| outer_handshake(&server, &client))
        .skip(rounds.div_ceil(10))
        .collect::<Outcome<Vec<_>>>()
        .map(Series::from_iter)
}

fn outer_handshake(server: &Arc<ServerConfig>, client: &Arc<ClientConfig>) -> Outcome<f64> {
    let mut spent = Duration::ZERO;
    let mut begun = Instant::now();
    let mut server = ServerConnection::new(server.clone())?;
    spent += begun.elapsed();
    let mut client = ClientConnection::new(client.clone(), ServerName::try_from("127.0.0.1")?)?;
    let mut wire = Vec::new();
    while server.is_handshaking() || client.is_handshaking() || client.wants_write() {
        wire.clear();
        while client.wants_write() {
            client.write_tls(&mut wire)?;
        }
        begun = Instant::now();
        let mut unread = wire.as_slice();
        while !unread.is_empty() {
            server.read_tls(&mut unread)?;
            server.process_new_packets()?;
        }
        let mut answer = Vec::new();
        while server.wants_write() {
            server.write_tls(&mut answer)?;
        }
        spent += begun.elapsed();
        let mut unread = answer.as_slice();
        while !unread.is_empty() {
            client.read_tls(&mut unread)?;
            client.process_new_packets()?;
        }
    }
    Ok(micros(spent))
}

/// The second path's handshake as `session` makes it, over a socket pair: the CPU time of the thread of the server's end.
fn inner_handshakes(pki: &Pki, rounds: usize) -> Outcome<Series> {
    let trust = SharedTrust::new(pki.trust());
    let (processor, server) = (pki.holder(Role::Processor), pki.holder(Role::ServerSecondPath));
    let processor = tls::processor_config(&identity(&processor), trust.clone(), Arc::new(DefaultTimeProvider))?;
    let server = tls::server_config(&identity(&server), trust, Arc::new(DefaultTimeProvider))?;
    let mut spent = Series::default();
    for round in 0..rounds + rounds.div_ceil(10) {
        let (near, far) = UnixStream::pair()?;
        let (accepted, connected) = std::thread::scope(|scope| {
            let accepting = scope.spawn(|| {
                let begun = thread_cpu();
                let path = Path::accept(far, &server);
                (path.map(drop), thread_cpu() - begun)
            });
            let connected = Path::connect(near, &processor);
            (accepting.join(), connected)
        });
        let (accepted, cpu) = accepted.map_err(|_| failed("the server's end of a handshake panicked"))?;
        accepted?;
        connected?;
        if round >= rounds.div_ceil(10) {
            spent.push(cpu * 1e6);
        }
    }
    Ok(spent)
}

fn identity(holder: &Holder) -> Identity {
    Identity { key: Arc::new(holder.key.clone()), chain: holder.chain.clone() }
}

/// CPU seconds of this thread.
fn thread_cpu() -> f64 {
    seconds(ClockId::ThreadCPUTime)
}

/// What a clock of the kernel says.
pub(crate) fn seconds(clock: ClockId) -> f64 {
    let time = clock_gettime(clock);
    time.tv_sec as f64 + time.tv_nsec as f64 / 1e9
}

fn wraps(rounds: usize) -> Outcome<[Primitive; 4]> {
    let random = &mut SystemRandom;
    let certified = SealingKeyPair::generate(Kem::XWing, random);
    let public = certified.sealing_key().public.to_vec();
    let session = SessionKey::generate(Kem::XWing, random).sealing_key();
    let release = ReleaseSecret::generate(random);
    let (terms, commitment) = (Digest([1; 32]), Digest([2; 32]));
    let content = ContentKey::generate(random);
    let processor = chipbound_wire::KeyId([3; 32]);

    let main = timed(rounds, || {
        let (wrap, _) = DirectWrap::begin(&public, SUITE, &release, &ORDER, &mut SystemRandom)?;
        Ok(wrap.finish(&terms, &commitment)?)
    })?;
    let for_session = timed(rounds, || Ok(wrap_session(&session, SUITE, &terms, &content, &mut SystemRandom)?))?;
    let token = timed(rounds, || Ok(seal_release(&public, Kem::XWing, &ORDER, &terms, &processor, &release, &mut SystemRandom)?))?;

    let mut common = sample_terms();
    common.key_mode = KeyMode::Common;
    let wrap = wrap_common(&public, SUITE, &release, &common.order, &terms, &content, random)?;
    let unwrap = timed(rounds, || Ok(open_wrap(&certified, &wrap, &common, &terms, &release)?))?;
    Ok([
        Primitive { name: "main wrap, X-Wing with PSK", count: 1, micros: main },
        Primitive { name: "session wrap, X-Wing", count: 1, micros: for_session },
        Primitive { name: "release secret sealed into the token, X-Wing", count: 1, micros: token },
        Primitive { name: "unwrap (the processor's, not in the sum)", count: 0, micros: unwrap },
    ])
}

fn sample_terms() -> chipbound_wire::documents::Terms {
    let vendor = chipbound_wire::KeyId([4; 32]);
    let manifest = documents::manifest(&vendor, b"sample");
    let confirmation = documents::confirmation(&manifest, b"signed", chipbound_wire::KeyId([3; 32]), Time(1_800_000_000));
    documents::terms(&confirmation, Format::Data)
}

fn signatures(pki: &Pki, rounds: usize) -> Outcome<[Primitive; 3]> {
    let holder = pki.holder(Role::ServerStatement);
    let message = vec![7; DOCUMENT];
    let signature = holder.key.sign(&message)?;
    let sign = timed(rounds, || Ok(holder.key.sign(&message)?))?;
    let check = timed(rounds, || Ok(verify(holder.key.spki(), &message, &signature)?))?;
    Ok([
        Primitive { name: "signatures: confirmation, exchange, terms, seal, receipt, token", count: 6, micros: sign },
        Primitive { name: "verifications: exchange, offer, acknowledgement", count: 3, micros: check.clone() },
        Primitive { name: CERTIFICATES, count: 6, micros: check },
    ])
}

fn bulk(rounds: usize) -> Outcome<[Primitive; 3]> {
    let key = LessSafeKey::new(UnboundKey::new(&AES_256_GCM, &[9; 32])?);
    let mut bytes = vec![5; SMALL];
    let mut seal = |piece: usize| -> Outcome<()> {
        for (number, part) in bytes.chunks_mut(piece).enumerate() {
            let mut nonce = [0; 12];
            nonce[4..].copy_from_slice(&number.to_be_bytes());
            let _tag = key.seal_in_place_separate_tag(Nonce::assume_unique_for_key(nonce), Aad::empty(), part)?;
        }
        Ok(())
    };
    let records = timed(rounds, || seal(RECORD))?;
    let pages = timed(rounds, || seal(chipbound_wire::limits::DATA_CHUNK))?;
    let body = vec![6; SMALL];
    let hash = timed(rounds, || Ok(blake3::hash(&body)))?;
    Ok([
        Primitive { name: "AES-256-GCM of 100 KB in TLS records, one for each path", count: 2, micros: records },
        Primitive { name: "AES-256-GCM of 100 KB in units of 64 KiB", count: 1, micros: pages },
        Primitive { name: "BLAKE3 of 100 KB", count: 1, micros: hash },
    ])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_primitive_is_measured_and_only_the_servers_are_summed() {
        let mut primitives = Primitives::default();
        primitives.add(2).unwrap();
        primitives.add(1).unwrap();
        let of_all: f64 = primitives.0.iter().map(|p| p.micros.median()).sum();
        assert!(primitives.0.iter().all(|p| p.micros.median() > 0.0));
        let unwrap: f64 = primitives.0.iter().filter(|p| p.count == 0).map(|p| p.micros.median()).sum();
        assert!(unwrap > 0.0 && primitives.sum() > of_all - unwrap);
        assert!(primitives.sum_remembered() > 0.0 && primitives.sum_remembered() < primitives.sum());
    }
}
