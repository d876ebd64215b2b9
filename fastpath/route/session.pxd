# cython: language_level=3, cdivision=True, boundscheck=False, wraparound=False
"""Per-worker cache of exporter sessions (address, port, listener) -> route. Bounded: forged sources evict entries, but the cache does not grow.

8-way set associative: a session lives in one set; the least recently seen of the set goes first. Entries of an older epoch (plan or memo of
routes replaced) are free. The cache begins small and doubles up to its bound before it evicts; pages that are never used take no memory.
Called by: the worker, one look-up per datagram. Must never allocate.
"""

from libc.string cimport memcmp, memcpy, memset
from base.batch cimport batch_t
from base.hash cimport hash_address
from uapi.net cimport u8, u16, u32, u64

cdef enum:
    SESSION_WAYS = 8
    SESSION_SETS = 512             # at first: 4096 sessions, 128 KiB

ctypedef struct session_t:         # 32 bytes: a set is four cache lines
    u8 address[16]
    u16 port_be
    u16 listener
    u16 epoch                      # 0 = never used
    u16 group                      # in the batch `seen`
    u32 seen                       # batch number of the last datagram
    u32 route

ctypedef struct session_cache_t:
    session_t *entries             # sets of SESSION_WAYS
    u32 set_mask                   # of the sets in use
    u32 set_limit                  # the largest set_mask
    u16 epoch                      # entries of another epoch are void
    u32 now                        # batch number
    u32 split                      # the last one in which a session may have got two groups
    u64 used
    u64 misses
    u64 evictions


cdef inline session_t *session_set(const session_cache_t *cache, const u8 *address, u16 port_be, u16 listener) noexcept nogil:
    """The first entry of the session's set."""
    cdef u32 h = hash_address(address) ^ (<u32>port_be * <u32>0x9E3779B1) ^ (<u32>listener * <u32>0x85EBCA77)
    return &cache.entries[<size_t>((h ^ (h >> 15)) & cache.set_mask) * SESSION_WAYS]


cdef inline session_t *session_find(session_cache_t *cache, const u8 *address, u16 port_be, u16 listener,
                                    bint *hit) noexcept nogil:
    """The session's entry (hit), or the entry it may take (not hit): the caller fills the route, session_take() the rest."""
    cdef session_t *entry = session_set(cache, address, port_be, listener)
    cdef session_t *victim = entry
    cdef u32 age, oldest = 0
    cdef u32 _way
    for _way in range(<u32>SESSION_WAYS):
        if (entry.port_be == port_be and entry.listener == listener and entry.epoch == cache.epoch
                and memcmp(entry.address, address, 16) == 0):
            hit[0] = True
            return entry
        age = 0xFFFFFFFFU if entry.epoch != cache.epoch else cache.now - entry.seen
        if age > oldest:
            oldest = age
            victim = entry
        entry += 1
    hit[0] = False
    if oldest != 0xFFFFFFFFU and cache.set_mask < cache.set_limit:
        cache.set_mask = 2 * cache.set_mask + 1
        session_void(cache)
        victim = session_set(cache, address, port_be, listener)
    return victim


cdef inline void session_take(session_cache_t *cache, session_t *entry, const u8 *address, u16 port_be, u16 listener,
                              u32 route) noexcept nogil:
    """Makes the entry this session's; what lived there is evicted."""
    cache.misses += 1
    if entry.epoch == cache.epoch:
        cache.evictions += 1
        if entry.seen == cache.now:
            cache.split = cache.now
    else:
        cache.used += 1
    memcpy(entry.address, address, 16)
    entry.port_be = port_be
    entry.listener = listener
    entry.epoch = cache.epoch
    entry.seen = cache.now - 1
    entry.route = route


cdef inline void session_group(session_cache_t *cache, session_t *entry, batch_t *batch, u32 d) noexcept nogil:
    """Notes that datagram d of the batch is this session's. A session evicted within a batch begins a second group there: `split` says so,
    since order holds within a group only."""
    if entry.seen != cache.now:
        entry.seen = cache.now
        entry.group = <u16>batch.groups
        batch.groups += 1
    batch.group[d] = entry.group


cdef inline void session_void(session_cache_t *cache) noexcept nogil:
    """Forgets all sessions at once by beginning a new epoch; within a batch, those seen in it get a second group."""
    cache.split = cache.now
    cache.epoch += 1
    if cache.epoch == 0:           # entries of the first epoch must not come to life again
        memset(cache.entries, 0, (<size_t>cache.set_mask + 1) * SESSION_WAYS * sizeof(session_t))
        cache.epoch = 1
    cache.used = 0
