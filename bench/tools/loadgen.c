/* Load generator: many exporters from one process, numbered and verifiable payloads (payload.h), or the UDP payloads of a capture.
 *
 * One socket per source port, the exporter's address given per datagram with IP_PKTINFO on an IP_TRANSPARENT (or IP_FREEBIND)
 * socket, so 100,000 exporters cost one descriptor. Datagrams leave by sendmmsg; --run K sends K consecutive datagrams of one
 * exporter before the next one. Prints one JSON line. Called by bench/run and the system tests, inside their namespaces.
 * It never waits for an answer and never sends twice: a datagram the kernel refused is counted in "errors", its sequence is not
 * given to another one. */
#include "tool.h"
#include "payload.h"

#include <netinet/udp.h>
#include <sys/prctl.h>
#include <sys/stat.h>

#define BATCH 256

static const char USAGE[] =
    "usage: loadgen --to ADDR:PORT [options]\n"
    "  --source-base ADDR   address of exporter 0; exporter i uses ADDR + i (default: the kernel's choice)\n"
    "  --exporters N        number of exporters (1)\n"
    "  --source-port P      source port (0: any)    --port-step 0|1: exporter i uses P + i\n"
    "  --count N            datagrams in total, or  --seconds S\n"
    "  --rate R             datagrams/s, 0 = as fast as possible (0)    --tick-us T: pacing grain (200)\n"
    "  --catch-up-ms M      make up for at most M ms after being held up (0: for all of it)\n"
    "  --size MIN[-MAX]     payload bytes, uniform at random (1400)     --seed X\n"
    "  --run K              consecutive datagrams of one exporter (1)\n"
    "  --segment            send each run as one UDP_SEGMENT send (fixed size only)\n"
    "  --timed              put the send time into each payload\n"
    "  --pcap FILE          replay the UDP payloads of a pcap from every exporter (--count default: once per\n"
    "                       exporter); may be repeated, the files are played one after the other\n"
    "  --pcap-port P        only those sent to port P\n"
    "  --per-exporter       list the datagrams sent per exporter\n"
    "  --buffer BYTES       send buffer (4 MiB)     --json: accepted, the output is always JSON\n";

typedef struct {
	endpoint to, base;
	int has_base, timed, segment, per_exporter;
	uint32_t exporters, run, size_min, size_max;
	uint32_t source_port, port_step;
	uint64_t count, seed;
	double seconds, rate, catch_up;
	uint64_t tick_ns;
	const char *pcap[64];
	uint32_t pcaps;
	uint32_t pcap_port;
	int buffer;
} options;

typedef struct {
	uint8_t *at;
	uint32_t length;
} piece;

static options o;
static int *sockets;          /* one per source port */
static uint32_t socket_count;
static uint64_t *sequence;    /* next sequence (or replay position) per exporter */
static uint64_t *sent_by;     /* datagrams per exporter */
static piece *replay;
static uint32_t replay_count;
static uint64_t sent, short_sent, bytes, errors, digest;

static uint64_t random_state;
static inline uint32_t random_below(uint32_t n)
{
	random_state ^= random_state << 13;
	random_state ^= random_state >> 7;
	random_state ^= random_state << 17;
	return (uint32_t)(((random_state >> 32) * n) >> 32);
}

/* ---- capture reading: classic pcap, link types Ethernet (VLAN tags too), raw IP, Linux cooked, BSD null ---- */

static uint32_t pcap_u32(const uint8_t *p, int swapped)
{
	uint32_t v;
	memcpy(&v, p, 4);
	return swapped ? __builtin_bswap32(v) : v;
}

static void replay_add(const uint8_t *p, uint32_t left)
{
	uint32_t header, length;
	if (left >= 20 && p[0] >> 4 == 4) {
		header = (p[0] & 15u) * 4;
		if (p[9] != 17 || (p[6] & 0x3f) || p[7])
			return; /* not UDP, or a fragment */
	} else if (left >= 40 && p[0] >> 4 == 6) {
		header = 40;
		if (p[6] != 17)
			return;
	} else {
		return;
	}
	if (left < header + 8)
		return;
	length = (uint32_t)p[header + 4] << 8 | p[header + 5];
	if (length < 8 || left < header + length)
		return;
	if (o.pcap_port && ((uint32_t)p[header + 2] << 8 | p[header + 3]) != o.pcap_port)
		return;
	if ((replay_count & (replay_count - 1)) == 0) {
		replay = realloc(replay, sizeof *replay * (replay_count ? replay_count * 2 : 1));
		if (!replay)
			die("out of memory");
	}
	replay[replay_count].length = length - 8;
	replay[replay_count].at = malloc(length);
	if (!replay[replay_count].at)
		die("out of memory");
	memcpy(replay[replay_count].at, p + header + 8, length - 8);
	replay_count++;
}

static void replay_read(const char *path)
{
	FILE *f = fopen(path, "rb");
	uint8_t head[24], record[16], *packet = malloc(1 << 18);
	uint32_t magic, link;
	int swapped;
	if (!f || !packet)
		die("%s: %s", path, strerror(errno));
	if (fread(head, 1, 24, f) != 24)
		die("%s: not a pcap file", path);
	memcpy(&magic, head, 4);
	swapped = magic == 0xd4c3b2a1u || magic == 0x4d3cb2a1u;
	if (!swapped && magic != 0xa1b2c3d4u && magic != 0xa1b23c4du)
		die("%s: not a classic pcap file (pcapng? convert with: editcap -F pcap IN OUT)", path);
	link = pcap_u32(head + 20, swapped) & 0xffff;
	while (fread(record, 1, 16, f) == 16) {
		uint32_t length = pcap_u32(record + 8, swapped), skip = 0;
		if (length > 1 << 18 || fread(packet, 1, length, f) != length)
			die("%s: cut or damaged", path);
		if (link == 1) {
			skip = 14;
			while (skip + 4 <= length && packet[skip - 2] == 0x81 && packet[skip - 1] == 0)
				skip += 4;
		} else if (link == 113) {
			skip = 16;
		} else if (link == 276) {
			skip = 20;
		} else if (link == 0 || link == 108) {
			skip = 4;
		} else if (link != 101 && link != 228 && link != 229) {
			die("%s: link type %u is not handled", path, link);
		}
		if (skip < length)
			replay_add(packet + skip, length - skip);
	}
	fclose(f);
	free(packet);
}

/* ---- sockets ---- */

static void open_sockets(void)
{
	uint32_t ports = o.port_step ? o.exporters : 1, k;
	if (ports > 65535 - o.source_port)
		ports = 65535 - o.source_port;
	sockets = calloc(ports, sizeof *sockets);
	for (k = 0; k < ports; k++) {
		int one = 1, family = o.to.sa.sa_family, fd = socket(family, SOCK_DGRAM | SOCK_CLOEXEC, 0);
		endpoint at;
		if (fd < 0)
			die("socket: %s", strerror(errno));
		setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
		if (family == AF_INET) {
			int pmtu = IP_PMTUDISC_DONT;
			if (setsockopt(fd, IPPROTO_IP, IP_TRANSPARENT, &one, sizeof one) < 0)
				setsockopt(fd, IPPROTO_IP, IP_FREEBIND, &one, sizeof one);
			setsockopt(fd, IPPROTO_IP, IP_MTU_DISCOVER, &pmtu, sizeof pmtu);
		} else {
			if (setsockopt(fd, IPPROTO_IPV6, IPV6_TRANSPARENT, &one, sizeof one) < 0)
				setsockopt(fd, IPPROTO_IPV6, IPV6_FREEBIND, &one, sizeof one);
		}
		if (o.has_base) {
			at = endpoint_plus(&o.base, o.port_step ? k : 0);
		} else {
			memset(&at, 0, sizeof at);
			at.sa.sa_family = (sa_family_t)family;
		}
		endpoint_set_port(&at, o.source_port ? (uint16_t)(o.source_port + k) : 0);
		if ((o.has_base || o.source_port) && bind(fd, &at.sa, endpoint_size(&at)) < 0)
			die("bind to port %u: %s", o.source_port + k, strerror(errno));
		socket_buffer(fd, SO_SNDBUF, SO_SNDBUFFORCE, o.buffer);
		sockets[k] = fd;
	}
	socket_count = ports;
}

/* ---- one batch ---- */

typedef struct {
	struct mmsghdr header[BATCH];
	struct iovec iov[BATCH];
	uint32_t exporter[BATCH], datagrams[BATCH];
	union {
		uint8_t bytes[CMSG_SPACE(sizeof(struct in6_pktinfo)) + CMSG_SPACE(sizeof(uint16_t))];
		struct cmsghdr align;
	} control[BATCH];
	uint8_t *payload;
	size_t stride;
} batch;

static void set_source(batch *b, uint32_t i, uint32_t exporter, uint32_t segment_size)
{
	struct msghdr *h = &b->header[i].msg_hdr;
	struct cmsghdr *c = &b->control[i].align;
	size_t used = 0;
	if (o.has_base) {
		endpoint from = endpoint_plus(&o.base, exporter);
		if (from.sa.sa_family == AF_INET) {
			struct in_pktinfo info = {.ipi_spec_dst = from.v4.sin_addr};
			*c = (struct cmsghdr){CMSG_LEN(sizeof info), IPPROTO_IP, IP_PKTINFO};
			memcpy(CMSG_DATA(c), &info, sizeof info);
			used = CMSG_SPACE(sizeof info);
		} else {
			struct in6_pktinfo info = {.ipi6_addr = from.v6.sin6_addr};
			*c = (struct cmsghdr){CMSG_LEN(sizeof info), IPPROTO_IPV6, IPV6_PKTINFO};
			memcpy(CMSG_DATA(c), &info, sizeof info);
			used = CMSG_SPACE(sizeof info);
		}
	}
	if (segment_size) {
		uint16_t size = (uint16_t)segment_size;
		c = (struct cmsghdr *)(void *)(b->control[i].bytes + used);
		*c = (struct cmsghdr){CMSG_LEN(sizeof size), SOL_UDP, UDP_SEGMENT};
		memcpy(CMSG_DATA(c), &size, sizeof size);
		used += CMSG_SPACE(sizeof size);
	}
	h->msg_name = &o.to;
	h->msg_namelen = endpoint_size(&o.to);
	h->msg_iov = &b->iov[i];
	h->msg_iovlen = 1;
	h->msg_control = used ? b->control[i].bytes : NULL;
	h->msg_controllen = used;
}

/* Writes message i: `n` datagrams of `exporter` (n > 1 only with --segment). */
static void fill(batch *b, uint32_t i, uint32_t exporter, uint32_t n)
{
	uint8_t *out = b->payload + b->stride * i;
	uint32_t k, length = 0;
	b->exporter[i] = exporter;
	b->datagrams[i] = n;
	if (replay_count) {
		piece *p = &replay[sequence[exporter] % replay_count];
		sequence[exporter]++;
		b->iov[i] = (struct iovec){p->at, p->length};
		set_source(b, i, exporter, 0);
		return;
	}
	for (k = 0; k < n; k++) {
		uint32_t size = o.size_min;
		if (o.size_max > o.size_min)
			size += random_below(o.size_max - o.size_min + 1);
		payload_write(out + length, size, exporter, sequence[exporter], o.timed, o.timed ? clock_ns(CLOCK_REALTIME) : 0);
		if (size >= PAYLOAD_SEQUENCED)
			sequence[exporter]++;
		length += size;
	}
	b->iov[i] = (struct iovec){out, length};
	set_source(b, i, exporter, n > 1 ? o.size_min : 0);
}

static void account(batch *b, uint32_t i)
{
	uint32_t length = (uint32_t)b->iov[i].iov_len;
	sent += b->datagrams[i];
	sent_by[b->exporter[i]] += b->datagrams[i];
	bytes += length;
	if (replay_count)
		digest += payload_hash(b->iov[i].iov_base, length);
	else if (length < PAYLOAD_SEQUENCED)
		short_sent++;
}

static void send_batch(batch *b, uint32_t n)
{
	uint32_t i = 0, j;
	while (i < n) {
		uint32_t which = b->exporter[i] % socket_count;
		int done;
		for (j = i + 1; j < n && b->exporter[j] % socket_count == which; j++)
			;
		done = sendmmsg(sockets[which], &b->header[i], j - i, 0);
		if (done < 0) {
			if (errno == EINTR && !stop_asked)
				continue;
			if (errors == 0)
				fprintf(stderr, "loadgen: send: %s\n", strerror(errno));
			errors += b->datagrams[i++];
			continue;
		}
		for (j = 0; j < (uint32_t)done; j++)
			account(b, i + j);
		i += (uint32_t)done;
	}
}

static void generate(void)
{
	static batch b;
	uint64_t made = 0, limit = o.count ? o.count : UINT64_MAX, start, end;
	uint32_t exporter = 0, in_run = 0, per_message = o.segment ? o.run : 1;
	if (o.segment && per_message > 65000 / (o.size_min ? o.size_min : 1))
		per_message = 65000 / o.size_min;
	if (per_message > 64)
		per_message = 64;
	b.stride = ((size_t)o.size_max * per_message + 64 + 63) & ~(size_t)63;
	b.payload = aligned_alloc(64, b.stride * BATCH);
	if (!b.payload)
		die("out of memory");
	memset(b.payload, 0, b.stride * BATCH);
	prctl(PR_SET_TIMERSLACK, 1);
	start = clock_ns(CLOCK_MONOTONIC);
	end = o.seconds > 0 ? start + (uint64_t)(o.seconds * 1e9) : UINT64_MAX;
	while (made < limit && !stop_asked) {
		uint64_t now = clock_ns(CLOCK_MONOTONIC), want = (uint64_t)BATCH * per_message;
		uint32_t n = 0;
		if (now >= end)
			break;
		if (o.rate > 0) {
			uint64_t due = (uint64_t)((double)(now - start) * 1e-9 * o.rate) + 1;
			if (due <= made) { /* the next one is due at made / rate; wait a tick more so that a few leave together */
				uint64_t when = start + (uint64_t)((double)made / o.rate * 1e9), tick = now + o.tick_ns;
				when = when > tick ? when : tick;
				sleep_until_ns(when < end ? when : end);
				continue;
			}
			if (o.catch_up > 0 && (double)(due - made) > o.rate * o.catch_up) {
				start += (uint64_t)((double)(due - made) / o.rate * 1e9) - (uint64_t)(o.catch_up * 1e9);
				continue;
			}
			if (due - made < want)
				want = due - made;
		}
		if (want > limit - made)
			want = limit - made;
		while (want && n < BATCH) {
			uint32_t take = 1;
			if (o.segment) {
				take = o.run - in_run < per_message ? o.run - in_run : per_message;
				take = take < want ? take : (uint32_t)want;
			}
			fill(&b, n++, exporter, take);
			want -= take;
			made += take;
			in_run += take;
			if (in_run >= o.run) {
				in_run = 0;
				exporter = exporter + 1 == o.exporters ? 0 : exporter + 1;
			}
		}
		send_batch(&b, n);
	}
	end = clock_ns(CLOCK_MONOTONIC);
	printf("{\"sent\": %llu, \"short\": %llu, \"bytes\": %llu, \"errors\": %llu, \"seconds\": %.6f, \"rate\": %.1f, \"exporters\": %u",
	       (unsigned long long)sent, (unsigned long long)short_sent, (unsigned long long)bytes, (unsigned long long)errors,
	       (double)(end - start) * 1e-9, (double)sent * 1e9 / (double)(end - start + 1), o.exporters);
	if (replay_count)
		printf(", \"digest\": \"%016llx\", \"capture_datagrams\": %u", (unsigned long long)digest, replay_count);
	if (o.per_exporter) {
		printf(", \"per_exporter\": [");
		for (exporter = 0; exporter < o.exporters; exporter++)
			printf("%s%llu", exporter ? ", " : "", (unsigned long long)sent_by[exporter]);
		printf("]");
	}
	printf("}\n");
	free(b.payload);
}

static void parse_options(int argc, char **argv)
{
	enum { TO = 256, BASE, EXPORTERS, PORT, STEP, COUNT, SECONDS, RATE, SIZE, RUN, SEED, JSON, TIMED, SEGMENT, PCAP, PCAP_PORT, PER, BUFFER, TICK, CATCH };
	static const struct option table[] = {
	    {"to", 1, 0, TO}, {"source-base", 1, 0, BASE}, {"exporters", 1, 0, EXPORTERS}, {"source-port", 1, 0, PORT},
	    {"port-step", 1, 0, STEP}, {"count", 1, 0, COUNT}, {"seconds", 1, 0, SECONDS}, {"rate", 1, 0, RATE}, {"size", 1, 0, SIZE},
	    {"run", 1, 0, RUN}, {"seed", 1, 0, SEED}, {"json", 0, 0, JSON}, {"timed", 0, 0, TIMED}, {"segment", 0, 0, SEGMENT},
	    {"pcap", 1, 0, PCAP}, {"pcap-port", 1, 0, PCAP_PORT}, {"per-exporter", 0, 0, PER}, {"buffer", 1, 0, BUFFER},
	    {"tick-us", 1, 0, TICK}, {"catch-up-ms", 1, 0, CATCH}, {0, 0, 0, 0}};
	int c;
	char *rest;
	o = (options){.exporters = 1, .run = 1, .size_min = 1400, .size_max = 1400, .seed = 1, .tick_ns = 200000, .buffer = 4 << 20};
	while ((c = getopt_long(argc, argv, "", table, NULL)) != -1) {
		switch (c) {
		case TO: parse_endpoint(optarg, &o.to); break;
		case BASE: parse_address(optarg, &o.base); o.has_base = 1; break;
		case EXPORTERS: o.exporters = (uint32_t)strtoul(optarg, NULL, 10); break;
		case PORT: o.source_port = (uint32_t)strtoul(optarg, NULL, 10); break;
		case STEP: o.port_step = (uint32_t)strtoul(optarg, NULL, 10); break;
		case COUNT: o.count = strtoull(optarg, NULL, 10); break;
		case SECONDS: o.seconds = strtod(optarg, NULL); break;
		case RATE: o.rate = strtod(optarg, NULL); break;
		case CATCH: o.catch_up = strtod(optarg, NULL) / 1e3; break;
		case SIZE:
			o.size_min = o.size_max = (uint32_t)strtoul(optarg, &rest, 10);
			if (*rest == '-')
				o.size_max = (uint32_t)strtoul(rest + 1, NULL, 10);
			break;
		case RUN: o.run = (uint32_t)strtoul(optarg, NULL, 10); break;
		case SEED: o.seed = strtoull(optarg, NULL, 10); break;
		case JSON: break;
		case TIMED: o.timed = 1; break;
		case SEGMENT: o.segment = 1; break;
		case PCAP:
			if (o.pcaps == 64)
				die("too many --pcap");
			o.pcap[o.pcaps++] = optarg;
			break;
		case PCAP_PORT: o.pcap_port = (uint32_t)strtoul(optarg, NULL, 10); break;
		case PER: o.per_exporter = 1; break;
		case BUFFER: o.buffer = atoi(optarg); break;
		case TICK: o.tick_ns = strtoull(optarg, NULL, 10) * 1000; break;
		default: die("%s", USAGE);
		}
	}
	if (!o.to.sa.sa_family || optind != argc || !o.exporters || !o.run)
		die("%s", USAGE);
	if (o.has_base && o.base.sa.sa_family != o.to.sa.sa_family)
		die("--source-base and --to are of different address families");
	if (o.size_max < o.size_min || o.size_max > 65535)
		die("--size: 0..65535, MIN not above MAX");
	if (o.segment && (o.size_min != o.size_max || !o.size_min || o.pcaps))
		die("--segment needs one fixed --size above 0 and no --pcap");
	if (o.port_step && !o.source_port)
		die("--port-step needs --source-port");
	if (!o.count && !o.seconds && !o.pcaps)
		die("one of --count, --seconds or --pcap is needed");
}

int main(int argc, char **argv)
{
	parse_options(argc, argv);
	random_state = o.seed * PAYLOAD_STEP | 1;
	if (o.pcaps) {
		uint32_t k;
		for (k = 0; k < o.pcaps; k++)
			replay_read(o.pcap[k]);
		if (!replay_count)
			die("no UDP datagrams in the captures");
		if (!o.count && !o.seconds)
			o.count = (uint64_t)replay_count * o.exporters;
	}
	sequence = calloc(o.exporters, sizeof *sequence);
	sent_by = calloc(o.exporters, sizeof *sent_by);
	if (!sequence || !sent_by)
		die("out of memory");
	allow_many_files();
	catch_stop();
	open_sockets();
	generate();
	return errors ? 1 : 0;
}
