/* The library that helper.c needs. */
const char *second(void) { return "the vendor's"; }
