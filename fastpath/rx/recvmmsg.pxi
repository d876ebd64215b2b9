# needs: uapi: net; base: atomics, batch, counters, wire; rx: socket
# Receive engine `recvmmsg`: one call fills the arena, and the batch points into it. Datagrams over max_datagram are counted and dropped,
# because a truncated datagram is corrupt. IPv4-mapped sources are unmapped here, once. Datagrams that the kernel coalesced (UDP_GRO) are
# split: a coalesced run is a run in the batch. Called by worker/loop.pxi. No content of a datagram ends the loop; an error of the call is
# counted and treated as "no datagram now".


cdef inline void rx_exporter(exporter_t *out, const sockaddr_in6 *name) noexcept nogil:
    """The exporter session of a source address, IPv4 or IPv6 socket alike."""
    cdef const sockaddr_in *ipv4 = <const sockaddr_in *>name
    if name.sin6_family == AF_INET:
        wire_map_ipv4(out.address, <const u8 *>&ipv4.sin_addr)
        out.port_be = ipv4.sin_port
        out.family = 4
    else:
        memcpy(out.address, &name.sin6_addr, 16)
        out.port_be = name.sin6_port
        out.family = 4 if wire_is_ipv4_mapped(out.address) else 6


cdef inline void rx_ancillary(msghdr *message, exporter_t *exporter, u64 *arrival_ns, u32 *segment) noexcept nogil:
    """Reads the kernel's arrival time, TTL, TOS and the size of coalesced datagrams (cmsg(3), udp(7)); what is absent stays 0."""
    cdef cmsghdr *cmsg = CMSG_FIRSTHDR(message)
    cdef timespec stamp
    cdef int value
    exporter.ttl = 0
    exporter.tos = 0
    arrival_ns[0] = 0
    segment[0] = 0
    while cmsg != NULL:
        if cmsg.cmsg_level == SOL_SOCKET and cmsg.cmsg_type == SCM_TIMESTAMPNS:
            memcpy(&stamp, CMSG_DATA(cmsg), sizeof(stamp))
            arrival_ns[0] = <u64>stamp.tv_sec * 1000000000 + <u64>stamp.tv_nsec
        elif cmsg.cmsg_level == IPPROTO_IP and cmsg.cmsg_type == IP_TOS:
            exporter.tos = CMSG_DATA(cmsg)[0]          # one byte, ip(7)
        else:
            memcpy(&value, CMSG_DATA(cmsg), sizeof(value))
            if cmsg.cmsg_level == SOL_UDP and cmsg.cmsg_type == UDP_GRO:
                segment[0] = <u32>value
            elif ((cmsg.cmsg_level == IPPROTO_IP and cmsg.cmsg_type == IP_TTL)
                    or (cmsg.cmsg_level == IPPROTO_IPV6 and cmsg.cmsg_type == IPV6_HOPLIMIT)):
                exporter.ttl = <u8>value
            elif cmsg.cmsg_level == IPPROTO_IPV6 and cmsg.cmsg_type == IPV6_TCLASS:
                exporter.tos = <u8>value
        cmsg = CMSG_NXTHDR(message, cmsg)


cdef inline void rx_prepare(rx_arena_t *arena, u32 n) noexcept nogil:
    """Resets what the kernel overwrote in the first n message headers."""
    cdef u32 i
    cdef msghdr *message
    for i in range(n):
        message = &arena.messages[i].msg_hdr
        message.msg_namelen = sizeof(sockaddr_in6)
        message.msg_controllen = RX_CONTROL
        message.msg_flags = 0


cdef inline int rx_error(rx_counters_t *c, int error) noexcept nogil:
    """Counts a failed receive call; always 0, "nothing now"."""
    if error == EAGAIN:
        atomics_add(&c.errors_again, 1)
    elif error == EINTR:
        atomics_add(&c.errors_intr, 1)
    elif error == ENOMEM or error == ENOBUFS:
        atomics_add(&c.errors_nomem, 1)
    else:
        atomics_add(&c.errors_other, 1)
    return 0


cdef inline void rx_open(rx_arena_t *arena) noexcept nogil:
    """Takes up the next message: one datagram, or as many of one exporter as the kernel coalesced (UDP_GRO)."""
    cdef mmsghdr *message = &arena.messages[arena.next]
    rx_exporter(&arena.exporter, &arena.names[arena.next])
    rx_ancillary(&message.msg_hdr, &arena.exporter, &arena.arrival_ns, &arena.segment)
    arena.payload = arena.bytes + <size_t>arena.next * arena.stride
    arena.left = message.msg_len
    if arena.segment == 0 or arena.segment > arena.left:
        arena.segment = arena.left
    arena.next += 1
    arena.open = True


cdef inline void rx_stamp(rx_socket_t *socket, u32 datagrams) noexcept nogil:
    """Turns the arrival times off and on again: a tenth of the cost of a large batch, and one large batch in eight tells enough. The kernel
    notes the times all the while (net/core/sock.c: switching SO_TIMESTAMPNS off only stops their delivery)."""
    cdef int on
    if datagrams < RX_STAMP_BATCH:
        socket.unstamped = 0
    elif socket.unstamped:
        socket.unstamped -= 1
    else:
        socket.unstamped = RX_STAMP_EVERY - 1
    on = socket.unstamped == 0
    if on != socket.stamped:
        if setsockopt(socket.fd, SOL_SOCKET, SO_TIMESTAMPNS, &on, sizeof(on)) == 0:
            socket.stamped = on


cdef inline bint rx_pending(const rx_arena_t *arena) noexcept nogil:
    """Whether datagrams read from the kernel wait for a batch."""
    return arena.open or arena.next < arena.got


cdef inline int rx_receive(rx_socket_t *socket, rx_arena_t *arena, batch_t *batch) noexcept nogil:
    """Fills the batch; returns how many datagrams that took (those longer than max_datagram too), 0 when there was nothing. What one call
    brought beyond a full batch stays in the arena (rx_pending) and must be fetched before another socket is read."""
    cdef rx_counters_t *c = socket.counters
    cdef u32 length
    cdef u32 n = 0
    cdef u32 cut = 0
    cdef u64 octets = 0
    cdef u64 cut_octets = 0
    cdef int got
    batch.n = 0
    batch.cut = 0
    batch.listener = socket.listener
    if not rx_pending(arena):
        rx_prepare(arena, arena.got)
        arena.got = arena.next = 0
        if unlikely(socket.overlap != NULL):
            rx_stamp(socket, 0)
        got = recvmmsg(socket.fd, arena.messages, arena.capacity, MSG_DONTWAIT, NULL)
        if got <= 0:
            if unlikely(socket.overlap != NULL) and get_errno() == EAGAIN:
                rx_overlap_end(socket)
            return rx_error(c, get_errno())
        arena.got = <u32>got
        if socket.stamps and socket.overlap == NULL:
            rx_stamp(socket, arena.got)
    while n + cut < arena.capacity and rx_pending(arena):
        if not arena.open:
            rx_open(arena)
        length = arena.segment if arena.left > arena.segment else arena.left
        octets += length
        if unlikely(length > arena.max_datagram):
            cut += 1
            cut_octets += length
            batch_note_cut(batch, &arena.exporter, length, arena.arrival_ns)
        else:
            batch.data[n] = arena.payload
            batch.length[n] = length
            batch.sum_known[n] = 0
            batch.exporter[n] = arena.exporter
            batch.arrival_ns[n] = arena.arrival_ns
            n += 1
        arena.payload += length
        arena.left -= length
        arena.open = arena.left > 0
    batch.n = n
    if unlikely(socket.overlap != NULL):
        return rx_overlapping(socket, batch, octets, cut, cut_octets)
    return rx_received(c, n + cut, octets, cut, cut_octets)
