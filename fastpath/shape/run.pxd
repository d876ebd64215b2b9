# cython: language_level=3, cdivision=True, boundscheck=False, wraparound=False
"""Runs: consecutive datagrams of one group that can be sent by one segmented send (UDP_SEGMENT). Pure logic, no I/O.

Spoofed copies are grouped by exporter session, because a segmented send has one source; unspoofed ones are one group. Order within a group is
the order of arrival. A run holds datagrams of one size, the last may be shorter but not empty (udp(7): every segment but the last has gso_size
bytes), of one TOS (and TTL, where it is kept); at most RUN_SEGMENTS of them and RUN_BYTES in all.
Called by: the worker, once per batch and kind for all receivers that take the whole batch, else once per receiver.
"""

from base.batch cimport BATCH_LIMIT, batch_t
from uapi.net cimport iovec, u8, u16, u32

cdef enum:
    RUN_SEGMENTS = 64              # UDP_MAX_SEGMENTS, include/linux/udp.h (64 before 6.9, 128 since)
    RUN_BYTES = 65000              # below the 65,507 that an IPv4 length field leaves for payload

ctypedef struct runs_t:
    u32 n                          # runs
    u32 datagrams
    u16 order[BATCH_LIMIT]         # datagram indexes: grouped, in order within a group
    u16 first[BATCH_LIMIT]         # of each run, in `order`
    u16 count[BATCH_LIMIT]
    u32 bytes[BATCH_LIMIT]         # payload of each run
    iovec vectors[BATCH_LIMIT]     # payload of order[i]; shared by every receiver's send
    u32 group_longest[BATCH_LIMIT]  # longest datagram of each group, where grouped
    u16 start[BATCH_LIMIT]         # scratch of the counting sort


cdef inline void run_sort(runs_t *runs, const batch_t *batch, const u16 *selection, u32 n) noexcept nogil:
    """Stable counting sort of the selection by batch.group: order within a group is the order of arrival."""
    cdef u32 i, group, total = 0
    cdef u32 count
    for i in range(batch.groups):
        runs.start[i] = 0
        runs.group_longest[i] = 0
    for i in range(n):
        group = batch.group[selection[i]]
        runs.start[group] += 1
        if batch.length[selection[i]] > runs.group_longest[group]:
            runs.group_longest[group] = batch.length[selection[i]]
    for i in range(batch.groups):
        count = runs.start[i]
        runs.start[i] = <u16>total
        total += count
    for i in range(n):
        group = batch.group[selection[i]]
        runs.order[runs.start[group]] = selection[i]
        runs.start[group] += 1


cdef inline bint run_joins(const batch_t *batch, u32 head, u32 d, bint grouped, bint keeps_ttl) noexcept nogil:
    """Whether datagram d may follow `head` in a run, its own size apart."""
    if grouped and batch.group[head] != batch.group[d]:
        return False
    if batch.exporter[head].tos != batch.exporter[d].tos:
        return False
    return not keeps_ttl or batch.exporter[head].ttl == batch.exporter[d].ttl


cdef inline void run_make(runs_t *runs, const batch_t *batch, const u16 *selection, u32 n, bint grouped, bint keeps_ttl) noexcept nogil:
    """Cuts the selection into runs. n: 0..BATCH_LIMIT. Every selected datagram is in exactly one run."""
    cdef u32 i, d, head = 0
    cdef u32 length = 0
    cdef u32 run = 0
    cdef bint open = False
    if grouped:
        run_sort(runs, batch, selection, n)
    runs.n = 0
    runs.datagrams = n
    for i in range(n):
        if not grouped:
            runs.order[i] = selection[i]
        d = runs.order[i]
        length = batch.length[d]
        runs.vectors[i].iov_base = <void *>batch.data[d]
        runs.vectors[i].iov_len = length
        if (open and length and length <= batch.length[head] and runs.count[run] < RUN_SEGMENTS
                and runs.bytes[run] + length <= RUN_BYTES and run_joins(batch, head, d, grouped, keeps_ttl)):
            runs.count[run] += 1
            runs.bytes[run] += length
            open = length == batch.length[head]
            continue
        head = d
        run = runs.n
        runs.n += 1
        runs.first[run] = <u16>i
        runs.count[run] = 1
        runs.bytes[run] = length
        open = length > 0


cdef inline u32 run_session_end(const runs_t *runs, const batch_t *batch, u32 begin) noexcept nogil:
    """The first run behind those of the exporter session whose first run is `begin`, in grouped runs."""
    cdef u32 group = batch.group[runs.order[runs.first[begin]]]
    cdef u32 end = begin + 1
    while end < runs.n and batch.group[runs.order[runs.first[end]]] == group:
        end += 1
    return end


cdef inline u32 run_datagrams(const runs_t *runs, u32 begin, u32 end) noexcept nogil:
    """How many datagrams are in runs begin..end-1; end > begin."""
    return <u32>runs.first[end - 1] + runs.count[end - 1] - runs.first[begin]
