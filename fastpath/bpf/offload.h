/* What offload.bpf.c, express.bpf.c and the worker have in common: values of the maps, and what a record of the ring buffer begins with. Host order, but
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
	OFFLOAD_ON = 1,			/* bit of `word`; 12 bits behind it are the place, the rest is ... */
	OFFLOAD_PLACE = 0x1ffe,
	OFFLOAD_REST = 13, /* ... the time, or the set (13 bits), whether XDP may have it, and the set's `made` */
	OFFLOAD_EXPRESS = 1 << 26,
	OFFLOAD_MADE = 27,
	OFFLOAD_EXPRESS_PLACES = 2048,	/* places from here on are at interfaces where the XDP program is */
	OFFLOAD_OUTPUTS = 64,		/* interfaces that it can send by */
};

/* Where a listener is reached by an interface. IPv4 addresses are in IPv4-mapped form. */
struct offload_place {
	__u32 device;
	__u8 address[16];
	__be16 port;
	__u16 spare;
};

/* number: of the place, 1..4095. */
struct offload_listener {
	__u16 listener;
	__u16 number;
};

struct offload_key {
	__u8 address[16];
	__be16 port;
	__u16 listener;
};

/* word, off: when the last datagram came that passed to the sockets (nanoseconds of CLOCK_REALTIME, the lower 51 bits; 0: nobody knows),
 * and by which place. On: none that comes by this place passes; who gets them. All of it changes at one moment, by compare and exchange.
 * express: of a session that XDP may have, twice how many have passed XDP since, and 1 more while XDP copies it (express.bpf.c). */
struct offload_session {
	copies_u64 word, express;
};

/* taken: datagrams that were copied; unseen: those of them that the ring buffer had no room for. made: 1, 2 ...: of all sets of a worker,
 * which this one is; a session of another one is off. on: 0 stops all sessions of the set, for good. limit: bytes of the longest IP packet.
 * ring: number of the worker. room: so many copies may be made in one poll of a device, 0 = it does not matter; slow: what they are put into is
 * emptied by this CPU, poll by poll. The slots of its receivers and their counters begin at OFFLOAD_RECEIVERS times its own number. */
struct offload_set {
	copies_u64 taken, taken_bytes, unseen, made;
	__u32 on, count, limit, ring, room, slow;
};

/* Of a CPU: copies made that may still be in the way, since when (CLOCK_MONOTONIC); whether there was one since a device's poll ended last, and one
 * of them for a set that is `slow`. */
struct offload_poll {
	__u32 copies, fresh, slow, spare;
	copies_u64 since_ns;
};

static inline copies_u64 offload_off(copies_u64 arrival_ns, copies_u64 place)
{
	return arrival_ns << OFFLOAD_REST | (place & OFFLOAD_PLACE);
}

static inline copies_u64 offload_on(copies_u64 made, copies_u64 set, copies_u64 place, copies_u64 express)
{
	return made << OFFLOAD_MADE | express | set << OFFLOAD_REST | (place & OFFLOAD_PLACE) | OFFLOAD_ON;
}

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
