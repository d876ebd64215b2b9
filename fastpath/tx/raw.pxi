# needs: uapi: net; base: atomics, batch, counters, wire; tx: engine, lost
# Engine `raw`: sends copies through a raw socket, with the IP and UDP header written here, so with any source: the exporter's, or one fixed
# by the configuration. One payload sum per datagram serves all copies. The kernel refuses packets over the MTU, so fragments are cut here.
# Called by worker/send.pxi for receivers and exporters of one family. Never fails: it counts copies that fail.


cdef inline u8 tx_raw_ttl(const tx_t *tx, const exporter_t *exporter) noexcept nogil:
    """Of a packet crafted here: the configured one, else the exporter's, else what most hosts send."""
    return tx.ttl if tx.ttl else (exporter.ttl if exporter.ttl else 64)


cdef inline u8 tx_raw_tos(const tx_t *tx, const exporter_t *exporter) noexcept nogil:
    return exporter.tos if tx.tos < 0 else <u8>tx.tos


cdef inline u32 tx_raw_payload_sum(batch_t *batch, u32 d) noexcept nogil:
    if not batch.sum_known[d]:
        batch.sum[d] = wire_sum(batch.data[d], batch.length[d])
        batch.sum_known[d] = 1
    return batch.sum[d]


cdef inline u32 tx_raw_header(tx_t *tx, batch_t *batch, u32 d, u8 *out, u32 offset, u32 chunk, u32 udp_length, u32 id) noexcept nogil:
    """Writes the headers of one packet that carries `chunk` bytes of the UDP datagram (header and payload) from `offset`; returns their
    length. offset 0 and chunk = udp_length: a whole datagram, not a fragment."""
    cdef exporter_t *exporter = &batch.exporter[d]
    cdef u8 ttl = tx_raw_ttl(tx, exporter)
    cdef u8 tos = tx_raw_tos(tx, exporter)
    cdef const u8 *source = &tx.source[0] if tx.has_source else &exporter.address[12 if tx.family == 4 else 0]
    cdef u16 port_be = tx.source_port_be if tx.source_port_be else exporter.port_be
    cdef bint more = offset + chunk < udp_length
    cdef u32 length
    cdef u32 pseudo = 0
    cdef u32 payload = 0
    if tx.family == 4:
        length = WIRE_IPV4_HEADER
        wire_ipv4(out, <u16>(length + chunk), <u16>id, <u16>((offset >> 3) | (WIRE_MORE_FRAGMENTS if more else 0)), ttl, tos, source,
                  tx.address)
    elif chunk == udp_length:
        length = WIRE_IPV6_HEADER
        wire_ipv6(out, <u16>chunk, WIRE_PROTOCOL_UDP, ttl, tos, source, tx.address)
    else:
        length = WIRE_IPV6_HEADER + WIRE_FRAGMENT_HEADER
        wire_ipv6(out, <u16>(chunk + WIRE_FRAGMENT_HEADER), WIRE_NEXT_FRAGMENT, ttl, tos, source, tx.address)
        wire_ipv6_fragment(out + WIRE_IPV6_HEADER, offset, more, id)
    if offset == 0:
        if tx.checksum:
            pseudo = wire_pseudo(source, tx.address, 4 if tx.family == 4 else 16, udp_length)
            payload = tx_raw_payload_sum(batch, d)
        wire_udp(out + length, port_be, tx.port_be, udp_length, pseudo, payload, tx.checksum)
        length += WIRE_UDP_HEADER
    return length


cdef inline void tx_raw_packet(tx_t *tx, batch_t *batch, u32 d, u32 offset, u32 chunk, u32 udp_length, u32 id, tx_ring_t *ring) noexcept nogil:
    """Appends one packet to the ring, which has room."""
    cdef u32 m = ring.n
    cdef u8 *header = ring.headers + <size_t>m * TX_HEADER
    cdef iovec *vector = &ring.vectors[2 * m]
    cdef msghdr *message = &ring.messages[m].msg_hdr
    cdef u32 skip = offset - WIRE_UDP_HEADER if offset else 0
    vector[0].iov_base = header
    vector[0].iov_len = tx_raw_header(tx, batch, d, header, offset, chunk, udp_length, id)
    vector[1].iov_base = <void *>(batch.data[d] + skip)
    vector[1].iov_len = chunk if offset else chunk - WIRE_UDP_HEADER
    message.msg_name = NULL
    message.msg_namelen = 0
    message.msg_iov = vector
    message.msg_iovlen = 2 if vector[1].iov_len else 1
    message.msg_control = NULL
    message.msg_controllen = 0
    ring.n = m + 1


cdef inline void tx_raw_fragments(tx_t *tx, batch_t *batch, u32 d, u32 udp_length, u32 mtu, tx_ring_t *ring) noexcept nogil:
    """Appends the fragments of one datagram, all with one identification."""
    cdef u32 header = WIRE_IPV4_HEADER if tx.family == 4 else WIRE_IPV6_HEADER + WIRE_FRAGMENT_HEADER
    cdef u32 unit = wire_fragment_bytes(mtu, header)
    cdef u32 parts = (udp_length + unit - 1) // unit
    cdef u32 id = tx_random(tx)
    cdef u32 part, chunk
    cdef tx_copy_t *copy
    if ring.n + parts > TX_RING:
        tx_flush(tx, &tx.port, ring)
    for part in range(parts):
        chunk = unit if part + 1 < parts else udp_length - part * unit
        copy = &ring.copies[ring.n]
        copy.bytes = batch.length[d] if part + 1 == parts else 0
        copy.copies = 1 if part + 1 == parts else 0
        copy.rest = <u16>(parts - part - 1)
        tx_raw_packet(tx, batch, d, part * unit, chunk, udp_length, id, ring)


cdef inline void tx_raw_emit(tx_t *tx, batch_t *batch, const u16 *selection, u32 n, tx_ring_t *ring) noexcept nogil:
    """Writes the packets of the selected datagrams; sends the ring in between when it is full. A datagram that the header's length field
    cannot hold (an IPv6 payload over 65,507 bytes to IPv4 cannot come here: one family) is counted as too long."""
    cdef u32 k, d, id, udp_length
    cdef u32 mtu = atomic_load32(&tx.mtu)
    cdef u32 header = wire_ip_header(tx.family)
    for k in range(n):
        d = selection[k]
        udp_length = batch.length[d] + WIRE_UDP_HEADER
        if udp_length + (WIRE_IPV4_HEADER if tx.family == 4 else 0) > 65535:
            atomics_add(&tx.counters.failed[REASON_MESSAGE_TOO_LONG], 1)
            lost_note(ring.lost, batch.data[d], REASON_MESSAGE_TOO_LONG)
        elif header + udp_length > mtu:
            tx_raw_fragments(tx, batch, d, udp_length, mtu, ring)
        else:
            if ring.n == TX_RING:
                tx_flush(tx, &tx.port, ring)
            ring.copies[ring.n].bytes = batch.length[d]
            ring.copies[ring.n].copies = 1
            ring.copies[ring.n].rest = 0
            id = tx_random(tx)
            tx_raw_packet(tx, batch, d, 0, udp_length, udp_length, id, ring)
