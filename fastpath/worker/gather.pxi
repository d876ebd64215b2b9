# needs: uapi: net; worker: state
# How long a worker that was woken waits for more datagrams before it receives: larger batches cost less, and every microsecond is latency.
# Called by worker/loop.pxi once per wake-up.


cdef inline u64 worker_gather(u64 *last_ns, u64 delay_ns, u64 now_ns) noexcept nogil:
    """Waits for more datagrams to come, as interrupt coalescing does, unless the last came long ago (last_ns, brought up to date); returns the
    time after it."""
    cdef timespec nap
    cdef bint busy = now_ns - last_ns[0] < WORKER_GATHER_IDLE * delay_ns
    if busy:
        nap.tv_sec = 0
        nap.tv_nsec = <long>delay_ns
        nanosleep(&nap, NULL)
        now_ns = worker_clock(CLOCK_MONOTONIC)
    last_ns[0] = now_ns
    return now_ns


cdef inline u64 worker_gather_auto(worker_t *w, u64 now_ns) noexcept nogil:
    """Waits for more datagrams when they come so close together that several will have come (a wake-up costs more than the copies of a
    datagram), and not when each wake-up finds many anyway; returns the time after it."""
    cdef u64 apart = (now_ns - w.woken_ns) // (w.taken if w.taken else 1)
    cdef bint few = w.taken < WORKER_AUTO_ENOUGH
    cdef timespec nap
    if apart > WORKER_AUTO_FAR_NS:
        apart = WORKER_AUTO_FAR_NS
    w.apart_ns += (<long long>apart - w.apart_ns) // WORKER_AUTO_OF
    w.taken = 0
    w.woken_ns = now_ns
    if few and w.apart_ns * WORKER_AUTO_MORE <= WORKER_AUTO_DELAY_NS:
        nap.tv_sec = 0
        nap.tv_nsec = WORKER_AUTO_DELAY_NS
        nanosleep(&nap, NULL)
        return worker_clock(CLOCK_MONOTONIC)
    return now_ns
