# needs: uapi: net; base: atomics; tx: door, engine; handles: memory, sockets
# The Python handle of a way: Tx. Cold code: it checks its arguments and raises ValueError; the worker never calls it. Memory comes from
# handles/memory.pxi; a Plan keeps these objects alive while a worker uses them.


cdef int tx_send_nowhere(tx_port_t *port, mmsghdr *messages, u32 n) noexcept nogil:
    """To a receiver whose address is not known: what a socket that is not connected answers, without a system call."""
    return -EDESTADDRREQ


cdef int tx_send_nothing(tx_port_t *port, mmsghdr *messages, u32 n) noexcept nogil:
    """In the place of a fallback that is not there: an exporter's address cannot be the source of a packet of the other family."""
    return -EAFNOSUPPORT


@cython.final
cdef class Tx:
    cdef tx_t *tx
    cdef TxCounters counters
    cdef Tx fallback
    cdef Tx cutter

    def __cinit__(self, int engine, int fd, TxCounters counters not None, bytes address not None, int port, *, int ttl=64, int tos=-1,
                  long long freq=1, bint checksum=True, int mtu=1500, source=None, u32 scope_id=0, long long pause_us=0, bint by_exporter=False,
                  refresh=(0, 0, 0, 0), Tx fallback=None, Tx cutter=None, bint alias=False, bint per_session=False, bint nowhere=False):
        cdef const u8 *octets = address
        if engine not in (TX_ENGINE_UDP, TX_ENGINE_RAW, TX_ENGINE_TRANSPARENT, TX_ENGINE_PACKET, TX_ENGINE_DOOR):
            raise ValueError(f"engine {engine} is unknown")
        if len(address) != 4 and len(address) != 16:
            raise ValueError(f"address has {len(address)} bytes, not 4 or 16")
        if not 1 <= port <= 65535:
            raise ValueError(f"port {port} is not 1..65535")
        if not 0 <= ttl <= 255:
            raise ValueError(f"ttl {ttl} is not 0..255 (0 keeps the exporter's)")
        if not -1 <= tos <= 255:
            raise ValueError(f"tos {tos} is not -1..255 (-1 keeps the exporter's)")
        if not 1 <= freq <= 0xFFFFFFFF:
            raise ValueError(f"freq {freq} is not 1..4294967295")
        if not 0 <= pause_us <= 0xFFFFFFFF:
            raise ValueError(f"pause_us {pause_us} is not 0..4294967295")
        if not checksum and len(address) == 16:
            raise ValueError("a zero UDP checksum is illegal over IPv6 (RFC 8200 §8.1)")
        if fallback is not None and (fallback.counters is not counters or fallback.fallback is not None):
            raise ValueError("a fallback shares its owner's counters and has no fallback")
        if cutter is not None and (engine != TX_ENGINE_UDP or cutter.counters is not counters or cutter.tx.engine != TX_ENGINE_RAW
                                   or not cutter.tx.has_source):
            raise ValueError("a cutter is a raw Tx with a source and its owner's counters, of a Tx of engine udp")
        self.tx = <tx_t *>memory_alloc(1, sizeof(tx_t))
        self.counters = counters
        self.fallback = fallback
        self.tx.port.send = tx_send_kernel
        self.tx.counters = counters.c
        self.tx.port.fd = fd
        self.tx.engine = <u8>engine
        self.tx.family = 4 if len(address) == 4 else 6
        self.tx.ttl = <u8>ttl
        self.tx.tos = tos
        self.tx.freq = <u32>freq
        self.tx.by_exporter = by_exporter
        if per_session and engine != TX_ENGINE_UDP:
            raise ValueError("a source port for each session is for the engine udp only")
        self.tx.alias = alias
        self.tx.per_session = per_session
        self._set_refresh(refresh)
        self.tx.checksum = checksum
        self.tx.pause_us = <u32>pause_us
        self.tx.port_be = htons(<u16>port)
        self.tx.reports = engine == TX_ENGINE_UDP
        self.tx.clean = TX_CLEAN_FLUSHES
        self.tx.random_state = int.from_bytes(urandom(8), "little") | 1
        memcpy(self.tx.address, octets, len(address))
        self._set_name(scope_id)
        self.cutter = cutter
        if cutter is not None:
            self.tx.cutter = cutter.tx
        self.mtu = mtu
        if source is not None and engine not in (TX_ENGINE_UDP, TX_ENGINE_RAW):
            raise ValueError("a fixed source leaves by udp or raw only")
        if fallback is None and source is None and engine != TX_ENGINE_UDP and engine != TX_ENGINE_DOOR:
            self.fallback = Tx(TX_ENGINE_UDP, fd, counters, address, port, freq=freq, by_exporter=by_exporter)
            self.fallback.tx.port.send = tx_send_nothing
            self.fallback.tx.reports = 0
        if source is not None:
            self._set_source(source[0], source[1])
        if engine == TX_ENGINE_DOOR:
            if fallback is not None or pause_us:
                raise ValueError("a door takes both families, and waits for nothing: no fallback, no pause_us")
            self.tx.port.send = tx_send_door
        if nowhere:
            self.tx.port.send = tx_send_nowhere
            self.tx.reports = 0

    def __dealloc__(self):
        free(self.tx)

    cdef _set_refresh(self, refresh):
        self.tx.refresh_copies[0], self.tx.refresh_ms[0], self.tx.refresh_copies[1], self.tx.refresh_ms[1] = refresh
        self.tx.refreshes = any(refresh)
        self.tx.numbered = self.tx.refreshes or (self.tx.freq > 1 and not self.tx.by_exporter) or self.tx.alias or self.tx.per_session

    def replay(self):
        atomic_store32(&self.tx.replay, TX_REPLAY_ALL)

    @property
    def replaying(self):
        return atomic_load32(&self.tx.replay) != 0

    cdef _set_name(self, u32 scope_id):
        cdef sockaddr_in *ipv4 = <sockaddr_in *>&self.tx.name
        if self.tx.family == 4:
            ipv4.sin_family = AF_INET
            ipv4.sin_port = self.tx.port_be
            memcpy(&ipv4.sin_addr, self.tx.address, 4)
        else:
            self.tx.name.sin6_family = AF_INET6
            self.tx.name.sin6_port = self.tx.port_be
            self.tx.name.sin6_scope_id = scope_id
            memcpy(&self.tx.name.sin6_addr, self.tx.address, 16)

    cdef _set_source(self, bytes address, int port):
        cdef const u8 *octets = address
        if len(address) != (4 if self.tx.family == 4 else 16):
            raise ValueError("source and receiver are of different address families")
        if not 0 <= port <= 65535:
            raise ValueError(f"source port {port} is not 0..65535 (0 keeps the exporter's)")
        memcpy(self.tx.source, octets, len(address))
        self.tx.has_source = 1
        self.tx.source_port_be = htons(<u16>port)

    def cut_from(self, bytes address not None, int port):
        if self.cutter is None:
            raise ValueError("this Tx has no cutter")
        self.cutter._set_source(address, port)
        atomic_store32_release(&self.tx.cuts, 1)

    @property
    def fd(self):
        return self.tx.port.fd

    def link(self, int interface=0, bytes header=b"", int mtu=0, bint cuts=False):
        cdef tx_link_t link
        cdef const u8 *octets = header
        memset(&link, 0, sizeof(link))
        if interface:
            if len(header) != 14 and len(header) != 18:
                raise ValueError(f"a link header has 14 or 18 bytes, not {len(header)}")
            if mtu < 68:
                raise ValueError(f"mtu {mtu} is below 68")
            link.usable = 1
            link.mtu = mtu
            link.cuts = cuts
            link.header_bytes = len(header)
            memcpy(link.header, octets, len(header))
            link.name.sll_family = AF_PACKET
            memcpy(&link.name.sll_protocol, octets + 12, 2)
            link.name.sll_ifindex = interface
            link.name.sll_halen = 6
            memcpy(link.name.sll_addr, octets, 6)
        atomic_store32(&self.tx.link_version, self.tx.link_version + 1)
        atomic_fence_release()
        self.tx.link = link
        atomic_fence_release()
        atomic_store32(&self.tx.link_version, self.tx.link_version + 1)

    @property
    def unresolved(self):
        return atomic_load32(&self.tx.unresolved) != 0

    @unresolved.setter
    def unresolved(self, bint value):
        atomic_store32(&self.tx.unresolved, value)

    @property
    def accounted(self):
        return atomic_load32(&self.tx.accounted) != 0

    @accounted.setter
    def accounted(self, bint value):
        atomic_store32(&self.tx.accounted, value)

    @property
    def down(self):
        return atomic_load32(&self.tx.down) != 0

    @down.setter
    def down(self, bint value):
        atomic_store32(&self.tx.down, value)

    @property
    def refusing(self):
        return atomic_load32(&self.tx.refusing) != 0

    @refusing.setter
    def refusing(self, bint value):
        atomic_store32(&self.tx.refusing, value)

    @property
    def looped(self):
        return atomic_load32(&self.tx.looped) != 0

    @looped.setter
    def looped(self, bint value):
        atomic_store32(&self.tx.looped, value)

    def standby(self, bint waiting):
        if waiting:
            self._wait(TX_WAITING)
        elif atomic_load32(&self.tx.waiting) == TX_WAITING:
            self._wait(TX_WAKING)
            self.replay()

    cdef _wait(self, u32 how):
        atomic_store32(&self.tx.waiting, how)
        if self.fallback is not None:
            atomic_store32(&self.fallback.tx.waiting, how)

    @property
    def waiting(self):
        return atomic_load32(&self.tx.waiting) != 0

    @property
    def gave_up(self):
        return self.tx.gave_up

    @property
    def mtu(self):
        return atomic_load32(&self.tx.mtu)

    @mtu.setter
    def mtu(self, int value):
        cdef int least = 68 if self.tx.family == 4 else 1280
        if not least <= value <= 0x7FFFFFFF:
            raise ValueError(f"mtu {value} is below {least}")
        atomic_store32(&self.tx.mtu, <u32>value if value < 65535 else 65535)
        if self.cutter is not None:
            self.cutter.mtu = value
