//! The path itself: how it ends, well and badly, and what arrives when one end gives up.

use crate::common::{NOW, Standing, World, honest, identity, streams};
use chipbound_session::path::Path;
use chipbound_session::tls::{processor_config, server_config};
use chipbound_wire::limits::MAX_CHUNK;
use chipbound_wire::messages::{Chunk, Kind};
use chipbound_wire::{Code, Random, Refusal, Result};
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::Duration;

/// Runs both ends over these streams.
fn joined<S: Read + Write + Send, P, Q: Send>(
    (a, b): (S, S),
    processor: impl FnOnce(Path<S>) -> P,
    server: impl FnOnce(Path<S>) -> Q + Send,
) -> (P, Q) {
    let world = World::new();
    let client = processor_config(&identity(&world.processor), world.processor_trust.clone(), Arc::new(Standing(NOW))).unwrap();
    let accepting = server_config(&identity(&world.server), world.server_trust.clone(), Arc::new(Standing(NOW))).unwrap();
    std::thread::scope(|scope| {
        let server = scope.spawn(move || server(Path::accept(b, &accepting).expect("the server's handshake")));
        let processor = processor(Path::connect(a, &client).expect("the processor's handshake"));
        (processor, server.join().unwrap())
    })
}

fn tcp() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let a = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let b = listener.accept().unwrap().0;
    for stream in [&a, &b] {
        stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        stream.set_write_timeout(Some(Duration::from_secs(60))).unwrap();
    }
    (a, b)
}

#[test]
fn both_ends_see_the_same_exporter_and_each_others_key() {
    let (processor, server) = joined(streams(), |p| (p.exporter(), p.peer().role()), |p| (p.exporter(), p.peer().role()));
    assert_eq!(processor.0, server.0);
    assert_ne!(processor.1, server.1);
    let (again, _) = joined(streams(), |p| p.exporter(), |p| p.exporter());
    assert_ne!(processor.0, again);
}

#[test]
fn chunks_of_every_size_arrive_as_they_were_sent() {
    let sizes = [1, 15, 16 * 1024, 16 * 1024 + 1, 100_000, MAX_CHUNK];
    let make = |size: usize| {
        let (mut bytes, mut tags) = (vec![0; size], vec![0; size.div_ceil(4096) * 16]);
        let mut random = chipbound_testkit::Repeatable::new(size as u64);
        random.fill(&mut bytes);
        random.fill(&mut tags);
        (bytes, tags)
    };
    let receive = |mut path: Path<UnixStream>| {
        for (offset, size) in sizes.into_iter().enumerate() {
            let (bytes, tags) = make(size);
            let chunk = Chunk::parse(path.expect(Kind::Chunk).expect("a chunk")).expect("well formed");
            assert!((chunk.offset, chunk.tags, chunk.bytes) == (offset as u64, &*tags, &*bytes), "{size}");
        }
        assert!(path.meter().received() > sizes.iter().sum::<usize>() as u64);
        path.close().expect("closed")
    };
    let send = |mut path: Path<UnixStream>| {
        for (offset, size) in sizes.into_iter().enumerate() {
            let (bytes, tags) = make(size);
            path.send_chunk(&Chunk { offset: offset as u64, tags: &tags, bytes: &bytes }).expect("sent");
        }
        assert!(path.meter().sent() > sizes.iter().sum::<usize>() as u64);
        path.close().expect("closed")
    };
    joined(streams(), receive, send);
}

#[test]
fn what_is_above_its_limit_is_not_even_sent() {
    let send = |mut path: Path<UnixStream>| {
        let bytes = vec![0; MAX_CHUNK + 1];
        assert_eq!(path.send_chunk(&Chunk { offset: 0, tags: &[], bytes: &bytes }).expect_err("too long").code, Code::TooLarge);
        assert_eq!(path.send(Kind::AskCapabilities, b"?").expect_err("too long").code, Code::TooLarge);
        assert_eq!(path.send(Kind::Hello, &vec![0; 4097]).expect_err("too long").code, Code::TooLarge);
        path.send(Kind::AskCapabilities, &[]).expect("the path is unharmed");
        path.close().expect("closed")
    };
    let receive = |mut path: Path<UnixStream>| {
        path.expect(Kind::AskCapabilities).expect("the one good message");
        path.close().expect("closed")
    };
    joined(streams(), send, receive);
}

#[test]
fn end_of_file_without_close_notify_is_truncation_never_the_end() {
    let (received, ()) = joined(streams(), |mut path| path.receive().map(|(kind, _)| kind), drop);
    assert_eq!(received.expect_err("cut").code, Code::PathTruncated);
    let (closed, ()) = joined(streams(), |path| path.close(), drop);
    assert_eq!(closed.expect_err("cut").code, Code::PathTruncated);
    let (received, ()) = joined(tcp(), |mut path| path.receive().map(|(kind, _)| kind), drop);
    assert_eq!(received.expect_err("cut").code, Code::PathTruncated);
}

#[test]
fn a_close_in_place_of_a_message_is_no_message() {
    let (received, closed) = joined(streams(), |mut path| path.receive().map(|(kind, _)| kind), |path| path.close());
    assert_eq!(received.expect_err("nothing came").code, Code::PathTruncated);
    assert_eq!(closed.expect_err("the other end never closed").code, Code::PathTruncated);
}

#[test]
fn a_message_in_place_of_the_close_is_refused() {
    let (closed, _) = joined(
        streams(),
        |path| path.close(),
        |mut path| {
            path.send(Kind::AskCapabilities, &[]).expect("sent");
            path.close()
        },
    );
    assert_eq!(closed.expect_err("one message more").code, Code::UnexpectedMessage);
}

#[test]
fn a_message_of_another_kind_is_refused_before_its_payload() {
    let (received, ()) = joined(
        streams(),
        |mut path| path.expect(Kind::Offer).map(<[u8]>::to_vec),
        |mut path| {
            path.send(Kind::Chunk, &[1; 100]).expect("sent");
        },
    );
    assert_eq!(received.expect_err("another kind").code, Code::UnexpectedMessage);
}

#[test]
fn an_abort_arrives_with_code_and_detail_and_is_not_answered() {
    let (at_processor, at_server) = joined(
        streams(),
        |mut path| {
            let refusal = path.receive().map(|(kind, _)| kind).expect_err("aborted");
            path.abort(&refusal);
            refusal
        },
        |mut path| {
            path.abort(&Refusal::new(Code::ClassRefused, "not for you"));
            path.receive().map(|(kind, _)| kind)
        },
    );
    assert_eq!((at_processor.code, &*at_processor.detail), (Code::ClassRefused, "not for you"));
    assert_eq!(at_server.expect_err("only close_notify").code, Code::PathTruncated);
}

#[test]
fn a_code_of_a_later_version_keeps_its_name() {
    use chipbound_wire::bounded::Text;
    use chipbound_wire::messages::{Abort, payload};
    let (received, ()) = joined(
        streams(),
        |mut path| path.receive().map(|(kind, _)| kind),
        |mut path| {
            let abort = Abort { code: Text::new("from_the_future").unwrap(), detail: Text::new("why").unwrap() };
            path.send(Kind::Abort, &payload(Kind::Abort, &abort).unwrap()).expect("sent");
        },
    );
    let refusal = received.expect_err("aborted");
    assert_eq!(refusal.code, Code::PeerRefused);
    assert!(refusal.detail.contains("from_the_future") && refusal.detail.contains("why"), "{}", refusal.detail);
}

/// One end streams until it cannot; the other reads one chunk and gives up.
fn gives_up<S: Read + Write + Send>(streams: (S, S)) -> Refusal {
    let bytes = vec![3; MAX_CHUNK];
    let stream = |mut path: Path<S>| loop {
        if let Err(refusal) = path.send_chunk(&Chunk { offset: 0, tags: &[], bytes: &bytes }) {
            return refusal;
        }
    };
    let give_up = |mut path: Path<S>| {
        path.expect(Kind::Chunk).expect("one chunk");
        path.abort(&Refusal::new(Code::DiskFull, "no room"));
    };
    joined(streams, give_up, stream).1
}

#[test]
fn who_is_cut_off_in_the_middle_of_sending_learns_why() {
    for _ in 0..20 {
        assert_eq!(gives_up(streams()).code, Code::DiskFull);
        assert_eq!(gives_up(tcp()).code, Code::DiskFull);
    }
}

#[test]
fn a_silent_peer_is_too_slow() {
    let (received, ()) = joined(
        streams(),
        |mut path| {
            path.stream().set_read_timeout(Some(Duration::from_millis(1))).unwrap();
            let refusal = path.receive().map(|(kind, _)| kind).expect_err("nothing came");
            path.abort(&refusal);
            refusal.code
        },
        |mut path| assert_eq!(path.receive().map(|(kind, _)| kind).expect_err("told").code, Code::TimedOut),
    );
    assert_eq!(received, Code::TimedOut);
}

#[test]
fn a_peer_that_does_not_read_is_too_slow() {
    let (done, wait) = std::sync::mpsc::channel::<()>();
    let bytes = vec![3; MAX_CHUNK];
    let (sent, ()) = joined(
        streams(),
        |mut path| {
            path.stream().set_write_timeout(Some(Duration::from_millis(1))).unwrap();
            let refusal = loop {
                if let Err(refusal) = path.send_chunk(&Chunk { offset: 0, tags: &[], bytes: &bytes }) {
                    break refusal;
                }
            };
            drop(done);
            refusal.code
        },
        move |path| {
            assert!(wait.recv().is_err(), "nothing is ever sent here");
            drop(path);
        },
    );
    assert_eq!(sent, Code::TimedOut);
}

/// A stream that flips one bit of what is read, at that offset.
struct Flipping {
    stream: UnixStream,
    at: u64,
    seen: u64,
}

impl Read for Flipping {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let read = self.stream.read(buffer)?;
        if let Some(place) = self.at.checked_sub(self.seen).filter(|place| *place < read as u64) {
            buffer[place as usize] ^= 1;
        }
        self.seen += read as u64;
        Ok(read)
    }
}

impl Write for Flipping {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.stream.write(bytes)
    }
    fn flush(&mut self) -> std::io::Result<()> {
        self.stream.flush()
    }
}

#[test]
fn any_bit_flipped_on_the_way_ends_the_path_on_both_ends() {
    let world = World::new();
    for at in (0..6_000).step_by(391) {
        let (a, b) = streams();
        let (processor, server) = std::thread::scope(|scope| {
            let server = scope.spawn(|| crate::common::server_role(&world, b, &honest));
            let processor = crate::common::processor_role(&world, Flipping { stream: a, at, seen: 0 }, &honest);
            (processor.map(drop), server.join().unwrap().map(drop))
        });
        assert!(processor.is_err(), "byte {at}");
        assert!(server.is_err(), "byte {at}");
    }
}

#[test]
fn bytes_that_are_no_tls_are_refused_and_never_panic() {
    let world = World::new();
    let accepting = server_config(&identity(&world.server), world.server_trust.clone(), Arc::new(Standing(NOW))).unwrap();
    let client = processor_config(&identity(&world.processor), world.processor_trust.clone(), Arc::new(Standing(NOW))).unwrap();
    for seed in 0..200u64 {
        let mut noise = vec![0; 1 + (seed as usize * 37) % 2000];
        chipbound_testkit::Repeatable::new(seed).fill(&mut noise);
        if seed % 2 == 0 {
            // A plausible head gets further than noise alone.
            noise.splice(..0, [0x16, 3, 1, 0, 200, 1, 0, 0, 196, 3, 3]);
        }
        let refused = |end: &dyn Fn(UnixStream) -> Result<()>| {
            let (a, mut b) = streams();
            b.write_all(&noise).unwrap();
            b.shutdown(std::net::Shutdown::Write).unwrap();
            assert!(end(a).is_err());
        };
        refused(&|stream| Path::accept(stream, &accepting).map(drop));
        refused(&|stream| Path::connect(stream, &client).map(drop));
    }
}
