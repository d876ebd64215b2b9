# needs: uapi: net; base: batch, counters; flow: scan, state; route: echo, pool, session; shape: run; rx: socket; tx: copier, engine, lane,
#        lost, port; worker: offload, work
# What a worker owns: its state, and how it reads a clock.

cdef enum:
    WORKER_EVENTS = 64
    WORKER_ROUNDS = 8                  # batches of one socket in a row before the others get their turn
    WORKER_IDLE_MS = 1000              # heartbeat when nothing comes
    WORKER_UNPOLLED_MS = 1             # the same while some socket has to be looked at
    WORKER_CPU_CLOCK_NS = 10000000     # how often the thread's CPU clock is read
    WORKER_SLICE_NS = 100000           # the shortest time slice that the kernel gives
    WORKER_DELAY_AUTO = 0x7FFFFFFF     # in place of microseconds
    WORKER_AUTO_DELAY_NS = 100000      # max_delay = "auto": the wait, while ...
    WORKER_AUTO_MORE = 2               # ... so many datagrams are likely to come meanwhile, and ...
    WORKER_AUTO_ENOUGH = 64            # ... the last wake-up did not find so many
    WORKER_AUTO_FAR_NS = 1000000       # datagrams further apart than this count as so far apart
    WORKER_AUTO_OF = 8                 # the mean is taken over about so many wake-ups
    WORKER_GATHER_IDLE = 8             # times max_delay without a datagram: the next is not made to wait
    WORKER_RING_DELAY_NS = 250000      # wait for more datagrams of a ring before it is read, unless it was idle or has a backlog
    WORKER_LEAVE_NS = 1000000000       # longest drain of a socket that leaves the plan
    WORKER_STEP_NS = 100000000         # the wall clock against the monotonic one: more than this at once is a step ...
    TAP_LIMIT = 4                      # taps open at a time
    WORKER_SLEW = 1000                 # ... unless that much in so many as went by: adjtimex(2) slews by 1/2000 at most

ctypedef struct due_t:                 # templates or options data that a receiver's refresh asks for
    u32 way
    u32 number                         # domain
    u32 what

ctypedef struct wall_t:                # the wall clock against CLOCK_MONOTONIC, as last compared
    u64 ahead_ns
    u64 compared_ns                    # CLOCK_MONOTONIC
    u64 since_ns                       # CLOCK_REALTIME right behind its last step: older stamps say nothing

ctypedef struct tap_t:
    # Set while it is closed.
    int fd                             # of the worker's end of its door
    bint drops                         # only what is not forwarded
    u32 receiver                       # id of the receiver's counters, 0 = all
    u32 listener                       # slot, TAP_ANY = all
    u8 family                          # of exporters, 0 = all
    u64 address[2]                     # as in exporter_t, masked
    u64 mask[2]
    u64 interval_ns                    # 1 s / rate
    u8 *message                        # DOOR_MESSAGE bytes
    # The worker's.
    u64 due_ns                         # CLOCK_MONOTONIC from which one more may be shown
    u32 used
    u32 records
    u64 shown                          # these two: read by others
    u64 unshown

ctypedef struct taps_t:
    u32 asked                          # bits of the taps that are to be open, and a number of the change; the control plane writes it ...
    u32 served                         # ... and the worker this, when it uses those and no others
    u32 open                           # bits of those, for the worker alone
    u64 now_ns                         # CLOCK_MONOTONIC of the batch or pass
    u32 number                         # of the batch's first datagram
    const u16 *origin                  # of a batch of our own making: the datagrams that it was made of; NULL = none
    u8 choosing                        # bits of the taps that chose one
    u8 chosen[BATCH_LIMIT]             # bits of the taps that show a datagram of the batch with all its copies
    u8 verdict[BATCH_LIMIT]            # of the copies of a selection
    tx_lost_t lost
    tap_t tap[TAP_LIMIT]

ctypedef struct worker_t

ctypedef struct worker_t:
    int epoll
    int wake
    work_t *work                       # running plan
    work_t *before                     # the one before it, while its routes say which exporters are new to a receiver; else NULL
    u32 unpolled                       # sockets of `work` that epoll did not take; read by other threads
    void *next                         # published, not yet adopted
    u64 generation                     # of `work`; read by other threads
    u64 stop_deadline_ns               # CLOCK_MONOTONIC; 0 = run on
    u64 cpu_read_ns
    u64 max_delay_ns                   # wait for more datagrams before a receive, 0 = none
    bint auto_delay                    # wait only while that is worth it
    u32 taken                          # datagrams since the last wake-up
    long long apart_ns                 # mean time from one datagram to the next
    u64 woken_ns                       # CLOCK_MONOTONIC of the last receive
    u64 ring_ns                        # the same, of the last look into rings that found something
    u32 again                          # the most urgent of its rings' (rx_ring_t.again)
    worker_counters_t *counters
    rx_arena_t arena
    batch_t *batch
    tx_ring_t ring
    session_cache_t sessions
    pool_cache_t pools                 # entries NULL = no plan had pools yet
    bint news                          # the datagram at hand taught templates that other members of its pools have to know ...
    u32 news_since                     # ... those after this serial of the flow
    bint owing                         # members of its pools are owed templates of its domain
    ports_t ports
    tx_port_t packet                   # the packet socket
    copier_t copier                    # copies of frames are made in the kernel
    offload_t offload                  # copies are made where datagrams come in
    lanes_t lanes
    bint moved                         # the domain of the datagram at hand has another alias than before
    u32 *alias                         # of each datagram's domain, 0 = none; where some receiver wants it
    runs_t *runs_grouped               # of the whole batch, by exporter session
    runs_t *runs_plain                 # of the whole batch as one group
    runs_t *runs_own                   # of one receiver's own selection
    bint grouped_known
    bint plain_known
    flow_t *flow                       # the flow stage's memory, NULL = none
    flow_seen_t *seen                  # what it says of each datagram of the batch
    bint seeing                        # whether it saw this batch
    u64 flow_look_ns
    bint resting                       # perhaps some intakes are to rest, or to be read again: the next pass looks
    bint replaying                     # a replay may go on in the next pass: no long wait
    batch_t *rewritten                 # copies of our own: renumbered, replayed
    u8 *own_bytes                      # RX_SLOT each
    u16 *identity                      # 0, 1, 2 ...: the selection of all of a batch
    wall_t wall
    due_t *due
    echo_t echo
    batch_t *returned                  # what a test for echoes held back
    taps_t taps
    u32 due_count
    epoll_event events[WORKER_EVENTS]


cdef inline u64 worker_clock(int clock) noexcept nogil:
    cdef timespec now
    clock_gettime(clock, &now)
    return <u64>now.tv_sec * 1000000000 + <u64>now.tv_nsec


cdef inline bint worker_stepped(wall_t *wall, u64 real_ns, u64 monotonic_ns) noexcept nogil:
    """Whether the wall clock was set since the last call. The first call only notes where it stands."""
    cdef u64 ahead = real_ns - monotonic_ns
    cdef u64 moved = ahead - wall.ahead_ns
    cdef u64 allowed = WORKER_STEP_NS + (monotonic_ns - wall.compared_ns) // WORKER_SLEW
    cdef bint known = wall.compared_ns != 0
    wall.ahead_ns = ahead
    wall.compared_ns = monotonic_ns
    return known and moved + allowed > 2 * allowed
