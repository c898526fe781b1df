// SPDX-License-Identifier: MIT
/*
 * vmm_client.c: a VMM without a guest, for the tests in Python: maps memory,
 * makes a userfaultfd as Firecracker does, sends the handshake, reads every
 * byte and compares it with the image.  Test support; may change freely.
 *
 *   vmm_client SOCKET IMAGE [--regions N] [--cache] [--bad] [--close] [--hold]
 *              [--pause-us N] [--wait-error]
 *
 *   --cache       memory is a private mapping of the pager's cache
 *   --bad         say that the content lies past the image's end; then expect
 *                 a refusal, and that no page can be read
 *   --close       close the userfaultfd once it is sent
 *   --hold        read the memory only after a line came on stdin
 *   --pause-us N  between two pages, until SIGUSR1
 *   --wait-error  wait for the pager's error in place of reading the memory,
 *                 print it, and expect that no page is read wrongly
 *
 * Prints "connected", then "ok PAGES" or what is wrong.  Exits 0 or 1, and
 * with 3 if there is no userfaultfd.
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include "infill.h"

#define PAGE 4096u
#define HANG_S 120
#define BLOCKED_MS 500

struct options {
	const char *socket, *image;
	unsigned regions, pause_us;
	bool cache, bad, close, hold, wait_error;
};

static volatile sig_atomic_t hurry;
static _Atomic bool touched;
static char page_read[PAGE];

static void die(const char *what)
{
	printf("%s: %s\n", what, *infill_error() ? infill_error() : strerror(errno));
	exit(1);
}

static void parse(struct options *o, int argc, char **argv)
{
	if (argc < 3)
		die("usage");
	*o = (struct options){ .socket = argv[1], .image = argv[2], .regions = 1 };
	for (int i = 3; i < argc; i++) {
		if (!strcmp(argv[i], "--regions"))
			o->regions = (unsigned)atoi(argv[++i]);
		else if (!strcmp(argv[i], "--pause-us"))
			o->pause_us = (unsigned)atoi(argv[++i]);
		else if (!strcmp(argv[i], "--cache"))
			o->cache = true;
		else if (!strcmp(argv[i], "--bad"))
			o->bad = true;
		else if (!strcmp(argv[i], "--close"))
			o->close = true;
		else if (!strcmp(argv[i], "--hold"))
			o->hold = true;
		else if (!strcmp(argv[i], "--wait-error"))
			o->wait_error = true;
		else
			die(argv[i]);
	}
}

static void add_regions(struct infill_memory *memory, const struct options *o, char *at,
			uint64_t bytes)
{
	uint64_t part = bytes / o->regions / PAGE * PAGE;

	for (unsigned i = 0; i < o->regions; i++) {
		uint64_t offset = i * part;
		struct infill_region r = { .size = sizeof(r), .hva = (uintptr_t)at + offset,
			.length = i + 1 == o->regions ? bytes - offset : part, .gpa = offset,
			.offset = offset + (o->bad ? bytes : 0), .page_size = PAGE,
			.backing = o->cache ? INFILL_BACKING_SHMEM : INFILL_BACKING_ANON };

		if (infill_memory_add(memory, &r))
			die("regions");
	}
}

static int make_uffd(char *at, uint64_t bytes, bool minor)
{
	struct uffdio_register range = { .range = { .start = (uintptr_t)at, .len = bytes },
		.mode = UFFDIO_REGISTER_MODE_MISSING | (minor ? UFFDIO_REGISTER_MODE_MINOR : 0) };
	int uffd = infill_host_userfaultfd(UFFD_FEATURE_EVENT_REMOVE |
					   (minor ? UFFD_FEATURE_MINOR_SHMEM : 0));

	if (uffd < 0) {
		printf("no userfaultfd: %s\n", infill_error());
		exit(3);
	}
	if (ioctl(uffd, UFFDIO_REGISTER, &range))
		die("UFFDIO_REGISTER");
	return uffd;
}

static void *touch(void *arg)
{
	memcpy(page_read, arg, PAGE);
	touched = true;
	return NULL;
}

/* Nobody serves this memory, or not for long, and that must not show as zeros. */
static int expect_blocked(char *at, const char *want)
{
	pthread_t thread;
	bool wrong;

	pthread_create(&thread, NULL, touch, at);
	usleep(BLOCKED_MS * 1000);
	wrong = touched && (!want || memcmp(page_read, want, PAGE));
	if (wrong)
		printf("a page was read though nobody serves it: %s\n",
		       page_read[0] ? "wrong bytes" : "zeros");
	else
		printf(touched ? "ok right\n" : "ok blocked\n");
	fflush(stdout);
	_exit(wrong);
}

static void print_error(int sock)
{
	struct pollfd p = { .fd = sock, .events = POLLIN };
	char line[600];
	ssize_t n;

	if (poll(&p, 1, HANG_S * 1000) != 1 || (n = read(sock, line, sizeof(line) - 1)) <= 0)
		die("the pager said nothing");
	line[n] = 0;
	printf("told %s", line);
}

static int verify(const char *at, uint64_t bytes, int image, const struct options *o)
{
	uint64_t pages = bytes / PAGE;
	char want[PAGE];

	/* A stride that is coprime to the number of pages visits each once. */
	for (uint64_t i = 0, page = 0; i < pages; i++, page = (page + 7919) % pages) {
		if (pread(image, want, PAGE, (off_t)(page * PAGE)) != PAGE)
			die("image");
		if (memcmp(at + page * PAGE, want, PAGE)) {
			printf("page %llu is wrong\n", (unsigned long long)page);
			return 1;
		}
		if (o->pause_us && !hurry)
			usleep(o->pause_us);
	}
	printf("ok %llu\n", (unsigned long long)pages);
	return 0;
}

static void on_signal(int number)
{
	(void)number;
	hurry = 1;
}

int main(int argc, char **argv)
{
	struct infill_memory *memory;
	struct options o;
	int image, uffd, sock = -1, cache = -1;
	struct stat st;
	char *at;

	parse(&o, argc, argv);
	alarm(HANG_S);
	signal(SIGUSR1, on_signal);
	setvbuf(stdout, NULL, _IOLBF, 0);
	image = open(o.image, O_RDONLY | O_CLOEXEC);
	if (image < 0 || fstat(image, &st))
		die(o.image);
	if (o.cache && (sock = infill_handshake_cache(o.socket, &cache)) < 0)
		die("cache");
	at = mmap(NULL, (size_t)st.st_size, PROT_READ | PROT_WRITE,
		  MAP_PRIVATE | (o.cache ? 0 : MAP_ANONYMOUS), cache, 0);
	if (at == MAP_FAILED || infill_memory_new(&memory))
		die("mmap");
	uffd = make_uffd(at, (uint64_t)st.st_size, o.cache);
	add_regions(memory, &o, at, (uint64_t)st.st_size);
	if (o.cache) {
		if (infill_handshake_send_on(sock, uffd, memory))
			die("handshake");
	} else if ((sock = infill_handshake_send(o.socket, uffd, memory)) < 0) {
		die("handshake");
	}
	infill_memory_free(memory);
	if (o.close)
		close(uffd);
	printf("connected\n");
	if (o.hold && getchar() == EOF)
		die("stdin");
	if (o.bad || o.wait_error) {
		off_t last = (st.st_size / PAGE - 1) * PAGE;
		char want[PAGE];

		print_error(sock);
		if (pread(image, want, PAGE, last) != PAGE)
			die("image");
		return expect_blocked(at + last, o.bad ? NULL : want);
	}
	return verify(at, (uint64_t)st.st_size, image, &o);
}
