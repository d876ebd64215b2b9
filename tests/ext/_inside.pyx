# cython: language_level=3, cdivision=True, boundscheck=False, wraparound=False, initializedcheck=False
"""samplicator._inside: the whole datapath once more, with doors that production does not have. For tests only; never shipped.

It includes _fastpath.pyx itself, so that what is tested is the very source, and its Tx, Plan, Worker and counters are classes of their own.
The doors: pure functions on bytes, a worker's session cache and ring, and a scripted engine: `port.send` replaced by a player of a list of
positive counts and -errno values that records which messages it took. Called by tests/unit. Must never hold logic that a test relies on to be
right about: it hands in, it hands out.
"""

include "_fastpath.pyx"

from base.counters cimport counters_batch_bucket, counters_latency_bucket
from tx.engine cimport TX_FEATURES

SESSIONS_WAYS = SESSION_WAYS
RING = TX_RING
CLEAN = TX_CLEAN_FLUSHES
UNMATCHED, DENIED, FIRST = 0, PLAN_ROUTE_DENIED, PLAN_ROUTE_FIRST


def checksum_sum(bytes data not None, size_t offset):
    """wire_sum() of the data laid at an address of this offset from a cache line, in memory that ends with the last byte."""
    cdef const u8 *octets = data
    cdef void *p = NULL
    if posix_memalign(&p, 64, offset + len(data) or 1):
        raise MemoryError
    memcpy(<u8 *>p + offset, octets, len(data))
    value = wire_sum(<u8 *>p + offset, len(data))
    free(p)
    return value


def latency_bucket(u64 ns):
    return counters_latency_bucket(ns)


def batch_bucket(u32 n):
    return counters_batch_bucket(n)


def keep(TxCounters counters not None, u32 freq):
    return bool(sample_keep(counters.c, freq))


def identifications(Tx tx not None, int n):
    return [tx_random(tx.tx) for _ in range(n)]


cdef tuple route_ways(Plan plan, u32 number):
    """(owner, whether it is the owner's fallback) of each way of a route."""
    cdef plan_t *p = &plan.work.routing
    cdef u32 i
    ways = [p.route_table[p.routes[number].first + i] for i in range(p.routes[number].count)]
    return tuple([(plan.work.owner[way], way >= plan.public_ways) for way in ways])


def memo_route(Plan plan not None, bytes address not None, int listener):
    """match_route(): (route number, its ways as the memo holds them: (owner, is fallback), whether the memo was emptied)."""
    cdef bint forgot
    cdef const u8 *octets = address
    cdef u32 number
    if len(address) != 16:
        raise ValueError("16 bytes")
    number = match_route(&plan.work.routing, octets, 4 if wire_is_ipv4_mapped(octets) else 6, <u32>listener, &forgot)
    return number, route_ways(plan, number) if number >= PLAN_ROUTE_FIRST else (), bool(forgot)


def memo_ways(Plan plan not None, u32 number):
    """What the memo holds under a route number now."""
    return route_ways(plan, number)


def session(Worker worker not None, bytes address not None, int port, int listener, u32 route):
    """One look-up as the worker does it, the route given by the caller on a miss: (hit, route)."""
    cdef bint hit
    cdef const u8 *octets = address
    cdef session_t *entry
    if len(address) != 16:
        raise ValueError("16 bytes")
    entry = session_find(&worker.w.sessions, octets, htons(<u16>port), <u16>listener, &hit)
    if not hit:
        session_take(&worker.w.sessions, entry, octets, htons(<u16>port), <u16>listener, route)
    session_group(&worker.w.sessions, entry, worker.w.batch, 0)
    return bool(hit), entry.route


def session_numbers(Worker worker not None):
    """(used, misses, evictions, capacity)."""
    cdef session_cache_t *cache = &worker.w.sessions
    return cache.used, cache.misses, cache.evictions, (cache.set_limit + 1) * SESSION_WAYS


def session_places(Worker worker not None):
    """How many entries are in use now, of those that there can be."""
    return (worker.w.sessions.set_mask + 1) * SESSION_WAYS


def session_batch(Worker worker not None, u32 now):
    """Makes `now` the batch number."""
    worker.w.sessions.now = now


def session_epoch(Worker worker not None, u32 epoch):
    """Sets the epoch, then begins the next one; returns it."""
    worker.w.sessions.epoch = epoch
    session_void(&worker.w.sessions)
    return worker.w.sessions.epoch


cdef extern from "Python.h":
    void PyErr_Print() noexcept

cdef enum:
    SCRIPT_RAISED = -9999

ctypedef int (*script_tell_t)(tx_port_t *port, mmsghdr *messages, u32 n) noexcept    # so that the error indicator carries the exception


cdef class Script:
    """The scripted engine: each call of send takes the next step: n > 0 = the kernel takes n messages (all that are offered, if fewer),
    -errno = it fails. After the last step everything is taken. accepted: (packet or payload, control bytes) of each message taken, in
    order; calls: (messages offered, result) of each call."""
    cdef public list steps
    cdef public list accepted
    cdef public list calls

    def __init__(self, steps=()):
        self.steps = list(steps)
        self.accepted = []
        self.calls = []

    def take(self, want):
        step = self.steps.pop(0) if self.steps else want
        result = min(step, want)
        self.calls.append((want, result))
        return result


cdef bytes message_bytes(msghdr *message):
    cdef size_t i
    return b"".join([(<char *>message.msg_iov[i].iov_base)[:message.msg_iov[i].iov_len] for i in range(message.msg_iovlen)])


cdef int script_play(tx_port_t *port, mmsghdr *messages, u32 n) noexcept with gil:
    cdef int result = (<script_tell_t>script_tell)(port, messages, n)
    if result == SCRIPT_RAISED:
        PyErr_Print()
    return result


cdef int script_tell(tx_port_t *port, mmsghdr *messages, u32 n) except? SCRIPT_RAISED:
    cdef int result, i
    script = <Script>port.script
    result = script.take(n)
    for i in range(result):
        message = &messages[i].msg_hdr
        control = (<char *>message.msg_control)[:message.msg_controllen] if message.msg_controllen else b""
        script.accepted.append((message_bytes(message), control))
    return result


cdef fill(Worker worker, list datagrams):
    """Makes the datagrams the worker's batch; their payloads are kept alive by the list."""
    cdef batch_t *batch = worker.w.batch
    cdef bytes address, payload
    cdef const u8 *octets
    cdef u32 d
    cdef dict groups = {}
    if len(datagrams) > BATCH_LIMIT:
        raise ValueError(f"more than {BATCH_LIMIT} datagrams")
    for d, (address, port, ttl, tos, payload) in enumerate(datagrams):
        octets = address
        if len(address) == 4:
            wire_map_ipv4(batch.exporter[d].address, octets)
        else:
            memcpy(batch.exporter[d].address, octets, 16)
        batch.exporter[d].family = 4 if len(address) == 4 else 6
        batch.exporter[d].port_be = htons(<u16>port)
        batch.exporter[d].ttl = ttl
        batch.exporter[d].tos = tos
        octets = payload
        batch.data[d] = octets
        batch.length[d] = len(payload)
        batch.arrival_ns[d] = 0
        batch.sum_known[d] = 0
        batch.group[d] = groups.setdefault((address, port), len(groups))
    batch.n = len(datagrams)
    batch.listener = 0
    batch.groups = len(groups)


cdef play_by(tx_t *tx, Script script, int (*send)(tx_port_t *, mmsghdr *, u32) noexcept nogil):
    if tx != NULL:
        tx.port.script = NULL if script is None else <void *>script
        tx.port.send = send


def play(Worker worker not None, Tx tx not None, list datagrams not None, Script script not None):
    """Sends the datagrams, (exporter address 4|16 bytes, port, ttl, tos, payload), as one batch by this way out, with the script in the
    kernel's place. Counts `offered` as the worker would. The worker is not to run."""
    cdef u16 selection[BATCH_LIMIT]
    cdef u32 d
    fill(worker, datagrams)
    for d in range(worker.w.batch.n):
        selection[d] = <u16>d
    worker.w.plain_known = worker.w.grouped_known = False
    atomics_add(&tx.tx.counters.offered, worker.w.batch.n)
    play_by(tx.tx, script, script_play)
    play_by(tx.tx.cutter, script, script_play)
    with nogil:
        worker_send_one(worker.w, tx.tx, worker.w.batch, selection, worker.w.batch.n)
    play_by(tx.tx, None, tx_send_kernel)
    play_by(tx.tx.cutter, None, tx_send_kernel)


def play_batch(Worker worker not None, Plan plan not None, RxCounters counters not None, list datagrams not None, Script script not None):
    """The whole life of a batch, from listener 0, under this plan, with the script in the kernel's place for every socket: the worker must
    not be used for anything else."""
    cdef u32 way
    cdef rx_socket_t socket
    memset(&socket, 0, sizeof(socket))
    socket.counters = counters.c
    fill(worker, datagrams)
    for way in range(plan.work.routing.way_count):
        plan.work.ways[way].port.script = <void *>script
        plan.work.ways[way].port.send = script_play
    worker.w.ports.way.script = <void *>script
    worker.w.ports.way.send = script_play
    session_void(&worker.w.sessions)
    worker.w.work = &plan.work
    with nogil:
        worker_batch(worker.w, &socket)
    worker.w.work = NULL


def later(Tx tx not None, u32 seconds):
    """As if so many seconds more had passed since the way gave something up."""
    cdef u32 place
    for place in range(<u32>TX_FEATURES):
        tx.tx.again_s[place] -= seconds


def given_up_for(Tx tx not None):
    """For how many seconds each feature was given up last: segment, transparent, packet, copier."""
    return tuple([tx.tx.pause_s[place] for place in range(TX_FEATURES)])


def flushes_since_full(Tx tx not None):
    return tx.tx.clean


def stalls(Worker worker not None):
    """Waits for a full queue."""
    return worker.w.ring.stalls


def pool_adopt_plan(Worker worker not None, Plan plan not None, Plan old=None):
    """What the worker does when it takes over a plan; old: the one before."""
    cdef plan_t *before = NULL
    if worker.w.pools.entries == NULL:
        worker.w.pools.entries = <pool_entry_t *>memory_arena(&worker.arena, POOL_ENTRIES, sizeof(pool_entry_t))
    if old is not None:
        before = &old.work.routing
    pool_adopt(&worker.w.pools, &plan.work.routing, before)


def pool_member_down(Worker worker not None, Plan plan not None, u32 member, bint down):
    plan.work.routing.members[member].down = down
    worker.w.pools.versions += 1
    plan.work.routing.pools[0].version = worker.w.pools.versions


def pool_seconds(Worker worker not None, u32 now_s):
    worker.w.pools.now_s = now_s


def pool_forget(Worker worker not None, Plan plan not None, u32 steps):
    pool_expire(&worker.w.pools, &plan.work.routing, steps)


def pool_give(Worker worker not None, Plan plan not None, bytes address not None, u64 domain):
    """(receiver that had the exporter before, receiver that has it, its way) in the first pool of the plan."""
    cdef u32 before
    cdef const u8 *octets = address
    if len(address) != 16:
        raise ValueError("16 bytes")
    entry = pool_assign(&worker.w.pools, &plan.work.routing, &plan.work.routing.pools[0], octets, domain, &before)
    return before, entry.now, entry.way


def pool_shares(Plan plan not None):
    """(receiver, homes, load) of each member of the first pool."""
    cdef plan_t *p = &plan.work.routing
    return [(p.members[i].receiver, p.members[i].homes, p.members[i].load) for i in range(p.pools[0].count)]


def pool_turns(Plan plan not None, int n):
    """The ways of the next n turns of the first pool."""
    cdef plan_t *p = &plan.work.routing
    return [p.members[pool_turn(p, &p.pools[0])].way for _ in range(n)]


def pool_used(Worker worker not None):
    return worker.w.pools.used


def ring_read(RxSocket rx not None, u32 most, u32 max_datagram=65535, bint release=True):
    """One receive from a ring as the worker does it: (address of 16 bytes, port, ttl, tos, arrival_ns, offset of the payload in the ring,
    payload) of each datagram. release: blocks that are used up are given back then, as the worker does after it has sent the batch."""
    cdef batch_t *batch = <batch_t *>malloc(sizeof(batch_t))
    cdef exporter_t *exporter
    cdef u32 d
    if batch == NULL or not 0 < most <= BATCH_LIMIT:
        raise MemoryError
    ring_receive(&rx.socket, most, max_datagram, batch)
    found = []
    for d in range(batch.n):
        exporter = &batch.exporter[d]
        found.append((
            (<char *>exporter.address)[:16], ntohs(exporter.port_be), exporter.ttl, exporter.tos, batch.arrival_ns[d],
            <size_t>(batch.data[d] - rx.socket.ring.map), (<char *>batch.data[d])[:batch.length[d]],
        ))
    if release:
        ring_release(&rx.socket)
    free(batch)
    return found


def ring_wait(RxSocket rx not None):
    """Sets the doorbell: 0 = nothing to read, 1 = a slot is waited for, 2 = there is something."""
    return ring_arm(&rx.socket)
