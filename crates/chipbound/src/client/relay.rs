//! The client's part in the second path (source \[30\], \[43\]): opaque bytes from one stream to the other.

use std::future::poll_fn;
use std::io;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::Poll;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::time::timeout;

/// Bytes carried at once in each direction.
const PIECE: usize = 256 * 1024;

/// How long one direction may go on after the other one failed: whoever gave up said why.
pub const LAST_WORDS: Duration = Duration::from_secs(2);

/// Carries bytes both ways until both directions have ended; those to `far` are counted. The end of one direction is passed on
/// at once (on a TLS stream as close_notify), the other goes on; after an error the other direction still carries what is on its way,
/// for [`LAST_WORDS`] at most.
pub async fn relay<A, B>(near: A, far: B, carried: Arc<AtomicU64>) -> io::Result<()>
where
    A: AsyncRead + AsyncWrite + Unpin,
    B: AsyncRead + AsyncWrite + Unpin,
{
    let (near_read, near_write) = tokio::io::split(near);
    let (far_read, far_write) = tokio::io::split(far);
    let uncounted = AtomicU64::new(0);
    let mut there = pin!(pump(near_read, far_write, &carried));
    let mut back = pin!(pump(far_read, near_write, &uncounted));
    tokio::select! {
        ended = &mut there => after(ended, back).await,
        ended = &mut back => after(ended, there).await,
    }
}

/// The other direction after one ended.
async fn after(ended: io::Result<()>, other: impl Future<Output = io::Result<()>>) -> io::Result<()> {
    if ended.is_ok() {
        return other.await;
    }
    let _ = timeout(LAST_WORDS, other).await; // The first error is the one that counts.
    ended
}

async fn pump(mut from: impl AsyncRead + Unpin, mut to: impl AsyncWrite + Unpin, carried: &AtomicU64) -> io::Result<()> {
    let mut piece = vec![0; PIECE];
    loop {
        let (filled, ended) = match fill(&mut from, &mut piece).await {
            Ok(filled) => filled,
            Err(error) => {
                let _ = to.shutdown().await; // Nothing more comes; the error says more than that of this.
                return Err(error);
            }
        };
        to.write_all(&piece[..filled]).await?;
        to.flush().await?;
        carried.fetch_add(filled as u64, Ordering::Relaxed);
        if ended {
            return to.shutdown().await;
        }
    }
}

/// Waits for bytes and takes as many as are there without waiting again: a TLS stream gives one record at a time, and one write
/// for each would cost. Whether the stream ended comes along.
async fn fill(from: &mut (impl AsyncRead + Unpin), piece: &mut [u8]) -> io::Result<(usize, bool)> {
    let mut filled = 0;
    poll_fn(|cx| {
        while filled < piece.len() {
            let mut space = ReadBuf::new(&mut piece[filled..]);
            match Pin::new(&mut *from).poll_read(cx, &mut space) {
                Poll::Ready(Ok(())) if space.filled().is_empty() => return Poll::Ready(Ok((filled, true))),
                Poll::Ready(Ok(())) => filled += space.filled().len(),
                Poll::Ready(Err(e)) => return Poll::Ready(Err(e)),
                Poll::Pending if filled == 0 => return Poll::Pending,
                Poll::Pending => break,
            }
        }
        Poll::Ready(Ok((filled, false)))
    })
    .await
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, duplex};

    #[tokio::test]
    async fn the_end_of_one_direction_is_passed_on_while_the_other_goes_on() {
        let (mut server, near) = duplex(100);
        let (far, mut processor) = duplex(100);
        let carried = Arc::new(AtomicU64::new(0));
        let relay = tokio::spawn(relay(near, far, carried.clone()));
        let sent: Vec<u8> = (0..1_000_000u32).map(|i| i as u8).collect();
        let expected = sent.clone();
        let writing = tokio::spawn(async move {
            server.write_all(&sent).await.unwrap();
            server.shutdown().await.unwrap();
            let mut answer = Vec::new();
            server.read_to_end(&mut answer).await.unwrap();
            answer
        });
        let mut received = Vec::new();
        processor.read_to_end(&mut received).await.unwrap();
        assert!(received == expected, "every byte in order");
        assert!(!relay.is_finished(), "the other direction is still open");
        processor.write_all(b"done").await.unwrap();
        processor.shutdown().await.unwrap();
        assert_eq!(writing.await.unwrap(), b"done");
        relay.await.unwrap().unwrap();
        assert_eq!(carried.load(Ordering::Relaxed), 1_000_000, "only what went to the processor is counted");
    }

    #[tokio::test]
    async fn a_stream_that_breaks_ends_the_relay_with_its_error() {
        let broken = broken_stream();
        let (far, _processor) = duplex(100);
        assert_eq!(relay(broken, far, Arc::default()).await.unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    }

    #[tokio::test]
    async fn who_gives_up_in_the_middle_is_heard_though_nobody_takes_the_rest() {
        let (mut server, near) = duplex(100);
        let (far, mut processor) = duplex(100);
        let relay = tokio::spawn(relay(near, far, Arc::default()));
        server.write_all(&[0; 250]).await.unwrap(); // More than the processor will take.
        processor.write_all(b"it is another program").await.unwrap();
        drop(processor);
        let mut heard = [0; 21];
        server.read_exact(&mut heard).await.unwrap();
        assert_eq!(&heard, b"it is another program");
        assert_eq!(relay.await.unwrap().unwrap_err().kind(), io::ErrorKind::BrokenPipe);
    }

    fn broken_stream() -> impl AsyncRead + AsyncWrite + Unpin {
        struct Broken;
        impl AsyncRead for Broken {
            fn poll_read(self: Pin<&mut Self>, _: &mut std::task::Context<'_>, _: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
                Poll::Ready(Err(io::ErrorKind::UnexpectedEof.into()))
            }
        }
        impl AsyncWrite for Broken {
            fn poll_write(self: Pin<&mut Self>, _: &mut std::task::Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
                Poll::Ready(Ok(bytes.len()))
            }
            fn poll_flush(self: Pin<&mut Self>, _: &mut std::task::Context<'_>) -> Poll<io::Result<()>> {
                Poll::Ready(Ok(()))
            }
            fn poll_shutdown(self: Pin<&mut Self>, _: &mut std::task::Context<'_>) -> Poll<io::Result<()>> {
                Poll::Ready(Ok(()))
            }
        }
        Broken
    }
}
