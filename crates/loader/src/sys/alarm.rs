//! A deadline that reaches a thread inside waitpid.

use std::io;
use std::marker::PhantomData;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

/// After the deadline the thread is interrupted again and again in this distance, nanoseconds, lest one interruption fall just
/// before a wait.
const REPEAT: libc::c_long = 20_000_000;

/// Interrupts the thread that made it when its time is up, also where nothing else would: a process of another user cannot be
/// killed by a processor without `CAP_KILL`, and waitpid has no time-out. Takes one real-time signal of the process, which does
/// nothing but interrupt.
#[derive(Debug)]
pub(crate) struct Alarm {
    timer: libc::timer_t,
    deadline: Instant,
    own_thread: PhantomData<*const ()>,
}

impl Alarm {
    /// Sets an alarm for the calling thread.
    pub(crate) fn after(time: Duration) -> io::Result<Self> {
        let signal = install()?;
        // SAFETY: an all-zero sigevent is a valid value; the fields that count are set below.
        let mut event: libc::sigevent = unsafe { std::mem::zeroed() };
        event.sigev_notify = libc::SIGEV_THREAD_ID;
        event.sigev_signo = signal;
        // SAFETY: gettid has no preconditions.
        event.sigev_notify_thread_id = unsafe { libc::gettid() };
        let mut timer: libc::timer_t = std::ptr::null_mut();
        // SAFETY: both pointers outlive the call.
        check(unsafe { libc::timer_create(libc::CLOCK_MONOTONIC, &raw mut event, &raw mut timer) })?;
        let deadline = Instant::now() + time;
        let alarm = Self { timer, deadline, own_thread: PhantomData };
        let first = time.max(Duration::from_nanos(1));
        let setting = libc::itimerspec {
            it_interval: libc::timespec { tv_sec: 0, tv_nsec: REPEAT },
            it_value: libc::timespec {
                tv_sec: libc::time_t::try_from(first.as_secs()).unwrap_or(libc::time_t::MAX),
                tv_nsec: libc::c_long::from(first.subsec_nanos().cast_signed()),
            },
        };
        // SAFETY: the timer was just made; the setting outlives the call.
        check(unsafe { libc::timer_settime(alarm.timer, 0, &raw const setting, std::ptr::null_mut()) })?;
        Ok(alarm)
    }

    /// Whether its time is up.
    pub(crate) fn expired(&self) -> bool {
        Instant::now() >= self.deadline
    }
}

impl Drop for Alarm {
    fn drop(&mut self) {
        // SAFETY: the timer was made by this value and is deleted only here.
        unsafe { libc::timer_delete(self.timer) };
    }
}

fn check(result: libc::c_int) -> io::Result<()> {
    if result == -1 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

extern "C" fn interrupt_only(_: libc::c_int) {}

/// Gives the signal its handler, once in the process, and opens it for the calling thread.
fn install() -> io::Result<libc::c_int> {
    static INSTALLED: OnceLock<bool> = OnceLock::new();
    let signal = libc::SIGRTMAX() - 1;
    let installed = *INSTALLED.get_or_init(|| {
        // SAFETY: an all-zero sigaction is valid: no flags (so that waits are not restarted), empty mask.
        let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
        action.sa_sigaction = interrupt_only as extern "C" fn(libc::c_int) as usize;
        // SAFETY: the handler does nothing, which is safe in any signal context; the pointer outlives the call.
        unsafe { libc::sigaction(signal, &raw const action, std::ptr::null_mut()) == 0 }
    });
    if !installed {
        return Err(io::Error::other("the signal of the deadline cannot be set up"));
    }
    // SAFETY: sigemptyset initialises the set before it is used; all pointers outlive the calls.
    unsafe {
        let mut set = std::mem::zeroed();
        libc::sigemptyset(&raw mut set);
        libc::sigaddset(&raw mut set, signal);
        match libc::pthread_sigmask(libc::SIG_UNBLOCK, &raw const set, std::ptr::null_mut()) {
            0 => Ok(signal),
            error => Err(io::Error::from_raw_os_error(error)),
        }
    }
}
