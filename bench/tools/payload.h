/* The benchmark's payload: written by loadgen, verified by sink (and by the system tests).
 *
 *   offset  0  u32 big-endian  magic: "SMPL", or "SMPT" when a send time follows
 *           4  u32 big-endian  exporter index
 *           8  u64 big-endian  sequence of that exporter, from 0
 *          16  u32 big-endian  length of the whole payload
 *         [20  u64 big-endian  CLOCK_REALTIME ns at the send call, only with "SMPT"]
 *          20 (28)             64-bit little-endian words: mix(exporter, sequence) + i * STEP, i from 0; the last one cut
 *
 * A payload shorter than its header carries a prefix of it. One shorter than 16 bytes has no whole sequence, so it takes none:
 * its sequence field is all zero and the exporter's sequence does not advance. */
#ifndef BENCH_PAYLOAD_H
#define BENCH_PAYLOAD_H

#include <endian.h>
#include <stdint.h>
#include <string.h>

#define PAYLOAD_MAGIC 0x534d504cu
#define PAYLOAD_MAGIC_TIMED 0x534d5054u
#define PAYLOAD_SEQUENCED 16u
#define PAYLOAD_HEADER 20u
#define PAYLOAD_HEADER_TIMED 28u
#define PAYLOAD_STEP 0x9e3779b97f4a7c15ull

static inline uint64_t payload_mix(uint32_t exporter, uint64_t sequence)
{
	uint64_t z = sequence * PAYLOAD_STEP + ((uint64_t)exporter << 32 | exporter);
	z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
	z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
	return z ^ (z >> 31);
}

static inline uint32_t load_be32(const uint8_t *p)
{
	uint32_t v;
	memcpy(&v, p, 4);
	return be32toh(v);
}

static inline uint64_t load_be64(const uint8_t *p)
{
	uint64_t v;
	memcpy(&v, p, 8);
	return be64toh(v);
}

static inline void store_be32(uint8_t *p, uint32_t v)
{
	v = htobe32(v);
	memcpy(p, &v, 4);
}

static inline void store_be64(uint8_t *p, uint64_t v)
{
	v = htobe64(v);
	memcpy(p, &v, 8);
}

/* `out` has room for length + 28 bytes: the header is written whole, what lies past `length` is not sent. */
static inline void payload_write(uint8_t *out, uint32_t length, uint32_t exporter, uint64_t sequence, int timed, uint64_t now_ns)
{
	uint32_t at = timed ? PAYLOAD_HEADER_TIMED : PAYLOAD_HEADER;
	uint64_t word;
	if (length < PAYLOAD_SEQUENCED)
		sequence = 0;
	word = payload_mix(exporter, sequence);
	store_be32(out, timed ? PAYLOAD_MAGIC_TIMED : PAYLOAD_MAGIC);
	store_be32(out + 4, exporter);
	store_be64(out + 8, sequence);
	store_be32(out + 16, length);
	if (timed)
		store_be64(out + 20, now_ns);
	for (; at < length; at += 8, word += PAYLOAD_STEP) {
		uint64_t w = htole64(word);
		memcpy(out + at, &w, 8);
	}
}

/* 1 when the bytes after the header are the ones payload_write made. */
static inline int payload_right(const uint8_t *in, uint32_t length, uint32_t exporter, uint64_t sequence, uint32_t header)
{
	uint64_t word = payload_mix(exporter, sequence), different = 0, w;
	uint32_t at = header;
	for (; at + 8 <= length; at += 8, word += PAYLOAD_STEP) {
		memcpy(&w, in + at, 8);
		different |= le64toh(w) ^ word;
	}
	if (at < length) {
		uint8_t last[8];
		word = htole64(word);
		memcpy(last, &word, 8);
		different |= (uint64_t)(memcmp(in + at, last, length - at) != 0);
	}
	return different == 0;
}

/* For replayed captures, whose payloads carry no sequence: a sum of these over all datagrams does not depend on order. */
static inline uint64_t payload_hash(const uint8_t *in, uint32_t length)
{
	uint64_t h = PAYLOAD_STEP ^ length, w;
	uint32_t at = 0;
	for (; at + 8 <= length; at += 8) {
		memcpy(&w, in + at, 8);
		h = (h ^ le64toh(w)) * 0xff51afd7ed558ccdull;
		h ^= h >> 32;
	}
	for (; at < length; at++)
		h = (h ^ in[at]) * 0xff51afd7ed558ccdull;
	return h ^ (h >> 29);
}

#endif
