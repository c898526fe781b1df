// SPDX-License-Identifier: MIT
/*
 * Measures what memory of protected VMs under pKVM costs, which the selftests of the series
 * measure for other VMs: pre_fault_perf_test (KVM_PRE_FAULT_MEMORY) and
 * userfault_perf_test (demand paging).  A guest with one vCPU walks through the memory once,
 * in each of the ways below; a non-protected VM with the same guest does so in its turn, to
 * compare with.  Each word that the guest reads must be what the host put there.
 * bench/prefault and bench/userfault run this and read what it prints, which has the form
 * of those selftests, with KIND/ before the way.
 *
 *	protected_perf prefault|paging [-b BYTES] [-s BACKING] [-r ROUNDS] [-n BATCH] [-p] [-e]
 *
 * A backing is anonymous, anonymous_thp or shmem; for `paging` each way has its own.  BATCH
 * pages are provided for each fault (1), and with -p prefaulted then.  With -e, on a kernel
 * that has EL2's trace (el2trace.h), a line for each way says how often EL2 was entered; the
 * times are of a traced run then.
 *
 * To measure another way add a line to prefault_ways or paging_ways, and one to the words
 * of bench/prefault or bench/userfault.
 */
#include <err.h>
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <poll.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "el2trace.h"
#include "walker.h"

#define HUGE_BYTES (2ul << 20)

enum backing {
	ANON,
	THP,
	SHMEM,
	BACKINGS,
};
static const char *const backing_names[] = { "anonymous", "anonymous_thp", "shmem" };

/* What is done before the walk. */
enum prefault {
	NO_PREFAULT,
	AT_ONCE,
	PAGE_BY_PAGE,
};

/* Who is told of a fault. */
enum pager {
	NOBODY,
	UFFD,      /* a thread that polls and reads */
	UFFD_READ, /* one that only reads */
	VCPU,      /* the vCPU's own thread, by an exit */
};

/* How it provides memory. */
enum fill {
	NOTHING,
	COPY,
	UFFD_COPY,
	CONTINUE, /* of a page that is in the page cache */
};

struct way {
	const char *name;
	bool is_there; /* the host's memory; for CONTINUE in the page cache */
	enum prefault prefault;
	bool again; /* measure a second walk */
	enum pager pager;
	enum fill fill;
	bool shmem; /* in place of the backing that was asked for */
};

static const struct way prefault_ways[] = {
	{ .name = "read", .is_there = true },
	{ .name = "read-prefaulted", .is_there = true, .prefault = AT_ONCE },
	{ .name = "read-prefaulted-pages", .is_there = true, .prefault = PAGE_BY_PAGE },
	{ .name = "read-mapped", .is_there = true, .again = true },
	{ .name = "new-write" },
	{ .name = "new-write-prefaulted-write", .prefault = AT_ONCE },
	{ .name = NULL },
};

static const struct way paging_ways[] = {
	{ .name = "none-anon" },
	{ .name = "none-shmem", .shmem = true },
	{ .name = "stage2-anon", .is_there = true },
	{ .name = "uffd-missing", .pager = UFFD, .fill = UFFD_COPY },
	{ .name = "uffd-missing-read", .pager = UFFD_READ, .fill = UFFD_COPY },
	{ .name = "uffd-minor", .is_there = true, .pager = UFFD, .fill = CONTINUE, .shmem = true },
	{ .name = "uffd-minor-read", .is_there = true, .pager = UFFD_READ, .fill = CONTINUE,
	  .shmem = true },
	{ .name = "exit-anon", .pager = VCPU, .fill = COPY },
	{ .name = "exit-anon-uffd", .pager = VCPU, .fill = UFFD_COPY },
	{ .name = "exit-anon-there", .is_there = true, .pager = VCPU },
	{ .name = "exit-shmem-continue", .is_there = true, .pager = VCPU, .fill = CONTINUE,
	  .shmem = true },
	{ .name = NULL },
};

static uint64_t bytes = 16ul << 20, pages, batch = 1, rounds = 1;
static enum backing backing = ANON;
static bool prefault_batch, count_entries;

/* One measurement: a VM, its memory, and who provides it. */
struct run {
	const struct way *way;
	bool is_protected;
	enum backing backing;
	struct walker walker;
	char *memory;
	uint64_t *bitmap; /* NULL without KVM Userfault */
	int memfd, uffd;  /* -1 */
	pthread_t pager;
	uint64_t faults; /* that were provided for */
};

/* What is copied: the second word of page i is i + 1. */
static char *content;

static uint64_t now_ns(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC_RAW, &t);
	return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

static void *map(size_t size, int fd)
{
	int flags = fd < 0 ? MAP_PRIVATE | MAP_ANONYMOUS : MAP_SHARED;
	char *at = mmap(NULL, size, PROT_READ | PROT_WRITE, flags, fd, 0);

	if (at == MAP_FAILED)
		die("memory of %zu bytes", size);
	return at;
}

static void write_words(char *at)
{
	for (uint64_t i = 0; i < pages; i++) {
		uint64_t *words = (uint64_t *)(at + i * WALKER_PAGE);

		words[1] = i + 1;
	}
}

/* ---- the memory ---------------------------------------------------------------------- */

/* Where a huge page begins, or the figures depend on where the memory happens to be. */
static char *map_aligned(int fd)
{
	char *all = map(bytes + HUGE_BYTES, -1);
	char *at = all + (-(uintptr_t)all & (HUGE_BYTES - 1));
	int flags = fd < 0 ? MAP_PRIVATE | MAP_ANONYMOUS : MAP_SHARED;

	if (munmap(all, bytes + HUGE_BYTES) ||
	    mmap(at, bytes, PROT_READ | PROT_WRITE, flags | MAP_FIXED_NOREPLACE, fd, 0) != at)
		die("memory of the guest");
	return at;
}

static void map_memory(struct run *run)
{
	run->memfd = -1;
	if (run->backing == SHMEM) {
		run->memfd = memfd_create("protected_perf", MFD_CLOEXEC);
		if (run->memfd < 0 || ftruncate(run->memfd, (off_t)bytes))
			die("a memfd");
	}
	run->memory = map_aligned(run->memfd);
	if (madvise(run->memory, bytes, run->backing == THP ? MADV_HUGEPAGE : MADV_NOHUGEPAGE))
		die("madvise");
	if (!run->way->is_there)
		return;
	if (run->way->fill == CONTINUE) {
		char *second = map(bytes, run->memfd);

		write_words(second);
		munmap(second, bytes);
	} else {
		write_words(run->memory);
	}
}

/* Whole pages, at least as many as hold a bit for each page. */
static size_t bitmap_bytes(void)
{
	return (pages / 8 + WALKER_PAGE) & ~(WALKER_PAGE - 1);
}

static void set_all_missing(struct run *run)
{
	run->bitmap = map(bitmap_bytes(), -1);
	for (uint64_t i = 0; i < pages; i++)
		run->bitmap[i / 64] |= 1ull << i % 64;
}

static void free_memory(struct run *run)
{
	munmap(run->memory, bytes);
	if (run->bitmap)
		munmap(run->bitmap, bitmap_bytes());
	if (run->memfd >= 0)
		close(run->memfd);
}

/* ---- who provides it ----------------------------------------------------------------- */

/*
 * A batch, of which @page is one.  All of it is missing: the one vCPU that there is goes
 * through the pages in order, so that none of them is the guest's yet.
 */
static void provide(struct run *run, uint64_t page)
{
	uint64_t at = page / batch * batch * WALKER_PAGE;
	struct uffdio_copy copy = {
		.dst = (uintptr_t)run->memory + at,
		.src = (uintptr_t)content + at,
		.len = batch * WALKER_PAGE,
	};
	struct uffdio_continue cont = { .range = { .start = copy.dst, .len = copy.len } };

	run->faults++;
	if (run->way->fill == COPY)
		memcpy(run->memory + at, content + at, batch * WALKER_PAGE);
	else if (run->way->fill == UFFD_COPY && ioctl(run->uffd, UFFDIO_COPY, &copy))
		die("UFFDIO_COPY");
	else if (run->way->fill == CONTINUE && ioctl(run->uffd, UFFDIO_CONTINUE, &cont))
		die("UFFDIO_CONTINUE");
}

static void *serve(void *argument)
{
	struct run *run = argument;
	struct pollfd poller = { .fd = run->uffd, .events = POLLIN };
	struct uffd_msg message;
	uint64_t offset;

	for (;;) {
		if (run->way->pager == UFFD && poll(&poller, 1, -1) != 1)
			die("poll");
		if (read(run->uffd, &message, sizeof(message)) != sizeof(message))
			die("a userfaultfd's event");
		offset = message.arg.pagefault.address - (uintptr_t)run->memory;
		provide(run, offset / WALKER_PAGE);
	}
	return NULL;
}

static void open_uffd(struct run *run)
{
	struct uffdio_api api = { .api = UFFD_API };
	struct uffdio_register reg = {
		.range = { .start = (uintptr_t)run->memory, .len = bytes },
		.mode = run->way->fill == CONTINUE ? UFFDIO_REGISTER_MODE_MINOR :
						     UFFDIO_REGISTER_MODE_MISSING,
	};

	run->uffd = (int)syscall(SYS_userfaultfd, O_CLOEXEC);
	if (run->uffd < 0 || ioctl(run->uffd, UFFDIO_API, &api) ||
	    ioctl(run->uffd, UFFDIO_REGISTER, &reg))
		die("userfaultfd");
	if (run->way->pager != VCPU && pthread_create(&run->pager, NULL, serve, run))
		die("a thread");
}

static void close_uffd(struct run *run)
{
	if (run->pager) {
		pthread_cancel(run->pager);
		pthread_join(run->pager, NULL);
	}
	if (run->uffd >= 0)
		close(run->uffd);
}

/* Clear the bits last: from then on the pages may be the guest's. */
static void handle_exit(struct run *run, uint64_t gpa)
{
	uint64_t page = (gpa - WALKER_GPA) / WALKER_PAGE / batch * batch;
	uint64_t mask = batch == 64 ? ~0ull : (1ull << batch) - 1;

	provide(run, page);
	__atomic_fetch_and(&run->bitmap[page / 64], ~(mask << page % 64), __ATOMIC_RELEASE);
	if (prefault_batch)
		walker_prefault(&run->walker, WALKER_GPA + page * WALKER_PAGE, batch * WALKER_PAGE);
}

/* ---- one measurement ----------------------------------------------------------------- */

static void set_up(struct run *run)
{
	run->uffd = -1;
	map_memory(run);
	if (run->way->pager == VCPU)
		set_all_missing(run);
	walker_new(&run->walker, run->is_protected, run->memory, bytes, run->bitmap);
	if (run->way->pager == UFFD || run->way->pager == UFFD_READ || run->way->fill > COPY)
		open_uffd(run);
}

static uint64_t prefault(struct run *run)
{
	uint64_t start = now_ns();

	if (run->way->prefault == AT_ONCE)
		walker_prefault(&run->walker, WALKER_GPA, bytes);
	for (uint64_t at = 0; run->way->prefault == PAGE_BY_PAGE && at < bytes; at += WALKER_PAGE)
		walker_prefault(&run->walker, WALKER_GPA + at, WALKER_PAGE);
	return now_ns() - start;
}

/* What the guest read must be what its pages had. */
static uint64_t walk(struct run *run)
{
	bool has_content = run->way->is_there || run->way->fill != NOTHING;
	uint64_t start = now_ns(), expected = has_content ? pages * (pages + 1) / 2 : 0;
	uint64_t sum, gpa, took;

	while (!walker_run(&run->walker, &sum, &gpa))
		handle_exit(run, gpa);
	took = now_ns() - start;
	if (sum != expected)
		errx(1, "%s: the guest read %llu in place of %llu", run->way->name,
		     (unsigned long long)sum, (unsigned long long)expected);
	return took;
}

static void print(const struct run *run, uint64_t before, uint64_t took, uint64_t faults,
		  bool paging)
{
	const char *kind = run->is_protected ? "protected" : "non-protected";

	printf("%s/%s ", kind, run->way->name);
	if (paging)
		printf("vcpus 1 batch %llu prefault %d pages %llu ns/page %.1f faults %llu\n",
		       (unsigned long long)batch, prefault_batch, (unsigned long long)pages,
		       (double)took / pages, (unsigned long long)run->faults);
	else
		printf("pages %llu ioctl %.1f ns/page guest %.1f ns/page faults %llu\n",
		       (unsigned long long)pages, (double)before / pages, (double)took / pages,
		       (unsigned long long)faults);
	fflush(stdout);
}

static void print_entries(const struct run *run, const struct el2trace *count)
{
	printf("%s/%s entries hypercalls %.3f guest %.3f host %.3f /page\n",
	       run->is_protected ? "protected" : "non-protected", run->way->name,
	       (double)count->hypercalls / pages, (double)count->guest / pages,
	       (double)count->host / pages);
	fflush(stdout);
}

static void measure(const struct way *way, bool is_protected, bool paging)
{
	struct run run = {
		.way = way, .is_protected = is_protected, .backing = way->shmem ? SHMEM : backing,
	};
	struct el2trace entries;
	uint64_t before, faults, took;

	set_up(&run);
	walker_start(&run.walker, pages, paging || !way->is_there);
	if (way->again)
		walk(&run);
	if (count_entries)
		el2trace_begin();
	before = prefault(&run);
	faults = walker_faults(&run.walker);
	took = walk(&run);
	if (count_entries)
		el2trace_end(&entries);
	faults = walker_faults(&run.walker) - faults;
	/* Its thread has counted by then. */
	close_uffd(&run);
	print(&run, before, took, faults, paging);
	if (count_entries)
		print_entries(&run, &entries);
	if (way->pager != NOBODY && run.faults < pages / batch)
		errx(1, "%s: some pages were not paged", way->name);
	walker_free(&run.walker);
	free_memory(&run);
}

/* ---- the command --------------------------------------------------------------------- */

static void usage(void)
{
	fprintf(stderr, "usage: protected_perf prefault|paging [-b BYTES] [-s BACKING] [-r ROUNDS] "
			"[-n BATCH] [-p] [-e]\n"
			"BYTES, as in 16M, is a multiple of the batch, or of a huge page;\n"
			"BACKING is one of %s, %s, %s; BATCH a power of two up to 64.\n",
		backing_names[ANON], backing_names[THP], backing_names[SHMEM]);
	exit(2);
}

static uint64_t number(const char *text, uint64_t most)
{
	static const char units[] = "KMG";
	char *end;
	uint64_t value = strtoull(text, &end, 10);

	if (end != text && *end && strchr(units, *end)) {
		value <<= 10 * (strchr(units, *end) - units + 1);
		end++;
	}
	if (end == text || *end || !value || value > most)
		usage();
	return value;
}

static enum backing backing_of(const char *name)
{
	for (enum backing i = 0; i < BACKINGS; i++)
		if (!strcmp(name, backing_names[i]))
			return i;
	usage();
	return BACKINGS;
}

static void measure_all(bool paging)
{
	const struct way *ways = paging ? paging_ways : prefault_ways;

	for (const struct way *way = ways; way->name; way++)
		for (int is_protected = 0; is_protected < 2; is_protected++)
			measure(way, is_protected, paging);
}

/* argv[0] is the first word. */
static void parse(int argc, char **argv, bool paging)
{
	int option;

	while ((option = getopt(argc, argv, "b:en:pr:s:")) >= 0) {
		if (option == 'b')
			bytes = number(optarg, 1ull << 30);
		else if (option == 'e')
			count_entries = true;
		else if (option == 'n' && paging)
			batch = number(optarg, 64);
		else if (option == 'p' && paging)
			prefault_batch = true;
		else if (option == 'r')
			rounds = number(optarg, 100);
		else if (option == 's' && !paging)
			backing = backing_of(optarg);
		else
			usage();
	}
	if (optind < argc || bytes % (backing == THP ? HUGE_BYTES : batch * WALKER_PAGE) ||
	    batch & (batch - 1))
		usage();
	pages = bytes / WALKER_PAGE;
}

int main(int argc, char **argv)
{
	bool paging = argc > 1 && !strcmp(argv[1], "paging");

	if (!paging && (argc < 2 || strcmp(argv[1], "prefault")))
		usage();
	parse(argc - 1, argv + 1, paging);
	if (sysconf(_SC_PAGESIZE) != WALKER_PAGE || !walker_possible(true)) {
		puts("1..0 # SKIP no protected VMs, or no pages of 4K");
		return 4;
	}
	if (count_entries && !el2trace_possible())
		errx(1, "-e: this kernel does not trace EL2: boot one with NVHE_EL2_DEBUG");
	content = map(bytes, -1);
	write_words(content);
	while (rounds--)
		measure_all(paging);
	return 0;
}
