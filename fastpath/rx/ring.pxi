# Receive engine `ring`: a TPACKET_V3 ring (packet(7), Documentation/networking/packet_mmap.rst) that the kernel fills with whole UDP
# datagrams to the listener's ports while an ingress rule keeps them from the UDP stack. Payloads are read in place: no copy, no system call
# per batch. A segmented packet (virtio-net header, GSO type UDP_L4) is taken apart here: a run in is a run in the batch. Called by
# worker.pxi. Everything the packet says of itself is checked against what was captured; what does not add up is counted and left out.

cdef enum:
    RING_VNET_BYTES = 10               # struct virtio_net_hdr before the link header
    RING_VNET_NEEDS_CSUM = 1           # checksum left to the device: ours was computed by a local sender, nothing to check
    RING_VNET_DATA_VALID = 2
    RING_GSO_UDP_L4 = 5
    RING_BLOCK_STATUS = 8              # offsets in struct tpacket_block_desc, include/uapi/linux/if_packet.h
    RING_BLOCK_PACKETS = 12
    RING_BLOCK_FIRST = 16
    RING_NEXT = 0                      # offsets in struct tpacket3_hdr
    RING_SEC = 4
    RING_NSEC = 8
    RING_SNAPLEN = 12
    RING_LENGTH = 16
    RING_STATUS = 20
    RING_MAC = 24
    RING_NET = 26
    RING_STATUS_USER = 1
    RING_STATUS_CSUM_VALID = 1 << 7


cdef inline u32 ring_u32(const u8 *p) noexcept nogil:
    cdef u32 value
    memcpy(&value, p, 4)
    return value


cdef inline u16 ring_u16(const u8 *p) noexcept nogil:
    cdef u16 value
    memcpy(&value, p, 2)
    return value


cdef inline u32 ring_ip(const u8 *ip, u32 captured, exporter_t *out, const u8 **udp) noexcept nogil:
    """Reads the IP header of a whole UDP datagram; returns the bytes of UDP header and payload, 0 = not one."""
    cdef u32 length
    if captured >= WIRE_IPV4_HEADER and ip[0] == 0x45 and ip[9] == WIRE_PROTOCOL_UDP:
        length = ntohs(ring_u16(ip + 2))
        if ntohs(ring_u16(ip + 6)) & 0x3FFF or length < WIRE_IPV4_HEADER + WIRE_UDP_HEADER or length > captured:
            return 0
        if wire_sum(ip, WIRE_IPV4_HEADER) != 0xFFFF:
            return 0
        wire_map_ipv4(out.address, ip + 12)
        out.family = 4
        out.ttl = ip[8]
        out.tos = ip[1]
        udp[0] = ip + WIRE_IPV4_HEADER
        return length - WIRE_IPV4_HEADER
    if captured >= WIRE_IPV6_HEADER and ip[0] >> 4 == 6 and ip[6] == WIRE_PROTOCOL_UDP:
        length = ntohs(ring_u16(ip + 4))
        if length < WIRE_UDP_HEADER or length > captured - WIRE_IPV6_HEADER:
            return 0
        memcpy(out.address, ip + 8, 16)
        out.family = 6
        out.ttl = ip[7]
        out.tos = <u8>((ip[0] << 4) | (ip[1] >> 4))
        udp[0] = ip + WIRE_IPV6_HEADER
        return length
    return 0


cdef inline bint ring_checksum(const u8 *ip, const u8 *udp, u32 udp_length) noexcept nogil:
    """Whether the UDP checksum holds (RFC 768); absent counts as right over IPv4 only."""
    cdef u32 total
    if ring_u16(udp + 6) == 0:
        return ip[0] >> 4 == 4
    if ip[0] >> 4 == 4:
        total = wire_pseudo(ip + 12, ip + 16, 4, udp_length)
    else:
        total = wire_pseudo(ip + 8, ip + 24, 16, udp_length)
    return wire_fold(<u64>total + wire_sum(udp, udp_length)) == 0xFFFF


cdef inline bint ring_open(rx_ring_t *ring, const u8 *packet) noexcept nogil:
    """Takes up a packet: its datagram, or the first of its segments. False: not for us, or broken (counted by the caller)."""
    cdef const u8 *vnet = packet + ring_u16(packet + RING_MAC) - RING_VNET_BYTES
    cdef const u8 *ip = packet + ring_u16(packet + RING_NET)
    cdef u32 snaplen = ring_u32(packet + RING_SNAPLEN)
    cdef u32 link = ring_u16(packet + RING_NET) - ring_u16(packet + RING_MAC)
    cdef const u8 *udp = NULL
    cdef u32 length
    if snaplen <= link:
        return False
    length = ring_ip(ip, snaplen - link, &ring.exporter, &udp)
    if length < WIRE_UDP_HEADER:
        return False
    ring.segment = length - WIRE_UDP_HEADER
    if vnet[1] == RING_GSO_UDP_L4:
        ring.segment = ring_u16(vnet + 4)
        if ring.segment == 0:
            return False
    elif ntohs(ring_u16(udp + 4)) < WIRE_UDP_HEADER or ntohs(ring_u16(udp + 4)) > length:
        return False
    else:
        length = ntohs(ring_u16(udp + 4))
        ring.segment = length - WIRE_UDP_HEADER
        if not vnet[0] & (RING_VNET_NEEDS_CSUM | RING_VNET_DATA_VALID) and not ring_u32(packet + RING_STATUS) & RING_STATUS_CSUM_VALID:
            if not ring_checksum(ip, udp, length):
                return False
    ring.exporter.port_be = ring_u16(udp)
    ring.payload = udp + WIRE_UDP_HEADER
    ring.left = length - WIRE_UDP_HEADER
    ring.taken = True
    ring.arrival_ns = <u64>ring_u32(packet + RING_SEC) * 1000000000 + ring_u32(packet + RING_NSEC)
    return True


cdef inline void ring_take(rx_ring_t *ring, batch_t *batch, u32 n) noexcept nogil:
    """Enters the next datagram of the packet at hand into the batch."""
    cdef u32 length = ring.segment if ring.left > ring.segment else ring.left
    batch.data[n] = ring.payload
    batch.length[n] = length
    batch.sum_known[n] = 0
    batch.exporter[n] = ring.exporter
    batch.arrival_ns[n] = ring.arrival_ns
    ring.payload += length
    ring.left -= length
    ring.taken = ring.left > 0


cdef inline bint ring_next(rx_ring_t *ring, rx_counters_t *c) noexcept nogil:
    """Moves to the next packet of the block that can be taken; False when the block has no more."""
    cdef const u8 *packet
    while ring.packets:
        packet = ring.position
        ring.packets -= 1
        ring.position += ring_u32(packet + RING_NEXT)
        if ring_u32(packet + RING_SNAPLEN) < ring_u32(packet + RING_LENGTH):
            atomics_add(&c.datagrams, 1)
            atomics_add(&c.truncated, 1)
        elif ring_open(ring, packet):
            return True
        else:
            atomics_add(&c.errors_other, 1)
    return False


cdef inline bint ring_hold(rx_ring_t *ring) noexcept nogil:
    """Takes up the next block if the kernel has handed it over."""
    cdef u8 *block = ring.map + <size_t>ring.block * ring.block_bytes
    if ring.held:
        return True
    if 2 * ring.used >= ring.blocks or not atomic_load32_acquire(<u32 *>(block + RING_BLOCK_STATUS)) & RING_STATUS_USER:
        return False
    ring.held = True
    ring.packets = ring_u32(block + RING_BLOCK_PACKETS)
    ring.position = block + ring_u32(block + RING_BLOCK_FIRST)
    return True


cdef inline bint ring_advance(rx_ring_t *ring, rx_counters_t *c) noexcept nogil:
    """Moves to the next datagram, across blocks; False: there is none now. Blocks used up wait for ring_release()."""
    while not ring.taken:
        if not ring_hold(ring):
            return False
        if not ring_next(ring, c):
            ring.held = False
            ring.used += 1
            ring.block = ring.block + 1 if ring.block + 1 < ring.blocks else 0
    return True


cdef inline int ring_receive(rx_socket_t *socket, u32 capacity, u32 max_datagram, batch_t *batch) noexcept nogil:
    """Fills the batch; returns how many datagrams were taken (those longer than max_datagram too), 0 when there was nothing."""
    cdef rx_ring_t *ring = &socket.ring
    cdef rx_counters_t *c = socket.counters
    cdef u32 n = 0
    cdef u32 cut = 0
    cdef u64 octets = 0
    cdef u64 cut_octets = 0
    batch.listener = socket.listener
    while n + cut < capacity and ring_advance(ring, c):
        ring_take(ring, batch, n)
        octets += batch.length[n]
        if unlikely(batch.length[n] > max_datagram):
            cut += 1
            cut_octets += batch.length[n]
        else:
            n += 1
    batch.n = n
    if n + cut == 0:
        atomics_add(&c.errors_again, 1)
        return 0
    atomics_add(&c.truncated, cut)
    atomics_add(&c.truncated_bytes, cut_octets)
    atomics_add(&c.datagrams, n + cut)
    atomics_add(&c.bytes, octets)
    atomics_add(&c.batches[counters_batch_bucket(n + cut)], 1)
    return <int>(n + cut)


cdef inline void ring_release(rx_socket_t *socket) noexcept nogil:
    """Gives the blocks that are used up back to the kernel, oldest first; the batch that points into them must have been sent."""
    cdef rx_ring_t *ring = &socket.ring
    cdef u32 block
    while ring.used:
        block = ring.block + (ring.blocks if ring.block < ring.used else 0) - ring.used
        atomic_store32_release(<u32 *>(ring.map + <size_t>block * ring.block_bytes + RING_BLOCK_STATUS), 0)
        ring.used -= 1
