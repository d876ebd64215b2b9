/* Copies made where datagrams come in: the sessions that a worker has entered here do not reach its sockets any more.
 *
 * `offload_ingress` is where packets of an Ethernet device come in, behind its packet sockets and before netfilter. Of a session that is on
 * it makes a copy for each receiver of the session's set, shows the datagram to the worker (a ring buffer) and drops it. Whatever else comes
 * passes: what no session is entered for, what comes by another place than the session's (interface, address and port), fragments, options,
 * VLAN tags, what has no checksum or is over an MTU. A datagram of the session that cannot be copied turns it off, so that all that follows
 * comes behind it; so does a copy that fails, for all sessions of the set. Where XDP copies too, so does one that the sending devices may
 * have no room for.
 *
 * Order. A session is off, and `word` says when and by which place the last datagram came that passed, until the worker has read and sent
 * just that one and turns it on: compare and exchange fails if another one has passed meanwhile. Two of one moment count as unknown. It is
 * turned off at any moment: what is copied then has left before the next one of the same receive queue is looked at.
 *
 * Checksums are kept right by the kernel's helpers, whatever the device has computed of them; a wrong one stays wrong. Headers are changed
 * by helpers only: a program that writes to packets itself has the head of each packet copied while somebody captures.
 * Needs no helper under GPL. Linux 6.6 has all of it. */
#include "bpf.h"

#include <linux/pkt_cls.h>

#define load_bytes ((helper_load_bytes)BPF_FUNC_skb_load_bytes)
#include "show.h"

#define TRIES 4
#define MOMENT 1000  /* ns: datagrams that came so close may have got one time, on a coarse clock */

static long (*const clone_redirect)(struct __sk_buff *skb, __u32 device, __u64 flags) = (void *)BPF_FUNC_clone_redirect;
static long (*const skb_change_tail)(struct __sk_buff *skb, __u32 length, __u64 flags) = (void *)BPF_FUNC_skb_change_tail;
static long (*const skb_store_bytes)(struct __sk_buff *skb, __u32 offset, const void *from, __u32 length, __u64 flags) = (void *)BPF_FUNC_skb_store_bytes;
static long (*const loop)(__u32 times, void *function, void *with, __u64 flags) = (void *)BPF_FUNC_loop;
static __u32 (*const random32)(void) = (void *)BPF_FUNC_get_prandom_u32;
static long (*const l4_csum_replace)(struct __sk_buff *skb, __u32 offset, __u64 from, __u64 to, __u64 flags) = (void *)BPF_FUNC_l4_csum_replace;
static __s64 (*const csum_diff)(__be32 *from, __u32 from_size, __be32 *to, __u32 to_size, __wsum seed) = (void *)BPF_FUNC_csum_diff;

/* Makes the packet what this receiver gets, whatever the one before it got; 0: it cannot. before: address and port that it has now. */
INLINE int dress4(struct __sk_buff *skb, const struct found *is, const struct copies_receiver *to, __be32 *before, __be16 *port)
{
	const __u32 sum = ETH_HLEN + 20 + 6;
	const struct head4 *came = (void *)is->head;
	struct {
		__u16 pad;
		struct head4 head;
	} __attribute__((aligned(8))) made = {0, *came};
	struct head4 *head = &made.head;
	if (l4_csum_replace(skb, sum, *before, to->address[0], BPF_F_PSEUDO_HDR | BPF_F_MARK_MANGLED_0 | 4))
		return 0;
	*before = to->address[0];
	if (l4_csum_replace(skb, sum, *port, to->port, BPF_F_MARK_MANGLED_0 | 2))
		return 0;
	*port = to->port;
	__builtin_memcpy(&head->link, to->link, ETH_HLEN);
	head->ip.daddr = to->address[0];
	head->udp.dest = to->port;
	head->ip.ttl = to->ttl ? to->ttl : came->ip.ttl;
	head->ip.tos = to->set_tos ? to->tos : came->ip.tos;
	head->ip.id = (__be16)(random32() | 1);
	head->ip.frag_off = 0;
	head->ip.check = 0;
	head->ip.check = (__u16)~sum_of((void *)head + ETH_HLEN, 5);
	return !skb_store_bytes(skb, 0, head, sum, 0);
}

INLINE int dress6(struct __sk_buff *skb, const struct found *is, const struct copies_receiver *to, __be32 *before, __be16 *port)
{
	const __u32 sum = ETH_HLEN + 40 + 6;
	const struct head6 *came = (void *)is->head;
	struct {
		__u16 pad;
		struct head6 head;
	} __attribute__((aligned(8))) made = {0, *came};
	struct head6 *head = &made.head;
	__be32 after[4], first;
	__u8 tos = (__u8)(is->head[ETH_HLEN] << 4 | is->head[ETH_HLEN + 1] >> 4);
	__builtin_memcpy(after, to->address, 16);
	if (l4_csum_replace(skb, sum, 0, (__u64)csum_diff(before, 16, after, 16, 0), BPF_F_PSEUDO_HDR | BPF_F_MARK_MANGLED_0))
		return 0;
	__builtin_memcpy(before, after, 16);
	if (l4_csum_replace(skb, sum, *port, to->port, BPF_F_MARK_MANGLED_0 | 2))
		return 0;
	*port = to->port;
	__builtin_memcpy(&head->link, to->link, ETH_HLEN);
	__builtin_memcpy(&head->ip.daddr, after, 16);
	head->udp.dest = to->port;
	head->ip.hop_limit = to->ttl ? to->ttl : came->ip.hop_limit;
	first = NET32(6u << 28 | (__u32)(to->set_tos ? to->tos : tos) << 20);
	__builtin_memcpy(&head->ip, &first, 4);
	return !skb_store_bytes(skb, 0, head, sum, 0);
}

/* Counts what became of a copy; 0: it failed. */
INLINE int count(__u32 slot, long error, __u32 datagrams, __u32 bytes)
{
	struct copies_counters *now = map_lookup(&counters, &slot);
	int full;
	if (!now)
		return 0;
	if (!error) {
		__sync_fetch_and_add(&now->sent, datagrams);
		__sync_fetch_and_add(&now->sent_bytes, bytes);
		return 1;
	}
	full = error == -COPIES_ENOBUFS || error == COPIES_XMIT_DROP || error == COPIES_XMIT_CN;
	__sync_fetch_and_add(&now->no_buffer, full ? datagrams : 0); /* no pointer that hangs on a condition, without CAP_PERFMON */
	__sync_fetch_and_add(&now->other, full ? 0 : datagrams);
	return 0;
}

/* More than one: a run, which the sending device may have to cut up again. */
INLINE __u32 datagrams_of(const struct found *is)
{
	return is->segment ? (is->length + is->segment - 1) / is->segment : 1;
}

/* The copies of one packet, under way. before, port: the destination that the packet has now. */
struct copying {
	struct __sk_buff *skb;
	const struct found *is;
	struct offload_set *set;
	__u32 first, datagrams;
	__be32 before[4];
	__be16 port;
};

/* The copy for one receiver of the set. (A function that the kernel calls: as a loop it is too much for its verifier.) */
static long copy_for(__u32 i, struct copying *now)
{
	__u32 slot = now->first + i;
	struct copies_receiver *to = map_lookup(&receivers, &slot);
	long error = -1;
	if (to && (now->is->six ? dress6(now->skb, now->is, to, now->before, &now->port) : dress4(now->skb, now->is, to, now->before, &now->port)))
		error = clone_redirect(now->skb, to->device, 0);
	if (!count(slot, error, now->datagrams, now->is->length))
		now->set->on = 0; /* the worker waits for room, and has other ways */
	return 0;
}

INLINE void copy(struct __sk_buff *skb, const struct found *is, __u32 session, struct offload_set *set, __u32 number, __u64 arrival)
{
	__u32 many = set->count;
	struct copying now = {.skb = skb, .is = is, .set = set, .first = number * OFFLOAD_RECEIVERS, .port = is->place.port};
	now.datagrams = datagrams_of(is);
	if (is->six)
		__builtin_memcpy(now.before, is->place.address, 16);
	else
		__builtin_memcpy(now.before, is->place.address + 12, 4);
	__sync_fetch_and_add(&set->taken, now.datagrams);
	__sync_fetch_and_add(&set->taken_bytes, is->length);
	loop(many < OFFLOAD_RECEIVERS ? many : OFFLOAD_RECEIVERS, copy_for, &now, 0);
	if (!show(skb, is, session, number, set->ring, arrival))
		__sync_fetch_and_add(&set->unseen, now.datagrams);
}

/* Whether the packet can be copied for the set; it has no bytes behind its end then. */
INLINE int fits(struct __sk_buff *skb, const struct found *is, const struct offload_set *set)
{
	__u32 bytes = is->size + is->length;
	if (!is->whole || is->packet > set->limit)
		return 0;
	if (is->segment) /* of another kind are datagrams that are fragments (UFO) */
		return skb->len == bytes && skb->gso_segs == datagrams_of(is);
	return skb->len == bytes || !skb_change_tail(skb, bytes, 0);
}

/* The number that express.bpf.c has given the packet; 0: none. */
INLINE __u64 tag_of(const struct __sk_buff *skb)
{
	const __u64 *there = (void *)(long)skb->data_meta;
	return (void *)(there + 1) <= (void *)(long)skb->data ? *there : 0;
}

SECTION("tc")
int offload_ingress(struct __sk_buff *skb)
{
	struct found is = {};
	struct offload_listener *listener;
	struct offload_session *session;
	__u32 *number, key, chosen;
	struct offload_set *set;
	__u64 word, passed, place, express;
	if (skb->pkt_type != 0 || (skb->vlan_present && skb->vlan_tci & 0xfff))
		return TC_ACT_UNSPEC;
	if (skb->protocol == NET16(ETH_P_IP) ? !read4(skb, &is) : skb->protocol != NET16(ETH_P_IPV6) || !read6(skb, &is))
		return TC_ACT_UNSPEC;
	if (skb->len < is.size + is.length)
		return TC_ACT_UNSPEC; /* cut off: nobody takes it */
	is.whole = is.whole && !skb->vlan_present; /* a tag that has a priority only */
	is.place.device = skb->ifindex;
	listener = map_lookup(&places, &is.place);
	if (!listener)
		return TC_ACT_UNSPEC;
	is.key.listener = listener->listener;
	place = (__u64)listener->number << 1;
	number = map_lookup(&keys, &is.key);
	if (!number)
		return TC_ACT_UNSPEC;
	key = *number;
	session = map_lookup(&sessions, &key);
	if (!session)
		return TC_ACT_UNSPEC;
	is.segment = skb->gso_size;
	is.packet = is.size - ETH_HLEN + (is.segment && is.segment < is.length ? is.segment : is.length);
	UNROLLED
	for (int i = 0; i < TRIES; i++) {
		word = *(volatile __u64 *)&session->word;
		if (word & OFFLOAD_ON) {
			chosen = (__u32)(word >> OFFLOAD_REST) & (OFFLOAD_SETS * OFFLOAD_WORKERS - 1);
			set = map_lookup(&sets, &chosen);
			if (set && *(volatile __u32 *)&set->on && set->made << OFFLOAD_MADE >> OFFLOAD_MADE == word >> OFFLOAD_MADE) {
				if ((word & OFFLOAD_PLACE) != place)
					return TC_ACT_UNSPEC; /* between places there is no order, and nobody has said that this one is open */
				express = word & OFFLOAD_EXPRESS ? *(volatile __u64 *)&session->express : 0;
				if (!(express & 1) && fits(skb, &is, set))
					goto copied;
			}
		}
		passed = offload_off(skb->tstamp, place);
		if (!(word & OFFLOAD_ON) && word - passed < (__u64)MOMENT << OFFLOAD_REST)
			passed = offload_off((word >> OFFLOAD_REST) + 1, place); /* no datagram has this time: the worker knows none of them */
		if (__sync_val_compare_and_swap(&session->word, word, passed) == word)
			return TC_ACT_UNSPEC;
	}
unknown:
	__sync_lock_test_and_set(&session->word, offload_off(0, place));
	return TC_ACT_UNSPEC;
copied:
	if (place >> 1 >= OFFLOAD_EXPRESS_PLACES && set->slow && !has_room(set, datagrams_of(&is)))
		goto unknown;
	passed = express ? tag_of(skb) : 0; /* its metadata is lost when it is changed */
	copy(skb, &is, key, set, chosen, skb->tstamp);
	if (express && passed == express)
		__sync_val_compare_and_swap(&session->express, express, express | 1);
	return TC_ACT_SHOT;
}

char terms[] SECTION("license") = "Apache-2.0"; /* no helper of the kernel that asks for more */
