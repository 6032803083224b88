/* A program that is sold and needs a library of its own; its marker lies where that of program.c lies not: its address is asked for. */
#include <stdio.h>
#include <string.h>

__asm__(".text\n.globl marker\nmarker: .ascii \"only-the-processor-may-read-this/5d0a6e11c27f43b8a9d1e4c6b7f82035\"\n");
extern const char marker[];
const char *help(void);

int main(int argc, char **argv) {
    if (argc > 1 && !strcmp(argv[1], "address")) printf("%lx\n", (unsigned long)marker);
    else puts(help());
    return 0;
}
