# cython: language_level=3
"""One receive batch, which all later stages read. Filled by rx/, read by match, sample and tx/.

Invariants: entries 0..n-1 are whole datagrams (none truncated) of one listener; IPv4 exporters are held in IPv4-mapped form with family 4,
unmapped once, when they are received; `data` points into the arena of the worker and is valid until the next receive.
"""

from uapi.net cimport u8, u16, u32, u64

cdef enum:
    BATCH_LIMIT = 512              # datagrams a receive call at most
    BATCH_CUT = 8                  # datagrams left out of it that are noted

ctypedef struct exporter_t:
    u8 address[16]
    u16 port_be
    u8 family                      # 4 or 6
    u8 ttl                         # as received, 0 = unknown
    u8 tos                         # as received
    u8 spare[3]

ctypedef struct batch_t:
    u32 n
    u32 listener                   # index of the listener in the plan
    const u8 *data[BATCH_LIMIT]
    u32 length[BATCH_LIMIT]        # UDP payload bytes
    u64 arrival_ns[BATCH_LIMIT]    # CLOCK_REALTIME in the kernel, 0 = unknown
    exporter_t exporter[BATCH_LIMIT]
    u32 sum[BATCH_LIMIT]           # payload sum, shared by all copies
    u8 sum_known[BATCH_LIMIT]
    u32 groups                     # exporter sessions in this batch
    u16 group[BATCH_LIMIT]         # number of each datagram's session in this batch, 0..groups-1, in order of first arrival
    u32 cut                        # datagrams longer than max_datagram that came with it, as far as they are noted here
    u32 cut_length[BATCH_CUT]
    u64 cut_ns[BATCH_CUT]          # as arrival_ns
    exporter_t cut_exporter[BATCH_CUT]


cdef inline void batch_note_cut(batch_t *batch, const exporter_t *exporter, u32 length, u64 arrival_ns) noexcept nogil:
    """Notes a datagram that is left out because it is too long."""
    if batch.cut < BATCH_CUT:
        batch.cut_exporter[batch.cut] = exporter[0]
        batch.cut_length[batch.cut] = length
        batch.cut_ns[batch.cut] = arrival_ns
        batch.cut += 1
