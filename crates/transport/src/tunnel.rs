//! The raw TLS stream that is left after an HTTP upgrade: opaque bytes both ways, its end always said with close_notify.

use crate::admission::Admitted;
use crate::blocking::{BlockingTls, Timeouts};
use bytes::{Buf, Bytes};
use chipbound_wire::{Code, Refusal, Result};
use rustls::Connection;
use std::io::{self, ErrorKind, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader, ReadBuf};
use tokio::net::TcpStream;

/// The socket, read ahead: rustls by itself reads 4 KiB at a time.
pub(crate) type Line = BufReader<TcpStream>;
/// A server's TLS stream.
pub(crate) type ServerTls = tokio_rustls::server::TlsStream<Line>;
/// A client's TLS stream.
pub(crate) type ClientTls = tokio_rustls::client::TlsStream<Line>;

/// A failed read or write on a path as a refusal: the refusal inside the error if there is one, otherwise by its kind. An
/// end of file without close_notify, a reset and an alert are [`Code::PathTruncated`], bytes that are not the peer's TLS
/// [`Code::Malformed`], a time-out is [`Code::TimedOut`].
#[must_use]
pub fn refusal_of(what: &str, error: io::Error) -> Refusal {
    match error.downcast::<Refusal>() {
        Ok(refusal) => refusal,
        Err(error) => match error.kind() {
            ErrorKind::InvalidData => {
                let alert = matches!(error.get_ref().and_then(|e| e.downcast_ref()), Some(rustls::Error::AlertReceived(_)));
                let code = if alert { Code::PathTruncated } else { Code::Malformed };
                Refusal::new(code, format!("{what}: {error}")).because(error)
            }
            ErrorKind::UnexpectedEof | ErrorKind::ConnectionReset | ErrorKind::ConnectionAborted | ErrorKind::BrokenPipe => {
                Refusal::new(Code::PathTruncated, format!("{what}: the connection was cut without a farewell")).because(error)
            }
            _ => Refusal::io(what, error),
        },
    }
}

macro_rules! raw_stream {
    ($(#[$doc:meta])* $name:ident, $tls:ty) => {
        $(#[$doc])*
        pub struct $name {
            head: Bytes,
            tls: $tls,
            place: Option<Admitted>,
        }

        impl $name {
            pub(crate) fn new(head: Bytes, tls: $tls, place: Option<Admitted>) -> Self {
                Self { head, tls, place }
            }

            /// The same connection with blocking reads and writes, for a role that runs on a thread of its own.
            pub fn into_blocking(self, timeouts: Timeouts) -> Result<BlockingTls> {
                let (line, connection) = self.tls.into_inner();
                let ciphertext = line.buffer().to_vec();
                BlockingTls::new(line.into_inner(), ciphertext, self.head, Connection::from(connection), timeouts, self.place)
            }

            /// Says close_notify and waits for the peer's. Bytes that still come are refused with
            /// [`Code::UnexpectedMessage`], an end without close_notify with [`Code::PathTruncated`]. The caller limits the time.
            pub async fn finish(mut self) -> Result<()> {
                self.shutdown().await.map_err(|e| refusal_of("closing the path", e))?;
                match self.read(&mut [0; 1]).await {
                    Ok(0) => Ok(()),
                    Ok(_) => Err(Refusal::new(Code::UnexpectedMessage, "bytes came where the path should be closed")),
                    Err(error) => Err(refusal_of("closing the path", error)),
                }
            }
        }

        impl AsyncRead for $name {
            fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
                if self.head.is_empty() {
                    return Pin::new(&mut self.tls).poll_read(cx, buf);
                }
                let n = self.head.len().min(buf.remaining());
                buf.put_slice(&self.head[..n]);
                self.head.advance(n);
                Poll::Ready(Ok(()))
            }
        }

        impl AsyncWrite for $name {
            fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
                Pin::new(&mut self.tls).poll_write(cx, buf)
            }

            fn poll_write_vectored(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bufs: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
                Pin::new(&mut self.tls).poll_write_vectored(cx, bufs)
            }

            fn is_write_vectored(&self) -> bool {
                self.tls.is_write_vectored()
            }

            fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
                Pin::new(&mut self.tls).poll_flush(cx)
            }

            fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
                Pin::new(&mut self.tls).poll_shutdown(cx)
            }
        }
    };
}

raw_stream!(
    /// The server's end of a tunnel. It counts as one of the listener's connections until it is dropped. Reading yields the
    /// end only after the peer's close_notify; `AsyncWriteExt::shutdown` sends ours. It has no time-outs of its own.
    RawStream, ServerTls
);
raw_stream!(
    /// The client's end of a tunnel. Reading yields the end only after the peer's close_notify; `AsyncWriteExt::shutdown`
    /// sends ours. It has no time-outs of its own.
    ClientRaw, ClientTls
);
