/* How a datagram that the kernel copied is shown to its worker: by a ring buffer. Called by the .bpf.c files. */
#ifndef SAMPLICATOR_SHOW_H
#define SAMPLICATOR_SHOW_H

#include "maps.h"
#include "read.h"

static void *(*const ringbuf_reserve)(void *ring, __u64 size, __u64 flags) = (void *)BPF_FUNC_ringbuf_reserve;
static void (*const ringbuf_submit)(void *data, __u64 flags) = (void *)BPF_FUNC_ringbuf_submit;
static void (*const ringbuf_discard)(void *data, __u64 flags) = (void *)BPF_FUNC_ringbuf_discard;
static __u64 (*const ringbuf_query)(void *ring, __u64 flags) = (void *)BPF_FUNC_ringbuf_query;

/* One of the IP header. Read before it is known which are wanted: a pointer that hangs on a condition the kernel does not take without CAP_PERFMON. */
INLINE __u8 octet(const struct found *is, __u32 at)
{
	return *(const volatile __u8 *)(is->head + ETH_HLEN + at);
}

/* A reservation has a size that is known beforehand: the next one of these. 0: there is no room. */
#define SHOW(room)                                                                                                                         \
	if (length <= (room)) {                                                                                                            \
		record = ringbuf_reserve(ring, sizeof(*record) + (room), 0);                                                              \
		if (!record)                                                                                                               \
			return 0;                                                                                                          \
		if (length && load_bytes(packet, is->size, record->payload, length)) {                                                    \
			ringbuf_discard(record, 0);                                                                                        \
			return 0;                                                                                                          \
		}                                                                                                                          \
		goto filled;                                                                                                               \
	}

INLINE int show(const void *packet, const struct found *is, __u32 session, __u32 number, __u32 worker, __u64 arrival)
{
	struct offload_record *record;
	void *ring = map_lookup(&rings, &worker);
	__u32 length = is->length & 0xffff;
	__u8 first = octet(is, 0), second = octet(is, 1), ttl6 = octet(is, 7), ttl4 = octet(is, 8);
	__u64 waits;
	if (!ring)
		return 0;
	SHOW(128)
	SHOW(256)
	SHOW(512)
	SHOW(1024)
	SHOW(1536)
	SHOW(4096)
	SHOW(16384)
	SHOW(65536)
	return 0;
filled:
	__builtin_memcpy(record->address, is->key.address, 16);
	record->port = is->key.port;
	record->listener = is->key.listener;
	record->six = is->six;
	record->ttl = is->six ? ttl6 : ttl4;
	record->tos = is->six ? (__u8)(first << 4 | second >> 4) : second;
	record->spare = 0;
	record->length = length;
	record->segment = is->segment;
	record->session = session;
	record->set = number;
	record->arrival_ns = arrival;
	waits = ringbuf_query(ring, BPF_RB_AVAIL_DATA);
	ringbuf_submit(record, waits > ringbuf_query(ring, BPF_RB_RING_SIZE) / 4 ? BPF_RB_FORCE_WAKEUP : BPF_RB_NO_WAKEUP);
	return 1;
}

#endif
