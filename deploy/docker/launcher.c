/* Entry point of the container: hands its capabilities on to the daemon, then becomes the daemon.
 *
 * A container that runs as a plain user has no ambient capabilities, and the interpreter shall carry no file capability: everybody
 * who can start it would have it. So this program alone is marked (setcap cap_net_raw+p, or more: see CAPABILITIES in the Dockerfile):
 * it raises into the ambient set what it is marked with and the container was given, and calls exec. What the container was not given
 * is not raised, and the daemon starts without it. PROGRAM is set by the build. It never reads its arguments or its environment. */

#include <errno.h>
#include <linux/capability.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

/* What the daemon can use: raw sockets, packet rings and larger buffers, ports below 1024. */
static const unsigned int USEFUL[] = {CAP_NET_RAW, CAP_NET_ADMIN, CAP_NET_BIND_SERVICE};

int main(int argc, char **argv)
{
    struct __user_cap_header_struct header = {_LINUX_CAPABILITY_VERSION_3, 0};
    struct __user_cap_data_struct sets[_LINUX_CAPABILITY_U32S_3];

    if (argc < 1)
        return 127;
    for (unsigned int i = 0; i < sizeof USEFUL / sizeof *USEFUL; i++) {
        const unsigned int bit = 1u << USEFUL[i];
        if (syscall(SYS_capget, &header, sets) != 0 || !(sets[0].permitted & bit))
            continue;
        sets[0].inheritable |= bit;
        if (syscall(SYS_capset, &header, sets) != 0 || prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, USEFUL[i], 0, 0) != 0)
            fprintf(stderr, "launcher: capability %u could not be handed on: %s\n", USEFUL[i], strerror(errno));
    }
    argv[0] = (char *)PROGRAM;
    execv(PROGRAM, argv);
    fprintf(stderr, "launcher: %s: %s\n", PROGRAM, strerror(errno));
    return 127;
}
