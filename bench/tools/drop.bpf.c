/* The cheap end of the benchmark's way: counts and drops the copies at the collector's device, before its IP stack. The same program
 * text for packets (tc) and for frames that XDP redirected (a device takes those only with a program of its own). */
#include "../../fastpath/bpf/bpf.h"

#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/ipv6.h>
#include <linux/pkt_cls.h>
#include <linux/udp.h>

#define RECEIVER_PORT 9995 /* lab.py */

/* packets: what crossed the device, a run that crosses whole is one. bytes: UDP payload. */
struct seen {
	__u64 packets, bytes;
};

struct {
	NUMBER(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	NUMBER(max_entries, 1);
	TYPE(key, __u32);
	TYPE(value, struct seen);
} seen SECTION(".maps");

/* Payload bytes of a copy; below 0: it is none. */
INLINE long payload_of(void *data, void *end, long whole)
{
	struct ethhdr *link = data;
	void *next = link + 1;
	struct udphdr *udp;
	if (next > end)
		return -1;
	if (link->h_proto == NET16(ETH_P_IP)) {
		struct iphdr *ip = next;
		if ((void *)(ip + 1) > end || ip->protocol != IPPROTO_UDP || ip->ihl != 5)
			return -1;
		udp = (void *)(ip + 1);
	} else if (link->h_proto == NET16(ETH_P_IPV6)) {
		struct ipv6hdr *ip = next;
		if ((void *)(ip + 1) > end || ip->nexthdr != IPPROTO_UDP)
			return -1;
		udp = (void *)(ip + 1);
	} else {
		return -1;
	}
	if ((void *)(udp + 1) > end || udp->dest != NET16(RECEIVER_PORT))
		return -1;
	return whole - ((long)(udp + 1) - (long)data);
}

INLINE int count(long bytes)
{
	__u32 zero = 0;
	struct seen *now = map_lookup(&seen, &zero);
	if (bytes < 0 || !now)
		return 0;
	now->packets++;
	now->bytes += (__u64)bytes;
	return 1;
}

SECTION("tc")
int drop_packets(struct __sk_buff *skb)
{
	return count(payload_of((void *)(long)skb->data, (void *)(long)skb->data_end, skb->len)) ? TC_ACT_SHOT : TC_ACT_UNSPEC;
}

SECTION("xdp")
int drop_frames(struct xdp_md *frame)
{
	void *data = (void *)(long)frame->data, *end = (void *)(long)frame->data_end;
	return count(payload_of(data, end, (long)end - (long)data)) ? XDP_DROP : XDP_PASS;
}

char terms[] SECTION("license") = "Apache-2.0"; /* no helper of the kernel that asks for more */
