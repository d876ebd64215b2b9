# cython: language_level=3, cdivision=True, boundscheck=False, wraparound=False
"""The datagrams that come in twice while a listener changes between its sockets and its rings (datapath/changeover.py says when): a bounded
set, with counts, of what the older intakes brought; what the newer intakes bring of it is left out.

A datagram is known again by listener, exporter session, arrival time and payload. Socket and ring report the same arrival time: that of the
packet (skb->tstamp), which the kernel notes once, before both see it, while any socket of the host wants it (net/core/dev.c,
net_timestamp_check(); net/packet/af_packet.c, tpacket_get_timestamp(); Linux 5.12 to 6.18). So two datagrams with the same bytes are still two,
and the datagrams of a segmented packet, which may be equal in all, are counted. Called by rx/, with several workers at a time.
"""

from libc.string cimport memcpy

from base.atomics cimport atomic_change32, atomic_change64, atomic_count, atomic_load32, atomic_load64
from base.batch cimport batch_t
from base.hash cimport hash_mix
from uapi.net cimport u8, u32, u64

cdef enum:
    OVERLAP_NOTES = 1                  # what the intake brings is entered
    OVERLAP_LEAVES = 2                 # what was entered is left out
    OVERLAP_PROBES = 64                # places that a datagram may have

ctypedef struct overlap_entry_t:
    u64 key                            # 0 = free
    u32 count                          # of such datagrams that may come again
    u32 spare

ctypedef struct overlap_t:
    u64 seed                           # nobody else knows it
    u64 since_ns                       # CLOCK_REALTIME: older ones are not entered
    u64 until_ns                       # CLOCK_REALTIME: a younger one says that no more come twice
    u64 noted
    u64 unnoted                        # found no place: they may be received twice
    u64 repeated                       # left out
    u32 mask
    overlap_entry_t *entries


cdef inline u64 overlap_key(const overlap_t *overlap, const batch_t *batch, u32 d) noexcept nogil:
    cdef const u8 *payload = batch.data[d]
    cdef u32 left = batch.length[d]
    cdef u64 a, b
    cdef u64 key
    memcpy(&a, &batch.exporter[d].address[0], 8)
    memcpy(&b, &batch.exporter[d].address[8], 8)
    key = hash_mix(hash_mix(hash_mix(overlap.seed, a), b), batch.arrival_ns[d])
    key = hash_mix(key, <u64>batch.listener << 48 | <u64>batch.exporter[d].port_be << 32 | left)
    while left >= 8:
        memcpy(&a, payload, 8)
        key = hash_mix(key, a)
        payload += 8
        left -= 8
    a = 0
    memcpy(&a, payload, left)
    key = hash_mix(key, a)
    return key if key else 1


cdef inline overlap_entry_t *overlap_find(overlap_t *overlap, u64 key, bint enter) noexcept nogil:
    """The entry of the key; NULL: there is none (enter: and no place for it)."""
    cdef overlap_entry_t *entry
    cdef u64 found
    cdef u32 i
    for i in range(<u32>OVERLAP_PROBES):
        entry = &overlap.entries[<u32>(key + i) & overlap.mask]
        found = atomic_load64(&entry.key)
        if found == 0 and enter:
            if atomic_change64(&entry.key, 0, key):
                return entry
            found = atomic_load64(&entry.key)
        if found == key:
            return entry
        if found == 0:
            return NULL
    return NULL


cdef inline void overlap_note(overlap_t *overlap, const batch_t *batch) noexcept nogil:
    """Enters a batch."""
    cdef overlap_entry_t *entry
    cdef u32 d, count
    for d in range(batch.n):
        if batch.arrival_ns[d] < overlap.since_ns:
            continue
        entry = overlap_find(overlap, overlap_key(overlap, batch, d), True)
        if entry == NULL:
            atomic_count(&overlap.unnoted)
            continue
        atomic_count(&overlap.noted)
        count = atomic_load32(&entry.count)
        while not atomic_change32(&entry.count, count, count + 1):
            count = atomic_load32(&entry.count)


cdef inline bint overlap_repeats(overlap_t *overlap, const batch_t *batch, u32 d) noexcept nogil:
    """Whether this datagram was entered once more than it was left out."""
    cdef overlap_entry_t *entry = overlap_find(overlap, overlap_key(overlap, batch, d), False)
    cdef u32 count
    if entry == NULL:
        return False
    count = atomic_load32(&entry.count)
    while count:
        if atomic_change32(&entry.count, count, count - 1):
            return True
        count = atomic_load32(&entry.count)
    return False


cdef inline u32 overlap_leave(overlap_t *overlap, batch_t *batch, u64 *octets, bint *over) noexcept nogil:
    """Takes out of a batch what was entered, and its bytes from `octets`; returns how many. over: no more will come twice."""
    cdef u32 d
    cdef u32 n = 0
    cdef u32 left
    for d in range(batch.n):
        over[0] = over[0] or batch.arrival_ns[d] > overlap.until_ns
        if overlap_repeats(overlap, batch, d):
            octets[0] -= batch.length[d]
            atomic_count(&overlap.repeated)
            continue
        batch.data[n] = batch.data[d]
        batch.length[n] = batch.length[d]
        batch.arrival_ns[n] = batch.arrival_ns[d]
        batch.exporter[n] = batch.exporter[d]
        n += 1
    left = batch.n - n
    batch.n = n
    return left
