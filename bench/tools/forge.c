/* Forged exporters: every datagram comes from an address and port of its own, and says that it is NetFlow, IPFIX or sFlow.
 *
 * Template ids and field counts are random, lengths lie now and then, one datagram in four is cut short, some have bytes flipped, a few are
 * noise. Datagram i comes from address BASE + i mod ADDRESSES and port P + i / ADDRESSES, so a million sources cost sixteen sockets
 * (IP_PKTINFO on IP_TRANSPARENT ones). What is sent depends on the seed and i alone. Prints one JSON line. Called by the system tests, inside
 * their namespaces. It never waits for an answer and never sends twice. */
#include "tool.h"

#include <sys/prctl.h>

#define BATCH 256
#define LIMIT 1400

static const char USAGE[] =
    "usage: forge --to ADDR:PORT --source-base ADDR [options]   (IPv4)\n"
    "  --addresses N   addresses in turn, from the base on (65536)     --source-port P: the first source port (1024)\n"
    "  --first I       number of the first datagram (0)                --count N: datagrams (1000000)\n"
    "  --rate R        datagrams/s, 0 = as fast as possible (0)        --seed X\n";

static endpoint to, base;
static uint64_t first, count = 1000000, seed = 1, sent, bytes, errors, cut, random_state;
static uint64_t by_version[12];
static uint32_t addresses = 65536, source_port = 1024;
static double rate;

static uint32_t below(uint32_t n)
{
	random_state ^= random_state << 13;
	random_state ^= random_state >> 7;
	random_state ^= random_state << 17;
	return (uint32_t)(((random_state >> 32) * n) >> 32);
}

static int one_in(uint32_t n)
{
	return below(n) == 0;
}

/* ---- payloads. Each writer puts what fits into LIMIT bytes and returns the new end. ---- */

static uint32_t put16(uint8_t *p, uint32_t at, uint32_t value)
{
	if (at + 2 > LIMIT)
		return at;
	p[at] = (uint8_t)(value >> 8);
	p[at + 1] = (uint8_t)value;
	return at + 2;
}

static uint32_t put32(uint8_t *p, uint32_t at, uint32_t value)
{
	return put16(p, put16(p, at, value >> 16), value & 0xffff);
}

static uint32_t put_noise(uint8_t *p, uint32_t at, uint32_t n)
{
	while (n-- && at < LIMIT)
		p[at++] = (uint8_t)below(256);
	return at;
}

/* A template or options template record; sometimes it claims more fields than it has, or none (a withdrawal). */
static uint32_t put_record(uint8_t *p, uint32_t at, int ipfix, int options)
{
	uint32_t fields = one_in(ipfix ? 32 : 128) ? 0 : 1 + below(one_in(8) ? 300 : 24), i;
	uint32_t claimed = one_in(48) ? below(65536) : fields, scope = fields ? below(fields + 1) : 0;
	at = put16(p, at, one_in(48) ? below(65536) : 256 + below(65280));
	if (options && !ipfix) {
		at = put16(p, at, 4 * scope + one_in(48));
		at = put16(p, at, 4 * (claimed - (claimed < scope ? claimed : scope)));
	} else {
		at = put16(p, at, claimed);
		if (options && claimed)
			at = put16(p, at, one_in(48) ? below(65536) : scope);
	}
	for (i = 0; i < fields; i++) {
		int enterprise = ipfix && one_in(4);
		at = put16(p, at, (enterprise ? 0x8000 : 0) | below(500));
		at = put16(p, at, ipfix && one_in(4) ? 65535 : one_in(32) ? below(65536) : 1 + below(16));
		if (enterprise)
			at = put32(p, at, below(100000));
	}
	return at;
}

static uint32_t put_set(uint8_t *p, uint32_t at, int ipfix)
{
	uint32_t start = at, what = below(8), records = 1 + below(3), length;
	uint32_t id = what < 4 ? (ipfix ? 2 : 0) : what < 6 ? (ipfix ? 3 : 1) : one_in(16) ? below(256) : 256 + below(65280);
	if (at + 4 > LIMIT)
		return at;
	at = put32(p, at, id << 16);
	while (records--)
		at = what < 6 ? put_record(p, at, ipfix, what >= 4) : put_noise(p, at, below(120));
	while (one_in(2) && at & 3 && at < LIMIT)
		p[at++] = 0;
	length = one_in(48) ? below(65536) : at - start;
	p[start + 2] = (uint8_t)(length >> 8);
	p[start + 3] = (uint8_t)length;
	return at;
}

static uint32_t make_sets(uint8_t *p, int ipfix)
{
	uint32_t sets = 1 + below(5), at, length;
	at = put16(p, put16(p, 0, ipfix ? 10 : 9), one_in(8) ? below(65536) : sets);
	at = put32(p, at, below(0xffffffff));
	at = put32(p, at, below(0xffffffff));
	at = put32(p, at, one_in(2) ? below(8) : below(0xffffffff));
	if (!ipfix)
		at = put32(p, at, below(4));
	while (sets--)
		at = put_set(p, at, ipfix);
	length = one_in(48) ? below(65536) : at;
	if (ipfix) {
		p[2] = (uint8_t)(length >> 8);
		p[3] = (uint8_t)length;
	}
	return at;
}

static uint32_t make_fixed(uint8_t *p, uint32_t version)
{
	uint32_t records = one_in(8) ? below(65536) : below(12), size = version == 5 ? 48 : version == 8 ? 28 : 52, at;
	at = put16(p, put16(p, 0, version), records);
	at = put_noise(p, at, version == 1 ? 12 : version == 8 ? 24 : 20);
	return put_noise(p, at, (records < 12 ? records : below(12)) * size);
}

static uint32_t make_sflow(uint8_t *p)
{
	uint32_t six = one_in(4), samples = one_in(8) ? below(0xffffffff) : below(8), at, i;
	at = put32(p, put32(p, 0, 5), one_in(16) ? below(5) : 1 + six);
	at = put_noise(p, at, six ? 28 : 16);
	at = put32(p, at, samples);
	for (i = 0; i < samples && i < 8; i++)
		at = put_noise(p, put32(p, put32(p, at, 1), 32), 32);
	return at;
}

/* Datagram number `number` into p; returns its bytes. */
static uint32_t make(uint8_t *p, uint64_t number)
{
	static const uint8_t fixed[] = {1, 5, 5, 7, 8};
	uint32_t length, what, flips;
	random_state = (seed + number + 1) * 0x9E3779B97F4A7C15ull | 1;
	below(2);
	what = below(16);
	length = what < 6 ? make_sets(p, 0) : what < 12 ? make_sets(p, 1) : what < 14 ? make_fixed(p, fixed[below(5)]) : what < 15 ? make_sflow(p) : put_noise(p, 0, below(200));
	by_version[what < 6 ? 9 : what < 12 ? 10 : what < 14 ? p[1] : what < 15 ? 11 : 0]++;
	if (one_in(4)) {
		length = below(length + 1);
		cut++;
	}
	if (one_in(8) && length)
		for (flips = 1 + below(4); flips; flips--)
			p[below(length)] ^= (uint8_t)(1 + below(255));
	return length;
}

/* ---- sending ---- */

static int open_socket(uint32_t port)
{
	int one = 1, fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
	endpoint at = base;
	if (fd < 0)
		die("socket: %s", strerror(errno));
	setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
	if (setsockopt(fd, IPPROTO_IP, IP_TRANSPARENT, &one, sizeof one) < 0)
		die("IP_TRANSPARENT: %s", strerror(errno));
	endpoint_set_port(&at, (uint16_t)port);
	if (bind(fd, &at.sa, endpoint_size(&at)) < 0)
		die("bind to port %u: %s", port, strerror(errno));
	socket_buffer(fd, SO_SNDBUF, SO_SNDBUFFORCE, 4 << 20);
	return fd;
}

/* Up to BATCH datagrams from number i on, all of one source port; returns how many. */
static uint32_t send_some(int fd, uint64_t i, uint32_t n)
{
	static uint8_t payload[BATCH][LIMIT];
	static struct mmsghdr header[BATCH];
	static struct iovec vector[BATCH];
	static union {
		uint8_t room[CMSG_SPACE(sizeof(struct in_pktinfo))];
		struct cmsghdr align;
	} control[BATCH];
	uint32_t k, done = 0;
	for (k = 0; k < n; k++) {
		endpoint from = endpoint_plus(&base, (uint32_t)((i + k) % addresses));
		struct in_pktinfo info = {.ipi_spec_dst = from.v4.sin_addr};
		control[k].align = (struct cmsghdr){CMSG_LEN(sizeof info), IPPROTO_IP, IP_PKTINFO};
		memcpy(CMSG_DATA(&control[k].align), &info, sizeof info);
		vector[k] = (struct iovec){payload[k], make(payload[k], i + k)};
		header[k].msg_hdr = (struct msghdr){.msg_name = &to, .msg_namelen = sizeof to.v4, .msg_iov = &vector[k], .msg_iovlen = 1,
		                                    .msg_control = control[k].room, .msg_controllen = sizeof control[k].room};
	}
	while (done < n) {
		int got = sendmmsg(fd, header + done, n - done, 0);
		if (got < 0 && errno == EINTR && !stop_asked)
			continue;
		if (got < 0 && errors++ == 0)
			fprintf(stderr, "forge: send: %s\n", strerror(errno));
		for (k = done; got > 0 && k < done + (uint32_t)got; k++)
			bytes += vector[k].iov_len;
		sent += got > 0 ? (uint32_t)got : 0;
		done += got > 0 ? (uint32_t)got : 1;
	}
	return n;
}

static void generate(void)
{
	uint64_t i = first, end = first + count, start = clock_ns(CLOCK_MONOTONIC), spent;
	uint32_t port = 0;
	int fd = -1;
	prctl(PR_SET_TIMERSLACK, 1);
	while (i < end && !stop_asked) {
		uint64_t left = addresses - i % addresses;
		uint32_t n = BATCH;
		n = left < n ? (uint32_t)left : n;
		n = end - i < n ? (uint32_t)(end - i) : n;
		if (fd < 0 || port != source_port + (uint32_t)(i / addresses)) {
			port = source_port + (uint32_t)(i / addresses);
			if (fd >= 0)
				close(fd);
			fd = open_socket(port);
		}
		if (rate > 0)
			sleep_until_ns(start + (uint64_t)((double)(i - first) / rate * 1e9));
		i += send_some(fd, i, n);
	}
	spent = clock_ns(CLOCK_MONOTONIC) - start + 1;
	printf("{\"sent\": %llu, \"bytes\": %llu, \"errors\": %llu, \"cut\": %llu, \"seconds\": %.6f, \"rate\": %.1f, \"netflow9\": %llu, "
	       "\"ipfix\": %llu, \"sflow5\": %llu, \"noise\": %llu, \"fixed\": %llu}\n",
	       (unsigned long long)sent, (unsigned long long)bytes, (unsigned long long)errors, (unsigned long long)cut, (double)spent * 1e-9,
	       (double)sent * 1e9 / (double)spent, (unsigned long long)by_version[9], (unsigned long long)by_version[10],
	       (unsigned long long)by_version[11], (unsigned long long)by_version[0],
	       (unsigned long long)(by_version[1] + by_version[5] + by_version[7] + by_version[8]));
}

int main(int argc, char **argv)
{
	enum { TO = 256, BASE, ADDRESSES, PORT, FIRST, COUNT, RATE, SEED };
	static const struct option table[] = {{"to", 1, 0, TO}, {"source-base", 1, 0, BASE}, {"addresses", 1, 0, ADDRESSES},
	    {"source-port", 1, 0, PORT}, {"first", 1, 0, FIRST}, {"count", 1, 0, COUNT}, {"rate", 1, 0, RATE}, {"seed", 1, 0, SEED}, {0, 0, 0, 0}};
	int c;
	while ((c = getopt_long(argc, argv, "", table, NULL)) != -1) {
		switch (c) {
		case TO: parse_endpoint(optarg, &to); break;
		case BASE: parse_address(optarg, &base); break;
		case ADDRESSES: addresses = (uint32_t)strtoul(optarg, NULL, 10); break;
		case PORT: source_port = (uint32_t)strtoul(optarg, NULL, 10); break;
		case FIRST: first = strtoull(optarg, NULL, 10); break;
		case COUNT: count = strtoull(optarg, NULL, 10); break;
		case RATE: rate = strtod(optarg, NULL); break;
		case SEED: seed = strtoull(optarg, NULL, 10); break;
		default: die("%s", USAGE);
		}
	}
	if (to.sa.sa_family != AF_INET || base.sa.sa_family != AF_INET || optind != argc || !addresses)
		die("%s", USAGE);
	if (source_port + (first + count - 1) / addresses > 65535)
		die("more datagrams than addresses and ports");
	catch_stop();
	generate();
	return errors ? 1 : 0;
}
