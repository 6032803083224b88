/* A library with everything that its dynamic linker looks at: constructors with arguments, thread-local storage, lazy calls, data. */
#include <stdio.h>
#include <stdlib.h>

static int order;
static __thread int own = 5;
static const char *const words[] = {"none", "one", "two"};
int shared = 40;

__attribute__((constructor(101))) static void first(int argc, char **argv, char **environment)
{
    order = order * 10 + 1;
    printf("constructed with %d %s %d\n", argc, argv[argc - 1], environment != NULL);
}

__attribute__((constructor(102))) static void second(void)
{
    order = order * 10 + 2;
}

__attribute__((destructor)) static void last(void)
{
    puts("destroyed");
}

int compare(const void *a, const void *b)
{
    return *(const int *)a - *(const int *)b;
}

int greet(int number)
{
    int numbers[] = {3, 1, 2};
    qsort(numbers, 3, sizeof *numbers, compare);
    own += number;
    printf("order %d own %d word %s sorted %d%d%d\n", order, own, words[number % 3], numbers[0], numbers[1], numbers[2]);
    return shared + own;
}
