/* SPDX-License-Identifier: MIT */
/*
 * engine.c: libinfill's userfault engine on real KVM, in a lab machine: a guest
 * of a few instructions visits memory that is missing, and everything that it
 * reads and writes is checked.  Add a test by a line in main().
 */
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "guest.h"
#include "infill.h"
#include "kvm_api.h"

#define PAGES 1024u
#define BYTES ((size_t)PAGES * GUEST_PAGE)
#define VCPUS 4u
#define HOLE_FROM 256u /* pages of the image that are a hole ... */
#define HOLE_TO 320u
#define ZERO_FROM 320u /* ... and pages of zeros behind it */
#define ZERO_TO 336u

#ifndef KVM_CREATE_GUEST_MEMFD
#define KVM_CREATE_GUEST_MEMFD _IOWR(KVMIO, 0xd4, struct guest_memfd_args)
#endif
struct guest_memfd_args {
	uint64_t size, flags, reserved[6];
};
#define FLAG_MMAP_AND_SHARED 3u

enum kind { ANON, MEMFD, GUEST_MEMFD, KINDS };
static const char *const kind_name[] = { "anonymous", "memfd", "guest_memfd" };

/* ---- TAP --------------------------------------------------------------------- */

static unsigned number;
static bool bad;

__attribute__((format(printf, 1, 2))) static void wrong(const char *format, ...)
{
	va_list args;

	va_start(args, format);
	printf("# ");
	vprintf(format, args);
	puts("");
	va_end(args);
	bad = true;
}

#define CHECK(condition, ...)                                        \
	do {                                                         \
		if (!(condition)) {                                  \
			wrong("line %d: " #condition, __LINE__);     \
			wrong(__VA_ARGS__);                          \
		}                                                    \
	} while (0)

/* ---- the image ---------------------------------------------------------------- */

static char path[] = "/tmp/engine.image", trace_path[] = "/tmp/engine.trace";

static uint32_t word_of(uint32_t page)
{
	return page >= HOLE_FROM && page < ZERO_TO ? 0 : page * 2654435761u + 1;
}

static uint32_t sum_of_all(void)
{
	uint32_t sum = 0;

	for (uint32_t page = 0; page < PAGES; page++)
		sum += word_of(page);
	return sum;
}

static int make_image(void)
{
	uint32_t page[GUEST_PAGE / 4];
	int fd = open(path, O_CREAT | O_TRUNC | O_RDWR | O_CLOEXEC, 0600);

	if (fd < 0 || ftruncate(fd, (off_t)BYTES))
		return -1;
	for (uint32_t n = 0; n < PAGES; n++) {
		for (uint32_t i = 0; i < GUEST_PAGE / 4; i++)
			page[i] = word_of(n) ? word_of(n) + i : 0;
		if ((n < HOLE_FROM || n >= HOLE_TO) &&
		    pwrite(fd, page, sizeof(page), (off_t)n * GUEST_PAGE) != sizeof(page))
			return -1;
	}
	return fd;
}

/* ---- one VM --------------------------------------------------------------------- */

struct rig {
	enum kind kind;
	struct guest guest;
	struct guest_vcpu vcpu[VCPUS];
	int fd; /* memfd or guest_memfd; -1 */
	uint32_t *memory;
	struct infill_image *image;
	struct infill_pool *pool;
	struct infill_memory *regions;
	struct infill_session *session;
	struct infill_vcpu *filler[VCPUS];
	struct infill_region region;
};

static bool map_memory(struct rig *rig)
{
	struct guest_memfd_args args = { .size = BYTES, .flags = FLAG_MMAP_AND_SHARED };
	int flags = MAP_SHARED;

	if (rig->kind == GUEST_MEMFD)
		rig->fd = ioctl(rig->guest.vm, KVM_CREATE_GUEST_MEMFD, &args);
	else if (rig->kind == MEMFD)
		rig->fd = memfd_create("guest", MFD_CLOEXEC);
	else
		flags = MAP_PRIVATE | MAP_ANONYMOUS;
	if (rig->kind != ANON && rig->fd < 0)
		return false;
	if (rig->kind == MEMFD && ftruncate(rig->fd, (off_t)BYTES))
		return false;
	rig->memory = mmap(NULL, BYTES, PROT_READ | PROT_WRITE, flags, rig->fd, 0);
	return rig->memory != MAP_FAILED;
}

static void describe_memory(struct rig *rig)
{
	rig->region = (struct infill_region){
		.size = sizeof(rig->region),
		.gpa = GUEST_MEMORY_GPA,
		.hva = (uintptr_t)rig->memory,
		.length = BYTES,
		.backing = rig->kind == ANON  ? INFILL_BACKING_ANON :
			   rig->kind == MEMFD ? INFILL_BACKING_SHMEM :
						INFILL_BACKING_GUEST_MEMFD,
		.slot = 1,
		.slot_flags = rig->kind == GUEST_MEMFD ? KVM_MEM_GUEST_MEMFD : 0,
		.guest_memfd = rig->kind == GUEST_MEMFD ? rig->fd : 0,
	};
}

/* False, with the reason said: what is needed for the test is not there. */
static bool set_up(struct rig *rig, enum kind kind, const struct infill_session_options *options,
		   unsigned vcpus)
{
	*rig = (struct rig){ .kind = kind, .fd = -1 };
	if (guest_new(&rig->guest) || !map_memory(rig)) {
		wrong("no VM, or no memory for it: %m");
		return false;
	}
	describe_memory(rig);
	if (infill_image_open(&rig->image, path, NULL) || infill_pool_new(&rig->pool, NULL) ||
	    infill_memory_new(&rig->regions) || infill_memory_add(rig->regions, &rig->region) ||
	    infill_session_start_vm(&rig->session, rig->pool, rig->guest.vm, rig->regions,
				    rig->image, options)) {
		wrong("%s", infill_error());
		return false;
	}
	for (unsigned i = 0; i < vcpus; i++)
		if (guest_vcpu_new(&rig->vcpu[i], &rig->guest, i) ||
		    infill_vcpu_new(&rig->filler[i], rig->session, rig->vcpu[i].fd)) {
			wrong("vCPU %u: %s", i, infill_error());
			return false;
		}
	return true;
}

static void tear_down(struct rig *rig)
{
	for (unsigned i = 0; i < VCPUS; i++)
		infill_vcpu_free(rig->filler[i]);
	infill_session_stop(rig->session);
	infill_memory_free(rig->regions);
	infill_pool_free(rig->pool);
	infill_image_close(rig->image);
	for (unsigned i = 0; i < VCPUS; i++)
		if (rig->vcpu[i].run)
			guest_vcpu_free(&rig->vcpu[i]);
	guest_free(&rig->guest);
	if (rig->memory && rig->memory != MAP_FAILED)
		munmap(rig->memory, BYTES);
	if (rig->fd >= 0)
		close(rig->fd);
}

static struct infill_counters counters_of(struct rig *rig)
{
	struct infill_counters c = { .size = sizeof(c) };

	if (infill_session_counters(rig->session, &c))
		wrong("%s", infill_error());
	return c;
}

/* Not with shadow paging. */
static bool can_prefault(const struct rig *rig)
{
	return ioctl(rig->guest.vm, KVM_CHECK_EXTENSION, KVM_CAP_PRE_FAULT_MEMORY) > 0;
}

/* ---- vCPUs ----------------------------------------------------------------------- */

/* Run a vCPU until its visit is over; 0 and the sum, or what infill_vcpu_exit() said. */
static int run(struct rig *rig, unsigned id, uint32_t *sum)
{
	struct guest_vcpu *v = &rig->vcpu[id];

	for (;;) {
		int ret = ioctl(v->fd, KVM_RUN, 0), err = errno;

		if (!ret && guest_done(v, sum))
			return 0;
		if (ret && err == EINTR)
			continue;
		if (!ret || err != EFAULT) {
			wrong("vCPU %u: KVM_RUN: %d, errno %d, exit %u", id, ret, err,
			      v->run->exit_reason);
			return -EPROTO;
		}
		ret = infill_vcpu_exit(rig->filler[id], v->run);
		if (ret)
			return ret;
	}
}

struct visitor {
	struct rig *rig;
	unsigned id;
	uint32_t step;
	uint32_t sum;
	int ret;
};

static void *visit(void *arg)
{
	struct visitor *t = arg;

	/* Each begins elsewhere and goes another way, so that they meet on pages. */
	t->ret = guest_visit(&t->rig->vcpu[t->id], PAGES, t->id * 37 % PAGES, t->step, t->id);
	if (!t->ret)
		t->ret = run(t->rig, t->id, &t->sum);
	return NULL;
}

static void visit_all(struct rig *rig, unsigned vcpus, uint32_t step)
{
	struct visitor visitor[VCPUS];
	pthread_t thread[VCPUS];

	for (unsigned i = 0; i < vcpus; i++) {
		visitor[i] = (struct visitor){ .rig = rig, .id = i, .step = step + 2 * i };
		pthread_create(&thread[i], NULL, visit, &visitor[i]);
	}
	for (unsigned i = 0; i < vcpus; i++) {
		pthread_join(thread[i], NULL);
		CHECK(!visitor[i].ret, "vCPU %u: %d: %s", i, visitor[i].ret, infill_error());
		CHECK(visitor[i].ret || visitor[i].sum == sum_of_all(), "vCPU %u: %u, not %u", i,
		      visitor[i].sum, sum_of_all());
	}
}

/* Every byte is the image's, but for what the guests have counted in their slots. */
static void check_memory(struct rig *rig, unsigned vcpus, uint32_t visits)
{
	for (uint32_t page = 0; page < PAGES && !bad; page++) {
		const uint32_t *at = rig->memory + (size_t)page * GUEST_PAGE / 4;

		for (uint32_t i = 0; i < GUEST_PAGE / 4 && !bad; i++) {
			uint32_t was = word_of(page) ? word_of(page) + i : 0;

			if (i >= 4 && i < 4 + vcpus)
				was += visits;
			CHECK(at[i] == was, "page %u word %u: %u, not %u", page, i, at[i], was);
		}
	}
}

/* ---- tests ------------------------------------------------------------------------ */

#define OPTIONS(...) \
	(&(struct infill_session_options){ .size = sizeof(struct infill_session_options), __VA_ARGS__ })

/* Every page by an exit, one at a time. */
static void test_demand(enum kind kind)
{
	struct infill_counters c;
	struct rig rig;

	if (set_up(&rig, kind, OPTIONS(.fill = INFILL_FILL_NONE), 1)) {
		visit_all(&rig, 1, 387);
		CHECK(!infill_session_wait(rig.session, INFILL_WAIT_RESIDENT, 10000), "%s",
		      infill_error());
		c = counters_of(&rig);
		CHECK(c.faults == PAGES, "%llu exits", (unsigned long long)c.faults);
		CHECK(c.demand_pages == PAGES, "%llu pages", (unsigned long long)c.demand_pages);
		CHECK(!c.missing, "%llu missing", (unsigned long long)c.missing);
		CHECK(c.latency_count == PAGES, "%llu", (unsigned long long)c.latency_count);
		check_memory(&rig, 1, 1);
	}
	tear_down(&rig);
}

/* Several vCPUs on the same pages: each is filled once, and no write of a guest is lost. */
static void test_vcpus(enum kind kind)
{
	struct infill_counters c;
	struct rig rig;

	if (set_up(&rig, kind, OPTIONS(.fill = INFILL_FILL_NONE), VCPUS)) {
		visit_all(&rig, VCPUS, 1);
		c = counters_of(&rig);
		CHECK(c.demand_pages == PAGES, "%llu pages", (unsigned long long)c.demand_pages);
		check_memory(&rig, VCPUS, 1);
	}
	tear_down(&rig);
}

/* The same against the fill, and once more when the flag is off. */
static void test_fill(enum kind kind)
{
	struct infill_counters c;
	uint64_t exits;
	struct rig rig;

	if (set_up(&rig, kind, OPTIONS(.fill = INFILL_FILL_ALL, .flags = INFILL_SESSION_PREFAULT),
		   VCPUS)) {
		visit_all(&rig, VCPUS, 1);
		CHECK(!infill_session_wait(rig.session, INFILL_WAIT_RESIDENT, 10000), "%s",
		      infill_error());
		c = counters_of(&rig);
		exits = c.faults;
		/* A page of zeros that nobody touched is not installed. */
		CHECK(c.demand_pages + c.rest_pages <= PAGES, "%llu and %llu pages",
		      (unsigned long long)c.demand_pages, (unsigned long long)c.rest_pages);
		check_memory(&rig, VCPUS, 1);
		visit_all(&rig, VCPUS, 5);
		c = counters_of(&rig);
		CHECK(c.faults == exits, "%llu exits after the end",
		      (unsigned long long)(c.faults - exits));
	}
	tear_down(&rig);
}

/* One page behind the other: fewer exits than pages, and the others are prefaulted. */
static void test_stream(enum kind kind)
{
	struct infill_counters c;
	struct rig rig;

	if (set_up(&rig, kind, OPTIONS(.fill = INFILL_FILL_NONE, .flags = INFILL_SESSION_PREFAULT),
		   1)) {
		visit_all(&rig, 1, 1);
		c = counters_of(&rig);
		CHECK(c.faults < PAGES / 8, "%llu exits", (unsigned long long)c.faults);
		CHECK(c.demand_pages == PAGES, "%llu pages", (unsigned long long)c.demand_pages);
		CHECK(!can_prefault(&rig) || c.prefault_bytes > BYTES / 2, "%llu bytes prefaulted",
		      (unsigned long long)c.prefault_bytes);
		check_memory(&rig, 1, 1);
	}
	tear_down(&rig);
}

/* What one run recorded the next one has before its vCPU runs. */
static void test_trace(enum kind kind)
{
	struct infill_counters c;
	struct rig rig;

	unlink(trace_path);
	if (set_up(&rig, kind, OPTIONS(.record = trace_path, .record_pages = PAGES), VCPUS)) {
		visit_all(&rig, VCPUS, 387);
		CHECK(!infill_session_wait(rig.session, INFILL_WAIT_RECORDED, 10000), "%s",
		      infill_error());
		check_memory(&rig, VCPUS, 1);
	}
	tear_down(&rig);
	if (set_up(&rig, kind, OPTIONS(.fill = INFILL_FILL_TRACE, .trace = trace_path), 1)) {
		CHECK(!infill_session_wait(rig.session, INFILL_WAIT_TRACE, 10000), "%s",
		      infill_error());
		CHECK(infill_vcpu_prefault(rig.filler[0], 0) ==
			      (can_prefault(&rig) ? 0 : -EOPNOTSUPP), "%s", infill_error());
		c = counters_of(&rig);
		/* Nothing has to be installed for pages that read as zero. */
		CHECK(!can_prefault(&rig) ||
			      c.prefault_bytes >= BYTES - (ZERO_TO - HOLE_FROM) * GUEST_PAGE,
		      "%llu bytes prefaulted", (unsigned long long)c.prefault_bytes);
		visit_all(&rig, 1, 387);
		c = counters_of(&rig);
		CHECK(!c.faults, "%llu exits", (unsigned long long)c.faults);
		check_memory(&rig, 1, 1);
	}
	tear_down(&rig);
}

/* What is asked for is there, and nothing else. */
static void test_session_fill(enum kind kind)
{
	struct infill_counters c;
	struct rig rig;

	if (set_up(&rig, kind, OPTIONS(.fill = INFILL_FILL_NONE), 1)) {
		CHECK(!infill_session_fill(rig.session, GUEST_MEMORY_GPA + 100, 3 * GUEST_PAGE), "%s",
		      infill_error());
		c = counters_of(&rig);
		CHECK(c.missing == PAGES - 4, "%llu missing", (unsigned long long)c.missing);
		CHECK(infill_session_fill(rig.session, GUEST_MEMORY_GPA + BYTES, 1) == -EFAULT,
		      "%s", infill_error());
		CHECK(infill_session_fill(rig.session, GUEST_MEMORY_GPA, 0) == -EINVAL, "%s",
		      infill_error());
		visit_all(&rig, 1, 387);
		c = counters_of(&rig);
		CHECK(c.faults == PAGES - 4, "%llu exits", (unsigned long long)c.faults);
		check_memory(&rig, 1, 1);
	}
	tear_down(&rig);
}

/* Not by a vCPU but by this process, as KVM might: no zeros where a userfaultfd can watch. */
static void test_own_access(enum kind kind)
{
	struct rig rig;

	if (kind != GUEST_MEMFD && set_up(&rig, kind, OPTIONS(.fill = INFILL_FILL_NONE), 1)) {
		for (uint32_t page = 0; page < PAGES; page += 7)
			CHECK(*(volatile uint32_t *)(rig.memory + (size_t)page * GUEST_PAGE / 4) ==
				      word_of(page), "page %u", page);
		visit_all(&rig, 1, 387);
		check_memory(&rig, 1, 1);
		tear_down(&rig);
	}
}

/*
 * Have the kernel take a page of the image for broken: reading it fails then.
 * It raises SIGBUS in who asks for that.
 */
static void break_image(uint32_t page)
{
	int fd = open(path, O_RDWR | O_CLOEXEC), status;
	char *map = mmap(NULL, BYTES, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	pid_t child = fork();

	if (!child) {
		madvise(map + (size_t)page * GUEST_PAGE, GUEST_PAGE, MADV_HWPOISON);
		_exit(1);
	}
	CHECK(waitpid(child, &status, 0) == child && WIFSIGNALED(status) &&
		      WTERMSIG(status) == SIGBUS, "MADV_HWPOISON: status 0x%x", status);
	munmap(map, BYTES);
	close(fd);
}

/* A page of the image that cannot be read. */
static void test_poison(enum kind kind)
{
	const uint32_t page = 777;
	struct infill_counters c;
	struct rig rig;
	uint32_t sum;
	int ret;

	break_image(page);
	if (set_up(&rig, kind, OPTIONS(.fill = INFILL_FILL_NONE), 1)) {
		guest_visit(&rig.vcpu[0], PAGES, 0, 1, 0);
		for (int i = 0; i < 2; i++) {
			ret = run(&rig, 0, &sum);
			CHECK(ret == -EHWPOISON, "%d: %s", ret, infill_error());
		}
		CHECK(kvm_api_memory_fault(rig.vcpu[0].run)->gpa ==
			      GUEST_MEMORY_GPA + page * GUEST_PAGE, "another page");
		c = counters_of(&rig);
		CHECK(c.poisoned == 1, "%llu poisoned", (unsigned long long)c.poisoned);
	}
	tear_down(&rig);
	unlink(path);
	close(make_image());
}

/* The image changes under the guest: the vCPU is told, and sees nothing of it. */
static void test_stale(enum kind kind)
{
	struct rig rig;
	uint32_t sum;
	int ret;

	if (set_up(&rig, kind, OPTIONS(.fill = INFILL_FILL_NONE), 1)) {
		usleep(20000); /* a tick, so that the time of modification is another */
		close(make_image());
		guest_visit(&rig.vcpu[0], PAGES, 0, 1, 0);
		for (int i = 0; i < 2; i++) {
			ret = run(&rig, 0, &sum);
			CHECK(ret == -ESTALE, "%d: %s", ret, infill_error());
		}
		CHECK(infill_session_error(rig.session, NULL) == -ESTALE, "the session goes on");
	}
	tear_down(&rig);
}

/* What is not the engine's is refused, or left to the caller. */
static void test_refused(enum kind kind)
{
	struct infill_session *s = NULL;
	struct infill_vcpu *v;
	struct kvm_run *none;
	struct rig rig;
	int fd = open("/dev/null", O_RDWR | O_CLOEXEC);

	if (set_up(&rig, kind, OPTIONS(.fill = INFILL_FILL_NONE), 1)) {
		none = calloc(1, 4096);
		none->exit_reason = KVM_EXIT_IO;
		CHECK(infill_vcpu_exit(rig.filler[0], none) == 1, "taken");
		none->exit_reason = KVM_EXIT_MEMORY_FAULT; /* a private page, say */
		CHECK(infill_vcpu_exit(rig.filler[0], none) == 1, "taken");
		free(none);
		CHECK(infill_session_start_vm(&s, rig.pool, fd, rig.regions, rig.image, NULL) ==
			      -EOPNOTSUPP, "%s", infill_error());
		CHECK(infill_session_start_vm(&s, rig.pool, rig.guest.vm, rig.regions, rig.image,
					      OPTIONS(.flags = 8)) == -EINVAL, "%s", infill_error());
		CHECK(infill_vcpu_new(&v, rig.session, -1) == -EBADF, "%s", infill_error());
		if (kind == GUEST_MEMFD)
			CHECK(infill_session_start(&s, rig.pool, rig.regions, rig.image, NULL) ==
				      -EINVAL, "%s", infill_error());
	}
	tear_down(&rig);
	close(fd);
}

static const struct test {
	const char *name;
	void (*run)(enum kind kind);
} tests[] = {
	{ "every page by an exit", test_demand },
	{ "several vCPUs on the same pages", test_vcpus },
	{ "against the fill, and when the flag is off", test_fill },
	{ "pages in a row", test_stream },
	{ "a trace, recorded and prefaulted", test_trace },
	{ "filled on request", test_session_fill },
	{ "touched by the VMM", test_own_access },
	{ "a page that cannot be read", test_poison },
	{ "a changed image", test_stale },
	{ "what is not the engine's", test_refused },
};

#define TESTS (sizeof(tests) / sizeof(tests[0]))

int main(void)
{
	struct guest probe;
	bool failed = false;

	setvbuf(stdout, NULL, _IOLBF, 0);
	if (guest_new(&probe) || ioctl(probe.vm, KVM_CHECK_EXTENSION, KVM_CAP_USERFAULT) <= 0) {
		puts("1..0 # SKIP no KVM Userfault");
		return 0;
	}
	guest_free(&probe);
	mkdir("/tmp", 01777);
	close(make_image());
	printf("1..%zu\n", TESTS * KINDS);
	for (enum kind kind = 0; kind < KINDS; kind++)
		for (size_t i = 0; i < TESTS; i++) {
			bad = false;
			tests[i].run(kind);
			printf("%sok %u - %s: %s\n", bad ? "not " : "", ++number, kind_name[kind],
			       tests[i].name);
			failed |= bad;
		}
	unlink(path);
	unlink(trace_path);
	return failed;
}
