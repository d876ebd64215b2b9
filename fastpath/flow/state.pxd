# cython: language_level=3
"""The state of the flow stage, and its limits. Data only: table.pxd finds and evicts, learn.pxd and sequence.pxd write.

One flow_t belongs to one worker, its only writer; it outlives plans, so templates survive a reload. All memory is one block given at creation,
used from the front as needed (pages that are never written use no memory). Numbers of domains, exporters, items, blocks and states begin at 1;
0 = none: zeroed memory is an empty table.

Other threads read with two sequence locks per domain: `head_version` guards the session, the header, the sequence and the chain of renumbering
states (not the content of these states), `version` the list of items. Both are odd while written. Every number that another thread uses is
below its limit, at any moment. Counters are relaxed 64-bit.
"""

from base.batch cimport exporter_t
from flow.scan cimport FLOW_HEADER, FLOW_KINDS
from uapi.net cimport u8, u16, u32, u64

cdef enum:
    FLOW_WAYS = 16                 # domains a set: one cache line of tags
    FLOW_GAPS = 16                 # open gaps of a domain; as many as datagrams a late one may be late
    FLOW_BLOCK = 124               # record bytes a block
    FLOW_STYLES = 8                # what an exporter's numbers count: see sequence
    FLOW_TEMPLATES = 0             # lists of items of a domain: templates; in a replay: of both kinds
    FLOW_OPTIONS = 1               # last options data
    FLOW_OPTIONS_TEMPLATES = 2
    FLOW_LISTS = 3
    FLOW_REPLAYS = 2               # what is replayed apart: templates, options data
    FLOW_ITEM_TEMPLATE = 1
    FLOW_ITEM_OPTIONS_TEMPLATE = 2
    FLOW_ITEM_OPTIONS_DATA = 3
    FLOW_GRADE_UNMATCHED = 0       # no rule matches its exporter: it goes first when memory is short
    FLOW_GRADE_ONCE = 1            # seen once: what a forged source is
    FLOW_GRADE_REPEATS = 2
    FLOW_GRADE_ESTABLISHED = 3     # came back over some time: a newcomer never evicts it while it is active
    FLOW_ESTABLISHED_DATAGRAMS = 8
    FLOW_ESTABLISHED_MS = 2000
    FLOW_COUNTER_COUNT = 19        # of flow_counters_t, by_kind and malformed apart

ctypedef struct flow_limits_t:
    u32 sets                       # of FLOW_WAYS domains, a power of two
    u32 items                      # templates and options data in all
    u32 blocks                     # of record bytes in all
    u32 states                     # (receiver, domain) pairs that are renumbered
    u32 buckets                    # of the hash tables over items and exporters, a power of two
    u32 exporter_domains           # observation domains of one exporter session
    u32 exporter_blocks            # record blocks of one exporter session
    u32 domain_items               # templates and options data of one domain
    u32 idle_ms                    # an established domain may be evicted by a newcomer when silent for this long
    u32 template_ms                # templates and options data neither repeated nor used for this long expire; 0 = never
    u32 forget_ms                  # a domain silent for this long is forgotten

ctypedef struct flow_way_t:
    u32 number                     # of the domain
    u32 seen_ms
    u32 grade

ctypedef struct flow_set_t:        # what find and evict look at, close together
    u32 tag[FLOW_WAYS]             # of the key's hash, 0 = empty
    flow_way_t way[FLOW_WAYS]

ctypedef struct flow_exporter_t:   # bounds what one exporter session may take
    u8 address[16]
    u16 port_be
    u16 domains
    u32 blocks
    u32 first                      # its domains, oldest first
    u32 last
    u32 bucket_next                # chain of its hash bucket, or of the free ones

ctypedef struct flow_block_t:
    u32 next
    u8 data[FLOW_BLOCK]

ctypedef struct flow_item_t:       # a template, or one row of options data (rows.pxd); the raw record is in blocks
    u32 domain
    u32 hash
    u32 serial                     # of this definition of the template; options data of another one are void
    u32 bucket_next                # chain of its hash bucket, or of the free ones
    u32 next                       # in its domain's list, least recently repeated first
    u32 previous
    u32 block
    u32 first_s                    # CLOCK_MONOTONIC, for people
    u32 seen_s                     # last repeated, the same
    u32 alive_ms                   # repeated, or found to be used, at this time: the order of its list
    u32 heard                      # low bits of its domain's count of datagrams when one last taught or repeated it
    u32 keys                       # options template: block of the spans that tell its rows apart, 0 = none
    u32 record_bytes               # template: shortest data record
    u32 scope_bytes                # template: shortest scope; options data: this scope
    u16 fields
    u16 scope_fields
    u16 id                         # of the template
    u16 bytes                      # of the raw record
    u16 steps                      # of the compiled form, before the raw record; 0 = all fields fixed
    u16 scope_steps
    u8 kind                        # FLOW_ITEM
    u8 uncountable                 # its data records cannot be counted: empty ones, or too many variable fields
    u8 used                        # data of the template came since alive_ms
    u8 spans                       # options template: in its block of keys
    u8 whole                       # options template: FLOW_ROWS, what makes two rows the same
    u8 lone                        # options template: datagrams in a row that brought one row, and a new one

ctypedef struct flow_gap_t:
    u32 start                      # first missing sequence number
    u32 length                     # units
    u32 at                         # datagram number of the domain when it opened

ctypedef struct flow_sequence_t:
    u8 started
    u8 unknown                     # the last datagram's units could not be counted: the next one says
    u8 unsure                      # a malformed datagram came in between: the next gap is not loss
    u8 strays                      # datagrams in a row from before the window
    u8 style                       # FLOW_STYLE bits: what this exporter counts, learnt
    u8 same                        # datagrams in a row with the last number again
    u8 unnumbered                  # ... for so long that it is none
    u8 own                         # evidence that datagrams of templates only have a counter of their own ...
    u8 shared                      # ... and that they have not
    u8 own_known                   # own_last means something
    u8 own_open                    # the last datagram was one of these, and left out: does the next go on before it?
    u8 template_last               # the last datagram in order holds templates only
    u8 data_known                  # one with data came
    u8 score[FLOW_STYLES]          # evidence for each style
    u32 expected                   # the next position
    u32 last                       # the position of the last datagram in order
    u32 last_sequence              # as it was written
    u32 last_units
    u32 last_data                  # records of the last datagram in order
    u32 last_options
    u32 last_templates
    u32 own_last                   # number of the last datagram of templates only
    u32 window                     # the number 16 to 32 datagrams ago; older ones are no repetition
    u32 window_next
    u32 window_count
    u32 uptime_ms
    u32 gap_count
    flow_gap_t gaps[FLOW_GAPS]     # open ones, oldest first

ctypedef struct flow_domain_t:     # one (exporter session, kind, observation domain)
    u64 domain
    exporter_t exporter            # as last seen
    u8 kind
    u8 header_bytes
    u8 unmatched                   # no rule matches its exporter (as of the last datagram)
    u8 owing                       # a member of a pool is owed a replay (flow_state_t)
    u8 carried                     # it was known before this process (flow/carry.pxd)
    u16 listener                   # that the last datagram came by
    u32 slot                       # set * FLOW_WAYS + way
    u32 version                    # sequence lock of items
    u32 head_version               # sequence lock of exporter, listener, header, sequence, chain of states
    u32 owner                      # its exporter, 0 = this entry is empty
    u32 next                       # of its exporter's domains, or of the free ones
    u32 previous
    u32 first[FLOW_LISTS]
    u32 last[FLOW_LISTS]
    u32 count[FLOW_LISTS]
    u32 state                      # first renumbered receiver
    u32 state_found                # the one looked for last: the next asked for is behind it mostly
    u32 restarts_seen              # renumbering states of another one begin anew
    u32 alias                      # the number that its copies carry instead of the domain (flow/alias.pxd), 0 = not asked for yet
    u32 alias_s                    # CLOCK_MONOTONIC when it was asked for last
    u64 first_ns                   # CLOCK_MONOTONIC of the first datagram
    u64 seen_ns
    u8 header[FLOW_HEADER]         # of the last datagram
    flow_sequence_t sequence
    # counters, in the order of FLOW_DOMAIN_FIELDS
    u64 datagrams
    u64 bytes
    u64 units                      # flows, packets, data records, datagrams, as the kind counts
    u64 lost                       # units, final: no late datagram filled the gap
    u64 pending                    # units of open gaps
    u64 late
    u64 repeated
    u64 restarts
    u64 unknown                    # datagrams with a data set whose template is unknown
    u64 malformed
    u64 templates_added            # new or redefined
    u64 templates_seen             # in datagrams, repetitions too
    u64 withdrawn

ctypedef struct flow_state_t:      # renumbering of one domain for one receiver
    u32 receiver
    u32 next                       # of the domain, or of the free ones
    u32 offset                     # outgoing number - incoming number
    u32 restarts                   # restarts_seen it belongs to
    u32 left_out                   # low 32 bits of the datagram number whose unknown units were left out ...
    u32 owes                       # ... if this is 1
    u32 paused                     # the receiver gets none of the domain's datagrams for now ...
    u32 paused_at                  # ... from this position on: its numbers stand still
    u32 copies[FLOW_REPLAYS]       # since the last replay of templates, of options data
    u32 replayed_ms[FLOW_REPLAYS]
    u32 spent                      # bytes of replays that arriving datagrams caused lately (replay.pxd), as of ...
    u32 spent_ms
    u32 owed                       # a replay was refused for that: all templates are due when it may be again

ctypedef struct flow_counters_t:
    u64 domains                    # in use
    u64 exporters
    u64 templates
    u64 options_templates
    u64 options_data
    u64 blocks
    u64 states
    u64 unmatched                  # of the domains, those whose exporter no rule matches
    u64 refused_domains            # no room but that of active exporters: the datagram passes, nothing is learnt
    u64 evicted_domains
    u64 forgotten_domains
    u64 refused_items
    u64 evicted_items              # over the bound of their exporter or domain
    u64 expired_items
    u64 refused_states             # copies that should have been renumbered and passed as they were
    u64 renumbered                 # copies
    u64 kept_unknown               # copies to a renumbered receiver whose units could not be counted
    u64 replayed_datagrams
    u64 replayed_records
    u64 by_kind[FLOW_KINDS]        # datagrams
    u64 malformed[FLOW_KINDS]
    u64 lost[FLOW_KINDS]           # units; stays when the domain goes
    u64 restarts[FLOW_KINDS]

ctypedef struct flow_t:
    flow_limits_t limit
    u64 seed
    u64 now_ns                     # CLOCK_MONOTONIC, once a batch
    u32 now_ms
    u32 hand                       # of reclaim: the domain looked at last
    u32 sweep                      # of age
    u32 serial                     # of the last definition
    u32 domain_limit               # sets * FLOW_WAYS
    u32 domain_top                 # numbers given out so far
    u32 exporter_top
    u32 item_top
    u32 block_top
    u32 state_top
    u32 domain_free                # chains of those given back
    u32 exporter_free
    u32 item_free
    u32 block_free
    u32 state_free
    flow_set_t *sets
    flow_domain_t *domains         # by number
    flow_exporter_t *exporters
    flow_item_t *items
    flow_block_t *blocks
    flow_state_t *states
    u32 *item_buckets
    u32 *exporter_buckets
    flow_counters_t counters
