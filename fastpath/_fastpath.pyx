# cython: language_level=3, cdivision=True, boundscheck=False, wraparound=False, initializedcheck=False
"""samplicator._fastpath: the compiled datapath. This file only gathers its parts; README.md says in which order to read them.

The public face (signatures, units, errors raised) is documented in pysrc/samplicator/_fastpath.pyi.
"""

cimport cython
from cpython.buffer cimport PyBUF_WRITABLE, PyBuffer_Release, PyObject_GetBuffer
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memcmp, memcpy, memset
from posix.stdlib cimport posix_memalign

from base.atomics cimport (
    ATOMIC_STORES_IN_ORDER, atomic_change32, atomic_change64, atomic_exchange, atomic_fence, atomic_fence_load32, atomic_fence_release,
    atomic_load32, atomic_load32_acquire, atomic_load64, atomic_load64_acquire, atomic_load_acquire, atomic_store32, atomic_store32_release,
    atomic_store64, atomic_store64_release, atomics_add,
)
from base.batch cimport BATCH_LIMIT, batch_note_cut, batch_t, exporter_t
from base.door cimport (
    DOOR_BROKEN, DOOR_HEADER, DOOR_MESSAGE, DOOR_MESSAGES, DOOR_RECORDS, DOOR_SOUND, DOOR_STRANGE, door_exporter, door_read,
    door_record_t, door_write,
)
from base.counters cimport (
    BATCH_BUCKETS, LATENCY_BUCKETS, REASON_LOOP, REASON_MESSAGE_TOO_LONG, REASON_NO_BUFFER_SPACE, REASON_NO_NEIGHBOR, REASON_OTHER,
    REASON_REFUSED, RX_FIELD_COUNT, TX_FIELD_COUNT, WORKER_FIELD_COUNT, counters_latency, rx_counters_t, tx_counters_t, worker_counters_t,
)
from base.hash cimport hash_address, hash_mix
from flow.alias cimport (
    ALIAS_SETS, ALIAS_WAYS, alias_born, alias_domain_at, alias_entry_t, alias_take, alias_write, aliases_t,
)
from route.echo cimport (
    ECHO_ASK, ECHO_ASKING_NS, ECHO_HOLD, ECHO_IDLE, ECHO_SOURCES, ECHO_STORM, echo_answer, echo_came, echo_end, echo_held_t,
    echo_hold, echo_hurries, echo_is, echo_keep, echo_key, echo_miss, echo_next_way, echo_returns, echo_source, echo_suspects, echo_t,
)
from flow.carry cimport (
    FLOW_CARRY_STATES, flow_carried_t, flow_carry_item, flow_carry_read, flow_carry_rows, flow_carry_set, flow_carry_sound, flow_carry_state,
)
from flow.items cimport flow_list, flow_met
from flow.keep cimport flow_always, flow_keeps_exporter
from flow.memory cimport FLOW_DEFAULT_BYTES, FLOW_FORGET_MS, FLOW_LIFE_LIMIT_MS, flow_create, flow_limits, flow_memory
from flow.observe cimport flow_age, flow_observe, flow_tick
from flow.reading cimport FLOW_READ_TRIES, flow_read_domain, flow_read_items, flow_read_items_once
from flow.renumber cimport (
    flow_forget_receiver, flow_leave_out, flow_next, flow_pause, flow_refresh_due, flow_renumber, flow_write_number,
)
from flow.replay cimport (
    FLOW_REPLAY_ALL, FLOW_REPLAY_JOIN, FLOW_REPLAY_OPTIONS, FLOW_REPLAY_REFRESH, FLOW_REPLAY_TEMPLATES, flow_replay_allowed,
    flow_replay_begin, flow_replay_domain, flow_replay_exporter, flow_replay_next, flow_replay_owed, flow_replay_t,
)
from flow.scan cimport (
    FLOW_HEADER, FLOW_IPFIX, FLOW_KINDS, FLOW_MALFORMED, FLOW_OTHER, FLOW_SFLOW, FLOW_UNKNOWN, FLOW_V1, FLOW_V5, FLOW_V7, FLOW_V8, FLOW_V9,
    flow_scan, flow_seen_t,
)
from flow.state cimport (
    FLOW_BLOCK, FLOW_COUNTER_COUNT, FLOW_GAPS, FLOW_ITEM_OPTIONS_DATA, FLOW_ITEM_OPTIONS_TEMPLATE, FLOW_ITEM_TEMPLATE, FLOW_LISTS,
    FLOW_OPTIONS, FLOW_OPTIONS_TEMPLATES, FLOW_REPLAYS, FLOW_STYLES, FLOW_TEMPLATES, flow_counters_t, flow_domain_t, flow_item_t,
    flow_limits_t, flow_sequence_t, flow_state_t, flow_t,
)
from flow.table cimport flow_evict, flow_find, flow_hash, flow_way
from flow.template cimport flow_u32
from route.match cimport match_forget, match_listener, match_route, match_rules, match_ways
from route.plan cimport (
    PLAN_NONE, PLAN_ROUND_ROBIN, PLAN_ROUTE_DENIED, PLAN_ROUTE_FIRST, plan_t, pool_member_t, pool_t, route_t, rule_t, source_group_t, source_t,
)
from route.pool cimport (
    POOL_ENTRIES, pool_adopt, pool_assign, pool_by_id, pool_cache_t, pool_entry_t, pool_expire, pool_find, pool_load, pool_member, pool_turn,
)
from route.walk cimport walk_begin, walk_next, walk_t
from shape.run cimport run_datagrams, run_make, run_session_end, runs_t
from rx.overlap cimport OVERLAP_LEAVES, OVERLAP_NOTES, overlap_entry_t, overlap_t
from rx.socket cimport (
    RING_BLOCK_HEADER, RING_LINK, RING_NETWORK, RX_CONTROL, RX_DOOR, RX_EMPTY, RX_READ, RX_REST, RX_RING, RX_SLOT, RX_SOCKET,
    RX_STAMP_BATCH, RX_STAMP_EVERY, rx_arena_t, rx_overlap_end, rx_overlapping, rx_received, rx_ring_t, rx_socket_t,
)
from shape.sample cimport sample_keep
from route.session cimport SESSION_SETS, SESSION_WAYS, session_cache_t, session_find, session_group, session_t, session_take, session_void
from tx.engine cimport (
    TX_CLEAN_FLUSHES, TX_CONTROL, TX_ENGINE_DOOR, TX_ENGINE_PACKET, TX_ENGINE_RAW, TX_ENGINE_TRANSPARENT, TX_ENGINE_UDP, TX_GAVE_UP_COPIER,
    TX_GAVE_UP_PACKET, TX_GAVE_UP_SEGMENT, TX_GAVE_UP_TRANSPARENT, TX_HEADER, TX_PROBE_NS, TX_REPLAY_ALL, TX_REPLAY_NEW, TX_RING, TX_VECTORS,
    TX_WAITING, TX_WAKING, tx_copy_t, tx_flush, tx_give_up, tx_link_t, tx_port_t, tx_random, tx_refuses_segments, tx_ring_t, tx_send_kernel,
    tx_read_reports, tx_settle, tx_t, tx_try_again,
)
from tx.lost cimport lost_note, tx_lost_t
from uapi.copies cimport (
    COPIES_KIND, COPIES_OF_CALL, COPIES_SLOTS, COPIES_WORKERS, copies_call_t, copies_counters_t, copies_receiver_t,
)
from uapi.offload cimport (
    BPF_NOEXIST, BPF_RINGBUF_BUSY_BIT, BPF_RINGBUF_DISCARD_BIT, BPF_RINGBUF_HDR_SZ, OFFLOAD_EXPRESS, OFFLOAD_EXPRESS_PLACES,
    OFFLOAD_ON, OFFLOAD_OUTPUTS, OFFLOAD_PLACE, OFFLOAD_RECEIVERS, OFFLOAD_SESSIONS, OFFLOAD_SETS, OFFLOAD_WORKERS, bpf_map_set,
    offload_key_t, offload_off, offload_on, offload_record_t, offload_session_t, offload_set_t,
)
from uapi.net cimport (
    AF_INET, AF_INET6, AF_PACKET, BPF_RET_K, CLOCK_MONOTONIC, CLOCK_REALTIME, CLOCK_THREAD_CPUTIME_ID, CMSG_DATA, CMSG_FIRSTHDR,
    CMSG_LEN, CMSG_NXTHDR, CMSG_SPACE, EACCES, EADDRINUSE, EAFNOSUPPORT, EAGAIN, ECONNRESET,
    EDESTADDRREQ, EFD_CLOEXEC, EFD_NONBLOCK, EINTR, ENOBUFS, ENOMEM,
    EPERM, EPOLL_CLOEXEC, EPOLL_CTL_ADD, EPOLL_CTL_DEL, EPOLLERR, EPOLLET, EPOLLIN, IP_MTU_DISCOVER, IP_MULTICAST_TTL, IP_PKTINFO,
    IP_PMTUDISC_DONT, IP_RECVERR, IP_TOS, IP_TRANSPARENT, IP_TTL, IPPROTO_IP, IPPROTO_IPV6, IPV6_HOPLIMIT, IPV6_MTU_DISCOVER,
    IPV6_MULTICAST_HOPS, IPV6_PKTINFO, IPV6_PMTUDISC_DONT, IPV6_RECVERR, IPV6_TCLASS, IPV6_TRANSPARENT, IPV6_UNICAST_HOPS,
    MAP_ANONYMOUS, MAP_FAILED, MAP_NORESERVE, MAP_PRIVATE, MAP_SHARED, MSG_DONTWAIT, MSG_NOSIGNAL, MSG_TRUNC, PR_SET_TIMERSLACK,
    PROT_READ, PROT_WRITE, RLIMIT_NOFILE,
    SCM_TIMESTAMPNS, SIOCINQ, SO_ATTACH_FILTER, SO_BROADCAST, SO_ERROR, SO_NO_CHECK, SO_RCVBUF, SO_REUSEADDR, SO_REUSEPORT, SO_SNDBUF,
    SO_SNDBUFFORCE, SO_TIMESTAMPNS, SOCK_CLOEXEC, SOCK_DGRAM, SOCK_NONBLOCK, SOL_SOCKET, SOL_UDP, THREAD_SCHEDULE_BYTES, UDP_GRO,
    UDP_SEGMENT, bind, clock_gettime, close, cmsghdr, connect, epoll_create1, epoll_ctl, epoll_event, epoll_wait, eventfd, get_errno,
    getrlimit, getsockname, getsockopt, htonl, htons, in6_pktinfo, in_pktinfo, ioctl, iovec, likely, mmap, mmsghdr, msghdr, munmap,
    nanosleep, ntohs, prctl, read, recvmmsg, rlimit, sendmmsg, setsockopt, sock_filter, sock_fprog, sockaddr, sockaddr_in, sockaddr_in6,
    sockaddr_ll, socket, socklen_t, thread_schedule, thread_schedule_get, thread_schedule_set, timespec, u16, u32, u64, u8, unlikely,
    write,
)
from base.wire cimport (
    WIRE_FRAGMENT_HEADER, WIRE_IPV4_HEADER, WIRE_IPV6_HEADER, WIRE_MORE_FRAGMENTS, WIRE_NEXT_FRAGMENT, WIRE_PROTOCOL_UDP,
    WIRE_UDP_HEADER, WIRE_UDP_MAX_IPV4, wire_fold, wire_fragment_bytes, wire_ipv4, wire_ipv6, wire_ipv6_fragment,
    wire_ip_header, wire_is_ipv4_mapped, wire_map_ipv4, wire_overhead, wire_pseudo, wire_put16, wire_sum, wire_udp,
)

from os import urandom

include "rx/recvmmsg.pxi"
include "rx/ring.pxi"
include "rx/door.pxi"
include "tx/udp.pxi"
include "tx/raw.pxi"
include "tx/shared.pxi"
include "tx/port.pxi"
include "tx/transparent.pxi"
include "tx/packet.pxi"
include "tx/copier.pxi"
include "tx/lane.pxi"
include "tx/door.pxi"
include "worker/work.pxi"
include "worker/offload.pxi"
include "worker/state.pxi"
include "worker/tap.pxi"
include "worker/send.pxi"
include "worker/flow.pxi"
include "worker/lane.pxi"
include "worker/pool.pxi"
include "worker/choose.pxi"
include "worker/echo.pxi"
include "worker/express.pxi"
include "worker/ingress.pxi"
include "worker/gather.pxi"
include "worker/loop.pxi"
include "handles/memory.pxi"
include "handles/snapshot.pxi"
include "handles/sockets.pxi"
include "handles/door.pxi"
include "handles/tx.pxi"
include "handles/flow.pxi"
include "handles/carry.pxi"
include "handles/alias.pxi"
include "handles/plan.pxi"
include "handles/kernel.pxi"
include "handles/worker.pxi"
