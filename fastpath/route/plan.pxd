# cython: language_level=3
"""The routing half of a plan: rules indexed by source, and the memo of routes made from them. Data only; route/match.pxd walks it.

Built and freed by handles/plan.pxi under the GIL, read by one worker without it. Immutable except the memo (`routes`, `route_table`, `slots`),
which only that worker writes. All memory is allocated when the plan is built: a full memo is emptied and filled again, and never grows.
"""

from uapi.net cimport u8, u32, u64

cdef enum:
    PLAN_NONE = 0xFFFFFFFFU        # end of a chain
    PLAN_ROUTE_UNMATCHED = 0       # no rule matched: nobody gets a copy
    PLAN_ROUTE_DENIED = 1          # a rule with stop matched and nobody gets a copy
    PLAN_ROUTE_FIRST = 2
    PLAN_ROUND_ROBIN = 1           # balance of a pool

ctypedef struct source_t:          # one prefix of one rule
    u8 address[16]                 # masked; IPv4 in IPv4-mapped form
    u32 rule
    u32 next                       # in the chain of its hash bucket

ctypedef struct source_group_t:    # all sources with one mask and family: a hash table over the masked address
    u8 mask[16]
    u8 family                      # 0 any, 4, 6
    u32 bucket_mask                # buckets - 1, a power of two
    u32 *buckets                   # first source of each chain or PLAN_NONE

ctypedef struct rule_t:
    u64 *listeners                 # bit set of listener indexes, NULL = all
    u32 listener_words
    u32 first                      # its ways in plan_t.rule_ways
    u32 count
    u8 stop

ctypedef struct pool_member_t:
    u32 way
    u32 receiver                   # id of its counters
    u32 weight
    u32 since                      # serial of the plan it joined with
    u64 seed                       # of its rank
    u32 homes                      # exporters that belong to it
    u32 load                       # exporters it has now; read by other threads
    long turn                      # of round-robin
    u32 down                       # as of the last batch

ctypedef struct pool_t:
    u32 number                     # its id, > 0, the same in every plan
    u32 turns                      # round-robin
    u32 first                      # in plan_t.members
    u32 count
    u32 version                    # exporters judged under another one are judged again

ctypedef struct route_t:           # the union of an exporter's rules: ways out, in order, pools (way_count + index) behind them
    u32 first                      # in route_table
    u32 count
    u32 hash
    u32 next

ctypedef struct plan_t:
    u64 generation
    u32 group_count
    source_group_t *groups
    source_t *sources
    u32 rule_count
    rule_t *rules
    u32 *rule_ways
    u32 way_count                  # ways out (Tx objects), those of other families behind the configured ones
    u8 *way_family                 # 4 or 6 where a way takes one family of exporters only, 0 = all
    u32 *way_other                 # the way that takes the other family instead, PLAN_NONE = none needed
    u32 pool_count
    pool_t *pools
    pool_member_t *members
    # scratch of match
    u64 *rule_bits
    u64 *way_bits
    u32 *ways
    u32 *tail                      # pools found, until the ways are complete
    # memo
    u32 route_count
    u32 route_limit
    route_t *routes
    u32 table_used
    u32 table_limit
    u32 *route_table
    u32 slot_mask
    u32 *slots                     # hash table over routes
    u64 memo_resets
