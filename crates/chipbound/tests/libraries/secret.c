/* A library with a marker in its code that its customer must never see. */
__asm__(".text\n.globl marker\nmarker: .ascii \"only-the-processor-may-read-this/5d0a6e11c27f43b8a9d1e4c6b7f82035\"\n");

int greet(int number)
{
    return number + 1;
}
