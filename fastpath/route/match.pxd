# cython: language_level=3, cdivision=True, boundscheck=False, wraparound=False
"""From an exporter to its route: which rules match, and which ways get a copy.

Every matching rule fires (union, each way once) in configuration order, up to and including the first matching rule with stop. One hash look-up
per distinct (mask, family), so the cost grows with the number of different masks, not of prefixes. No I/O, no allocation.
Called by: session look-up of the worker on a miss, Plan.route(). Must never be called by two threads on one plan (scratch space).
"""

from libc.string cimport memcmp, memcpy, memset
from base.hash cimport hash_address
from route.plan cimport (
    PLAN_NONE, PLAN_ROUTE_DENIED, PLAN_ROUTE_FIRST, PLAN_ROUTE_UNMATCHED, plan_t, route_t, rule_t, source_group_t, source_t,
)
from uapi.net cimport u8, u32, u64

cdef extern from * nogil:
    int match_ctz "__builtin_ctzll"(u64 x)


cdef inline void match_mask(u8 *out, const u8 *address, const u8 *mask) noexcept nogil:
    cdef u64 a, m
    memcpy(&a, address, 8)
    memcpy(&m, mask, 8)
    a &= m
    memcpy(out, &a, 8)
    memcpy(&a, address + 8, 8)
    memcpy(&m, mask + 8, 8)
    a &= m
    memcpy(out + 8, &a, 8)


cdef inline void match_rules(plan_t *plan, const u8 *address, u8 family) noexcept nogil:
    """Sets in plan.rule_bits the rules one of whose sources holds the address (16 bytes; family 4 or 6)."""
    cdef u32 g, i
    cdef u8 masked[16]
    cdef source_group_t *group
    cdef source_t *source
    memset(plan.rule_bits, 0, ((plan.rule_count + 63) // 64) * 8)
    for g in range(plan.group_count):
        group = &plan.groups[g]
        if group.family and group.family != family:
            continue
        match_mask(masked, address, group.mask)
        i = group.buckets[hash_address(masked) & group.bucket_mask]
        while i != PLAN_NONE:
            source = &plan.sources[i]
            if memcmp(source.address, masked, 16) == 0:
                plan.rule_bits[source.rule >> 6] |= <u64>1 << (source.rule & 63)
            i = source.next


cdef inline bint match_listener(const rule_t *rule, u32 listener) noexcept nogil:
    if rule.listeners == NULL:
        return True
    if (listener >> 6) >= rule.listener_words:
        return False
    return (rule.listeners[listener >> 6] >> (listener & 63)) & 1


cdef inline u32 match_ways(plan_t *plan, u8 family, u32 listener, bint *denied) noexcept nogil:
    """Fills plan.ways from plan.rule_bits, pools last; returns how many. denied: a rule with stop ended the walk."""
    cdef u32 w, r, k, way, count = 0
    cdef u32 pools = 0
    cdef u64 bits
    cdef rule_t *rule
    memset(plan.way_bits, 0, ((plan.way_count + plan.pool_count + 63) // 64) * 8)
    denied[0] = False
    for w in range((plan.rule_count + 63) // 64):
        bits = plan.rule_bits[w]
        while bits and not denied[0]:
            r = w * 64 + <u32>match_ctz(bits)
            bits &= bits - 1
            rule = &plan.rules[r]
            if not match_listener(rule, listener):
                continue
            for k in range(rule.count):
                way = plan.rule_ways[rule.first + k]
                if way < plan.way_count and plan.way_other[way] != PLAN_NONE and plan.way_family[way] != family:
                    way = plan.way_other[way]
                if (plan.way_bits[way >> 6] >> (way & 63)) & 1:
                    continue
                plan.way_bits[way >> 6] |= <u64>1 << (way & 63)
                if way < plan.way_count:
                    plan.ways[count] = way
                    count += 1
                else:
                    plan.tail[pools] = way
                    pools += 1
            denied[0] = rule.stop
        if denied[0]:
            break
    memcpy(&plan.ways[count], plan.tail, <size_t>pools * 4)
    return count + pools


cdef inline void match_forget(plan_t *plan) noexcept nogil:
    """Empties the memo of routes; whoever holds route numbers must forget them too (the worker bumps its epoch)."""
    memset(plan.slots, 0xFF, (<size_t>plan.slot_mask + 1) * 4)
    plan.route_count = PLAN_ROUTE_FIRST
    plan.table_used = 0
    plan.memo_resets += 1


cdef inline u32 match_route(plan_t *plan, const u8 *address, u8 family, u32 listener, bint *forgot) noexcept nogil:
    """The route of an exporter on a listener: PLAN_ROUTE_UNMATCHED, PLAN_ROUTE_DENIED or an index into plan.routes.

    forgot: set when the memo was full and has been emptied, so that every route number given out before is void."""
    cdef bint stopped
    cdef u32 count, i, hash_value = 2166136261
    cdef route_t *route
    forgot[0] = False
    match_rules(plan, address, family)
    count = match_ways(plan, family, listener, &stopped)
    if count == 0:
        return PLAN_ROUTE_DENIED if stopped else PLAN_ROUTE_UNMATCHED
    for i in range(count):
        hash_value = (hash_value ^ plan.ways[i]) * 16777619
    i = plan.slots[hash_value & plan.slot_mask]
    while i != PLAN_NONE:
        route = &plan.routes[i]
        if route.hash == hash_value and route.count == count and memcmp(&plan.route_table[route.first], plan.ways, <size_t>count * 4) == 0:
            return i
        i = route.next
    if plan.route_count == plan.route_limit or plan.table_used + count > plan.table_limit:
        match_forget(plan)
        forgot[0] = True
    i = plan.route_count
    route = &plan.routes[i]
    route.first = plan.table_used
    route.count = count
    route.hash = hash_value
    route.next = plan.slots[hash_value & plan.slot_mask]
    plan.slots[hash_value & plan.slot_mask] = i
    memcpy(&plan.route_table[plan.table_used], plan.ways, <size_t>count * 4)
    plan.table_used += count
    plan.route_count += 1
    return i
