# needs: uapi: net; base: batch, door, wire; handles: memory
# The gateway's end of a door (base/door.pxd) for Python: messages in, tuples out, and back. Cold code beside a worker's, but made for a
# hundred thousand datagrams a second: many a call, no allocation but of what it returns. Called by gateways, never by a worker.

DOOR_FIELDS = ("address", "port", "payload", "arrival_ns", "ttl", "tos", "listener", "receiver")


@cython.final
cdef class DoorEnd:
    cdef int fd
    cdef u8 *slots                     # DOOR_MESSAGES of DOOR_MESSAGE bytes
    cdef mmsghdr messages[DOOR_MESSAGES]
    cdef iovec vectors[DOOR_MESSAGES]
    cdef u32 counts[DOOR_MESSAGES]     # datagrams in each, on the way out
    cdef readonly u64 malformed

    def __cinit__(self, int fd):
        cdef u32 i
        self.fd = fd
        self.slots = <u8 *>memory_alloc(DOOR_MESSAGES, DOOR_MESSAGE)
        for i in range(<u32>DOOR_MESSAGES):
            self.vectors[i].iov_base = self.slots + <size_t>i * DOOR_MESSAGE
            self.messages[i].msg_hdr.msg_iov = &self.vectors[i]
            self.messages[i].msg_hdr.msg_iovlen = 1

    def __dealloc__(self):
        free(self.slots)

    def read(self):
        cdef list found = []
        while self._read(found) and not found:         # messages of which nothing could be read are not the end
            pass
        return found

    cdef bint _read(self, list found) except -1:
        """What a few messages hold, into `found`; False: there is none now."""
        cdef int got, error
        cdef u32 i
        for i in range(<u32>DOOR_MESSAGES):
            self.vectors[i].iov_len = DOOR_MESSAGE
        with nogil:
            got = recvmmsg(self.fd, self.messages, DOOR_MESSAGES, MSG_DONTWAIT, NULL)
            error = get_errno()
            if got < 0 and error == ECONNRESET:        # said once, see door_fetch()
                got = recvmmsg(self.fd, self.messages, DOOR_MESSAGES, MSG_DONTWAIT, NULL)
                error = get_errno()
        if got < 0:
            if error == EAGAIN or error == EINTR:
                return False
            raise OSError(error, "reading a door")
        for i in range(<u32>got):
            if self.messages[i].msg_len == 0:
                if not found:
                    raise EOFError("the other end of the door is gone")
                break
            if self.messages[i].msg_hdr.msg_flags & MSG_TRUNC:
                self.malformed += 1
            else:
                self._take(self.slots + <size_t>i * DOOR_MESSAGE, self.messages[i].msg_len, found)
        return True

    cdef _take(self, const u8 *at, u32 left, list found):
        cdef door_record_t record
        cdef u32 sound
        while left:
            sound = door_read(at, left, &record)
            if sound == DOOR_BROKEN:
                self.malformed += 1
                return
            if sound == DOOR_STRANGE:
                self.malformed += 1
            else:
                found.append((
                    (<const char *>record.address)[12:16] if record.family == 4 else (<const char *>record.address)[0:16],
                    ntohs(record.port_be), (<const char *>at)[DOOR_HEADER:DOOR_HEADER + record.octets], record.arrival_ns,
                    record.ttl, record.tos, record.listener, record.receiver,
                ))
            at += DOOR_HEADER + record.octets
            left -= DOOR_HEADER + record.octets

    def write(self, datagrams not None):
        cdef Py_ssize_t done = 0
        cdef Py_ssize_t count = len(datagrams)
        cdef int filled
        cdef int sent = 1
        cdef u32 i
        cdef int error = 0
        while done < count and sent > 0:
            filled = self._fill(datagrams, done, count)
            with nogil:
                sent = sendmmsg(self.fd, self.messages, <u32>filled, MSG_DONTWAIT | MSG_NOSIGNAL)
                error = get_errno()
            for i in range(<u32>sent if sent > 0 else 0):
                done += self.counts[i]
            if 0 < sent < filled:
                return done
        if sent <= 0 and error != EAGAIN and error != EINTR and error != ENOBUFS and error != ENOMEM:
            raise OSError(error, "writing into a door")        # BrokenPipeError when the other end is gone
        return done

    cdef int _fill(self, datagrams, Py_ssize_t first, Py_ssize_t count) except -1:
        """Packs datagrams from `first` on into messages; returns how many messages."""
        cdef int m = 0
        cdef u32 used = 0
        cdef u32 records = 0
        cdef u32 octets, slot, way
        cdef u64 came
        cdef u8 *at
        cdef exporter_t exporter
        cdef bytes address, payload
        cdef int port, ttl, tos
        cdef const u8 *source
        while first < count:
            address, port, payload, came, ttl, tos, slot, way = datagrams[first]
            self._check(&exporter, address, port, ttl, tos)
            octets = <u32>min(len(payload), 65536)
            if octets > 65535 or slot > 65535:
                raise ValueError(f"a datagram has 0..65535 bytes, a listener a slot of 0..65535: {len(payload)}, {slot}")
            if records == DOOR_RECORDS or used + DOOR_HEADER + octets > DOOR_MESSAGE:
                self.counts[m] = records
                self.vectors[m].iov_len = used
                m += 1
                used = records = 0
                if m == DOOR_MESSAGES:
                    return m
            at = self.slots + <size_t>m * DOOR_MESSAGE + used
            door_write(at, &exporter, octets, came, slot, way)
            source = payload
            memcpy(at + DOOR_HEADER, source, octets)
            used += DOOR_HEADER + octets
            records += 1
            first += 1
        self.counts[m] = records
        self.vectors[m].iov_len = used
        return m + 1

    cdef int _check(self, exporter_t *out, bytes address, int port, int ttl, int tos) except -1:
        """The exporter, if it can be one."""
        cdef const u8 *given = address
        if len(address) == 4:
            wire_map_ipv4(out.address, given)
            out.family = 4
        elif len(address) == 16:
            memcpy(out.address, given, 16)
            out.family = 4 if wire_is_ipv4_mapped(out.address) else 6
        else:
            raise ValueError(f"address has {len(address)} bytes, not 4 or 16")
        if not 0 <= port <= 65535:
            raise ValueError(f"port {port} is not 0..65535")
        if not (0 <= ttl <= 255 and 0 <= tos <= 255):
            raise ValueError(f"ttl {ttl} or tos {tos} is not 0..255")
        out.port_be = htons(<u16>port)
        out.ttl = <u8>ttl
        out.tos = <u8>tos
        return 0
