# cython: language_level=3
"""The counters, and which event each one counts: exactly one counter for each datagram and each copy.

Conservation laws, true whenever no batch is in flight (HOUSE.md, "Life of a datagram"):
    listener:  datagrams = truncated + unmatched + denied + matched
    receiver:  offered   = skipped + sent + sum(failed)
Each struct has one writer, the worker. The order of the fields is the order of the tuples that handles/snapshot.pxi gives to Python.
"""

from base.atomics cimport atomics_add
from uapi.net cimport u32, u64

cdef enum:
    # Why a copy was not sent. Order = REASONS of handles/snapshot.pxi.
    REASON_NO_ROUTE = 0
    REASON_NO_NEIGHBOR = 1
    REASON_MESSAGE_TOO_LONG = 2
    REASON_NO_BUFFER_SPACE = 3
    REASON_REFUSED = 4
    REASON_PERMISSION = 5
    REASON_OTHER = 6
    REASON_LOOP = 7            # the receiver sends its copies back to us, or is us
    REASON_COUNT = 8

    RX_FIELD_COUNT = 13
    TX_FIELD_COUNT = 8 + REASON_COUNT
    WORKER_FIELD_COUNT = 9
    BATCH_BUCKETS = 11         # <= 1, 2, 4, ... 512, +Inf
    LATENCY_BUCKETS = 17       # 10 us .. 1 s in 1-2.5-5 steps, +Inf

ctypedef struct rx_counters_t:
    u64 datagrams              # read from the socket, or copied by the kernel before they came there
    u64 bytes                  # UDP payload bytes of them
    u64 truncated              # longer than max_datagram: counted and dropped
    u64 truncated_bytes        # UDP payload bytes of those
    u64 unmatched              # no rule matched
    u64 denied                 # a rule with stop and no receiver matched
    u64 matched                # offered to at least one receiver
    u64 errors_again           # receive calls that found nothing
    u64 errors_intr
    u64 errors_nomem
    u64 errors_other
    u64 offloaded              # of the matched: copied by the kernel where they came in, not read from a socket
    u64 unseen                 # of those: not seen by the flow stage, the ring buffer being full
    u64 batches[BATCH_BUCKETS]

ctypedef struct tx_counters_t:
    u64 offered                # copies due by the rules
    u64 skipped            # of these, left out by freq
    u64 sent                   # accepted by the kernel and not reported back as undelivered
    u64 sent_bytes             # UDP payload bytes of those
    u64 calls                  # send calls
    u64 retries                # send calls repeated after EAGAIN, ENOBUFS or a pending error
    u64 failed[REASON_COUNT]
    u64 replays                # replays of all templates to this receiver that were completed
    u64 shared_port            # of the copies that were to leave by their session's own port: those without one
    u32 countdown              # copies to leave out before the next one is sent (freq)
    u32 id                     # of the receiver, for its renumbering states; unique in the process

ctypedef struct worker_counters_t:
    u64 cpu_ns                 # CLOCK_THREAD_CPUTIME_ID
    u64 busy_ns                # time not spent waiting for datagrams
    u64 wakeups                # epoll_wait returned with work
    u64 stalls                 # waits for a full send queue
    u64 heartbeat_ns           # CLOCK_MONOTONIC of the last loop pass
    u64 sessions               # exporter sessions now in the cache
    u64 session_misses
    u64 session_evictions
    u64 session_sockets        # open for sessions that have a source port of their own
    u64 latency[LATENCY_BUCKETS]
    u64 latency_sum_ns


cdef inline u32 counters_batch_bucket(u32 n) noexcept nogil:
    """Bucket of a receive batch of n >= 1 datagrams: the smallest power of two >= n, at most +Inf."""
    cdef u32 bucket = 0
    while (<u32>1 << bucket) < n and bucket < BATCH_BUCKETS - 1:
        bucket += 1
    return bucket


cdef inline u32 counters_latency_bucket(u64 ns) noexcept nogil:
    """Bucket of a latency: bounds 10, 25, 50 us, 100, 250, 500 us ... 1 s, then +Inf."""
    cdef u64 decade = 10000
    cdef u32 bucket = 0
    while bucket < LATENCY_BUCKETS - 2:
        if ns <= decade:
            return bucket
        if 2 * ns <= 5 * decade:
            return bucket + 1
        if ns <= 5 * decade:
            return bucket + 2
        decade *= 10
        bucket += 3
    return bucket if ns <= decade else LATENCY_BUCKETS - 1


cdef inline void counters_latency(worker_counters_t *c, u64 ns, u64 n) noexcept nogil:
    """Records n datagrams that took ns from their arrival in the kernel."""
    atomics_add(&c.latency[counters_latency_bucket(ns)], n)
    atomics_add(&c.latency_sum_ns, ns * n)
