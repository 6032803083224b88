//! Where the secrets of a store lie while it lives.

use chipbound_wire::Result;
use std::panic::{RefUnwindSafe, UnwindSafe};
use zeroize::Zeroizing;

/// Memory that holds secret bytes: ordinary memory that is zeroed at its end, or what the caller of [`kept_in`] has.
///
/// [`kept_in`]: crate::SoftwareKeyStore::kept_in
pub type Held = Box<dyn AsRef<[u8]> + Send + Sync + UnwindSafe + RefUnwindSafe>;

/// Copies a secret into such memory.
pub type Keep<'a> = &'a dyn Fn(&[u8]) -> Result<Held>;

/// Ordinary memory, zeroed at its end.
pub(crate) fn on_the_heap(secret: Zeroizing<Vec<u8>>) -> Held {
    struct Heap(Zeroizing<Vec<u8>>);
    impl AsRef<[u8]> for Heap {
        fn as_ref(&self) -> &[u8] {
            &self.0
        }
    }
    Box::new(Heap(secret))
}

/// Does something with secrets and overwrites what it left on the stack, which libraries do not do for their copies.
pub(crate) fn leaving_nothing<T>(work: impl FnOnce() -> T) -> T {
    let done = below(work);
    erase_below();
    done
}

/// Has `work` use the stack below this frame, where [`erase_below`] reaches.
#[inline(never)]
fn below<T>(work: impl FnOnce() -> T) -> T {
    std::hint::black_box(work())
}

#[inline(never)]
fn erase_below() {
    let mut area = [0_u8; DEPTH];
    std::hint::black_box(&mut area);
}

/// Bytes of stack that are overwritten; an X-Wing decapsulation uses less. A thread has 2 MiB.
const DEPTH: usize = 128 * 1024;
