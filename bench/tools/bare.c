/* The bare loop: the limit of each way to relay, with no logic at all (no rules, no counters per receiver, no error handling).
 *
 *   --receive recvmmsg   batches from the UDP socket
 *   --receive ring       TPACKET_V3 ring on --device (bare_ring.h)
 *   --send plain         one sendmmsg per receiver and batch: connected UDP, or raw IP_HDRINCL with --spoof
 *   --send segment       runs of equal size as UDP_SEGMENT sends: connected UDP, or with --spoof the batch grouped by exporter session
 *                        and one IP_TRANSPARENT socket per session
 *   --send packet        runs and single copies as AF_PACKET frames on --device-out (bare_packet.h); --spoof only
 *
 * The product is measured against it ("at least 0.85 of the bare loop of the same kind"). Send errors are counted and ignored, so
 * only runs verified by the sink count. Ends on SIGTERM and prints one JSON line. */
#include "bare.h"
#include "bare_packet.h"
#include "bare_ring.h"

#define MESSAGES_MAX 1024

static const char USAGE[] =
    "usage: bare --listen ADDR:PORT --to ADDR:PORT [--to ...] [--spoof] [--receive recvmmsg|ring] [--send plain|segment|packet]\n"
    "            [--batch N] [--segment-max BYTES] [--ttl N] [--buffer BYTES] [--device NAME] [--ring-blocks N]\n"
    "            [--device-out NAME --next-hop MAC [--bypass]] [--share-port]\n";

/* ---- plain ---- */

static struct mmsghdr plain_messages[BATCH_MAX];
static struct iovec plain_pieces[BATCH_MAX * 2];
static uint8_t plain_headers[BATCH_MAX][48];
static uint32_t payload_sum[BATCH_MAX];

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
	field[3] = (uint16_t)~sum_folded(sum);
	if (!field[3])
		field[3] = 0xffff;
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
			to.v6.sin6_port = 0; /* a raw IPv6 socket takes a port for a protocol number */
		for (i = 0; i < n; i++) {
			struct iovec *v = &plain_pieces[i * 2];
			struct msghdr *m = &plain_messages[i].msg_hdr;
			*m = (struct msghdr){.msg_iov = v, .msg_iovlen = 1};
			if (spoof) {
				v[0] = (struct iovec){plain_headers[i], craft(plain_headers[i], i, &receivers[r].to)};
				v[1] = (struct iovec){data[i], length[i]};
				m->msg_iovlen = 2;
				m->msg_name = &to;
				m->msg_namelen = endpoint_size(&to);
			} else {
				v[0] = (struct iovec){data[i], length[i]};
			}
		}
		send_vector(receivers[r].fd, plain_messages, NULL, n);
	}
}

/* ---- segment ---- */

static struct mmsghdr run_messages[MESSAGES_MAX];
static uint32_t run_weight[MESSAGES_MAX];
static struct iovec run_pieces[BATCH_MAX];
static union {
	uint8_t bytes[CMSG_SPACE(sizeof(uint16_t))];
	struct cmsghdr align;
} run_controls[BATCH_MAX];

static int transparent_socket(const endpoint *source)
{
	int one = 1, v4 = source->sa.sa_family == AF_INET, fd = socket(source->sa.sa_family, SOCK_DGRAM | SOCK_CLOEXEC, 0);
	if (fd < 0)
		die("socket: %s", strerror(errno));
	if (setsockopt(fd, v4 ? IPPROTO_IP : IPPROTO_IPV6, v4 ? IP_TRANSPARENT : IPV6_TRANSPARENT, &one, sizeof one) < 0)
		die("IP_TRANSPARENT: %s", strerror(errno));
	setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
	if (v4)
		setsockopt(fd, IPPROTO_IP, IP_TTL, &ttl, sizeof ttl);
	if (bind(fd, &source->sa, endpoint_size(source)) < 0)
		die("bind to an exporter's session: %s", strerror(errno));
	socket_buffer(fd, SO_SNDBUF, SO_SNDBUFFORCE, 4 << 20);
	return fd;
}

/* Message of one run; the address stays empty. */
static struct msghdr run_message(const run *r, uint32_t index)
{
	struct msghdr h = {.msg_iov = &run_pieces[r->first], .msg_iovlen = r->count};
	uint32_t i;
	for (i = r->first; i < r->first + r->count; i++)
		run_pieces[i] = (struct iovec){data[order[i]], length[order[i]]};
	if (r->count > 1) {
		uint16_t size = (uint16_t)r->size;
		struct cmsghdr *c = &run_controls[index].align;
		*c = (struct cmsghdr){CMSG_LEN(sizeof size), SOL_UDP, UDP_SEGMENT};
		memcpy(CMSG_DATA(c), &size, sizeof size);
		h.msg_control = c;
		h.msg_controllen = sizeof run_controls[index].bytes;
	}
	return h;
}

static void relay_segment_own(uint32_t n)
{
	static run runs[BATCH_MAX];
	uint32_t i, m;
	for (i = 0; i < n; i++)
		order[i] = i;
	m = cut_runs(0, n, runs);
	for (i = 0; i < m; i++) {
		run_messages[i].msg_hdr = run_message(&runs[i], i);
		run_weight[i] = runs[i].count;
	}
	for (i = 0; i < receiver_count; i++)
		send_vector(receivers[i].fd, run_messages, run_weight, m);
}

static void relay_segment_spoofed(uint32_t n)
{
	static run runs[BATCH_MAX];
	uint32_t k, i, m, r, used;
	group_by_session(n);
	for (k = 0; k < active_count; k++) {
		session *s = active[k];
		if (s->fd < 0)
			s->fd = transparent_socket(&s->from);
		m = cut_runs(active_start[k], active_start[k + 1], runs);
		used = 0;
		for (r = 0; r < receiver_count; r++) {
			for (i = 0; i < m; i++) {
				struct msghdr *h = &run_messages[used].msg_hdr;
				*h = run_message(&runs[i], i);
				h->msg_name = &receivers[r].to;
				h->msg_namelen = endpoint_size(&receivers[r].to);
				run_weight[used++] = runs[i].count;
				if (used == MESSAGES_MAX) {
					send_vector(s->fd, run_messages, run_weight, used);
					used = 0;
				}
			}
		}
		send_vector(s->fd, run_messages, run_weight, used);
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
	enum { LISTEN = 256, TO, SPOOF, RECEIVE, SEND, NBATCH, SEGMENT, TTL, BUFFER, DEVICE, BLOCKS, OUT, NEXT_HOP, BYPASS, SHARE };
	static const struct option table[] = {{"listen", 1, 0, LISTEN}, {"to", 1, 0, TO}, {"spoof", 0, 0, SPOOF},
	    {"receive", 1, 0, RECEIVE}, {"send", 1, 0, SEND}, {"batch", 1, 0, NBATCH}, {"segment-max", 1, 0, SEGMENT}, {"ttl", 1, 0, TTL},
	    {"buffer", 1, 0, BUFFER}, {"device", 1, 0, DEVICE}, {"ring-blocks", 1, 0, BLOCKS}, {"device-out", 1, 0, OUT},
	    {"next-hop", 1, 0, NEXT_HOP}, {"bypass", 0, 0, BYPASS}, {"share-port", 0, 0, SHARE}, {0, 0, 0, 0}};
	const char *receive = "recvmmsg", *send = "plain", *device = NULL, *device_out = NULL, *next_hop = NULL;
	void (*relay)(uint32_t) = relay_plain;
	endpoint at = {0};
	int buffer = 64 << 20, bypass = 0, fd, c;
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
		case RECEIVE: receive = optarg; break;
		case SEND: send = optarg; break;
		case NBATCH: batch_max = (uint32_t)strtoul(optarg, NULL, 10); break;
		case SEGMENT: segment_max = (uint32_t)strtoul(optarg, NULL, 10); break;
		case TTL: ttl = atoi(optarg); break;
		case BUFFER: buffer = atoi(optarg); break;
		case DEVICE: device = optarg; break;
		case BLOCKS: ring_blocks = (uint32_t)strtoul(optarg, NULL, 10); break;
		case OUT: device_out = optarg; break;
		case NEXT_HOP: next_hop = optarg; break;
		case BYPASS: bypass = 1; break;
		case SHARE: share_port = 1; break;
		default: die("%s", USAGE);
		}
	}
	if (!at.sa.sa_family || !receiver_count || optind != argc || !batch_max || batch_max > BATCH_MAX)
		die("%s", USAGE);
	if (!strcmp(send, "segment"))
		relay = spoof ? relay_segment_spoofed : relay_segment_own;
	else if (!strcmp(send, "packet") && spoof && device_out && next_hop)
		relay = relay_packet;
	else if (strcmp(send, "plain") != 0)
		die("%s", USAGE);
	allow_many_files();
	fd = udp_listener(&at, buffer);
	for (i = 0; i < receiver_count; i++)
		receivers[i].fd = open_sender(&receivers[i].to);
	if (relay == relay_packet)
		packet_open(device_out, next_hop, bypass);
	sessions = calloc(SESSION_SLOTS, sizeof *sessions);
	if (!sessions)
		die("out of memory");
	catch_stop();
	if (!strcmp(receive, "ring") && device) {
		int ring_fd = ring_open(device, &at);
		fprintf(stderr, "ready\n");
		run_ring(ring_fd, relay);
	} else {
		fprintf(stderr, "ready\n");
		run_recvmmsg(fd, relay);
	}
	printf("{\"datagrams\": %llu, \"copies\": %llu, \"errors\": %llu, \"calls\": %llu, \"batches\": %llu, \"listener_drops\": %u}\n",
	       (unsigned long long)datagrams, (unsigned long long)copies, (unsigned long long)errors, (unsigned long long)calls,
	       (unsigned long long)batches, socket_drops(fd));
	return 0;
}
