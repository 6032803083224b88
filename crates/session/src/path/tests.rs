//! Frames that no [`Path`] of ours would send.

use super::*;
use crate::tls::{Identity, SharedTrust, TimeProvider, processor_config, server_config};
use chipbound_testkit::{Holder, Pki, Repeatable};
use chipbound_wire::certificate::Role;
use chipbound_wire::messages::MAX_CHUNK_PAYLOAD;
use chipbound_wire::{Random, Time};
use rustls::pki_types::UnixTime;
use std::os::unix::net::UnixStream;
use std::time::Duration;

const NOW: Time = Time(1_800_000_000);

#[derive(Debug)]
struct Standing;

impl TimeProvider for Standing {
    fn current_time(&self) -> Option<UnixTime> {
        Some(UnixTime::since_unix_epoch(Duration::from_secs(NOW.0)))
    }
}

/// Two ends with their handshakes done.
fn pair() -> (Path<UnixStream>, Path<UnixStream>) {
    let pki = Pki::new(NOW);
    let trust = SharedTrust::new(pki.trust());
    let identity = |holder: &Holder| Identity { key: Arc::new(holder.key.clone()), chain: holder.chain.clone() };
    let (processor, server) = (identity(&pki.holder(Role::Processor)), identity(&pki.holder(Role::ServerSecondPath)));
    let client = processor_config(&processor, trust.clone(), Arc::new(Standing)).expect("its own key");
    let accepting = server_config(&server, trust, Arc::new(Standing)).expect("its own key");
    let (a, b) = UnixStream::pair().expect("a pair");
    let accepting = std::thread::spawn(move || Path::accept(b, &accepting).expect("the server's handshake"));
    let client = Path::connect(a, &client).expect("the processor's handshake");
    (client, accepting.join().expect("no panic"))
}

/// What the processor's end says to these bytes and a clean close.
fn said(bytes: &[u8]) -> Code {
    let (mut processor, mut server) = pair();
    let bytes = bytes.to_vec();
    let sending = std::thread::spawn(move || {
        let _ = server.records.write(&bytes).and_then(|()| server.records.send_close_notify());
        server
    });
    let code = loop {
        match processor.receive() {
            Ok(_) => {}
            Err(refusal) => break refusal.code,
        }
    };
    // A second look never yields a message either.
    assert!(processor.receive().is_err());
    drop(processor);
    sending.join().expect("no panic");
    code
}

fn head(kind: u8, length: usize) -> Vec<u8> {
    [&[kind], u32::try_from(length).expect("a length").to_be_bytes().as_slice()].concat()
}

#[test]
fn frames_of_unknown_types_are_refused() {
    for kind in (0..=255).filter(|kind| !matches!(kind, 1..=9 | 15)).step_by(17) {
        assert_eq!(said(&head(kind, 0)), Code::UnexpectedMessage, "{kind}");
    }
}

#[test]
fn frames_above_their_kinds_limit_are_refused_before_a_byte_is_set_aside() {
    assert_eq!(said(&head(Kind::AskCapabilities as u8, 1)), Code::TooLarge);
    assert_eq!(said(&head(Kind::Hello as u8, 4097)), Code::TooLarge);
    assert_eq!(said(&head(Kind::Chunk as u8, MAX_CHUNK_PAYLOAD + 1)), Code::TooLarge);
    let (mut processor, mut server) = pair();
    server.records.write(&head(Kind::Chunk as u8, u32::MAX as usize)).expect("written");
    server.records.flush().expect("sent");
    assert_eq!(processor.receive().map(|(kind, _)| kind).expect_err("too long").code, Code::TooLarge);
    assert!(processor.message.capacity() < 4096);
}

#[test]
fn frames_cut_short_by_a_clean_close_are_truncated() {
    assert_eq!(said(&[]), Code::PathTruncated);
    assert_eq!(said(&[7, 0, 0]), Code::PathTruncated);
    assert_eq!(said(&[head(Kind::Chunk as u8, 100), vec![0; 99]].concat()), Code::PathTruncated);
}

#[test]
fn an_abort_that_is_no_abort_is_malformed() {
    assert_eq!(said(&[head(Kind::Abort as u8, 3), b"???".to_vec()].concat()), Code::Malformed);
}

#[test]
fn random_frames_are_refused_and_never_panic() {
    let mut random = Repeatable::new(7);
    for round in 0..60usize {
        let mut noise = vec![0; round * 11];
        random.fill(&mut noise);
        if let Some(kind) = noise.first_mut() {
            *kind %= 16;
        }
        said(&noise);
    }
}

#[test]
fn a_client_that_is_cut_off_while_it_writes_still_reads_the_alert() {
    /// Everything written fails, as if the peer had hung up; one alert, unknown_ca, is still there to be read.
    struct Gone(&'static [u8]);
    impl Read for Gone {
        fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
            self.0.read(buffer)
        }
    }
    impl Write for Gone {
        fn write(&mut self, _bytes: &[u8]) -> std::io::Result<usize> {
            Err(std::io::ErrorKind::BrokenPipe.into())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }
    let pki = Pki::new(NOW);
    let holder = pki.holder(Role::Processor);
    let identity = Identity { key: Arc::new(holder.key.clone()), chain: holder.chain.clone() };
    let config = processor_config(&identity, SharedTrust::new(pki.trust()), Arc::new(Standing)).expect("its own key");
    let told = Path::connect(Gone(&[21, 3, 3, 0, 2, 2, 48]), &config).expect_err("cut off");
    assert_eq!(told.code, Code::CertificateForeign);
    assert_eq!(Path::connect(Gone(&[]), &config).expect_err("cut off").code, Code::PathTruncated);
}

#[test]
fn a_long_path_holds_no_more_memory_than_a_short_one() {
    let (mut processor, mut server) = pair();
    let sending = std::thread::spawn(move || {
        let bytes = vec![1; MAX_CHUNK];
        for _ in 0..40 {
            server.send_chunk(&Chunk { offset: 0, tags: &[], bytes: &bytes }).expect("sent");
        }
        server.close()
    });
    for _ in 0..40 {
        processor.expect(Kind::Chunk).expect("a chunk");
    }
    assert!(processor.message.capacity() <= 2 * MAX_CHUNK_PAYLOAD);
    assert!(processor.records.buffered() <= 512 * 1024);
    processor.close().expect("closed");
    sending.join().expect("no panic").expect("closed");
}
