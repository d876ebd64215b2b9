/* Headers of the packets that our BPF programs change, and the sums over them. Called by the .bpf.c files. */
#ifndef SAMPLICATOR_HEADS_H
#define SAMPLICATOR_HEADS_H

#include <linux/if_ether.h>
#include <linux/ip.h>
#include <linux/ipv6.h>
#include <linux/udp.h>

#include "bpf.h"

/* One's complement sums of 16 bit words in network order, as they lie in memory. */
INLINE __u32 folded(__u32 sum)
{
	sum = (sum & 0xffff) + (sum >> 16);
	return (sum & 0xffff) + (sum >> 16);
}

INLINE __u32 sum_of(const void *octets, int n)
{
	const __u32 *words = octets;
	__u64 sum = 0;
	UNROLLED
	for (int i = 0; i < n; i++)
		sum += words[i];
	sum = (sum & 0xffffffff) + (sum >> 32);
	sum = (sum & 0xffffffff) + (sum >> 32);
	return folded((__u32)(sum & 0xffff) + (__u32)(sum >> 16));
}

/* An IPv4 address in IPv4-mapped form. */
INLINE void map4(__u8 *to, __be32 address)
{
	__builtin_memset(to, 0, 10);
	to[10] = to[11] = 0xff;
	__builtin_memcpy(to + 12, &address, 4);
}

struct head4 {
	struct ethhdr link;
	struct iphdr ip;
	struct udphdr udp;
} __attribute__((packed, aligned(2)));

struct head6 {
	struct ethhdr link;
	struct ipv6hdr ip;
	struct udphdr udp;
} __attribute__((packed, aligned(2)));

#endif
