/* The bare loop: the limit of each way to relay, with no logic at all (no rules, no counters per receiver, no error handling).
 *
 *   --send plain     recvmmsg, then one sendmmsg per receiver: connected UDP, or raw IP_HDRINCL with --spoof
 *   --send segment   recvmmsg, then runs of equal size as UDP_SEGMENT sends: connected UDP, or with --spoof one IP_TRANSPARENT
 *                    socket per exporter session, the batch grouped by session
 *
 * The product is measured against it ("at least 0.85 of the bare loop of the same kind"). Send errors are counted and ignored, so
 * only runs verified by the sink count. Ends on SIGTERM and prints one JSON line. */
#include "common.h"

#include <netinet/udp.h>

#define RECEIVERS_MAX 1024
#define BATCH_MAX 512
#define SLOT_BYTES 65536
#define SEGMENTS_MAX 64
#define RUN_BYTES_MAX 65000
#define SESSION_SLOTS (1u << 18)
#define MESSAGES_MAX 1024

static const char USAGE[] =
    "usage: bare --listen ADDR:PORT --to ADDR:PORT [--to ...] [--spoof] [--send plain|segment] [--batch N] [--segment-max BYTES]\n"
    "            [--ttl N] [--buffer BYTES]\n";

typedef struct {
	endpoint to;
	int fd;
} receiver;

typedef struct {
	endpoint from;
	int fd;
	uint32_t round, head, tail; /* chain of this round's datagrams, in order */
} session;

static receiver receivers[RECEIVERS_MAX];
static uint32_t receiver_count, batch_max = BATCH_MAX, segment_max = 1472;
static int spoof, ttl = 64;
static uint64_t datagrams, copies, errors, calls, batches;

/* One batch: where each datagram lies, and whose it is. */
static uint8_t *data[BATCH_MAX];
static uint32_t length[BATCH_MAX], next[BATCH_MAX];
static endpoint from[BATCH_MAX];
static session *sessions, *active[BATCH_MAX];
static uint32_t active_count, this_round;

static struct mmsghdr messages[MESSAGES_MAX];
static uint32_t message_datagrams[MESSAGES_MAX];
static struct iovec pieces[BATCH_MAX * 2];
static uint8_t headers[BATCH_MAX][48];
static uint32_t payload_sum[BATCH_MAX];
static union {
	uint8_t bytes[CMSG_SPACE(sizeof(uint16_t))];
	struct cmsghdr align;
} controls[BATCH_MAX];

/* ---- sending a vector: whatever fails is counted and passed over ---- */

static void send_vector(int fd, struct mmsghdr *m, const uint32_t *weight, uint32_t n)
{
	uint32_t i = 0;
	while (i < n) {
		int done = sendmmsg(fd, m + i, n - i, 0), k;
		calls++;
		if (done < 0) {
			if (errno == EINTR)
				continue;
			errors += weight ? weight[i] : 1;
			i++;
			continue;
		}
		for (k = 0; k < done; k++)
			copies += weight ? weight[i + (uint32_t)k] : 1;
		i += (uint32_t)done;
	}
}

/* ---- plain ---- */

static uint32_t sum_bytes(const uint8_t *p, size_t n)
{
	uint64_t sum = 0;
	uint32_t w;
	for (; n >= 4; n -= 4, p += 4) {
		memcpy(&w, p, 4);
		sum += w;
	}
	if (n) {
		w = 0;
		memcpy(&w, p, n);
		sum += w;
	}
	while (sum >> 16)
		sum = (sum & 0xffff) + (sum >> 16);
	return (uint32_t)sum;
}

/* IP and UDP header of datagram i for one receiver. Returns its length. */
static size_t craft(uint8_t *h, uint32_t i, const endpoint *to)
{
	uint32_t n = length[i], at = to->sa.sa_family == AF_INET ? 20 : 40, sum = payload_sum[i];
	uint16_t field[4] = {htons(endpoint_port(&from[i])), htons(endpoint_port(to)), htons((uint16_t)(n + 8)), 0}, total;
	memset(h, 0, at);
	if (at == 20) {
		total = htons((uint16_t)(n + 28));
		h[0] = 0x45;
		memcpy(h + 2, &total, 2);
		h[8] = (uint8_t)ttl;
		h[9] = IPPROTO_UDP;
		memcpy(h + 12, &from[i].v4.sin_addr, 4);
		memcpy(h + 16, &to->v4.sin_addr, 4);
		sum += sum_bytes(h + 12, 8);
	} else {
		total = htons((uint16_t)(n + 8));
		h[0] = 0x60;
		memcpy(h + 4, &total, 2);
		h[6] = IPPROTO_UDP;
		h[7] = (uint8_t)ttl;
		memcpy(h + 8, &from[i].v6.sin6_addr, 16);
		memcpy(h + 24, &to->v6.sin6_addr, 16);
		sum += sum_bytes(h + 8, 32);
	}
	sum += sum_bytes((const uint8_t *)field, 8) + htons(IPPROTO_UDP) + field[2];
	while (sum >> 16)
		sum = (sum & 0xffff) + (sum >> 16);
	field[3] = (uint16_t)~sum ? (uint16_t)~sum : 0xffff;
	memcpy(h + at, field, 8);
	return at + 8;
}

static void relay_plain(uint32_t n)
{
	uint32_t i, r;
	for (i = 0; i < n; i++)
		if (spoof)
			payload_sum[i] = sum_bytes(data[i], length[i]);
	for (r = 0; r < receiver_count; r++) {
		endpoint to = receivers[r].to;
		if (to.sa.sa_family == AF_INET6 && spoof)
			to.v6.sin6_port = 0;
		for (i = 0; i < n; i++) {
			struct iovec *v = &pieces[i * 2];
			struct msghdr *m = &messages[i].msg_hdr;
			*m = (struct msghdr){.msg_iov = v, .msg_iovlen = 1};
			if (spoof) {
				v[0] = (struct iovec){headers[i], craft(headers[i], i, &receivers[r].to)};
				v[1] = (struct iovec){data[i], length[i]};
				m->msg_iovlen = 2;
				m->msg_name = &to;
				m->msg_namelen = endpoint_size(&to);
			} else {
				v[0] = (struct iovec){data[i], length[i]};
			}
		}
		send_vector(receivers[r].fd, messages, NULL, n);
	}
}

/* ---- segment ---- */

/* Cuts datagrams order[0..n) into runs: one message each in messages[], pieces filled. Returns the number of messages. */
static uint32_t cut_runs(const uint32_t *order, uint32_t n)
{
	uint32_t i = 0, m = 0;
	while (i < n) {
		uint32_t size = length[order[i]], bytes = size, k = 1;
		pieces[i] = (struct iovec){data[order[i]], size};
		while (size && size <= segment_max && i + k < n && k < SEGMENTS_MAX) {
			uint32_t more = length[order[i + k]];
			if (!more || more > size || bytes + more > RUN_BYTES_MAX)
				break;
			pieces[i + k] = (struct iovec){data[order[i + k]], more};
			bytes += more;
			k++;
			if (more < size)
				break;
		}
		messages[m].msg_hdr = (struct msghdr){.msg_iov = &pieces[i], .msg_iovlen = k};
		if (k > 1) {
			uint16_t segment = (uint16_t)size;
			struct cmsghdr *c = &controls[m].align;
			*c = (struct cmsghdr){CMSG_LEN(sizeof segment), SOL_UDP, UDP_SEGMENT};
			memcpy(CMSG_DATA(c), &segment, sizeof segment);
			messages[m].msg_hdr.msg_control = c;
			messages[m].msg_hdr.msg_controllen = sizeof controls[m].bytes;
		}
		message_datagrams[m++] = k;
		i += k;
	}
	return m;
}

static int transparent_socket(const endpoint *source)
{
	int one = 1, family = source->sa.sa_family, fd = socket(family, SOCK_DGRAM | SOCK_CLOEXEC, 0);
	if (fd < 0)
		die("socket: %s", strerror(errno));
	if (setsockopt(fd, family == AF_INET ? IPPROTO_IP : IPPROTO_IPV6, family == AF_INET ? IP_TRANSPARENT : IPV6_TRANSPARENT, &one, sizeof one) < 0)
		die("IP_TRANSPARENT: %s", strerror(errno));
	setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
	if (family == AF_INET)
		setsockopt(fd, IPPROTO_IP, IP_TTL, &ttl, sizeof ttl);
	if (bind(fd, &source->sa, endpoint_size(source)) < 0)
		die("bind to an exporter's session: %s", strerror(errno));
	socket_buffer(fd, SO_SNDBUF, SO_SNDBUFFORCE, 4 << 20);
	return fd;
}

static session *session_of(const endpoint *e)
{
	uint64_t h = 0, low;
	uint32_t i;
	if (e->sa.sa_family == AF_INET) {
		h = e->v4.sin_addr.s_addr;
	} else {
		memcpy(&h, &e->v6.sin6_addr, 8);
		memcpy(&low, (const uint8_t *)&e->v6.sin6_addr + 8, 8);
		h = h * 31 + low;
	}
	h = (h ^ (uint64_t)endpoint_port(e) << 40) * 0x9e3779b97f4a7c15ull;
	for (i = (uint32_t)(h >> 46);; i = (i + 1) & (SESSION_SLOTS - 1)) {
		session *s = &sessions[i];
		if (!s->from.sa.sa_family) {
			s->from = *e;
			s->fd = transparent_socket(e);
			return s;
		}
		if (e->sa.sa_family == AF_INET ? s->from.v4.sin_addr.s_addr == e->v4.sin_addr.s_addr && s->from.v4.sin_port == e->v4.sin_port
		                               : !memcmp(&s->from.v6.sin6_addr, &e->v6.sin6_addr, 16) && s->from.v6.sin6_port == e->v6.sin6_port)
			return s;
	}
}

static void relay_session_runs(const uint32_t *order, uint32_t n, int fd)
{
	uint32_t runs = cut_runs(order, n), r, i, used = 0;
	static struct mmsghdr vector[MESSAGES_MAX];
	static uint32_t weight[MESSAGES_MAX];
	for (r = 0; r < receiver_count; r++) {
		for (i = 0; i < runs; i++) {
			vector[used] = messages[i];
			vector[used].msg_hdr.msg_name = &receivers[r].to;
			vector[used].msg_hdr.msg_namelen = endpoint_size(&receivers[r].to);
			weight[used++] = message_datagrams[i];
			if (used == MESSAGES_MAX) {
				send_vector(fd, vector, weight, used);
				used = 0;
			}
		}
	}
	send_vector(fd, vector, weight, used);
}

static void relay_segment(uint32_t n)
{
	uint32_t order[BATCH_MAX], i, k, count;
	session *last = NULL;
	if (!spoof) {
		for (i = 0; i < n; i++)
			order[i] = i;
		count = cut_runs(order, n);
		for (i = 0; i < receiver_count; i++)
			send_vector(receivers[i].fd, messages, message_datagrams, count);
		return;
	}
	this_round++;
	active_count = 0;
	for (i = 0; i < n; i++) {
		session *s = i && !memcmp(&from[i], &from[i - 1], endpoint_size(&from[i])) ? last : session_of(&from[i]);
		last = s;
		next[i] = UINT32_MAX;
		if (s->round != this_round) {
			s->round = this_round;
			s->head = i;
			active[active_count++] = s;
		} else {
			next[s->tail] = i;
		}
		s->tail = i;
	}
	for (k = 0; k < active_count; k++) {
		count = 0;
		for (i = active[k]->head; i != UINT32_MAX; i = next[i])
			order[count++] = i;
		relay_session_runs(order, count, active[k]->fd);
	}
}

/* ---- the loop ---- */

static void run_recvmmsg(int fd, void (*relay)(uint32_t))
{
	static struct mmsghdr in[BATCH_MAX];
	static struct iovec iov[BATCH_MAX];
	uint8_t *arena = aligned_alloc(4096, (size_t)BATCH_MAX * SLOT_BYTES);
	uint32_t i;
	int n;
	if (!arena)
		die("out of memory");
	for (i = 0; i < batch_max; i++) {
		data[i] = arena + (size_t)i * SLOT_BYTES + (i % 32) * 64; /* not all in the same cache sets */
		iov[i] = (struct iovec){data[i], SLOT_BYTES - 2048};
		in[i].msg_hdr = (struct msghdr){.msg_name = &from[i], .msg_iov = &iov[i], .msg_iovlen = 1};
	}
	while (!stop_asked) {
		for (i = 0; i < batch_max; i++)
			in[i].msg_hdr.msg_namelen = sizeof from[i];
		n = recvmmsg(fd, in, batch_max, MSG_WAITFORONE, NULL);
		if (n <= 0)
			continue;
		for (i = 0; i < (uint32_t)n; i++)
			length[i] = in[i].msg_len;
		datagrams += (uint32_t)n;
		batches++;
		relay((uint32_t)n);
	}
}

static int open_sender(const endpoint *to)
{
	int one = 1, family = to->sa.sa_family;
	int fd = spoof ? socket(family, SOCK_RAW | SOCK_CLOEXEC, IPPROTO_RAW) : socket(family, SOCK_DGRAM | SOCK_CLOEXEC, 0);
	if (fd < 0)
		die("socket: %s", strerror(errno));
	if (spoof && family == AF_INET6)
		setsockopt(fd, IPPROTO_IPV6, IPV6_HDRINCL, &one, sizeof one);
	if (!spoof && connect(fd, &to->sa, endpoint_size(to)) < 0)
		die("connect: %s", strerror(errno));
	if (!spoof && family == AF_INET)
		setsockopt(fd, IPPROTO_IP, IP_TTL, &ttl, sizeof ttl);
	socket_buffer(fd, SO_SNDBUF, SO_SNDBUFFORCE, 4 << 20);
	return fd;
}

int main(int argc, char **argv)
{
	enum { LISTEN = 256, TO, SPOOF, SEND, NBATCH, SEGMENT, TTL, BUFFER };
	static const struct option table[] = {{"listen", 1, 0, LISTEN}, {"to", 1, 0, TO}, {"spoof", 0, 0, SPOOF}, {"send", 1, 0, SEND},
	    {"batch", 1, 0, NBATCH}, {"segment-max", 1, 0, SEGMENT}, {"ttl", 1, 0, TTL}, {"buffer", 1, 0, BUFFER}, {0, 0, 0, 0}};
	void (*relay)(uint32_t) = relay_plain;
	endpoint at = {0};
	int buffer = 64 << 20, fd, c;
	uint32_t i;
	while ((c = getopt_long(argc, argv, "", table, NULL)) != -1) {
		switch (c) {
		case LISTEN: parse_endpoint(optarg, &at); break;
		case TO:
			if (receiver_count == RECEIVERS_MAX)
				die("too many --to");
			parse_endpoint(optarg, &receivers[receiver_count++].to);
			break;
		case SPOOF: spoof = 1; break;
		case SEND:
			if (!strcmp(optarg, "segment"))
				relay = relay_segment;
			else if (strcmp(optarg, "plain") != 0)
				die("%s", USAGE);
			break;
		case NBATCH: batch_max = (uint32_t)strtoul(optarg, NULL, 10); break;
		case SEGMENT: segment_max = (uint32_t)strtoul(optarg, NULL, 10); break;
		case TTL: ttl = atoi(optarg); break;
		case BUFFER: buffer = atoi(optarg); break;
		default: die("%s", USAGE);
		}
	}
	if (!at.sa.sa_family || !receiver_count || optind != argc || !batch_max || batch_max > BATCH_MAX)
		die("%s", USAGE);
	allow_many_files();
	fd = udp_listener(&at, buffer);
	for (i = 0; i < receiver_count; i++)
		receivers[i].fd = open_sender(&receivers[i].to);
	sessions = calloc(SESSION_SLOTS, sizeof *sessions);
	if (!sessions)
		die("out of memory");
	catch_stop();
	fprintf(stderr, "ready\n");
	run_recvmmsg(fd, relay);
	printf("{\"datagrams\": %llu, \"copies\": %llu, \"errors\": %llu, \"calls\": %llu, \"batches\": %llu, \"listener_drops\": %u}\n",
	       (unsigned long long)datagrams, (unsigned long long)copies, (unsigned long long)errors, (unsigned long long)calls,
	       (unsigned long long)batches, socket_drops(fd));
	return 0;
}
