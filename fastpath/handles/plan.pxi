# needs: uapi: net; base: batch, hash, wire; route: match, plan; rx: socket; tx: engine; worker: work; handles: alias, memory, sockets, tx
# The Plan: connects intakes, ways and rules for one worker, and owns their memory. Cold code: it checks its arguments and raises ValueError;
# the worker never calls it. A Plan owns all memory that its work_t points to and keeps its parts alive.


@cython.final
cdef class Plan:
    cdef work_t work
    cdef plan_t probe                  # the same rules with scratch space of its own, for route()
    cdef list parts                    # keeps sockets, Tx and counters alive
    cdef object worker                 # the one worker it was published to
    cdef size_t public_ways
    cdef void *arena

    def __cinit__(self, u64 generation, sockets, txs, rules, pools=(), replay_to=(), Aliases aliases=None,
                  bint unread=False):
        cdef RxSocket rx_socket
        cdef Tx tx
        cdef u32 i
        self.parts = [list(sockets), list(txs), aliases]
        self.work.routing.generation = generation
        self.work.unread = unread
        self.work.socket_count = len(self.parts[0])
        self.work.sockets = <rx_socket_t **>memory_arena(&self.arena, self.work.socket_count, sizeof(rx_socket_t *))
        for i, part in enumerate(self.parts[0]):
            rx_socket = <RxSocket?>part        # not None either
            self.work.sockets[i] = &rx_socket.socket
        self._take_ways(self.parts[1])
        self._take_aliases(aliases)
        self._take_pools([(number, balance, list(members)) for number, balance, members in pools])
        self._take_rules(rules)
        self._take_replay_to(list(replay_to))
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
        self.work.ways = <tx_t **>memory_arena(&self.arena, p.way_count, sizeof(tx_t *))
        self.work.shared.ways = self.work.ways
        self.work.owner = <u32 *>memory_arena(&self.arena, p.way_count, 4)
        self.work.selections = <u16 *>memory_arena(&self.arena, <size_t>p.way_count * BATCH_LIMIT, 2)
        self.work.selected = <u32 *>memory_arena(&self.arena, p.way_count, 4)
        self.work.active = <u32 *>memory_arena(&self.arena, p.way_count, 4)
        self.work.ported = <u32 *>memory_arena(&self.arena, p.way_count, 4)
        self.work.framed = <u32 *>memory_arena(&self.arena, p.way_count, 4)
        self.work.shared.leftovers = <u16 *>memory_arena(&self.arena, <size_t>p.way_count * BATCH_LIMIT, 2)
        self.work.shared.left = <u32 *>memory_arena(&self.arena, p.way_count, 4)
        self.work.numbers = <u32 *>memory_arena(&self.arena, <size_t>p.way_count * BATCH_LIMIT, 4)
        self.work.numbered = <u8 *>memory_arena(&self.arena, <size_t>p.way_count * BATCH_LIMIT, 1)
        self.work.rewrites = <u32 *>memory_arena(&self.arena, p.way_count, 4)
        p.way_family = <u8 *>memory_arena(&self.arena, p.way_count, 1)
        p.way_other = <u32 *>memory_arena(&self.arena, p.way_count, 4)
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

    cdef _take_pools(self, list pools):
        cdef plan_t *p = &self.work.routing
        cdef pool_t *pool
        cdef pool_member_t *member
        cdef u32 k, used = 0
        p.pool_count = len(pools)
        p.pools = <pool_t *>memory_arena(&self.arena, p.pool_count, sizeof(pool_t))
        p.members = <pool_member_t *>memory_arena(&self.arena, sum([len(members) for _, _, members in pools]), sizeof(pool_member_t))
        for k, (number, balance, members) in enumerate(pools):
            if not members:
                raise ValueError(f"pool {number} has no members")
            if not 1 <= number <= 0xFFFFFFFF or number in [earlier for earlier, _, _ in pools[:k]]:
                raise ValueError(f"pool id {number} is not 1..4294967295, or given twice")
            pool = &p.pools[k]
            pool.number = number
            pool.turns = balance == PLAN_ROUND_ROBIN
            pool.first = used
            pool.count = len(members)
            self.work.turns = self.work.turns or pool.turns
            for way, weight in members:
                if not 0 <= way < self.public_ways or way in [p.members[i].way for i in range(pool.first, used)]:
                    raise ValueError(f"pool {number} names way {way} of {self.public_ways}, or twice")
                if not 1 <= weight <= 1000:
                    raise ValueError(f"weight {weight} is not 1..1000")
                member = &p.members[used]
                member.way = way
                member.weight = weight
                member.receiver = self.work.ways[way].counters.id
                member.seed = hash_address(self.work.ways[way].address) * <u64>0x9E3779B97F4A7C15 ^ self.work.ways[way].port_be
                used += 1
                self._number(way)

    cdef _take_aliases(self, Aliases aliases):
        cdef u32 way
        for way in range(self.work.routing.way_count):
            if self.work.ways[way].alias or self.work.ways[way].per_session:
                if aliases is None:
                    raise ValueError("a Tx with alias or per_session needs the aliases of the process")
                self.work.aliases = &aliases.aliases

    cdef _take_replay_to(self, list replay_to):
        self.work.replay_to_count = len(replay_to)
        self.work.replay_to = <u32 *>memory_arena(&self.arena, self.work.replay_to_count, 4)
        for k, way in enumerate(replay_to):
            if not 0 <= way < self.public_ways:
                raise ValueError(f"way {way} of {self.public_ways} does not exist")
            self.work.replay_to[k] = way

    cdef _number(self, u32 way):
        """A member's numbers may differ from the exporters' from now on, even when it has left the pool."""
        self.work.ways[way].numbered = 1
        if self.work.routing.way_other[way] != <u32>PLAN_NONE:
            self.work.ways[self.work.routing.way_other[way]].numbered = 1

    cdef _take_rules(self, rules):
        """Goes through the rules twice; keeps none of them."""
        cdef plan_t *p = &self.work.routing
        cdef rule_t *rule
        cdef u32 r, k, used = 0
        cdef Py_ssize_t named = 0
        cdef bytes address, mask           # TypeError for anything else
        cdef dict groups = {}
        p.rule_count = len(rules)
        for _, _, ways, _ in rules:
            named += len(ways)
        p.rules = <rule_t *>memory_arena(&self.arena, p.rule_count, sizeof(rule_t))
        p.rule_ways = <u32 *>memory_arena(&self.arena, named, 4)
        for r, (sources, listeners, ways, stop) in enumerate(rules):
            if r >= p.rule_count or used + len(ways) > named:
                raise ValueError("the rules are not the same when they are gone through again")
            rule = &p.rules[r]
            rule.stop = bool(stop)
            rule.first = used
            rule.count = len(ways)
            for way in ways:
                if not 0 <= way < self.public_ways + p.pool_count:
                    raise ValueError(f"rule {r} names way {way} of {self.public_ways}")
                p.rule_ways[used] = way if way < self.public_ways else way - self.public_ways + p.way_count
                used += 1
            if listeners is not None:
                for listener in listeners:
                    if not 0 <= listener <= 0xFFFF:
                        raise ValueError(f"rule {r} names listener {listener}")
                rule.listener_words = max(listeners, default=0) // 64 + 1
                rule.listeners = <u64 *>memory_arena(&self.arena, rule.listener_words, 8)
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
        p.sources = <source_t *>memory_arena(&self.arena, sum([len(sources) for sources in groups.values()]), sizeof(source_t))
        p.groups = <source_group_t *>memory_arena(&self.arena, len(groups), sizeof(source_group_t))
        for g, ((mask, family), sources) in enumerate(groups.items()):
            group = &p.groups[g]
            octets = mask
            memcpy(group.mask, octets, 16)
            group.family = family
            group.bucket_mask = memory_power_of_two(2 * len(sources)) - 1
            group.buckets = <u32 *>memory_arena(&self.arena, <size_t>group.bucket_mask + 1, 4)
            memset(group.buckets, 0xFF, (<size_t>group.bucket_mask + 1) * 4)
            p.group_count = g + 1
            for address, rule in sources:
                source = &p.sources[used]
                octets = address
                memcpy(source.address, octets, 16)
                source.rule = rule
                bucket = hash_address(source.address) & group.bucket_mask
                source.next = group.buckets[bucket]
                group.buckets[bucket] = used
                used += 1

    cdef _make_memo(self):
        cdef plan_t *p = &self.work.routing
        p.route_limit = 65536
        p.table_limit = max(262144, 4 * (p.way_count + p.pool_count))
        p.slot_mask = 65535
        self._make_scratch(p)
        p.routes = <route_t *>memory_arena(&self.arena, p.route_limit, sizeof(route_t))
        p.route_table = <u32 *>memory_arena(&self.arena, p.table_limit, 4)
        p.slots = <u32 *>memory_arena(&self.arena, <size_t>p.slot_mask + 1, 4)
        match_forget(p)
        self.probe = p[0]
        self._make_scratch(&self.probe)

    cdef _make_scratch(self, plan_t *p):
        cdef u32 most = p.way_count + p.pool_count
        p.rule_bits = <u64 *>memory_arena(&self.arena, (p.rule_count + 63) // 64, 8)
        p.way_bits = <u64 *>memory_arena(&self.arena, (most + 63) // 64, 8)
        p.ways = <u32 *>memory_arena(&self.arena, most, 4)
        p.tail = <u32 *>memory_arena(&self.arena, p.pool_count, 4)

    def __dealloc__(self):
        memory_free(self.arena)

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
        return tuple(rules), tuple([self._public(self.probe.ways[i]) for i in range(count)]), stopped and count == 0

    cdef _public(self, u32 way):
        return self.work.owner[way] if way < self.work.routing.way_count else way - self.work.routing.way_count + self.public_ways
