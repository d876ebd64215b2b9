# cython: language_level=3, cdivision=True, boundscheck=False, wraparound=False
"""Trials: finds the loops that a test for echoes (route/echo.pxd) is too impatient for. Where thousands of datagrams go round, they fill the
receive buffers on their way, and one round takes seconds.

Subjects are payloads that came again and again from one session, at whatever pace up to TRIAL_PACE_NS. When half of the slots hold one, they
are divided by lot into two groups of the same size. The copies of the first group for one receiver are held back; those of the second go on.
If the first group stops to come and the second does not, the groups change places. If then the second stops and the first comes again, the
receiver is an echo. An exporter that repeats payloads by its own clock would have to guess both lots: with TRIAL_LEAST subjects less than one
in a million. As in a test for echoes nothing is lost, and no additional datagram is sent: what is held back is sent when its group is
released.

Invariants: memory is fixed; subjects are looked at only when their mark (echo_mark_t) is hit; one receiver is tried at a time; copies are held
for the time of two rounds, and TRIAL_COPIES at most. Trials in vain make the next one later. Pure state. Called by: worker/trial.pxi. It must
never send.
"""

from libc.string cimport memcmp, memcpy
from base.batch cimport exporter_t
from uapi.net cimport u8, u32, u64

cdef enum:
    TRIAL_SLOTS = 32               # one for each slow mark (ECHO_SLOW_MASK)
    TRIAL_BYTES = 2048             # longer payloads are no subjects
    TRIAL_LEAST = 16               # subjects of one trial
    TRIAL_SEEN = 2                 # intervals of a subject
    TRIAL_COPIES = 4096            # held back at most
    TRIAL_IDLE = 0                 # trial_t.state
    TRIAL_FIRST = 1                # the first group is held back
    TRIAL_SECOND = 2               # the second is, and the first goes on
    TRIAL_NOBODY = 0               # trial_subject_t.group

    TRIAL_PACE_NS = 5000000000     # subjects come within so long in the mean
    TRIAL_SLACK_NS = 50000000      # on top of the times of a round
    TRIAL_LOOK_NS = 10000000       # from one count of the subjects to the next
    TRIAL_REST_NS = 1000000000     # after a trial in vain, at least; each time twice as long, up to
    TRIAL_REST_LEVELS = 9          # so many doublings

ctypedef struct trial_subject_t:
    u64 key                        # echo_key, 0 = none
    u64 since_ns                   # CLOCK_MONOTONIC of the first time
    u64 came_ns                    # of the last time
    u64 gap_ns                     # between the last two
    u32 came                       # intervals so far
    u32 group                      # TRIAL_FIRST, TRIAL_SECOND or TRIAL_NOBODY
    u32 seen                       # times it came while this is watched
    u32 copies                     # held back
    u32 length
    exporter_t exporter
    u8 payload[TRIAL_BYTES]

ctypedef struct trial_t:
    u32 state
    u32 way                        # whose copies are held back
    u32 next                       # of the receivers those are tried first from whose address subjects come, then the others: the next one
    u32 copies                     # held back in all
    u32 size                       # of each group
    u32 level
    u64 round_ns                   # how long a round may take
    u64 phase_ns                   # when the groups last changed places
    u64 rest_ns                    # no trial before
    trial_subject_t subjects[TRIAL_SLOTS]


cdef inline trial_subject_t *trial_came(trial_t *t, u32 slot, u64 key, const u8 *p, u32 n, const exporter_t *whose, u64 now_ns) noexcept nogil:
    """A payload has come again: its subject, or NULL when the slot is another one's that takes part in a trial, or it is too long."""
    cdef trial_subject_t *s = &t.subjects[slot]
    if s.key == key and s.length == n and memcmp(s.payload, p, n) == 0:
        s.gap_ns = now_ns - s.came_ns
        s.came_ns = now_ns
        s.came += 1
        if trial_watches(t, now_ns):
            s.seen += 1
        return s
    if n > TRIAL_BYTES or (t.state != TRIAL_IDLE and s.group != TRIAL_NOBODY):
        return NULL
    s.key = key
    s.since_ns = s.came_ns = now_ns
    s.gap_ns = 0
    s.came = s.seen = s.copies = 0
    s.group = TRIAL_NOBODY
    s.length = n
    s.exporter = whose[0]
    memcpy(s.payload, p, n)
    return s


cdef inline bint trial_watches(const trial_t *t, u64 now_ns) noexcept nogil:
    """Whether what comes now tells the groups apart: what was under way when they changed places has come before."""
    return t.state != TRIAL_IDLE and now_ns - t.phase_ns > t.round_ns


cdef inline bint trial_over(const trial_t *t, u64 now_ns) noexcept nogil:
    """Whether a phase is: the time of one round to settle, and of another one and a half to be watched."""
    return now_ns - t.phase_ns > 5 * t.round_ns // 2


cdef inline u64 trial_pace(const trial_subject_t *s) noexcept nogil:
    """Nanoseconds from one time to the next, of the slower kind."""
    cdef u64 mean = (s.came_ns - s.since_ns) // s.came if s.came else 0
    return s.gap_ns if s.gap_ns > mean else mean


cdef inline bint trial_fits(const trial_subject_t *s, u64 now_ns) noexcept nogil:
    """Whether a payload may take part: it came often enough, and lately."""
    cdef u64 pace = trial_pace(s)
    return s.key != 0 and s.came >= TRIAL_SEEN and pace <= TRIAL_PACE_NS and now_ns - s.came_ns <= 2 * pace + TRIAL_SLACK_NS


cdef inline u32 trial_count(const trial_t *t, u64 now_ns) noexcept nogil:
    """How many may take part."""
    cdef u32 i
    cdef u32 found = 0
    for i in range(<u32>TRIAL_SLOTS):
        found += trial_fits(&t.subjects[i], now_ns)
    return found


cdef inline bint trial_may_begin(trial_t *t, u64 now_ns) noexcept nogil:
    """Counts the subjects once in a while only."""
    if t.state != TRIAL_IDLE or now_ns < t.rest_ns:
        return False
    t.rest_ns = now_ns + TRIAL_LOOK_NS
    return trial_count(t, now_ns) >= TRIAL_LEAST


cdef inline void trial_begin(trial_t *t, u32 way, u64 lot, u64 now_ns) noexcept nogil:
    """Divides the subjects by lot: of each two in a row one gets into each group."""
    cdef trial_subject_t *s
    cdef trial_subject_t *other = NULL
    cdef u64 slowest = 0
    cdef u32 i
    t.size = t.copies = 0
    for i in range(<u32>TRIAL_SLOTS):
        s = &t.subjects[i]
        s.group = TRIAL_NOBODY
        s.seen = s.copies = 0
        if not trial_fits(s, now_ns):
            continue
        if other == NULL:
            other = s
            continue
        s.group = TRIAL_FIRST if lot >> i & 1 else TRIAL_SECOND
        other.group = TRIAL_FIRST + TRIAL_SECOND - s.group
        slowest = trial_pace(s) if trial_pace(s) > slowest else slowest
        slowest = trial_pace(other) if trial_pace(other) > slowest else slowest
        other = NULL
        t.size += 1
    t.way = way
    t.state = TRIAL_FIRST
    t.phase_ns = now_ns
    t.round_ns = 5 * slowest // 4 + TRIAL_SLACK_NS


cdef inline u32 trial_silent(const trial_t *t, u32 group) noexcept nogil:
    """How many of a group have not come while they were watched."""
    cdef u32 i
    cdef u32 found = 0
    for i in range(<u32>TRIAL_SLOTS):
        found += t.subjects[i].group == group and t.subjects[i].seen == 0
    return found


cdef inline u32 trial_held(const trial_t *t) noexcept nogil:
    """How many of the group that is held back have copies that are."""
    cdef u32 i
    cdef u32 found = 0
    for i in range(<u32>TRIAL_SLOTS):
        found += t.subjects[i].copies != 0
    return found


cdef inline bint trial_refuted(const trial_t *t) noexcept nogil:
    """Whether too many come though they are held back: one in eight may have come by another way."""
    return 8 * trial_silent(t, t.state) < 7 * t.size


cdef inline bint trial_agrees(const trial_t *t) noexcept nogil:
    """Whether a phase that is over shows an echo: those held back were silent, and of the others three in four came; copies get lost where
    buffers are full."""
    cdef u32 others = TRIAL_FIRST + TRIAL_SECOND - t.state
    return not trial_refuted(t) and 4 * trial_silent(t, others) <= t.size and 4 * trial_held(t) >= 3 * t.size


cdef inline void trial_change(trial_t *t, u64 now_ns) noexcept nogil:
    """The groups change places. The worker has sent what was held back."""
    cdef u32 i
    t.state = TRIAL_SECOND
    t.phase_ns = now_ns
    for i in range(<u32>TRIAL_SLOTS):
        t.subjects[i].seen = 0


cdef inline void trial_end(trial_t *t, u64 now_ns) noexcept nogil:
    """The trial is over. How long its subjects were held back says nothing of their pace."""
    cdef trial_subject_t *s
    cdef u32 i
    for i in range(<u32>TRIAL_SLOTS):
        s = &t.subjects[i]
        if s.group != TRIAL_NOBODY:
            s.group = TRIAL_NOBODY
            s.since_ns = s.came_ns = now_ns
            s.gap_ns = 0
            s.came = 0
    t.state = TRIAL_IDLE


cdef inline void trial_rest(trial_t *t, u64 now_ns) noexcept nogil:
    """All receivers were tried in vain: the next trials are later, each time."""
    t.next = 0
    t.rest_ns = now_ns + ((TRIAL_REST_NS + t.round_ns) << t.level)
    t.level += t.level < TRIAL_REST_LEVELS
