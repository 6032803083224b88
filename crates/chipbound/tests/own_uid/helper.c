/* The library that is delivered with linked.c, by way of another. */
const char *second(void);
const char *help(void) { return second(); }
