# needs: uapi: net; base: atomics, batch, wire; shape: run; tx: engine
# Engine `udp`: sends copies from an address of this host through a UDP socket connected to the receiver; the kernel builds headers and
# fragments. Runs of datagrams of equal size are sent by one segmented send (UDP_SEGMENT, udp(7)), also of different exporters, because all
# copies have the same source.
# The opener of the socket sets its TTL and TOS; a message has control messages only where it must differ from them. Called by worker/send.pxi
# for unspoofed receivers and for exporters of the other address family. Never fails: it counts copies that fail.

cdef enum:
    UDP_SOCKET_TTL = 64                # of every socket whose copies have no TTL of their own; host/sockets.py sets it, too


cdef inline u8 *tx_udp_control(u8 *control, int level, int kind, const void *value, u32 octets) noexcept nogil:
    """Appends one control message (cmsg(3)); returns the place of the next."""
    cdef cmsghdr header
    header.cmsg_len = CMSG_LEN(octets)
    header.cmsg_level = level
    header.cmsg_type = kind
    memset(control, 0, CMSG_SPACE(octets))
    memcpy(control, &header, sizeof(header))
    memcpy(control + CMSG_LEN(0), value, octets)
    return control + CMSG_SPACE(octets)


cdef inline void tx_udp_ancillary(tx_t *tx, const exporter_t *exporter, u16 segment, bint own, u8 *control, msghdr *message) noexcept nogil:
    """Control messages of one send: segment size (0 = none) first, then TOS and TTL where the socket's will not do:
    those of the receiver's own socket (own) are set to the configured ones, a shared one has UDP_SOCKET_TTL and 0. The kernel's
    defaults (net.ipv4.ip_default_ttl, hop limits of routes and interfaces, 1 for groups) are in no copy."""
    cdef u8 *end = control
    cdef int level = IPPROTO_IP if tx.family == 4 else IPPROTO_IPV6
    cdef int tos_type = IP_TOS if tx.family == 4 else IPV6_TCLASS
    cdef int ttl_type = IP_TTL if tx.family == 4 else IPV6_HOPLIMIT
    cdef int tos = exporter.tos if tx.tos < 0 else tx.tos
    cdef int ttl = tx.ttl if tx.ttl else exporter.ttl
    cdef int socket_tos = tx.tos if own and tx.tos > 0 else 0
    cdef int socket_ttl = tx.ttl if own else UDP_SOCKET_TTL
    if segment:
        end = tx_udp_control(end, SOL_UDP, UDP_SEGMENT, &segment, sizeof(segment))
    if tos != socket_tos:
        end = tx_udp_control(end, level, tos_type, &tos, sizeof(tos))
    if ttl and ttl != socket_ttl:
        end = tx_udp_control(end, level, ttl_type, &ttl, sizeof(ttl))
    message.msg_control = control if end != control else NULL
    message.msg_controllen = end - control


cdef inline bint tx_udp_segments(tx_t *tx, const batch_t *batch, const runs_t *runs, u32 run) noexcept nogil:
    """Whether a run may leave this receiver's way as one segmented send."""
    if runs.count[run] < 2 or not tx.checksum or tx.pause_us or tx.gave_up & TX_GAVE_UP_SEGMENT:
        return False
    return batch.length[runs.order[runs.first[run]]] + wire_overhead(tx.family) <= atomic_load32(&tx.mtu)


cdef inline void tx_udp_message(tx_t *tx, const batch_t *batch, runs_t *runs, u32 first, u32 count, bint own, tx_ring_t *ring) noexcept nogil:
    """Appends one send of `count` datagrams from place `first` of the runs' order; more than one: segmented."""
    cdef u32 m = ring.n
    cdef msghdr *message = &ring.messages[m].msg_hdr
    cdef u32 d = runs.order[first]
    cdef u16 segment = <u16>batch.length[d] if count > 1 else 0
    cdef u32 i
    cdef tx_copy_t *copy = &ring.copies[m]
    message.msg_iov = &runs.vectors[first]
    message.msg_iovlen = count
    tx_udp_ancillary(tx, &batch.exporter[d], segment, own, ring.control + <size_t>m * TX_CONTROL, message)
    copy.bytes = 0
    for i in range(first, first + count):
        copy.bytes += <u32>runs.vectors[i].iov_len
    copy.copies = <u16>count
    copy.rest = 0
    copy.tx = tx
    ring.n = m + 1


cdef inline void tx_udp_emit(tx_t *tx, const batch_t *batch, runs_t *runs, u32 begin, u32 end, tx_ring_t *ring) noexcept nogil:
    """Writes the messages of runs begin..end-1: at most one per datagram, so the ring has room."""
    cdef u32 run, i, step
    cdef msghdr *message
    for run in range(begin, end):
        step = runs.count[run] if tx_udp_segments(tx, batch, runs, run) else 1
        i = runs.first[run]
        while i < runs.first[run] + runs.count[run]:
            message = &ring.messages[ring.n].msg_hdr
            message.msg_name = NULL
            message.msg_namelen = 0
            tx_udp_message(tx, batch, runs, i, step, True, ring)
            i += step
