/* How the programs of ingress offload read the headers of a packet: by the helper only, so that it needs not be in one piece. Called by the .bpf.c files, which
 * say which helper that is: `load_bytes`. */
#ifndef SAMPLICATOR_READ_H
#define SAMPLICATOR_READ_H

#include <linux/in.h>

#include "heads.h"
#include "offload.h"

#define EXTENSIONS 4 /* headers of IPv6 before UDP */

typedef long (*const helper_load_bytes)(const void *packet, __u32 offset, void *to, __u32 length);

/* What is known of a packet that can be a session's. head: as it came; a copy's is made of it. */
struct found {
	struct offload_place place;
	struct offload_key key;
	__u8 pad[2] __attribute__((aligned(8))); /* so that IP is aligned behind it */
	__u8 head[sizeof(struct head6)];
	__u32 size;	/* of the head */
	__u32 length;	/* bytes of the payload */
	__u32 packet;	/* bytes of its longest IP packet, when it is segmented */
	__u32 segment;	/* bytes of the payload of its segments, 0 = it is one datagram */
	__u8 six, whole; /* whole: it can be copied */
};

/* Ports of a UDP header elsewhere than usual. */
INLINE int ports_at(const void *packet, struct found *out, __u32 offset)
{
	__be16 ports[2];
	if (load_bytes(packet, offset, ports, 4))
		return 0;
	out->key.port = ports[0];
	out->place.port = ports[1];
	return 1;
}

/* Reads the headers of a UDP datagram, or of the fragment that it begins in; 0: it is none, or says something strange of its length. */
INLINE int read4(const void *packet, struct found *out)
{
	struct head4 *head = (void *)out->head;
	__u32 length, ip_bytes;
	if (load_bytes(packet, 0, out->head, sizeof(*head)))
		return 0;
	ip_bytes = (*(__u8 *)&head->ip & 15) * 4;
	if (*(__u8 *)&head->ip >> 4 != 4 || ip_bytes < 20 || head->ip.protocol != IPPROTO_UDP || head->ip.frag_off & NET16(0x1fff))
		return 0;
	map4(out->key.address, head->ip.saddr);
	map4(out->place.address, head->ip.daddr);
	if (ip_bytes != 20 || head->ip.frag_off & NET16(0x2000))
		return ports_at(packet, out, ETH_HLEN + ip_bytes);
	length = NET16(head->ip.tot_len);
	if (length < 28 || NET16(head->udp.len) > length - 20 || sum_of(out->head + ETH_HLEN, 5) != 0xffff)
		return 0;
	out->key.port = head->udp.source;
	out->place.port = head->udp.dest;
	out->length = length - 28;
	out->size = sizeof(*head);
	out->whole = head->udp.check != 0 && NET16(head->udp.len) == length - 20;
	return 1;
}

/* The ports of a UDP header behind extension headers (RFC 8200, section 4), if this is where the datagram begins. */
INLINE int ports_behind(const void *packet, struct found *out, __u8 kind)
{
	__u32 offset = ETH_HLEN + 40;
	UNROLLED
	for (int i = 0; i < EXTENSIONS; i++) {
		__u8 head[4];
		if (kind == IPPROTO_UDP)
			return ports_at(packet, out, offset);
		if (load_bytes(packet, offset, head, 4))
			return 0;
		if (kind == IPPROTO_FRAGMENT) {
			if (head[2] || head[3] & 0xf8)
				return 0;
			offset += 8;
		} else if (kind == IPPROTO_HOPOPTS || kind == IPPROTO_ROUTING || kind == IPPROTO_DSTOPTS) {
			offset += (head[1] + 1) * 8;
		} else {
			return 0;
		}
		kind = head[0];
	}
	return 0;
}

INLINE int read6(const void *packet, struct found *out)
{
	struct head6 *head = (void *)out->head;
	__u32 length;
	if (load_bytes(packet, 0, out->head, sizeof(*head)))
		return 0;
	if (out->head[ETH_HLEN] >> 4 != 6)
		return 0;
	__builtin_memcpy(out->key.address, out->head + ETH_HLEN + 8, 16);
	__builtin_memcpy(out->place.address, out->head + ETH_HLEN + 24, 16);
	if (!*(__u64 *)out->key.address && *(__u32 *)(out->key.address + 8) == NET32(0xffff))
		return 0; /* looks like IPv4 */
	out->six = 1;
	if (head->ip.nexthdr != IPPROTO_UDP)
		return ports_behind(packet, out, head->ip.nexthdr);
	length = NET16(head->ip.payload_len);
	if (length < 8 || NET16(head->udp.len) > length || !head->udp.check)
		return 0;
	out->key.port = head->udp.source;
	out->place.port = head->udp.dest;
	out->length = length - 8;
	out->size = sizeof(*head);
	out->whole = NET16(head->udp.len) == length;
	return 1;
}

#endif
