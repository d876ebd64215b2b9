# Engine `transparent`: spoofed runs leave through the ordinary UDP stack, by a socket bound to the exporter's own address and port
# (IP_TRANSPARENT, ip(7)), one per exporter session and worker, shared by all receivers. A session earns its socket by sending runs; forged
# sources never cost one. An exporter whose address is local to this host never gets one: the socket would take that exporter's own traffic.
# What a session's socket does not take (no socket, queue full of another receiver's copies, refused) is left to the receiver's raw socket,
# for the rest of the batch, so that order per exporter and receiver holds. Called by worker.pxi for receivers that take the whole batch.

cdef enum:
    PORT_WAYS = 8
    PORT_SETS = 128                    # 1024 sessions with a socket a worker at most
    PORT_EARN = 4                      # batches with a run before a socket is opened
    PORT_IDLE = 4096                   # batches after which an unused socket may make way
    PORT_EMPTY = 0
    PORT_CANDIDATE = 1
    PORT_OPEN = 2
    PORT_NEVER = 3                     # local address, or the kernel refused

ctypedef struct port_t:                # an exporter session's way out
    u8 address[16]
    u16 port_be
    u8 state
    u8 earned
    u32 seen                           # batch number
    int fd

ctypedef struct ports_t:
    port_t *entries
    u32 open                           # sockets
    int send_buffer                    # bytes, of each socket
    tx_t way                           # how a session's socket is sent through; only `send` and `fd` mean anything


cdef inline port_t *port_find(ports_t *ports, const exporter_t *exporter, u32 now) noexcept nogil:
    """The session's entry, made when there is room for it; NULL when its set is full of busy ones."""
    cdef u32 h = match_hash(exporter.address) ^ (<u32>exporter.port_be * <u32>0x9E3779B1)
    cdef port_t *entry = &ports.entries[<size_t>((h ^ (h >> 16)) % PORT_SETS) * PORT_WAYS]
    cdef port_t *victim = NULL
    cdef u32 i, age, oldest = 0
    for i in range(<u32>PORT_WAYS):
        if entry.state != PORT_EMPTY and entry.port_be == exporter.port_be and memcmp(entry.address, exporter.address, 16) == 0:
            entry.seen = now
            return entry
        age = 0xFFFFFFFFU if entry.state == PORT_EMPTY else now - entry.seen
        if age > oldest and (entry.state != PORT_OPEN or age > PORT_IDLE):
            oldest = age
            victim = entry
        entry += 1
    if victim == NULL:
        return NULL
    if victim.state == PORT_OPEN:
        close(victim.fd)
        ports.open -= 1
    memcpy(victim.address, exporter.address, 16)
    victim.port_be = exporter.port_be
    victim.state = PORT_CANDIDATE
    victim.earned = 0
    victim.seen = now
    victim.fd = -1
    return victim


cdef inline int port_bind(int fd, const exporter_t *exporter, u16 port_be) noexcept nogil:
    """bind(2) to the exporter's address and the given port."""
    cdef sockaddr_in ipv4
    cdef sockaddr_in6 ipv6
    if exporter.family == 4:
        memset(&ipv4, 0, sizeof(ipv4))
        ipv4.sin_family = AF_INET
        ipv4.sin_port = port_be
        memcpy(&ipv4.sin_addr, &exporter.address[12], 4)
        return bind(fd, <const sockaddr *>&ipv4, sizeof(ipv4))
    memset(&ipv6, 0, sizeof(ipv6))
    ipv6.sin6_family = AF_INET6
    ipv6.sin6_port = port_be
    memcpy(&ipv6.sin6_addr, exporter.address, 16)
    return bind(fd, <const sockaddr *>&ipv6, sizeof(ipv6))


cdef inline void port_set(int fd, int level, int name, int value) noexcept nogil:
    setsockopt(fd, level, name, &value, sizeof(value))


cdef void port_open(ports_t *ports, port_t *port, const exporter_t *exporter) noexcept nogil:
    """Opens the session's socket, or marks it as never to be had. An address that can be bound without IP_TRANSPARENT is local."""
    cdef int family = AF_INET if exporter.family == 4 else AF_INET6
    cdef int level = IPPROTO_IP if exporter.family == 4 else IPPROTO_IPV6
    cdef int transparent = IP_TRANSPARENT if exporter.family == 4 else IPV6_TRANSPARENT
    cdef int one = 1
    cdef int fd
    port.state = PORT_NEVER
    fd = socket(family, SOCK_DGRAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0)
    if fd < 0:
        return
    port_set(fd, SOL_SOCKET, SO_RCVBUF, 2048)
    if port_bind(fd, exporter, 0) == 0 or get_errno() != EADDRNOTAVAIL:
        close(fd)
        return
    port_set(fd, SOL_SOCKET, SO_REUSEADDR, 1)
    port_set(fd, SOL_SOCKET, SO_SNDBUF, ports.send_buffer)
    port_set(fd, SOL_SOCKET, SO_SNDBUFFORCE, ports.send_buffer)
    if exporter.family == 4:
        port_set(fd, level, IP_RECVERR, 1)
        port_set(fd, level, IP_MTU_DISCOVER, IP_PMTUDISC_DONT)
    else:
        port_set(fd, level, IPV6_RECVERR, 1)
        port_set(fd, level, IPV6_MTU_DISCOVER, IPV6_PMTUDISC_DONT)
    if (setsockopt(fd, level, transparent, &one, sizeof(one)) < 0
            or port_bind(fd, exporter, port.port_be) < 0):
        close(fd)
        return
    port.fd = fd
    port.state = PORT_OPEN
    ports.open += 1


cdef void ports_close(ports_t *ports) noexcept nogil:
    cdef u32 i
    if ports.entries != NULL:
        for i in range(<u32>(PORT_SETS * PORT_WAYS)):
            if ports.entries[i].state == PORT_OPEN:
                close(ports.entries[i].fd)


cdef inline port_t *port_peek(ports_t *ports, const exporter_t *exporter, u32 now) noexcept nogil:
    """The session's entry if it has one."""
    cdef u32 h = match_hash(exporter.address) ^ (<u32>exporter.port_be * <u32>0x9E3779B1)
    cdef port_t *entry = &ports.entries[<size_t>((h ^ (h >> 16)) % PORT_SETS) * PORT_WAYS]
    cdef u32 i
    for i in range(<u32>PORT_WAYS):
        if entry.state != PORT_EMPTY and entry.port_be == exporter.port_be and memcmp(entry.address, exporter.address, 16) == 0:
            entry.seen = now
            return entry
        entry += 1
    return NULL


cdef inline port_t *port_for(ports_t *ports, const exporter_t *exporter, bint has_run, u32 now) noexcept nogil:
    """The open socket of an exporter session or NULL; a batch with a run counts towards earning one."""
    cdef port_t *port = port_find(ports, exporter, now) if has_run else port_peek(ports, exporter, now)
    if port == NULL or port.state == PORT_OPEN:
        return port
    if port.state == PORT_CANDIDATE and has_run:
        port.earned += 1
        if port.earned >= PORT_EARN:
            port_open(ports, port, exporter)
            if port.state == PORT_OPEN:
                return port
    return NULL


cdef inline void shared_leave(work_t *work, u32 way, const u16 *order, u32 n) noexcept nogil:
    """Leaves datagrams to the receiver's own raw socket."""
    cdef u32 left = work.left[way]
    memcpy(&work.leftovers[<size_t>way * BATCH_LIMIT + left], order, n * sizeof(u16))
    work.left[way] = left + n


cdef inline void shared_refused(tx_t *tx, u8 feature, int error) noexcept nogil:
    """What the kernel can never do for this receiver is given up for good; anything else is only this moment's."""
    if tx_refuses_segments(error) or error == EPERM or error == EACCES:
        tx.gave_up |= feature


cdef void shared_flush(work_t *work, tx_t *port, u8 feature, const runs_t *runs, tx_ring_t *ring) noexcept nogil:
    """Sends a ring whose copies belong to many receivers through one socket. What is not taken is left to the receiver's raw socket, and so is
    all that follows for it until its `blocked` is taken back: order per exporter and receiver holds. Every copy is counted or left once."""
    cdef u32 i = 0
    cdef u32 k, want
    cdef bint careful = False
    cdef tx_copy_t *copy
    cdef int got
    while i < ring.n:
        copy = &ring.copies[i]
        if careful and copy.tx.blocked:
            shared_leave(work, copy.way, &runs.order[copy.first], copy.copies)
            i += 1
            continue
        want = 1 if careful else ring.n - i
        got = port.send(port, &ring.messages[i], want)
        atomics_add(&copy.tx.counters.calls, 1)
        if got > 0:
            for k in range(i, i + <u32>got):
                tx_settle(ring.copies[k].tx, ring.copies[k].copies, ring.copies[k].bytes)
            i += <u32>got
        elif got == -EINTR:
            atomics_add(&copy.tx.counters.retries, 1)
        else:
            shared_refused(copy.tx, feature, -got)
            copy.tx.blocked = 1
            careful = True
    ring.n = 0
    ring.vectors_used = 0


cdef inline void transparent_name(tx_t *tx, msghdr *message) noexcept nogil:
    """The receiver's address: the session's socket is not connected."""
    message.msg_name = &tx.name
    message.msg_namelen = sizeof(sockaddr_in) if tx.family == 4 else sizeof(sockaddr_in6)


cdef void transparent_group(work_t *work, tx_t *port, const batch_t *batch, runs_t *runs, u32 begin, u32 end, u32 n,
                            tx_ring_t *ring) noexcept nogil:
    """Runs begin..end-1, all of one exporter session with an open socket, to the n ways of work.shared."""
    cdef u32 run, a, way, i, first, count, step
    cdef tx_t *tx
    for run in range(begin, end):
        for a in range(n):
            way = work.shared[a]
            tx = work.ways[way]
            first = runs.first[run]
            count = runs.count[run]
            if tx.blocked or tx.gave_up & TX_GAVE_UP_TRANSPARENT or not tx.checksum:
                shared_leave(work, way, &runs.order[first], count)
                continue
            step = count if tx_udp_segments(tx, batch, runs, run) else 1
            i = first
            while i < first + count:
                if ring.n == TX_RING:
                    shared_flush(work, port, TX_GAVE_UP_TRANSPARENT, runs, ring)
                if tx.blocked:
                    shared_leave(work, way, &runs.order[i], step)
                else:
                    ring.copies[ring.n].way = way
                    ring.copies[ring.n].first = <u16>i
                    transparent_name(tx, &ring.messages[ring.n].msg_hdr)
                    tx_udp_message(tx, batch, runs, i, step, False, ring)
                i += step
    shared_flush(work, port, TX_GAVE_UP_TRANSPARENT, runs, ring)
    for a in range(n):
        work.ways[work.shared[a]].blocked = 0


cdef void transparent_send(work_t *work, ports_t *ports, const batch_t *batch, runs_t *runs, u32 now, u32 n, tx_ring_t *ring) noexcept nogil:
    """The batch to the n ways of work.shared: by the exporters' sockets where they have one, else left to raw."""
    cdef u32 begin = 0
    cdef u32 end, a, d
    cdef bint has_run
    cdef port_t *port
    while begin < runs.n:
        d = runs.order[runs.first[begin]]
        has_run = False
        end = begin
        while end < runs.n and batch.group[runs.order[runs.first[end]]] == batch.group[d]:
            has_run |= runs.count[end] > 1
            end += 1
        port = port_for(ports, &batch.exporter[d], has_run, now)
        if port != NULL:
            ports.way.fd = port.fd
            transparent_group(work, &ports.way, batch, runs, begin, end, n, ring)
        else:
            for a in range(n):
                shared_leave(work, work.shared[a], &runs.order[runs.first[begin]],
                             runs.first[end - 1] + runs.count[end - 1] - runs.first[begin])
        begin = end
