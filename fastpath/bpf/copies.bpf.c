/* Copies made in the kernel: one frame in, a clone for each of its receivers out, with that receiver's addresses, port, TTL and TOS.
 *
 * `copy_frames` is where packets leave to the loopback device: what our workers hand over is a whole spoofed packet (or run, segmented
 * later by the device that it leaves by), in a link header that says which receivers it is for. Each clone is counted, by what became of
 * it, in a slot that is this worker's: when its send call returns, all is counted. What is not ours passes.
 *
 * Checksums. Of a frame from a worker the device computes the UDP checksum (the field has the pseudo header's sum, CHECKSUM_PARTIAL): new
 * addresses go into that sum. A field of 0 over IPv4 stays 0. The IPv4 header's checksum is computed anew.
 *
 * Needs no helper under GPL, no kernel types: packets and maps only. Linux 6.1 has all of it. */
#include "bpf.h"

#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/ipv6.h>
#include <linux/pkt_cls.h>
#include <linux/udp.h>

#include "copies.h"
#include "heads.h"

#define NOBODY 0 /* no interface has this index: what is redirected there is freed (net/core/filter.c, skb_do_redirect) */

static long (*const clone_redirect)(struct __sk_buff *skb, __u32 device, __u64 flags) = (void *)BPF_FUNC_clone_redirect;
static long (*const redirect)(__u32 device, __u64 flags) = (void *)BPF_FUNC_redirect;
static long (*const skb_pull_data)(struct __sk_buff *skb, __u32 length) = (void *)BPF_FUNC_skb_pull_data;

/* A worker's slots follow each other; it alone writes the receivers, and reads what is counted, through the maps' memory. */
struct {
	NUMBER(type, BPF_MAP_TYPE_ARRAY);
	NUMBER(max_entries, COPIES_SLOTS);
	NUMBER(map_flags, BPF_F_MMAPABLE);
	TYPE(key, __u32);
	TYPE(value, struct copies_receiver);
} receivers SECTION(".maps");

/* Of this process: its frames have it, and no other's. 0: not said yet. */
struct {
	NUMBER(type, BPF_MAP_TYPE_ARRAY);
	NUMBER(max_entries, 1);
	TYPE(key, __u32);
	TYPE(value, __u32);
} token SECTION(".maps");

struct {
	NUMBER(type, BPF_MAP_TYPE_ARRAY);
	NUMBER(max_entries, COPIES_SLOTS);
	NUMBER(map_flags, BPF_F_MMAPABLE);
	TYPE(key, __u32);
	TYPE(value, struct copies_counters);
} counters SECTION(".maps");

/* A checksum field that holds a sum (not its complement), with `from` in it replaced by `to`. */
INLINE __u16 resum(__u16 field, __u32 from, __u32 to)
{
	return (__u16)folded((__u32)field + to + (~from & 0xffff));
}

/* Writes what this receiver has of its own over what the one before it had; false: the packet has no such header. */
INLINE int dress4(struct __sk_buff *skb, const struct copies_receiver *to, __u8 tos)
{
	struct head4 *head = (void *)(long)skb->data;
	__u32 before, after;
	if ((void *)(head + 1) > (void *)(long)skb->data_end)
		return 0;
	__builtin_memcpy(&head->link, to->link, ETH_HLEN);
	before = folded((head->ip.daddr & 0xffff) + (head->ip.daddr >> 16));
	after = folded((to->address[0] & 0xffff) + (to->address[0] >> 16));
	if (head->udp.check)
		head->udp.check = resum(head->udp.check, before, after);
	head->ip.daddr = to->address[0];
	head->udp.dest = to->port;
	if (to->ttl)
		head->ip.ttl = to->ttl;
	head->ip.tos = to->set_tos ? to->tos : tos;
	head->ip.check = 0;
	head->ip.check = (__u16)~sum_of((void *)head + ETH_HLEN, 5);
	return 1;
}

INLINE int dress6(struct __sk_buff *skb, const struct copies_receiver *to, __u8 tos)
{
	struct head6 *head = (void *)(long)skb->data;
	__u32 before, after, first;
	if ((void *)(head + 1) > (void *)(long)skb->data_end)
		return 0;
	__builtin_memcpy(&head->link, to->link, ETH_HLEN);
	before = sum_of((void *)head + ETH_HLEN + 24, 4);
	after = sum_of(to->address, 4);
	head->udp.check = resum(head->udp.check, before, after);
	__builtin_memcpy(&head->ip.daddr, to->address, 16);
	head->udp.dest = to->port;
	if (to->ttl)
		head->ip.hop_limit = to->ttl;
	__builtin_memcpy(&first, &head->ip, 4);
	first = (first & ~NET32(0x0ff00000)) | NET32((__u32)(to->set_tos ? to->tos : tos) << 20);
	__builtin_memcpy(&head->ip, &first, 4);
	return 1;
}

INLINE void count(__u32 slot, long error, __u32 datagrams, __u32 bytes)
{
	struct copies_counters *now = map_lookup(&counters, &slot);
	int full = error == -COPIES_ENOBUFS || error == COPIES_XMIT_DROP || error == COPIES_XMIT_CN;
	if (!now)
		return;
	if (!error) {
		now->sent += datagrams;
		now->sent_bytes += bytes;
		return;
	}
	__sync_fetch_and_add(&now->no_buffer, full ? datagrams : 0); /* no pointer that hangs on a condition, without CAP_PERFMON */
	__sync_fetch_and_add(&now->other, full ? 0 : datagrams);
}

SECTION("tc")
int copy_frames(struct __sk_buff *skb)
{
	struct copies_call *call = (void *)(long)skb->data;
	__u32 first, many, datagrams, payload, overhead, six;
	__u32 zero = 0, *own = map_lookup(&token, &zero);
	__u8 tos;
	if (!own || !*own || (void *)(call + 1) > (void *)(long)skb->data_end || call->kind != NET16(COPIES_KIND) || call->token != *own)
		return TC_ACT_UNSPEC;
	first = call->worker * COPIES_OF_CALL;
	many = call->count;
	datagrams = call->datagrams;
	six = call->six;
	tos = call->tos;
	overhead = ETH_HLEN + (six ? 40 : 20) + 8;
	if (skb->len < overhead || skb_pull_data(skb, overhead))
		return (int)redirect(NOBODY, 0);
	payload = skb->len - overhead;
	for (__u32 i = 0; i < COPIES_OF_CALL && i < many; i++) {
		__u32 slot = first + i;
		struct copies_receiver *to = map_lookup(&receivers, &slot);
		if (!to || (six ? !dress6(skb, to, tos) : !dress4(skb, to, tos)))
			break;
		count(slot, clone_redirect(skb, to->device, 0), datagrams, payload);
	}
	return (int)redirect(NOBODY, 0); /* TC_ACT_SHOT would end the worker's send call with ENOBUFS, and a tcx has no TC_ACT_STOLEN */
}

char terms[] SECTION("license") = "Apache-2.0"; /* no helper of the kernel that asks for more */
