/* What a BPF program of ours needs besides the kernel's own numbers: sections, map declarations (as libbpf reads them from BTF) and
 * helpers by number (include/uapi/linux/bpf.h). Called by the .bpf.c files. Must never hold logic: no program is made here. */
#ifndef SAMPLICATOR_BPF_H
#define SAMPLICATOR_BPF_H

#include <linux/bpf.h>

#define SECTION(name) __attribute__((section(name), used))
#define INLINE static inline __attribute__((always_inline))
/* Before a loop: without CAP_PERFMON the kernel's verifier follows both ways of each branch, the end of a loop never comes, and it says "The
 * sequence of 8193 jumps is too complex". What compilers unroll by themselves differs. */
#define UNROLLED _Pragma("clang loop unroll(full)")
#define NUMBER(field, value) int(*field)[value]
#define TYPE(field, type) typeof(type) *field
#define EACH(field, type) typeof(type) *field[]

#if __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
#define NET16(x) ((__be16)__builtin_bswap16((__u16)(x)))
#define NET32(x) ((__be32)__builtin_bswap32((__u32)(x)))
#else
#define NET16(x) ((__be16)(x))
#define NET32(x) ((__be32)(x))
#endif

static void *(*const map_lookup)(const void *map, const void *key) = (void *)BPF_FUNC_map_lookup_elem;

#endif
