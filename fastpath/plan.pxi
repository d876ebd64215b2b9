# Python handles of a plan: counters, sockets, ways out, and the Plan that ties them together. Cold code: it checks what it is given and raises
# ValueError; the worker never comes here. A Plan owns all memory that its work_t points to and keeps its parts alive.

ctypedef struct work_t:                # what one worker does: routing, and the ways in and out it names
    plan_t routing
    rx_socket_t **sockets
    u32 socket_count
    tx_t **ways
    u32 *owner                         # index in the caller's list of Tx, for each way (a fallback has its owner's)
    u16 *selections                    # BATCH_LIMIT datagram indexes a way
    u32 *selected                      # how many of them, 0 outside a batch
    u32 *active                        # ways with selected > 0 in this batch
    u32 *shared                        # of these, those that leave by the exporters' sockets
    u32 *framed                        # of these, those that leave by the packet socket
    u16 *leftovers                     # BATCH_LIMIT a way: what the shared socket did not take
    u32 *left                          # how many, 0 outside a batch
    u32 *numbers                       # BATCH_LIMIT a way: sequence numbers to write into the copies ...
    u8 *numbered                       # ... where this is 1
    u32 *rewrites                      # how many, 0 outside a batch


cdef void *plan_alloc(size_t count, size_t size) except NULL:
    """Zeroed memory on its own cache lines; at least one line, so that no pointer is NULL."""
    cdef void *p = NULL
    cdef size_t octets = ((count * size + 63) // 64 + 1) * 64
    if posix_memalign(&p, 64, octets) != 0 or p == NULL:
        raise MemoryError(f"{octets} bytes for the datapath")
    memset(p, 0, octets)
    return p


cdef void *plan_arena(void **chain, size_t count, size_t size) except NULL:
    """Zeroed memory that plan_free(chain) gives back with all the rest: a new plan is a new arena (one line before it links the chain)."""
    cdef u8 *p = <u8 *>plan_alloc(64 + count * size, 1)
    (<void **>p)[0] = chain[0]
    chain[0] = p
    return p + 64


cdef void plan_free(void *chain) noexcept nogil:
    cdef void *following
    while chain != NULL:
        following = (<void **>chain)[0]
        free(chain)
        chain = following


cdef u32 plan_receivers = 0            # ids given out, under the GIL


cdef u32 plan_power_of_two(u64 n):
    cdef u32 p = 1
    while p < n and p < <u32>1 << 30:
        p <<= 1
    return p


@cython.final
cdef class RxCounters:
    cdef rx_counters_t *c

    def __cinit__(self):
        self.c = <rx_counters_t *>plan_alloc(1, sizeof(rx_counters_t))

    def __dealloc__(self):
        free(self.c)

    def read(self):
        return snapshot_u64(&self.c.datagrams, RX_FIELD_COUNT)

    def batches(self):
        return snapshot_u64(self.c.batches, BATCH_BUCKETS)


@cython.final
cdef class TxCounters:
    cdef tx_counters_t *c

    def __cinit__(self):
        global plan_receivers
        plan_receivers += 1
        self.c = <tx_counters_t *>plan_alloc(1, sizeof(tx_counters_t))
        self.c.id = plan_receivers

    def __dealloc__(self):
        free(self.c)

    def read(self):
        return snapshot_u64(&self.c.offered, TX_FIELD_COUNT)


@cython.final
cdef class RxSocket:
    cdef rx_socket_t socket
    cdef RxCounters counters
    cdef Py_buffer view                # of the ring's mapping, which it keeps alive

    def __cinit__(self, int fd, RxCounters counters not None, int listener, *, ring=None, size_t block_bytes=0, bint flow=False):
        if listener < 0 or listener > 0xFFFF:
            raise ValueError(f"listener index {listener} is not 0..65535")
        self.counters = counters
        self.socket.fd = fd
        self.socket.listener = listener
        self.socket.counters = counters.c
        self.socket.flow = flow
        self.socket.stamps = self.socket.stamped = self._has_stamps()
        if ring is not None:
            PyObject_GetBuffer(ring, &self.view, PyBUF_WRITABLE)
            if block_bytes == 0 or self.view.len == 0 or <size_t>self.view.len % block_bytes:
                raise ValueError(f"a ring of {self.view.len} bytes has no whole blocks of {block_bytes}")
            self.socket.ring.map = <u8 *>self.view.buf
            self.socket.ring.block_bytes = block_bytes
            self.socket.ring.blocks = <u32>(<size_t>self.view.len // block_bytes)

    cdef bint _has_stamps(self):
        cdef int on = 0
        cdef socklen_t length = sizeof(on)
        return getsockopt(self.socket.fd, SOL_SOCKET, SO_TIMESTAMPNS, &on, &length) == 0 and on != 0

    def __dealloc__(self):
        PyBuffer_Release(&self.view)       # nothing when there is no ring

    @property
    def fd(self):
        return self.socket.fd

    @property
    def listener(self):
        return self.socket.listener

    def set_flow(self, bint on):
        """Whether its datagrams go through the flow stage; any thread may call it while the worker runs."""
        atomic_store32(&self.socket.flow, 1 if on else 0)


cdef int tx_send_nothing(tx_t *tx, mmsghdr *messages, u32 n) noexcept nogil:
    """In the place of a fallback that is not there: an exporter's address cannot be the source of a packet of the other family."""
    return -EAFNOSUPPORT


@cython.final
cdef class Tx:
    cdef tx_t *tx
    cdef TxCounters counters
    cdef Tx fallback

    def __cinit__(self, int engine, int fd, TxCounters counters not None, bytes address not None, int port, *, int ttl=64, int tos=-1,
                  long long freq=1, bint checksum=True, int mtu=1500, source=None, u32 scope_id=0, long long pause_us=0, bint by_exporter=False,
                  refresh=(0, 0, 0, 0), Tx fallback=None):
        cdef const u8 *octets = address
        if engine not in (TX_ENGINE_UDP, TX_ENGINE_RAW, TX_ENGINE_TRANSPARENT, TX_ENGINE_PACKET):
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
        self.tx = <tx_t *>plan_alloc(1, sizeof(tx_t))
        self.counters = counters
        self.fallback = fallback
        self.tx.send = tx_send_kernel
        self.tx.counters = counters.c
        self.tx.fd = fd
        self.tx.engine = <u8>engine
        self.tx.family = 4 if len(address) == 4 else 6
        self.tx.ttl = <u8>ttl
        self.tx.tos = tos
        self.tx.freq = <u32>freq
        self.tx.by_exporter = by_exporter
        self._set_refresh(refresh)
        self.tx.checksum = checksum
        self.tx.pause_us = <u32>pause_us
        self.tx.port_be = htons(<u16>port)
        self.tx.reports = engine == TX_ENGINE_UDP
        self.tx.clean = TX_CLEAN_FLUSHES
        self.tx.random_state = int.from_bytes(urandom(8), "little") | 1
        memcpy(self.tx.address, octets, len(address))
        self._set_name(scope_id)
        self.mtu = mtu
        if source is not None and engine not in (TX_ENGINE_UDP, TX_ENGINE_RAW):
            raise ValueError("a fixed source leaves by udp or raw only")
        if fallback is None and source is None and engine != TX_ENGINE_UDP:
            self.fallback = Tx(TX_ENGINE_UDP, fd, counters, address, port, freq=freq, by_exporter=by_exporter)
            self.fallback.tx.send = tx_send_nothing
            self.fallback.tx.reports = 0
        if source is not None:
            self._set_source(source[0], source[1])

    def __dealloc__(self):
        free(self.tx)

    cdef _set_refresh(self, refresh):
        self.tx.refresh_copies[0], self.tx.refresh_ms[0], self.tx.refresh_copies[1], self.tx.refresh_ms[1] = refresh
        self.tx.refreshes = any(refresh)
        self.tx.numbered = self.tx.refreshes or (self.tx.freq > 1 and not self.tx.by_exporter)

    def replay(self):
        atomic_store32(&self.tx.replay, 1)

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

    @property
    def fd(self):
        return self.tx.fd

    def link(self, int interface=0, bytes header=b"", int mtu=0):
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


@cython.final
cdef class Plan:
    cdef work_t work
    cdef plan_t probe                  # the same rules with scratch space of its own, for route()
    cdef list parts                    # keeps sockets, Tx and counters alive
    cdef object worker                 # the one worker it was published to
    cdef size_t public_ways
    cdef void *arena

    def __cinit__(self, u64 generation, sockets, txs, rules):
        cdef RxSocket rx_socket
        cdef Tx tx
        cdef u32 i
        self.parts = [list(sockets), list(txs)]
        self.work.routing.generation = generation
        self.work.socket_count = len(self.parts[0])
        self.work.sockets = <rx_socket_t **>plan_arena(&self.arena, self.work.socket_count, sizeof(rx_socket_t *))
        for i, part in enumerate(self.parts[0]):
            rx_socket = <RxSocket?>part        # not None either
            self.work.sockets[i] = &rx_socket.socket
        self._take_ways(self.parts[1])
        self._take_rules([(list(s), None if ls is None else list(ls), list(ws), bool(stop)) for s, ls, ws, stop in rules])
        self._make_memo()

    cdef _take_ways(self, list txs):
        cdef Tx tx
        cdef plan_t *p = &self.work.routing
        cdef u32 i, extra = 0
        cdef u32 public_count = len(txs)
        for part in txs:
            tx = <Tx?>part                     # not None either
            extra += tx.fallback is not None
        self.public_ways = public_count
        p.way_count = public_count + extra
        self.work.ways = <tx_t **>plan_arena(&self.arena, p.way_count, sizeof(tx_t *))
        self.work.owner = <u32 *>plan_arena(&self.arena, p.way_count, 4)
        self.work.selections = <u16 *>plan_arena(&self.arena, <size_t>p.way_count * BATCH_LIMIT, 2)
        self.work.selected = <u32 *>plan_arena(&self.arena, p.way_count, 4)
        self.work.active = <u32 *>plan_arena(&self.arena, p.way_count, 4)
        self.work.shared = <u32 *>plan_arena(&self.arena, p.way_count, 4)
        self.work.framed = <u32 *>plan_arena(&self.arena, p.way_count, 4)
        self.work.leftovers = <u16 *>plan_arena(&self.arena, <size_t>p.way_count * BATCH_LIMIT, 2)
        self.work.left = <u32 *>plan_arena(&self.arena, p.way_count, 4)
        self.work.numbers = <u32 *>plan_arena(&self.arena, <size_t>p.way_count * BATCH_LIMIT, 4)
        self.work.numbered = <u8 *>plan_arena(&self.arena, <size_t>p.way_count * BATCH_LIMIT, 1)
        self.work.rewrites = <u32 *>plan_arena(&self.arena, p.way_count, 4)
        p.way_family = <u8 *>plan_arena(&self.arena, p.way_count, 1)
        p.way_other = <u32 *>plan_arena(&self.arena, p.way_count, 4)
        p.way_bits = <u64 *>plan_arena(&self.arena, (p.way_count + 63) // 64, 8)
        p.ways = <u32 *>plan_arena(&self.arena, p.way_count, 4)
        extra = public_count
        for i, tx in enumerate(txs):
            self.work.ways[i] = tx.tx
            self.work.owner[i] = i
            p.way_family[i] = 0
            p.way_other[i] = PLAN_NONE
            if tx.fallback is not None:
                p.way_family[i] = tx.tx.family
                p.way_other[i] = extra
                p.way_other[extra] = PLAN_NONE
                self.work.ways[extra] = tx.fallback.tx
                self.work.owner[extra] = i
                extra += 1

    cdef _take_rules(self, list rules):
        cdef plan_t *p = &self.work.routing
        cdef rule_t *rule
        cdef u32 r, k, used = 0
        cdef bytes address, mask           # TypeError for anything else
        cdef dict groups = {}
        p.rule_count = len(rules)
        p.rules = <rule_t *>plan_arena(&self.arena, p.rule_count, sizeof(rule_t))
        p.rule_ways = <u32 *>plan_arena(&self.arena, sum([len(ways) for _, _, ways, _ in rules]), 4)
        p.rule_bits = <u64 *>plan_arena(&self.arena, (p.rule_count + 63) // 64, 8)
        for r, (sources, listeners, ways, stop) in enumerate(rules):
            rule = &p.rules[r]
            rule.stop = stop
            rule.first = used
            rule.count = len(ways)
            for way in ways:
                if not 0 <= way < self.public_ways:
                    raise ValueError(f"rule {r} names way {way} of {self.public_ways}")
                p.rule_ways[used] = way
                used += 1
            if listeners is not None:
                for listener in listeners:
                    if not 0 <= listener <= 0xFFFF:
                        raise ValueError(f"rule {r} names listener {listener}")
                rule.listener_words = max(listeners, default=0) // 64 + 1
                rule.listeners = <u64 *>plan_arena(&self.arena, rule.listener_words, 8)
                for listener in listeners:
                    k = listener
                    rule.listeners[k >> 6] |= <u64>1 << (k & 63)
            for family, address, mask in sources:
                if family not in (0, 4, 6) or len(address) != 16 or len(mask) != 16:
                    raise ValueError(f"rule {r} has a source that is not (0|4|6, 16 bytes, 16 bytes)")
                groups.setdefault((mask, family), []).append((address, r))
        self._index_sources(groups)

    cdef _index_sources(self, dict groups):
        cdef plan_t *p = &self.work.routing
        cdef source_group_t *group
        cdef source_t *source
        cdef u32 g, bucket, used = 0
        cdef const u8 *octets
        cdef bytes address, mask
        p.sources = <source_t *>plan_arena(&self.arena, sum([len(sources) for sources in groups.values()]), sizeof(source_t))
        p.groups = <source_group_t *>plan_arena(&self.arena, len(groups), sizeof(source_group_t))
        for g, ((mask, family), sources) in enumerate(groups.items()):
            group = &p.groups[g]
            octets = mask
            memcpy(group.mask, octets, 16)
            group.family = family
            group.bucket_mask = plan_power_of_two(2 * len(sources)) - 1
            group.buckets = <u32 *>plan_arena(&self.arena, <size_t>group.bucket_mask + 1, 4)
            memset(group.buckets, 0xFF, (<size_t>group.bucket_mask + 1) * 4)
            p.group_count = g + 1
            for address, rule in sources:
                source = &p.sources[used]
                octets = address
                memcpy(source.address, octets, 16)
                source.rule = rule
                bucket = match_hash(source.address) & group.bucket_mask
                source.next = group.buckets[bucket]
                group.buckets[bucket] = used
                used += 1

    cdef _make_memo(self):
        cdef plan_t *p = &self.work.routing
        p.route_limit = 65536
        p.pool_limit = max(262144, 4 * p.way_count)
        p.slot_mask = 65535
        p.routes = <route_t *>plan_arena(&self.arena, p.route_limit, sizeof(route_t))
        p.pool = <u32 *>plan_arena(&self.arena, p.pool_limit, 4)
        p.slots = <u32 *>plan_arena(&self.arena, <size_t>p.slot_mask + 1, 4)
        match_forget(p)
        self.probe = p[0]
        self.probe.rule_bits = <u64 *>plan_arena(&self.arena, (p.rule_count + 63) // 64, 8)
        self.probe.way_bits = <u64 *>plan_arena(&self.arena, (p.way_count + 63) // 64, 8)
        self.probe.ways = <u32 *>plan_arena(&self.arena, p.way_count, 4)

    def __dealloc__(self):
        plan_free(self.arena)

    @property
    def generation(self):
        return self.work.routing.generation

    def route(self, bytes address not None, int listener):
        cdef u8 mapped[16]
        cdef const u8 *octets = address
        cdef u8 family = 4
        cdef u32 i, count
        cdef bint stopped
        if len(address) == 4:
            wire_map_ipv4(mapped, octets)
        elif len(address) == 16:
            memcpy(mapped, octets, 16)
            family = 4 if wire_is_ipv4_mapped(mapped) else 6
        else:
            raise ValueError(f"address has {len(address)} bytes, not 4 or 16")
        match_rules(&self.probe, mapped, family)
        count = match_ways(&self.probe, family, <u32>listener, &stopped)
        rules = []
        for i in range(self.probe.rule_count):
            if (self.probe.rule_bits[i >> 6] >> (i & 63)) & 1 and match_listener(&self.probe.rules[i], <u32>listener):
                rules.append(i)
                if self.probe.rules[i].stop:
                    break
        return tuple(rules), tuple([self.work.owner[self.probe.ways[i]] for i in range(count)]), stopped and count == 0
