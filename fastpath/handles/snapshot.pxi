# needs: uapi: net; base: atomics, batch, counters; route: plan; tx: engine; worker: state
# Counters for Python: copied with relaxed loads, without a lock that a worker takes. base/counters.pxd defines order and names of the fields.

cdef extern from *:
    const unsigned long CYTHON_HEX_VERSION

CYTHON_VERSION = ".".join([str((CYTHON_HEX_VERSION >> shift) & 0xFF) for shift in (24, 16, 8)])
REASONS = ("no_route", "no_neighbor", "message_too_long", "no_buffer_space", "refused", "permission", "other", "loop")
RX_FIELDS = ("datagrams", "bytes", "truncated", "truncated_bytes", "unmatched", "denied", "matched",
             "errors_again", "errors_intr", "errors_nomem", "errors_other", "offloaded", "unseen")
TX_FIELDS = ("offered", "skipped", "sent", "sent_bytes", "calls", "retries", *[f"failed_{reason}" for reason in REASONS], "replays",
             "shared_port")
WORKER_FIELDS = ("cpu_ns", "busy_ns", "wakeups", "stalls", "heartbeat_ns", "sessions", "session_misses", "session_evictions",
                 "session_sockets")
BATCH_BOUNDS = tuple([1 << i for i in range(BATCH_BUCKETS - 1)])
LATENCY_BOUNDS_NS = (*[mantissa * 10 ** e for e in range(3, 8) for mantissa in (10, 25, 50)], 1_000_000_000)
ENGINE_UDP = TX_ENGINE_UDP
ENGINE_RAW = TX_ENGINE_RAW
ENGINE_TRANSPARENT = TX_ENGINE_TRANSPARENT
ENGINE_PACKET = TX_ENGINE_PACKET
ENGINE_DOOR = TX_ENGINE_DOOR
POOL_EXPORTER_HASH = 0
POOL_ROUND_ROBIN = PLAN_ROUND_ROBIN
GAVE_UP_SEGMENT = TX_GAVE_UP_SEGMENT
GAVE_UP_TRANSPARENT = TX_GAVE_UP_TRANSPARENT
GAVE_UP_PACKET = TX_GAVE_UP_PACKET
GAVE_UP_COPIER = TX_GAVE_UP_COPIER
BATCH_MAX = BATCH_LIMIT
DELAY_AUTO = WORKER_DELAY_AUTO


cdef tuple snapshot_u64(const u64 *values, size_t count):
    cdef size_t i
    return tuple([atomic_load64(&values[i]) for i in range(count)])
