# needs: uapi: net; base: atomics, batch, hash; tx: engine, port
# Lanes: one socket with its own source port per exporter session, for one unspoofed receiver of engine `udp` (source_port = "per-session"),
# so that the collector sees one transport session per exporter (RFC 7011). A lane is connected and configured like the receiver's own socket,
# so errors and reports (IP_RECVERR) are handled in the same way: tx_flush() gets the lane's socket in place of the receiver's socket.
# Bounded: LANE_SETS * LANE_WAYS sockets per worker, and at most half of the descriptors that the process may open. A session gets a lane at
# once while there is credit (LANE_CREDIT, renewed slowly), otherwise after LANE_EARN datagrams, so that forged sources do not need a socket
# each. The least recently used lane is closed when it was silent for LANE_IDLE_S, or for LANE_ONCE_S if its session had few datagrams. Copies
# of sessions without a lane leave by the receiver's own socket, v9 and IPFIX with an alias (flow/alias.pxd), so templates do not collide
# there either.
# Ports are chosen from the range that the kernel uses (net.ipv4.ip_local_port_range), without the ports that the host reserves
# (net.ipv4.ip_local_reserved_ports), because bind(2) with an explicit port checks neither. A port that a listener needs is released. Called
# by worker/lane.pxi.

cdef enum:
    LANE_WAYS = 8
    LANE_SETS = 512
    LANE_EARN = 8                      # datagrams of a session without credit before its socket is opened
    LANE_CREDIT = 128                  # sockets given at once
    LANE_CREDIT_S = 8                  # more of them each second
    LANE_IDLE_S = 120
    LANE_ONCE_S = 10
    LANE_AGAIN_S = 1                   # the kernel refused a socket: tried again after this
    LANE_PORT = 32768                  # net.ipv4.ip_local_port_range as shipped: the first ...
    LANE_PORTS = 28232                 # ... and how many
    LANE_CHOICES = 8                   # ports are chosen by hash; when all of these are taken or reserved, by the kernel
    LANE_DUE = 64                      # sockets opened after one batch at most; more wait for their next datagram
    LANE_EMPTY = 0
    LANE_WAITS = 1                     # for its socket
    LANE_OPEN = 2
    LANE_REFUSED = 3

ctypedef struct lane_t:
    tx_t *tx                           # whose copies; of the running plan
    u8 address[16]
    u16 port_be                        # of the exporter
    u16 own_be                         # of its socket
    u8 state
    u32 used                           # datagrams
    u32 seen                           # batch number
    u32 seen_s                         # CLOCK_MONOTONIC
    u32 tried_s
    int fd

ctypedef struct lanes_t:
    lane_t *entries
    const port_set_t *withheld         # ports_t.withheld
    port_set_t reserved                # ports that the host keeps for somebody
    u32 range                          # of the ports to choose from: the first, and above it how many; the control plane writes it
    u32 open                           # sockets
    u32 now_s                          # CLOCK_MONOTONIC, once a batch
    u32 credit
    u32 credit_s
    u32 due_count
    lane_t *due[LANE_DUE]              # have earned a socket in this batch
    u16 rest_first[BATCH_LIMIT]        # runs that leave by the receiver's own socket
    u16 rest_end[BATCH_LIMIT]


cdef inline lane_t *lane_find(lanes_t *lanes, const tx_t *tx, const exporter_t *exporter, u32 now, bint *found) noexcept nogil:
    """The session's lane (found), or the place that it may take; NULL = neither. The last that was seen in this batch (now) is never given."""
    cdef u32 h = hash_address(exporter.address) ^ (<u32>exporter.port_be * <u32>0x9E3779B1) ^ (<u32>(<size_t>tx >> 6) * <u32>0x85EBCA77)
    cdef lane_t *lane = &lanes.entries[<size_t>((h ^ (h >> 15)) % LANE_SETS) * LANE_WAYS]
    cdef lane_t *victim = NULL
    cdef u64 age
    cdef u64 oldest = 0
    cdef u32 silent_s
    cdef u32 _way
    found[0] = True
    for _way in range(<u32>LANE_WAYS):
        if lane.tx == tx and lane.port_be == exporter.port_be and memcmp(lane.address, exporter.address, 16) == 0:
            lane.seen = now
            lane.seen_s = lanes.now_s
            return lane
        silent_s = lanes.now_s - lane.seen_s
        age = 0
        if lane.state == LANE_EMPTY:
            age = <u64>1 << 34
        elif lane.seen == now:
            pass
        elif lane.state != LANE_OPEN:
            age = (<u64>1 << 33) + (now - lane.seen)
        elif silent_s >= (<u32>LANE_IDLE_S if lane.used >= LANE_EARN else <u32>LANE_ONCE_S):
            age = silent_s
        if age > oldest:
            oldest = age
            victim = lane
        lane += 1
    found[0] = False
    return victim


cdef inline void lanes_tick(lanes_t *lanes, u64 now_ns) noexcept nogil:
    """The time, CLOCK_MONOTONIC. It never goes back, whoever gives it: a loop pass began before its batches did."""
    cdef u32 now_s = <u32>(now_ns // 1000000000)
    if <int>(now_s - lanes.now_s) > 0:
        lanes.now_s = now_s


cdef inline void lane_copy_option(int to, int of, int level, int name) noexcept nogil:
    cdef int value = 0
    cdef socklen_t length = sizeof(value)
    if getsockopt(of, level, name, &value, &length) == 0:
        if name == SO_SNDBUF or name == SO_RCVBUF:
            value //= 2                # socket(7): the kernel gives back the double
        port_set(to, level, name, value)
        if name == SO_SNDBUF:
            port_set(to, level, SO_SNDBUFFORCE, value)


cdef void lane_options(int fd, const tx_t *tx) noexcept nogil:
    """Sets the socket up as sockets.open_udp() did the receiver's own; what comes to it is thrown away, but for reports."""
    cdef sock_filter nothing
    cdef sock_fprog program
    nothing.code = BPF_RET_K
    nothing.jt = nothing.jf = 0
    nothing.k = 0
    program.len = 1
    program.filter = &nothing
    setsockopt(fd, SOL_SOCKET, SO_ATTACH_FILTER, &program, sizeof(program))
    lane_copy_option(fd, tx.port.fd, SOL_SOCKET, SO_RCVBUF)
    lane_copy_option(fd, tx.port.fd, SOL_SOCKET, SO_SNDBUF)
    lane_copy_option(fd, tx.port.fd, SOL_SOCKET, SO_BROADCAST)
    if tx.family == 4:
        lane_copy_option(fd, tx.port.fd, SOL_SOCKET, SO_NO_CHECK)
        lane_copy_option(fd, tx.port.fd, IPPROTO_IP, IP_RECVERR)
        lane_copy_option(fd, tx.port.fd, IPPROTO_IP, IP_MTU_DISCOVER)
        lane_copy_option(fd, tx.port.fd, IPPROTO_IP, IP_TTL)
        lane_copy_option(fd, tx.port.fd, IPPROTO_IP, IP_MULTICAST_TTL)
        lane_copy_option(fd, tx.port.fd, IPPROTO_IP, IP_TOS)
    else:
        lane_copy_option(fd, tx.port.fd, IPPROTO_IPV6, IPV6_RECVERR)
        lane_copy_option(fd, tx.port.fd, IPPROTO_IPV6, IPV6_MTU_DISCOVER)
        lane_copy_option(fd, tx.port.fd, IPPROTO_IPV6, IPV6_UNICAST_HOPS)
        lane_copy_option(fd, tx.port.fd, IPPROTO_IPV6, IPV6_MULTICAST_HOPS)
        lane_copy_option(fd, tx.port.fd, IPPROTO_IPV6, IPV6_TCLASS)


cdef u16 lane_port(const lane_t *lane, u32 choice, u32 ports) noexcept nogil:
    """The port (of lanes_t.range) that this session had before, too, and has after a restart: the collector still knows its templates
    then. Unseeded."""
    cdef u64 a, b
    memcpy(&a, lane.address, 8)
    memcpy(&b, lane.address + 8, 8)
    a = hash_mix(hash_mix(a, b), <u64>lane.port_be << 32 | choice)
    memcpy(&b, lane.tx.address, 8)
    a = hash_mix(a, b)
    memcpy(&b, lane.tx.address + 8, 8)
    a = hash_mix(a, b ^ lane.tx.port_be)
    return <u16>((ports & 0xFFFF) + (a >> 16) % (ports >> 16))


cdef inline bint lane_may_have(const lanes_t *lanes, u16 port_be) noexcept nogil:
    return not port_set_has(&lanes.reserved, port_be) and not port_set_has(lanes.withheld, port_be)


cdef bint lane_connect(int fd, const lanes_t *lanes, lane_t *lane) noexcept nogil:
    """From the address that the receiver's own socket has, and a port of the session's own, to the receiver."""
    cdef const tx_t *tx = lane.tx
    cdef sockaddr_in6 own                              # a sockaddr_in has its port at the same place
    cdef socklen_t length = sizeof(own)
    cdef socklen_t name_length = sizeof(sockaddr_in) if tx.family == 4 else sizeof(sockaddr_in6)
    cdef u32 ports = atomic_load32(&lanes.range)
    cdef u32 choice
    memset(&own, 0, sizeof(own))
    if getsockname(tx.port.fd, <sockaddr *>&own, &length) < 0:
        return False
    for choice in range(<u32>LANE_CHOICES + 1):
        own.sin6_port = htons(lane_port(lane, choice, ports)) if choice < LANE_CHOICES else 0
        if own.sin6_port != 0 and not lane_may_have(lanes, own.sin6_port):
            continue
        if bind(fd, <const sockaddr *>&own, name_length) == 0:
            length = sizeof(own)
            if getsockname(fd, <sockaddr *>&own, &length) < 0 or not lane_may_have(lanes, own.sin6_port):
                return False
            lane.own_be = own.sin6_port
            return connect(fd, <const sockaddr *>&tx.name, name_length) == 0
    return False


cdef bint lane_open(lanes_t *lanes, lane_t *lane) noexcept nogil:
    """Opens the lane's socket, or marks it as refused for now."""
    cdef int fd = socket(AF_INET if lane.tx.family == 4 else AF_INET6, SOCK_DGRAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0)
    lane.state = LANE_REFUSED
    lane.tried_s = lanes.now_s
    if fd < 0:
        return False
    lane_options(fd, lane.tx)
    if not port_affords(fd) or not lane_connect(fd, lanes, lane):
        close(fd)
        return False
    lane.fd = fd
    lane.state = LANE_OPEN
    lanes.open += 1
    return True


cdef void lane_close(lanes_t *lanes, lane_t *lane) noexcept nogil:
    """Gives the place back. What the network reported of the lane's last copies is booked before."""
    if lane.state == LANE_OPEN:
        tx_read_reports(lane.tx, lane.fd)
        close(lane.fd)
        lanes.open -= 1
    memset(lane, 0, sizeof(lane_t))


cdef bint lane_credit(lanes_t *lanes) noexcept nogil:
    """Takes from what may be opened without being earned. False: nothing is left."""
    cdef u64 more = <u64>(lanes.now_s - lanes.credit_s) * LANE_CREDIT_S
    lanes.credit_s = lanes.now_s
    lanes.credit = <u32>(lanes.credit + more) if lanes.credit + more < LANE_CREDIT else <u32>LANE_CREDIT
    if lanes.credit == 0:
        return False
    lanes.credit -= 1
    return True


cdef lane_t *lane_begin(lanes_t *lanes, lane_t *place, tx_t *tx, const exporter_t *exporter, u32 now) noexcept nogil:
    """A new lane in the place that lane_find() gave; with credit it is open."""
    lane_close(lanes, place)
    place.tx = tx
    memcpy(place.address, exporter.address, 16)
    place.port_be = exporter.port_be
    place.state = LANE_WAITS
    place.seen = now
    place.seen_s = lanes.now_s
    if lane_credit(lanes):
        lane_open(lanes, place)
    return place


cdef inline bint lane_earned(const lanes_t *lanes, const lane_t *lane) noexcept nogil:
    """Whether a lane without a socket is to get one now."""
    if lane.state == LANE_REFUSED:
        return lanes.now_s - lane.tried_s >= LANE_AGAIN_S
    return lane.state == LANE_WAITS and lane.used >= LANE_EARN


cdef void lanes_give_back(lanes_t *lanes) noexcept nogil:
    """Closes the lanes that have a port which a listener is to have; between two batches."""
    cdef u32 i
    cdef lane_t *lane
    if lanes.open:
        for i in range(<u32>(LANE_SETS * LANE_WAYS)):
            lane = &lanes.entries[i]
            if lane.state == LANE_OPEN and port_set_has(lanes.withheld, lane.own_be):
                lane_close(lanes, lane)


cdef void lanes_keep(lanes_t *lanes, tx_t **ways, u32 count) noexcept nogil:
    """Closes the lanes of all receivers but these: at the adoption of a plan, while the one before still lives."""
    cdef u32 i, k
    cdef lane_t *lane
    cdef bint stays
    if lanes.entries == NULL:
        return
    for i in range(<u32>(LANE_SETS * LANE_WAYS)):
        lane = &lanes.entries[i]
        if lane.state == LANE_EMPTY:
            continue
        stays = False
        for k in range(count):
            stays = stays or ways[k] == lane.tx
        if not stays:
            lane_close(lanes, lane)


cdef void lanes_end(lanes_t *lanes) noexcept nogil:
    """Closes every socket; the receivers may be gone."""
    cdef u32 i
    if lanes.entries != NULL:
        for i in range(<u32>(LANE_SETS * LANE_WAYS)):
            if lanes.entries[i].state == LANE_OPEN:
                close(lanes.entries[i].fd)
