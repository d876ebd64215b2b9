/* Copies made by XDP: what offload.bpf.c does, before the kernel has made a packet of the frame.
 *
 * `express_ingress` is at the device, before offload_ingress. A frame of a session that XDP copies is shown to the worker and broadcast by a
 * device map that has an entry for each receiver of the set. `express_copy` is run for each of these frames when it leaves, and makes it the
 * next receiver's: those of one frame come in the map's order at each device (`turns`), which the control plane tries out before it lets a
 * device be used. `express_flushed` is told how many of them the device has taken, and counts: so a copy counts once, sent or failed. What
 * has been broadcast and is not counted there had no memory, or its device cannot take it; the worker finds out and counts that. All copies of
 * a poll come to the sending device's ring before it takes any: so no more are made in one poll than the shortest ring has room for
 * (has_room()); `express_polled` is told when a poll ends.
 *
 * Order. XDP decides before the other program does, and packets wait between them. So a session is on in the other program first, and its
 * frames pass here with a number each, in `express` and in the packet's metadata: when the other one has copied just the last that passed,
 * nothing waits between them, and it says so by compare and exchange. In the other direction, what XDP has broadcast leaves at the end of
 * the device's poll: so whoever turns such a session off, its datagrams come to the worker, which waits for polls that have begun before
 * it sends them.
 * Needs no helper under GPL. Linux 6.6 has all of it. */
#define load_bytes ((helper_load_bytes)BPF_FUNC_xdp_load_bytes)
#include "show.h"

#define TRIES 4
#define POLLED 64	/* packets of one poll at most: NAPI_POLL_WEIGHT, include/linux/netdevice.h */
#define BULK 16		/* frames that leave a device at once: DEV_MAP_BULK_SIZE, include/net/xdp.h */

static long (*const adjust_meta)(struct xdp_md *xdp, int delta) = (void *)BPF_FUNC_xdp_adjust_meta;
static long (*const adjust_tail)(struct xdp_md *xdp, int delta) = (void *)BPF_FUNC_xdp_adjust_tail;
static long (*const redirect_map)(void *map, __u64 key, __u64 flags) = (void *)BPF_FUNC_redirect_map;
static __u32 (*const random32)(void) = (void *)BPF_FUNC_get_prandom_u32;

/* The link address of a device: frames to others are not for this host. */
struct express_device {
	__u8 link[6];
	__u8 spare[2];
};

/* In the place of a frame's link addresses, between the programs. sequence: of the frames that this CPU has broadcast. */
struct express_mark {
	__u64 sequence;
	__u32 set;
} __attribute__((packed, aligned(2)));

/* Of one device and CPU: the last frame of which a copy left, and the first of its receivers that may be next. */
struct express_turn {
	__u64 sequence;
	__u64 next;
};

/* Of a CPU: who the frames are for that a device is about to be given. */
struct express_bulk {
	__u32 count;
	__u32 slot[BULK];
	__u32 bytes[BULK];
};

struct {
	NUMBER(type, BPF_MAP_TYPE_HASH);
	NUMBER(max_entries, OFFLOAD_PLACES);
	TYPE(key, __u32);
	TYPE(value, struct express_device);
} devices SECTION(".maps");

struct {
	NUMBER(type, BPF_MAP_TYPE_PERCPU_HASH);
	NUMBER(max_entries, OFFLOAD_OUTPUTS);
	TYPE(key, __u32);
	TYPE(value, struct express_turn);
} turns SECTION(".maps");

struct {
	NUMBER(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	NUMBER(max_entries, 1);
	TYPE(key, __u32);
	TYPE(value, __u64);
} sequences SECTION(".maps");

struct {
	NUMBER(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	NUMBER(max_entries, 1);
	TYPE(key, __u32);
	TYPE(value, struct express_bulk);
} bulks SECTION(".maps");

/* What came of a set that has no limit, which is for trying: receivers by number. */
struct express_trial {
	__u32 count;
	__u32 at[OFFLOAD_RECEIVERS];
};

struct {
	NUMBER(type, BPF_MAP_TYPE_ARRAY);
	NUMBER(max_entries, 1);
	TYPE(key, __u32);
	TYPE(value, struct express_trial);
} trial SECTION(".maps");

struct outputs {
	NUMBER(type, BPF_MAP_TYPE_DEVMAP);
	NUMBER(max_entries, OFFLOAD_RECEIVERS);
	NUMBER(key_size, sizeof(__u32));
	NUMBER(value_size, sizeof(struct bpf_devmap_val));
};

/* Of each set. */
struct {
	NUMBER(type, BPF_MAP_TYPE_ARRAY_OF_MAPS);
	NUMBER(max_entries, OFFLOAD_SETS);
	TYPE(key, __u32);
	EACH(values, struct outputs);
} broadcasts SECTION(".maps");

/* Whether the checksum is that of the pseudo header only, as of a packet that a host has left to its device: no device of ours does it. */
INLINE int half_summed(const struct found *is)
{
	const struct head4 *four = (void *)is->head;
	const struct head6 *six = (void *)is->head;
	__be16 check = is->six ? six->udp.check : four->udp.check;
	__u32 sum = NET16(IPPROTO_UDP);
	sum += is->six ? sum_of(&six->ip.saddr, 8) + six->udp.len : sum_of(&four->ip.saddr, 2) + four->udp.len;
	sum = folded(sum);
	return check == sum || (check == 0xffff && sum == 0);
}

/* Whether the frame can be copied for the set; it has no bytes behind its end then, but for those that the shortest frame needs. */
INLINE int fits(struct xdp_md *xdp, const struct found *is, const struct offload_set *set)
{
	__u32 bytes = is->size + is->length, came = xdp->data_end - xdp->data;
	if (bytes < ETH_ZLEN)
		bytes = came < ETH_ZLEN ? came : ETH_ZLEN;
	if (!is->whole || is->packet > set->limit || half_summed(is))
		return 0;
	return came == bytes || !adjust_tail(xdp, (int)bytes - (int)came);
}

INLINE int broadcast(struct xdp_md *xdp, const struct found *is, __u32 session, struct offload_set *set, __u32 number)
{
	__u32 zero = 0;
	__u64 *sequence = map_lookup(&sequences, &zero);
	void *outputs = map_lookup(&broadcasts, &number);
	struct express_mark *mark;
	__sync_fetch_and_add(&set->taken, 1);
	__sync_fetch_and_add(&set->taken_bytes, is->length);
	if (!show(xdp, is, session, number, set->ring, 0))
		__sync_fetch_and_add(&set->unseen, 1);
	mark = (void *)(long)xdp->data;
	if ((void *)(mark + 1) > (void *)(long)xdp->data_end || !sequence || !outputs)
		return XDP_DROP;
	mark->sequence = ++*sequence;
	mark->set = number;
	return (int)redirect_map(outputs, 0, BPF_F_BROADCAST);
}

/* The frame passes with the number that is `express` from now on. */
INLINE void tag(struct xdp_md *xdp, __u64 number)
{
	__u64 *there;
	if (adjust_meta(xdp, -(int)sizeof(number)))
		return;
	there = (void *)(long)xdp->data_meta;
	if ((void *)(there + 1) <= (void *)(long)xdp->data)
		*there = number;
}

SECTION("xdp")
int express_ingress(struct xdp_md *xdp)
{
	struct found is = {};
	const struct ethhdr *link = (void *)(long)xdp->data;
	const struct express_device *device;
	struct offload_listener *listener;
	struct offload_session *session;
	struct offload_set *set;
	__u32 *number, key, chosen;
	__u64 word, express = 0, place;
	if ((void *)(link + 1) > (void *)(long)xdp->data_end)
		return XDP_PASS;
	if (link->h_proto != NET16(ETH_P_IP) && link->h_proto != NET16(ETH_P_IPV6))
		return XDP_PASS;
	if (link->h_proto == NET16(ETH_P_IP) ? !read4(xdp, &is) : !read6(xdp, &is))
		return XDP_PASS;
	is.place.device = xdp->ingress_ifindex;
	device = map_lookup(&devices, &is.place.device);
	if (!device || *(__u32 *)device->link != *(__u32 *)is.head || *(__u16 *)(device->link + 4) != *(__u16 *)(is.head + 4))
		return XDP_PASS;
	if ((__u32)(xdp->data_end - xdp->data) < is.size + is.length)
		return XDP_PASS;
	listener = map_lookup(&places, &is.place);
	if (!listener)
		return XDP_PASS;
	is.key.listener = listener->listener;
	place = (__u64)listener->number << 1;
	number = map_lookup(&keys, &is.key);
	if (!number)
		return XDP_PASS;
	key = *number;
	session = map_lookup(&sessions, &key);
	if (!session)
		return XDP_PASS;
	is.packet = is.size - ETH_HLEN + is.length;
	word = *(volatile __u64 *)&session->word;
	if (!(word & OFFLOAD_ON) || !(word & OFFLOAD_EXPRESS) || (word & OFFLOAD_PLACE) != place)
		return XDP_PASS;
	for (int i = 0; i < TRIES; i++) {
		express = *(volatile __u64 *)&session->express;
		if (express & 1)
			break;
		if (__sync_val_compare_and_swap(&session->express, express, express + 2) == express) {
			tag(xdp, express + 2);
			return XDP_PASS;
		}
	}
	if (!(express & 1))
		goto off;
	chosen = (__u32)(word >> OFFLOAD_REST) & (OFFLOAD_SETS * OFFLOAD_WORKERS - 1);
	set = map_lookup(&sets, &chosen);
	if (set && *(volatile __u32 *)&set->on && set->made << OFFLOAD_MADE >> OFFLOAD_MADE == word >> OFFLOAD_MADE && fits(xdp, &is, set) && has_room(set, 1))
		return broadcast(xdp, &is, key, set, chosen);
off:
	__sync_val_compare_and_swap(&session->word, word, offload_off(0, place));
	return XDP_PASS;
}

INLINE void dress4(struct head4 *head, const struct copies_receiver *to)
{
	__be32 address = to->address[0];
	__u32 sum = (__u16)~head->udp.check;
	sum += (~head->ip.daddr & 0xffff) + (~head->ip.daddr >> 16) + (address & 0xffff) + (address >> 16);
	sum += (__u16)~head->udp.dest + to->port;
	sum = (__u16)~folded(sum);
	head->udp.check = sum ? sum : 0xffff;
	head->udp.dest = to->port;
	head->ip.daddr = address;
	head->ip.ttl = to->ttl ? to->ttl : head->ip.ttl;
	head->ip.tos = to->set_tos ? to->tos : head->ip.tos;
	head->ip.id = (__be16)(random32() | 1);
	head->ip.frag_off = 0;
	head->ip.check = 0;
	head->ip.check = (__u16)~sum_of(&head->ip, 5);
}

INLINE void dress6(struct head6 *head, const struct copies_receiver *to)
{
	__be32 before[4], after[4], first;
	__u32 sum = (__u16)~head->udp.check;
	__builtin_memcpy(before, &head->ip.daddr, 16);
	__builtin_memcpy(after, to->address, 16);
	for (int i = 0; i < 4; i++)
		sum += (~before[i] & 0xffff) + (~before[i] >> 16) + (after[i] & 0xffff) + (after[i] >> 16);
	sum += (__u16)~head->udp.dest + to->port;
	sum = (__u16)~folded(sum);
	head->udp.check = sum ? sum : 0xffff;
	head->udp.dest = to->port;
	__builtin_memcpy(&head->ip.daddr, after, 16);
	head->ip.hop_limit = to->ttl ? to->ttl : head->ip.hop_limit;
	__builtin_memcpy(&first, &head->ip, 4);
	first = NET32(6u << 28 | (to->set_tos ? (__u32)to->tos << 20 : NET32(first) & 0xff00000));
	__builtin_memcpy(&head->ip, &first, 4);
}

INLINE void try_at(__u32 at)
{
	__u32 zero = 0;
	struct express_trial *now = map_lookup(&trial, &zero);
	if (now && now->count < OFFLOAD_RECEIVERS)
		now->at[now->count++ & (OFFLOAD_RECEIVERS - 1)] = at;
}

/* The receiver that is next in turn at this device; 0: there is none. */
INLINE const struct copies_receiver *next_of(const struct express_mark *mark, __u32 device, __u32 *slot)
{
	struct express_turn *turn = map_lookup(&turns, &device);
	__u32 chosen = mark->set;
	struct offload_set *set = map_lookup(&sets, &chosen);
	if (!turn || !set)
		return 0;
	if (turn->sequence != mark->sequence) {
		turn->sequence = mark->sequence;
		turn->next = 0;
	}
	for (int i = 0; i < OFFLOAD_RECEIVERS; i++) {
		__u32 at = (__u32)turn->next;
		const struct copies_receiver *to;
		if (at >= OFFLOAD_RECEIVERS || at >= set->count)
			return 0;
		turn->next = at + 1;
		*slot = chosen * OFFLOAD_RECEIVERS + at;
		to = map_lookup(&receivers, slot);
		if (!to || to->device != device)
			continue;
		if (set->limit)
			return to;
		try_at(at);
		return 0;
	}
	return 0;
}

/* Broadcasts a frame that has only a mark. */
SECTION("xdp")
int express_try(struct xdp_md *xdp)
{
	struct express_mark *mark = (void *)(long)xdp->data;
	__u32 zero = 0, number;
	__u64 *sequence = map_lookup(&sequences, &zero);
	void *outputs;
	if ((void *)(mark + 1) > (void *)(long)xdp->data_end || !sequence)
		return XDP_DROP;
	mark->sequence = ++*sequence;
	number = mark->set;
	outputs = map_lookup(&broadcasts, &number);
	return outputs ? (int)redirect_map(outputs, 0, BPF_F_BROADCAST) : XDP_DROP;
}

SECTION("xdp/devmap")
int express_copy(struct xdp_md *xdp)
{
	void *data = (void *)(long)xdp->data, *end = (void *)(long)xdp->data_end;
	struct head4 *four = data;
	struct head6 *six = data;
	__u32 zero = 0, slot = 0, octets;
	struct express_bulk *bulk = map_lookup(&bulks, &zero);
	const struct copies_receiver *to;
	if ((void *)(four + 1) > end || !bulk)
		return XDP_DROP;
	to = next_of(data, xdp->egress_ifindex, &slot);
	if (!to || bulk->count >= BULK)
		return XDP_DROP;
	if (four->link.h_proto == NET16(ETH_P_IP)) {
		dress4(four, to);
		octets = NET16(four->udp.len) - sizeof(struct udphdr);
	} else {
		if ((void *)(six + 1) > end)
			return XDP_DROP;
		dress6(six, to);
		octets = NET16(six->udp.len) - sizeof(struct udphdr);
	}
	__builtin_memcpy(data, to->link, ETH_HLEN);
	bulk->slot[bulk->count & (BULK - 1)] = slot;
	bulk->bytes[bulk->count & (BULK - 1)] = octets;
	bulk->count++;
	return XDP_PASS;
}

/* A device was polled, and `work` packets came, POLLED at most: the end of the poll that has made copies, or the other end of a device has taken
 * so many of them, or all. */
SECTION("raw_tracepoint/napi_poll")
int express_polled(struct bpf_raw_tracepoint_args *given)
{
	__u32 zero = 0, work = (__u32)given->args[1];
	struct offload_poll *poll = map_lookup(&polls, &zero);
	if (!poll)
		return 0;
	if (poll->fresh)
		poll->copies = poll->slow ? poll->copies : 0;
	else
		poll->copies = work < POLLED || work > poll->copies ? 0 : poll->copies - work;
	poll->fresh = 0;
	return 0;
}

/* Frames were given to a device: arguments are the device that they came from, the device, how many it took, how many it did not, why. */
SECTION("raw_tracepoint/xdp_devmap_xmit")
int express_flushed(struct bpf_raw_tracepoint_args *given)
{
	__u32 zero = 0;
	struct express_bulk *bulk = map_lookup(&bulks, &zero);
	__u32 sent = (__u32)given->args[2];
	if (!bulk)
		return 0;
	for (__u32 i = 0; i < BULK; i++) {
		__u32 slot, chosen;
		struct copies_counters *now;
		struct offload_set *set;
		if (i >= bulk->count)
			break;
		slot = bulk->slot[i];
		chosen = slot / OFFLOAD_RECEIVERS;
		now = map_lookup(&counters, &slot);
		set = map_lookup(&sets, &chosen);
		if (!now || !set)
			continue;
		if (i < sent) {
			__sync_fetch_and_add(&now->sent, 1);
			__sync_fetch_and_add(&now->sent_bytes, bulk->bytes[i]);
		} else {
			__sync_fetch_and_add(&now->no_buffer, 1);
			set->on = 0;
		}
	}
	bulk->count = 0;
	return 0;
}

char terms[] SECTION("license") = "Apache-2.0"; /* no helper of the kernel that asks for more */
