# cython: language_level=3, cdivision=True, boundscheck=False, wraparound=False
"""A listener's socket as a worker sees it, and the arena that datagrams are read into.

Called by: rx/, worker/loop.pxi. The control plane owns the descriptor; the worker reads from it while a plan names it.
"""

from base.atomics cimport atomic_store64_release, atomics_add
from base.batch cimport batch_t, exporter_t
from base.counters cimport counters_batch_bucket, rx_counters_t
from rx.overlap cimport OVERLAP_LEAVES, overlap_leave, overlap_note, overlap_t
from uapi.net cimport iovec, mmsghdr, sockaddr_in6, u8, u16, u32, u64

cdef enum:
    RX_SOCKET = 0                  # rx_socket_t.kind: an ordinary UDP socket, read by rx/recvmmsg.pxi
    RX_RING = 1                    # a packet socket, read by rx/ring.pxi
    RX_DOOR = 2                    # the worker's end of a door, read by rx/door.pxi
    RX_READ = 0                    # rx_socket_t.rest, .rests: it is read
    RX_EMPTY = 1                   # it is read until nothing waits in it, and then no more
    RX_REST = 2                    # it is not read, whatever waits in it
    RX_CONTROL = 160               # control bytes a message: timestamp, TTL, TOS, size of coalesced datagrams
    RX_STAMP_BATCH = 64            # datagrams: batches this large are stamped one in RX_STAMP_EVERY, smaller ones always
    RX_STAMP_EVERY = 8
    RX_SLOT = 65536                # bytes a message: the largest datagram, and what UDP_GRO coalesces
    RING_BLOCK_HEADER = 48         # bytes before the first slot of a block that has no private area (BLK_PLUS_PRIV(0), net/packet/af_packet.c)
    RING_LINK = 92                 # where link and network header are in the slots of most devices (an Ethernet header, tpacket_rcv())
    RING_NETWORK = 106

ctypedef struct rx_ring_t:         # of a packet socket (RX_RING); all zero in the other kinds
    u8 *map
    u32 *bell                      # status of the doorbell's slot, 0 = set; NULL = no doorbell: only blocks that the kernel has closed are read
    int bell_fd
    u32 block_bytes
    u32 blocks
    u32 block                      # the one read now
    bint closed                    # the kernel has closed it
    u32 used                       # blocks before it that are read and not yet given back
    u32 packets                    # slots of it that may be looked at
    u32 index                      # slots of it that are done
    u32 offset                     # of the next one
    u32 passed                     # offset of the first slot that was not waited for, 0 = none
    u32 passed_index
    u64 waited_ns                  # CLOCK_MONOTONIC: since when the next slot is waited for, 0 = it is not
    u64 opened_ns                  # CLOCK_REALTIME: when the kernel began to fill the block
    u16 offsets[2]                 # of link and network header in the slots of this device
    u64 mark                       # block and offset of the next slot, for other threads
    u32 again                      # RING_NOW, RING_LATER: the worker looks without being told
    bint taken                     # a packet is at hand, `left` bytes of it not yet in a batch
    const u8 *payload
    u32 left
    u32 segment                    # bytes of its datagrams
    u64 arrival_ns
    exporter_t exporter

ctypedef struct rx_socket_t:
    int fd
    u32 kind                       # RX_SOCKET, RX_RING or RX_DOOR
    u32 listener
    rx_counters_t *counters
    bint polled                    # epoll tells the worker about it; else the worker looks itself
    u32 flow                       # its datagrams go through the flow stage
    u32 offloads                   # the kernel may copy its sessions' datagrams where they come in
    bint stamps                    # SO_TIMESTAMPNS was on when the worker got the socket
    bint stamped                   # it is on now
    u32 unstamped                  # batches still to go without
    u32 shut                       # of a door: the other end is gone; read by other threads
    u32 rest                       # RX_READ, RX_EMPTY or RX_REST: what the control plane asks for
    u32 rests                      # the same, as far as the worker has come; read by other threads
    overlap_t *overlap             # NULL = none; changed by the control plane only while the socket rests, ended by the worker
    u32 part                       # OVERLAP_NOTES or OVERLAP_LEAVES
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
    mmsghdr *door                  # DOOR_MESSAGES headers over the same slots that ask for neither names nor control messages
    u8 *control
    u32 got                        # messages of the last call
    u32 next                       # the next of them to be taken up
    bint open                      # one is at hand, `left` bytes of it not yet in a batch
    u32 left
    u32 segment                    # bytes of its datagrams
    const u8 *payload
    u64 arrival_ns
    exporter_t exporter


cdef inline int rx_received(rx_counters_t *c, u32 n, u64 octets, u32 cut, u64 cut_octets) noexcept nogil:
    """Counts a receive of n datagrams > 0, `cut` of them too long and left out; returns n."""
    if cut:
        atomics_add(&c.truncated, cut)
        atomics_add(&c.truncated_bytes, cut_octets)
    atomics_add(&c.datagrams, n)
    atomics_add(&c.bytes, octets)
    atomics_add(&c.batches[counters_batch_bucket(n)], 1)
    return <int>n


cdef inline void rx_overlap_end(rx_socket_t *socket) noexcept nogil:
    """Nothing that was entered waits in it any more. The worker does not touch the overlap after this."""
    if socket.part == OVERLAP_LEAVES:
        atomic_store64_release(<u64 *>&socket.overlap, 0)


cdef inline int rx_overlapping(rx_socket_t *socket, batch_t *batch, u64 octets, u32 cut, u64 cut_octets) noexcept nogil:
    """As rx_received(), for the batch of an intake with an overlap; returns what was received with those that were left out."""
    cdef u32 taken = batch.n + cut
    cdef u32 left = 0
    cdef bint over = False
    if socket.part == OVERLAP_LEAVES:
        left = overlap_leave(socket.overlap, batch, &octets, &over)
        if over:
            rx_overlap_end(socket)
    else:
        overlap_note(socket.overlap, batch)
    if taken > left:
        rx_received(socket.counters, taken - left, octets, cut, cut_octets)
    return <int>taken
