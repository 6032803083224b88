/* Loads a library in one of many ways, and calls it. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

static const char *path;

static void *load(int how)
{
    void *library = dlopen(path, how);
    if (!library)
        printf("not loaded: %s\n", dlerror());
    return library;
}

static int call(void *library, int number)
{
    int (*greet)(int) = (int (*)(int))dlsym(library, "greet");
    int answer = greet ? greet(number) : -1;
    printf("answer %d\n", answer);
    return answer;
}

static void *in_thread(void *how)
{
    void *library = load((int)(long)how);
    if (library) {
        call(library, 1);
        call(library, 2);
    }
    return library;
}

static void in_child(void)
{
    void *library = load(RTLD_NOW);
    if (library)
        call(library, 1);
    fflush(stdout);
    _exit(library ? 3 : 4);
}

static int status_of(pid_t child)
{
    int status;
    waitpid(child, &status, 0);
    return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

int main(int argc, char **argv)
{
    const char *mode = argv[1];
    path = argv[2];
    if (!strcmp(mode, "now") || !strcmp(mode, "lazy")) {
        void *library = load(*mode == 'n' ? RTLD_NOW : RTLD_LAZY);
        if (library)
            call(library, 1);
    } else if (!strcmp(mode, "again")) {
        for (int round = 0; round < 3; round++) {
            void *library = load(RTLD_NOW);
            call(library, 1);
            call(library, 1);
            dlclose(library);
            printf("gone: %d\n", dlopen(path, RTLD_NOW | RTLD_NOLOAD) == NULL);
        }
    } else if (!strcmp(mode, "threads")) {
        pthread_attr_t small;
        pthread_attr_init(&small);
        pthread_attr_setstacksize(&small, 64 * 1024);
        for (int round = 0; round < 3; round++) {
            pthread_t thread;
            pthread_create(&thread, &small, in_thread, (void *)(long)RTLD_NOW);
            pthread_join(thread, NULL);
        }
    } else if (!strcmp(mode, "fork")) {
        pid_t child = fork();
        if (!child)
            in_child();
        printf("child %d\n", status_of(child));
        in_thread((void *)(long)RTLD_LAZY);
    } else if (!strcmp(mode, "loaded-fork")) {
        void *library = load(RTLD_NOW);
        fflush(stdout);
        pid_t child = fork();
        if (!child) {
            call(library, 1);
            fflush(stdout);
            _exit(3);
        }
        printf("child %d\n", status_of(child));
    } else if (!strcmp(mode, "orphan")) {
        int ends[2];
        pipe(ends);
        if (!fork()) {
            if (!fork()) {
                close(ends[1]);
                char none;
                read(ends[0], &none, 1); /* Until its parent has ended. */
                in_child();
            }
            _exit(0);
        }
        wait(NULL);
        close(ends[0]);
        close(ends[1]);
    } else { /* "wait": until a line comes, then again. */
        puts("hello");
        fflush(stdout);
        getchar();
        void *library = load(RTLD_NOW);
        if (library)
            call(library, 1);
        puts("loaded");
        fflush(stdout);
        getchar();
        getchar();
    }
    return 0;
}
