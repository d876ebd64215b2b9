# cython: language_level=3
"""A listener's socket as a worker sees it, and the arena that datagrams are read into.

Called by: rx/recvmmsg.pxi, worker.pxi. The descriptor belongs to the control plane; the worker reads it while a plan names it.
"""

from counters cimport rx_counters_t
from uapi.net cimport iovec, mmsghdr, sockaddr_in6, u8, u32

cdef enum:
    RX_CONTROL = 128               # control bytes a datagram: timestamp, TTL, TOS

ctypedef struct rx_socket_t:
    int fd
    u32 listener
    rx_counters_t *counters

ctypedef struct rx_arena_t:
    u32 capacity                   # datagrams a call
    u32 max_datagram               # bytes kept of one
    size_t stride                  # bytes from one slot to the next; odd in cache lines, so that slots do not share cache sets
    size_t mapped_bytes
    u8 *bytes
    mmsghdr *messages
    iovec *vectors
    sockaddr_in6 *names
    u8 *control
