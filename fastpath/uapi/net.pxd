# cython: language_level=3
"""Kernel and libc declarations, nothing else: no logic, no constants of our own.

Sources: recvmmsg(2), sendmmsg(2), cmsg(3), ip(7), ipv6(7), socket(7), epoll(7), include/uapi/linux/errqueue.h.
"""

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t

ctypedef uint8_t u8
ctypedef uint16_t u16
ctypedef uint32_t u32
ctypedef uint64_t u64

cdef extern from "uapi/compat.h" nogil:
    bint likely "smp_likely"(bint x)
    bint unlikely "smp_unlikely"(bint x)
    int get_errno "smp_errno"()

    ctypedef unsigned int socklen_t
    ctypedef unsigned short sa_family_t

    struct in_addr:
        u32 s_addr
    struct in6_addr:
        u8 s6_addr[16]
    struct sockaddr:
        sa_family_t sa_family
    struct sockaddr_in:
        sa_family_t sin_family
        u16 sin_port
        in_addr sin_addr
    struct sockaddr_in6:
        sa_family_t sin6_family
        u16 sin6_port
        u32 sin6_flowinfo
        in6_addr sin6_addr
        u32 sin6_scope_id
    struct in_pktinfo:
        in_addr ipi_spec_dst
    struct in6_pktinfo:
        in6_addr ipi6_addr
    struct rlimit:
        unsigned long rlim_cur
    struct sockaddr_ll:
        sa_family_t sll_family
        u16 sll_protocol
        int sll_ifindex
        u8 sll_halen
        u8 sll_addr[8]
    struct iovec:
        void *iov_base
        size_t iov_len
    struct msghdr:
        void *msg_name
        socklen_t msg_namelen
        iovec *msg_iov
        size_t msg_iovlen
        void *msg_control
        size_t msg_controllen
        int msg_flags
    struct mmsghdr:
        msghdr msg_hdr
        unsigned int msg_len
    struct cmsghdr:
        size_t cmsg_len
        int cmsg_level
        int cmsg_type
    struct timespec:
        long tv_sec
        long tv_nsec
    struct pollfd:
        int fd
        short events
        short revents
    union epoll_data_t:
        void *ptr
        u64 u64
    struct epoll_event:
        u32 events
        epoll_data_t data
    struct sock_filter:
        u16 code
        u8 jt
        u8 jf
        u32 k
    struct sock_fprog:
        unsigned short len
        sock_filter *filter
    struct sock_extended_err:
        u32 ee_errno
        u8 ee_origin
        u8 ee_type
        u8 ee_code

    int AF_INET, AF_INET6, AF_PACKET
    int SOL_SOCKET, IPPROTO_IP, IPPROTO_IPV6, IPPROTO_UDP
    int MSG_DONTWAIT, MSG_NOSIGNAL, MSG_TRUNC, MSG_ERRQUEUE
    int SCM_TIMESTAMPNS
    int IP_TTL, IP_TOS, IP_MULTICAST_TTL, IPV6_UNICAST_HOPS, IPV6_MULTICAST_HOPS
    int IP_RECVERR, IPV6_HOPLIMIT, IPV6_TCLASS, IPV6_RECVERR, IP_MTU, IPV6_MTU
    int EPOLLERR, EPOLLET, EPOLLIN, EPOLL_CTL_ADD, EPOLL_CTL_DEL, EPOLL_CLOEXEC, EFD_NONBLOCK, EFD_CLOEXEC
    int POLLOUT
    int CLOCK_REALTIME, CLOCK_MONOTONIC, CLOCK_THREAD_CPUTIME_ID
    int EINTR, EAGAIN, ENOBUFS, ENOMEM, EMSGSIZE, EPERM, EACCES, ENETUNREACH, EHOSTUNREACH, ECONNREFUSED, ECONNRESET, ENETDOWN
    int EADDRINUSE, EINVAL, EIO, ENOTCONN, EDESTADDRREQ, EHOSTDOWN, EPROTO, EOPNOTSUPP, EADDRNOTAVAIL, EAFNOSUPPORT
    int SOCK_DGRAM, SOCK_NONBLOCK, SOCK_CLOEXEC, SO_ERROR, SO_REUSEADDR, SO_REUSEPORT, SO_TIMESTAMPNS, SO_SNDBUF, SO_SNDBUFFORCE, SO_RCVBUF
    int SOL_UDP, UDP_SEGMENT, UDP_GRO, PR_SET_TIMERSLACK, IP_TRANSPARENT, IPV6_TRANSPARENT, IP_MTU_DISCOVER, IP_PMTUDISC_DONT
    int IPV6_MTU_DISCOVER, IPV6_PMTUDISC_DONT, IP_PKTINFO, IPV6_PKTINFO, RLIMIT_NOFILE
    unsigned long SIOCINQ
    int SO_ATTACH_FILTER, SO_BROADCAST, SO_NO_CHECK
    int BPF_RET_K "(BPF_RET | BPF_K)"
    int SO_EE_ORIGIN_ICMP, SO_EE_ORIGIN_ICMP6
    int PROT_READ, PROT_WRITE, MAP_PRIVATE, MAP_SHARED, MAP_ANONYMOUS, MAP_NORESERVE
    void *MAP_FAILED

    int recvmmsg(int fd, mmsghdr *vec, unsigned int vlen, int flags, timespec *timeout)
    int sendmmsg(int fd, mmsghdr *vec, unsigned int vlen, int flags)
    ssize_t recvmsg(int fd, msghdr *msg, int flags)
    int socket(int family, int kind, int protocol)
    int bind(int fd, const sockaddr *address, socklen_t length)
    int connect(int fd, const sockaddr *address, socklen_t length)
    int getsockname(int fd, sockaddr *address, socklen_t *length)
    int setsockopt(int fd, int level, int name, const void *value, socklen_t length)
    int getsockopt(int fd, int level, int name, void *value, socklen_t *length)
    cmsghdr *CMSG_FIRSTHDR(msghdr *msg)
    cmsghdr *CMSG_NXTHDR(msghdr *msg, cmsghdr *cmsg)
    u8 *CMSG_DATA(cmsghdr *cmsg)
    size_t CMSG_LEN(size_t length)
    size_t CMSG_SPACE(size_t length)
    int poll(pollfd *fds, unsigned long n, int timeout_ms)
    int epoll_create1(int flags)
    int epoll_ctl(int ep, int op, int fd, epoll_event *event)
    int epoll_wait(int ep, epoll_event *events, int n, int timeout_ms)
    int eventfd(unsigned int initval, int flags)
    ssize_t read(int fd, void *buf, size_t n)
    ssize_t write(int fd, const void *buf, size_t n)
    int close(int fd)
    int ioctl(int fd, unsigned long request, void *argument)
    int clock_gettime(int clock, timespec *ts)
    ctypedef struct thread_schedule "struct thread_schedule":
        u32 size, policy
        u64 flags, runtime
    u32 THREAD_SCHEDULE_BYTES
    int thread_schedule_get(thread_schedule *now)
    int thread_schedule_set(thread_schedule *wanted)
    int prctl(int option, unsigned long a, unsigned long b, unsigned long c, unsigned long d)
    int nanosleep(const timespec *req, timespec *rem)
    int getrlimit(int resource, rlimit *limit)
    void *mmap(void *addr, size_t n, int prot, int flags, int fd, long offset)
    int munmap(void *addr, size_t n)
    u16 htons(u16 x)
    u16 ntohs(u16 x)
    u32 htonl(u32 x)
