/* SPDX-License-Identifier: MIT */
/*
 * engine.c: libinfill's userfault engine on real KVM, in a lab machine: a guest
 * of a few instructions visits memory that is missing, and everything that it
 * reads and writes is checked.  Add a test by a line in main()'s tables.
 *
 *     engine [PART]    only the tests that have PART in their names
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <unistd.h>

#include "host_kvm.h"
#include "prefault.h"
#include "tests.h"
#include "userfault.h"

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

/* VCPUS go through all pages, each STEP further than the one before, and a trace of it is there. */
static void record(enum kind kind, unsigned vcpus, uint32_t step)
{
	struct rig rig;

	unlink(trace_path);
	if (set_up(&rig, kind, OPTIONS(RECORD_ALL), vcpus)) {
		visit_all(&rig, vcpus, step);
		CHECK(!infill_session_wait(rig.session, INFILL_WAIT_RECORDED, 60000), "%s",
		      infill_error());
		check_memory(&rig, vcpus, 1);
	}
	tear_down(&rig);
}

/* What one run recorded the next one has before its vCPU runs. */
static void test_trace(enum kind kind)
{
	struct infill_counters c;
	struct rig rig;

	record(kind, VCPUS, 387);
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

/* The trace against vCPUs: each page is filled once, and no write of a guest is lost. */
static void test_trace_race(enum kind kind)
{
	struct infill_counters c;
	struct rig rig;

	record(kind, 1, 387);
	if (set_up(&rig, kind, OPTIONS(.fill = INFILL_FILL_TRACE, .trace = trace_path), VCPUS)) {
		visit_all(&rig, VCPUS, 1);
		CHECK(!infill_session_wait(rig.session, INFILL_WAIT_RESIDENT, 10000), "%s",
		      infill_error());
		c = counters_of(&rig);
		CHECK(c.demand_pages + c.trace_pages == PAGES, "%llu and %llu pages",
		      (unsigned long long)c.demand_pages, (unsigned long long)c.trace_pages);
		check_memory(&rig, VCPUS, 1);
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

/* PAGE cannot be read: whoever touches it is told, until it is given up. */
static void touch_poisoned(struct rig *rig, uint32_t page)
{
	struct infill_counters c;
	uint32_t sum;
	int ret;

	run_into_poison(rig, page);
	if (bad)
		return;
	c = counters_of(rig);
	CHECK(c.poisoned == 1, "%llu poisoned", (unsigned long long)c.poisoned);
	/* The guest does not need it any more. */
	ret = infill_session_discard(rig->session, GUEST_MEMORY_GPA + page * GUEST_PAGE, GUEST_PAGE);
	CHECK(!ret, "%d: %s", ret, infill_error());
	ret = run(rig, 0, &sum);
	CHECK(!ret && sum == sum_of_all() - word_of(page), "%d, sum %u: %s", ret, sum,
	      infill_error());
	for (uint32_t i = 0; i < PAGES && !bad; i++)
		check_page(rig, i, i == page, 1, 1);
}

/* A page of the image that cannot be read. */
static void test_poison(enum kind kind)
{
	const uint32_t page = 777;
	struct rig rig;

	break_image(page);
	if (set_up(&rig, kind, OPTIONS(.fill = INFILL_FILL_NONE), 1))
		touch_poisoned(&rig, page);
	tear_down(&rig);
	mend_image();
}

/* The same among pages of the trace, which come all the same. */
static void test_poison_in_trace(enum kind kind)
{
	const uint32_t page = 777;
	struct infill_counters c;
	struct rig rig;

	record(kind, 1, 1);
	break_image(page);
	if (set_up(&rig, kind, OPTIONS(.fill = INFILL_FILL_TRACE, .trace = trace_path), 1)) {
		CHECK(!infill_session_wait(rig.session, INFILL_WAIT_TRACE, 10000), "%s",
		      infill_error());
		c = counters_of(&rig);
		CHECK(c.trace_pages == PAGES - 1 && c.poisoned == 1, "%llu pages, %llu poisoned",
		      (unsigned long long)c.trace_pages, (unsigned long long)c.poisoned);
		/* All else is there, so that the others have the kernel's mark and no flag. */
		if (kind == GUEST_MEMFD)
			touch_poisoned(&rig, page);
		c = counters_of(&rig);
		CHECK(!c.demand_pages, "%llu pages by exits", (unsigned long long)c.demand_pages);
	}
	tear_down(&rig);
	mend_image();
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

/* Every word of the image is another one, page by page. */
static void spoil_image(void)
{
	uint32_t page[WORDS];
	int fd = open(image_path, O_WRONLY | O_CLOEXEC);

	memset(page, 0xff, sizeof(page));
	for (uint32_t n = 0; n < PAGES; n++)
		CHECK(pwrite(fd, page, sizeof(page), (off_t)n * GUEST_PAGE) == sizeof(page), "%s",
		      strerror(errno));
	close(fd);
}

/* It changes while what a trace has is read: a vCPU sees what was there before, or is told. */
static void test_stale_in_trace(enum kind kind)
{
	struct rig rig;
	uint32_t sum;
	int ret;

	for (unsigned round = 0; another_round(round, 8); round++) {
		record(kind, 1, 1);
		if (set_up(&rig, kind, OPTIONS(.fill = INFILL_FILL_TRACE, .trace = trace_path), 1)) {
			usleep(250 * round);
			spoil_image();
			ret = run_in_order(&rig, &sum);
			CHECK(ret == -ESTALE || (!ret && sum == sum_of_all()), "%d: sum 0x%x: %s", ret,
			      sum, ret ? infill_error() : "not the image's");
		}
		tear_down(&rig);
		close(make_image());
	}
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

/* What cannot be mapped ends a prefault, and what comes before it is mapped. */
static void test_prefault(enum kind kind)
{
	static const struct {
		uint32_t page, count, done; /* pages 0 to 7, and the last two, are there */
	} rows[] = {
		{ 0, 8, 8 }, { 4, 1, 1 },	      /* all of it */
		{ 0, 16, 8 }, { 7, 2, 1 },	      /* missing behind */
		{ 8, 4, 0 },			      /* missing from the first on */
		{ PAGES - 2, 4, 2 }, { PAGES, 1, 0 }, /* no memslot */
	};
	struct rig rig;

	if (set_up(&rig, kind, OPTIONS(.fill = INFILL_FILL_NONE), 1)) {
		CHECK(!infill_session_fill(rig.session, GUEST_MEMORY_GPA, 8 * GUEST_PAGE) &&
			      !infill_session_fill(rig.session, GUEST_MEMORY_GPA + BYTES -
							   2 * GUEST_PAGE, 2 * GUEST_PAGE),
		      "%s", infill_error());
		for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
			bool can = can_prefault(&rig);
			uint64_t done;
			int ret = prefault_range(rig.vcpu[0].fd, GUEST_MEMORY_GPA +
						 (uint64_t)rows[i].page * GUEST_PAGE,
						 (uint64_t)rows[i].count * GUEST_PAGE, false, &done);

			CHECK(ret == (can ? 0 : -EOPNOTSUPP), "row %zu: %d: %s", i, ret, infill_error());
			CHECK(done == (can ? (uint64_t)rows[i].done * GUEST_PAGE : 0), "row %zu: %llu", i,
			      (unsigned long long)done);
		}
		visit_all(&rig, 1, 387);
		CHECK(counters_of(&rig).faults == PAGES - 10, "%llu exits",
		      (unsigned long long)counters_of(&rig).faults);
		check_memory(&rig, 1, 1);
	}
	tear_down(&rig);
}

/* What infill_host_probe() says is what this machine's KVM does. */
static void test_host(enum kind kind)
{
	struct infill_host host = { .size = sizeof(host) };
	struct rig rig;

	CHECK(!infill_host_probe(&host), "%s", infill_error());
	if (set_up(&rig, kind, OPTIONS(.fill = INFILL_FILL_NONE), 1)) {
		CHECK(!userfault_protected(rig.guest.vm), "taken for a protected VM");
		CHECK(!host.kvm_error && !host.kvm_vm_error, "%d, %d", host.kvm_error, host.kvm_vm_error);
		CHECK(host.kvm_userfault > 0, "%d", host.kvm_userfault);
		CHECK(!host.kvm_pre_fault == !can_prefault(&rig), "%d", host.kvm_pre_fault);
		/* One that has both flags is what the rig was set up with. */
		CHECK((host.kvm_guest_memfd & 3) == 3, "0x%x", host.kvm_guest_memfd);
	}
	tear_down(&rig);
#ifdef __aarch64__
	{
		char line[4096] = "";
		FILE *file = fopen("/proc/cmdline", "re");
		enum infill_kvm_mode asked;

		CHECK(file && fgets(line, sizeof(line), file), "%m");
		asked = host_kvm_mode_asked(line);
		CHECK(host.kvm_mode == (asked ? asked : INFILL_KVM_MODE_VHE), "%u, but %s", host.kvm_mode,
		      line);
		/* Said before the tests of protected VMs make one. */
		CHECK(host.kvm_protected == !why_no_protected_vms(), "%u", host.kvm_protected);
		if (file)
			fclose(file);
	}
#else
	CHECK(!host.kvm_mode && !host.kvm_protected, "%u", host.kvm_mode);
#endif
}

struct test {
	const char *name;
	void (*run)(enum kind kind);
};

static const struct test tests[] = {
	{ "what the host can do", test_host },
	{ "every page by an exit", test_demand },
	{ "several vCPUs on the same pages", test_vcpus },
	{ "against the fill, and when the flag is off", test_fill },
	{ "pages in a row", test_stream },
	{ "a trace, recorded and prefaulted", test_trace },
	{ "a trace against vCPUs", test_trace_race },
	{ "filled on request", test_session_fill },
	{ "prefaulted as far as it goes", test_prefault },
	{ "touched by the VMM", test_own_access },
	{ "a page that cannot be read", test_poison },
	{ "one in a trace that cannot be read", test_poison_in_trace },
	{ "a changed image", test_stale },
	{ "one that changes while a trace is filled", test_stale_in_trace },
	{ "what is not the engine's", test_refused },
	{ "given up, there and missing", test_discard },
	{ "all given up", test_discard_all },
	{ "giving up that is refused", test_discard_refused },
	{ "given up against vCPUs and the fill", test_discard_race },
	{ "given up while somebody waits for it", test_discard_touched },
	{ "dropped by the VMM itself", test_dropped },
	{ "a session that has failed", test_failed },
	{ "a pager that is gone", test_pager_gone },
	{ "the README's example", test_example },
	{ "recorded, in the order of touches", test_recording_order },
	{ "recorded, by several at once", test_recording_threads },
	{ "recorded, the same pages by several", test_recording_same_pages },
};

/* With HUGETLB. */
static const struct test huge_tests[] = {
	{ "none is free", test_shortage },
	{ "one becomes free", test_shortage_passes },
	{ "none is free for the fill", test_shortage_of_fill },
	{ "given up while it is waited for", test_shortage_discard },
};

/* With ANON and MEMFD, where there are protected VMs. */
static const struct test protected_tests[] = {
	{ "protected: pages in a row, and at random", test_protected_touch },
	{ "protected: against the fill", test_protected_fill },
	{ "protected: touched by the VMM first", test_protected_own_access },
	{ "protected: dropped by the VMM", test_protected_dropped },
	{ "protected: a trace, recorded and prefaulted", test_protected_trace },
	{ "protected: what cannot be", test_protected_refused },
	{ "protected: a page that cannot be read", test_protected_poison },
	{ "protected: RLIMIT_MEMLOCK", test_protected_memlock },
	{ "protected: killed", test_protected_killed },
	{ "protected: a pager whose workers are killed", test_protected_pager },
	{ "protected: a pager that is gone", test_protected_pager_gone },
};

#define COUNT(table) (sizeof(table) / sizeof((table)[0]))

static const char *wanted = ""; /* a part of the names of the tests to run */

static unsigned count_wanted(const struct test *table, size_t count)
{
	unsigned n = 0;

	for (size_t i = 0; i < count; i++)
		n += strstr(table[i].name, wanted) != NULL;
	return n;
}

/* True: all passed, or are skipped, WHY not NULL. */
static bool run_tests(const struct test *table, size_t count, enum kind kind, const char *why)
{
	static unsigned number;
	bool passed = true;

	for (size_t i = 0; i < count; i++) {
		if (!strstr(table[i].name, wanted))
			continue;
		bad = false;
		if (!why)
			table[i].run(kind);
		printf("%sok %u - %s: %s%s%s\n", bad ? "not " : "", ++number, kind_name[kind],
		       table[i].name, why ? " # SKIP " : "", why ? why : "");
		passed &= !bad;
	}
	return passed;
}

int main(int argc, char **argv)
{
	const char *why;
	struct guest probe;
	bool passed = true;

	if (argc > 1)
		wanted = argv[1];

	setvbuf(stdout, NULL, _IOLBF, 0);
	if (sysconf(_SC_PAGESIZE) != (long)GUEST_PAGE) {
		puts("1..0 # SKIP infill refuses pages of 4 KiB on this host, whose own are larger");
		return 0;
	}
	if (guest_new(&probe, false) || ioctl(probe.vm, KVM_CHECK_EXTENSION, KVM_CAP_USERFAULT) <= 0) {
		puts("1..0 # SKIP no KVM Userfault");
		return 0;
	}
	guest_free(&probe);
	mkdir("/tmp", 01777);
	close(make_image());
	printf("1..%u\n", count_wanted(tests, COUNT(tests)) * KINDS +
			  count_wanted(protected_tests, COUNT(protected_tests)) * 2 +
			  count_wanted(huge_tests, COUNT(huge_tests)));
	for (enum kind kind = 0; kind < KINDS; kind++)
		passed &= run_tests(tests, COUNT(tests), kind, NULL);
	why = why_no_protected_vms();
	for (enum kind kind = ANON; kind <= MEMFD; kind++)
		passed &= run_tests(protected_tests, COUNT(protected_tests), kind, why);
	passed &= run_tests(huge_tests, COUNT(huge_tests), HUGETLB, NULL);
	unlink(image_path);
	unlink(trace_path);
	return !passed;
}
