/* What the four benchmark tools share: addresses as text, the clock, socket buffers, fatal errors.
 * Included by loadgen.c, sink.c, classic.c and bare.c only; the product never uses it.
 * Everything here may exit the process: these are test tools, their caller wants a clear death. */
#ifndef BENCH_TOOL_H
#define BENCH_TOOL_H

#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <arpa/inet.h>
#include <errno.h>
#include <getopt.h>
#include <netinet/in.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#ifndef SO_MEMINFO
#define SO_MEMINFO 55
#endif
#ifndef SOL_UDP
#define SOL_UDP 17
#endif
#ifndef UDP_SEGMENT
#define UDP_SEGMENT 103
#endif
#ifndef UDP_GRO
#define UDP_GRO 104
#endif
#ifndef IPV6_TRANSPARENT
#define IPV6_TRANSPARENT 75
#endif
#ifndef IPV6_FREEBIND
#define IPV6_FREEBIND 78
#endif
#ifndef IPV6_HDRINCL
#define IPV6_HDRINCL 36
#endif

typedef union {
	struct sockaddr sa;
	struct sockaddr_in v4;
	struct sockaddr_in6 v6;
} endpoint;

__attribute__((noreturn, format(printf, 1, 2), unused)) static void die(const char *format, ...)
{
	va_list args;
	va_start(args, format);
	vfprintf(stderr, format, args);
	va_end(args);
	fputc('\n', stderr);
	exit(2);
}

__attribute__((unused)) static socklen_t endpoint_size(const endpoint *e)
{
	return e->sa.sa_family == AF_INET ? sizeof e->v4 : sizeof e->v6;
}

__attribute__((unused)) static uint16_t endpoint_port(const endpoint *e)
{
	return ntohs(e->sa.sa_family == AF_INET ? e->v4.sin_port : e->v6.sin6_port);
}

__attribute__((unused)) static void endpoint_set_port(endpoint *e, uint16_t port)
{
	if (e->sa.sa_family == AF_INET)
		e->v4.sin_port = htons(port);
	else
		e->v6.sin6_port = htons(port);
}

/* "ADDR" alone; the port stays 0. */
__attribute__((unused)) static void parse_address(const char *text, endpoint *e)
{
	memset(e, 0, sizeof *e);
	if (inet_pton(AF_INET, text, &e->v4.sin_addr) == 1)
		e->sa.sa_family = AF_INET;
	else if (inet_pton(AF_INET6, text, &e->v6.sin6_addr) == 1)
		e->sa.sa_family = AF_INET6;
	else
		die("not an address: %s", text);
}

/* "ADDR:PORT", "[v6]:PORT". */
__attribute__((unused)) static void parse_endpoint(const char *text, endpoint *e)
{
	char host[64];
	const char *colon = strrchr(text, ':');
	size_t length;
	if (!colon)
		die("no port in: %s", text);
	length = (size_t)(colon - text);
	if (length >= 2 && text[0] == '[' && text[length - 1] == ']') {
		text++;
		length -= 2;
	}
	if (length >= sizeof host)
		die("address too long: %s", text);
	memcpy(host, text, length);
	host[length] = 0;
	parse_address(host, e);
	endpoint_set_port(e, (uint16_t)strtoul(colon + 1, NULL, 10));
}

__attribute__((unused)) static const char *address_text(const endpoint *e, char *out, size_t size)
{
	if (e->sa.sa_family == AF_INET)
		return inet_ntop(AF_INET, &e->v4.sin_addr, out, (socklen_t)size);
	if (IN6_IS_ADDR_V4MAPPED(&e->v6.sin6_addr))
		return inet_ntop(AF_INET, &e->v6.sin6_addr.s6_addr[12], out, (socklen_t)size);
	return inet_ntop(AF_INET6, &e->v6.sin6_addr, out, (socklen_t)size);
}

/* base + index, carried through the low 32 bits of the address. */
__attribute__((unused)) static endpoint endpoint_plus(const endpoint *base, uint32_t index)
{
	endpoint e = *base;
	uint32_t low;
	if (e.sa.sa_family == AF_INET) {
		e.v4.sin_addr.s_addr = htonl(ntohl(e.v4.sin_addr.s_addr) + index);
	} else {
		memcpy(&low, &e.v6.sin6_addr.s6_addr[12], 4);
		low = htonl(ntohl(low) + index);
		memcpy(&e.v6.sin6_addr.s6_addr[12], &low, 4);
	}
	return e;
}

__attribute__((unused)) static uint64_t clock_ns(clockid_t id)
{
	struct timespec t;
	clock_gettime(id, &t);
	return (uint64_t)t.tv_sec * 1000000000ull + (uint64_t)t.tv_nsec;
}

__attribute__((unused)) static void sleep_until_ns(uint64_t when)
{
	struct timespec t = {(time_t)(when / 1000000000ull), (long)(when % 1000000000ull)};
	while (clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &t, NULL) == EINTR)
		;
}

/* FORCE passes net.core.[rw]mem_max with CAP_NET_ADMIN; without it the kernel caps silently. Returns what the kernel says. */
__attribute__((unused)) static int socket_buffer(int fd, int option, int force, int bytes)
{
	int got = 0;
	socklen_t size = sizeof got;
	if (setsockopt(fd, SOL_SOCKET, force, &bytes, sizeof bytes) < 0)
		setsockopt(fd, SOL_SOCKET, option, &bytes, sizeof bytes);
	getsockopt(fd, SOL_SOCKET, option, &got, &size);
	return got;
}

/* Datagrams the kernel dropped at this socket because its buffer was full (u32, may wrap). */
__attribute__((unused)) static uint32_t socket_drops(int fd)
{
	uint32_t info[9] = {0};
	socklen_t size = sizeof info;
	getsockopt(fd, SOL_SOCKET, SO_MEMINFO, info, &size);
	return info[8];
}

__attribute__((unused)) static void allow_many_files(void)
{
	struct rlimit r;
	getrlimit(RLIMIT_NOFILE, &r);
	r.rlim_cur = r.rlim_max;
	if (r.rlim_max < 200000) {
		struct rlimit more = {200000, 200000};
		if (setrlimit(RLIMIT_NOFILE, &more) == 0)
			return;
	}
	setrlimit(RLIMIT_NOFILE, &r);
}

static volatile sig_atomic_t stop_asked;
__attribute__((unused)) static void on_stop(int signal_number)
{
	(void)signal_number;
	stop_asked = 1;
}

/* SIGTERM and SIGINT set stop_asked and interrupt a blocking call (no SA_RESTART). */
__attribute__((unused)) static void catch_stop(void)
{
	struct sigaction action = {.sa_handler = on_stop};
	sigaction(SIGTERM, &action, NULL);
	sigaction(SIGINT, &action, NULL);
}

__attribute__((unused)) static int share_port; /* SO_REUSEPORT for udp_listener() */

__attribute__((unused)) static int udp_listener(const endpoint *at, int buffer_bytes)
{
	int one = 1, fd = socket(at->sa.sa_family, SOCK_DGRAM | SOCK_CLOEXEC, 0);
	if (share_port)
		setsockopt(fd, SOL_SOCKET, SO_REUSEPORT, &one, sizeof one);
	if (fd < 0)
		die("socket: %s", strerror(errno));
	if (at->sa.sa_family == AF_INET6) /* "[::]" and "0.0.0.0" of one port may both be given */
		setsockopt(fd, IPPROTO_IPV6, IPV6_V6ONLY, &one, sizeof one);
	if (bind(fd, &at->sa, endpoint_size(at)) < 0)
		die("bind: %s", strerror(errno));
	socket_buffer(fd, SO_RCVBUF, SO_RCVBUFFORCE, buffer_bytes);
	return fd;
}

#endif
