/* The maps of ingress offload: the programs that copy sessions' datagrams where they come in have them in common, and the worker fills them.
 * Called by the .bpf.c files; who loads a second file gives it the maps of the first one. */
#ifndef SAMPLICATOR_MAPS_H
#define SAMPLICATOR_MAPS_H

#include "bpf.h"
#include "offload.h"

struct {
	NUMBER(type, BPF_MAP_TYPE_HASH);
	NUMBER(max_entries, OFFLOAD_PLACES);
	TYPE(key, struct offload_place);
	TYPE(value, struct offload_listener);
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

struct {
	NUMBER(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	NUMBER(max_entries, 1);
	TYPE(key, __u32);
	TYPE(value, struct offload_poll);
} polls SECTION(".maps");

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

static __u64 (*const ktime_get_ns)(void) = (void *)BPF_FUNC_ktime_get_ns;

#define POLL_NS 5000000		/* a poll is over by then, and its copies have left, unless this CPU has to see to it */
#define SLOW_NS 200000000	/* by then it has, or nobody tells us */

/* Whether the devices that the set's copies leave by have room for them, as far as can be told: a device is given what a poll has made when that
 * is over, or has taken nothing from its queue until then. A device that several CPUs send by may have less. */
INLINE int has_room(const struct offload_set *set, __u32 datagrams)
{
	__u32 zero = 0, more = set->count * datagrams;
	struct offload_poll *poll = map_lookup(&polls, &zero);
	__u64 now;
	if (!set->room)
		return 1;
	if (!poll)
		return 0;
	now = ktime_get_ns();
	if (!poll->copies || now - poll->since_ns > (poll->slow ? SLOW_NS : POLL_NS)) {
		poll->copies = poll->slow = 0;
		poll->since_ns = now;
	}
	if (poll->copies + more > set->room)
		return 0;
	poll->copies += more;
	poll->slow |= set->slow;
	poll->fresh = 1;
	return 1;
}

#endif
