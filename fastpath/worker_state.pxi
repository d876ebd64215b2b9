# What a worker owns: its state, and how it reads a clock.

cdef enum:
    WORKER_EVENTS = 64
    WORKER_ROUNDS = 8                  # batches of one socket in a row before the others get their turn
    WORKER_IDLE_MS = 1000              # heartbeat when nothing comes
    WORKER_CPU_CLOCK_NS = 10000000     # how often the thread's CPU clock is read
    WORKER_SLICE_NS = 100000           # the shortest time slice that the kernel gives
    WORKER_GATHER_IDLE = 8             # times max_delay without a datagram: the next is not made to wait
    WORKER_RING_DELAY_NS = 250000      # wait for more datagrams of a ring before it is read, unless it was idle or has a backlog
    WORKER_LEAVE_NS = 1000000000       # longest drain of a socket that leaves the plan

ctypedef struct due_t:                 # templates or options data that a receiver's refresh asks for
    u32 way
    u32 number                         # domain
    u32 what

ctypedef struct worker_t:
    int epoll
    int wake
    work_t *work                       # running plan
    work_t *before                     # the one before it, while its routes say which exporters are new to a receiver; else NULL
    void *next                         # published, not yet adopted
    u64 generation                     # of `work`; read by other threads
    u64 stop_deadline_ns               # CLOCK_MONOTONIC; 0 = run on
    u64 cpu_read_ns
    u64 max_delay_ns                   # wait for more datagrams before a receive, 0 = none
    u64 woken_ns                       # CLOCK_MONOTONIC of the last receive
    u64 ring_ns                        # the same, of the last look into rings that found something
    u32 again                          # the most urgent of its rings' (rx_ring_t.again)
    void *trace                        # borrowed reference to the Worker when tracing, NULL = off
    worker_counters_t *counters
    rx_arena_t arena
    batch_t *batch
    tx_ring_t ring
    session_cache_t sessions
    pool_cache_t pools                 # entries NULL = no plan had pools yet
    bint news                          # the datagram at hand taught templates that other members of its pools have to know
    u32 announcements                  # of these, told in this batch
    ports_t ports
    tx_t packet                        # the packet socket; only `send` and `fd` mean anything
    runs_t *runs_grouped               # of the whole batch, by exporter session
    runs_t *runs_plain                 # of the whole batch as one group
    runs_t *runs_own                   # of one receiver's own selection
    bint grouped_known
    bint plain_known
    flow_t *flow                       # the flow stage's memory, NULL = none
    flow_seen_t *seen                  # what it says of each datagram of the batch
    bint seeing                        # whether it saw this batch
    u64 flow_look_ns
    bint replaying                     # a replay may go on in the next pass: no long wait
    batch_t *rewritten                 # copies of our own: renumbered, replayed
    u8 *own_bytes                      # RX_SLOT each
    u16 *identity                      # 0, 1, 2 ...: the selection of all of a batch
    due_t *due
    u32 due_count
    epoll_event events[WORKER_EVENTS]


cdef inline u64 worker_clock(int clock) noexcept nogil:
    cdef timespec now
    clock_gettime(clock, &now)
    return <u64>now.tv_sec * 1000000000 + <u64>now.tv_nsec
