# needs: uapi: net; base: atomics, batch, wire; flow: alias, scan; handles: flow, memory
# The Python handle of the aliases of exporters' domains, one for all workers and for the process's life. Cold code.

ALIAS_BYTES = 64 + ALIAS_SETS * ALIAS_WAYS * (sizeof(alias_entry_t) + 4)
ALIAS_COUNT = ALIAS_SETS * ALIAS_WAYS
ALIAS_FIELDS = ("place", "alias", "address", "port", "kind", "domain", "shared", "seen_s")


@cython.final
cdef class Aliases:
    cdef aliases_t aliases
    cdef Py_buffer view
    cdef void *arena

    def __cinit__(self, memory=None):
        cdef u8 *octets
        cdef const char *magic = "samplicator aliases 1\n"
        if memory is not None:
            PyObject_GetBuffer(memory, &self.view, PyBUF_WRITABLE)
            if <size_t>self.view.len != ALIAS_BYTES:
                raise ValueError(f"{self.view.len} bytes for aliases, not {ALIAS_BYTES}")
            octets = <u8 *>self.view.buf
        else:
            octets = <u8 *>memory_arena(&self.arena, ALIAS_BYTES, 1)
        if memcmp(octets, magic, 22) != 0:
            memset(octets, 0, ALIAS_BYTES)
            memcpy(octets, magic, 22)
        self.aliases.numbers = <u32 *>(octets + 64)
        self.aliases.entries = <alias_entry_t *>(octets + 64 + <size_t>ALIAS_SETS * ALIAS_WAYS * 4)
        self.aliases.turns = <u32 *>memory_arena(&self.arena, ALIAS_SETS, 4)

    def __dealloc__(self):
        PyBuffer_Release(&self.view)       # nothing when there is no buffer
        memory_free(self.arena)

    @property
    def unlisted(self):
        return atomic_load64(&self.aliases.unlisted)

    def list(self, u32 after, u32 limit):
        cdef u32 place, number
        cdef alias_entry_t entry
        cdef u64 claim
        found = []
        for place in range(after, <u32>(ALIAS_SETS * ALIAS_WAYS)):
            number = atomic_load32_acquire(&self.aliases.numbers[place])
            if number == 0:
                continue
            entry = self.aliases.entries[place]
            claim = atomic_load64(&self.aliases.entries[place].claim)
            if atomic_fence_load32(&self.aliases.numbers[place]) != number or entry.key.kind not in FLOW_KIND_NAMES:
                continue                   # it goes to somebody else just now
            if len(found) >= limit:
                return found, place
            address = flow_bytes(entry.key.address + 12, 4) if entry.family == 4 else flow_bytes(entry.key.address, 16)
            found.append((place, number, address, ntohs(<u16>(claim >> 32)), FLOW_KIND_NAMES[entry.key.kind], entry.key.domain,
                          entry.key.port == 0, <u32>claim))
        return found, 0

    def take(self, bytes address not None, int port, int kind, u32 domain, u32 now_s, bint may_claim=True, u32 born_s=0):
        cdef exporter_t exporter
        cdef const u8 *octets = address
        if len(address) not in (4, 16) or not 0 <= port <= 65535 or kind not in (FLOW_V9, FLOW_IPFIX):
            raise ValueError("address of 4 or 16 bytes, port 0..65535, kind 9 or 10")
        memset(&exporter, 0, sizeof(exporter))
        exporter.family = 4 if len(address) == 4 else 6
        exporter.port_be = htons(<u16>port)
        if exporter.family == 4:
            wire_map_ipv4(exporter.address, octets)
        else:
            memcpy(exporter.address, octets, 16)
        return alias_take(&self.aliases, &exporter, kind, domain, may_claim, born_s, now_s)
