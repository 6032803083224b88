/* A library that its customer wants loaded into the program, to print its code from inside. */
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

const char *help(void) { return "the customer's"; }

unsigned int la_version(unsigned int version) { return version; }

__attribute__((constructor)) static void dump(void) {
    const char *at = getenv("MARKER_AT");
    FILE *self = fopen("/proc/self/maps", "r");
    char line[512];
    unsigned long from, to, marker = strtoul(at, NULL, 16);
    while (self && fgets(line, sizeof line, self))
        if (sscanf(line, "%lx-%lx", &from, &to) == 2 && marker >= from && marker + 64 <= to) write(1, (const char *)marker, 64);
}
