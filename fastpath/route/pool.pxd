# cython: language_level=3, cdivision=True, boundscheck=False, wraparound=False
"""Which member of a pool gets an exporter: rendezvous hashing on (exporter address, observation domain), with a bound on each member's share.

Each exporter has a home: the member of highest weight / -ln(hash) among those that hold less than POOL_SHARE percent of their fair share of
homes. So equal members stay within a few percent of each other, and an exporter keeps its home while this member is in the pool, or until a
member with a higher rank joins. While the home is down, a deputy is chosen the same way among the members that are up; when the home is up
again, the exporter returns. Only exporters of a member that leaves or joins ever move. Homes are stored in a bounded cache; for an exporter
that is not stored the choice is made again, and without memory the hash alone decides. Round-robin (smooth, weighted) only stores the turns of
the members. Sources: Thaler and Ravishankar 1998 (highest random weight); Mirrokni, Thorup and Zadimoghaddam 2016 (bounded loads).
Called by: the worker, per datagram of a pool; adopt and expire between batches. Must never allocate, or do I/O.
"""

from libc.math cimport log
from libc.string cimport memcmp, memcpy, memset
from base.atomics cimport atomic_load32, atomic_store32
from base.hash cimport hash_address
from route.plan cimport PLAN_NONE, plan_t, pool_member_t, pool_t
from uapi.net cimport u8, u32, u64

cdef enum:
    POOL_WAYS = 8                  # entries a set
    POOL_ENTRIES = 65536           # of all pools, a power of two
    POOL_SHARE = 104               # percent of the fair share that a member holds at most when an exporter is placed
    POOL_FORGET_S = 1800           # an exporter silent for so long is forgotten

ctypedef struct pool_entry_t:
    u8 address[16]
    u64 domain
    u32 pool                       # id, 0 = empty
    u32 home                       # receiver id of the member it belongs to
    u32 now                        # of the one that has it; 0 = none yet
    u32 way                        # of that member, valid under `version`
    u32 version                    # of the pool when it was judged
    u32 serial                     # of the plan when its home was judged
    u32 seen_s

ctypedef struct pool_cache_t:
    pool_entry_t *entries
    u32 now_s                      # CLOCK_MONOTONIC, once a batch
    u32 serial                     # plans adopted
    u32 versions                   # given out
    u32 sweep
    u32 used


cdef inline u64 pool_key(const u8 *address, u64 domain) noexcept nogil:
    """Hash of an exporter and its domain: unseeded, so that every worker, relay and restart ranks alike."""
    cdef u64 h = (<u64>hash_address(address) << 32) ^ (domain * <u64>0x9E3779B97F4A7C15)
    h ^= h >> 31
    h *= <u64>0xBF58476D1CE4E5B9
    return h ^ (h >> 29)


cdef inline double pool_score(const pool_member_t *member, u64 key) noexcept nogil:
    """Rank of a member for a key, > 0: the highest wins, in proportion to the weights."""
    cdef u64 h = (key ^ member.seed) * <u64>0x94D049BB133111EB
    h ^= h >> 32
    h *= <u64>0xBF58476D1CE4E5B9
    h ^= h >> 29
    return -<double>member.weight / log((<double>(h >> 11) + 0.5) / 9007199254740992.0)


cdef inline u32 pool_member(const plan_t *plan, const pool_t *pool, u32 receiver) noexcept nogil:
    """Index in plan.members of a receiver, PLAN_NONE = not one of this pool."""
    cdef u32 i
    if receiver:
        for i in range(pool.first, pool.first + pool.count):
            if plan.members[i].receiver == receiver:
                return i
    return <u32>PLAN_NONE


cdef inline pool_t *pool_by_id(plan_t *plan, u32 number) noexcept nogil:
    cdef u32 p
    for p in range(plan.pool_count):
        if plan.pools[p].number == number:
            return &plan.pools[p]
    return NULL


cdef inline u32 pool_choose(const plan_t *plan, const pool_t *pool, u64 key, bint homes, bint bounded) noexcept nogil:
    """The member of highest rank, of all (homes) or of those that are up, which has room (bounded); PLAN_NONE = all are down."""
    cdef const pool_member_t *member
    cdef u32 i, load
    cdef u32 best = <u32>PLAN_NONE
    cdef u64 total = 1
    cdef u64 weight = 0
    cdef double score
    cdef double highest = 0
    for i in range(pool.first, pool.first + pool.count):
        member = &plan.members[i]
        if homes or not member.down:
            total += member.homes if homes else member.load
            weight += member.weight
    for i in range(pool.first, pool.first + pool.count):
        member = &plan.members[i]
        if member.down and not homes:
            continue
        load = member.homes if homes else member.load
        if bounded and load * weight * 100 >= total * member.weight * POOL_SHARE:
            continue
        score = pool_score(member, key)
        if score > highest:
            highest = score
            best = i
    return best


cdef inline u32 pool_home(pool_cache_t *cache, plan_t *plan, const pool_t *pool, pool_entry_t *entry, u64 key) noexcept nogil:
    """Index of the member that the exporter belongs to: the one it had, unless that left or one that joined since outranks it."""
    cdef u32 top
    cdef u32 home = pool_member(plan, pool, entry.home)
    if home != <u32>PLAN_NONE and entry.serial != cache.serial:
        top = pool_choose(plan, pool, key, True, False)
        if plan.members[top].since > entry.serial:
            plan.members[home].homes -= 1
            plan.members[top].homes += 1
            home = top
    elif home == <u32>PLAN_NONE:
        home = pool_choose(plan, pool, key, True, True)
        plan.members[home].homes += 1
    entry.home = plan.members[home].receiver
    entry.serial = cache.serial
    return home


cdef inline void pool_judge(pool_cache_t *cache, plan_t *plan, pool_t *pool, pool_entry_t *entry) noexcept nogil:
    """Gives the exporter to a member: its home, or while that is down a deputy; while all are down, whoever had it."""
    cdef u64 key = pool_key(entry.address, entry.domain)
    cdef u32 home = pool_home(cache, plan, pool, entry, key)
    cdef u32 now = pool_member(plan, pool, entry.now)
    cdef u32 want = home
    if plan.members[home].down:
        want = now
        if now == <u32>PLAN_NONE or plan.members[now].down:
            want = pool_choose(plan, pool, key, False, True)
        if want == <u32>PLAN_NONE:
            want = home if now == <u32>PLAN_NONE else now
    if want != now:
        if now != <u32>PLAN_NONE:
            atomic_store32(&plan.members[now].load, plan.members[now].load - 1)
        atomic_store32(&plan.members[want].load, plan.members[want].load + 1)
    entry.now = plan.members[want].receiver
    entry.way = plan.members[want].way
    entry.version = pool.version


cdef inline void pool_drop(pool_cache_t *cache, plan_t *plan, pool_entry_t *entry) noexcept nogil:
    """Forgets an exporter."""
    cdef pool_t *pool = pool_by_id(plan, entry.pool)
    cdef u32 i
    if entry.pool == 0:
        return
    if pool != NULL:
        i = pool_member(plan, pool, entry.home)
        if i != <u32>PLAN_NONE:
            plan.members[i].homes -= 1
        i = pool_member(plan, pool, entry.now)
        if i != <u32>PLAN_NONE:
            atomic_store32(&plan.members[i].load, plan.members[i].load - 1)
    memset(entry, 0, sizeof(pool_entry_t))
    cache.used -= 1


cdef inline pool_entry_t *pool_find(pool_cache_t *cache, u32 number, const u8 *address, u64 domain, bint *hit) noexcept nogil:
    """The exporter's entry (hit), or the one it may take: an empty one of its set, else the one seen least recently."""
    cdef u64 h = pool_key(address, domain) ^ (<u64>number * <u64>0xD6E8FEB86659FD93)
    cdef pool_entry_t *entry = &cache.entries[<size_t>((h ^ (h >> 32)) & (POOL_ENTRIES // POOL_WAYS - 1)) * POOL_WAYS]
    cdef pool_entry_t *victim = entry
    cdef u32 age
    cdef u32 oldest = 0
    cdef u32 _way
    for _way in range(<u32>POOL_WAYS):
        if entry.pool == number and entry.domain == domain and memcmp(entry.address, address, 16) == 0:
            hit[0] = True
            return entry
        age = cache.now_s - entry.seen_s if entry.pool else <u32>0xFFFFFFFFU
        if age > oldest:
            oldest = age
            victim = entry
        entry += 1
    hit[0] = False
    return victim


cdef inline pool_entry_t *pool_assign(pool_cache_t *cache, plan_t *plan, pool_t *pool, const u8 *address, u64 domain,
                                      u32 *before) noexcept nogil:
    """The exporter's entry, its `way` the member that gets its datagrams. before: the receiver that had them, 0 = not known to."""
    cdef bint hit
    cdef pool_entry_t *entry = pool_find(cache, pool.number, address, domain, &hit)
    if not hit:
        pool_drop(cache, plan, entry)
        memcpy(entry.address, address, 16)
        entry.domain = domain
        entry.pool = pool.number
        cache.used += 1
    before[0] = entry.now
    entry.seen_s = cache.now_s
    if entry.version != pool.version:
        pool_judge(cache, plan, pool, entry)
    return entry


cdef inline u32 pool_turn(plan_t *plan, const pool_t *pool) noexcept nogil:
    """Index of the member whose turn it is: round-robin in proportion to the weights, those that are down left out unless all are."""
    cdef u32 i
    cdef u32 best = <u32>PLAN_NONE
    cdef long weight = 0
    cdef bint up = False
    for i in range(pool.first, pool.first + pool.count):
        up = up or not plan.members[i].down
    for i in range(pool.first, pool.first + pool.count):
        if up and plan.members[i].down:
            continue
        plan.members[i].turn += plan.members[i].weight
        weight += plan.members[i].weight
        if best == <u32>PLAN_NONE or plan.members[i].turn > plan.members[best].turn:
            best = i
    plan.members[best].turn -= weight
    return best


cdef inline void pool_adopt(pool_cache_t *cache, plan_t *plan, plan_t *old) noexcept nogil:
    """A new plan (old: the one before, or NULL): who joined when, and the shares counted again from what is remembered."""
    cdef pool_t *pool
    cdef pool_t *was
    cdef pool_member_t *member
    cdef pool_entry_t *entry
    cdef u32 p, i, k
    if plan.pool_count == 0 and cache.used == 0:
        return
    cache.serial += 1
    for p in range(plan.pool_count):
        pool = &plan.pools[p]
        cache.versions += 1
        pool.version = cache.versions
        was = pool_by_id(old, pool.number) if old != NULL else NULL
        for i in range(pool.first, pool.first + pool.count):
            member = &plan.members[i]
            member.since = cache.serial
            k = pool_member(old, was, member.receiver) if was != NULL else <u32>PLAN_NONE
            if k != <u32>PLAN_NONE:
                member.since = old.members[k].since
                member.turn = old.members[k].turn
    for i in range(<u32>POOL_ENTRIES):
        entry = &cache.entries[i]
        if entry.pool == 0:
            continue
        pool = pool_by_id(plan, entry.pool)
        if pool == NULL:
            pool_drop(cache, plan, entry)
            continue
        k = pool_member(plan, pool, entry.home)
        if k != <u32>PLAN_NONE:
            plan.members[k].homes += 1
        k = pool_member(plan, pool, entry.now)
        if k != <u32>PLAN_NONE:
            atomic_store32(&plan.members[k].load, plan.members[k].load + 1)


cdef inline void pool_expire(pool_cache_t *cache, plan_t *plan, u32 steps) noexcept nogil:
    """Looks at the next so many entries and forgets exporters that are long silent."""
    cdef pool_entry_t *entry
    if cache.used == 0:
        return
    while steps:
        steps -= 1
        cache.sweep = (cache.sweep + 1) & (POOL_ENTRIES - 1)
        entry = &cache.entries[cache.sweep]
        if entry.pool and cache.now_s - entry.seen_s >= POOL_FORGET_S:
            pool_drop(cache, plan, entry)


cdef inline u32 pool_load(const pool_member_t *member) noexcept nogil:
    """Exporters it has now, for a reader on another thread."""
    return atomic_load32(&member.load)
