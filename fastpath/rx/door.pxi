# needs: uapi: net; base: atomics, batch, counters, door; rx: recvmmsg, socket
# Receive engine `door`: datagrams that a gateway hands in (base/door.pxd), read into the worker's arena, many a message and a few messages
# a call. The exporter, its TTL and TOS and the time of arrival are what the record says; whose listener it is, the door says. A gateway is
# ours, but nothing that it writes is believed: what is cut short or strange is counted as truncated and as a receive error, and left out.
# Called by the worker. Nothing in a message ends the loop. An empty message is how the end of the other side looks: from then on the door
# is shut, and is to be polled no more.


cdef inline void door_shut(rx_socket_t *socket, rx_arena_t *arena) noexcept nogil:
    """Nothing comes through it any more."""
    arena.got = arena.next = 0
    arena.open = False
    atomic_store32(&socket.shut, 1)


cdef inline bint door_fetch(rx_socket_t *socket, rx_arena_t *arena) noexcept nogil:
    """Reads messages into the arena; False: there are none now, or none any more."""
    cdef u32 want = arena.capacity if arena.capacity < DOOR_MESSAGES else <u32>DOOR_MESSAGES
    cdef int got
    rx_prepare(arena, arena.got)                       # the headers of the other engines, whose calls share the slots
    arena.got = arena.next = 0
    if socket.shut:
        return False
    got = recvmmsg(socket.fd, arena.door, want, MSG_DONTWAIT, NULL)
    if got < 0 and get_errno() == ECONNRESET:          # said once: the other side ended and had not read all; what it wrote is still there
        got = recvmmsg(socket.fd, arena.door, want, MSG_DONTWAIT, NULL)
    if got <= 0:
        rx_error(socket.counters, get_errno())
        return False
    arena.got = <u32>got
    return True


cdef inline bint door_open(rx_arena_t *arena) noexcept nogil:
    """Takes up the next message; False: it is empty. Of one that is longer than a slot nothing is read: it is none of ours."""
    cdef const mmsghdr *message = &arena.door[arena.next]
    arena.payload = arena.bytes + <size_t>arena.next * arena.stride
    arena.left = DOOR_HEADER - 1 if message.msg_hdr.msg_flags & MSG_TRUNC else message.msg_len
    arena.next += 1
    arena.open = True
    return arena.left > 0


cdef inline int door_receive(rx_socket_t *socket, rx_arena_t *arena, batch_t *batch) noexcept nogil:
    """Fills the batch, as rx_receive(); returns how many datagrams that took, those left out too, 0 when there was nothing."""
    cdef rx_counters_t *c = socket.counters
    cdef door_record_t record
    cdef u32 found, length
    cdef u32 n = 0
    cdef u32 cut = 0
    cdef u32 strange = 0
    cdef u64 octets = 0
    cdef u64 cut_octets = 0
    batch.n = 0
    batch.cut = 0
    batch.listener = socket.listener
    if not rx_pending(arena) and not door_fetch(socket, arena):
        return 0
    while n + cut < arena.capacity and rx_pending(arena):
        if not arena.open and not door_open(arena):
            door_shut(socket, arena)
            break
        found = door_read(arena.payload, arena.left, &record)
        length = arena.left if found == DOOR_BROKEN else record.octets
        octets += length
        if unlikely(found != DOOR_SOUND or length > arena.max_datagram):
            strange += found != DOOR_SOUND
            cut += 1
            cut_octets += length
            if found == DOOR_SOUND:
                door_exporter(&record, &batch.exporter[n])
                batch_note_cut(batch, &batch.exporter[n], length, record.arrival_ns)
        else:
            batch.data[n] = arena.payload + DOOR_HEADER
            batch.length[n] = length
            batch.sum_known[n] = 0
            door_exporter(&record, &batch.exporter[n])
            batch.arrival_ns[n] = record.arrival_ns
            n += 1
        length += 0 if found == DOOR_BROKEN else DOOR_HEADER
        arena.payload += length
        arena.left -= length
        arena.open = arena.left > 0
    if n + cut == 0:
        return 0
    batch.n = n
    if unlikely(strange):
        atomics_add(&c.errors_other, strange)
    return rx_received(c, n + cut, octets, cut, cut_octets)
