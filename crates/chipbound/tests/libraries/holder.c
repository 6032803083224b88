/* Loads a library, says where its marker lies, and waits. */
#include <dlfcn.h>
#include <stdio.h>

int main(int argc, char **argv)
{
    void *library = dlopen(argv[1], RTLD_NOW);
    if (!library) {
        puts(dlerror());
        return 1;
    }
    puts("hello");
    printf("%lx\n", (unsigned long)dlsym(library, "marker"));
    fflush(stdout);
    getchar();
    return 0;
}
