# cython: language_level=3
"""A listener's socket as a worker sees it, and the arena that datagrams are read into.

Called by: rx/recvmmsg.pxi, worker.pxi. The descriptor belongs to the control plane; the worker reads it while a plan names it.
"""

from batch cimport exporter_t
from counters cimport rx_counters_t
from uapi.net cimport iovec, mmsghdr, sockaddr_in6, u8, u32, u64

cdef enum:
    RX_CONTROL = 160               # control bytes a message: timestamp, TTL, TOS, size of coalesced datagrams
    RX_STAMP_BATCH = 64            # datagrams: batches this large are stamped one in RX_STAMP_EVERY, smaller ones always
    RX_STAMP_EVERY = 8
    RX_SLOT = 65536                # bytes a message: the largest datagram, and what UDP_GRO coalesces

ctypedef struct rx_ring_t:         # of a packet socket; map NULL = an ordinary UDP socket
    u8 *map
    size_t block_bytes
    u32 blocks
    u32 block                      # the one read now
    bint held                      # it is being read
    u32 used                       # blocks before it that are read and not yet given back
    u32 packets                    # of it not yet read
    const u8 *position
    bint taken                     # a packet is at hand, `left` bytes of it not yet in a batch
    const u8 *payload
    u32 left
    u32 segment                    # bytes of its datagrams
    u64 arrival_ns
    exporter_t exporter

ctypedef struct rx_socket_t:
    int fd
    u32 listener
    rx_counters_t *counters
    bint polled                    # epoll tells the worker about it; else the worker looks itself
    u32 flow                      # its datagrams go through the flow stage
    bint stamps                    # SO_TIMESTAMPNS was on when the worker got the socket
    bint stamped                   # it is on now
    u32 unstamped                  # batches still to go without
    rx_ring_t ring

ctypedef struct rx_arena_t:
    u32 capacity                   # datagrams a call
    u32 max_datagram               # longer ones are counted and left out, bytes
    size_t stride                  # bytes from one slot to the next; odd in cache lines, so that slots do not share cache sets
    size_t mapped_bytes
    u8 *bytes
    mmsghdr *messages
    iovec *vectors
    sockaddr_in6 *names
    u8 *control
    u32 got                        # messages of the last call
    u32 next                       # the next of them to be taken up
    bint open                      # one is at hand, `left` bytes of it not yet in a batch
    u32 left
    u32 segment                    # bytes of its datagrams
    const u8 *payload
    u64 arrival_ns
    exporter_t exporter
