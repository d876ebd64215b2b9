# cython: language_level=3, cdivision=True, boundscheck=False, wraparound=False
"""The one walk over a route: every way that its rules name, then every member of each of its pools.

For questions about all receivers of an exporter. A datagram goes another way: to one member of a pool (worker/choose.pxi, worker/echo.pxi).
Called by: worker/ (flow, lane). Reads the plan only.
"""

from route.plan cimport plan_t, pool_t, route_t
from uapi.net cimport u32

ctypedef struct walk_t:            # over all ways of a route: those that rules name, then each member of each pool
    const plan_t *plan
    const route_t *route
    const pool_t *pool             # that the way is a member of, NULL = a rule names the way itself
    u32 way
    u32 receiver                   # of a member: its receiver id
    u32 entry                      # the next of the route
    u32 member                     # the next of the pool


cdef inline void walk_begin(walk_t *walk, const plan_t *plan, const route_t *route) noexcept nogil:
    walk.plan = plan
    walk.route = route
    walk.pool = NULL
    walk.entry = walk.member = 0


cdef inline bint walk_next(walk_t *walk) noexcept nogil:
    """Goes to the next way; False: that was the last."""
    cdef const plan_t *plan = walk.plan
    cdef u32 entry
    while True:
        if walk.pool != NULL:
            if walk.member < walk.pool.first + walk.pool.count:
                walk.way = plan.members[walk.member].way
                walk.receiver = plan.members[walk.member].receiver
                walk.member += 1
                return True
            walk.pool = NULL
        if walk.entry == walk.route.count:
            return False
        entry = plan.route_table[walk.route.first + walk.entry]
        walk.entry += 1
        if entry < plan.way_count:
            walk.way = entry
            return True
        walk.pool = &plan.pools[entry - plan.way_count]
        walk.member = walk.pool.first
