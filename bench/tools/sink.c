/* Verifying sink: one or more receivers in one process. Checks every datagram of loadgen (payload.h) and prints one JSON line.
 *
 * State is kept per (receiver, source address, source port, exporter index): a gap in the sequence is loss, a sequence seen before
 * is a repetition, a late one a reordering, wrong bytes are corruption. Sequences start at 0, so a loss at the head is seen; a loss
 * at the tail is seen only by comparing "received" with what the generator sent (or by --expect).
 * Datagrams the kernel dropped at our own sockets are reported apart as "sink_drops" (SO_MEMINFO): they are part of "lost" but they
 * are not the relay's fault. Datagrams not made by loadgen (replayed captures) count as "foreign" and go into an order-free digest.
 * Prints "ready" on stderr once bound. Ends --idle-ms after the last datagram, at --max-seconds, at --expect, or on SIGTERM. */
#include "tool.h"
#include "payload.h"

#include <math.h>
#include <netinet/udp.h>
#include <sys/epoll.h>

#define BATCH 64
#define RECEIVERS_MAX 1024
#define WINDOW 65536u /* sequences below the highest one that are told apart, once a session has had a gap */
#define LATENCY_BUCKETS 512

static const char USAGE[] =
    "usage: sink --listen ADDR:PORT [--listen ...] [options]\n"
    "  --idle-ms M          end M ms after the last datagram (1000); counted from the first one\n"
    "  --max-seconds S      end in any case (60)\n"
    "  --expect N           end as soon as N datagrams have arrived in total\n"
    "  --source-base ADDR   each datagram must come from ADDR + its exporter index: \"wrong_source\"\n"
    "  --source-port P, --port-step 0|1: and from port P (+ index)\n"
    "  --per-source, --expect-sources: list every session\n"
    "  --any-source         an exporter is one session, from whatever address and port its datagrams come\n"
    "  --join               a session may start at any sequence\n"
    "  --gro                receive whole runs (UDP_GRO): cheaper, same checks\n"
    "  --latency            of timed payloads: send call to kernel receive, percentiles\n"
    "  --buffer BYTES       receive buffer of each socket (268435456)\n";

typedef struct {
	uint8_t address[16];
	uint32_t receiver, exporter;
	uint16_t port, used;
	uint64_t next;              /* highest sequence + 1 */
	uint64_t first, unique, repeated, reordered, stale;
	uint64_t *seen;             /* WINDOW bits, made at the first gap; NULL means all below `next` have been seen */
} session;

typedef struct {
	endpoint at;
	int fd;
	uint64_t received, bytes, lost, repeated, reordered, corrupt, short_ones, foreign, truncated, wrong_source, digest;
} receiver;

static receiver *receivers;
static uint32_t receiver_count;
static session *sessions;
static uint64_t session_slots, session_count, received_total;
static endpoint source_base;
static int has_source_base, per_source, any_source, join, gro, latency;
static uint32_t source_port, port_step;
static uint64_t first_ns, last_ns;
static uint64_t latency_count[LATENCY_BUCKETS], latency_total;

/* ---- sessions: open addressing, grown at half full ---- */

static uint64_t session_hash(const session *k)
{
	uint64_t a, b, h;
	memcpy(&a, k->address, 8);
	memcpy(&b, k->address + 8, 8);
	h = a * PAYLOAD_STEP ^ b;
	h = (h ^ (h >> 29)) * 0xbf58476d1ce4e5b9ull ^ ((uint64_t)k->receiver << 48 | (uint64_t)k->port << 32 | k->exporter);
	h = (h ^ (h >> 32)) * 0x94d049bb133111ebull;
	return h ^ (h >> 31);
}

static int session_same(const session *a, const session *b)
{
	return a->exporter == b->exporter && a->port == b->port && a->receiver == b->receiver && !memcmp(a->address, b->address, 16);
}

static session *session_slot(session *table, uint64_t slots, const session *key)
{
	uint64_t i = session_hash(key) & (slots - 1);
	while (table[i].used && !session_same(&table[i], key))
		i = (i + 1) & (slots - 1);
	return &table[i];
}

static session *session_find(const session *key)
{
	session *s;
	if (session_count * 2 >= session_slots) {
		uint64_t more = session_slots ? session_slots * 2 : 4096, i;
		session *table = calloc(more, sizeof *table);
		if (!table)
			die("out of memory");
		for (i = 0; i < session_slots; i++)
			if (sessions[i].used)
				*session_slot(table, more, &sessions[i]) = sessions[i];
		free(sessions);
		sessions = table;
		session_slots = more;
	}
	s = session_slot(sessions, session_slots, key);
	if (!s->used) {
		*s = *key;
		s->used = 1;
		s->next = s->first = UINT64_MAX;
		session_count++;
	}
	return s;
}

static int seen_test_and_set(session *s, uint64_t q)
{
	uint64_t *word = &s->seen[(q % WINDOW) / 64], bit = 1ull << (q % 64);
	int was = (*word & bit) != 0;
	*word |= bit;
	return was;
}

static void session_take(session *s, uint64_t q)
{
	uint64_t k;
	if (s->next == UINT64_MAX)
		s->next = s->first = join ? q : 0;
	if (q == s->next && !s->seen) {
		s->next++;
		s->unique++;
		return;
	}
	if (q >= s->next) {
		if (!s->seen) {
			s->seen = malloc(WINDOW / 8);
			if (!s->seen)
				die("out of memory");
			memset(s->seen, 0xff, WINDOW / 8);
		}
		for (k = q - s->next >= WINDOW ? q - WINDOW + 1 : s->next; k < q; k++)
			s->seen[(k % WINDOW) / 64] &= ~(1ull << (k % 64));
		s->seen[(q % WINDOW) / 64] |= 1ull << (q % 64);
		s->next = q + 1;
		s->unique++;
	} else if (q < s->first) { /* --join only: came before the one that opened the session */
		s->first = q;
		s->unique++;
		s->reordered++;
	} else if (!s->seen) {
		s->repeated++;
	} else if (s->next - q > WINDOW) {
		s->stale++;
	} else if (seen_test_and_set(s, q)) {
		s->repeated++;
	} else {
		s->unique++;
		s->reordered++;
	}
}

/* ---- one datagram ---- */

static uint32_t latency_bucket(uint64_t ns)
{
	double d = ns < 1 ? 0 : log2((double)ns) * 14; /* 5 % wide */
	return d >= LATENCY_BUCKETS ? LATENCY_BUCKETS - 1 : (uint32_t)d;
}

static int source_wrong(const endpoint *from, uint32_t exporter)
{
	if (has_source_base) {
		endpoint want = endpoint_plus(&source_base, exporter);
		if (want.sa.sa_family != from->sa.sa_family)
			return 1;
		if (want.sa.sa_family == AF_INET ? want.v4.sin_addr.s_addr != from->v4.sin_addr.s_addr
		                                 : memcmp(&want.v6.sin6_addr, &from->v6.sin6_addr, 16) != 0)
			return 1;
	}
	return source_port && endpoint_port(from) != (uint16_t)(source_port + port_step * exporter);
}

static void take(uint32_t index, const endpoint *from, const uint8_t *data, uint32_t length, uint64_t arrived_ns)
{
	receiver *r = &receivers[index];
	uint8_t head[PAYLOAD_HEADER_TIMED] = {0};
	uint32_t magic, exporter, header;
	session key = {.receiver = index, .port = endpoint_port(from)};
	uint64_t q;
	r->received++;
	r->bytes += length;
	received_total++;
	magic = length >= 4 ? load_be32(data) : 0;
	header = magic == PAYLOAD_MAGIC_TIMED ? PAYLOAD_HEADER_TIMED : PAYLOAD_HEADER;
	if (length >= 4 && magic != PAYLOAD_MAGIC && magic != PAYLOAD_MAGIC_TIMED) {
		r->foreign++;
		r->digest += payload_hash(data, length);
		return;
	}
	if (length < PAYLOAD_SEQUENCED) { /* no whole sequence: only the prefix can be checked */
		store_be32(head, magic == PAYLOAD_MAGIC_TIMED ? magic : PAYLOAD_MAGIC);
		r->short_ones++;
		if (memcmp(head, data, length < 4 ? length : 4) != 0 || (length > 8 && memcmp(head + 8, data + 8, length - 8) != 0))
			r->corrupt++;
		return;
	}
	exporter = load_be32(data + 4);
	q = load_be64(data + 8);
	store_be32(head, length);
	if (memcmp(head, data + 16, length < 20 ? length - 16 : 4) != 0 ||
	    (length > header && !payload_right(data, length, exporter, q, header))) {
		r->corrupt++;
		return;
	}
	if (source_wrong(from, exporter))
		r->wrong_source++;
	if (any_source) {
		key.port = 0;
	} else if (from->sa.sa_family == AF_INET) {
		key.address[10] = key.address[11] = 0xff;
		memcpy(key.address + 12, &from->v4.sin_addr, 4);
	} else {
		memcpy(key.address, &from->v6.sin6_addr, 16);
	}
	key.exporter = exporter;
	session_take(session_find(&key), q);
	if (latency && header == PAYLOAD_HEADER_TIMED && length >= header) {
		uint64_t then = load_be64(data + 20);
		latency_count[latency_bucket(arrived_ns > then ? arrived_ns - then : 0)]++;
		latency_total++;
	}
}

/* ---- receiving ---- */

static struct mmsghdr headers[BATCH];
static struct iovec iovs[BATCH];
static endpoint names[BATCH];
static union {
	uint8_t bytes[128];
	struct cmsghdr align;
} controls[BATCH];

static void read_receiver(uint32_t index)
{
	int rounds, n, i;
	for (rounds = 0; rounds < 16; rounds++) {
		for (i = 0; i < BATCH; i++) {
			headers[i].msg_hdr.msg_namelen = sizeof names[i];
			headers[i].msg_hdr.msg_controllen = gro || latency ? sizeof controls[i].bytes : 0;
		}
		n = recvmmsg(receivers[index].fd, headers, BATCH, MSG_DONTWAIT, NULL);
		if (n <= 0)
			return;
		last_ns = clock_ns(CLOCK_MONOTONIC);
		if (!first_ns)
			first_ns = last_ns;
		for (i = 0; i < n; i++) {
			uint32_t length = headers[i].msg_len, segment = length, at = 0;
			uint64_t arrived = 0;
			struct cmsghdr *c;
			if (headers[i].msg_hdr.msg_flags & MSG_TRUNC)
				receivers[index].truncated++;
			for (c = CMSG_FIRSTHDR(&headers[i].msg_hdr); c; c = CMSG_NXTHDR(&headers[i].msg_hdr, c)) {
				if (c->cmsg_level == SOL_UDP && c->cmsg_type == UDP_GRO) {
					int size;
					memcpy(&size, CMSG_DATA(c), sizeof size);
					segment = (uint32_t)size;
				} else if (c->cmsg_level == SOL_SOCKET && c->cmsg_type == SO_TIMESTAMPNS) {
					struct timespec t;
					memcpy(&t, CMSG_DATA(c), sizeof t);
					arrived = (uint64_t)t.tv_sec * 1000000000ull + (uint64_t)t.tv_nsec;
				}
			}
			do {
				uint32_t part = length - at < segment ? length - at : segment;
				take(index, &names[i], (uint8_t *)iovs[i].iov_base + at, part, arrived);
				at += part;
			} while (at < length && segment);
		}
		if (n < BATCH)
			return;
	}
}

static void open_receivers(int epoll, int buffer)
{
	uint32_t i;
	int one = 1, got;
	for (i = 0; i < receiver_count; i++) {
		struct epoll_event event = {.events = EPOLLIN, .data.u32 = i};
		receivers[i].fd = udp_listener(&receivers[i].at, buffer);
		if (gro)
			setsockopt(receivers[i].fd, SOL_UDP, UDP_GRO, &one, sizeof one);
		if (latency)
			setsockopt(receivers[i].fd, SOL_SOCKET, SO_TIMESTAMPNS, &one, sizeof one);
		if (epoll_ctl(epoll, EPOLL_CTL_ADD, receivers[i].fd, &event) < 0)
			die("epoll_ctl: %s", strerror(errno));
	}
	got = socket_buffer(receivers[0].fd, SO_RCVBUF, SO_RCVBUFFORCE, buffer);
	if (got / 2 < buffer)
		fprintf(stderr, "sink: receive buffer is %d bytes, asked for %d (CAP_NET_ADMIN?)\n", got / 2, buffer);
	for (i = 0; i < BATCH; i++) {
		iovs[i] = (struct iovec){malloc(65536), 65536};
		if (!iovs[i].iov_base)
			die("out of memory");
		headers[i].msg_hdr = (struct msghdr){.msg_name = &names[i], .msg_iov = &iovs[i], .msg_iovlen = 1, .msg_control = controls[i].bytes};
	}
}

/* ---- the result ---- */

#define U(x) ((unsigned long long)(x))

static void print_counts(const receiver *r, uint64_t drops)
{
	printf("\"received\": %llu, \"bytes\": %llu, \"lost\": %llu, \"repeated\": %llu, \"reordered\": %llu, \"corrupt\": %llu, "
	       "\"short\": %llu, \"foreign\": %llu, \"truncated\": %llu, \"wrong_source\": %llu, \"sink_drops\": %llu, \"digest\": \"%016llx\"",
	       U(r->received), U(r->bytes), U(r->lost), U(r->repeated), U(r->reordered), U(r->corrupt), U(r->short_ones), U(r->foreign),
	       U(r->truncated), U(r->wrong_source), U(drops), U(r->digest));
}

static void print_latency(void)
{
	static const double wanted[] = {0.5, 0.9, 0.99, 0.999, 1.0};
	static const char *const label[] = {"p50", "p90", "p99", "p999", "max"};
	uint64_t sum = 0;
	uint32_t b = 0, k;
	printf(", \"latency_ns\": {\"count\": %llu", U(latency_total));
	for (k = 0; k < 5 && latency_total; k++) {
		while (b < LATENCY_BUCKETS && (double)(sum + latency_count[b]) < wanted[k] * (double)latency_total)
			sum += latency_count[b++];
		printf(", \"%s\": %.0f", label[k], exp2(((double)b + 1) / 14));
	}
	printf("}");
}

static void print_result(void)
{
	receiver all = {0};
	uint64_t drops = 0, stale = 0, i, distinct = 0;
	char text[64];
	/* Distinct (source address, port) over all receivers: sessions with the receiver and exporter taken out of the key. */
	uint64_t slots = 4096, d;
	session *sources;
	while (slots < session_count * 2)
		slots *= 2;
	sources = calloc(slots, sizeof *sources);
	if (!sources)
		die("out of memory");
	for (i = 0; i < session_slots; i++) {
		session *s = &sessions[i], key = {.port = s->port}, *slot;
		receiver *r = &receivers[s->receiver];
		if (!s->used)
			continue;
		r->lost += s->next - s->first - s->unique;
		r->repeated += s->repeated;
		r->reordered += s->reordered;
		stale += s->stale;
		memcpy(key.address, s->address, 16);
		slot = session_slot(sources, slots, &key);
		if (!slot->used) {
			*slot = key;
			slot->used = 1;
			distinct++;
		}
	}
	free(sources);
	for (i = 0; i < receiver_count; i++) {
		receiver *r = &receivers[i];
		drops += socket_drops(r->fd);
		all.received += r->received;
		all.bytes += r->bytes;
		all.lost += r->lost;
		all.repeated += r->repeated;
		all.reordered += r->reordered;
		all.corrupt += r->corrupt;
		all.short_ones += r->short_ones;
		all.foreign += r->foreign;
		all.truncated += r->truncated;
		all.wrong_source += r->wrong_source;
		all.digest += r->digest;
	}
	printf("{");
	print_counts(&all, drops);
	printf(", \"stale\": %llu, \"exporters\": %llu, \"sessions\": %llu, \"first_ns\": %llu, \"last_ns\": %llu", U(stale), U(distinct),
	       U(session_count), U(first_ns), U(last_ns));
	if (latency)
		print_latency();
	printf(", \"receivers\": [");
	for (i = 0; i < receiver_count; i++) {
		int v6 = receivers[i].at.sa.sa_family == AF_INET6;
		printf("%s{\"listen\": \"%s%s%s:%u\", ", i ? ", " : "", v6 ? "[" : "", address_text(&receivers[i].at, text, sizeof text),
		       v6 ? "]" : "", endpoint_port(&receivers[i].at));
		print_counts(&receivers[i], socket_drops(receivers[i].fd));
		printf("}");
	}
	printf("]");
	if (per_source) {
		int first = 1;
		printf(", \"per_source\": [");
		for (d = 0; d < session_slots; d++) {
			session *s = &sessions[d];
			endpoint e = {0};
			if (!s->used)
				continue;
			e.v6.sin6_family = AF_INET6;
			memcpy(&e.v6.sin6_addr, s->address, 16);
			printf("%s{\"receiver\": %u, \"address\": \"%s\", \"port\": %u, \"exporter\": %u, \"received\": %llu, \"lost\": %llu, "
			       "\"repeated\": %llu, \"reordered\": %llu}",
			       first ? "" : ", ", s->receiver, address_text(&e, text, sizeof text), s->port, s->exporter,
			       U(s->unique + s->repeated + s->stale), U(s->next - s->first - s->unique), U(s->repeated), U(s->reordered));
			first = 0;
		}
		printf("]");
	}
	printf("}\n");
	fflush(stdout);
}

int main(int argc, char **argv)
{
	enum { LISTEN = 256, IDLE, MAX, EXPECT, BASE, PORT, STEP, PER, ANY, JOIN, GRO, LATENCY, BUFFER };
	static const struct option table[] = {
	    {"listen", 1, 0, LISTEN}, {"idle-ms", 1, 0, IDLE}, {"max-seconds", 1, 0, MAX}, {"expect", 1, 0, EXPECT},
	    {"source-base", 1, 0, BASE}, {"source-port", 1, 0, PORT}, {"port-step", 1, 0, STEP}, {"per-source", 0, 0, PER},
	    {"expect-sources", 0, 0, PER}, {"any-source", 0, 0, ANY}, {"join", 0, 0, JOIN}, {"gro", 0, 0, GRO}, {"latency", 0, 0, LATENCY},
	    {"buffer", 1, 0, BUFFER}, {0, 0, 0, 0}};
	uint64_t idle_ns = 1000000000ull, end, expect = UINT64_MAX;
	double max_seconds = 60;
	int buffer = 256 << 20, c, epoll, n, i;
	struct epoll_event events[64];
	receivers = calloc(RECEIVERS_MAX, sizeof *receivers);
	while ((c = getopt_long(argc, argv, "", table, NULL)) != -1) {
		switch (c) {
		case LISTEN:
			if (receiver_count == RECEIVERS_MAX)
				die("too many --listen");
			parse_endpoint(optarg, &receivers[receiver_count++].at);
			break;
		case IDLE: idle_ns = strtoull(optarg, NULL, 10) * 1000000ull; break;
		case MAX: max_seconds = strtod(optarg, NULL); break;
		case EXPECT: expect = strtoull(optarg, NULL, 10); break;
		case BASE: parse_address(optarg, &source_base); has_source_base = 1; break;
		case PORT: source_port = (uint32_t)strtoul(optarg, NULL, 10); break;
		case STEP: port_step = (uint32_t)strtoul(optarg, NULL, 10); break;
		case PER: per_source = 1; break;
		case ANY: any_source = 1; break;
		case JOIN: join = 1; break;
		case GRO: gro = 1; break;
		case LATENCY: latency = 1; break;
		case BUFFER: buffer = atoi(optarg); break;
		default: die("%s", USAGE);
		}
	}
	if (!receiver_count || optind != argc)
		die("%s", USAGE);
	allow_many_files();
	catch_stop();
	epoll = epoll_create1(EPOLL_CLOEXEC);
	open_receivers(epoll, buffer);
	fprintf(stderr, "ready\n");
	end = clock_ns(CLOCK_MONOTONIC) + (uint64_t)(max_seconds * 1e9);
	while (!stop_asked && received_total < expect) {
		uint64_t now = clock_ns(CLOCK_MONOTONIC), until = end;
		if (last_ns && last_ns + idle_ns < until)
			until = last_ns + idle_ns;
		if (now >= until)
			break;
		n = epoll_wait(epoll, events, 64, (int)((until - now) / 1000000ull) + 1);
		for (i = 0; i < n; i++)
			read_receiver(events[i].data.u32);
	}
	print_result();
	return 0;
}
