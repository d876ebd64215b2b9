# needs: uapi: net; base: atomics; flow: memory, reading, scan, state, table
# The Python handle of a flow_t: allocates its memory, and reads it from other threads than the worker's. Cold code: returns plain tuples,
# takes no lock that a worker takes. The worker holds the Flow and uses its `flow` pointer; a Flow outlives plans, so that templates survive a
# reload.

cdef bytes flow_bytes(const u8 *p, Py_ssize_t n):
    return (<const char *>p)[:n]


FLOW_KIND_NAMES = {FLOW_OTHER: "other", FLOW_V1: "netflow1", FLOW_V5: "netflow5", FLOW_V7: "netflow7", FLOW_V8: "netflow8",
                   FLOW_V9: "netflow9", FLOW_IPFIX: "ipfix", FLOW_SFLOW: "sflow5"}
FLOW_COUNTER_FIELDS = ("domains", "exporters", "templates", "options_templates", "options_data", "blocks", "states", "unmatched",
                       "refused_domains", "evicted_domains", "forgotten_domains", "refused_items", "evicted_items", "expired_items",
                       "refused_states", "renumbered", "kept_unknown", "replayed_datagrams", "replayed_records")
FLOW_DOMAIN_FIELDS = ("datagrams", "bytes", "units", "lost", "pending", "late", "repeated", "restarts", "unknown", "malformed",
                      "templates_added", "templates_seen", "withdrawn")
FLOW_SESSION_FIELDS = ("number", "address", "port", "kind", "domain", "listener", "first_ns", "seen_ns", "sequence", "header",
                       "templates", "options_templates", "options_data", "style", "unmatched", *FLOW_DOMAIN_FIELDS)
FLOW_ITEM_FIELDS = ("id", "kind", "first_s", "seen_s", "record_bytes", "scope_fields", "fields", "raw")
cdef tuple flow_style_names = ("records", "records", "flows", "flows", "packets", "packets", "all records", "all records")
FLOW_ITEM_NAMES = ("", "template", "options_template", "options_data")


cdef str flow_style_name(const flow_domain_t *d):
    """What the numbers of a v9 or IPFIX exporter count, "none" = it writes none; "" for the other kinds."""
    if d.sequence.unnumbered:
        return "none"
    return flow_style_names[d.sequence.style] if d.kind == FLOW_V9 or d.kind == FLOW_IPFIX else ""


def flow_field_list(bytes raw not None, bint ipfix, bint options):
    """(element, bytes, enterprise) of each field of a raw template record; enterprise 0 = IANA, bytes 65535 = variable."""
    at = 6 if options else 4
    fields = []
    while at + 4 <= len(raw):
        element = int.from_bytes(raw[at:at + 2], "big")
        length = int.from_bytes(raw[at + 2:at + 4], "big")
        at += 4
        enterprise = 0
        if ipfix and element & 0x8000:
            element &= 0x7FFF
            enterprise = int.from_bytes(raw[at:at + 4], "big")
            at += 4
        fields.append((element, length, enterprise))
    return tuple(fields)


@cython.final
cdef class Flow:
    cdef flow_t flow
    cdef u8 *memory
    cdef size_t octets

    def __cinit__(self, size_t octets=FLOW_DEFAULT_BYTES, *, **bounds):
        cdef flow_limits_t limit
        cdef u64 seed = int.from_bytes(urandom(8), "little")
        flow_limits(&limit, octets)
        limit.exporter_domains = bounds.pop("exporter_domains", limit.exporter_domains)
        limit.exporter_blocks = bounds.pop("exporter_blocks", limit.exporter_blocks)
        limit.domain_items = bounds.pop("domain_items", limit.domain_items)
        limit.idle_ms = bounds.pop("idle_ms", limit.idle_ms)
        limit.template_ms = bounds.pop("template_ms", limit.template_ms)
        limit.forget_ms = bounds.pop("forget_ms", limit.forget_ms)
        if bounds:
            raise TypeError(f"unknown bounds: {', '.join(bounds)}")
        if not 1 <= limit.exporter_domains <= 65535 or limit.exporter_blocks < 1 or limit.domain_items < 1:
            raise ValueError("exporter_domains is 1..65535, exporter_blocks and domain_items at least 1")
        self.octets = flow_memory(&limit)
        if self.octets > octets:
            raise ValueError(f"{octets} bytes are too few for the flow stage: {self.octets} is the least")
        self.memory = <u8 *>mmap(NULL, self.octets, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0)
        if <void *>self.memory == MAP_FAILED:
            self.memory = NULL
            raise MemoryError(f"{self.octets} bytes for the flow stage")
        flow_create(&self.flow, &limit, self.memory, seed)

    def set_template_life(self, u32 ms):
        """Templates and options data neither repeated nor used for so long expire from now on; 0 = never. Who taught them is remembered for
        as long at least."""
        if ms > FLOW_LIFE_LIMIT_MS:
            raise ValueError(f"a template life of {ms} ms is not 0..{FLOW_LIFE_LIMIT_MS}")
        atomic_store32(&self.flow.limit.forget_ms, ms if ms > FLOW_FORGET_MS else FLOW_FORGET_MS)
        atomic_store32(&self.flow.limit.template_ms, ms)

    def __dealloc__(self):
        if self.memory != NULL:
            munmap(self.memory, self.octets)

    @property
    def bytes(self):
        """Bytes reserved in all; pages are touched as they are needed."""
        return self.octets

    @property
    def capacity(self):
        """(domains, items, record blocks, renumbering states)."""
        return self.flow.domain_limit, self.flow.limit.items, self.flow.limit.blocks, self.flow.limit.states

    def counters(self):
        """(values of FLOW_COUNTER_FIELDS, datagrams by kind, malformed by kind)."""
        cdef u64 *values = &self.flow.counters.domains
        cdef int i
        return (tuple([atomic_load64(&values[i]) for i in range(FLOW_COUNTER_COUNT)]),
                tuple([atomic_load64(&self.flow.counters.by_kind[i]) for i in range(FLOW_KINDS)]),
                tuple([atomic_load64(&self.flow.counters.malformed[i]) for i in range(FLOW_KINDS)]))

    def losses(self):
        """(units lost before us by kind, restarts by kind); what was counted of domains that are gone stays."""
        cdef int i
        return (tuple([atomic_load64(&self.flow.counters.lost[i]) for i in range(FLOW_KINDS)]),
                tuple([atomic_load64(&self.flow.counters.restarts[i]) for i in range(FLOW_KINDS)]))

    def sessions(self):
        """One tuple of FLOW_SESSION_FIELDS for each (exporter session, kind, domain). sequence: the next number expected."""
        cdef u32 number
        out = []
        for number in range(1, atomic_load32(&self.flow.domain_top) + 1):
            if self.flow.domains[number].owner:
                session = self.session(number)
                if session is not None:
                    out.append(session)
        return out

    def session(self, u32 number):
        """FLOW_SESSION_FIELDS of one, None = the place is empty."""
        cdef flow_domain_t d
        cdef u64 *values = &d.datagrams
        cdef int i
        if not flow_read_domain(&self.flow, number, &d):
            return None
        address = flow_bytes(d.exporter.address + 12, 4) if d.exporter.family == 4 else flow_bytes(d.exporter.address, 16)
        return (number, address, ntohs(d.exporter.port_be), FLOW_KIND_NAMES[d.kind], d.domain, d.listener,
                <long long>d.first_ns, <long long>d.seen_ns,
                d.sequence.expected, flow_bytes(d.header, d.header_bytes), d.count[FLOW_TEMPLATES], d.count[FLOW_OPTIONS_TEMPLATES],
                d.count[FLOW_OPTIONS], flow_style_name(&d), d.unmatched != 0, *[values[i] for i in range(len(FLOW_DOMAIN_FIELDS))])

    @property
    def used(self):
        """The largest number that a session had so far."""
        return atomic_load32(&self.flow.domain_top)

    def unmatched(self, u32 limit, u32 silent_ms):
        """(address, listener, datagrams) of up to `limit` sessions whose exporter no rule matches, heard within silent_ms."""
        cdef flow_domain_t d
        cdef u32 number
        out = []
        if atomic_load64(&self.flow.counters.unmatched) == 0:
            return out
        for number in range(1, atomic_load32(&self.flow.domain_top) + 1):
            if len(out) == limit:
                break
            if self.flow.domains[number].unmatched and flow_read_domain(&self.flow, number, &d):
                if self.flow.now_ms - flow_way(&self.flow, d.slot).seen_ms >= silent_ms:
                    continue
                address = flow_bytes(d.exporter.address + 12, 4) if d.exporter.family == 4 else flow_bytes(d.exporter.address, 16)
                out.append((address, d.listener, d.datagrams))
        return out

    def items(self, u32 number, bint templates=True, bint options=True, int after=-1):
        """FLOW_ITEM_FIELDS of what a session taught; its bytes may have been given up meanwhile: then (). templates: those of data; options:
        templates and data of options; after: ids above it only. Rows of another definition of their template are void and left out."""
        cdef u32 limit = self.flow.limit.domain_items
        cdef u32 room = self.flow.limit.exporter_blocks * FLOW_BLOCK
        cdef flow_item_t *items = NULL
        cdef u8 *octets = NULL
        cdef u32 which, i, n, used
        cdef dict serials = {}
        out = []
        if number == 0 or number > self.flow.domain_limit:
            return ()
        items = <flow_item_t *>malloc(limit * sizeof(flow_item_t))
        octets = <u8 *>malloc(room)
        try:
            if items == NULL or octets == NULL:
                raise MemoryError
            for which in (FLOW_TEMPLATES, FLOW_OPTIONS_TEMPLATES, FLOW_OPTIONS):
                n = flow_read_items(&self.flow, number, which, items, limit, octets, room)
                used = 0
                for i in range(n):
                    if items[i].kind == FLOW_ITEM_OPTIONS_TEMPLATE:
                        serials[items[i].id] = items[i].serial
                    shown = templates if items[i].kind == FLOW_ITEM_TEMPLATE else options
                    if items[i].kind == FLOW_ITEM_OPTIONS_DATA:
                        shown = options and serials.get(items[i].id) == items[i].serial
                    if shown and items[i].id > after:
                        out.append(self._item(&items[i], octets + used))
                    used += items[i].bytes
        finally:
            free(items)
            free(octets)
        return tuple(out)

    cdef _item(self, const flow_item_t *item, const u8 *raw):
        return (item.id, FLOW_ITEM_NAMES[item.kind & 3], <int>item.first_s, <int>item.seen_s, 0 if item.steps else item.record_bytes,
                item.scope_fields, item.fields, flow_bytes(raw, item.bytes))
