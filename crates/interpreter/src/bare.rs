//! What a program without libc has to bring itself: the functions that compilers call on their own, and the end of a panic.
//! Part of the two programs alone, not of the library.

use core::arch::asm;

/// # Safety
/// As of memcpy(3).
#[unsafe(no_mangle)]
unsafe extern "C" fn memcpy(to: *mut u8, from: *const u8, length: usize) -> *mut u8 {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: the caller answers for both ranges; `rep movsb` touches nothing else.
    unsafe {
        asm!("rep movsb", inout("rcx") length => _, inout("rdi") to => _, inout("rsi") from => _, options(nostack, preserves_flags));
    }
    #[cfg(target_arch = "aarch64")]
    // SAFETY: the caller answers for both ranges; the loop touches nothing else.
    unsafe {
        asm!(
            "2: cbz {n}, 3f",
            "ldrb {b:w}, [{from}], #1",
            "strb {b:w}, [{to}], #1",
            "sub {n}, {n}, #1",
            "b 2b",
            "3:",
            n = inout(reg) length => _, from = inout(reg) from => _, to = inout(reg) to => _, b = out(reg) _,
            options(nostack, preserves_flags),
        );
    }
    to
}

/// # Safety
/// As of memmove(3).
#[unsafe(no_mangle)]
unsafe extern "C" fn memmove(to: *mut u8, from: *const u8, length: usize) -> *mut u8 {
    if to.addr().wrapping_sub(from.addr()) >= length {
        // SAFETY: the caller answers for both ranges. Copied upwards, no byte of the source is overwritten before it was read.
        return unsafe { memcpy(to, from, length) };
    }
    for i in (0..length).rev() {
        // SAFETY: as above, downwards. Volatile, so that the compiler does not make this loop a call of itself.
        unsafe { to.add(i).write_volatile(from.add(i).read_volatile()) };
    }
    to
}

/// # Safety
/// As of memset(3).
#[unsafe(no_mangle)]
unsafe extern "C" fn memset(to: *mut u8, byte: i32, length: usize) -> *mut u8 {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: the caller answers for the range; `rep stosb` touches nothing else.
    unsafe {
        asm!("rep stosb", inout("rcx") length => _, inout("rdi") to => _, in("al") byte as u8, options(nostack, preserves_flags));
    }
    #[cfg(target_arch = "aarch64")]
    // SAFETY: the caller answers for the range; the loop touches nothing else.
    unsafe {
        asm!(
            "2: cbz {n}, 3f",
            "strb {b:w}, [{to}], #1",
            "sub {n}, {n}, #1",
            "b 2b",
            "3:",
            n = inout(reg) length => _, to = inout(reg) to => _, b = in(reg) byte,
            options(nostack, preserves_flags),
        );
    }
    to
}

/// # Safety
/// As of memcmp(3).
#[unsafe(no_mangle)]
unsafe extern "C" fn memcmp(a: *const u8, b: *const u8, length: usize) -> i32 {
    for i in 0..length {
        // SAFETY: the caller answers for both ranges. Volatile, so that the compiler does not make this loop a call of itself.
        let (a, b) = unsafe { (a.add(i).read_volatile(), b.add(i).read_volatile()) };
        if a != b {
            return i32::from(a) - i32::from(b);
        }
    }
    0
}

/// # Safety
/// As of memcmp(3).
#[unsafe(no_mangle)]
unsafe extern "C" fn bcmp(a: *const u8, b: *const u8, length: usize) -> i32 {
    // SAFETY: the caller answers for both ranges.
    unsafe { memcmp(a, b, length) }
}

/// # Safety
/// As of strlen(3).
#[unsafe(no_mangle)]
unsafe extern "C" fn strlen(start: *const u8) -> usize {
    let mut length = 0;
    // SAFETY: the caller answers for a NUL at the end. Volatile for the same reason as above.
    while unsafe { start.add(length).read_volatile() } != 0 {
        length += 1;
    }
    length
}

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    crate::sys::exit(126)
}
