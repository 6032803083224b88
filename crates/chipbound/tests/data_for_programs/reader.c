/* A program that reads the data whose path is in the environment variable that its first argument names. */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

static long number(const char *text) { return strtol(text, 0, 10); }

static int say(const char *what) {
    printf("%s: %s\n", what, errno ? strerror(errno) : "fine");
    fflush(stdout);
    return errno;
}

static int range(int file, long offset, long length, int map) {
    char *bytes = map ? mmap(0, length, PROT_READ, MAP_SHARED, file, offset) : malloc(length);
    if (bytes == MAP_FAILED) return say("mmap");
    for (long done = 0; !map && done < length;) {
        long got = pread(file, bytes + done, length - done, offset + done);
        if (got <= 0) return say("pread");
        done += got;
    }
    return fwrite(bytes, 1, length, stdout) != (size_t)length;
}

int main(int argc, char **argv) {
    const char *path = getenv(argv[1]), *what = argv[2];
    int file = open(path, O_RDONLY);
    if (file < 0) return say("open");
    errno = 0;
    if (!strcmp(what, "about")) {
        struct stat about;
        if (fstat(file, &about)) return say("fstat");
        int given = atoi(strrchr(path, '/') + 1);
        printf("%ld bytes, regular %d, end %ld, ", (long)about.st_size, S_ISREG(about.st_mode), (long)lseek(given, 0, SEEK_END));
        printf("closed on exec %d, reading only %d, ", fcntl(given, F_GETFD), (fcntl(given, F_GETFL) & O_ACCMODE) == O_RDONLY);
        int again = open(path, O_RDWR);
        printf("written %d %d\n", write(given, "x", 1) == 1, again >= 0 && write(again, "x", 1) == 1);
        return 0;
    }
    if (!strcmp(what, "wait")) { /* Reads a range, waits for a line, and reads another one that the kernel has not kept. */
        char byte, line[8];
        if (pread(file, &byte, 1, 0) != 1) return say("pread");
        printf("up\n");
        fflush(stdout);
        if (!fgets(line, sizeof line, stdin)) return 9;
        errno = 0;
        if (pread(file, &byte, 1, number(argv[3])) < 0) return say("pread") ? 5 : 0;
        return say("pread");
    }
    for (int at = 3; at + 1 < argc; at += 2) {
        int failed = range(file, number(argv[at]), number(argv[at + 1]), !strcmp(what, "map"));
        if (failed) return 5;
    }
    return 0;
}
