/* Connects to the processor, keeps the connection in a child, and becomes a protected program. Once told where by a file that appears, the
 * child asks on that connection for the library, as if it were the program.
 * Arguments: socket, library, the file, and the program with its own. */
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

static void ask(int processor, const char *path, unsigned long address)
{
    unsigned char frame[16] = {0, 0, 0, 12, 0x82, 16, 0x81, 0x1b};
    for (int byte = 0; byte < 8; byte++)
        frame[8 + byte] = address >> (56 - 8 * byte);
    struct iovec part = {frame, sizeof frame};
    char space[CMSG_SPACE(sizeof(int))] = {0};
    struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1, .msg_control = space, .msg_controllen = sizeof space};
    struct cmsghdr *beside = CMSG_FIRSTHDR(&message);
    int library = open(path, O_RDONLY);
    beside->cmsg_level = SOL_SOCKET;
    beside->cmsg_type = SCM_RIGHTS;
    beside->cmsg_len = CMSG_LEN(sizeof library);
    memcpy(CMSG_DATA(beside), &library, sizeof library);
    sendmsg(processor, &message, 0);
}

int main(int argc, char **argv)
{
    int processor = socket(AF_UNIX, SOCK_STREAM, 0);
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    strcpy(address.sun_path, argv[1]);
    connect(processor, (struct sockaddr *)&address, sizeof address);
    if (fork()) {
        close(processor);
        execv(argv[4], argv + 4);
        return 1;
    }
    while (access(argv[3], F_OK))
        usleep(1000);
    unsigned long at = 0;
    fscanf(fopen(argv[3], "r"), "%lu", &at);
    ask(processor, argv[2], at);
    unsigned char answer[512];
    ssize_t length = read(processor, answer, sizeof answer);
    if (length != 41 || answer[5] != 17) {
        fprintf(stderr, "no name: %zd bytes, %.*s\n", length, (int)(length > 12 ? length - 12 : 0), answer + 12);
        return 2;
    }
    int own = socket(AF_UNIX, SOCK_STREAM, 0);
    struct sockaddr_un second = {.sun_family = AF_UNIX};
    memcpy(second.sun_path + 1, answer + 9, 32);
    int connected = connect(own, (struct sockaddr *)&second, sizeof(sa_family_t) + 33);
    char space[CMSG_SPACE(sizeof(int))];
    struct iovec part = {answer, sizeof answer};
    struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1, .msg_control = space, .msg_controllen = sizeof space};
    ssize_t got = recvmsg(own, &message, 0);
    fprintf(stderr, "connected %d, got %zd bytes and %zu of control\n", connected, got, message.msg_controllen);
    return 0;
}
