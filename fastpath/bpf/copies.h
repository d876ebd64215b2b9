/* What copies.bpf.c and the worker have in common: a frame's call, and the values of the maps. Host order, but for what is on a wire. */
#ifndef SAMPLICATOR_COPIES_H
#define SAMPLICATOR_COPIES_H

#include <linux/types.h>

#ifdef __bpf__
typedef __u64 copies_u64;
#else
#include <stdint.h>
typedef uint64_t copies_u64; /* what the worker's atomics take */
#endif

enum {
	COPIES_OF_CALL = 64,	  /* receivers of one frame; a power of two */
	COPIES_WORKERS = 256,
	COPIES_SLOTS = COPIES_OF_CALL * COPIES_WORKERS,
	COPIES_KIND = 0x88b5,	  /* EtherType of local experiments (IEEE 802) */
	COPIES_ENOBUFS = 105,
	COPIES_XMIT_DROP = 1,	  /* NET_XMIT_DROP, include/linux/netdevice.h: the queueing discipline did */
	COPIES_XMIT_CN = 2,	  /* NET_XMIT_CN: it has too much; an interface that is down says this, too */
};

/* In the place of the link header, 14 bytes: who the packet behind it is for, the first `count` slots of this worker's. tos: for those
 * that keep it. token: of the process whose program it is for; several can be at one device. */
struct copies_call {
	__u32 token;
	__u16 worker;
	__u16 count;
	__u16 datagrams;
	__u8 six;
	__u8 tos;
	__be16 kind;
} __attribute__((packed, aligned(2)));

/* device: interface index. link: destination, source, EtherType. address: IPv4 has the first 4 bytes. set_tos 0: the TOS stays. */
struct copies_receiver {
	__u32 device;
	__be32 address[4];
	__be16 port;
	__u8 ttl;
	__u8 set_tos;
	__u8 tos;
	__u8 link[14];
	__u8 spare[1];
};

/* Datagrams and payload bytes. no_buffer: a queue was full. */
struct copies_counters {
	copies_u64 sent, sent_bytes, no_buffer, other;
};

#endif
