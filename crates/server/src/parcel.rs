//! What goes to one processor for one order (step 1007), and what becomes of it when its delivery is cut short.

use crate::ahead::{Ahead, send_sealed};
use crate::packing::{Plain, seal_all};
use crate::server::Server;
use crate::storage::{Repository, StoredParcel};
use chipbound_sealing::Layout;
use chipbound_session::Roots;
use chipbound_session::server::Consignment;
use chipbound_wire::messages::Chunk;
use chipbound_wire::{Code, OrderId, Refusal, Result};
use std::fs::File;
use std::time::Duration;
use tokio::runtime::Handle;

/// Bytes of the smallest body whose delivery goes on after it was cut short; a smaller one begins anew.
pub(crate) const KEPT_FROM: u64 = 1024 * 1024;

/// For so long after everything was sealed a delivery may still end well before its ciphertext is put on the disk for good.
const PATIENCE: Duration = Duration::from_secs(1);

/// What goes to one processor for one order.
pub(crate) struct Parcel {
    /// What the second path sends before the chunks.
    pub(crate) consignment: Consignment,
    /// The same for a later delivery; roots and blob are not known yet where the body is sealed now.
    pub(crate) stored: StoredParcel,
    /// The body.
    pub(crate) contents: Contents,
}

/// The body of a package.
pub(crate) enum Contents {
    /// Sealed as it goes out, and not kept.
    Sealed(Plain),
    /// Sealed into a blob, ahead of what goes out.
    Ahead(Plain, File),
    /// Ciphertext that was made before.
    Ready { sealed: Option<File>, layout: Layout, from: u64, roots: Roots },
}

impl Parcel {
    /// Has `ship` send the parcel to the path's end, with the chunks from what it is given. If that is cut short, the parcel
    /// is kept for the next delivery of the order.
    pub(crate) fn send<R: Repository>(
        self,
        server: &Server<R>,
        runtime: &Handle,
        ship: impl FnOnce(&Body<'_>, &StoredParcel) -> Result<()>,
    ) -> Result<()> {
        let Self { stored, contents, .. } = self;
        let order = stored.order;
        match contents {
            Contents::Sealed(plain) => ship(&Body::Sealed(&plain), &stored),
            Contents::Ready { sealed, layout, from, roots } => {
                let kept = layout.body_size() >= KEPT_FROM;
                if kept && from == 0 {
                    runtime.block_on(server.keep(&stored))?; // Common ciphertext, under terms of its own.
                }
                ship(&Body::Ready { sealed: sealed.as_ref(), layout: &layout, from, roots }, &stored)?;
                if kept { runtime.block_on(server.forget_parcel(order)) } else { Ok(()) }
            }
            Contents::Ahead(plain, file) => send_ahead(server, runtime, (plain, &file), stored, ship),
        }
    }
}

fn send_ahead<R: Repository>(
    server: &Server<R>,
    runtime: &Handle,
    (plain, file): (Plain, &File),
    stored: StoredParcel,
    ship: impl FnOnce(&Body<'_>, &StoredParcel) -> Result<()>,
) -> Result<()> {
    let (order, ahead) = (stored.order, Ahead::default());
    let (shipped, kept) = std::thread::scope(|scope| {
        let (ahead, plain, to_keep) = (&ahead, &plain, stored.clone());
        let sealing = move || {
            ahead.seal(&plain.file, &plain.layout, &plain.keys, file);
            let Ok(roots) = ahead.roots() else { return false };
            ahead.is_needed(PATIENCE) && keep_sealed(server, runtime, file, &StoredParcel { roots, ..to_keep })
        };
        let sealer = std::thread::Builder::new().name("sealing".to_owned()).spawn_scoped(scope, sealing);
        let sealer = sealer.map_err(|e| Refusal::io("starting a thread", e))?;
        let shipped = ship(&Body::Ahead { ahead, file, layout: &plain.layout }, &stored);
        ahead.sent(shipped.is_ok());
        Ok::<_, Refusal>((shipped, sealer.join().unwrap_or(false)))
    })?;
    match (&shipped, kept) {
        (Ok(()), true) => runtime.block_on(server.forget_parcel(order))?,
        (_, false) => runtime.block_on(server.remove_blobs(stored.blob))?,
        (Err(_), true) => {}
    }
    shipped
}

/// Puts ciphertext on the disk for good, and its parcel into the books; whether that went well.
fn keep_sealed<R: Repository>(server: &Server<R>, runtime: &Handle, file: &File, parcel: &StoredParcel) -> bool {
    let synced = file.sync_data().map_err(|e| Refusal::io("the store of programs", e));
    match synced.and_then(|()| runtime.block_on(server.keep(parcel))) {
        Ok(()) => true,
        Err(refusal) => {
            tracing::warn!(order = %parcel.order, %refusal, "a delivery that is cut short will begin anew");
            false
        }
    }
}

/// Where the chunks of a parcel come from.
pub(crate) enum Body<'a> {
    Sealed(&'a Plain),
    Ahead { ahead: &'a Ahead, file: &'a File, layout: &'a Layout },
    Ready { sealed: Option<&'a File>, layout: &'a Layout, from: u64, roots: Roots },
}

impl Body<'_> {
    /// Gives `send` every chunk in order; the roots over the whole body.
    pub(crate) fn send(&self, send: impl FnMut(&Chunk<'_>) -> Result<()>) -> Result<Roots> {
        match self {
            Self::Sealed(plain) => seal_all(plain, send),
            Self::Ahead { ahead, file, layout } => {
                send_sealed(file, layout, 0, |end| ahead.wait_for(end), send)?;
                ahead.roots()
            }
            Self::Ready { sealed: Some(file), layout, from, roots } => send_sealed(file, layout, *from, |_| Ok(()), send).map(|()| *roots),
            Self::Ready { sealed: None, layout, from, roots } if *from == layout.body_size() => Ok(*roots),
            Self::Ready { sealed: None, .. } => Err(Refusal::new(Code::Internal, "there is no ciphertext to send")),
        }
    }
}

impl<R: Repository> Server<R> {
    /// Keeps a parcel until its order has run out, in the place of an earlier one; those that have no room go.
    pub(crate) async fn keep(&self, parcel: &StoredParcel) -> Result<()> {
        let gone = self.repository.keep_parcel(parcel, self.policy.kept_bytes).await?;
        tracing::info!(order = %parcel.order, "a delivery that is cut short from now on goes on where it stops");
        self.remove_blobs(gone).await
    }

    /// The order's parcel is not needed any more.
    pub(crate) async fn forget_parcel(&self, order: OrderId) -> Result<()> {
        let gone = self.repository.forget_parcel(order).await?;
        self.remove_blobs(gone).await
    }

    /// Removes blobs to which nothing refers any more.
    pub(crate) async fn remove_blobs(&self, names: impl IntoIterator<Item = String>) -> Result<()> {
        for name in names {
            self.blobs.remove(&name).await?;
        }
        Ok(())
    }
}
