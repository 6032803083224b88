/* The program that is sold: 64 bytes of its code are a marker that its customer must never see. At a fixed address, so that an
 * attacker knows where to look. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

__asm__(".text\n.globl marker\nmarker: .ascii \"only-the-processor-may-read-this/5d0a6e11c27f43b8a9d1e4c6b7f82035\"\n");
extern const char marker[];

int main(int argc, char **argv) {
    const char *what = argc > 1 ? argv[1] : "";
    if (!strcmp(what, "address"))
        printf("%lx\n", (unsigned long)marker);
    else if (!strcmp(what, "variables"))
        for (int n = 2; n < argc; n++)
            getenv(argv[n]) && puts(argv[n]);
    else if (!strcmp(what, "crash"))
        *(volatile int *)0 = 1;
    else {
        puts("hello");
        fflush(stdout);
        strcmp(what, "wait") ? usleep(3000) : getchar();
    }
    return 0;
}
