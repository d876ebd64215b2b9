/* The bare loop's second way in: a TPACKET_V3 ring on the device, with a socket filter on the listener's port. Payloads are read in
 * place; a block goes back to the kernel when all its datagrams have been relayed. Only whole (unfragmented) datagrams pass the filter.
 * The caller (bench/lab.py) drops the same packets at the device's ingress hook, after the ring has seen them. */
#ifndef BENCH_BARE_RING_H
#define BENCH_BARE_RING_H

#include "bare.h"

#include <linux/filter.h>
#include <linux/if_packet.h>
#include <net/ethernet.h>
#include <net/if.h>
#include <poll.h>
#include <sys/mman.h>

#ifndef PACKET_IGNORE_OUTGOING
#define PACKET_IGNORE_OUTGOING 23
#endif
#define RING_BLOCK_BYTES (1u << 20)

static uint8_t *ring;
static uint32_t ring_blocks = 256;

static void ring_filter(int fd, int family, uint16_t port)
{
	struct sock_filter v4[] = {
	    BPF_STMT(BPF_LD | BPF_H | BPF_ABS, 12), BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, ETHERTYPE_IP, 0, 8),
	    BPF_STMT(BPF_LD | BPF_B | BPF_ABS, 23), BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, IPPROTO_UDP, 0, 6),
	    BPF_STMT(BPF_LD | BPF_H | BPF_ABS, 20), BPF_JUMP(BPF_JMP | BPF_JSET | BPF_K, 0x3fff, 4, 0),
	    BPF_STMT(BPF_LDX | BPF_B | BPF_MSH, 14), BPF_STMT(BPF_LD | BPF_H | BPF_IND, 16),
	    BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, port, 0, 1), BPF_STMT(BPF_RET | BPF_K, 0x40000), BPF_STMT(BPF_RET | BPF_K, 0)};
	struct sock_filter v6[] = {
	    BPF_STMT(BPF_LD | BPF_H | BPF_ABS, 12), BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, ETHERTYPE_IPV6, 0, 5),
	    BPF_STMT(BPF_LD | BPF_B | BPF_ABS, 20), BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, IPPROTO_UDP, 0, 3),
	    BPF_STMT(BPF_LD | BPF_H | BPF_ABS, 56), BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, port, 0, 1),
	    BPF_STMT(BPF_RET | BPF_K, 0x40000), BPF_STMT(BPF_RET | BPF_K, 0)};
	struct sock_fprog program = {sizeof v4 / sizeof *v4, v4};
	if (family == AF_INET6)
		program = (struct sock_fprog){sizeof v6 / sizeof *v6, v6};
	if (setsockopt(fd, SOL_SOCKET, SO_ATTACH_FILTER, &program, sizeof program) < 0)
		die("SO_ATTACH_FILTER: %s", strerror(errno));
}

static int ring_open(const char *device, const endpoint *at)
{
	int version = TPACKET_V3, one = 1, fd = socket(AF_PACKET, SOCK_RAW | SOCK_CLOEXEC, 0);
	struct tpacket_req3 request = {.tp_block_size = RING_BLOCK_BYTES, .tp_block_nr = ring_blocks, .tp_frame_size = 2048,
	    .tp_frame_nr = RING_BLOCK_BYTES / 2048 * ring_blocks, .tp_retire_blk_tov = 1};
	struct sockaddr_ll bound = {.sll_family = AF_PACKET, .sll_protocol = htons(ETH_P_ALL)};
	if (fd < 0 || setsockopt(fd, SOL_PACKET, PACKET_VERSION, &version, sizeof version) < 0)
		die("AF_PACKET: %s", strerror(errno));
	setsockopt(fd, SOL_PACKET, PACKET_IGNORE_OUTGOING, &one, sizeof one);
	ring_filter(fd, at->sa.sa_family, endpoint_port(at));
	if (setsockopt(fd, SOL_PACKET, PACKET_RX_RING, &request, sizeof request) < 0)
		die("PACKET_RX_RING: %s", strerror(errno));
	ring = mmap(NULL, (size_t)RING_BLOCK_BYTES * ring_blocks, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, fd, 0);
	if (ring == MAP_FAILED)
		die("mmap: %s", strerror(errno));
	bound.sll_ifindex = (int)if_nametoindex(device);
	if (bind(fd, (struct sockaddr *)&bound, sizeof bound) < 0)
		die("bind to %s: %s", device, strerror(errno));
	return fd;
}

/* Frame -> entry i of the batch. Returns 0 when its lengths do not fit. */
static int ring_take(const struct tpacket3_hdr *frame, uint32_t i)
{
	uint8_t *ip = (uint8_t *)(uintptr_t)frame + frame->tp_net, *udp;
	uint32_t have = frame->tp_snaplen - (uint32_t)(frame->tp_net - frame->tp_mac), header;
	uint16_t udp_length;
	memset(&from[i], 0, sizeof from[i]);
	if (ip[0] >> 4 == 4) {
		header = (ip[0] & 15u) * 4;
		from[i].v4.sin_family = AF_INET;
		memcpy(&from[i].v4.sin_addr, ip + 12, 4);
		memcpy(&from[i].v4.sin_port, ip + header, 2);
	} else {
		header = 40;
		from[i].v6.sin6_family = AF_INET6;
		memcpy(&from[i].v6.sin6_addr, ip + 8, 16);
		memcpy(&from[i].v6.sin6_port, ip + header, 2);
	}
	udp = ip + header;
	memcpy(&udp_length, udp + 4, 2);
	length[i] = ntohs(udp_length) - 8u;
	data[i] = udp + 8;
	return header + 8 + length[i] <= have;
}

static void run_ring(int fd, void (*relay)(uint32_t))
{
	uint32_t block = 0;
	while (!stop_asked) {
		struct tpacket_block_desc *b = (struct tpacket_block_desc *)(void *)(ring + (size_t)block * RING_BLOCK_BYTES);
		struct tpacket3_hdr *frame;
		uint32_t left, n = 0;
		if (!(__atomic_load_n(&b->hdr.bh1.block_status, __ATOMIC_ACQUIRE) & TP_STATUS_USER)) {
			struct pollfd p = {fd, POLLIN, 0};
			poll(&p, 1, -1);
			continue;
		}
		frame = (struct tpacket3_hdr *)(void *)((uint8_t *)b + b->hdr.bh1.offset_to_first_pkt);
		for (left = b->hdr.bh1.num_pkts; left; left--) {
			n += (uint32_t)ring_take(frame, n);
			if (n == batch_max || (left == 1 && n)) {
				datagrams += n;
				batches++;
				relay(n);
				n = 0;
			}
			frame = (struct tpacket3_hdr *)(void *)((uint8_t *)frame + frame->tp_next_offset);
		}
		__atomic_store_n(&b->hdr.bh1.block_status, TP_STATUS_KERNEL, __ATOMIC_RELEASE);
		block = block + 1 == ring_blocks ? 0 : block + 1;
	}
}

#endif
