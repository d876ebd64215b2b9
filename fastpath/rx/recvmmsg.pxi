# Receive engine `recvmmsg`: one call fills the arena, the batch points into it. Truncated datagrams are counted and left out: half a datagram
# is a corrupt one. IPv4-mapped sources are unmapped here, once.
# Called by worker.pxi. Nothing a datagram carries ends the loop; an error of the call is counted and reported as "nothing now".


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


cdef inline void rx_ancillary(msghdr *message, exporter_t *exporter, u64 *arrival_ns) noexcept nogil:
    """Reads the kernel's arrival time, TTL and TOS (cmsg(3)); what is absent stays 0."""
    cdef cmsghdr *cmsg = CMSG_FIRSTHDR(message)
    cdef timespec stamp
    cdef int value
    exporter.ttl = 0
    exporter.tos = 0
    arrival_ns[0] = 0
    while cmsg != NULL:
        if cmsg.cmsg_level == SOL_SOCKET and cmsg.cmsg_type == SCM_TIMESTAMPNS:
            memcpy(&stamp, CMSG_DATA(cmsg), sizeof(stamp))
            arrival_ns[0] = <u64>stamp.tv_sec * 1000000000 + <u64>stamp.tv_nsec
        elif cmsg.cmsg_level == IPPROTO_IP and cmsg.cmsg_type == IP_TOS:
            exporter.tos = CMSG_DATA(cmsg)[0]          # one byte, ip(7)
        elif ((cmsg.cmsg_level == IPPROTO_IP and cmsg.cmsg_type == IP_TTL)
                or (cmsg.cmsg_level == IPPROTO_IPV6 and cmsg.cmsg_type == IPV6_HOPLIMIT)):
            memcpy(&value, CMSG_DATA(cmsg), sizeof(value))
            exporter.ttl = <u8>value
        elif cmsg.cmsg_level == IPPROTO_IPV6 and cmsg.cmsg_type == IPV6_TCLASS:
            memcpy(&value, CMSG_DATA(cmsg), sizeof(value))
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


cdef inline int rx_receive(rx_socket_t *socket, rx_arena_t *arena, batch_t *batch) noexcept nogil:
    """Fills the batch; returns how many datagrams were read from the socket (truncated ones too), 0 when there was nothing."""
    cdef rx_counters_t *c = socket.counters
    cdef int got = recvmmsg(socket.fd, arena.messages, arena.capacity, MSG_DONTWAIT, NULL)
    cdef u32 i, n = 0
    cdef u64 octets = 0
    cdef mmsghdr *message
    batch.n = 0
    batch.listener = socket.listener
    if got <= 0:
        return rx_error(c, get_errno())
    for i in range(<u32>got):
        message = &arena.messages[i]
        octets += message.msg_len
        if unlikely(message.msg_hdr.msg_flags & MSG_TRUNC):
            atomics_add(&c.truncated, 1)
            atomics_add(&c.truncated_bytes, message.msg_len)
            continue
        batch.data[n] = arena.bytes + <size_t>i * arena.stride
        batch.length[n] = message.msg_len
        batch.sum_known[n] = 0
        rx_exporter(&batch.exporter[n], &arena.names[i])
        rx_ancillary(&message.msg_hdr, &batch.exporter[n], &batch.arrival_ns[n])
        n += 1
    batch.n = n
    atomics_add(&c.datagrams, <u64>got)
    atomics_add(&c.bytes, octets)
    atomics_add(&c.batches[counters_batch_bucket(<u32>got)], 1)
    rx_prepare(arena, <u32>got)
    return got
