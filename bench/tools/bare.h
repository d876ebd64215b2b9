/* The bare loop's batch: where each datagram lies and whose it is, grouping by exporter session, cutting into runs.
 * Included once, by bare.c and before bare_ring.h and bare_packet.h. All state is static: one thread, one batch at a time. */
#ifndef BENCH_BARE_H
#define BENCH_BARE_H

#include "tool.h"

#include <netinet/udp.h>

#define RECEIVERS_MAX 1024
#define BATCH_MAX 512
#define SLOT_BYTES 65536
#define SEGMENTS_MAX 64
#define RUN_BYTES_MAX 65000
#define SESSION_SLOTS_LOG 18
#define SESSION_SLOTS (1u << SESSION_SLOTS_LOG)

typedef struct {
	endpoint to;
	int fd;
} receiver;

typedef struct {
	endpoint from;
	int fd;                     /* its IP_TRANSPARENT socket, -1 until it is needed */
	uint32_t round, head, tail; /* chain of this round's datagrams, in order */
} session;

/* Consecutive entries of order[] that leave as one send: `count` datagrams of `size` bytes, the last may be shorter. */
typedef struct {
	uint32_t first, count, size, bytes;
} run;

static receiver receivers[RECEIVERS_MAX];
static uint32_t receiver_count, batch_max = BATCH_MAX, segment_max = 1472;
static int spoof, ttl = 64;
static uint64_t datagrams, copies, errors, calls, batches;

static uint8_t *data[BATCH_MAX];
static uint32_t length[BATCH_MAX], order[BATCH_MAX];
static endpoint from[BATCH_MAX];

static session *sessions, *active[BATCH_MAX];
static uint32_t active_count, active_start[BATCH_MAX + 1], next[BATCH_MAX], this_round;

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

static uint16_t sum_folded(uint32_t sum)
{
	while (sum >> 16)
		sum = (sum & 0xffff) + (sum >> 16);
	return (uint16_t)sum;
}

/* Whatever fails is counted and passed over. weight[i] = copies in message i, NULL = one each. */
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
	for (i = (uint32_t)(h >> (64 - SESSION_SLOTS_LOG));; i = (i + 1) & (SESSION_SLOTS - 1)) {
		session *s = &sessions[i];
		if (!s->from.sa.sa_family) {
			s->from = *e;
			s->fd = -1;
			return s;
		}
		if (e->sa.sa_family == AF_INET ? s->from.v4.sin_addr.s_addr == e->v4.sin_addr.s_addr && s->from.v4.sin_port == e->v4.sin_port
		                               : !memcmp(&s->from.v6.sin6_addr, &e->v6.sin6_addr, 16) && s->from.v6.sin6_port == e->v6.sin6_port)
			return s;
	}
}

/* Fills order[0..n) so that each session's datagrams stand together, in their order; session k's start at active_start[k]. */
static void group_by_session(uint32_t n)
{
	uint32_t i, k, at = 0;
	session *s = NULL;
	this_round++;
	active_count = 0;
	for (i = 0; i < n; i++) {
		if (!s || memcmp(&from[i], &from[i - 1], endpoint_size(&from[i])) != 0)
			s = session_of(&from[i]);
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
		active_start[k] = at;
		for (i = active[k]->head; i != UINT32_MAX; i = next[i])
			order[at++] = i;
	}
	active_start[active_count] = at;
}

/* Cuts order[begin..end) into runs; returns how many. */
static uint32_t cut_runs(uint32_t begin, uint32_t end, run *runs)
{
	uint32_t i = begin, m = 0;
	while (i < end) {
		uint32_t size = length[order[i]], bytes = size, k = 1;
		while (size && size <= segment_max && i + k < end && k < SEGMENTS_MAX) {
			uint32_t more = length[order[i + k]];
			if (!more || more > size || bytes + more > RUN_BYTES_MAX)
				break;
			bytes += more;
			k++;
			if (more < size)
				break;
		}
		runs[m++] = (run){i, k, size, bytes};
		i += k;
	}
	return m;
}

#endif
