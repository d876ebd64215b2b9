# cython: language_level=3, cdivision=True, boundscheck=False, wraparound=False
"""Echoes: finds out at run time whether copies come back to this host through other hosts (two relays that send to each other, rings of relays,
NAT).

A payload is suspected if it arrives many times from one session, faster than exporters repeat (ECHO_RETURNS times at a mean interval of
ECHO_FAST_NS), or if it arrives again from the address of a receiver. Exporters also repeat payloads, and captures are replayed. The content of
the datagrams does not show the difference, and a relay in between can change ports and TTL. So a suspicion is tested, only by delay: nothing is
lost, and no additional datagram is sent. The worker holds back the copies of this payload of this session until it has not arrived for a random
time; then it sends the copies for one receiver and checks whether the payload arrives again at once. If this happens ECHO_CYCLES times in a row
for a receiver, always after the copies were sent and never before, the receiver is an echo, and copies for it stop (tx_t.looped). An exporter
that repeats payloads by its own clock would have to match all random times: one in six each, less than one in a million in all.

Under load a loop is slow: its datagrams wait in full receive buffers, and one round takes seconds. So some payloads that come from the address
of a receiver are remembered for longer, and one that comes again within ECHO_SLOWEST_NS, ECHO_SLOW_LOOKED times, is tested slowly: only its
copies from that address to that address are held back. If it still arrives after the longest time that a copy on its way can take, it has a
clock of its own, and the test ends. A slow test gives way to a fast one.

Invariants: memory is fixed; a datagram costs one hash of four words and one comparison; one payload is tested at a time; copies are held only
as long as an echo can take, and with many receivers to test at most ECHO_ASKING_NS longer. Payloads that change on the way (renumbered for
receivers that sample or refresh) are not recognized. Pure state. Called by: worker/ (choose, echo). It must never send.
"""

from libc.string cimport memcmp, memcpy
from base.batch cimport exporter_t
from base.hash cimport hash_address
from uapi.net cimport u8, u16, u32, u64

cdef enum:
    ECHO_MARKS = 256
    ECHO_LOOKED = 8                # times a payload came again: it is looked at, and
    ECHO_RETURNS = 48              # suspected, unless a receiver's address sends it: then at once
    ECHO_SLOW_LOOKED = 3           # times a payload came again slowly from a receiver's address
    ECHO_CYCLES = 8                # answers
    ECHO_MISSED = 2                # answers that one question without an answer takes back: copies get lost in a storm
    ECHO_SOURCES = 64              # exporters of one payload under test
    ECHO_HELD = 512                # (exporter, way) of it
    ECHO_COPIES = 4096             # of it held back at most
    ECHO_INNOCENTS = 64
    ECHO_STORM = 128               # times it came during one hold, from a receiver's address
    ECHO_IDLE = 0                  # echo_t.state
    ECHO_HOLD = 1                  # nothing leaves, until it has not come for a while
    ECHO_ASK = 2                   # copies for one receiver were let go

    ECHO_SHORT_NS = 100000000      # a mark gives way to another payload after so long
    ECHO_LONG_NS = 1000000000      # every fourth mark
    ECHO_LIFE_NS = 16000000000     # of those a mark of a receiver's address at most, as long as it comes again within ECHO_SLOWEST_NS
    ECHO_FAST_NS = 2000000         # comes again within so long in the mean: suspected
    ECHO_SLOW_NS = 50000000        # within so long from a receiver's address
    ECHO_SLOWEST_NS = 4000000000   # within so long from there: suspected, and tested slowly
    ECHO_MEMORY_NS = 60000000000   # what a slow test was answered counts for so long
    ECHO_WAIT_NS = 2000000         # for an answer, at least
    ECHO_REST_NS = 30000000        # after a test in vain, at least; each time twice as long, up to
    ECHO_REST_LEVELS = 11          # so many doublings: about a minute
    ECHO_REST_SLOW = 6             # doublings after a slow test, at least: about 3 seconds
    ECHO_ASKING_NS = 2000000000    # questions of one test without an answer: the next test goes on with the receivers behind
    ECHO_LATE_NS = 20000000        # an answer so late makes the next test wait longer; what a slow one may vary, and a quarter

ctypedef struct echo_mark_t:
    u64 key                        # hash of payload and session, 0 = never used
    u64 since_ns
    u64 batch_ns                   # of the batch in which it came last
    u32 returns
    bint slow                      # from the address of a receiver: it may come again slowly

ctypedef struct echo_innocent_t:   # tested in vain
    u64 key
    u64 until_ns
    u64 asked_ns                   # when a receiver was asked last, 0 = none was
    u32 level

ctypedef struct echo_source_t:
    exporter_t exporter
    u32 listener                   # by which it came last
    u32 came                       # during this hold

ctypedef struct echo_held_t:
    u32 way
    u32 source
    u32 copies

ctypedef struct echo_t:
    u64 now_ns                     # CLOCK_MONOTONIC of this batch
    echo_mark_t marks[ECHO_MARKS]
    echo_innocent_t innocents[ECHO_INNOCENTS]
    u64 patience_ns                # what an answer took that came too late, twice
    u64 lot                        # state of the lots, xorshift
    # the test
    u32 state
    u64 key
    u32 length
    u8 *payload                    # its bytes
    echo_source_t sources[ECHO_SOURCES]
    u32 source_count
    echo_held_t held[ECHO_HELD]
    u32 held_count
    u32 copies                     # held in all
    bint full                      # there is no room for more, or a faster loop is suspected: the test ends
    bint slow                      # only what comes from the address of a receiver is held back, and only from there
    u64 wait_ns                    # how long an answer may take
    u64 hush_ns                    # how long it must not have come before the next question
    u64 came_ns                    # when it came last
    u64 phase_ns                   # when the phase began
    u32 cycle
    u32 chosen                     # way that has answered so far, 0xFFFFFFFF = none yet
    u32 asked                      # way that is asked now
    u32 next                       # the lowest way to be asked next
    u64 asking_ns                  # when the first was asked, 0 = none was
    bint answered
    u32 before                     # answers in earlier tests, of other payloads
    u32 before_way                 # by this way
    u64 before_ns                  # when the last of those tests ended


cdef inline u64 echo_word(const u8 *p) noexcept nogil:
    cdef u64 value
    memcpy(&value, p, 8)
    return value


cdef inline u64 echo_key(const u8 *p, u32 n, const exporter_t *exporter) noexcept nogil:
    """Hash of a session, and of length and head of a payload (of a short one the end, too); never 0. A hint only: one cache line,
    where no more is needed to tell datagrams of flows apart (their sequence numbers)."""
    cdef u64 h = (<u64>n << 48 ^ <u64>exporter.port_be << 32 ^ hash_address(exporter.address)) * <u64>0x9E3779B97F4A7C15
    cdef u64 tail = 0
    if n >= 24:
        h ^= echo_word(p) * <u64>0xC2B2AE3D27D4EB4F
        h += echo_word(p + 8) * <u64>0x165667B19E3779F9
        h ^= echo_word(p + 16) * <u64>0xD6E8FEB86659FD93
        h += echo_word(p + (48 if n >= 256 else n - 8)) * <u64>0xE7037ED1A0B428DB
    else:
        if n >= 8:
            h ^= echo_word(p) * <u64>0xC2B2AE3D27D4EB4F
        if n >= 16:
            h += echo_word(p + 8) * <u64>0x165667B19E3779F9
        memcpy(&tail, p + (n & 24), n & 7)
        h ^= tail * <u64>0xE7037ED1A0B428DB
    h ^= h >> 32
    h *= <u64>0xD6E8FEB86659FD93
    h ^= h >> 29
    return h | 1


cdef inline echo_mark_t *echo_mark(echo_t *e, u64 key) noexcept nogil:
    return &e.marks[(key >> 8) & (ECHO_MARKS - 1)]


cdef inline bint echo_returns(echo_t *e, const u8 *p, u32 n, const exporter_t *exporter) noexcept nogil:
    """Whether this payload has come so often that it is to be looked at, or may come again slowly; notes it. Once a datagram."""
    cdef u64 key = echo_key(p, n, exporter)
    cdef echo_mark_t *mark = echo_mark(e, key)
    cdef u64 age
    if mark.key != key:
        age = e.now_ns - mark.since_ns
        if e.now_ns < mark.since_ns or age <= <u64>(ECHO_SHORT_NS if key & 0x300 else ECHO_LONG_NS):
            return False
        if mark.slow and age <= <u64>ECHO_LIFE_NS and e.now_ns - mark.batch_ns <= <u64>ECHO_SLOWEST_NS:
            return False
        mark.key = key
        mark.since_ns = mark.batch_ns = e.now_ns
        mark.returns = 0
        mark.slow = False
        return not key & 0x300
    if mark.batch_ns == e.now_ns and mark.returns < ECHO_RETURNS:
        return False               # none of a batch is an echo of another one in it
    mark.batch_ns = e.now_ns
    mark.returns += 1
    return mark.returns == ECHO_LOOKED or mark.returns >= ECHO_RETURNS or (mark.slow and mark.returns >= ECHO_SLOW_LOOKED)


cdef inline void echo_lot(echo_t *e) noexcept nogil:
    """Draws how long the next hush is: 3 to 9 times as long as an answer may take, in a slow test 1 to 5 times: a sender that only guesses
    the moments would be right once in six and in four times."""
    e.lot ^= e.lot << 13
    e.lot ^= e.lot >> 7
    e.lot ^= e.lot << 17
    e.hush_ns = e.wait_ns + (e.lot >> 11) % (4 * e.wait_ns) if e.slow else 3 * e.wait_ns + (e.lot >> 11) % (6 * e.wait_ns)


cdef inline echo_innocent_t *echo_innocent(echo_t *e, u64 key) noexcept nogil:
    return &e.innocents[(key >> 20) & (ECHO_INNOCENTS - 1)]


cdef inline bint echo_rests(echo_t *e, u64 key) noexcept nogil:
    """Whether the payload was tested lately in vain. The answer that the test did not wait for ends the rest: it says how long to wait."""
    cdef echo_innocent_t *innocent = echo_innocent(e, key)
    cdef u64 late
    if innocent.key != key or e.now_ns >= innocent.until_ns:
        return False
    late = e.now_ns - innocent.asked_ns
    if innocent.asked_ns and late < ECHO_LATE_NS:
        innocent.asked_ns = 0
        if 2 * late > e.patience_ns:
            e.patience_ns = 2 * late
            return False
    innocent.asked_ns = 0
    return True


cdef inline bint echo_hurries(echo_t *e, const u8 *p, u32 n, const exporter_t *exporter) noexcept nogil:
    """Whether what is to be looked at came so fast that a test would begin with the next of it."""
    cdef u64 key = echo_key(p, n, exporter)
    cdef echo_mark_t *mark = echo_mark(e, key)
    if mark.returns < ECHO_RETURNS:
        return False
    if (e.now_ns - mark.since_ns) // mark.returns <= ECHO_FAST_NS and not echo_rests(e, key):
        return True
    mark.since_ns = e.now_ns
    mark.returns = 0
    return False


cdef inline bint echo_suspects(echo_t *e, const u8 *p, u32 n, const exporter_t *exporter, bint receiver) noexcept nogil:
    """Whether a test of this payload, which is looked at, begins now. receiver: it comes from the address of a receiver."""
    cdef u64 key = echo_key(p, n, exporter)
    cdef echo_mark_t *mark = echo_mark(e, key)
    cdef u32 looked = ECHO_LOOKED if receiver else ECHO_RETURNS
    cdef u64 most = ECHO_SLOW_NS if receiver else ECHO_FAST_NS
    cdef u64 pace
    cdef bint slow
    if mark.returns == 0:          # it is new
        mark.slow = receiver
        return False
    pace = (e.now_ns - mark.since_ns) // mark.returns
    slow = receiver and mark.slow and <u64>ECHO_SLOW_NS < pace <= <u64>ECHO_SLOWEST_NS
    if not slow and mark.returns < looked and pace <= most:
        return False               # not yet
    if e.state != ECHO_IDLE and e.slow and not slow and pace <= most and not echo_rests(e, key):
        e.full = True
        mark.returns -= 1          # its next return begins the test
        return False
    mark.since_ns = e.now_ns
    mark.returns = 0
    if e.state != ECHO_IDLE or (not slow and pace > most) or echo_rests(e, key):
        return False
    e.slow = slow
    mark.returns = ECHO_RETURNS    # from now on every one of it is looked at
    mark.since_ns = e.now_ns + (<u64>1 << 60)
    e.state = ECHO_HOLD
    e.key = key
    e.length = n
    memcpy(e.payload, p, n)
    e.source_count = e.held_count = e.copies = e.cycle = 0
    e.full = e.answered = False
    e.chosen = e.asked = 0xFFFFFFFFU
    e.wait_ns = 2 * pace if 2 * pace > ECHO_WAIT_NS else ECHO_WAIT_NS
    e.wait_ns = e.patience_ns if e.patience_ns > e.wait_ns else e.wait_ns
    e.wait_ns = pace * 5 // 4 + ECHO_LATE_NS if slow else e.wait_ns
    e.phase_ns = e.came_ns = e.now_ns
    e.asking_ns = 0
    echo_lot(e)
    return True


cdef inline bint echo_is(const echo_t *e, const u8 *p, u32 n) noexcept nogil:
    """Whether this is the payload under test."""
    return e.state != ECHO_IDLE and n == e.length and memcmp(e.payload, p, n) == 0


cdef inline u32 echo_source(echo_t *e, const exporter_t *exporter) noexcept nogil:
    """Number of the exporter among those of the payload under test; ECHO_SOURCES = there is no room."""
    cdef u32 i
    cdef exporter_t *known
    for i in range(e.source_count):
        known = &e.sources[i].exporter
        if known.port_be == exporter.port_be and memcmp(known.address, exporter.address, 16) == 0:
            return i
    if e.source_count == ECHO_SOURCES:
        return ECHO_SOURCES
    e.sources[e.source_count].exporter = exporter[0]
    e.sources[e.source_count].came = 0
    e.source_count += 1
    return e.source_count - 1


cdef inline bint echo_keep(echo_t *e, u32 source, u32 way) noexcept nogil:
    """Notes a copy that is held back; False: there is no room, it is to leave."""
    cdef u32 i
    if e.full or e.copies >= ECHO_COPIES:
        e.full = True                  # for the rest of the batch nothing is looked through
        return False
    for i in range(e.held_count):
        if e.held[i].way == way and e.held[i].source == source:
            break
    else:
        i = e.held_count
        if i == ECHO_HELD:
            e.full = True
            return False
        e.held_count += 1
        e.held[i].way = way
        e.held[i].source = source
        e.held[i].copies = 0
    e.held[i].copies += 1
    e.copies += 1
    return True


cdef inline u32 echo_next_way(const echo_t *e) noexcept nogil:
    """The lowest way from e.next on that copies are held back for; 0xFFFFFFFF = none."""
    cdef u32 i
    cdef u32 found = 0xFFFFFFFFU
    for i in range(e.held_count):
        if e.held[i].copies and e.next <= e.held[i].way < found:
            found = e.held[i].way
    return found


cdef inline void echo_miss(echo_t *e, u64 now_ns) noexcept nogil:
    """The way asked did not answer."""
    if e.chosen != 0xFFFFFFFFU:        # what it had answered counts for the next test
        e.before_way = e.chosen
        e.before = e.cycle
        e.before_ns = now_ns
    if e.asked == e.before_way:
        e.before = e.before - ECHO_MISSED if e.before > ECHO_MISSED else 0


cdef inline bint echo_answer(echo_t *e, u64 now_ns) noexcept nogil:
    """The way asked did answer; whether that proves it an echo."""
    cdef u64 life = <u64>ECHO_MEMORY_NS if e.slow else <u64>ECHO_LONG_NS
    if e.chosen == 0xFFFFFFFFU and e.asked == e.before_way and now_ns - e.before_ns < life:
        e.cycle = e.before
    e.chosen = e.asked
    e.cycle += 1
    return e.cycle >= ECHO_CYCLES


cdef inline void echo_came(echo_t *e, u32 source) noexcept nogil:
    """The payload under test has come."""
    e.came_ns = e.now_ns
    e.sources[source].came += 1
    if e.state == ECHO_ASK:
        e.answered = True


cdef inline void echo_hold(echo_t *e, u64 now_ns) noexcept nogil:
    """Begins the hold before the next question."""
    cdef u32 i
    e.state = ECHO_HOLD
    e.answered = False
    e.phase_ns = now_ns
    for i in range(e.source_count):
        e.sources[i].came = 0
    echo_lot(e)


cdef inline void echo_end(echo_t *e, u64 now_ns, bint in_vain) noexcept nogil:
    """The test is over. In vain: the payload is left alone for a while, longer each time."""
    cdef echo_mark_t *mark = echo_mark(e, e.key)
    cdef echo_innocent_t *innocent = echo_innocent(e, e.key)
    cdef bint again = innocent.key == e.key and now_ns - innocent.until_ns < (8 * e.wait_ns if e.slow else <u64>ECHO_LONG_NS)
    cdef u32 least = ECHO_REST_SLOW if e.slow else 0
    mark.since_ns = now_ns
    mark.returns = 0
    if in_vain:
        innocent.level = innocent.level + 1 if again and innocent.level < ECHO_REST_LEVELS else (innocent.level if again else 0)
        innocent.level = innocent.level if innocent.level > least else least
        innocent.key = e.key
        innocent.until_ns = now_ns + (((<u64>ECHO_REST_NS) + (e.lot >> 11) % ECHO_REST_NS) << innocent.level)
        innocent.asked_ns = e.phase_ns if e.state == ECHO_ASK else 0
        mark.returns = ECHO_RETURNS - 1 if innocent.asked_ns else 0    # a late answer is looked at
    e.state = ECHO_IDLE
