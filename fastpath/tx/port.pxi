# needs: uapi: net; base: atomics, batch; tx: engine, udp
# Ports: one IP_TRANSPARENT socket (ip(7)) per source port of exporters, through which engine `transparent` sends (tx/transparent.pxi). It is
# bound to the port and to an address that no host has and no route leads to, so it cannot take traffic from any program, not even from an
# exporter on this host. A port gets a socket only when runs save more than it costs, so that forged ports do not need a socket each.
# While a port is bound, no other program can bind it to all addresses (bind(2), EADDRINUSE). So a port is used only while runs are sent from
# it (PORT_IDLE_SECONDS), ports of programs on this host are never used, and a port that a new listener needs is released. A listener's port
# is shared with the listener (SO_REUSEPORT on both; the supervisor sets it on the listener's sockets).

cdef enum:
    PORT_WAYS = 8
    PORT_SETS = 2048                   # 16384 ports with a socket a worker at most, 3 KiB of kernel memory each
    PORT_EARN = 8                      # sends that runs would have saved before a socket is opened
    PORT_AGAIN_SECONDS = 60            # after which one that could not be opened is tried again: programs that have it are restarted, too
    PORT_IDLE = 4096                   # batches after which an unused socket may make way
    PORT_IDLE_SECONDS = 5              # after which it is closed: the port may be somebody else's then
    PORT_SECOND_NS = 1000000000
    PORT_SEND_BUFFER = 16 << 20        # bytes at least: all exporters and receivers share it
    PORT_EMPTY = 0
    PORT_CANDIDATE = 1
    PORT_OPEN = 2
    PORT_REFUSED = 3                   # by the kernel, or too many descriptors are open
    PORT_SET_WORDS = 1024

ctypedef struct port_set_t:            # UDP ports, a bit each; the control plane writes, a worker reads
    u64 words[PORT_SET_WORDS]

ctypedef struct port_t:                # the way out of the exporters that send from a port
    u16 port_be
    u8 family                          # 4 or 6
    u8 state
    u32 earned                         # sends that runs would have saved; PORT_REFUSED: the second in which it was
    u32 seen                           # batch number
    int fd

ctypedef struct ports_t:
    port_t *entries
    u32 open                           # sockets
    port_set_t withheld                # what listeners are to have: gets no socket here, and no lane
    u32 asked                          # how many times the control plane has changed `withheld`
    u32 released                       # of these the last that the worker has served; read by the control plane
    u32 second                         # how many have been looked at
    u32 marks[PORT_IDLE_SECONDS]       # batch number at each of the last seconds
    u64 looked_ns                      # CLOCK_MONOTONIC
    int send_buffer                    # bytes, of each socket
    tx_port_t way                      # how a socket is sent through: `fd` is that of the one at hand


cdef inline bint port_set_has(const port_set_t *ports, u16 port_be) noexcept nogil:
    cdef u32 port = ntohs(port_be)
    return atomic_load64(&ports.words[port >> 6]) >> (port & 63) & 1


cdef inline void port_clear(ports_t *ports, port_t *port) noexcept nogil:
    """Gives the port back, if it has a socket, and forgets what was earned."""
    if port.state == PORT_OPEN:
        close(port.fd)
        ports.open -= 1
    port.state = PORT_EMPTY
    port.earned = 0
    port.fd = -1


cdef void ports_look(ports_t *ports, u32 asked, u32 now, u64 now_ns) noexcept nogil:
    """Gives back what is withheld, at once (asked: ports_t.asked, read with acquire), and once a second what no run has left from for
    PORT_IDLE_SECONDS. now: batch number."""
    cdef u32 before, i
    cdef bint second = now_ns - ports.looked_ns >= PORT_SECOND_NS
    cdef port_t *port
    if not second and asked == ports.released:
        return
    before = ports.marks[ports.second % PORT_IDLE_SECONDS]
    if second:
        ports.looked_ns = now_ns
        ports.marks[ports.second % PORT_IDLE_SECONDS] = now
        ports.second += 1
    if ports.open:
        for i in range(<u32>(PORT_SETS * PORT_WAYS)):
            port = &ports.entries[i]
            if port.state != PORT_OPEN:
                continue
            if port_set_has(&ports.withheld, port.port_be) or (second and ports.second > PORT_IDLE_SECONDS and <int>(port.seen - before) <= 0):
                port_clear(ports, port)
    if asked != ports.released:
        atomic_store32_release(&ports.released, asked)


cdef inline port_t *port_find(ports_t *ports, const exporter_t *exporter, bint make, u32 now) noexcept nogil:
    """The entry of the exporter's port. make: a new one when there is none; NULL when its set is full of busy ones."""
    cdef u32 h = (<u32>exporter.port_be * 2 + (exporter.family == 6)) * <u32>0x9E3779B1
    cdef port_t *entry = &ports.entries[<size_t>((h >> 16) % PORT_SETS) * PORT_WAYS]
    cdef port_t *victim = NULL
    cdef u32 i, age, oldest = 0
    for i in range(<u32>PORT_WAYS):
        if entry.state != PORT_EMPTY and entry.port_be == exporter.port_be and entry.family == exporter.family:
            if make:                       # what leaves one by one does not need the port
                entry.seen = now
            return entry
        age = 0xFFFFFFFFU if entry.state == PORT_EMPTY else now - entry.seen
        if age > oldest and (entry.state != PORT_OPEN or age > PORT_IDLE):
            oldest = age
            victim = entry
        entry += 1
    if victim == NULL or not make:
        return NULL
    port_clear(ports, victim)
    victim.port_be = exporter.port_be
    victim.family = exporter.family
    victim.state = PORT_CANDIDATE
    victim.seen = now
    return victim


cdef inline int port_bind(int fd, const port_t *port) noexcept nogil:
    """bind(2) to nobody's address, the IPv4 dummy address (RFC 7600 §4.8) or 100::1 of the discard-only prefix (RFC 6666), and the port."""
    cdef sockaddr_in ipv4
    cdef sockaddr_in6 ipv6
    if port.family == 4:
        memset(&ipv4, 0, sizeof(ipv4))
        ipv4.sin_family = AF_INET
        ipv4.sin_port = port.port_be
        ipv4.sin_addr.s_addr = htonl(0xC0000008)
        return bind(fd, <const sockaddr *>&ipv4, sizeof(ipv4))
    memset(&ipv6, 0, sizeof(ipv6))
    ipv6.sin6_family = AF_INET6
    ipv6.sin6_port = port.port_be
    ipv6.sin6_addr.s6_addr[0] = 1
    ipv6.sin6_addr.s6_addr[15] = 1
    return bind(fd, <const sockaddr *>&ipv6, sizeof(ipv6))


cdef inline void port_set(int fd, int level, int name, int value) noexcept nogil:
    setsockopt(fd, level, name, &value, sizeof(value))


cdef inline bint port_affords(int fd) noexcept nogil:
    """Whether a socket with this descriptor leaves the process half of what it may open: the lowest free number is given out first."""
    cdef rlimit most
    return getrlimit(RLIMIT_NOFILE, &most) == 0 and <unsigned long>fd < most.rlim_cur // 2


cdef inline bint port_take(int fd, const port_t *port) noexcept nogil:
    """Binds the port, unless a program of this host has it. A listener of ours shares it: its sockets have SO_REUSEPORT, which counts among
    sockets of one user only (net/ipv4/udp.c, udp_lib_lport_inuse) and, bound to another address, takes no datagram from anybody."""
    port_set(fd, SOL_SOCKET, SO_REUSEADDR, 1)          # other workers have one for the same port
    if port_bind(fd, port) == 0:
        return True
    if get_errno() != EADDRINUSE:
        return False
    port_set(fd, SOL_SOCKET, SO_REUSEPORT, 1)
    return port_bind(fd, port) == 0


cdef void port_open(ports_t *ports, port_t *port) noexcept nogil:
    """Opens the port's socket, or marks it as refused."""
    cdef int family = AF_INET if port.family == 4 else AF_INET6
    cdef int level = IPPROTO_IP if port.family == 4 else IPPROTO_IPV6
    cdef int transparent = IP_TRANSPARENT if port.family == 4 else IPV6_TRANSPARENT
    cdef int send_buffer = ports.send_buffer if ports.send_buffer > PORT_SEND_BUFFER else <int>PORT_SEND_BUFFER
    cdef int one = 1
    cdef int fd = socket(family, SOCK_DGRAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0)
    port.state = PORT_REFUSED
    if fd < 0:
        return
    port_set(fd, SOL_SOCKET, SO_RCVBUF, 2048)
    port_set(fd, SOL_SOCKET, SO_SNDBUF, send_buffer)
    port_set(fd, SOL_SOCKET, SO_SNDBUFFORCE, send_buffer)
    if port.family == 4:
        port_set(fd, level, IP_MTU_DISCOVER, IP_PMTUDISC_DONT)
        port_set(fd, level, IP_TTL, UDP_SOCKET_TTL)
        port_set(fd, level, IP_MULTICAST_TTL, UDP_SOCKET_TTL)
    else:
        port_set(fd, level, IPV6_MTU_DISCOVER, IPV6_PMTUDISC_DONT)
        port_set(fd, level, IPV6_UNICAST_HOPS, UDP_SOCKET_TTL)
        port_set(fd, level, IPV6_MULTICAST_HOPS, UDP_SOCKET_TTL)
    if not port_affords(fd) or setsockopt(fd, level, transparent, &one, sizeof(one)) < 0 or not port_take(fd, port):
        close(fd)
        return
    port.fd = fd
    port.state = PORT_OPEN
    ports.open += 1


cdef void ports_close(ports_t *ports) noexcept nogil:
    cdef u32 i
    if ports.entries != NULL:
        for i in range(<u32>(PORT_SETS * PORT_WAYS)):
            if ports.entries[i].state == PORT_OPEN:
                close(ports.entries[i].fd)


cdef inline bint port_serves(const exporter_t *exporter) noexcept nogil:
    """Whether the kernel takes this for a source: not 0.0.0.0/8, loopback, multicast, broadcast; for IPv6 not ::/8 (unspecified, loopback),
    link-local (needs an interface), multicast: only a ring, or a forger beside us, brings such. Port 0 (RFC 768: none) cannot be bound."""
    cdef const u8 *address = &exporter.address[0]
    if exporter.port_be == 0:
        return False
    if exporter.family == 4:
        return address[12] != 0 and address[12] != 127 and address[12] < 224
    return address[0] != 0 and address[0] != 0xFF and not (address[0] == 0xFE and address[1] & 0xC0 == 0x80)


cdef inline port_t *port_for(ports_t *ports, const exporter_t *exporter, u32 saves, u32 now) noexcept nogil:
    """The open socket of an exporter's port or NULL. saves: sends that its runs in this batch save, which counts towards earning one."""
    cdef port_t *port
    if not port_serves(exporter) or port_set_has(&ports.withheld, exporter.port_be):
        return NULL
    port = port_find(ports, exporter, saves != 0, now)
    if port == NULL or port.state == PORT_OPEN:
        return port
    if port.state == PORT_REFUSED:
        if ports.second - port.earned < PORT_AGAIN_SECONDS:
            return NULL
        port.state = PORT_CANDIDATE
        port.earned = 0
    port.earned += saves
    if port.earned >= PORT_EARN:
        port.earned = ports.second
        port_open(ports, port)
    return port if port.state == PORT_OPEN else NULL
