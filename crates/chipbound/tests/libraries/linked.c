/* Calls its library. */
#include <stdio.h>

extern int shared;
int greet(int);

int main(int argc, char **argv)
{
    shared++;
    printf("%d\n", greet(argc));
    printf("%d\n", greet(argc + 1));
    return 7;
}
