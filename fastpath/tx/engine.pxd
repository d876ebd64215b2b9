# cython: language_level=3, cdivision=True, boundscheck=False, wraparound=False
"""The engine seam: the struct of a way, the ring in which its copies wait, and the one function that sends them and handles every error.

An engine's emit writes messages into the ring. It never fails: it counts copies that fail. tx_flush() hands them to the kernel through
`port.send`, a function pointer so that a scripted engine can play back errno and partial counts in tests. Written contract of `send`: it
returns how many messages the kernel took (> 0) or -errno, and like sendmmsg(2) it loses the error when it took at least one.

Triage (HOUSE.md): EINTR: repeat. Partial: advance. EAGAIN, ENOBUFS, ENOMEM: wait at most twice (2 ms per flush in total), then count that copy,
and do not wait again for this receiver until it had no such error for a while. EIO, EINVAL on a segmented send: give the feature up for this
receiver for a while, send the run's datagrams one by one (EMSGSIZE: this run only). Reports of the network about earlier copies (IP_RECVERR
queue): count them for the receiver and repeat the current copy. Everything else: count that copy with its reason and continue with the next
one. No path drops the rest of a vector, and no path exits.

No feature is given up permanently: firewall rules, a full conntrack table (both EPERM), an IPsec policy (EIO) and a path MTU (EINVAL) come and
go. A feature is tried again after a minute, then after twice as long each time, at most 15 minutes. A try costs one send call.
"""

from libc.string cimport memcpy, memset
from base.atomics cimport atomic_load32, atomics_add
from base.counters cimport (
    REASON_COUNT, REASON_MESSAGE_TOO_LONG, REASON_NO_BUFFER_SPACE, REASON_NO_NEIGHBOR, REASON_NO_ROUTE, REASON_OTHER,
    REASON_PERMISSION, REASON_REFUSED, tx_counters_t,
)
from tx.lost cimport lost_note, lost_note_message, tx_lost_t
from uapi.net cimport (
    CLOCK_MONOTONIC, CMSG_DATA, CMSG_FIRSTHDR, CMSG_NXTHDR, CMSG_SPACE, EACCES, EAGAIN, ECONNREFUSED, EDESTADDRREQ, EHOSTDOWN,
    EHOSTUNREACH, EINTR,
    EINVAL, EIO,
    EMSGSIZE, ENETDOWN,
    ENETUNREACH, ENOBUFS, ENOMEM, EOPNOTSUPP, EPERM, IP_RECVERR, IPPROTO_IP, IPPROTO_IPV6, IPV6_RECVERR, MSG_DONTWAIT, MSG_ERRQUEUE,
    POLLOUT, SO_EE_ORIGIN_ICMP, SO_EE_ORIGIN_ICMP6, clock_gettime, cmsghdr, get_errno, iovec, mmsghdr, msghdr, nanosleep, poll, pollfd, recvmsg,
    sendmmsg, sockaddr_in6, sockaddr_ll, sock_extended_err, timespec, unlikely, u8, u16, u32, u64,
)

cdef enum:
    TX_ENGINE_UDP = 0
    TX_ENGINE_RAW = 1
    TX_ENGINE_DOOR = 2
    TX_ENGINE_TRANSPARENT = 3      # from here on: copies of a whole batch leave by sockets that several receivers share
    TX_ENGINE_PACKET = 4
    TX_GAVE_UP_SEGMENT = 1         # bits of tx_t.gave_up: what the kernel refused, and is not asked for now
    TX_GAVE_UP_TRANSPARENT = 2
    TX_GAVE_UP_PACKET = 4
    TX_GAVE_UP_COPIER = 8
    TX_FEATURES = 4
    TX_REPLAY_ALL = 1              # tx_t.replay: templates of all exporters
    TX_REPLAY_NEW = 2              # of those that the plan before did not send there
    TX_WAITING = 1                 # tx_t.waiting: gets no copies
    TX_WAKING = 2                  # gets none until all templates are replayed to it
    TX_RING = 2048                 # messages; more than the 1365 fragments of the largest datagram at the smallest MTU
    TX_VECTORS = 4 * TX_RING       # of the ring
    TX_HEADER = 96                 # header bytes reserved a message: virtio-net, link with VLAN, IPv6, UDP are 76
    TX_CONTROL = 128               # control bytes reserved a message: segment size first, then TOS, TTL, source address (112)
    TX_WAITS = 2                   # waits for a full queue before a copy is given up
    TX_WAIT_MS = 1                 # for room in the socket's buffer
    TX_NAP_US = 50                 # for room in the device's queue
    TX_PATIENCE_US = 2000          # waits of one flush in all: a receiver that trickles must not set the pace of the others
    TX_CLEAN_FLUSHES = 64          # flushes without a full queue before waiting is tried again
    TX_REPEATS = 4                 # repeats of one copy after reports about earlier ones
    TX_PROBE_NS = 100000000        # an unresolved next hop is tried again with one copy this often
    TX_REPORTS = 64                # reports read at one go
    TX_AGAIN_S = 60                # a refused feature is tried again after so many seconds, then after twice as many
    TX_AGAIN_LIMIT_S = 900         # at most; one that worked for longer than this begins anew

ctypedef struct tx_t

ctypedef struct tx_copy_t:         # what a message of the ring stands for
    u32 bytes                      # payload bytes of the copies that are complete with this message
    u16 copies                     # how many they are: a run's datagrams; 0 = a fragment that is not the last
    u16 rest                       # messages of the same copy that follow
    tx_t *tx                       # whose copies, where the socket is shared (transparent, packet)
    u32 way                        # its place in the plan, there
    u16 first                      # its first datagram in the runs' order, there

ctypedef struct tx_ring_t:
    u32 n
    tx_lost_t *lost                # noted here; NULL = nobody asks
    u64 stalls                     # waits for a full queue, for the worker's counters
    u32 waited_us                  # of the flush under way, at most
    mmsghdr *messages
    u32 vectors_used               # by engines that lay out headers and payloads one after the other (packet)
    iovec *vectors                 # TX_VECTORS; raw: two a message, header and payload
    u8 *headers
    u8 *control
    tx_copy_t *copies

ctypedef struct tx_link_t:         # where a frame for a receiver goes
    u32 usable                     # 0: no link address now, or the receiver is local
    u32 mtu                        # of the egress interface, bytes
    u32 header_bytes               # 14, with a VLAN tag 18
    u32 cuts                       # whether runs are cut up at the interface, whose pieces can get lost untold
    u8 header[20]                  # destination, source, (tag,) EtherType
    sockaddr_ll name

ctypedef struct tx_port_t

ctypedef int (*tx_send_t)(tx_port_t *port, mmsghdr *messages, u32 n) noexcept nogil

ctypedef struct tx_port_t:         # a socket as copies leave by it: a receiver's own, a lane's, or one that many receivers share
    tx_send_t send
    void *script                   # of a scripted kernel (tests); whoever borrows a port's `send` borrows this with it
    int fd                         # -1 = none

ctypedef struct tx_t:              # a way out: one receiver, or the half of it that takes exporters of the other address family
    # Set when it is made (Tx.__cinit__) and not changed: read by anybody.
    tx_port_t port                 # the receiver's own socket
    tx_counters_t *counters
    tx_t *cutter                   # udp with an MTU of its own: the raw way that cuts what is longer; NULL = the kernel cuts for the route
    u8 engine                      # TX_ENGINE
    u8 family                      # of the receiver, 4 or 6
    u8 ttl                         # 0 = as received
    u8 checksum                    # 0 = UDP checksum zero (IPv4)
    int tos                        # -1 = as received
    u32 freq
    u32 pause_us                   # after each copy (the ancestor's -x)
    u8 reports                     # the socket has IP_RECVERR and can carry reports of ICMP
    u8 by_exporter                 # freq thins exporters, not datagrams
    u8 refreshes                   # some refresh is set
    u8 alias                       # v9 and IPFIX copies carry the alias of their domain
    u8 per_session                 # each exporter session has a socket of its own (tx/lane.pxi)
    u32 refresh_copies[2]          # templates, options data: replayed after so many copies, 0 = never
    u32 refresh_ms[2]              # and after so long
    u16 port_be
    u8 address[16]                 # 4 bytes used for IPv4
    sockaddr_in6 name              # the receiver as a socket address; sockaddr_in for family 4
    # Written by the control plane while a worker runs, one word each, relaxed, but where another order is said. What the worker writes there,
    # too, is said.
    u32 mtu                        # path MTU in bytes
    u32 unresolved                 # the next hop does not answer (netlink)
    u32 accounted                  # netlink accounts for what such a next hop loses: reports of that are no news
    u32 looped                     # its copies come back to us: none is sent; the echo stage sets it, too
    u32 down                       # pools pass it over
    u32 refusing                   # of an engine that hears no refusals: what the kernel accepts counts as refused
    u32 waiting                    # TX_WAITING or TX_WAKING, 0 = no; the worker ends the waking
    u32 replay                     # TX_REPLAY: templates are asked for; the worker takes it back when they are sent
    u8 numbered                    # its sequence numbers may differ from the exporters': never taken back
    u32 link_version               # sequence lock of `link`: odd while it is written
    tx_link_t link
    u32 cuts                       # the cutter has our address and port as its `source` (release); other sources are set when the way is made
    u8 has_source                  # copies leave from `source` and not from the exporter's address
    u16 source_port_be             # 0 = the exporter's
    u8 source[16]
    # The worker's: nobody else writes, and but for `gave_up` nobody else reads.
    u8 gave_up                     # TX_GAVE_UP bits
    u8 blocked                     # within a batch: the shared socket failed this receiver, the rest goes by its own
    u32 clean                      # flushes since the last full queue; >= TX_CLEAN_FLUSHES: waiting is worth it
    u64 debt                       # sum of owed
    u64 owed[REASON_COUNT]         # copies reported as undelivered after they were counted as accepted
    u64 random_state               # of IP identifications
    u64 probed_ns                  # CLOCK_MONOTONIC of the last copy that was sent though the next hop does not answer
    u32 replay_cursor
    u64 replayed_ns                # CLOCK_MONOTONIC when the worker last began to replay all exporters' templates
    u32 again_s[TX_FEATURES]       # CLOCK_MONOTONIC from which a feature that was given up is tried again
    u32 pause_s[TX_FEATURES]       # how long it was given up for last, 0 = never
    tx_link_t link_now             # the copy of `link` for one batch


cdef inline int tx_send_kernel(tx_port_t *port, mmsghdr *messages, u32 n) noexcept nogil:
    cdef int got = sendmmsg(port.fd, messages, n, MSG_DONTWAIT)
    return got if got > 0 else -get_errno()


cdef inline u32 tx_random(tx_t *tx) noexcept nogil:
    """Next IP identification, never 0 (the kernel replaces 0). xorshift64*, seeded from the system at creation."""
    cdef u64 x = tx.random_state
    cdef u32 value
    x ^= x >> 12
    x ^= x << 25
    x ^= x >> 27
    tx.random_state = x
    value = <u32>((x * <u64>0x2545F4914F6CDD1D) >> 32)
    return value if (value & 0xFFFF) else value + 1


cdef inline u32 tx_reason(int error) noexcept nogil:
    """Reason of a send call's own error."""
    if error == EAGAIN or error == ENOBUFS or error == ENOMEM:
        return REASON_NO_BUFFER_SPACE
    if error == ENETUNREACH or error == EHOSTUNREACH or error == ENETDOWN or error == EDESTADDRREQ:
        return REASON_NO_ROUTE  # EDESTADDRREQ: there was no route when the socket was to be connected
    if error == EMSGSIZE:
        return REASON_MESSAGE_TOO_LONG
    if error == ECONNREFUSED:
        return REASON_REFUSED
    if error == EPERM or error == EACCES:
        return REASON_PERMISSION
    return REASON_OTHER


cdef inline u32 tx_report_reason(u32 error) noexcept nogil:
    """Reason of a report about an earlier copy (ICMP): host unreachable is what the kernel says of a neighbor that does not answer."""
    if error == <u32>EHOSTUNREACH or error == <u32>EHOSTDOWN:
        return REASON_NO_NEIGHBOR
    return tx_reason(<int>error)


cdef inline u32 tx_read_reports(tx_t *tx, int fd) noexcept nogil:
    """Books the reports waiting in a socket's error queue (ip(7), IP_RECVERR); returns how many were taken, those not from ICMP too."""
    cdef msghdr message
    cdef cmsghdr *cmsg
    cdef sock_extended_err report
    cdef u8 control[512]
    cdef u32 n = 0
    cdef u32 reason
    while n < TX_REPORTS:
        memset(&message, 0, sizeof(message))
        message.msg_control = control
        message.msg_controllen = sizeof(control)
        if recvmsg(fd, &message, MSG_ERRQUEUE | MSG_DONTWAIT) < 0:
            break
        n += 1
        cmsg = CMSG_FIRSTHDR(&message)
        while cmsg != NULL:
            if ((cmsg.cmsg_level == IPPROTO_IP and cmsg.cmsg_type == IP_RECVERR)
                    or (cmsg.cmsg_level == IPPROTO_IPV6 and cmsg.cmsg_type == IPV6_RECVERR)):
                memcpy(&report, CMSG_DATA(cmsg), sizeof(report))
                if report.ee_origin == SO_EE_ORIGIN_ICMP or report.ee_origin == SO_EE_ORIGIN_ICMP6:
                    reason = tx_report_reason(report.ee_errno)
                    if reason != REASON_NO_NEIGHBOR or not atomic_load32(&tx.accounted):
                        tx.owed[reason] += 1
                        tx.debt += 1
            cmsg = CMSG_NXTHDR(&message, cmsg)
    return n


cdef inline u64 tx_pay(tx_t *tx, u64 copies) noexcept nogil:
    """Counts accepted copies under the reasons of earlier ones reported undelivered; returns how many. Keeps the law exact, counters rising."""
    cdef u64 paid = 0
    cdef u64 part
    cdef u32 reason
    for reason in range(<u32>REASON_COUNT):
        part = tx.owed[reason]
        if part > copies - paid:
            part = copies - paid
        tx.owed[reason] -= part
        tx.debt -= part
        paid += part
        atomics_add(&tx.counters.failed[reason], part)
    return paid


cdef inline void tx_settle(tx_t *tx, u64 copies, u64 octets) noexcept nogil:
    """Counts accepted copies as sent, but for those that earlier reports are owed."""
    cdef u64 paid
    if unlikely(atomic_load32(&tx.refusing)):
        atomics_add(&tx.counters.failed[REASON_REFUSED], copies)
        return
    if unlikely(tx.debt and copies):
        paid = tx_pay(tx, copies)
        octets -= octets // copies * paid
        copies -= paid
    atomics_add(&tx.counters.sent, copies)
    atomics_add(&tx.counters.sent_bytes, octets)


cdef inline void tx_account(tx_t *tx, tx_ring_t *ring, u32 first, u32 n) noexcept nogil:
    """Counts the copies that are complete with the n messages the kernel took."""
    cdef u64 copies = 0
    cdef u64 octets = 0
    cdef u32 i
    for i in range(first, first + n):
        copies += ring.copies[i].copies
        octets += ring.copies[i].bytes
    tx_settle(tx, copies, octets)


cdef inline u32 tx_drop(tx_t *tx, tx_ring_t *ring, u32 i, u32 reason) noexcept nogil:
    """Gives up the copy that message i belongs to; returns the first message of the next copy."""
    cdef u32 last = i + ring.copies[i].rest
    atomics_add(&tx.counters.failed[reason], ring.copies[last].copies)
    if unlikely(ring.lost != NULL):
        lost_note_message(ring.lost, &ring.messages[i].msg_hdr, tx.engine != TX_ENGINE_UDP, reason)
    return last + 1


cdef inline u32 tx_wait(int fd, int error) noexcept nogil:
    """Waits a little for room: in the socket's buffer (poll) or in the device's queue (no event tells: a nap). Returns the most it took."""
    cdef pollfd ready
    cdef timespec nap
    if error == EAGAIN:
        ready.fd = fd
        ready.events = POLLOUT
        ready.revents = 0
        poll(&ready, 1, TX_WAIT_MS)
        return TX_WAIT_MS * 1000
    nap.tv_sec = 0
    nap.tv_nsec = TX_NAP_US * 1000
    nanosleep(&nap, NULL)
    return TX_NAP_US


cdef inline bint tx_again(tx_t *tx, const tx_port_t *port, tx_ring_t *ring, int error, u32 tries) noexcept nogil:
    """Whether the copy is to be sent again after its `tries`-th failure (from 1)."""
    if error == EINTR:
        return tries < 16
    if error == EAGAIN or error == ENOBUFS or error == ENOMEM:
        if tx.engine == TX_ENGINE_DOOR or tx.clean < TX_CLEAN_FLUSHES or tries > TX_WAITS or ring.waited_us >= TX_PATIENCE_US:
            tx.clean = 0
            return False
        ring.stalls += 1
        ring.waited_us += tx_wait(port.fd, error)
        return True
    return tx.reports and tx_read_reports(tx, port.fd) > 0 and tries <= TX_REPEATS


cdef inline u32 tx_clock_s() noexcept nogil:
    """CLOCK_MONOTONIC, seconds."""
    cdef timespec now
    clock_gettime(CLOCK_MONOTONIC, &now)
    return <u32>now.tv_sec


cdef inline void tx_give_up(tx_t *tx, u8 feature) noexcept nogil:
    """The kernel refuses a feature (one bit): it is not asked for again for a while, the longer the oftener it refused."""
    cdef u32 place = 3 if feature == TX_GAVE_UP_COPIER else feature >> 1
    cdef u32 now_s
    if tx.gave_up & feature:
        return
    now_s = tx_clock_s()
    if tx.pause_s[place] == 0 or now_s - tx.again_s[place] > TX_AGAIN_LIMIT_S:
        tx.pause_s[place] = TX_AGAIN_S
    elif tx.pause_s[place] * 2 < TX_AGAIN_LIMIT_S:
        tx.pause_s[place] *= 2
    else:
        tx.pause_s[place] = TX_AGAIN_LIMIT_S
    tx.again_s[place] = now_s + tx.pause_s[place]
    tx.gave_up |= feature


cdef inline void tx_try_again(tx_t *tx) noexcept nogil:
    """Takes back what was given up long enough ago. For a way that gave something up; once a batch."""
    cdef u32 place
    cdef u32 now_s = tx_clock_s()
    for place in range(<u32>TX_FEATURES):
        if tx.gave_up & (1 << place) and <int>(now_s - tx.again_s[place]) >= 0:
            tx.gave_up &= <u8>~(1 << place)


cdef inline bint tx_refuses_segments(int error) noexcept nogil:
    """What udp_send_skb() (net/ipv4/udp.c) answers to a segmented send that it cannot do at all."""
    return error == EIO or error == EINVAL or error == EOPNOTSUPP


cdef inline void tx_flush_plain(tx_t *tx, tx_port_t *port, tx_ring_t *ring, u32 i) noexcept nogil:
    """Sends the datagrams of run message i one by one: each is counted exactly once."""
    cdef msghdr *run = &ring.messages[i].msg_hdr
    cdef mmsghdr one
    cdef u32 k, tries, reason
    cdef int got
    one = ring.messages[i]
    one.msg_hdr.msg_iovlen = 1
    one.msg_hdr.msg_control = <u8 *>run.msg_control + CMSG_SPACE(sizeof(u16))
    one.msg_hdr.msg_controllen = run.msg_controllen - CMSG_SPACE(sizeof(u16))
    for k in range(<u32>run.msg_iovlen):
        one.msg_hdr.msg_iov = &run.msg_iov[k]
        tries = 0
        while True:
            got = port.send(port, &one, 1)
            atomics_add(&tx.counters.calls, 1)
            if got > 0:
                tx_settle(tx, 1, run.msg_iov[k].iov_len)
                break
            tries += 1
            if not tx_again(tx, port, ring, -got, tries):
                reason = tx_reason(-got)
                atomics_add(&tx.counters.failed[reason], 1)
                lost_note(ring.lost, run.msg_iov[k].iov_base, reason)
                break
            atomics_add(&tx.counters.retries, 1)


cdef inline u32 tx_failed(tx_t *tx, tx_port_t *port, tx_ring_t *ring, u32 i, int error) noexcept nogil:
    """Message i is not to be sent again as it is: a run goes out plain where that can help, else the copy is dropped. Returns the next."""
    cdef u32 reason
    if ring.copies[i].copies > 1 and (tx_refuses_segments(error) or error == EMSGSIZE):
        if error != EMSGSIZE:
            tx_give_up(tx, TX_GAVE_UP_SEGMENT)
        tx_flush_plain(tx, port, ring, i)
        return i + 1
    reason = tx_reason(error)
    return tx_drop(tx, ring, i, reason)


cdef inline void tx_flush(tx_t *tx, tx_port_t *port, tx_ring_t *ring) noexcept nogil:
    """Sends the ring by a socket of the receiver's (its own, or a lane's) and empties it: every copy in it is counted exactly once, as sent or
    dropped."""
    cdef u32 i = 0
    cdef u32 tries = 0
    cdef u32 want
    cdef int got
    cdef timespec pause
    if tx.clean < TX_CLEAN_FLUSHES:
        tx.clean += 1
    ring.waited_us = 0
    while i < ring.n:
        want = 1 + ring.copies[i].rest if tx.pause_us else ring.n - i
        got = port.send(port, &ring.messages[i], want)
        atomics_add(&tx.counters.calls, 1)
        if got > 0:
            tx_account(tx, ring, i, <u32>got)
            i += <u32>got
            tries = 0
            if i < ring.n and tx.reports:
                tx_read_reports(tx, port.fd)
            if tx.pause_us and ring.copies[i - 1].rest == 0:
                pause.tv_sec = tx.pause_us // 1000000
                pause.tv_nsec = <long>(tx.pause_us % 1000000) * 1000
                nanosleep(&pause, NULL)
            continue
        tries += 1
        if tx_again(tx, port, ring, -got, tries):
            atomics_add(&tx.counters.retries, 1)
            continue
        i = tx_failed(tx, port, ring, i, -got)
        tries = 0
    ring.n = 0
