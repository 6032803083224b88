//! The daemon: the control socket, one thread for each conversation, and a clean end.

use crate::admission::Places;
use crate::config::Clients;
use crate::confine::{self, Work};
use crate::connection::Connection;
use crate::conversation::converse;
use crate::enrolling::keep_current;
use crate::processor::Processor;
use chipbound_wire::{Code, Refusal, Result};
use std::fs::{self, Permissions};
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::Arc;
use std::thread;
use tokio::signal::unix::{SignalKind, signal};

/// Serves until SIGTERM or SIGINT. Prints one line that begins with `ready` once clients may connect.
pub fn serve(us: Arc<Processor>) -> Result<()> {
    let listener = listen(&us.config.socket, us.config.clients)?;
    let failed = |e| Refusal::io("starting the daemon", e);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(failed)?;
    let acceptor = Arc::clone(&us);
    thread::Builder::new().name("accept".into()).spawn(move || accept(&listener, &acceptor)).map_err(failed)?;
    let renewer = Arc::clone(&us);
    thread::Builder::new().name("renewal".into()).spawn(move || keep_current(&renewer)).map_err(failed)?;
    confine::thread(Work::Control)?;
    runtime.block_on(async {
        let mut terminate = signal(SignalKind::terminate()).map_err(failed)?;
        let mut interrupt = signal(SignalKind::interrupt()).map_err(failed)?;
        println!("ready {}", us.config.socket.display());
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        Ok(())
    })?;
    // Deliveries that wait end here; the client repeats them with its receipt or order. Nothing half-done stays on the disk.
    fs::remove_file(&us.config.socket).map_err(|e| Refusal::io(us.config.socket.display(), e))?;
    us.spool.clear()?;
    tracing::info!("ended");
    Ok(())
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

fn accept(listener: &UnixListener, us: &Arc<Processor>) {
    let limits = us.config.limits;
    let places = Places::new("connections", limits.connections, limits.connections_per_user);
    for stream in listener.incoming() {
        let greeted = stream.map_err(|e| Refusal::io("accepting a client", e)).and_then(|stream| greet(stream, &places, us));
        if let Err(refusal) = greeted {
            tracing::warn!(reason = %refusal, "a client was not served");
            if matches!(refusal.code, Code::Io) {
                thread::sleep(std::time::Duration::from_millis(50)); // No descriptors left, say: no use in spinning.
            }
        }
    }
}

fn greet(stream: UnixStream, places: &Arc<Places>, us: &Arc<Processor>) -> Result<()> {
    let mut connection = Connection::new(stream)?;
    let uid = connection.peer().uid;
    let own = rustix::process::geteuid().as_raw();
    if us.config.clients == Clients::OwnUser && uid != own && uid != 0 {
        return connection.refuse(&Refusal::new(Code::Forbidden, "this processor serves its own user only"));
    }
    let place = match places.enter(uid) {
        Ok(place) => place,
        Err(refusal) => return connection.refuse(&refusal),
    };
    let us = Arc::clone(us);
    let conversation = move || {
        let _place = place;
        converse(connection, &us);
    };
    thread::Builder::new().name("client".into()).spawn(conversation).map(drop).map_err(|e| Refusal::io("a thread for a client", e))
}
