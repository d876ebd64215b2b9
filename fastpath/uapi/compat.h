/* What Cython cannot say: compiler built-ins, static asserts on what the kernel ABI promises, constants that old libc headers lack.
 * Called by: atomics.pxd and the .pxd files of uapi/. Must never hold logic: a function here is one built-in with a name. */
#ifndef SAMPLICATOR_COMPAT_H
#define SAMPLICATOR_COMPAT_H

#include <errno.h>
#include <linux/bpf.h>
#include <linux/errqueue.h>
#include <linux/filter.h>
#include <linux/if_packet.h>
#include <linux/sock_diag.h>
#include <linux/sockios.h>
#include <netinet/in.h>
#include <netinet/udp.h>
#include <poll.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#ifndef UDP_SEGMENT
#define UDP_SEGMENT 103 /* include/uapi/linux/udp.h, 4.18 */
#endif
#ifndef UDP_GRO
#define UDP_GRO 104 /* include/uapi/linux/udp.h, 5.0 */
#endif

_Static_assert(sizeof(struct sockaddr_in) == 16, "ip(7)");
_Static_assert(sizeof(struct sockaddr_in6) == 28, "ipv6(7)");
_Static_assert(offsetof(struct tpacket_block_desc, hdr.bh1.block_status) == 8, "packet(7)");
_Static_assert(offsetof(struct tpacket_block_desc, hdr.bh1.num_pkts) == 12, "packet(7)");
_Static_assert(offsetof(struct tpacket_block_desc, hdr.bh1.blk_len) == 20, "packet(7)");
_Static_assert(offsetof(struct tpacket_block_desc, hdr.bh1.ts_first_pkt) == 32, "packet(7)");
_Static_assert(sizeof(struct tpacket_block_desc) == 48, "packet(7)");
_Static_assert(offsetof(struct tpacket3_hdr, tp_snaplen) == 12 && offsetof(struct tpacket3_hdr, tp_status) == 20, "packet(7)");
_Static_assert(offsetof(struct tpacket3_hdr, tp_mac) == 24 && offsetof(struct tpacket3_hdr, tp_net) == 26, "packet(7)");
_Static_assert(TPACKET3_HDRLEN == 68 && offsetof(struct tpacket2_hdr, tp_status) == 0, "packet(7)");
_Static_assert(sizeof(struct sockaddr_ll) == 20, "packet(7)");
_Static_assert(sizeof(struct iovec) == 2 * sizeof(void *), "readv(2)");
_Static_assert(sizeof(struct sock_extended_err) == 16, "ip(7), IP_RECVERR");
_Static_assert(sizeof(struct timespec) == 16, "64-bit time only");
_Static_assert(sizeof(size_t) == 8, "64-bit only: counters are single stores");

#define smp_likely(x) __builtin_expect(!!(x), 1)
#define smp_unlikely(x) __builtin_expect(!!(x), 0)

static inline uint64_t smp_load64(const uint64_t *p) { return __atomic_load_n(p, __ATOMIC_RELAXED); }
static inline void smp_store64(uint64_t *p, uint64_t v) { __atomic_store_n(p, v, __ATOMIC_RELAXED); }
static inline uint32_t smp_load32(const uint32_t *p) { return __atomic_load_n(p, __ATOMIC_RELAXED); }
static inline void smp_store32(uint32_t *p, uint32_t v) { __atomic_store_n(p, v, __ATOMIC_RELAXED); }
static inline uint32_t smp_load32_acquire(const uint32_t *p) { return __atomic_load_n(p, __ATOMIC_ACQUIRE); }
static inline void smp_store32_release(uint32_t *p, uint32_t v) { __atomic_store_n(p, v, __ATOMIC_RELEASE); }
static inline uint32_t smp_fence_load32(const uint32_t *p)
{
	__atomic_thread_fence(__ATOMIC_ACQUIRE);
	return __atomic_load_n(p, __ATOMIC_RELAXED);
}
static inline void smp_fence(void) { __atomic_thread_fence(__ATOMIC_SEQ_CST); }
#ifdef __x86_64__
#define SMP_STORES_IN_ORDER 1 /* Intel SDM 3A 9.2: another processor's stores are seen in their order */
#else
#define SMP_STORES_IN_ORDER 0
#endif
static inline void smp_fence_release(void) { __atomic_thread_fence(__ATOMIC_RELEASE); }
static inline void *smp_load_acquire(void *const *p) { return __atomic_load_n(p, __ATOMIC_ACQUIRE); }
static inline void smp_store_release(void **p, void *v) { __atomic_store_n(p, v, __ATOMIC_RELEASE); }
static inline void *smp_exchange(void **p, void *v) { return __atomic_exchange_n(p, v, __ATOMIC_ACQ_REL); }
static inline int smp_change32(uint32_t *p, uint32_t old, uint32_t v) {
    return __atomic_compare_exchange_n(p, &old, v, 0, __ATOMIC_ACQ_REL, __ATOMIC_ACQUIRE);
}
static inline int smp_change64(uint64_t *p, uint64_t old, uint64_t v) {
    return __atomic_compare_exchange_n(p, &old, v, 0, __ATOMIC_ACQ_REL, __ATOMIC_ACQUIRE);
}
static inline void smp_count(uint64_t *p) { __atomic_fetch_add(p, 1, __ATOMIC_RELAXED); }
static inline uint64_t smp_load64_acquire(const uint64_t *p) { return __atomic_load_n(p, __ATOMIC_ACQUIRE); }
static inline void smp_store64_release(uint64_t *p, uint64_t v) { __atomic_store_n(p, v, __ATOMIC_RELEASE); }
/* struct sched_attr of sched_setattr(2) as Linux 3.14 made it, and the calls, which libc does not declare before glibc 2.41. */
#define THREAD_SCHEDULE_BYTES 48
struct thread_schedule {
    uint32_t size, policy;
    uint64_t flags;
    int32_t nice;
    uint32_t priority;
    uint64_t runtime, deadline, period;
};
_Static_assert(sizeof(struct thread_schedule) == THREAD_SCHEDULE_BYTES, "struct sched_attr");
static inline int thread_schedule_get(struct thread_schedule *now) {
    return (int)syscall(SYS_sched_getattr, 0, now, THREAD_SCHEDULE_BYTES, 0);
}
static inline int thread_schedule_set(struct thread_schedule *wanted) { return (int)syscall(SYS_sched_setattr, 0, wanted, 0); }

/* bpf(2) on one element of a map, which libc does not declare. value NULL: it is deleted. */
static inline int bpf_map_set(int map, const void *key, const void *value, uint64_t flags) {
    union bpf_attr what;
    memset(&what, 0, sizeof(what));
    what.map_fd = (uint32_t)map;
    what.key = (uint64_t)(uintptr_t)key;
    what.value = (uint64_t)(uintptr_t)value;
    what.flags = flags;
    return (int)syscall(SYS_bpf, value ? BPF_MAP_UPDATE_ELEM : BPF_MAP_DELETE_ELEM, &what, sizeof(what));
}

static inline int smp_errno(void) { return errno; }

#endif
