//! The daemon: the control socket, one thread for each conversation, some waiting for the next, and a clean end.

use crate::admission::{Place, Places};
use crate::config::Clients;
use crate::confine::{self, Work};
use crate::connection::{Asked, Connection};
use crate::conversation::{converse, first, is_start};
use crate::enrolling::keep_current;
use crate::processor::Processor;
use crate::run::our_namespaces;
use crate::ways::{EXPOSED, dumps_what_is_unreadable};
use chipbound_host::process::ServiceManager;
use chipbound_loader::Workshop;
use chipbound_wire::{Code, Refusal, Result};
use std::fs::{self, Permissions};
use std::hint::black_box;
use std::num::NonZero;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;
use tokio::signal::unix::{SignalKind, signal};

/// The most threads that wait to help to open programs.
const MAX_HELPERS: usize = 7;

/// How long nothing is tried after the machine had no descriptor or thread left.
const A_WHILE: Duration = Duration::from_millis(50);

/// Serves until SIGTERM or SIGINT. Prints one line that begins with `ready`, and tells the service manager, once clients may connect.
pub fn serve(us: Arc<Processor>) -> Result<()> {
    let listener = listen(&us.config.socket, us.config.clients)?;
    let failed = |e| Refusal::io("starting the daemon", e);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(failed)?;
    let (listener, acceptor) = (Arc::new(listener), Arc::clone(&us));
    thread::Builder::new().name("accept".into()).spawn(move || accept(&listener, &acceptor)).map_err(failed)?;
    let renewer = Arc::clone(&us);
    thread::Builder::new().name("renewal".into()).spawn(move || keep_current(&renewer)).map_err(failed)?;
    prepare(&us)?;
    if dumps_what_is_unreadable() {
        tracing::warn!("{EXPOSED}: until then no customer starts a program that he may not read and whose vendor forbids loader variables");
    }
    let manager = ServiceManager::find()?;
    confine::thread(Work::Control)?;
    runtime.block_on(async {
        let mut terminate = signal(SignalKind::terminate()).map_err(failed)?;
        let mut interrupt = signal(SignalKind::interrupt()).map_err(failed)?;
        manager.ready(&us.config.socket.display().to_string())?;
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        Ok(())
    })?;
    // Deliveries end here; those that are kept go on when the client repeats them, of others nothing stays on the disk.
    fs::remove_file(&us.config.socket).map_err(|e| Refusal::io(us.config.socket.display(), e))?;
    us.spool.tidy(us.now())?;
    tracing::info!("ended");
    Ok(())
}

/// What a first start would have to wait for, before anybody is told that the daemon is ready. Refuses where its keys do not open what is
/// sealed to them.
fn prepare(us: &Processor) -> Result<()> {
    us.vault.check_keys()?;
    our_namespaces();
    man(&us.workshop).map_err(|e| Refusal::io("starting the daemon", e))?;
    us.workshop.restock();
    Ok(())
}

/// Has threads wait that help to open programs: one for each core but that of the thread that opens. They give up what it gives up.
fn man(workshop: &Workshop) -> std::io::Result<()> {
    let cores = thread::available_parallelism().map_or(1, NonZero::get);
    let begin = || {
        let confined = confine::thread(Work::Start);
        if let Err(refusal) = &confined {
            tracing::error!(reason = %refusal, "a thread does not help to open programs");
        }
        confined.is_ok()
    };
    workshop.staff((cores - 1).min(MAX_HELPERS), begin)
}

/// Binds the socket. One that nobody serves any more is removed; [`Code::Conflict`] when another daemon serves it.
fn listen(path: &Path, clients: Clients) -> Result<UnixListener> {
    let failed = |e| Refusal::io(format_args!("the control socket {}", path.display()), e);
    match fs::symlink_metadata(path) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
        Err(e) => return Err(failed(e)),
        Ok(meta) if !meta.file_type().is_socket() => {
            return Err(Refusal::new(Code::Conflict, format!("{} is there and is no socket", path.display())));
        }
        Ok(_) if UnixStream::connect(path).is_ok() => {
            return Err(Refusal::new(Code::Conflict, format!("another daemon serves {}", path.display())));
        }
        Ok(_) => fs::remove_file(path).map_err(failed)?,
    }
    // Nobody else may connect between bind and the mode that is wanted.
    let before = rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o177));
    let bound = UnixListener::bind(path);
    rustix::process::umask(before);
    let listener = bound.map_err(failed)?;
    if clients == Clients::Everyone {
        fs::set_permissions(path, Permissions::from_mode(0o666)).map_err(failed)?;
    }
    Ok(listener)
}

/// Threads that wait for clients at any time. Each becomes the thread of the client that it takes, so that a client waits for no thread
/// to be made.
const WAITING: usize = 4;

/// How few of them may be left before others are made while clients are served: a thread that is made takes time from those that work.
const FEW: usize = 2;

/// Bytes that a thread touches before it waits, so that a first start has no memory to wait for. The C library gives more than twice that
/// back to the kernel.
const TOUCHED: usize = 96 * 1024;

/// A client whose first request is not to start anything, and its place.
type Other = (Connection, Asked, Place);

/// The threads that wait, and the clients that are not theirs.
#[derive(Debug, Default)]
struct Waiting {
    now: Mutex<(usize, Vec<Other>)>,
    changed: Condvar,
}

impl Waiting {
    /// Waits until a client needs another thread, which is returned, or until there are fewer than [`WAITING`], and counts one more in.
    fn wanted(&self) -> Option<Other> {
        let mut now = self.lock();
        loop {
            if let Some(other) = now.1.pop() {
                return Some(other);
            }
            if now.0 < WAITING {
                now.0 += 1;
                return None;
            }
            now = self.changed.wait(now).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// One does not wait any more.
    fn left(&self) {
        let mut now = self.lock();
        now.0 -= 1;
        if now.0 < FEW {
            self.changed.notify_one();
        }
    }

    /// One has done its work: now is the time to make others.
    fn replace(&self) {
        self.changed.notify_one();
    }

    /// One has a client that needs another thread.
    fn pass_on(&self, other: Other) {
        self.lock().1.push(other);
        self.changed.notify_one();
    }

    fn lock(&self) -> MutexGuard<'_, (usize, Vec<Other>)> {
        self.now.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Sees to it that there are always threads that wait for clients. They have given up beforehand what a thread that starts programs gives
/// up, so that no start waits for that: whoever wants something else gets a thread of its own.
fn accept(listener: &Arc<UnixListener>, us: &Arc<Processor>) {
    let limits = us.config.limits;
    let places = Places::new("connections", limits.connections, limits.connections_per_user);
    let waiting = Arc::new(Waiting::default());
    loop {
        let other = waiting.wanted();
        let (waits, us) = (other.is_none(), Arc::clone(us));
        let (listener, places, there) = (Arc::clone(listener), Arc::clone(&places), Arc::clone(&waiting));
        let serve_one = move || {
            match other {
                Some((connection, asked, _place)) => converse(connection, asked, &us),
                None => wait_for_one(&listener, &places, &there, &us),
            }
            there.replace();
        };
        if let Err(e) = thread::Builder::new().name("client".into()).spawn(serve_one) {
            tracing::warn!(reason = %e, "no thread for a client");
            if waits {
                waiting.left();
            }
            thread::sleep(A_WHILE);
        }
    }
}

/// Waits for a client, and serves it where it wants to start something.
fn wait_for_one(listener: &UnixListener, places: &Arc<Places>, there: &Waiting, us: &Processor) {
    if let Err(refusal) = confine::thread(Work::Start) {
        tracing::error!(reason = %refusal, "a thread does not wait for clients");
        thread::sleep(A_WHILE);
        return there.left();
    }
    drop(black_box(vec![1_u8; TOUCHED]));
    let (mut connection, place) = next_client(listener, places, us);
    there.left();
    match first(&mut connection) {
        Some(asked) if is_start(&asked) => converse(connection, asked, us),
        Some(asked) => there.pass_on((connection, asked, place)),
        None => {}
    }
}

/// The next client that is served, and its place. Others are told why not.
fn next_client(listener: &UnixListener, places: &Arc<Places>, us: &Processor) -> (Connection, Place) {
    loop {
        let greeted = listener.accept().map_err(|e| Refusal::io("accepting a client", e));
        match greeted.and_then(|(stream, _)| greet(stream, places, us)) {
            Ok(Some(client)) => return client,
            Ok(None) => {}
            Err(refusal) => {
                tracing::warn!(reason = %refusal, "a client was not served");
                if matches!(refusal.code, Code::Io) {
                    thread::sleep(A_WHILE); // No descriptors left, say: no use in spinning.
                }
            }
        }
    }
}

/// Whether a client is served: None when it was told why not.
fn greet(stream: UnixStream, places: &Arc<Places>, us: &Processor) -> Result<Option<(Connection, Place)>> {
    let mut connection = Connection::new(stream)?;
    let uid = connection.peer().uid;
    let own = rustix::process::geteuid().as_raw();
    if us.config.clients == Clients::OwnUser && uid != own && uid != 0 {
        connection.refuse(&Refusal::new(Code::Forbidden, "this processor serves its own user only"))?;
        return Ok(None);
    }
    match places.enter(uid) {
        Ok(place) => Ok(Some((connection, place))),
        Err(refusal) => connection.refuse(&refusal).map(|()| None),
    }
}
