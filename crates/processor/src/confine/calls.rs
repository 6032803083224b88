//! Which system calls which threads may make, each with its reason.

use super::Work;
use seccompiler::{BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule, TargetArch};
use std::collections::BTreeMap;

/// Calls that end the process: no thread has a use for them, an intruder would.
pub(super) fn deadly() -> BpfProgram {
    filter(NEVER.iter().chain(OLD_NEVER), SeccompAction::KillProcess, SeccompAction::Allow)
}

/// Everything but the calls of this daemon's threads is refused.
pub(super) fn known() -> BpfProgram {
    filter(CALLS.iter().chain(OLD_CALLS), SeccompAction::Allow, SeccompAction::Errno(libc::EPERM.cast_unsigned()))
}

/// Calls that are answered as by an older kernel, so that the C library uses others.
pub(super) fn absent() -> BpfProgram {
    filter(ABSENT, SeccompAction::Errno(libc::ENOSYS.cast_unsigned()), SeccompAction::Allow)
}

/// What a thread loses that is for this work from now on. These lists are short: a thread gets its own at every start of a program.
pub(super) fn lost(work: Work) -> BpfProgram {
    let (new, old) = match work {
        Work::Control => (LOST_BY_CONTROL, OLD_LOST_BY_CONTROL),
        Work::Session => (LOST_BY_SESSION, OLD_LOST_BY_SESSION),
        Work::Start => (LOST_BY_START, OLD_LOST_BY_START),
        Work::Data => (LOST_BY_DATA, OLD_LOST_BY_DATA),
    };
    filter(new.iter().chain(old), SeccompAction::Errno(libc::EPERM.cast_unsigned()), SeccompAction::Allow)
}

fn filter<'a>(calls: impl IntoIterator<Item = &'a Call>, listed: SeccompAction, others: SeccompAction) -> BpfProgram {
    let mut rules = BTreeMap::<i64, Vec<SeccompRule>>::new();
    for (number, when, _) in calls {
        // No rule at all means: with any arguments.
        rules.entry(*number).or_default().extend(when.rule());
    }
    let filter = SeccompFilter::new(rules, others, listed, MACHINE).expect("the lists name no contradictory actions");
    filter.try_into().expect("the lists are shorter than the kernel's longest program")
}

/// A call, how it is made, and why.
type Call = (i64, When, &'static str);

#[cfg(target_arch = "x86_64")]
const MACHINE: TargetArch = TargetArch::x86_64;
#[cfg(target_arch = "aarch64")]
const MACHINE: TargetArch = TargetArch::aarch64;

/// With which arguments a call is meant.
#[derive(Clone, Copy, Debug)]
enum When {
    /// With any.
    Always,
    /// These bits of an argument (counted from 0) have this value.
    Bits { argument: u8, mask: u64, value: u64 },
    /// An argument (counted from 0) is another than this.
    Not { argument: u8, value: u64 },
}
use When::{Always, Bits, Not};

impl When {
    /// None where there is nothing to look at.
    fn rule(&self) -> Option<SeccompRule> {
        let (int, pointer) = (SeccompCmpArgLen::Dword, SeccompCmpArgLen::Qword);
        let condition = match *self {
            Always => return None,
            Bits { argument, mask: u64::MAX, value } => SeccompCondition::new(argument, pointer, SeccompCmpOp::Eq, value),
            Bits { argument, mask, value } => SeccompCondition::new(argument, int, SeccompCmpOp::MaskedEq(mask), value),
            Not { argument, value } => SeccompCondition::new(argument, int, SeccompCmpOp::Ne, value),
        };
        let condition = condition.expect("system calls have six arguments");
        Some(SeccompRule::new(vec![condition]).expect("a rule with a condition"))
    }
}

const fn with(argument: u8, bit: i32) -> When {
    Bits { argument, mask: bit as u64, value: bit as u64 }
}
const fn option(number: i32) -> When {
    Bits { argument: 0, mask: 0xffff_ffff, value: number as u64 }
}
/// A thread of this process: same memory, same signals.
const A_THREAD: When = Bits { argument: 0, mask: THREAD, value: THREAD };
const THREAD: u64 = (libc::CLONE_VM | libc::CLONE_SIGHAND | libc::CLONE_THREAD) as u64;

/// What an intruder would want next, and no thread here. The last word is the reason.
const NEVER: &[Call] = &[
    (libc::SYS_execve, Always, "another program"),
    (libc::SYS_execveat, Always, "another program"),
    (libc::SYS_clone, Bits { argument: 0, mask: libc::CLONE_THREAD as u64, value: 0 }, "a process outside the watch of this one"),
    (libc::SYS_setuid, Always, "another user"),
    (libc::SYS_setgid, Always, "another group"),
    (libc::SYS_setreuid, Always, "another user"),
    (libc::SYS_setregid, Always, "another group"),
    (libc::SYS_setresuid, Always, "another user"),
    (libc::SYS_setresgid, Always, "another group"),
    (libc::SYS_setfsuid, Always, "another user"),
    (libc::SYS_setfsgid, Always, "another group"),
    (libc::SYS_setgroups, Always, "another group"),
    (libc::SYS_capset, Always, "other capabilities"),
    (libc::SYS_unshare, Always, "a namespace in which this process would be root"),
    (libc::SYS_setns, Always, "another namespace"),
    (libc::SYS_chroot, Always, "another view of the files"),
    (libc::SYS_pivot_root, Always, "another view of the files"),
    (libc::SYS_mount, Always, "another view of the files"),
    (libc::SYS_umount2, Always, "another view of the files"),
    (libc::SYS_bpf, Always, "programs in the kernel"),
    (libc::SYS_init_module, Always, "programs in the kernel"),
    (libc::SYS_finit_module, Always, "programs in the kernel"),
    (libc::SYS_kexec_load, Always, "another kernel"),
    (libc::SYS_kexec_file_load, Always, "another kernel"),
    (libc::SYS_reboot, Always, "the machine"),
    (libc::SYS_swapon, Always, "memory on a disk"),
    (libc::SYS_perf_event_open, Always, "sampling of other processes"),
    (libc::SYS_userfaultfd, Always, "races in the kernel, made certain"),
    (libc::SYS_io_uring_setup, Always, "calls that pass by these lists"),
    (libc::SYS_add_key, Always, "the kernel's keys"),
    (libc::SYS_request_key, Always, "the kernel's keys"),
    (libc::SYS_keyctl, Always, "the kernel's keys"),
];

/// Whose arguments lie where no filter can look: what it makes is seen in clone.
const ABSENT: &[Call] = &[(libc::SYS_clone3, Always, "a process or a thread, told apart by clone")];

/// What threads do. The last word is the reason.
const CALLS: &[Call] = &[
    // Descriptors.
    (libc::SYS_read, Always, "files, sockets, the runtime's wake-ups"),
    (libc::SYS_write, Always, "files, sockets, the log"),
    (libc::SYS_readv, Always, "sockets"),
    (libc::SYS_writev, Always, "sockets, the log"),
    (libc::SYS_pread64, Always, "packages, /proc/PID/mem"),
    (libc::SYS_pwrite64, Always, "spool, journal, memory files, /proc/PID/mem"),
    (libc::SYS_preadv, Always, "packages"),
    (libc::SYS_pwritev, Always, "spool, memory files"),
    (libc::SYS_preadv2, Always, "whether a package is in memory"),
    (libc::SYS_fadvise64, Always, "packages that are not are read at once"),
    (libc::SYS_lseek, Always, "reading whole files"),
    (libc::SYS_close, Always, "every descriptor"),
    (libc::SYS_fcntl, Always, "duplicates, blocking or not, seals of memory files"),
    (libc::SYS_dup, Always, "duplicates"),
    (libc::SYS_ioctl, Always, "blocking or not; whether the log is a terminal"),
    (libc::SYS_fstat, Always, "what a descriptor is"),
    (libc::SYS_newfstatat, Always, "what a file is"),
    (libc::SYS_statx, Always, "what a file is"),
    (libc::SYS_statfs, Always, "whose file system a library lies in"),
    (libc::SYS_fstatfs, Always, "what the C library looks at in /proc and /sys"),
    (libc::SYS_openat, Always, "configuration, state, spool"),
    (libc::SYS_faccessat2, Always, "whether a file is there"),
    (libc::SYS_readlinkat, Always, "symbolic links on the way to packages and libraries"),
    (libc::SYS_getdents64, Always, "what a crash left in the spool; library folders"),
    (libc::SYS_getcwd, Always, "relative paths of the configuration"),
    // Files of our own.
    (libc::SYS_unlinkat, Always, "deliveries that are over, the socket"),
    (libc::SYS_renameat, Always, "files that appear whole"),
    (libc::SYS_renameat2, Always, "files that appear whole"),
    (libc::SYS_fsync, Always, "files that stay"),
    (libc::SYS_fdatasync, Always, "files that stay"),
    (libc::SYS_ftruncate, Always, "the journal's end, the size of memory files"),
    (libc::SYS_fallocate, Always, "room in the spool and in memory files"),
    (libc::SYS_fchmod, Always, "modes of files that appear whole, of memory files that are executed"),
    (libc::SYS_fchmodat, Always, "the mode of the control socket"),
    (libc::SYS_umask, Always, "the mode of the control socket"),
    // Waiting.
    (libc::SYS_ppoll, Always, "whether a peer is still there"),
    (libc::SYS_epoll_create1, Always, "the asynchronous runtime"),
    (libc::SYS_epoll_ctl, Always, "the asynchronous runtime"),
    (libc::SYS_epoll_pwait, Always, "the asynchronous runtime"),
    (libc::SYS_eventfd2, Always, "the asynchronous runtime"),
    (libc::SYS_pipe2, Always, "the asynchronous runtime"),
    (libc::SYS_socketpair, Always, "the asynchronous runtime's signals"),
    (libc::SYS_futex, Always, "locks"),
    (libc::SYS_sched_yield, Always, "locks"),
    (libc::SYS_nanosleep, Always, "pauses"),
    (libc::SYS_clock_nanosleep, Always, "pauses"),
    (libc::SYS_clock_gettime, Always, "the time, where the vDSO has none"),
    (libc::SYS_gettimeofday, Always, "the time, where the vDSO has none"),
    (libc::SYS_restart_syscall, Always, "the kernel goes on with a wait"),
    // Memory.
    (libc::SYS_brk, Always, "memory"),
    (libc::SYS_mmap, Always, "memory; the C library's modules for names of hosts"),
    (libc::SYS_mprotect, Always, "memory; the C library's modules for names of hosts"),
    (libc::SYS_munmap, Always, "memory"),
    (libc::SYS_mremap, Always, "memory"),
    (libc::SYS_madvise, Always, "memory"),
    (libc::SYS_mlock, Always, "keys and opened code stay off the disk"),
    (libc::SYS_mlock2, Always, "keys and opened code stay off the disk"),
    (libc::SYS_munlock, Always, "keys and opened code stay off the disk"),
    (libc::SYS_memfd_create, Always, "opened code"),
    (libc::SYS_memfd_secret, Always, "keys that a renewal made"),
    (libc::SYS_membarrier, Always, "locks"),
    // Threads and signals of our own.
    (libc::SYS_clone, A_THREAD, "a thread"),
    (libc::SYS_clone3, Always, "answered as by an older kernel: its arguments cannot be looked at"),
    (libc::SYS_set_robust_list, Always, "a thread begins"),
    (libc::SYS_rseq, Always, "a thread begins"),
    (libc::SYS_set_tid_address, Always, "a thread begins"),
    (libc::SYS_sched_getaffinity, Always, "how many processors there are; a thread begins"),
    (libc::SYS_prctl, option(libc::PR_SET_NAME), "a thread's name"),
    (libc::SYS_prctl, option(libc::PR_SET_VMA), "a name for memory"),
    (libc::SYS_exit, Always, "a thread ends"),
    (libc::SYS_exit_group, Always, "the daemon ends"),
    (libc::SYS_gettid, Always, "the deadline's thread; panics"),
    (libc::SYS_tgkill, Always, "a failed assertion ends the process"),
    (libc::SYS_getpid, Always, "whether the generator of random numbers is still ours"),
    (libc::SYS_getuid, Always, "whose processor this is"),
    (libc::SYS_geteuid, Always, "whose processor this is"),
    (libc::SYS_getgid, Always, "whose processor this is"),
    (libc::SYS_getegid, Always, "whose processor this is"),
    (libc::SYS_prlimit64, Bits { argument: 2, mask: u64::MAX, value: 0 }, "the size of stacks, looked at and not changed"),
    (libc::SYS_sigaltstack, Always, "a thread begins and ends"),
    (libc::SYS_rt_sigaction, Always, "SIGTERM, the deadline"),
    (libc::SYS_rt_sigprocmask, Always, "a thread begins, the deadline"),
    (libc::SYS_rt_sigreturn, Always, "after a signal"),
    (libc::SYS_getrandom, Always, "keys, nonces, names of spool files"),
    (libc::SYS_uname, Always, "the C library"),
    (libc::SYS_sysinfo, Always, "the C library"),
    // Sockets.
    (libc::SYS_socket, Always, "the authority and the server, names of hosts; the socket of a start or a library"),
    (libc::SYS_connect, Always, "the authority and the server, names of hosts"),
    (libc::SYS_bind, Always, "the socket of a start or a library; names of hosts"),
    (libc::SYS_listen, Always, "the socket of a start or a library"),
    (libc::SYS_accept4, Always, "clients; the socket of a start or a library"),
    (libc::SYS_getsockname, Always, "the name of the socket of a start"),
    (libc::SYS_getpeername, Always, "the runtime's sockets"),
    (libc::SYS_getsockopt, Always, "who is on the other side"),
    (libc::SYS_setsockopt, Always, "time-outs"),
    (libc::SYS_recvmsg, Always, "requests with their descriptors"),
    (libc::SYS_sendmsg, Always, "answers with their descriptors, names of hosts"),
    (libc::SYS_recvfrom, Always, "sockets, the runtime's signals"),
    (libc::SYS_sendto, Always, "sockets, the runtime's signals"),
    (libc::SYS_sendmmsg, Always, "names of hosts"),
    (libc::SYS_shutdown, Always, "a line that ends"),
    // The processes that become programs.
    (libc::SYS_ptrace, Always, "the client at its exec stop"),
    (libc::SYS_wait4, Always, "the client's stops"),
    (libc::SYS_process_vm_readv, Always, "the client's stack and vDSO"),
    (libc::SYS_process_vm_writev, Always, "the client's environment and scratch memory"),
    (libc::SYS_pidfd_open, Always, "the client, whatever its number names later"),
    (libc::SYS_pidfd_send_signal, Always, "a client that cannot be turned away ends"),
    (libc::SYS_timer_create, Always, "the deadline"),
    (libc::SYS_timer_settime, Always, "the deadline"),
    (libc::SYS_timer_delete, Always, "the deadline"),
    // The confinement itself.
    (libc::SYS_seccomp, Always, "a thread gives up what its work does not need"),
    (libc::SYS_prctl, option(libc::PR_SET_NO_NEW_PRIVS), "what goes before that"),
    (libc::SYS_landlock_restrict_self, Always, "a thread gives up what its work does not need"),
];

/// The thread that waits for signals works with nobody.
const LOST_BY_CONTROL: &[Call] = &[
    (libc::SYS_ptrace, Always, "other processes"),
    (libc::SYS_process_vm_readv, Always, "other processes"),
    (libc::SYS_process_vm_writev, Always, "other processes"),
    (libc::SYS_pidfd_send_signal, Always, "other processes"),
    (libc::SYS_socket, Always, "the network"),
    (libc::SYS_bind, Always, "a socket in this one's place"),
    (libc::SYS_listen, Always, "a socket in this one's place"),
    (libc::SYS_accept4, Always, "clients"),
    (libc::SYS_renameat, Always, "files in the place of others"),
    (libc::SYS_renameat2, Always, "files in the place of others"),
    (libc::SYS_fchmod, Always, "modes"),
    (libc::SYS_fchmodat, Always, "modes"),
    (libc::SYS_umask, Always, "modes"),
];

/// Threads that hear what comes from the network, and read packages for anybody, get at no other process.
const LOST_BY_SESSION: &[Call] = &[
    (libc::SYS_ptrace, Always, "other processes"),
    (libc::SYS_process_vm_readv, Always, "other processes"),
    (libc::SYS_process_vm_writev, Always, "other processes"),
    (libc::SYS_pidfd_open, Always, "other processes"),
    (libc::SYS_pidfd_send_signal, Always, "other processes"),
    (libc::SYS_listen, Always, "a socket in this one's place"),
    (libc::SYS_accept4, Always, "clients"),
    (libc::SYS_fchmodat, Always, "modes of files that are not made here"),
    (libc::SYS_umask, Always, "modes of what other threads make"),
];

/// Threads that start a program hear nobody but its process, and leave no trace on a disk.
const LOST_BY_START: &[Call] = &[
    (libc::SYS_socket, Not { argument: 0, value: libc::AF_UNIX as u64 }, "the network"),
    (libc::SYS_openat, with(2, libc::O_CREAT), "new files"),
    (libc::SYS_openat, with(2, libc::O_TRUNC), "emptied files"),
    (libc::SYS_openat, with(2, libc::O_TMPFILE & !libc::O_DIRECTORY), "new files"),
    (libc::SYS_unlinkat, Always, "files that are gone"),
    (libc::SYS_renameat, Always, "files in the place of others"),
    (libc::SYS_renameat2, Always, "files in the place of others"),
    (libc::SYS_fchmodat, Always, "modes"),
    (libc::SYS_umask, Always, "modes of what other threads make"),
    (libc::SYS_mmap, with(2, libc::PROT_EXEC), "code of one's own"),
    (libc::SYS_mprotect, with(2, libc::PROT_EXEC), "code of one's own"),
];

/// Threads that answer reads have their descriptors from others.
const LOST_BY_DATA: &[Call] = &[
    (libc::SYS_ptrace, Always, "other processes"),
    (libc::SYS_process_vm_readv, Always, "other processes"),
    (libc::SYS_process_vm_writev, Always, "other processes"),
    (libc::SYS_pidfd_open, Always, "other processes"),
    (libc::SYS_pidfd_send_signal, Always, "other processes"),
    (libc::SYS_socket, Always, "the network"),
    (libc::SYS_listen, Always, "a socket in this one's place"),
    (libc::SYS_accept4, Always, "clients"),
    (libc::SYS_openat, Always, "files"),
    (libc::SYS_unlinkat, Always, "files that are gone"),
    (libc::SYS_renameat, Always, "files in the place of others"),
    (libc::SYS_renameat2, Always, "files in the place of others"),
    (libc::SYS_fchmod, Always, "modes"),
    (libc::SYS_fchmodat, Always, "modes"),
    (libc::SYS_umask, Always, "modes of what other threads make"),
];

/// Calls that newer machines do not have.
#[cfg(target_arch = "x86_64")]
const OLD_NEVER: &[Call] = &[
    (libc::SYS_fork, Always, "a process outside the watch of this one"),
    (libc::SYS_vfork, Always, "a process outside the watch of this one"),
];
#[cfg(not(target_arch = "x86_64"))]
const OLD_NEVER: &[Call] = &[];

/// Calls that newer machines do not have.
#[cfg(target_arch = "x86_64")]
const OLD_CALLS: &[Call] = &[
    (libc::SYS_stat, Always, "what a file is"),
    (libc::SYS_lstat, Always, "what a file is"),
    (libc::SYS_open, Always, "configuration, state, spool"),
    (libc::SYS_access, Always, "the C library's own files"),
    (libc::SYS_readlink, Always, "symbolic links on the way to packages and libraries"),
    (libc::SYS_unlink, Always, "deliveries that are over, the socket"),
    (libc::SYS_rename, Always, "files that appear whole"),
    (libc::SYS_chmod, Always, "the mode of the control socket"),
    (libc::SYS_poll, Always, "whether a peer is still there, names of hosts"),
    (libc::SYS_epoll_wait, Always, "the asynchronous runtime"),
];
#[cfg(not(target_arch = "x86_64"))]
const OLD_CALLS: &[Call] = &[];

/// As [`LOST_BY_CONTROL`].
#[cfg(target_arch = "x86_64")]
const OLD_LOST_BY_CONTROL: &[Call] = &[(libc::SYS_rename, Always, "files in the place of others"), (libc::SYS_chmod, Always, "modes")];
#[cfg(not(target_arch = "x86_64"))]
const OLD_LOST_BY_CONTROL: &[Call] = &[];

/// As [`LOST_BY_SESSION`].
#[cfg(target_arch = "x86_64")]
const OLD_LOST_BY_SESSION: &[Call] = &[(libc::SYS_chmod, Always, "modes of files that are not made here")];
#[cfg(not(target_arch = "x86_64"))]
const OLD_LOST_BY_SESSION: &[Call] = &[];

/// As [`LOST_BY_START`].
#[cfg(target_arch = "x86_64")]
const OLD_LOST_BY_START: &[Call] = &[
    (libc::SYS_open, with(1, libc::O_CREAT), "new files"),
    (libc::SYS_open, with(1, libc::O_TRUNC), "emptied files"),
    (libc::SYS_open, with(1, libc::O_TMPFILE & !libc::O_DIRECTORY), "new files"),
    (libc::SYS_unlink, Always, "files that are gone"),
    (libc::SYS_rename, Always, "files in the place of others"),
    (libc::SYS_chmod, Always, "modes"),
];
#[cfg(not(target_arch = "x86_64"))]
const OLD_LOST_BY_START: &[Call] = &[];

/// As [`LOST_BY_DATA`].
#[cfg(target_arch = "x86_64")]
const OLD_LOST_BY_DATA: &[Call] = &[
    (libc::SYS_open, Always, "files"),
    (libc::SYS_unlink, Always, "files that are gone"),
    (libc::SYS_rename, Always, "files in the place of others"),
    (libc::SYS_chmod, Always, "modes"),
];
#[cfg(not(target_arch = "x86_64"))]
const OLD_LOST_BY_DATA: &[Call] = &[];

#[cfg(test)]
mod tests {
    use super::*;

    fn all() -> impl Iterator<Item = &'static Call> {
        CALLS.iter().chain(OLD_CALLS)
    }

    #[test]
    fn no_call_is_both_deadly_and_allowed() {
        for (number, when, reason) in NEVER.iter().chain(OLD_NEVER).filter(|(_, when, _)| matches!(when, Always)) {
            assert!(all().all(|(allowed, ..)| allowed != number), "{number} {when:?} {reason}");
        }
    }

    #[test]
    fn a_thread_loses_only_what_it_had() {
        let new = [LOST_BY_CONTROL, LOST_BY_SESSION, LOST_BY_START, LOST_BY_DATA];
        let old = [OLD_LOST_BY_CONTROL, OLD_LOST_BY_SESSION, OLD_LOST_BY_START, OLD_LOST_BY_DATA];
        for (number, when, reason) in new.into_iter().chain(old).flatten() {
            assert!(all().any(|(allowed, ..)| allowed == number), "{number} {when:?} {reason}");
        }
    }

    #[test]
    fn every_call_has_its_reason_and_no_row_makes_another_void() {
        assert!(all().all(|(.., reason)| !reason.is_empty()));
        for (number, when, _) in all().filter(|(_, when, _)| matches!(when, Always)) {
            assert_eq!(all().filter(|(other, ..)| other == number).count(), 1, "{number} {when:?}");
        }
    }
}
