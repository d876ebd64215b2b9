# needs: uapi: net; base: atomics, batch, counters, wire; rx: socket
# Receive engine `ring`: a TPACKET_V3 ring (packet(7), Documentation/networking/packet_mmap.rst). The kernel fills it with whole UDP datagrams
# to the listener's ports, while an ingress rule keeps these datagrams from the UDP stack. Payloads are read in place: no copy, and no system
# call per batch while there is a backlog. A segmented packet (virtio-net header, GSO type UDP_L4) is split here: it is a run in the batch.
# Called by worker/loop.pxi. No value is trusted: every offset and length is read once and limited by its block; inconsistent packets are
# counted and dropped.
#
# The kernel closes a block when the block is full or its timer expires, and reports nothing before. A short timer would fill a ring with almost
# empty blocks. So the timer is long, the ring has its full size in bytes, and the block that the kernel still fills is read as well
# (net/packet/af_packet.c, tpacket_rcv(), prb_fill_curr_block(), prb_close_block(); 5.12 to 6.18):
#   - Under the queue's lock, a slot gets its length (next), the block's count of packets increases, and the slot's status is cleared. So after
#     a count was read and the lock was taken once (SIOCINQ only takes this lock), the status of a counted slot is never an old one.
#   - Without the lock, the packet is copied, then TP_STATUS_USER is stored, then the rest of the header. Where stores become visible in order
#     (x86), the packet is complete when the status is set. On other processors open blocks are not read: see RxSocket(bell=...).
#   - The rest of the header can still be that of an older packet at this place. Lengths are used if they agree with `next`, which leaves an
#     error of at most 7 bytes of padding, and the IP header decides; offsets are used if they are the usual ones of this device.
#   - The doorbell wakes the worker: a packet socket with the same filter and a ring of one slot. A packet that finds the slot empty fills it
#     and wakes the worker; while the slot is full, other packets pass it. The doorbell comes after the ring, so the order is: empty the slot,
#     then read the ring, then wait.
#   - A slot may never be filled (a GSO type that a virtio-net header cannot express, which the kernel counts as a drop). Only when the block is
#     closed is it known whether a slot is late or stays empty; so after a millisecond it is skipped, and checked again then.

cdef enum:
    RING_VNET_BYTES = 10               # struct virtio_net_hdr before the link header
    RING_VNET_NEEDS_CSUM = 1           # checksum left to the device: ours was computed by a local sender, nothing to check
    RING_VNET_DATA_VALID = 2
    RING_GSO_UDP_L4 = 5
    RING_BLOCK_STATUS = 8              # offsets in struct tpacket_block_desc, include/uapi/linux/if_packet.h
    RING_BLOCK_PACKETS = 12
    RING_BLOCK_LENGTH = 20
    RING_BLOCK_SEC = 32                # when the kernel began to fill it
    RING_BLOCK_NSEC = 36
    RING_NEXT = 0                      # offsets in struct tpacket3_hdr
    RING_SEC = 4
    RING_NSEC = 8
    RING_SNAPLEN = 12
    RING_LENGTH = 16
    RING_STATUS = 20
    RING_MAC = 24
    RING_SLOT_HEADER = 68              # TPACKET3_HDRLEN
    RING_STATUS_USER = 1
    RING_STATUS_CSUM_VALID = 1 << 7
    RING_NOTHING = 0                   # what ring_arm() finds, see rx_ring_t.again
    RING_LATER = 1
    RING_NOW = 2
    RING_PATIENCE_NS = 1000000         # how long a slot of an open block that is not whole holds up those behind it

ctypedef struct ring_slot_t:           # the header of a slot, read once
    u32 step                           # bytes to the next slot or the end of the block; 0: cannot be
    u32 status
    u32 snaplen
    u32 length
    u16 offsets[2]                     # of the link header and of the network header


cdef inline u32 ring_u32(const u8 *p) noexcept nogil:
    cdef u32 value
    memcpy(&value, p, 4)
    return value


cdef inline u16 ring_u16(const u8 *p) noexcept nogil:
    cdef u16 value
    memcpy(&value, p, 2)
    return value


cdef inline u64 ring_time(const u8 *p) noexcept nogil:
    """Seconds and nanoseconds as one number (CLOCK_REALTIME)."""
    return <u64>ring_u32(p) * 1000000000 + ring_u32(p + 4)


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


cdef inline bint ring_open(rx_ring_t *ring, const u8 *packet, const ring_slot_t *slot) noexcept nogil:
    """Takes up a packet whose slot fits: its datagram, or the first of its segments. False: not for us, or broken (counted by the caller)."""
    cdef const u8 *vnet = packet + slot.offsets[0] - RING_VNET_BYTES
    cdef const u8 *ip = packet + slot.offsets[1]
    cdef u32 captured = slot.snaplen - (slot.offsets[1] - slot.offsets[0])
    cdef const u8 *udp = NULL
    cdef u32 length = ring_ip(ip, captured, &ring.exporter, &udp)
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
        if not vnet[0] & (RING_VNET_NEEDS_CSUM | RING_VNET_DATA_VALID) and not slot.status & RING_STATUS_CSUM_VALID:
            if not ring_checksum(ip, udp, length):
                return False
    ring.exporter.port_be = ring_u16(udp)
    ring.payload = udp + WIRE_UDP_HEADER
    ring.left = length - WIRE_UDP_HEADER
    ring.taken = True
    ring.arrival_ns = ring_time(packet + RING_SEC)
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


cdef inline u8 *ring_block(const rx_ring_t *ring, u32 block) noexcept nogil:
    return ring.map + <size_t>block * ring.block_bytes


cdef inline void ring_read_slot(const rx_ring_t *ring, const u8 *packet, ring_slot_t *slot) noexcept nogil:
    """Reads the header of the slot at hand. The kernel ends a block with a step of 0 just before it closes it."""
    cdef u32 room = ring.block_bytes - ring.offset
    cdef u32 offsets
    slot.step = 0
    if room < RING_SLOT_HEADER:
        return
    slot.step = atomic_load32(<const u32 *>(packet + RING_NEXT))
    if slot.step == 0 and ring.closed and ring.index + 1 == ring.packets:
        slot.step = room
    elif slot.step < RING_SLOT_HEADER or slot.step > room or slot.step & 7:
        slot.step = 0
    slot.status = atomic_load32_acquire(<const u32 *>(packet + RING_STATUS))
    slot.snaplen = atomic_load32(<const u32 *>(packet + RING_SNAPLEN))
    slot.length = atomic_load32(<const u32 *>(packet + RING_LENGTH))
    offsets = atomic_load32(<const u32 *>(packet + RING_MAC))
    memcpy(slot.offsets, &offsets, 4)


cdef inline bint ring_fits(const ring_slot_t *slot) noexcept nogil:
    """Whether the packet, from its virtio-net header to its last byte, is in its slot."""
    cdef u32 link = slot.offsets[0]
    cdef u32 network = slot.offsets[1]
    return (RING_SLOT_HEADER + RING_VNET_BYTES <= link <= network and link <= slot.step and slot.snaplen <= slot.step - link
            and network - link < slot.snaplen)


cdef inline bint ring_agrees(const ring_slot_t *slot) noexcept nogil:
    """Whether the lengths of a slot that fits, in a block that the kernel fills, are those of the packet that is in it: it keeps all bytes, and
    the next slot follows the last of them."""
    return slot.snaplen == slot.length and (slot.offsets[0] + slot.snaplen + 7) & ~<u32>7 == slot.step


cdef inline bint ring_waited(rx_ring_t *ring) noexcept nogil:
    """Whether the slot at hand has been waited for long enough."""
    cdef timespec now
    cdef u64 now_ns
    clock_gettime(CLOCK_MONOTONIC, &now)
    now_ns = <u64>now.tv_sec * 1000000000 + <u64>now.tv_nsec
    if ring.waited_ns == 0:
        ring.waited_ns = now_ns
    return now_ns - ring.waited_ns >= RING_PATIENCE_NS


cdef inline bint ring_ready(rx_ring_t *ring, const ring_slot_t *slot) noexcept nogil:
    """Whether to go on with the slot at hand, in a block that the kernel fills: to its packet, or past it if it is not whole."""
    cdef bint whole = slot.status & RING_STATUS_USER and ring_fits(slot) and ring_agrees(slot)
    if likely(whole and memcmp(slot.offsets, ring.offsets, 4) == 0):
        return True
    if not ring_waited(ring):
        return False
    if whole:
        memcpy(ring.offsets, slot.offsets, 4)          # the usual ones of this device, then
    elif ring.passed == 0:
        ring.passed = ring.offset
        ring.passed_index = ring.index
    return True


cdef inline bint ring_next(rx_ring_t *ring, rx_counters_t *c) noexcept nogil:
    """Moves to the next packet of the block that can be taken; False when there is none now, or no more."""
    cdef u8 *packet
    cdef ring_slot_t slot
    cdef bint whole
    while ring.index < ring.packets:
        packet = ring_block(ring, ring.block) + ring.offset
        ring_read_slot(ring, packet, &slot)
        if unlikely(slot.step == 0):
            if ring.closed:
                atomics_add(&c.errors_other, 1)
                ring.index = ring.packets
            else:
                ring_waited(ring)
            return False
        if not ring.closed and not ring_ready(ring, &slot):
            return False
        whole = slot.status & RING_STATUS_USER and ring_fits(&slot)
        if not ring.closed:
            ring.waited_ns = 0
            whole = whole and ring_agrees(&slot)
            if unlikely(ring.passed and whole):        # so that it is not taken again when the block is closed
                atomic_store32(<u32 *>(packet + RING_STATUS), slot.status & ~<u32>RING_STATUS_USER)
        ring.offset += slot.step
        ring.index += 1
        if unlikely(not whole):
            if ring.closed and slot.status & RING_STATUS_USER:
                atomics_add(&c.errors_other, 1)
        elif unlikely(slot.snaplen < slot.length):
            atomics_add(&c.datagrams, 1)
            atomics_add(&c.truncated, 1)
        elif likely(ring_open(ring, packet, &slot)):
            if not ring.closed and ring.arrival_ns < ring.opened_ns:
                ring.arrival_ns = ring.opened_ns       # not written yet
            return True
        else:
            atomics_add(&c.errors_other, 1)
    return False


cdef inline bint ring_look(const rx_socket_t *socket, rx_ring_t *ring) noexcept nogil:
    """Learns how many packets the block at hand has by now; False: nothing of it can be read now."""
    cdef u8 *block = ring_block(ring, ring.block)
    cdef u32 packets
    cdef int ignored
    if ring.closed:
        return True
    if 2 * ring.used >= ring.blocks:
        return False
    if atomic_load32_acquire(<const u32 *>(block + RING_BLOCK_STATUS)) & RING_STATUS_USER:
        ring.closed = True
        ring.packets = atomic_load32(<const u32 *>(block + RING_BLOCK_PACKETS))
        ring.waited_ns = 0
        if unlikely(ring.passed):
            ring.offset = ring.passed
            ring.index = ring.passed_index
            ring.passed = 0
        return True
    if ring.bell == NULL:
        return False
    packets = atomic_load32_acquire(<const u32 *>(block + RING_BLOCK_PACKETS))
    if packets != ring.packets:
        ioctl(socket.fd, SIOCINQ, &ignored)            # the lock, see above
        ring.packets = packets
        ring.opened_ns = ring_time(block + RING_BLOCK_SEC) if likely(socket.overlap == NULL) else 0
    return ring.index < packets


cdef inline bint ring_advance(const rx_socket_t *socket, rx_ring_t *ring) noexcept nogil:
    """Moves to the next datagram, across blocks; False: there is none now. Blocks used up wait for ring_release()."""
    while not ring.taken:
        if not ring_look(socket, ring):
            return False
        if ring_next(ring, socket.counters):
            return True
        if not ring.closed:
            return False
        ring.closed = False
        ring.used += 1
        ring.block = ring.block + 1 if ring.block + 1 < ring.blocks else 0
        ring.packets = ring.index = 0
        ring.offset = RING_BLOCK_HEADER
    return True


cdef inline int ring_receive(rx_socket_t *socket, u32 capacity, u32 max_datagram, batch_t *batch) noexcept nogil:
    """Fills the batch; returns how many datagrams were taken (those longer than max_datagram too), 0 when there was nothing."""
    cdef rx_ring_t *ring = &socket.ring
    cdef rx_counters_t *c = socket.counters
    cdef u32 n = 0
    cdef u32 cut = 0
    cdef u64 octets = 0
    cdef u64 cut_octets = 0
    batch.cut = 0
    batch.listener = socket.listener
    while n + cut < capacity and ring_advance(socket, ring):
        ring_take(ring, batch, n)
        octets += batch.length[n]
        if unlikely(batch.length[n] > max_datagram):
            cut += 1
            cut_octets += batch.length[n]
            batch_note_cut(batch, &batch.exporter[n], batch.length[n], batch.arrival_ns[n])
        else:
            n += 1
    batch.n = n
    atomic_store64(&ring.mark, <u64>ring.block << 32 | ring.offset)
    if n + cut == 0:
        atomics_add(&c.errors_again, 1)
        if unlikely(socket.overlap != NULL) and ring.waited_ns == 0:
            rx_overlap_end(socket)
        return 0
    if unlikely(socket.overlap != NULL):
        return rx_overlapping(socket, batch, octets, cut, cut_octets)
    return rx_received(c, n + cut, octets, cut, cut_octets)


cdef inline void ring_release(rx_socket_t *socket) noexcept nogil:
    """Gives the blocks that are used up back to the kernel, oldest first, as if nothing were in them; the batch that points into them must have
    been sent. The count must be 0 until the kernel begins to fill the block: till then nothing else tells that what it counts is old."""
    cdef rx_ring_t *ring = &socket.ring
    cdef u8 *block
    while ring.used:
        block = ring_block(ring, ring.block + (ring.blocks if ring.block < ring.used else 0) - ring.used)
        atomic_store32(<u32 *>(block + RING_BLOCK_PACKETS), 0)
        atomic_store32(<u32 *>(block + RING_BLOCK_LENGTH), 0)
        atomic_store32_release(<u32 *>(block + RING_BLOCK_STATUS), 0)
        ring.used -= 1


cdef inline bint ring_rung(const rx_ring_t *ring) noexcept nogil:
    return ring.bell != NULL and atomic_load32(ring.bell) != 0


cdef inline u32 ring_arm(rx_socket_t *socket) noexcept nogil:
    """Sets the doorbell, then looks: RING_NOW: there is something to read; RING_LATER: a slot is waited for; RING_NOTHING: the doorbell, or
    without one the socket itself, will tell."""
    cdef rx_ring_t *ring = &socket.ring
    if ring.bell == NULL:
        return RING_NOTHING
    atomic_store32(ring.bell, 0)
    atomic_fence()
    if ring.waited_ns:
        return RING_LATER
    return RING_NOW if ring.taken or ring_look(socket, ring) else RING_NOTHING
