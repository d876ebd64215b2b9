# cython: language_level=3, cdivision=True, boundscheck=False, wraparound=False
"""Aliases: numbers that replace observation domains (v9: source ids) in copies, for collectors that identify exporters by the sender's address.
Each exporter and domain has its own alias, so that templates of two exporters never collide.

An alias is a hash of (exporter address, version, domain) without a seed: it is the same on every worker and host and after every restart,
without any memory. If another exporter has the number, the next of ALIAS_TRIES is used; 0 is never used (RFC 7011 §3.1: 0 means no domain). The
alias does not depend on the port while one session at a time uses the domain, so an exporter that restarts keeps its alias. The session that
uses an alias claims it; a second session that appears while the first is alive gets its own alias, hashed with its port. Another session can
take over an alias after ALIAS_QUIET_S of silence, and at once if its exporter reports (v9: sysUptime) that it started after the holder was last
seen. The table only stores which session has which alias; if it is full, the session's own hash is used and counted (unlisted). The original
domain is never sent, because mixed templates are worse than a number that changes.

One table for all workers. A look-up takes no lock. The worker that wins one compare-and-swap changes a set; other workers continue without an
entry and never wait. Called by: the worker, once per second and domain. No allocation, no I/O.
"""

from libc.string cimport memcmp, memcpy, memset
from base.atomics cimport (
    atomic_change32, atomic_change64, atomic_count, atomic_fence_release, atomic_load32, atomic_load32_acquire, atomic_load64,
    atomic_store32, atomic_store32_release, atomic_store64,
)
from base.batch cimport exporter_t
from base.hash cimport hash_mix
from flow.scan cimport FLOW_IPFIX, FLOW_V9
from flow.template cimport flow_put32, flow_u16, flow_u32
from uapi.net cimport u8, u16, u32, u64

cdef enum:
    ALIAS_WAYS = 16                # entries a set: one cache line of numbers
    ALIAS_SETS = 4096              # 65,536 entries
    ALIAS_TRIES = 4                # numbers that one key may get
    ALIAS_TURNS = 64               # looks at a set that another worker changes
    ALIAS_QUIET_S = 60             # silence of a holder after which another session of its exporter may take over
    ALIAS_IDLE_S = 600             # silence after which an entry may make way for a newcomer
    ALIAS_ONCE_S = 10              # the same of one that was seen within one second only
    ALIAS_AHEAD_S = 5              # one worker's clock may be so far ahead of what another holds for now: each reads it once a batch
    ALIAS_SESSION = 0x10000        # marks a port in keys and claims

ctypedef struct alias_key_t:       # 28 bytes, without holes
    u8 address[16]
    u32 domain
    u32 kind                       # FLOW_V9 or FLOW_IPFIX
    u32 port                       # ALIAS_SESSION | port in network order; 0: for whoever holds it

ctypedef struct alias_entry_t:     # 64 bytes
    u64 claim                      # (ALIAS_SESSION | port of the holder) << 32 | second when it was last seen
    alias_key_t key
    u32 family                     # 4 or 6
    u32 first_s
    u32 spare[5]

ctypedef struct aliases_t:
    u32 *numbers                   # of each entry, 0 = empty; written last
    alias_entry_t *entries
    u32 *turns                     # of each set: 1 while it is changed
    u64 unlisted                   # times there was no room for an entry


cdef inline u32 alias_hash(const alias_key_t *key, u32 number) noexcept nogil:
    """The number-th choice for a key, never 0."""
    cdef u64 a, b
    cdef u32 value
    memcpy(&a, key.address, 8)
    memcpy(&b, key.address + 8, 8)
    a = hash_mix(hash_mix(a, b), <u64>key.domain << 32 | key.kind << 24 | number << 20 | key.port)
    value = <u32>(a >> 16)
    return value if value else 1


cdef inline u32 alias_look(const aliases_t *t, const alias_key_t *key, u32 *number) noexcept nogil:
    """The key's entry + 1 and its number; 0: it has none, and `number` is the one it would get (0: all are taken)."""
    cdef u32 choice, n, first, way
    cdef bint taken
    number[0] = 0
    for choice in range(<u32>ALIAS_TRIES):
        n = alias_hash(key, choice)
        first = (n & (ALIAS_SETS - 1)) * ALIAS_WAYS
        taken = False
        for way in range(first, first + ALIAS_WAYS):
            if atomic_load32_acquire(&t.numbers[way]) == n:
                if memcmp(&t.entries[way].key, key, sizeof(alias_key_t)) == 0:
                    number[0] = n
                    return way + 1
                taken = True
        if not taken and number[0] == 0:
            number[0] = n
    return 0


cdef inline u32 alias_age(u32 now_s, u32 seen_s) noexcept nogil:
    """Seconds since somebody was seen: 0 also where another worker, whose batch began later, has seen him since. More than that ahead is a
    second of another boot, long past."""
    return 0 if seen_s - now_s <= ALIAS_AHEAD_S else now_s - seen_s


cdef inline u32 alias_room(aliases_t *t, u32 first, u32 now_s) noexcept nogil:
    """An empty place of a set + 1, else that of the entry silent for longest; 0 = all are in use."""
    cdef u32 way, age, seen
    cdef u32 oldest = 0
    cdef u32 best = 0
    for way in range(first, first + ALIAS_WAYS):
        if atomic_load32(&t.numbers[way]) == 0:
            return way + 1
        seen = <u32>atomic_load64(&t.entries[way].claim)
        age = alias_age(now_s, seen)
        if age > oldest and age >= (<u32>ALIAS_IDLE_S if seen != t.entries[way].first_s else <u32>ALIAS_ONCE_S):
            oldest = age
            best = way + 1
    return best


cdef inline u32 alias_enter(aliases_t *t, const alias_key_t *key, u32 number, const exporter_t *exporter, u32 now_s) noexcept nogil:
    """Enters a key under the number that alias_look() gave; its entry + 1, 0 = no room, or the number went to somebody else meanwhile."""
    cdef u32 first = (number & (ALIAS_SETS - 1)) * ALIAS_WAYS
    cdef u32 *turn = &t.turns[number & (ALIAS_SETS - 1)]
    cdef u32 tries = ALIAS_TURNS
    cdef u32 way
    cdef u32 place = 0
    cdef bint taken = False
    cdef alias_entry_t *entry
    while not atomic_change32(turn, 0, 1):
        tries -= 1
        if tries == 0:
            return 0
    for way in range(first, first + ALIAS_WAYS):
        if atomic_load32(&t.numbers[way]) == number:
            taken = True
            if memcmp(&t.entries[way].key, key, sizeof(alias_key_t)) == 0:
                place = way + 1
    if not taken:
        place = alias_room(t, first, now_s)
        if place:
            entry = &t.entries[place - 1]
            atomic_store32(&t.numbers[place - 1], 0)
            atomic_fence_release()
            entry.key = key[0]
            entry.family = exporter.family
            entry.first_s = now_s
            atomic_store64(&entry.claim, <u64>(ALIAS_SESSION | exporter.port_be) << 32 | now_s)
            atomic_store32_release(&t.numbers[place - 1], number)
    atomic_store32_release(turn, 0)
    return place


cdef inline u32 alias_own(aliases_t *t, alias_key_t *key, const exporter_t *exporter, u32 now_s, bint make) noexcept nogil:
    """The alias of this one session, 0 = it has none (and none is made)."""
    cdef u32 place, number
    cdef u64 claim
    key.port = ALIAS_SESSION | exporter.port_be
    place = alias_look(t, key, &number)
    if place == 0 and not make:
        return 0
    if place == 0 and number:
        place = alias_enter(t, key, number, exporter, now_s)
    if place == 0:
        atomic_count(&t.unlisted)
        return number
    claim = atomic_load64(&t.entries[place - 1].claim)
    if <u32>claim != now_s:
        atomic_change64(&t.entries[place - 1].claim, claim, (claim >> 32) << 32 | now_s)
    return number


cdef inline u32 alias_born(u32 kind, u32 uptime_ms, u32 now_s) noexcept nogil:
    """When the exporter started as it says, on our clock in seconds; 0 = it does not say."""
    return now_s - uptime_ms // 1000 if kind == FLOW_V9 and uptime_ms // 1000 < now_s else 0


cdef inline u32 alias_take(aliases_t *t, const exporter_t *exporter, u32 kind, u32 domain, bint may_claim, u32 born_s,
                           u32 now_s) noexcept nogil:
    """The alias of an exporter session's domain; 0: there is none (all choices are taken: one in 2^80). may_claim: it may take over what a
    silent session of the same exporter held: not while its templates are unknown, for the collector would use the other's."""
    cdef alias_key_t key
    cdef u32 place, number, own
    cdef u32 port = ALIAS_SESSION | exporter.port_be
    cdef u64 claim
    cdef u32 _tries
    memset(&key, 0, sizeof(key))
    memcpy(key.address, exporter.address, 16)
    key.kind = kind
    key.domain = domain
    place = alias_look(t, &key, &number)
    if place == 0 and number:
        place = alias_enter(t, &key, number, exporter, now_s)
    if place == 0:
        return alias_own(t, &key, exporter, now_s, True)
    for _tries in range(2):
        claim = atomic_load64(&t.entries[place - 1].claim)
        if claim >> 32 == port:
            if <u32>claim != now_s:
                atomic_change64(&t.entries[place - 1].claim, claim, <u64>port << 32 | now_s)
            return number
        if not may_claim or (alias_age(now_s, <u32>claim) < ALIAS_QUIET_S and born_s <= <u32>claim + 1):
            break
        own = alias_own(t, &key, exporter, now_s, False)
        if own:
            return own
        if atomic_change64(&t.entries[place - 1].claim, claim, <u64>port << 32 | now_s):
            return number
    return alias_own(t, &key, exporter, now_s, True)


cdef inline u32 alias_domain_at(u32 kind, const u8 *p, u32 n) noexcept nogil:
    """Where the domain stands in a datagram of n bytes, 0 = nowhere. What a malformed one says counts too: a collector may read it."""
    if kind == FLOW_V9 and n >= 20:
        return 16
    return 12 if kind == FLOW_IPFIX and n >= 16 else 0


cdef inline void alias_write(u8 *copy, u32 n, u32 kind, u32 number) noexcept nogil:
    """Writes the alias into the caller's own copy of the payload: for IPFIX also into messages of the same domain behind the first."""
    cdef u32 domain, at
    cdef u32 length
    if kind == FLOW_V9:
        flow_put32(copy + 16, number)
        return
    domain = flow_u32(copy + 12)
    at = 0
    while n - at >= 16 and flow_u16(copy + at) == 10:
        if flow_u32(copy + at + 12) == domain:
            flow_put32(copy + at + 12, number)
        length = flow_u16(copy + at + 2)
        if length < 16 or length > n - at:
            return
        at += length
