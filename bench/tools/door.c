/* What a bounded way between two processes costs, per datagram and side: the question before the door was built (fastpath/rx/door.pxi).
 *     door each|framed|shared BATCH BYTES COUNT [RECORDS]
 * each: one datagram a message of an AF_UNIX SOCK_SEQPACKET pair, BATCH a sendmmsg/recvmmsg call. framed: RECORDS datagrams a message.
 * shared: a ring in shared memory with one writer and one reader; an eventfd wakes the reader. Every datagram has a header of 40 bytes.
 * The writer waits for room, the reader copies each batch out as a worker would and sleeps in epoll when there is nothing. Prints one JSON
 * line: CPU time of each process (user and system) per datagram, and elapsed time. */
#include "tool.h"

#include <sched.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/wait.h>

enum { HEADER = 40, MOST = 512, MESSAGES = 16, SLOT = 1 << 20, QUEUE = 4 << 20, SKIP = -1 };

struct ring {
	_Atomic uint64_t head;
	char pad0[56];
	_Atomic uint64_t tail;
	char pad1[56];
	_Atomic uint32_t sleeps;
	char pad2[60];
	char bytes[QUEUE];
};

static int batch, length, records;
static int pair[2], bell;
static struct ring *ring;
static char headers[MOST][HEADER], payloads[MOST][2048];
static char *slots; /* the reader's arena */
static volatile char seen;

static void send_all(struct mmsghdr *messages, int n)
{
	int sent = 0, got;
	while (sent < n) {
		got = sendmmsg(pair[0], messages + sent, (unsigned)(n - sent), 0);
		if (got < 0 && errno != EINTR)
			die("sendmmsg: %s", strerror(errno));
		sent += got > 0 ? got : 0;
	}
}

static void put_messages(int per_message)
{
	static struct mmsghdr messages[MOST];
	static struct iovec vectors[2 * MOST];
	int n = 0, i, k = 0;
	for (i = 0; i < batch; n++) {
		memset(&messages[n], 0, sizeof messages[n]);
		messages[n].msg_hdr.msg_iov = &vectors[k];
		for (int end = i + per_message; i < batch && i < end; i++) {
			memcpy(headers[i], &length, sizeof length);
			vectors[k++] = (struct iovec){headers[i], HEADER};
			vectors[k++] = (struct iovec){payloads[i], (size_t)length};
		}
		messages[n].msg_hdr.msg_iovlen = (size_t)(&vectors[k] - messages[n].msg_hdr.msg_iov);
	}
	send_all(messages, n);
}

/* Reads up to a batch of messages; returns the datagrams in them, 0 = nothing there. */
static long get_messages(int per_message)
{
	static struct mmsghdr messages[MOST];
	static struct iovec vectors[MOST];
	int n = per_message == 1 ? batch : MESSAGES, got, record;
	size_t slot = per_message == 1 ? 2048 : SLOT, at;
	long found = 0;
	for (int i = 0; i < n; i++) {
		vectors[i] = (struct iovec){slots + (size_t)i * slot, slot};
		memset(&messages[i], 0, sizeof messages[i]);
		messages[i].msg_hdr.msg_iov = &vectors[i];
		messages[i].msg_hdr.msg_iovlen = 1;
	}
	got = recvmmsg(pair[1], messages, (unsigned)n, MSG_DONTWAIT, NULL);
	for (int i = 0; i < got; i++) {
		for (at = 0; at < messages[i].msg_len; at += HEADER + (size_t)record, found++) {
			memcpy(&record, slots + (size_t)i * slot + at, sizeof record);
			seen = slots[(size_t)i * slot + at + HEADER];
		}
	}
	return found;
}

static void ring_wake(void)
{
	uint64_t one = 1;
	atomic_thread_fence(memory_order_seq_cst);
	if (atomic_load(&ring->sleeps) && atomic_exchange(&ring->sleeps, 0) && write(bell, &one, sizeof one) < 0)
		die("eventfd");
}

static void put_ring(void)
{
	uint64_t head = atomic_load_explicit(&ring->head, memory_order_relaxed);
	size_t need = ((size_t)(HEADER + length) + 7) & ~(size_t)7, at, skip;
	for (int i = 0; i < batch;) {
		at = head % QUEUE;
		skip = at + need > QUEUE ? QUEUE - at : 0;
		if (head + skip + need - atomic_load_explicit(&ring->tail, memory_order_acquire) > QUEUE) {
			atomic_store_explicit(&ring->head, head, memory_order_release);
			ring_wake();
			sched_yield();
			continue;
		}
		if (skip) {
			memcpy(ring->bytes + at, &(int){SKIP}, sizeof(int));
			head += skip;
			continue;
		}
		memcpy(headers[i], &length, sizeof length);
		memcpy(ring->bytes + at, headers[i], HEADER);
		memcpy(ring->bytes + at + HEADER, payloads[i], (size_t)length);
		head += need;
		i++;
	}
	atomic_store_explicit(&ring->head, head, memory_order_release);
	ring_wake();
}

static long get_ring(void)
{
	uint64_t tail = atomic_load_explicit(&ring->tail, memory_order_relaxed);
	uint64_t head = atomic_load_explicit(&ring->head, memory_order_acquire);
	int n = 0, record;
	while (tail != head && n < batch) {
		memcpy(&record, ring->bytes + tail % QUEUE, sizeof record);
		if (record == SKIP) {
			tail += QUEUE - tail % QUEUE;
			continue;
		}
		memcpy(slots + (size_t)n * 2048, ring->bytes + tail % QUEUE, (size_t)(HEADER + record));
		seen = slots[(size_t)n * 2048 + HEADER];
		tail += ((size_t)(HEADER + record) + 7) & ~(size_t)7;
		n++;
	}
	atomic_store_explicit(&ring->tail, tail, memory_order_release);
	return n;
}

static bool ring_may_sleep(void)
{
	atomic_store(&ring->sleeps, 1);
	atomic_thread_fence(memory_order_seq_cst);
	return atomic_load(&ring->head) == atomic_load(&ring->tail);
}

static uint64_t reader(long count, bool shared)
{
	struct epoll_event event = {.events = EPOLLIN};
	int epoll = epoll_create1(0);
	uint64_t begun = clock_ns(CLOCK_PROCESS_CPUTIME_ID), ignored;
	long done = 0, got;
	if (epoll_ctl(epoll, EPOLL_CTL_ADD, shared ? bell : pair[1], &event) < 0)
		die("epoll_ctl");
	while (done < count) {
		got = shared ? get_ring() : get_messages(records);
		done += got;
		if (got || (shared && !ring_may_sleep()))
			continue;
		if (epoll_wait(epoll, &event, 1, 1000) > 0 && shared && read(bell, &ignored, sizeof ignored) < 0)
			die("eventfd");
	}
	return clock_ns(CLOCK_PROCESS_CPUTIME_ID) - begun;
}

int main(int argc, char **argv)
{
	int size = QUEUE, pipes[2];
	bool shared = argc > 1 && strcmp(argv[1], "shared") == 0;
	uint64_t begun, cpu, theirs, elapsed;
	long count;
	if (argc < 5)
		die("usage: door each|framed|shared BATCH BYTES COUNT [RECORDS]");
	batch = atoi(argv[2]);
	length = atoi(argv[3]);
	records = strcmp(argv[1], "framed") == 0 ? (argc > 5 ? atoi(argv[5]) : 64) : 1;
	count = batch > 0 ? atol(argv[4]) / batch * batch : 0;
	if (batch < 1 || batch > MOST || length < 0 || length > 1900 || records < 1 || records > MOST)
		die("batch 1..512, bytes 0..1900, records 1..512");
	ring = mmap(NULL, sizeof *ring, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
	slots = mmap(NULL, MESSAGES * SLOT, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
	bell = eventfd(0, EFD_NONBLOCK);
	if (ring == MAP_FAILED || slots == MAP_FAILED || socketpair(AF_UNIX, SOCK_SEQPACKET, 0, pair) < 0 || pipe(pipes) < 0)
		die("%s", strerror(errno));
	setsockopt(pair[0], SOL_SOCKET, SO_SNDBUFFORCE, &size, sizeof size);
	memset(payloads, 7, sizeof payloads);
	if (fork() == 0) {
		theirs = reader(count, shared);
		_exit(write(pipes[1], &theirs, sizeof theirs) != sizeof theirs);
	}
	begun = clock_ns(CLOCK_MONOTONIC);
	cpu = clock_ns(CLOCK_PROCESS_CPUTIME_ID);
	for (long done = 0; done < count; done += batch) {
		if (shared)
			put_ring();
		else
			put_messages(records);
	}
	cpu = clock_ns(CLOCK_PROCESS_CPUTIME_ID) - cpu;
	if (read(pipes[0], &theirs, sizeof theirs) != sizeof theirs)
		die("the reader died");
	elapsed = clock_ns(CLOCK_MONOTONIC) - begun;
	wait(NULL);
	printf("{\"way\": \"%s\", \"batch\": %d, \"bytes\": %d, \"records\": %d, \"put_ns\": %.1f, \"get_ns\": %.1f, \"elapsed_ns\": %.1f}\n",
	       argv[1], batch, length, records, (double)cpu / (double)count, (double)theirs / (double)count,
	       (double)elapsed / (double)count);
	return 0;
}
