# needs: uapi: net; base: atomics, batch, wire; shape: run; tx: engine, raw, shared
# Engine `packet`: sends spoofed copies through an AF_PACKET socket with a virtio-net header (packet(7), PACKET_VNET_HDR), without routing and
# netfilter: runs as one segmented frame (GSO type UDP_L4), the others as plain frames, those of all receivers in one sendmmsg. The next hop's
# link address and the egress interface come from the control plane (Tx.link) and can change at any time. The device computes checksums. What
# cannot be sent as a frame (no link address yet, local receiver, over the MTU, refused) is left to the receiver's raw socket; all datagrams
# of an exporter in a batch are sent by the same engine, so that their order is kept. Called by worker/send.pxi for receivers that take the
# whole batch.

cdef enum:
    PACKET_VNET_BYTES = 10             # struct virtio_net_hdr, include/uapi/linux/virtio_net.h
    PACKET_VNET_NEEDS_CSUM = 1
    PACKET_VNET_GSO_UDP_L4 = 5
    PACKET_CHECKSUM_OFFSET = 6         # in the UDP header


cdef inline bint packet_link(tx_t *tx) noexcept nogil:
    """Copies the link as the control plane last wrote it (sequence lock); False when there is none to use now."""
    cdef u32 tries, before
    for tries in range(4):
        before = atomic_load32_acquire(&tx.link_version)
        tx.link_now = tx.link
        if not before & 1 and atomic_fence_load32(&tx.link_version) == before:
            return tx.link_now.usable
    return False


cdef inline u32 packet_headers(tx_t *tx, const batch_t *batch, u32 d, u32 payload_bytes, u32 segment, u8 *out) noexcept nogil:
    """Writes virtio-net, link, IP and UDP header of a frame with payload_bytes of datagram d's exporter; segment: size of a run's datagrams,
    0 = a plain frame. Returns their length. The UDP checksum is the pseudo header's sum: the device does the rest."""
    cdef const exporter_t *exporter = &batch.exporter[d]
    cdef u8 ttl = tx_raw_ttl(tx, exporter)
    cdef u8 tos = tx_raw_tos(tx, exporter)
    cdef const u8 *source = &exporter.address[12 if tx.family == 4 else 0]
    cdef u32 udp_length = payload_bytes + WIRE_UDP_HEADER
    cdef u32 ip_bytes = wire_ip_header(tx.family)
    cdef u8 *link = out + PACKET_VNET_BYTES
    cdef u8 *ip = link + tx.link_now.header_bytes
    cdef u8 *udp = ip + ip_bytes
    cdef u16 start = <u16>(tx.link_now.header_bytes + ip_bytes)
    memset(out, 0, PACKET_VNET_BYTES)
    memcpy(link, tx.link_now.header, tx.link_now.header_bytes)
    if tx.family == 4:
        wire_ipv4(ip, <u16>(ip_bytes + udp_length), <u16>tx_random(tx), 0, ttl, tos, source, tx.address)
    else:
        wire_ipv6(ip, <u16>udp_length, WIRE_PROTOCOL_UDP, ttl, tos, source, tx.address)
    wire_udp(udp, exporter.port_be, tx.port_be, udp_length, 0, 0, False)
    if tx.checksum:
        out[0] = PACKET_VNET_NEEDS_CSUM
        wire_put16(out + 6, start)
        wire_put16(out + 8, PACKET_CHECKSUM_OFFSET)
        wire_put16(udp + PACKET_CHECKSUM_OFFSET, <u16>wire_pseudo(source, tx.address, 4 if tx.family == 4 else 16, udp_length))
    if segment:
        out[1] = PACKET_VNET_GSO_UDP_L4
        wire_put16(out + 2, <u16>(start + WIRE_UDP_HEADER))
        wire_put16(out + 4, <u16>segment)
    return PACKET_VNET_BYTES + start + WIRE_UDP_HEADER


cdef inline void packet_frame(tx_t *tx, const batch_t *batch, const runs_t *runs, u32 way, u32 first, u32 count,
                              tx_ring_t *ring) noexcept nogil:
    """Appends one frame with `count` datagrams from place `first` of the runs' order; more than one: segmented. The ring has room."""
    cdef u32 m = ring.n
    cdef u32 d = runs.order[first]
    cdef u32 segment = batch.length[d] if count > 1 else 0
    cdef u8 *header = ring.headers + <size_t>m * TX_HEADER
    cdef iovec *vector = &ring.vectors[ring.vectors_used]
    cdef msghdr *message = &ring.messages[m].msg_hdr
    cdef tx_copy_t *copy = &ring.copies[m]
    cdef u32 i
    cdef u32 octets = 0
    for i in range(count):
        vector[1 + i] = runs.vectors[first + i]
        octets += <u32>runs.vectors[first + i].iov_len
    vector[0].iov_base = header
    vector[0].iov_len = packet_headers(tx, batch, d, octets, segment, header)
    message.msg_name = &tx.link_now.name
    message.msg_namelen = sizeof(sockaddr_ll)
    message.msg_iov = vector
    message.msg_iovlen = 1 + count if octets else 1
    message.msg_control = NULL
    message.msg_controllen = 0
    copy.bytes = octets
    copy.copies = <u16>count
    copy.rest = 0
    copy.tx = tx
    copy.way = way
    copy.first = <u16>first
    ring.vectors_used += 1 + count
    ring.n = m + 1


cdef inline bint packet_fits(const tx_t *tx, const runs_t *runs, u32 group) noexcept nogil:
    """Whether all that the exporter sent in this batch is within the MTU of the link."""
    return runs.group_longest[group] + wire_overhead(tx.family) <= tx.link_now.mtu


cdef void packet_send(shared_t *shared, tx_port_t *port, const batch_t *batch, const runs_t *runs, const u32 *ways, u32 n,
                      tx_ring_t *ring) noexcept nogil:
    """The batch to n ways: as frames where that can be, else left to raw."""
    cdef u32 run, a, way, i, first, count, step, group
    cdef tx_t *tx
    for a in range(n):
        tx = shared.ways[ways[a]]
        tx.blocked = port.fd < 0 or not packet_link(tx)
    for run in range(runs.n):
        first = runs.first[run]
        count = runs.count[run]
        group = batch.group[runs.order[first]]
        for a in range(n):
            way = ways[a]
            tx = shared.ways[way]
            if not packet_fits(tx, runs, group) or not shared_takes(tx, runs, group, TX_GAVE_UP_PACKET):
                shared_leave(shared, way, &runs.order[first], count)
                continue
            step = shared_step(tx, runs, run)
            i = first
            while i < first + count:
                if ring.n == TX_RING or ring.vectors_used + step + 1 > TX_VECTORS:
                    shared_flush(shared, port, TX_GAVE_UP_PACKET, runs, ring)
                if tx.blocked:
                    shared_leave(shared, way, &runs.order[i], step)
                else:
                    packet_frame(tx, batch, runs, way, i, step, ring)
                i += step
    shared_flush(shared, port, TX_GAVE_UP_PACKET, runs, ring)
    shared_unblock(shared, ways, n)
