# Engine `udp`: copies leave from our own address through a UDP socket connected to the receiver; the kernel builds headers and fragments.
# The socket's TTL and TOS are set by whoever opened it; a copy carries control messages only where it must differ from them.
# Called by worker.pxi (emit) for unspoofed receivers and for exporters of the other address family. Cannot fail: it accounts.


cdef inline u8 *tx_udp_control(u8 *control, u8 family, int ip_type, int ipv6_type, int value) noexcept nogil:
    """Appends one control message with an int; returns the place of the next."""
    cdef cmsghdr header
    header.cmsg_len = CMSG_LEN(sizeof(int))
    header.cmsg_level = IPPROTO_IP if family == 4 else IPPROTO_IPV6
    header.cmsg_type = ip_type if family == 4 else ipv6_type
    memset(control, 0, CMSG_SPACE(sizeof(int)))
    memcpy(control, &header, sizeof(header))
    memcpy(control + CMSG_LEN(0), &value, sizeof(int))
    return control + CMSG_SPACE(sizeof(int))


cdef inline void tx_udp_emit(tx_t *tx, batch_t *batch, const u16 *selection, u32 n, tx_ring_t *ring) noexcept nogil:
    """Writes one message per selected datagram. n: at most TX_RING."""
    cdef u32 k, d
    cdef msghdr *message
    cdef exporter_t *exporter
    cdef u8 *control
    cdef u8 *end
    if ring.n + n > TX_RING:
        tx_flush(tx, ring)
    for k in range(n):
        d = selection[k]
        exporter = &batch.exporter[d]
        message = &ring.messages[ring.n].msg_hdr
        message.msg_name = NULL
        message.msg_namelen = 0
        ring.vectors[2 * ring.n].iov_base = <void *>batch.data[d]
        ring.vectors[2 * ring.n].iov_len = batch.length[d]
        message.msg_iov = &ring.vectors[2 * ring.n]
        message.msg_iovlen = 1
        message.msg_control = NULL
        message.msg_controllen = 0
        if (tx.tos < 0 and exporter.tos) or (tx.ttl == 0 and exporter.ttl):
            control = ring.control + <size_t>ring.n * TX_CONTROL
            end = control
            if tx.tos < 0 and exporter.tos:
                end = tx_udp_control(end, tx.family, IP_TOS, IPV6_TCLASS, exporter.tos)
            if tx.ttl == 0 and exporter.ttl:
                end = tx_udp_control(end, tx.family, IP_TTL, IPV6_HOPLIMIT, exporter.ttl)
            message.msg_control = control
            message.msg_controllen = end - control
        ring.copies[ring.n].bytes = batch.length[d]
        ring.copies[ring.n].copies = 1
        ring.copies[ring.n].rest = 0
        ring.n += 1
