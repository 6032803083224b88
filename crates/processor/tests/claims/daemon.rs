//! The daemon as a process: deliveries over its socket, and what hostile clients send it.

use crate::client::{Daemon, bytes, code, frame, read_all, receive, until};
use crate::world::{Delivered, Lies, Sent, Shipment, World, certify, install, now, sample, serve};
use chipbound_processor::processor::Processor;
use chipbound_wire::api::LINE_MAGIC;
use chipbound_wire::bounded::Text;
use chipbound_wire::control::{Line, MAX_CONTROL, Request, Response};
use chipbound_wire::documents::Confirmation;
use chipbound_wire::random::fresh;
use chipbound_wire::{Code, Digest, Result, SystemRandom};
use std::fs::{self, File, Permissions};
use std::io::{Read, Write};
use std::net::TcpListener;
use std::os::fd::AsFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::thread;

/// A delivery through the daemon in tunnel mode, up to the acknowledgement.
fn deliver(daemon: &Daemon, world: &World, shipment: &Shipment) -> (crate::client::Client, Result<Response>, Result<Delivered>) {
    let mut client = daemon.client();
    let (ours, theirs) = UnixStream::pair().expect("a pair");
    client.ask(&receive(&shipment.confirmation, Line::Tunnel), &[ours.as_fd()]);
    drop(ours);
    let server = serve(theirs, world, shipment, &Lies::default());
    let answer = client.answer();
    (client, answer, server)
}

#[test]
fn a_delivery_over_the_socket_ends_with_the_package_and_an_empty_spool() {
    let world = World::new();
    let daemon = Daemon::of(&world);
    let shipment = world.ship(&sample(1_000_000), |_| {});
    let (mut client, answer, delivered) = deliver(&daemon, &world, &shipment);
    let delivered = delivered.expect("delivered");
    let Response::Received { acknowledgement, body_size, chosen } = answer.expect("received") else { panic!("another answer") };
    assert_eq!((&*acknowledgement, body_size), (&delivered.acknowledgement[..], 1_000_000));
    assert_eq!(&*chosen, "x-wing+aes-256-gcm, direct key");

    // A token that does not fit is refused and takes nothing away.
    let wrong = world.token(&shipment, &delivered, |t| t.terms = Digest([1; 32]));
    client.ask(&Request::Release { token: bytes(&wrong) }, &[]);
    let refusal = client.answer().expect_err("terms that were never received");
    assert_eq!(refusal.code, Code::TokenMismatch);
    until("the daemon's log says the same", || daemon.log().contains(&format!("reason={refusal}")));
    let token = world.token(&shipment, &delivered, |_| {});
    client.ask(&Request::Release { token: bytes(&token) }, &[]);
    let Response::Released { size, order } = client.answer().expect("released") else { panic!("another answer") };
    assert_eq!(order, shipment.order);
    let mut package = File::from(client.descriptor());
    assert!(package.write_all(b"x").is_err(), "the descriptor can only read");
    let mut content = Vec::new();
    package.read_to_end(&mut content).expect("readable");
    assert_eq!(content.len() as u64, size);
    assert_eq!(world.spool().len(), 1);
    client.ask(&Request::Taken, &[]);
    assert!(matches!(client.answer().expect("done"), Response::Done));
    assert!(world.spool().is_empty());

    // What the client has now opens, in this daemon and after it was killed.
    let file = world.folder.path().join("package");
    fs::write(&file, &content).expect("written");
    inspected(&daemon, &file);
    daemon.kill();
    inspected(&Daemon::of(&world), &file);
}

fn inspected(daemon: &Daemon, file: &std::path::Path) {
    let mut client = daemon.client();
    client.ask(&Request::Inspect { path: None }, &[File::open(file).expect("the package").as_fd()]);
    let Response::Inspected { title, .. } = client.answer().expect("whole") else { panic!("another answer") };
    assert!(title.ends_with("/tool 1.0"), "{title:?}");
}

#[test]
fn on_a_line_of_its_own_the_processor_dials_and_shows_the_ticket() {
    let world = World::new();
    let daemon = Daemon::of(&world);
    let shipment = world.ship(&sample(20_000_000), |_| {});
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let ticket = Digest(fresh(&mut SystemRandom));
    let address = listener.local_addr().expect("an address").to_string();
    let mut client = daemon.client();
    client.ask(&receive(&shipment.confirmation, Line::Own { address: Text::new(address).expect("short"), ticket }), &[]);
    let (mut line, _) = listener.accept().expect("it dials");
    let mut greeting = [0; 36];
    line.read_exact(&mut greeting).expect("a greeting");
    assert_eq!((&greeting[..4], &greeting[4..]), (LINE_MAGIC.as_slice(), ticket.0.as_slice()));
    thread::scope(|scope| {
        let server = scope.spawn(|| serve(line, &world, &shipment, &Lies::default()));
        let mut last = 0;
        loop {
            match client.answer().expect("progress or the end") {
                Response::Progress { done, total } => {
                    assert!(done > last && done <= total && total == 20_000_000, "{last} {done} {total}");
                    last = done;
                }
                Response::Received { .. } => break,
                other => panic!("{other:?}"),
            }
        }
        assert!(last > 0, "progress was told");
        server.join().expect("ends").expect("delivered");
    });
}

#[test]
fn a_refusal_reaches_both_ends_also_on_a_line_of_its_own() {
    let world = World::new();
    let daemon = Daemon::of(&world);
    let shipment = world.ship(&sample(30_000_000), |_| {});
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = Text::new(listener.local_addr().expect("an address").to_string()).expect("short");
    let mut client = daemon.client();
    client.ask(&receive(&shipment.confirmation, Line::Own { address, ticket: Digest([1; 32]) }), &[]);
    let (mut line, _) = listener.accept().expect("it dials");
    line.read_exact(&mut [0; 36]).expect("a greeting");
    let flip = |mut chunks: Vec<Sent>| {
        chunks[0].bytes[9] ^= 1;
        chunks
    };
    assert_eq!(code(serve(line, &world, &shipment, &Lies { chunks: flip, ..Lies::default() })), Code::PageAltered);
    assert_eq!(code(client.answer()), Code::PageAltered);
    assert!(world.spool().is_empty());
}

#[test]
fn nobody_makes_the_processor_dial_without_a_confirmation_of_its_own() {
    let world = World::new();
    let daemon = Daemon::of(&world);
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    listener.set_nonblocking(true).expect("non-blocking");
    let address = Text::new(listener.local_addr().expect("an address").to_string()).expect("short");
    let foreign = World::new();
    for (confirmation, refused) in [
        (foreign.ship(b"x", |_| {}).confirmation, Code::CertificateForeign),
        (
            world.vendor.sign(&chipbound_wire::signed::read_claims::<Confirmation>(&world.ship(b"x", |_| {}).confirmation).expect("one")),
            Code::CertificateRole,
        ),
    ] {
        let mut client = daemon.client();
        client.ask(&receive(&confirmation, Line::Own { address: address.clone(), ticket: Digest([1; 32]) }), &[]);
        assert_eq!(code(client.answer()), refused);
    }
    assert_eq!(listener.accept().expect_err("nobody dialled").kind(), std::io::ErrorKind::WouldBlock);
}

#[test]
fn a_full_disk_ends_a_delivery_by_name_and_leaves_nothing() {
    let world = World::new();
    let spool = &world.us.config.spool;
    let mount =
        |arguments: &[&str]| std::process::Command::new("mount").args(arguments).arg(spool).output().is_ok_and(|o| o.status.success());
    if !mount(&["-t", "tmpfs", "-o", "size=1m,mode=0700", "none"]) {
        println!("not run here: only root may mount a small disk");
        return;
    }
    let outcome = std::panic::catch_unwind(|| {
        let daemon = Daemon::of(&world);
        let (_, answer, server) = deliver(&daemon, &world, &world.ship(&sample(3_000_000), |_| {}));
        assert_eq!((code(answer), code(server)), (Code::DiskFull, Code::DiskFull));
        assert!(world.spool().is_empty());
        let (_client, answer, _) = deliver(&daemon, &world, &world.ship(&sample(500_000), |_| {}));
        answer.expect("there is room again");
    });
    let unmounted = std::process::Command::new("umount").arg(spool).status().expect("umount");
    assert!(unmounted.success());
    outcome.expect("the test");
}

#[test]
fn a_client_that_goes_away_cancels_its_delivery_wherever_it_stands() {
    let world = World::new();
    let daemon = Daemon::of(&world);
    let shipment = world.ship(&sample(100_000), |_| {});
    // Before the server said a word, on a line of its own: nobody else would end it.
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = Text::new(listener.local_addr().expect("an address").to_string()).expect("short");
    let client = daemon.client();
    client.ask(&receive(&shipment.confirmation, Line::Own { address, ticket: Digest([1; 32]) }), &[]);
    let (mut line, _) = listener.accept().expect("it dials");
    drop(client);
    let mut rest = Vec::new();
    let _ = line.read_to_end(&mut rest); // Comes to its end, or to a reset, because the processor hung up.
    // After the acknowledgement.
    let (client, answer, _) = deliver(&daemon, &world, &shipment);
    answer.expect("received");
    assert_eq!(world.spool().len(), 1);
    drop(client);
    until("the spool is empty", || world.spool().is_empty());
}

#[test]
fn a_killed_daemon_leaves_a_spool_that_its_next_start_removes() {
    let world = World::new();
    let daemon = Daemon::of(&world);
    let (_client, answer, _) = deliver(&daemon, &world, &world.ship(&sample(100_000), |_| {}));
    answer.expect("received");
    daemon.kill();
    assert_eq!(world.spool().len(), 1);
    let daemon = Daemon::of(&world);
    assert!(world.spool().is_empty());
    assert!(daemon.stop().success());
}

#[test]
fn sigterm_ends_the_daemon_cleanly_and_nothing_stays() {
    let world = World::new();
    let daemon = Daemon::of(&world);
    let socket = daemon.socket.clone();
    let (_client, answer, _) = deliver(&daemon, &world, &world.ship(&sample(100_000), |_| {}));
    answer.expect("received");
    assert!(daemon.stop().success());
    assert!(!socket.exists() && world.spool().is_empty());
}

#[test]
fn garbage_on_the_socket_is_refused_and_the_daemon_lives_on() {
    let world = World::new();
    let daemon = Daemon::of(&world);
    let mut attempts: Vec<Vec<u8>> = vec![
        frame(b""),
        frame(&[0xff; 100]),
        frame(&[0x82, 0x18, 99, 0x80]),
        frame(&[0x9f]),
        frame(&[0xbb; 9]),
        u32::MAX.to_be_bytes().to_vec(),
        u32::try_from(MAX_CONTROL + 1).expect("small").to_be_bytes().to_vec(),
        frame(&[chipbound_wire::bounded::encode(&Request::Describe), vec![0]].concat()),
    ];
    // Every request of the contract without the descriptors it needs, and cut short at every length.
    let release = Request::Release { token: bytes(&[0; 50]) };
    for request in [
        Request::Open,
        Request::Inspect { path: None },
        release,
        Request::Run { path: bytes(b"/nowhere"), how: None, begun: None, with: None },
        receive(&[1; 9], Line::Tunnel),
    ] {
        let whole = chipbound_wire::bounded::encode(&request);
        attempts.extend((0..=whole.len()).map(|end| frame(&whole[..end])));
    }
    for attempt in &attempts {
        let mut client = daemon.client();
        client.send(attempt, &[]);
        client.stream.shutdown(std::net::Shutdown::Write).expect("half closed");
        let answer = client.next().expect("an answer").expect_err("a refusal");
        assert!(!matches!(answer.code, Code::Internal), "{attempt:?}: {answer}");
    }
    // Random frames, the same in every run.
    let mut random = chipbound_testkit::Repeatable::new(7);
    for length in 1..200 {
        let mut body = vec![0; length];
        chipbound_wire::Random::fill(&mut random, &mut body);
        let mut client = daemon.client();
        client.send(&frame(&body), &[]);
        client.stream.shutdown(std::net::Shutdown::Write).expect("half closed");
        let _ = client.next();
    }
    let file = File::open("/dev/null").expect("a file");
    let mut client = daemon.client();
    client.send(&frame(&chipbound_wire::bounded::encode(&Request::Describe)), &[file.as_fd(); 10]);
    assert_eq!(code(client.answer()), Code::Malformed, "more descriptors than any request has");
    for request in [
        Request::Inspect { path: None },
        Request::Run { path: bytes(b""), how: None, begun: None, with: None },
        receive(&world.ship(b"x", |_| {}).confirmation, Line::Tunnel),
    ] {
        let mut client = daemon.client();
        client.ask(&request, &[file.as_fd()]);
        let refusal = client.answer().expect_err("a device is no package and no socket");
        assert!(matches!(refusal.code, Code::NotAPackage | Code::Malformed), "{refusal}");
    }
    described(&daemon);
    assert!(!daemon.log().contains("panicked"));
}

fn described(daemon: &Daemon) -> Response {
    let mut client = daemon.client();
    client.ask(&Request::Describe, &[]);
    client.answer().expect("a description")
}

#[test]
fn a_description_names_key_class_certificate_and_process() {
    let world = World::new();
    let daemon = Daemon::of(&world);
    let Response::Description { processor, chain, valid_until, pid, root, .. } = described(&daemon) else { panic!("another answer") };
    assert_eq!(processor, world.id());
    assert_eq!((chain.len(), &*root), (2, world.pki.root()));
    assert!(valid_until.expect("enrolled") > now() && pid > 1);
}

#[test]
fn before_enrolment_nothing_but_a_description_is_had() {
    let folder = tempfile::tempdir().expect("folder");
    let home = folder.path().join("processor");
    install(&home);
    let daemon = Daemon::start(&home);
    assert!(matches!(described(&daemon), Response::Description { valid_until: None, .. }));
    let world = World::new();
    let mut client = daemon.client();
    let (ours, _theirs) = UnixStream::pair().expect("a pair");
    client.ask(&receive(&world.ship(b"x", |_| {}).confirmation, Line::Tunnel), &[ours.as_fd()]);
    assert_eq!(code(client.answer()), Code::NotEnrolled);
    let mut client = daemon.client();
    let text = |t: &str| Text::new(t).expect("short");
    client.ask(&Request::Enroll { authority: text("https://127.0.0.1:1"), voucher: bytes_text("not a voucher") }, &[]);
    assert_eq!(code(client.answer()), Code::VoucherInvalid);
}

fn bytes_text<const MAX: usize>(text: &str) -> Text<MAX> {
    Text::new(text).expect("short")
}

#[test]
fn connections_and_transfers_beyond_their_caps_are_refused_as_busy() {
    let world = World::new();
    let home = world.folder.path().join("processor");
    let toml = fs::read_to_string(home.join("processor.toml")).expect("the configuration");
    let toml = toml.replace("connections_per_user = 64", "connections_per_user = 3").replace("transfers = 16", "transfers = 1");
    fs::write(home.join("processor.toml"), toml).expect("written");
    let daemon = Daemon::of(&world);
    let shipment = world.ship(&sample(10), |_| {});
    // One delivery that hangs takes the one place for transfers.
    let holder = daemon.client();
    let (ours, theirs) = UnixStream::pair().expect("a pair");
    holder.ask(&receive(&shipment.confirmation, Line::Tunnel), &[ours.as_fd()]);
    let mut first = [0; 1];
    (&theirs).read_exact(&mut first).expect("its first byte");
    let mut second = daemon.client();
    second.ask(&Request::Inspect { path: None }, &[File::open("/proc/self/exe").expect("a file").as_fd()]);
    assert_eq!(code(second.answer()), Code::Busy);
    drop(second);
    // Two more connections, and then none.
    until("a place is free", || {
        let (mut a, mut b, mut c) = (daemon.client(), daemon.client(), daemon.client());
        a.ask(&Request::Describe, &[]);
        b.ask(&Request::Describe, &[]);
        let served = a.answer().is_ok() && b.answer().is_ok();
        served && code(c.answer()) == Code::Busy
    });
    drop((holder, ours, theirs));
    until("places are free again", || {
        let mut client = daemon.client();
        client.ask(&Request::Describe, &[]);
        client.answer().is_ok()
    });
}

#[test]
fn data_is_opened_to_a_descriptor_only_when_the_manifest_says_so() {
    let world = World::new();
    let plain = sample(5_000_000);
    let (allowed, forbidden) = (world.folder.path().join("allowed"), world.folder.path().join("forbidden"));
    fs::write(&allowed, world.package(&world.ship(&plain, |_| {}))).expect("written");
    fs::write(&forbidden, world.package(&world.ship(&plain, |m| m.open_to_file = false))).expect("written");
    let daemon = Daemon::of(&world);
    let open = |package: &std::path::Path, output: &File| {
        let mut client = daemon.client();
        client.ask(&Request::Open, &[File::open(package).expect("the package").as_fd(), output.as_fd()]);
        loop {
            match client.answer() {
                Ok(Response::Progress { .. }) => {}
                other => return other,
            }
        }
    };
    let target = world.folder.path().join("plain");
    let output = File::create(&target).expect("a file");
    assert!(matches!(open(&allowed, &output).expect("opened"), Response::Opened { size: 5_000_000 }));
    assert_eq!(fs::read(&target).expect("written"), plain);
    let empty = world.folder.path().join("empty");
    assert_eq!(code(open(&forbidden, &File::create(&empty).expect("a file"))), Code::UseForbidden);
    assert_eq!(fs::metadata(&empty).expect("there").len(), 0, "not one byte came");
    // A reader that goes away.
    let (reader, writer) = rustix::pipe::pipe().expect("a pipe");
    drop(reader);
    assert_eq!(code(open(&allowed, &File::from(writer))), Code::Cancelled);
    // A full disk.
    let full = File::options().write(true).open("/dev/full").expect("a full device");
    assert_eq!(code(open(&allowed, &full)), Code::DiskFull);
    // A flipped page: nothing of it comes, and nothing before it either, as the whole is verified first.
    let mut altered = fs::read(&allowed).expect("the package");
    altered[4_000_000] ^= 1;
    fs::write(&allowed, &altered).expect("altered");
    assert_eq!(code(open(&allowed, &File::create(&empty).expect("a file"))), Code::PageAltered);
    assert_eq!(fs::metadata(&empty).expect("there").len(), 0, "not one byte came");
}

#[test]
fn the_daemon_refuses_to_start_where_others_could_read_its_keys() {
    let folder = tempfile::tempdir().expect("folder");
    let home = folder.path().join("processor");
    let config = install(&home);
    for (path, mode, right) in
        [(config.state.join("kek"), 0o640, 0o600), (config.state.join("keys.sealed"), 0o604, 0o600), (config.state, 0o711, 0o700)]
    {
        fs::set_permissions(&path, Permissions::from_mode(mode)).expect("mode");
        let said = Daemon::try_start(&home).err().expect("refused");
        assert!(said.contains("insecure_permissions"), "{}: {said}", path.display());
        fs::set_permissions(&path, Permissions::from_mode(right)).expect("mode");
    }
    assert!(Daemon::start(&home).stop().success());
}

#[test]
fn a_second_daemon_on_one_socket_is_refused_and_a_dead_ones_socket_is_taken_over() {
    let folder = tempfile::tempdir().expect("folder");
    let home = folder.path().join("processor");
    install(&home);
    let first = Daemon::start(&home);
    let said = Daemon::try_start(&home).err().expect("refused");
    assert!(said.contains("conflict"), "{said}");
    described(&first);
    let socket = first.socket.clone();
    first.kill();
    assert!(socket.exists(), "a killed daemon leaves its socket");
    described(&Daemon::start(&home));
}

#[test]
fn two_daemons_never_share_their_keys_and_state_whatever_sockets_they_serve() {
    let folder = tempfile::tempdir().expect("folder");
    let home = folder.path().join("processor");
    let config = install(&home);
    let first = Daemon::start(&home);
    let path = home.join("processor.toml");
    let written = fs::read_to_string(&path).expect("configuration");
    let interpreter = fs::read(home.join("interpreter")).expect("interpreter");
    fs::write(&path, written.replace("socket = \"processor.sock\"", "socket = \"other.sock\"")).expect("another socket");
    let said = Daemon::try_start(&home).err().expect("refused");
    assert!(said.contains("error[conflict]: another daemon has the keys in") && said.contains(&*config.state.to_string_lossy()), "{said}");
    assert_eq!(fs::read(home.join("interpreter")).expect("interpreter"), interpreter, "packages still find the first");
    fs::write(&path, written).expect("as it was");
    described(&first);
    assert!(first.stop().success());
    assert!(Daemon::start(&home).stop().success());
}

#[test]
fn a_used_folder_is_never_initialised_again() {
    let folder = tempfile::tempdir().expect("folder");
    let home = folder.path().join("processor");
    let init =
        || std::process::Command::new(env!("CARGO_BIN_EXE_chipbound-processor")).arg("init").arg("--dir").arg(&home).output().expect("run");
    let made = init();
    assert!(made.status.success(), "{made:?}");
    let said = String::from_utf8(made.stdout).expect("text");
    assert!(said.contains("chipbound processor run --config") && said.contains("chipbound processor enroll"), "{said}");
    let keys = fs::read(home.join("state/keys.sealed")).expect("keys");
    let again = init();
    assert!(!again.status.success() && String::from_utf8_lossy(&again.stderr).contains("conflict"), "{again:?}");
    assert_eq!(fs::read(home.join("state/keys.sealed")).expect("keys"), keys);
    assert!(Daemon::start(&home).stop().success());
}

/// A18: keys, secrets and plaintext are looked for in everything that the daemon wrote.
#[test]
fn no_secret_is_in_the_log_or_in_the_clear_on_the_disk() {
    let world = World::new();
    let plain = b"a planted secret of the program, long enough not to be there by chance".repeat(200);
    let shipment = world.ship(&plain, |_| {});
    let home = world.folder.path().join("processor");
    let daemon = Daemon::of(&world);
    let (mut client, answer, delivered) = deliver(&daemon, &world, &shipment);
    answer.expect("received");
    let token = world.token(&shipment, &delivered.expect("delivered"), |_| {});
    client.ask(&Request::Release { token: bytes(&token) }, &[]);
    client.answer().expect("released");
    let package = read_all(client.descriptor());
    let kek = fs::read(home.join("state/kek")).expect("the key-encryption key");
    let secrets: [&[u8]; 3] = [&plain[..40], shipment.secret.bytes(), &kek];
    let holds = |content: &[u8], secret: &[u8]| content.windows(secret.len()).any(|w| w == secret);
    let mut searched = 0;
    for folder in [home.clone(), home.join("state"), home.join("spool")] {
        for entry in fs::read_dir(folder).expect("a folder").flatten().filter(|e| e.file_type().expect("type").is_file()) {
            let content = fs::read(entry.path()).expect("content");
            for secret in secrets.iter().filter(|s| !(entry.file_name() == "kek" && **s == kek)) {
                assert!(!holds(&content, secret), "{}", entry.path().display());
            }
            searched += 1;
        }
    }
    assert!(searched >= 6, "{searched} files: configuration, log, kek, keys, enrolment, state, spool");
    assert!(secrets.iter().all(|s| !holds(&package, s)));
    let log = daemon.log().to_lowercase();
    for secret in secrets {
        assert!(!log.contains(&chipbound_wire::Hex(secret).to_string()));
    }
}

#[test]
fn an_expired_certificate_delivers_nothing_but_what_was_bought_still_opens() {
    let mut world = World::new();
    let file = world.folder.path().join("package");
    fs::write(&file, world.package(&world.ship(&sample(1000), |_| {}))).expect("written");
    world.us.vault.enroll("https://127.0.0.1:1", certify(&world.pki, &world.us.vault, now().after(1))).expect("enrolled for a second");
    until("the certificate has run out", || now() > world.us.vault.enrolment().expect("enrolled").certified.validity().1);
    world.us = Processor::open(world.us.config.clone()).expect("opens with an expired certificate");
    let daemon = Daemon::of(&world);
    let (_, answer, server) = deliver(&daemon, &world, &world.ship(&sample(10), |_| {}));
    assert_eq!(code(server), Code::CertificateExpired);
    assert_eq!(code(answer), Code::CertificateExpired);
    inspected(&daemon, &file);
}
