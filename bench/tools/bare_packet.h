/* The bare loop's AF_PACKET sends: link, IP and UDP header crafted here, runs as virtio-net GSO frames (UDP_L4), the checksum left to
 * the device (NEEDS_CSUM). Spoofed only. The next hop's link address is given on the command line: no neighbor look-up here. */
#ifndef BENCH_BARE_PACKET_H
#define BENCH_BARE_PACKET_H

#include "bare.h"

#include <linux/if_packet.h>
#include <linux/virtio_net.h>
#include <net/ethernet.h>
#include <net/if.h>
#include <sys/ioctl.h>

#ifndef VIRTIO_NET_HDR_GSO_UDP_L4
#define VIRTIO_NET_HDR_GSO_UDP_L4 5
#endif
#define VNET_BYTES 10 /* struct virtio_net_hdr, the form PACKET_VNET_HDR takes */

static int packet_fd = -1;
static uint8_t link_header[14];
static struct mmsghdr packet_messages[BATCH_MAX];
static struct iovec packet_pieces[BATCH_MAX * 2];
static uint8_t packet_headers[BATCH_MAX][VNET_BYTES + 14 + 40 + 8];
static uint32_t packet_weight[BATCH_MAX];
static uint16_t packet_id;

static void packet_open(const char *device, const char *next_hop, int bypass)
{
	struct ifreq request = {0};
	struct sockaddr_ll at = {.sll_family = AF_PACKET};
	int one = 1;
	snprintf(request.ifr_name, sizeof request.ifr_name, "%s", device);
	packet_fd = socket(AF_PACKET, SOCK_RAW | SOCK_CLOEXEC, 0); /* protocol 0: sends only */
	if (packet_fd < 0 || ioctl(packet_fd, SIOCGIFHWADDR, &request) < 0)
		die("AF_PACKET on %s: %s", device, strerror(errno));
	memcpy(link_header + 6, request.ifr_hwaddr.sa_data, 6);
	if (sscanf(next_hop, "%hhx:%hhx:%hhx:%hhx:%hhx:%hhx", &link_header[0], &link_header[1], &link_header[2], &link_header[3],
	           &link_header[4], &link_header[5]) != 6)
		die("not a link address: %s", next_hop);
	at.sll_ifindex = (int)if_nametoindex(device);
	if (setsockopt(packet_fd, SOL_PACKET, PACKET_VNET_HDR, &one, sizeof one) < 0)
		die("PACKET_VNET_HDR: %s", strerror(errno));
	if (bypass && setsockopt(packet_fd, SOL_PACKET, PACKET_QDISC_BYPASS, &one, sizeof one) < 0)
		die("PACKET_QDISC_BYPASS: %s", strerror(errno));
	if (bind(packet_fd, (struct sockaddr *)&at, sizeof at) < 0)
		die("bind to %s: %s", device, strerror(errno));
	socket_buffer(packet_fd, SO_SNDBUF, SO_SNDBUFFORCE, 4 << 20);
}

/* Headers of run r of session `source` for one receiver. Returns their length. */
static size_t packet_craft(uint8_t *h, const run *r, const endpoint *source, const endpoint *to)
{
	int v6 = to->sa.sa_family == AF_INET6;
	uint32_t ip_bytes = v6 ? 40 : 20;
	struct virtio_net_hdr vnet = {.flags = VIRTIO_NET_HDR_F_NEEDS_CSUM, .csum_start = (uint16_t)(14 + ip_bytes), .csum_offset = 6};
	uint8_t *ip = h + VNET_BYTES + 14;
	uint16_t udp[4] = {htons(endpoint_port(source)), htons(endpoint_port(to)), htons((uint16_t)(r->bytes + 8)), 0}, word;
	uint32_t sum;
	if (r->count > 1) {
		vnet.gso_type = VIRTIO_NET_HDR_GSO_UDP_L4;
		vnet.gso_size = (uint16_t)r->size;
		vnet.hdr_len = (uint16_t)(14 + ip_bytes + 8);
	}
	memcpy(h, &vnet, VNET_BYTES);
	memcpy(h + VNET_BYTES, link_header, 12);
	memset(ip, 0, ip_bytes);
	if (v6) {
		h[VNET_BYTES + 12] = 0x86;
		h[VNET_BYTES + 13] = 0xdd;
		ip[0] = 0x60;
		memcpy(ip + 4, &udp[2], 2);
		ip[6] = IPPROTO_UDP;
		ip[7] = (uint8_t)ttl;
		memcpy(ip + 8, &source->v6.sin6_addr, 16);
		memcpy(ip + 24, &to->v6.sin6_addr, 16);
		sum = sum_bytes(ip + 8, 32);
	} else {
		h[VNET_BYTES + 12] = 0x08;
		h[VNET_BYTES + 13] = 0x00;
		ip[0] = 0x45;
		word = htons((uint16_t)(r->bytes + 28));
		memcpy(ip + 2, &word, 2);
		word = htons(packet_id);
		packet_id = (uint16_t)(packet_id + r->count);
		memcpy(ip + 4, &word, 2);
		ip[8] = (uint8_t)ttl;
		ip[9] = IPPROTO_UDP;
		memcpy(ip + 12, &source->v4.sin_addr, 4);
		memcpy(ip + 16, &to->v4.sin_addr, 4);
		word = (uint16_t)~sum_folded(sum_bytes(ip, 20));
		memcpy(ip + 10, &word, 2);
		sum = sum_bytes(ip + 12, 8);
	}
	udp[3] = sum_folded(sum + htons(IPPROTO_UDP) + udp[2]); /* the pseudo header's sum; whoever segments completes it */
	memcpy(ip + ip_bytes, udp, 8);
	return VNET_BYTES + 14 + ip_bytes + 8;
}

static void relay_packet(uint32_t n)
{
	static run runs[BATCH_MAX];
	static const endpoint *source[BATCH_MAX];
	uint32_t m = 0, piece = 0, k, i, r;
	group_by_session(n);
	for (k = 0; k < active_count; k++) {
		uint32_t more = cut_runs(active_start[k], active_start[k + 1], runs + m);
		for (; more; more--, m++) {
			source[m] = &active[k]->from;
			packet_weight[m] = runs[m].count;
			packet_messages[m].msg_hdr = (struct msghdr){.msg_iov = &packet_pieces[piece], .msg_iovlen = runs[m].count + 1};
			packet_pieces[piece++].iov_base = packet_headers[m];
			for (i = runs[m].first; i < runs[m].first + runs[m].count; i++)
				packet_pieces[piece++] = (struct iovec){data[order[i]], length[order[i]]};
		}
	}
	for (r = 0; r < receiver_count; r++) {
		for (i = 0; i < m; i++)
			packet_messages[i].msg_hdr.msg_iov->iov_len = packet_craft(packet_headers[i], &runs[i], source[i], &receivers[r].to);
		send_vector(packet_fd, packet_messages, packet_weight, m);
	}
}

#endif
