/* What offload.bpf.c and the worker have in common: values of the maps, and what a record of the ring buffer begins with. Host order, but
 * for what is on a wire. */
#ifndef SAMPLICATOR_OFFLOAD_H
#define SAMPLICATOR_OFFLOAD_H

#include "copies.h"

enum {
	OFFLOAD_SETS = 32,		/* sets of receivers that a worker has */
	OFFLOAD_RECEIVERS = COPIES_OF_CALL, /* of one set */
	OFFLOAD_SESSIONS = 65536,	/* exporter sessions that a worker has */
	OFFLOAD_WORKERS = COPIES_WORKERS,
	OFFLOAD_PLACES = 4096,		/* interface, address and port that some listener listens at */
	OFFLOAD_ON = 1,			/* bit of `word` */
};

/* Where a listener listens. IPv4 addresses are in IPv4-mapped form. group: the address is one of multicast. */
struct offload_place {
	__u32 device;
	__u8 address[16];
	__be16 port;
	__u16 group;
};

struct offload_key {
	__u8 address[16];
	__be16 port;
	__u16 listener;
};

/* word: when the last datagram came that the kernel let pass to the sockets, or with OFFLOAD_ON: that it passes none. Nanoseconds of
 * CLOCK_REALTIME, without the last bit. The program and one worker write it, both only by compare and exchange. */
struct offload_session {
	copies_u64 word;
	__u32 set; /* written while the session is off */
	__u32 spare;
};

/* taken: datagrams that were copied; unseen: those of them that the ring buffer had no room for. on: 0 stops all sessions of the set, for
 * good. limit: bytes of the longest IP packet. The slots of its receivers and their counters begin at OFFLOAD_RECEIVERS times its own. */
struct offload_set {
	copies_u64 taken, taken_bytes, unseen, unseen_bytes;
	__u32 on, count, limit, ring; /* ring: number of the worker */
};

/* A datagram that was copied, or a run of them with `segment` bytes each (the last may be shorter). */
struct offload_record {
	__u8 address[16];
	__be16 port;
	__u16 listener;
	__u8 six;
	__u8 ttl;
	__u8 tos;
	__u8 spare;
	__u32 length;
	__u32 segment;
	__u32 session;
	__u32 set;
	copies_u64 arrival_ns;
	__u8 payload[];
};

#endif
