/* The classic relay: one recvfrom, then one send per receiver, as every existing samplicator works. The benchmark's yardstick.
 *
 * Unspoofed: sendto on one unconnected UDP socket per address family. Spoofed (--spoof): sendmsg on a raw IP_HDRINCL socket, IP and
 * UDP header crafted per copy, UDP checksum computed per copy over the whole payload (unless --no-checksum).
 * It is written to be fast within that shape: no logging, no rule look-up, no configuration. Send errors are counted, never retried.
 * Ends on SIGTERM and prints one JSON line. */
#include "tool.h"

#define RECEIVERS_MAX 1024

static const char USAGE[] = "usage: classic --listen ADDR:PORT --to ADDR:PORT [--to ...] [--spoof] [--no-checksum] [--ttl N] [--buffer BYTES]\n";

typedef struct {
	endpoint to;
	int fd;
} receiver;

static receiver receivers[RECEIVERS_MAX];
static uint32_t receiver_count;
static int spoof, ttl = 64, checksum = 1;
static uint64_t datagrams, copies, errors;

static uint64_t sum_add(uint64_t sum, const uint8_t *p, size_t n)
{
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
	return sum;
}

static uint16_t sum_fold(uint64_t sum)
{
	while (sum >> 16)
		sum = (sum & 0xffff) + (sum >> 16);
	return (uint16_t)~sum;
}

/* UDP header at `udp`, addresses in network order. A sum of 0 is sent as 0xffff (RFC 768). */
static void udp_header(uint8_t *udp, const endpoint *from, const receiver *r, const uint8_t *data, size_t length)
{
	uint16_t field[4] = {0};
	uint64_t sum;
	field[0] = htons(endpoint_port(from));
	field[1] = htons(endpoint_port(&r->to));
	field[2] = htons((uint16_t)(length + 8));
	if (checksum || r->to.sa.sa_family == AF_INET6) {
		sum = sum_add(0, (const uint8_t *)field, 8) + htons(IPPROTO_UDP) + field[2];
		if (r->to.sa.sa_family == AF_INET) {
			sum = sum_add(sum, (const uint8_t *)&from->v4.sin_addr, 4);
			sum = sum_add(sum, (const uint8_t *)&r->to.v4.sin_addr, 4);
		} else {
			sum = sum_add(sum, (const uint8_t *)&from->v6.sin6_addr, 16);
			sum = sum_add(sum, (const uint8_t *)&r->to.v6.sin6_addr, 16);
		}
		field[3] = sum_fold(sum_add(sum, data, length));
		if (!field[3])
			field[3] = 0xffff;
	}
	memcpy(udp, field, 8);
}

static ssize_t send_spoofed(const receiver *r, const endpoint *from, uint8_t *data, size_t length)
{
	uint8_t header[48] = {0};
	endpoint to = r->to;
	struct iovec iov[2] = {{header, 0}, {data, length}};
	struct msghdr message = {.msg_name = &to, .msg_namelen = endpoint_size(&to), .msg_iov = iov, .msg_iovlen = 2};
	uint16_t total;
	if (to.sa.sa_family == AF_INET) { /* the kernel fills total length, identification and header checksum */
		total = htons((uint16_t)(length + 28));
		header[0] = 0x45;
		memcpy(header + 2, &total, 2);
		header[8] = (uint8_t)ttl;
		header[9] = IPPROTO_UDP;
		memcpy(header + 12, &from->v4.sin_addr, 4);
		memcpy(header + 16, &to.v4.sin_addr, 4);
		iov[0].iov_len = 28;
		udp_header(header + 20, from, r, data, length);
	} else {
		total = htons((uint16_t)(length + 8));
		header[0] = 0x60;
		memcpy(header + 4, &total, 2);
		header[6] = IPPROTO_UDP;
		header[7] = (uint8_t)ttl;
		memcpy(header + 8, &from->v6.sin6_addr, 16);
		memcpy(header + 24, &to.v6.sin6_addr, 16);
		iov[0].iov_len = 48;
		udp_header(header + 40, from, r, data, length);
		to.v6.sin6_port = 0; /* a raw IPv6 socket takes a port for a protocol number */
	}
	return sendmsg(r->fd, &message, 0);
}

static int open_sender(int family)
{
	static int by_family[2] = {-1, -1};
	int one = 1, *fd = &by_family[family == AF_INET6];
	if (*fd >= 0)
		return *fd;
	*fd = spoof ? socket(family, SOCK_RAW | SOCK_CLOEXEC, IPPROTO_RAW) : socket(family, SOCK_DGRAM | SOCK_CLOEXEC, 0);
	if (*fd < 0)
		die("socket: %s", strerror(errno));
	if (spoof && family == AF_INET6)
		setsockopt(*fd, IPPROTO_IPV6, IPV6_HDRINCL, &one, sizeof one);
	if (!spoof && family == AF_INET)
		setsockopt(*fd, IPPROTO_IP, IP_TTL, &ttl, sizeof ttl);
	socket_buffer(*fd, SO_SNDBUF, SO_SNDBUFFORCE, 4 << 20);
	return *fd;
}

int main(int argc, char **argv)
{
	enum { LISTEN = 256, TO, SPOOF, NOSUM, TTL, BUFFER };
	static const struct option table[] = {{"listen", 1, 0, LISTEN}, {"to", 1, 0, TO}, {"spoof", 0, 0, SPOOF},
	    {"no-checksum", 0, 0, NOSUM}, {"ttl", 1, 0, TTL}, {"buffer", 1, 0, BUFFER}, {0, 0, 0, 0}};
	static uint8_t data[65536];
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
		case NOSUM: checksum = 0; break;
		case TTL: ttl = atoi(optarg); break;
		case BUFFER: buffer = atoi(optarg); break;
		default: die("%s", USAGE);
		}
	}
	if (!at.sa.sa_family || !receiver_count || optind != argc)
		die("%s", USAGE);
	fd = udp_listener(&at, buffer);
	for (i = 0; i < receiver_count; i++)
		receivers[i].fd = open_sender(receivers[i].to.sa.sa_family);
	catch_stop();
	fprintf(stderr, "ready\n");
	while (!stop_asked) {
		endpoint from;
		socklen_t from_size = sizeof from;
		ssize_t length = recvfrom(fd, data, sizeof data, 0, &from.sa, &from_size);
		if (length < 0)
			continue;
		datagrams++;
		for (i = 0; i < receiver_count; i++) {
			const receiver *r = &receivers[i];
			ssize_t done = spoof ? send_spoofed(r, &from, data, (size_t)length)
			                     : sendto(r->fd, data, (size_t)length, 0, &r->to.sa, endpoint_size(&r->to));
			if (done < 0)
				errors++;
			else
				copies++;
		}
	}
	printf("{\"datagrams\": %llu, \"copies\": %llu, \"errors\": %llu, \"listener_drops\": %u}\n", (unsigned long long)datagrams,
	       (unsigned long long)copies, (unsigned long long)errors, socket_drops(fd));
	return 0;
}
