/* Copies made where datagrams come in: the sessions that a worker has entered here do not reach its sockets any more.
 *
 * `offload_ingress` is where packets of an Ethernet device come in, behind its packet sockets and before netfilter. Of a session that is on
 * it makes a copy for each receiver of the session's set, shows the datagram to the worker (a ring buffer) and drops it. Whatever else comes
 * passes: what no session is entered for, fragments, options, VLAN tags, what is over an MTU. A datagram that cannot be copied turns its
 * session off, so that all that follows comes behind it.
 *
 * Order. A session is off, and `word` says when the last datagram came that passed, until the worker has read and sent just that one and
 * turns it on: compare and exchange fails if another one has passed meanwhile. It is turned off at any moment: what is copied then has
 * left before the next one of the same receive queue is looked at.
 *
 * Checksums are kept right by the kernel's helpers, whatever the device has computed of them; one of 0 stays 0; a wrong one stays wrong.
 * Needs no helper under GPL. Linux 6.6 has all of it. */
#include "bpf.h"

#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/ipv6.h>
#include <linux/pkt_cls.h>
#include <linux/udp.h>

#include "heads.h"
#include "offload.h"

#define TRIES 4

static long (*const clone_redirect)(struct __sk_buff *skb, __u32 device, __u64 flags) = (void *)BPF_FUNC_clone_redirect;
static long (*const skb_pull_data)(struct __sk_buff *skb, __u32 length) = (void *)BPF_FUNC_skb_pull_data;
static long (*const skb_change_tail)(struct __sk_buff *skb, __u32 length, __u64 flags) = (void *)BPF_FUNC_skb_change_tail;
static long (*const skb_load_bytes)(const void *skb, __u32 offset, void *to, __u32 length) = (void *)BPF_FUNC_skb_load_bytes;
static long (*const l4_csum_replace)(struct __sk_buff *skb, __u32 offset, __u64 from, __u64 to, __u64 flags) = (void *)BPF_FUNC_l4_csum_replace;
static __s64 (*const csum_diff)(__be32 *from, __u32 from_size, __be32 *to, __u32 to_size, __wsum seed) = (void *)BPF_FUNC_csum_diff;
static void *(*const ringbuf_reserve)(void *ring, __u64 size, __u64 flags) = (void *)BPF_FUNC_ringbuf_reserve;
static void (*const ringbuf_submit)(void *data, __u64 flags) = (void *)BPF_FUNC_ringbuf_submit;
static void (*const ringbuf_discard)(void *data, __u64 flags) = (void *)BPF_FUNC_ringbuf_discard;
static __u64 (*const ringbuf_query)(void *ring, __u64 flags) = (void *)BPF_FUNC_ringbuf_query;

struct {
	NUMBER(type, BPF_MAP_TYPE_HASH);
	NUMBER(max_entries, OFFLOAD_PLACES);
	TYPE(key, struct offload_place);
	TYPE(value, __u32); /* slot of the listener */
} places SECTION(".maps");

struct {
	NUMBER(type, BPF_MAP_TYPE_HASH);
	NUMBER(max_entries, OFFLOAD_SESSIONS);
	TYPE(key, struct offload_key);
	TYPE(value, __u32); /* number of the session */
} keys SECTION(".maps");

/* A worker's sessions, sets and slots follow each other; the maps have as many of them as there are workers. */
struct {
	NUMBER(type, BPF_MAP_TYPE_ARRAY);
	NUMBER(max_entries, OFFLOAD_SESSIONS);
	NUMBER(map_flags, BPF_F_MMAPABLE);
	TYPE(key, __u32);
	TYPE(value, struct offload_session);
} sessions SECTION(".maps");

struct {
	NUMBER(type, BPF_MAP_TYPE_ARRAY);
	NUMBER(max_entries, OFFLOAD_SETS);
	NUMBER(map_flags, BPF_F_MMAPABLE);
	TYPE(key, __u32);
	TYPE(value, struct offload_set);
} sets SECTION(".maps");

struct {
	NUMBER(type, BPF_MAP_TYPE_ARRAY);
	NUMBER(max_entries, OFFLOAD_SETS * OFFLOAD_RECEIVERS);
	NUMBER(map_flags, BPF_F_MMAPABLE);
	TYPE(key, __u32);
	TYPE(value, struct copies_receiver);
} receivers SECTION(".maps");

struct {
	NUMBER(type, BPF_MAP_TYPE_ARRAY);
	NUMBER(max_entries, OFFLOAD_SETS * OFFLOAD_RECEIVERS);
	NUMBER(map_flags, BPF_F_MMAPABLE);
	TYPE(key, __u32);
	TYPE(value, struct copies_counters);
} counters SECTION(".maps");

struct ring {
	NUMBER(type, BPF_MAP_TYPE_RINGBUF);
	NUMBER(max_entries, 4096);
};

struct {
	NUMBER(type, BPF_MAP_TYPE_ARRAY_OF_MAPS);
	NUMBER(max_entries, OFFLOAD_WORKERS);
	TYPE(key, __u32);
	EACH(values, struct ring);
} rings SECTION(".maps");

/* What is known of a packet that can be a session's. */
struct found {
	struct offload_place place;
	struct offload_key key;
	__u32 head;	/* bytes before the payload */
	__u32 length;	/* bytes of the payload */
	__u32 packet;	/* bytes of its longest IP packet, when it is segmented */
	__u32 segment;	/* bytes of the payload of its segments, 0 = it is one datagram */
	__u8 six, ttl, tos;
};

INLINE void map4(__u8 *to, __be32 address)
{
	__builtin_memset(to, 0, 10);
	to[10] = to[11] = 0xff;
	__builtin_memcpy(to + 12, &address, 4);
}

/* Reads the headers of a whole UDP datagram without IP options; 0: it is none, or says something strange of its length. */
INLINE int read4(struct __sk_buff *skb, struct found *out)
{
	struct head4 *head = (void *)(long)skb->data;
	__u32 length;
	if ((void *)(head + 1) > (void *)(long)skb->data_end)
		return 0;
	if (*(__u8 *)&head->ip != 0x45 || head->ip.protocol != IPPROTO_UDP || head->ip.frag_off & NET16(0x3fff))
		return 0;
	length = NET16(head->ip.tot_len);
	if (length < 28 || NET16(head->udp.len) != length - 20 || sum_of((void *)head + ETH_HLEN, 5) != 0xffff)
		return 0;
	map4(out->key.address, head->ip.saddr);
	map4(out->place.address, head->ip.daddr);
	out->key.port = head->udp.source;
	out->place.port = head->udp.dest;
	out->length = length - 28;
	out->head = sizeof(*head);
	out->ttl = head->ip.ttl;
	out->tos = head->ip.tos;
	return 1;
}

INLINE int read6(struct __sk_buff *skb, struct found *out)
{
	struct head6 *head = (void *)(long)skb->data;
	const __u8 *ip;
	__u32 length;
	if ((void *)(head + 1) > (void *)(long)skb->data_end)
		return 0;
	ip = (void *)head + ETH_HLEN;
	if (ip[0] >> 4 != 6 || head->ip.nexthdr != IPPROTO_UDP || !head->udp.check)
		return 0;
	length = NET16(head->ip.payload_len);
	if (length < 8 || NET16(head->udp.len) != length)
		return 0;
	__builtin_memcpy(out->key.address, ip + 8, 16);
	__builtin_memcpy(out->place.address, ip + 24, 16);
	if (!*(__u64 *)out->key.address && *(__u32 *)(out->key.address + 8) == NET32(0xffff))
		return 0; /* looks like IPv4 */
	out->key.port = head->udp.source;
	out->place.port = head->udp.dest;
	out->length = length - 8;
	out->head = sizeof(*head);
	out->six = 1;
	out->ttl = head->ip.hop_limit;
	out->tos = (__u8)(ip[0] << 4 | ip[1] >> 4);
	return 1;
}

/* Writes what this receiver has of its own over what the one before it had; 0: it cannot. */
INLINE int dress4(struct __sk_buff *skb, const struct copies_receiver *to, __u8 ttl, __u8 tos)
{
	const __u32 sum = ETH_HLEN + 20 + 6;
	struct head4 *head = (void *)(long)skb->data;
	__be32 address;
	__be16 port;
	if ((void *)(head + 1) > (void *)(long)skb->data_end)
		return 0;
	address = head->ip.daddr;
	port = head->udp.dest;
	if (l4_csum_replace(skb, sum, address, to->address[0], BPF_F_PSEUDO_HDR | BPF_F_MARK_MANGLED_0 | 4)
	    || l4_csum_replace(skb, sum, port, to->port, BPF_F_MARK_MANGLED_0 | 2))
		return 0;
	head = (void *)(long)skb->data;
	if ((void *)(head + 1) > (void *)(long)skb->data_end)
		return 0;
	__builtin_memcpy(&head->link, to->link, ETH_HLEN);
	head->ip.daddr = to->address[0];
	head->udp.dest = to->port;
	head->ip.ttl = to->ttl ? to->ttl : ttl;
	head->ip.tos = to->set_tos ? to->tos : tos;
	head->ip.frag_off = 0;
	head->ip.check = 0;
	head->ip.check = (__u16)~sum_of((void *)head + ETH_HLEN, 5);
	return 1;
}

INLINE int dress6(struct __sk_buff *skb, const struct copies_receiver *to, __u8 ttl, __u8 tos)
{
	const __u32 sum = ETH_HLEN + 40 + 6;
	struct head6 *head = (void *)(long)skb->data;
	__be32 before[4], after[4], first;
	__be16 port;
	if ((void *)(head + 1) > (void *)(long)skb->data_end)
		return 0;
	__builtin_memcpy(before, &head->ip.daddr, 16);
	__builtin_memcpy(after, to->address, 16);
	port = head->udp.dest;
	if (l4_csum_replace(skb, sum, 0, (__u64)csum_diff(before, 16, after, 16, 0), BPF_F_PSEUDO_HDR | BPF_F_MARK_MANGLED_0)
	    || l4_csum_replace(skb, sum, port, to->port, BPF_F_MARK_MANGLED_0 | 2))
		return 0;
	head = (void *)(long)skb->data;
	if ((void *)(head + 1) > (void *)(long)skb->data_end)
		return 0;
	__builtin_memcpy(&head->link, to->link, ETH_HLEN);
	__builtin_memcpy(&head->ip.daddr, after, 16);
	head->udp.dest = to->port;
	head->ip.hop_limit = to->ttl ? to->ttl : ttl;
	first = NET32(6u << 28 | (__u32)(to->set_tos ? to->tos : tos) << 20);
	__builtin_memcpy(&head->ip, &first, 4);
	return 1;
}

INLINE void count(__u32 slot, long error, __u32 datagrams, __u32 bytes)
{
	struct copies_counters *now = map_lookup(&counters, &slot);
	if (!now)
		return;
	if (!error) {
		__sync_fetch_and_add(&now->sent, datagrams);
		__sync_fetch_and_add(&now->sent_bytes, bytes);
	} else if (error == -COPIES_ENOBUFS || error == COPIES_XMIT_DROP || error == COPIES_XMIT_CN) {
		__sync_fetch_and_add(&now->no_buffer, datagrams);
	} else {
		__sync_fetch_and_add(&now->other, datagrams);
	}
}

/* A reservation has a size that is known beforehand: the next one of these. 0: there is no room. */
#define SHOW(size)                                                                                                                         \
	if (length <= (size)) {                                                                                                            \
		record = ringbuf_reserve(ring, sizeof(*record) + (size), 0);                                                              \
		if (!record)                                                                                                               \
			return 0;                                                                                                          \
		if (length && skb_load_bytes(skb, is->head, record->payload, length)) {                                                    \
			ringbuf_discard(record, 0);                                                                                        \
			return 0;                                                                                                          \
		}                                                                                                                          \
		goto filled;                                                                                                               \
	}

INLINE int show(struct __sk_buff *skb, const struct found *is, __u32 session, __u32 number, __u32 worker, __u64 arrival)
{
	struct offload_record *record;
	void *ring = map_lookup(&rings, &worker);
	__u32 length = is->length & 0xffff;
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
	record->ttl = is->ttl;
	record->tos = is->tos;
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

INLINE int copy(struct __sk_buff *skb, const struct found *is, __u32 session, struct offload_set *set, __u32 number, __u64 arrival)
{
	__u32 datagrams = is->segment ? (is->length + is->segment - 1) / is->segment : 1;
	__u32 first = number * OFFLOAD_RECEIVERS, many = set->count;
	__sync_fetch_and_add(&set->taken, datagrams);
	__sync_fetch_and_add(&set->taken_bytes, is->length);
	for (__u32 i = 0; i < OFFLOAD_RECEIVERS && i < many; i++) {
		__u32 slot = first + i;
		struct copies_receiver *to = map_lookup(&receivers, &slot);
		long error = -1;
		if (to && (is->six ? dress6(skb, to, is->ttl, is->tos) : dress4(skb, to, is->ttl, is->tos)))
			error = clone_redirect(skb, to->device, 0);
		count(slot, error, datagrams, is->length);
	}
	if (!show(skb, is, session, number, set->ring, arrival)) {
		__sync_fetch_and_add(&set->unseen, datagrams);
		__sync_fetch_and_add(&set->unseen_bytes, is->length);
	}
	return TC_ACT_SHOT;
}

/* Whether the whole packet can be copied for the set; it has no bytes behind its end then. */
INLINE int fits(struct __sk_buff *skb, const struct found *is, const struct offload_set *set)
{
	__u32 whole = is->head + is->length;
	if (is->packet > set->limit)
		return 0;
	return skb->len == whole || (!is->segment && !skb_change_tail(skb, whole, 0));
}

SECTION("tc")
int offload_ingress(struct __sk_buff *skb)
{
	struct found is = {};
	struct offload_session *session;
	__u32 *listener, *number, set_number;
	__u64 word, arrival;
	if (skb->vlan_present || (skb->pkt_type != 0 && skb->pkt_type != 2))
		return TC_ACT_UNSPEC;
	if (skb->protocol == NET16(ETH_P_IP)) {
		if (!read4(skb, &is) && (skb_pull_data(skb, sizeof(struct head4)) || !read4(skb, &is)))
			return TC_ACT_UNSPEC;
	} else if (skb->protocol == NET16(ETH_P_IPV6)) {
		if (!read6(skb, &is) && (skb_pull_data(skb, sizeof(struct head6)) || !read6(skb, &is)))
			return TC_ACT_UNSPEC;
	} else {
		return TC_ACT_UNSPEC;
	}
	if (skb->len < is.head + is.length)
		return TC_ACT_UNSPEC; /* cut off: nobody takes it */
	is.place.device = skb->ifindex;
	is.place.group = skb->pkt_type == 2;
	listener = map_lookup(&places, &is.place);
	if (!listener)
		return TC_ACT_UNSPEC;
	is.key.listener = (__u16)*listener;
	number = map_lookup(&keys, &is.key);
	if (!number)
		return TC_ACT_UNSPEC;
	set_number = *number;
	session = map_lookup(&sessions, &set_number);
	if (!session)
		return TC_ACT_UNSPEC;
	is.segment = skb->gso_size;
	is.packet = (is.segment && is.segment < is.length ? is.head - ETH_HLEN + is.segment : is.head - ETH_HLEN + is.length);
	arrival = skb->tstamp;
	for (int i = 0; i < TRIES; i++) {
		word = *(volatile __u64 *)&session->word;
		if (word & OFFLOAD_ON) {
			struct offload_set *set;
			__u32 chosen = *(volatile __u32 *)&session->set;
			set = map_lookup(&sets, &chosen);
			if (set && *(volatile __u32 *)&set->on && fits(skb, &is, set))
				return copy(skb, &is, *number, set, chosen, arrival);
		}
		if (__sync_val_compare_and_swap(&session->word, word, arrival & ~(__u64)OFFLOAD_ON) == word)
			break;
	}
	return TC_ACT_UNSPEC;
}

char terms[] SECTION("license") = "Apache-2.0"; /* no helper of the kernel that asks for more */
