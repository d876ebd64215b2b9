# needs: uapi: copies, net, offload; base: atomics, batch, counters, hash; rx: socket
# Ingress offload: what a worker knows of the sessions and sets of receivers that it has entered in the maps of bpf/offload.bpf.c, which copies
# their datagrams where they come in. Pure bookkeeping over shared memory: which session has which place, when it is on, what is counted.
# Called by worker/ingress.pxi. It must never decide whose copies the kernel makes.
#
# A session's place here is its number there, too: it goes to another session only when nothing came for OFFLOAD_IDLE_NS, so that no run of
# the program has the number in hand. So does a set that has been stopped; sessions that still name it are off, since it is made anew.
# One that came once and was never entered has no number there, and holds a place by chance only: else a storm of forged sessions would keep
# all newcomers out.

cdef enum:
    OFFLOAD_OF_SET = 64                # OFFLOAD_RECEIVERS
    OFFLOAD_OUT = 64                   # OFFLOAD_OUTPUTS
    OFFLOAD_WAYS = 8                   # places that a session can have
    OFFLOAD_CHANCE = 4                 # newcomers that find no free place, for one that takes that of a session which came once
    OFFLOAD_EARN = 4                   # batches with datagrams of a session before it is entered, or turned on again
    OFFLOAD_EARN_MOST = 1024           # the same, of a session that is turned off again and again
    OFFLOAD_EARN_LATE = 64             # the same, of one that another worker has entered
    OFFLOAD_SWEEP = 64                 # places looked at ...
    OFFLOAD_FREE = 0                   # offload_use_t.state
    OFFLOAD_USED = 1
    OFFLOAD_LEAVING = 2
    OFFLOAD_NONE = 0xFFFFFFFF

cdef u32 OFFLOAD_SLOW = <u32>1 << 31   # bit of a room: a CPU of this host empties the queue

cdef u64 OFFLOAD_IDLE_NS = 10000000000  # CLOCK_MONOTONIC
cdef u64 OFFLOAD_SWEEP_NS = 10000000   # ... so often
cdef u64 OFFLOAD_COUNT_NS = 1000000000  # so long after it took something the program has counted its copies
cdef u64 OFFLOAD_SHORT_NS = 2000000000  # a session that was on for less than that earns it twice as slowly the next time
cdef u64 OFFLOAD_REVIEW_NS = 60000000000  # a session on for so long passes once, so that this host's rules are asked again
cdef u64 OFFLOAD_PAUSE_NS = 1000000000  # of a route, after copies failed
cdef u64 OFFLOAD_UNUSED_NS = 60000000000   # a set of which nothing comes is given up
cdef u64 OFFLOAD_OLD_NS = 1000000000   # older than that no record is: the clock was set

ctypedef struct offload_known_t:       # a session
    u8 address[16]
    u16 port_be
    u16 listener
    u16 earned                         # batches
    u16 need
    u64 made                           # of the set that it was turned on with
    u32 use
    bint entered                       # the program has had its number
    bint express                       # XDP may have it, or had it: what it has broadcast may not have left
    u64 seen_ns                        # CLOCK_MONOTONIC, 0 = the place was never used
    u64 on_ns                          # when it was turned on last, 0 = it is not entered in the kernel's map
    u64 off_ns                         # when this worker turned it off last
    u64 slow_ns                        # XDP may have it from then on

ctypedef struct offload_use_t:         # a set of receivers
    u32 state
    u32 route                          # of the running plan
    u8 family
    u32 count
    bint failed                        # a copy did
    bint settled                       # nothing was taken since it was counted
    u64 made                           # number of the set, of all that were made
    u64 active_ns                      # when something was taken last
    u64 left_ns                        # when it was stopped
    rx_socket_t *socket                # by which its sessions' datagrams came, NULL = it has left the plan
    rx_counters_t *counters            # NULL then
    u32 ways[OFFLOAD_OF_SET]
    u32 mtus[OFFLOAD_OF_SET]
    u32 versions[OFFLOAD_OF_SET]                   # of the links
    tx_counters_t *receivers[OFFLOAD_OF_SET]   # NULL = the receiver has left the plan
    copies_counters_t copied[OFFLOAD_OF_SET]   # what of the kernel's counters is in ours
    offload_set_t taken                # the same
    bint express                       # there is an entry for each receiver in its device map
    u32 entries                        # that the device map has
    u64 first                          # datagrams that the kernel had taken before it was made, and copies ...
    u64 before[OFFLOAD_OF_SET]         # ... of which it knew what became
    u64 due                            # so many it has to know of at the next look ...
    u64 due_ns                         # ... which is a while after this
    u64 even_ns                        # when nothing was under way last

ctypedef struct offload_t:
    bint on
    u32 asked                          # another number: what is offloaded has to come through the host again; the control plane writes it
    u32 heard                          # the last one
    u32 number                         # of the worker
    int keys                           # descriptors of maps
    int rings
    int ring
    u32 sweep                          # the place that is looked at next
    u64 swept_ns
    u32 refused                        # newcomers that found no free place
    u64 waited_ns                      # CLOCK_MONOTONIC of the last wait for the program, for want of a free set
    offload_session_t *sessions        # OFFLOAD_SESSIONS: this worker's, as all of these
    offload_set_t *sets
    copies_receiver_t *receivers
    copies_counters_t *counters
    u64 *consumer                      # of the ring buffer
    u64 *producer
    const u8 *data
    u64 mask
    offload_known_t *known
    offload_use_t *uses
    u32 used                           # sets that are not free
    u64 made                           # sets so far
    const int *broadcasts              # descriptors of the sets' device maps, NULL = no XDP
    int copy                           # of the program that makes copies of what is broadcast
    u64 outputs[OFFLOAD_OUT]           # interfaces that XDP can send by, and above 32 bits what their rings hold; the control plane writes
    u32 expresses                      # sessions that XDP may have, or had
    u64 grace_ns                       # what was broadcast before that has left
    u64 slow_ns                        # XDP may have sessions from then on
    u64 pause_ns                       # how long it may not when it fails
    u64 counted_ns                     # waits for what XDP has broadcast ...
    u32 waits                          # ... since then
    u64 reviewed_ns
    u8 met[BATCH_LIMIT]                # sessions (groups) of the batch that were looked at
    void *mapped[6]                    # memory of maps, whole
    size_t mapped_bytes[6]


cdef inline offload_known_t *offload_places(offload_t *o, const exporter_t *exporter, u16 listener) noexcept nogil:
    """The first of OFFLOAD_WAYS places that the session can have."""
    cdef u32 h = hash_address(exporter.address) ^ (<u32>exporter.port_be * <u32>0x9E3779B1) ^ (<u32>listener * <u32>0x85EBCA77)
    return &o.known[((h ^ (h >> 15)) & (OFFLOAD_SESSIONS // OFFLOAD_WAYS - 1)) * OFFLOAD_WAYS]


cdef inline offload_known_t *offload_known(offload_t *o, const exporter_t *exporter, u16 listener) noexcept nogil:
    """The session's place; NULL: it has none."""
    cdef offload_known_t *place = offload_places(o, exporter, listener)
    cdef u32 i
    for i in range(<u32>OFFLOAD_WAYS):
        if (place[i].port_be == exporter.port_be and place[i].listener == listener and place[i].seen_ns
                and memcmp(place[i].address, exporter.address, 16) == 0):
            return &place[i]
    return NULL


cdef inline offload_known_t *offload_find(offload_t *o, const exporter_t *exporter, u16 listener, u64 now_ns) noexcept nogil:
    """The session's place, or one that it may have: one whose session is silent, and out of the kernel's map by then, or now and then one of
    those that came once; NULL: there is none."""
    cdef offload_known_t *place = offload_known(o, exporter, listener)
    cdef offload_known_t *oldest
    cdef offload_known_t *once = NULL
    cdef u32 i
    if place != NULL:
        return place
    place = offload_places(o, exporter, listener)
    oldest = place
    for i in range(<u32>OFFLOAD_WAYS):
        if place[i].seen_ns < oldest.seen_ns:
            oldest = &place[i]
        if not place[i].entered and place[i].earned < 2 and (once == NULL or place[i].seen_ns < once.seen_ns):
            once = &place[i]
    if oldest.seen_ns and (now_ns < oldest.seen_ns or now_ns - oldest.seen_ns < OFFLOAD_IDLE_NS):
        o.refused += 1
        if once == NULL or o.refused % OFFLOAD_CHANCE:  # always: sessions that are too many would drive each other out for ever
            return NULL
        oldest = once
    if offload_is_on(o, oldest):       # nothing of it was seen, but it may be copied: its place is free when that is over
        offload_leave(o, oldest)
        oldest.seen_ns = now_ns
        return NULL
    offload_leave(o, oldest)
    offload_unexpress(o, oldest)
    memset(oldest, 0, sizeof(offload_known_t))
    memcpy(oldest.address, exporter.address, 16)
    oldest.port_be = exporter.port_be
    oldest.listener = listener
    oldest.need = OFFLOAD_EARN
    return oldest


cdef inline void offload_unexpress(offload_t *o, offload_known_t *known) noexcept nogil:
    """What XDP has broadcast of the session has left."""
    o.expresses -= known.express
    known.express = False


cdef inline void offload_key(const offload_known_t *known, offload_key_t *key) noexcept nogil:
    memcpy(key.address, known.address, 16)
    key.port = known.port_be
    key.listener = known.listener


cdef inline u32 offload_place(const offload_t *o, const offload_known_t *known) noexcept nogil:
    return <u32>(known - o.known)


cdef inline void offload_leave(offload_t *o, offload_known_t *known) noexcept nogil:
    """Takes the session out of the kernel's map."""
    cdef offload_key_t key
    if known.on_ns:
        offload_key(known, &key)
        bpf_map_set(o.keys, &key, NULL, 0)
        atomic_store64(&o.sessions[offload_place(o, known)].word, 0)
        known.on_ns = 0


cdef void offload_leave_all(offload_t *o) noexcept nogil:
    """When the worker ends: the places of its sessions can be another worker's."""
    cdef u32 place
    for place in range(OFFLOAD_SESSIONS):
        offload_leave(o, &o.known[place])


cdef inline void offload_enter(offload_t *o, offload_known_t *known, u64 now_ns) noexcept nogil:
    """Has the program note when the session's datagrams pass; if the map is full, or another worker has entered the session, much later."""
    cdef offload_key_t key
    cdef u32 number = offload_place(o, known)
    atomic_store64(&o.sessions[number].word, 0)
    known.entered = True
    offload_key(known, &key)
    number += o.number * OFFLOAD_SESSIONS
    if bpf_map_set(o.keys, &key, &number, BPF_NOEXIST) == 0:
        known.on_ns = now_ns
    else:
        known.earned = 0
        known.need = OFFLOAD_EARN_LATE


cdef inline u64 offload_passed(offload_t *o, const offload_known_t *known, u64 arrival_ns) noexcept nogil:
    """The session's word, if the datagram that arrived then is the last that has passed; 0: it is not, or nobody knows."""
    cdef u64 word = atomic_load64_acquire(&o.sessions[offload_place(o, known)].word)
    if word & OFFLOAD_ON or word != offload_off(arrival_ns, word) or offload_off(arrival_ns, 0) == 0:
        return 0
    return word


cdef inline void offload_turn_on(offload_t *o, offload_known_t *known, u32 use, u64 passed, u64 now_ns) noexcept nogil:
    """From now on the kernel copies what comes by the place of the last datagram that has passed, if it still is the last; XDP does as soon as
    nothing waits between it and the other program."""
    cdef offload_session_t *session = &o.sessions[offload_place(o, known)]
    cdef bint express = o.uses[use].express and (passed & OFFLOAD_PLACE) >> 1 >= OFFLOAD_EXPRESS_PLACES and now_ns >= known.slow_ns \
        and now_ns >= o.slow_ns
    cdef u64 made = o.uses[use].made
    cdef u64 flag = OFFLOAD_EXPRESS if express else 0
    cdef u64 word = offload_on(made, o.number * OFFLOAD_SETS + use, passed, flag)
    cdef u64 number = atomic_load64(&session.express)
    while express and not atomic_change64(&session.express, number, (number | 1) + 1):     # numbers are given once only
        number = atomic_load64(&session.express)
    if atomic_change64(&session.word, passed, word):
        known.on_ns = now_ns
        known.earned = 0
        known.use = use
        known.made = made
        o.expresses += express and not known.express
        known.express = known.express or express


cdef inline void offload_turn_off(offload_t *o, offload_known_t *known, u64 now_ns) noexcept nogil:
    """The datagrams pass again."""
    cdef offload_session_t *session = &o.sessions[offload_place(o, known)]
    cdef u64 word = atomic_load64_acquire(&session.word)
    if word & OFFLOAD_ON:
        atomic_change64(&session.word, word, 0)
        known.off_ns = now_ns


cdef inline bint offload_is_on(const offload_t *o, const offload_known_t *known) noexcept nogil:
    return (atomic_load64(&o.sessions[offload_place(o, known)].word) & OFFLOAD_ON) != 0


cdef void offload_look(offload_t *o, u64 now_ns) noexcept nogil:
    """At some places: a session that has been on for long is turned off, and on again by the next datagram that comes to the socket; one that
    nothing comes of leaves the kernel's map. How long differs by the place: many that came together would all be off at once."""
    cdef offload_known_t *known
    cdef u64 due_ns
    cdef u32 i
    if now_ns - o.swept_ns < OFFLOAD_SWEEP_NS:
        return
    o.swept_ns = now_ns
    for i in range(<u32>OFFLOAD_SWEEP):
        known = &o.known[o.sweep]
        due_ns = OFFLOAD_REVIEW_NS // 4 + o.sweep * (OFFLOAD_REVIEW_NS // 4 * 3 // OFFLOAD_SESSIONS)
        o.sweep = (o.sweep + 1) % OFFLOAD_SESSIONS
        if known.on_ns == 0:
            continue
        if now_ns - known.seen_ns > OFFLOAD_REVIEW_NS:
            offload_leave(o, known)
        elif now_ns - known.on_ns > due_ns and not known.express and offload_is_on(o, known):
            offload_turn_off(o, known, now_ns)
            known.earned = known.need - 1


cdef inline bint offload_earns(const offload_t *o, offload_known_t *known, u64 now_ns) noexcept nogil:
    """A batch has datagrams of the session, which is off; whether it may be on. One that does not stay on though its set does earns it ever
    more slowly."""
    cdef const offload_use_t *u = &o.uses[known.use]
    if known.earned == 0 and known.on_ns:
        if now_ns - known.on_ns > OFFLOAD_SHORT_NS or u.state != OFFLOAD_USED or u.made != known.made:
            known.need = OFFLOAD_EARN
        elif known.need < OFFLOAD_EARN_MOST:
            known.need *= 2
    known.earned += known.earned < known.need
    return known.earned == known.need


cdef inline void offload_stop(offload_t *o, u32 use, u64 now_ns) noexcept nogil:
    """No session of the set is copied any more."""
    if o.uses[use].state == OFFLOAD_USED:
        atomic_store32_release(&o.sets[use].on, 0)
        o.uses[use].state = OFFLOAD_LEAVING
        o.uses[use].left_ns = now_ns


cdef inline bint offload_stop_all(offload_t *o, u64 now_ns) noexcept nogil:
    """Whether there was one."""
    cdef u32 use
    cdef bint found = False
    for use in range(OFFLOAD_SETS):
        found = found or o.uses[use].state == OFFLOAD_USED
        offload_stop(o, use, now_ns)
    return found


cdef inline u32 offload_free(offload_t *o) noexcept nogil:
    """A set that nobody uses; OFFLOAD_NONE: there is none."""
    cdef u32 use
    for use in range(OFFLOAD_SETS):
        if o.uses[use].state == OFFLOAD_FREE:
            return use
    return <u32>OFFLOAD_NONE


cdef inline void offload_wait(offload_t *o, u64 now_ns) noexcept nogil:
    """Until every run of the program that has begun is over, and what it has broadcast has left: the kernel waits for them when a map of
    maps is written (maybe_wait_bpf_programs(), kernel/bpf/syscall.c). Takes some ms."""
    if bpf_map_set(o.rings, &o.number, &o.ring, 0) == 0:
        o.grace_ns = now_ns


cdef inline u64 offload_more(const u64 *now, u64 *known) noexcept nogil:
    """By how much the kernel's counter is ahead of what is known of it; it is known then."""
    cdef u64 value = atomic_load64(now)
    cdef u64 more = value - known[0]
    known[0] = value
    return more


cdef inline const offload_record_t *offload_next(offload_t *o, u64 *position, u64 end, u32 *length) noexcept nogil:
    """The next record before `end` (bytes, as the producer counts), and its length; NULL: there is none yet."""
    cdef const u8 *head
    cdef u32 word
    while position[0] < end:
        head = o.data + (position[0] & o.mask)
        word = atomic_load32_acquire(<const u32 *>head)
        if word & BPF_RINGBUF_BUSY_BIT:
            return NULL
        length[0] = word & ~(BPF_RINGBUF_BUSY_BIT | BPF_RINGBUF_DISCARD_BIT)
        position[0] += (<u64>length[0] + BPF_RINGBUF_HDR_SZ + 7) & ~<u64>7
        if not word & BPF_RINGBUF_DISCARD_BIT:
            return <const offload_record_t *>(head + BPF_RINGBUF_HDR_SZ)
    return NULL
