/* SPDX-License-Identifier: MIT */
/*
 * bulk.c: how fast guest memory can be filled when nobody waits for it: the
 * limit (calls to the kernel and nothing else), and infill's background fill
 * from the start of the restore until everything is resident.
 */
#include <errno.h>
#include <linux/userfaultfd.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

#include "machine.h"
#include "restored.h"

#define SMALL (256u << 10)
#define THREADS_MAX 16

#ifndef UFFDIO_CONTINUE
struct uffdio_continue {
	struct uffdio_range range;
	__u64 mode;
	__s64 mapped;
};
#define UFFDIO_CONTINUE _IOWR(UFFDIO, 0x07, struct uffdio_continue)
#endif

static const char *const group_name[BACKINGS] = {
	[BACKING_ANON] = "bulk, 4 KiB, anonymous",
	[BACKING_SHMEM] = "bulk, 4 KiB, shmem",
	[BACKING_MINOR] = "bulk, 4 KiB, shared cache (continue)",
	[BACKING_HUGETLB] = "bulk, 2 MiB, hugetlb",
};

/* One thread's stretch of guest memory. */
struct stretch {
	const struct guest *guest;
	const uint8_t *source;
	uint8_t *target; /* memcpy() there instead, if not NULL */
	int uffd;
	size_t at, end, chunk;
	pthread_barrier_t *begin;
	pthread_t thread;
};

static void put(const struct stretch *s, size_t at, size_t length)
{
	uintptr_t dst = (uintptr_t)s->guest->base + at;
	struct uffdio_copy copy = { .dst = dst, .src = (uintptr_t)s->source + at, .len = length };
	struct uffdio_continue more = { .range = { dst, length } };
	int rc;

	if (s->target) {
		memcpy(s->target + at, s->source + at, length);
		return;
	}
	if (s->guest->backing == BACKING_MINOR)
		rc = ioctl(s->uffd, UFFDIO_CONTINUE, &more);
	else
		rc = ioctl(s->uffd, UFFDIO_COPY, &copy);
	if (rc)
		fail("limit", "install of %zu bytes: %s", length, strerror(errno));
}

static void *put_all(void *arg)
{
	const struct stretch *s = arg;

	pthread_barrier_wait(s->begin);
	for (size_t at = s->at; at < s->end; at += s->chunk)
		put(s, at, s->end - at < s->chunk ? s->end - at : s->chunk);
	return NULL;
}

/* Run THREADS copies of MODEL until all are done. */
static void put_threads(const struct stretch *model, unsigned threads, size_t bytes)
{
	struct stretch s[THREADS_MAX];
	pthread_barrier_t begin;

	pthread_barrier_init(&begin, NULL, threads + 1);
	for (unsigned i = 0; i < threads; i++) {
		s[i] = *model;
		s[i].begin = &begin;
		s[i].at = bytes / threads * i & ~(size_t)(CONTENT_HUGE - 1);
		s[i].end = i + 1 == threads ? bytes :
					      bytes / threads * (i + 1) & ~(size_t)(CONTENT_HUGE - 1);
		if (pthread_create(&s[i].thread, NULL, put_all, &s[i]))
			fail("limit", "cannot start thread %u", i);
	}
	pthread_barrier_wait(&begin);
	for (unsigned i = 0; i < threads; i++)
		pthread_join(s[i].thread, NULL);
	pthread_barrier_destroy(&begin);
}

struct stopwatch {
	uint64_t ns, cpu;
};

static struct stopwatch stopwatch(void)
{
	return (struct stopwatch){ now_ns(), cpu_ns() };
}

static void add_time(struct row *row, size_t bytes, struct stopwatch begin)
{
	uint64_t ns = now_ns() - begin.ns;

	figure_add(row, METRIC_CPU_MS, (cpu_ns() - begin.cpu) / 1e6);
	figure_add(row, METRIC_TOTAL_MS, ns / 1e6);
	figure_add(row, METRIC_MIB_S, bytes / 1048576.0 / (ns / 1e9));
}

static void check_content(const struct guest *g)
{
	for (size_t page = 0; page < g->bytes / CONTENT_PAGE; page++)
		if (*(const uint64_t *)(g->base + page * CONTENT_PAGE) != content_word(page))
			fail("guest memory", "page %zu has wrong content", page);
}

static int shared_cache(const struct bench *b)
{
	static int fd = -1;

	if (fd < 0)
		fd = guest_cache(b->content.buffer, b->content.bytes);
	return fd;
}

static void run_limit(const struct item *item)
{
	const struct content *c = &item->bench->content;
	struct stretch s = { .source = item->huge ? c->huge : c->buffer, .chunk = item->chunk };
	struct stopwatch begin;
	struct guest g;

	guest_map(&g, item->backing, c->bytes,
		  item->backing == BACKING_MINOR ? shared_cache(item->bench) : -1);
	s.guest = &g;
	s.uffd = guest_register(&g);
	begin = stopwatch();
	put_threads(&s, item->threads, c->bytes);
	add_time(item->row, c->bytes, begin);
	close(s.uffd);
	check_content(&g);
	guest_unmap(&g);
}

/* The limit from where the bytes really are: the page cache, mapped anew each time. */
static void run_limit_mapped(const struct item *item)
{
	const struct content *c = &item->bench->content;
	struct stretch s = { .chunk = item->chunk };
	struct stopwatch begin;
	struct guest g;

	guest_map(&g, item->backing, c->bytes, -1);
	s.guest = &g;
	s.uffd = guest_register(&g);
	begin = stopwatch();
	s.source = content_map(c, MAP_POPULATE);
	put_threads(&s, item->threads, c->bytes);
	add_time(item->row, c->bytes, begin);
	munmap((void *)(uintptr_t)s.source, c->bytes);
	close(s.uffd);
	guest_unmap(&g);
}

static void run_memcpy(const struct item *item)
{
	const struct content *c = &item->bench->content;
	struct guest none = { 0 };
	struct stretch s = { .guest = &none, .source = item->huge ? c->huge : c->buffer,
			     .chunk = CONTENT_HUGE, .uffd = -1 };
	struct stopwatch begin;

	s.target = machine_alloc(c->bytes, "target");
	begin = stopwatch();
	put_threads(&s, item->threads, c->bytes);
	add_time(item->row, c->bytes, begin);
	machine_free(s.target, c->bytes);
}

static void run_infill(const struct item *item)
{
	struct stopwatch begin = stopwatch();
	struct restored r;

	if (!restored_begin(&r, item))
		return;
	engine_wait(&r.engine, INFILL_WAIT_RESIDENT);
	add_time(item->row, r.guest.bytes, begin);
	check_content(&r.guest);
	restored_end(&r);
}

/* A clone on CACHE, from start to resident.  False if infill cannot. */
static bool run_clone(const struct item *item, struct engine_cache *cache, bool measure)
{
	const struct content *c = &item->bench->content;
	struct engine_settings s = { .image = c->path, .fill = INFILL_FILL_ALL,
				     .cache = cache->cache };
	struct engine e;
	struct guest g;
	struct stopwatch begin;
	bool ok;

	guest_map(&g, BACKING_MINOR, c->bytes, infill_cache_fd(cache->cache));
	begin = stopwatch();
	ok = !engine_start(&e, &s, &g);
	if (ok) {
		engine_wait(&e, INFILL_WAIT_RESIDENT);
		if (measure)
			add_time(item->row, c->bytes, begin);
		check_content(&g);
		engine_stop(&e);
	} else {
		figure_skip(item->row, "%s", e.why);
	}
	guest_unmap(&g);
	return ok;
}

/* item->fill: the cache is full already, from an earlier clone. */
static void run_infill_cache(const struct item *item)
{
	struct engine_cache cache;

	if (engine_cache_new(&cache, item->bench->content.path)) {
		figure_skip(item->row, "%s", cache.why);
		return;
	}
	if (!item->fill || run_clone(item, &cache, false))
		run_clone(item, &cache, true);
	engine_cache_free(&cache);
}

struct list {
	struct item item[40];
	size_t count;
};

static struct item *add(struct list *l, const struct bench *b, enum backing backing,
			void (*run)(const struct item *), const char *name)
{
	struct item *item = &l->item[l->count++];

	*item = (struct item){ .row = figure_row(group_name[backing], name), .run = run,
			       .bench = b, .backing = backing, .threads = 1,
			       .chunk = CONTENT_HUGE };
	if (backing == BACKING_HUGETLB && b->huge_missing)
		figure_skip(item->row, "%s", b->huge_missing);
	return item;
}

static unsigned threads_most(void)
{
	return machine_cpus() < THREADS_MAX ? machine_cpus() : THREADS_MAX;
}

static void limit_name(char *name, size_t size, unsigned threads)
{
	snprintf(name, size, "limit, 2 MiB a call, %u threads", threads);
}

static void add_limits(struct list *l, const struct bench *b, enum backing backing)
{
	unsigned cpus = threads_most();
	char name[64];

	if (backing != BACKING_HUGETLB)
		add(l, b, backing, run_limit, "limit, 256 KiB a call")->chunk = SMALL;
	add(l, b, backing, run_limit, "limit, 2 MiB a call");
	if (backing != BACKING_MINOR) {
		add(l, b, backing, run_limit, "limit, 2 MiB a call, source THP")->huge = true;
		add(l, b, backing, run_limit_mapped, "limit, 2 MiB a call, mapped image");
	}
	if (cpus == 1)
		return;
	limit_name(name, sizeof(name), cpus);
	add(l, b, backing, run_limit, name)->threads = cpus;
}

static void add_infill(struct list *l, const struct bench *b, enum backing backing)
{
	if (backing == BACKING_MINOR) {
		add(l, b, backing, run_infill_cache, "infill all, cache full")->fill = true;
		add(l, b, backing, run_infill_cache, "infill all, cache empty");
		return;
	}
	add(l, b, backing, run_infill, "infill all")->contender = CONTENDER_FILL;
}

/* The faster of the two calls, one thread, from the buffer in 4 KiB pages. */
static const struct row *limit_row(enum backing backing)
{
	const struct row *small = figure_find(group_name[backing], "limit, 256 KiB a call");
	const struct row *large = figure_find(group_name[backing], "limit, 2 MiB a call");

	if (small && series_median(&small->metric[METRIC_MIB_S]) >
			     series_median(&large->metric[METRIC_MIB_S]))
		return small;
	return large;
}

static void add_ratio(const char *name, enum backing backing, const char *infill, double target)
{
	double value;

	if (figure_ratio(figure_find(group_name[backing], infill), limit_row(backing),
			 METRIC_MIB_S, &value))
		ratio_set(name, value, target > 0 ? '>' : 0, target);
}

/* CPU time, which neighbours change less than the time that passes. */
static void add_ratio_cpu(const char *name, enum backing backing, const char *infill)
{
	double value;

	if (figure_ratio(limit_row(backing), figure_find(group_name[backing], infill),
			 METRIC_CPU_MS, &value))
		ratio_set(name, value, 0, 0);
}

/* A session has one thread: what it leaves unused where the limit has them all. */
static void add_ratio_all_cpus(const char *name, enum backing backing)
{
	char limit[64];
	double value;

	limit_name(limit, sizeof(limit), threads_most());
	if (figure_ratio(figure_find(group_name[backing], "infill all"),
			 figure_find(group_name[backing], limit), METRIC_MIB_S, &value))
		ratio_set(name, value, 0, 0);
}

/* Against the limit from where the bytes are. */
static void add_ratio_mapped(const char *name, enum backing backing)
{
	double value;

	if (figure_ratio(figure_find(group_name[backing], "infill all"),
			 figure_find(group_name[backing], "limit, 2 MiB a call, mapped image"),
			 METRIC_MIB_S, &value))
		ratio_set(name, value, 0, 0);
}

static void add_ratios(void)
{
	add_ratio("bulk_vs_limit_4k", BACKING_ANON, "infill all", 0.95);
	add_ratio("bulk_vs_limit_4k_shmem", BACKING_SHMEM, "infill all", 0.95);
	add_ratio("bulk_vs_limit_continue", BACKING_MINOR, "infill all, cache full", 0.95);
	add_ratio("bulk_vs_limit_2m", BACKING_HUGETLB, "infill all", 0.95);
	add_ratio_mapped("bulk_vs_limit_mapped_4k", BACKING_ANON);
	add_ratio_mapped("bulk_vs_limit_mapped_2m", BACKING_HUGETLB);
	add_ratio_cpu("bulk_cpu_vs_limit_4k", BACKING_ANON, "infill all");
	add_ratio_cpu("bulk_cpu_vs_limit_2m", BACKING_HUGETLB, "infill all");
	add_ratio_all_cpus("bulk_vs_limit_4k_all_cpus", BACKING_ANON);
	add_ratio_all_cpus("bulk_vs_limit_2m_all_cpus", BACKING_HUGETLB);
}

void bulk_run(const struct bench *b)
{
	static struct list l;

	for (enum backing backing = 0; backing < BACKINGS; backing++) {
		add_limits(&l, b, backing);
		add_infill(&l, b, backing);
	}
	add(&l, b, BACKING_ANON, run_memcpy, "memcpy, warm");
	add(&l, b, BACKING_ANON, run_memcpy, "memcpy, warm, source THP")->huge = true;

	plan_run(l.item, l.count, 1, "bulk: warm-up");
	for (size_t i = 0; i < l.count; i++)
		figure_forget(l.item[i].row->group);
	plan_run(l.item, l.count, b->runs, "bulk");
	add_ratios();
}
