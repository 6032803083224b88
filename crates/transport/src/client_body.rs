//! What a client sends: bytes that are there, or a stream of declared length that waits until the server wants it.

use bytes::Bytes;
use chipbound_wire::{Code, Refusal};
use hyper::body::{Body, Frame, SizeHint};
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};
use tokio::io::{AsyncRead, ReadBuf};
use tokio::sync::oneshot;
use tokio::time::Instant;

/// Bytes read from the source at once.
const PIECE: usize = 64 * 1024;

/// When the last bytes of a body went out.
#[derive(Clone)]
pub(crate) struct Progress(Arc<Mutex<Instant>>);

impl Progress {
    pub(crate) fn begin() -> Self {
        Self(Arc::new(Mutex::new(Instant::now())))
    }

    pub(crate) fn last(&self) -> Instant {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn note(&self) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
    }
}

/// The body of a request.
pub(crate) enum Outgoing {
    /// All of it, sent at once; `None` when it was taken.
    Whole(Option<Bytes>),
    /// Read as it goes.
    Stream(Streamed),
}

/// A body that is read from `source`, exactly `left` bytes, once the server said `100 Continue`.
pub(crate) struct Streamed {
    source: Pin<Box<dyn AsyncRead + Send>>,
    left: u64,
    wanted: Option<oneshot::Receiver<()>>,
    progress: Progress,
    piece: Box<[u8]>,
}

impl Streamed {
    pub(crate) fn new(source: impl AsyncRead + Send + 'static, len: u64, wanted: oneshot::Receiver<()>, progress: Progress) -> Self {
        Self { source: Box::pin(source), left: len, wanted: Some(wanted), progress, piece: vec![0; PIECE].into_boxed_slice() }
    }

    fn poll_piece(&mut self, cx: &mut Context<'_>) -> Poll<Option<io::Result<Bytes>>> {
        if let Some(wanted) = &mut self.wanted {
            // A dropped sender means that the final answer came instead; then nobody polls this any more.
            let _ = ready!(Pin::new(wanted).poll(cx));
            self.wanted = None;
        }
        if self.left == 0 {
            return Poll::Ready(None);
        }
        let most = usize::try_from(self.left).unwrap_or(PIECE).min(PIECE);
        let mut buf = ReadBuf::new(&mut self.piece[..most]);
        ready!(self.source.as_mut().poll_read(cx, &mut buf))?;
        let read = buf.filled();
        if read.is_empty() {
            let short = Refusal::new(Code::Io, format!("the file ended {} bytes before the length that was declared", self.left));
            return Poll::Ready(Some(Err(io::Error::other(short))));
        }
        self.left -= read.len() as u64;
        self.progress.note();
        Poll::Ready(Some(Ok(Bytes::copy_from_slice(read))))
    }
}

impl Body for Outgoing {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        match &mut *self {
            Self::Whole(bytes) => Poll::Ready(bytes.take().filter(|b| !b.is_empty()).map(|b| Ok(Frame::data(b)))),
            Self::Stream(stream) => stream.poll_piece(cx).map(|piece| piece.map(|bytes| bytes.map(Frame::data))),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Whole(bytes) => bytes.as_ref().is_none_or(Bytes::is_empty),
            Self::Stream(stream) => stream.left == 0,
        }
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(match self {
            Self::Whole(bytes) => bytes.as_ref().map_or(0, |b| b.len() as u64),
            Self::Stream(stream) => stream.left,
        })
    }
}
