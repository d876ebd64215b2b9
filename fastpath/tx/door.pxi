# needs: uapi: net; base: batch, door; tx: engine
# Engine `door`: copies go to a gateway (base/door.pxd), many a message, whatever their exporter's family: the datagram as it is, and who sent
# it, when it came and its TTL and TOS. Payloads are not copied here. Called by the worker (emit). Cannot fail: it accounts; what a message
# stands for is sent or dropped as a whole. A full door is not waited for, because a gateway is no network: it may have stopped, and other
# receivers must not wait for it. Whatever the kernel answers, it means that there is no room for the copy; whether the gateway is slow, stuck
# or gone is for the control plane to tell.


cdef int tx_send_door(tx_port_t *port, mmsghdr *messages, u32 n) noexcept nogil:
    """See tx/engine.pxd, `send`."""
    cdef int got = sendmmsg(port.fd, messages, n, MSG_DONTWAIT | MSG_NOSIGNAL)
    if got > 0:
        return got
    if get_errno() == EINTR:
        return -EINTR
    return -EAGAIN


cdef inline void tx_door_emit(tx_t *tx, const batch_t *batch, const u16 *selection, u32 n, tx_ring_t *ring) noexcept nogil:
    """Writes the messages of a selection: one at most a datagram, so the ring has room."""
    cdef u32 i, d, size
    cdef u8 *header
    cdef tx_copy_t *copy = NULL
    cdef msghdr *message = NULL
    cdef u32 used = 0                  # bytes of the message at hand
    for i in range(n):
        d = selection[i]
        size = DOOR_HEADER + batch.length[d]
        if copy == NULL or copy.copies == DOOR_RECORDS or used + size > DOOR_MESSAGE:
            message = &ring.messages[ring.n].msg_hdr
            message.msg_name = NULL
            message.msg_namelen = 0
            message.msg_control = NULL
            message.msg_controllen = 0
            message.msg_iov = &ring.vectors[2 * i]
            message.msg_iovlen = 0
            copy = &ring.copies[ring.n]
            copy.tx = tx
            copy.copies = 0
            copy.rest = 0
            copy.bytes = 0
            ring.n += 1
            used = 0
        header = ring.headers + <size_t>i * TX_HEADER
        door_write(header, &batch.exporter[d], batch.length[d], batch.arrival_ns[d], batch.listener, tx.counters.id)
        ring.vectors[2 * i].iov_base = header
        ring.vectors[2 * i].iov_len = DOOR_HEADER
        ring.vectors[2 * i + 1].iov_base = <void *>batch.data[d]
        ring.vectors[2 * i + 1].iov_len = batch.length[d]
        message.msg_iovlen += 2
        used += size
        copy.copies += 1
        copy.bytes += batch.length[d]
