/* Entry point of the container: hands CAP_NET_RAW on to the daemon, then becomes the daemon.
 *
 * A container that runs as a plain user has no ambient capabilities, and the interpreter shall carry no file capability: everybody
 * who can start it would have it. So this program alone is marked (setcap cap_net_raw+p): it raises the capability into the
 * ambient set and calls exec. Where the container was not given NET_RAW nothing is raised and the daemon starts without it.
 * PROGRAM is set by the build. It never reads its arguments or its environment. */

#include <errno.h>
#include <linux/capability.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

int main(int argc, char **argv)
{
    struct __user_cap_header_struct header = {_LINUX_CAPABILITY_VERSION_3, 0};
    struct __user_cap_data_struct sets[_LINUX_CAPABILITY_U32S_3];
    const unsigned int net_raw = 1u << CAP_NET_RAW;

    if (argc < 1)
        return 127;
    if (syscall(SYS_capget, &header, sets) == 0 && (sets[0].permitted & net_raw)) {
        sets[0].inheritable |= net_raw;
        if (syscall(SYS_capset, &header, sets) != 0 || prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, CAP_NET_RAW, 0, 0) != 0)
            fprintf(stderr, "launcher: CAP_NET_RAW could not be handed on: %s\n", strerror(errno));
    }
    argv[0] = (char *)PROGRAM;
    execv(PROGRAM, argv);
    fprintf(stderr, "launcher: %s: %s\n", PROGRAM, strerror(errno));
    return 127;
}
