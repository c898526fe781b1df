/* SPDX-License-Identifier: MIT */
/*
 * protected.c: protected VMs under pKVM: what the guest has touched is lost to
 * this process, so the guest itself compares every word, and tells the result by
 * MMIO.  An access to what is the guest's would be a SIGSEGV, and end the program.
 */
#include "tests.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/capability.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "usage.h"
#include "userfault.h"

#define CODE_PAGES 1 /* the guest's code is donated as its memory is */

const char *why_no_protected_vms(void)
{
	static char reason[80];
	int kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC);
	int vm = ioctl(kvm, KVM_CREATE_VM, KVM_VM_TYPE_ARM_PROTECTED);

	if (vm < 0)
		snprintf(reason, sizeof(reason), "KVM makes no protected VM: %s", strerror(errno));
	else
		close(vm);
	close(kvm);
	return vm < 0 ? reason : NULL;
}

/* ---- whose a page is ---------------------------------------------------------- */

static sigjmp_buf no_access;

static void on_segv(int signal)
{
	(void)signal;
	siglongjmp(no_access, 1);
}

static bool is_ours(const struct rig *rig, uint32_t page)
{
	struct sigaction action = { .sa_handler = on_segv }, old;
	bool ours = false;

	sigaction(SIGSEGV, &action, &old);
	if (!sigsetjmp(no_access, 1)) {
		(void)*(volatile uint32_t *)(rig->memory + (size_t)page * WORDS);
		ours = true;
	}
	sigaction(SIGSEGV, &old, NULL);
	return ours;
}

/* What the guest has of this process, since it had LOCKED. */
static void check_donated(long locked, long pages)
{
	long now = usage_locked() - locked;

	CHECK(now == pages, "%ld pages are locked, not %ld", now, pages);
}

/* ---- on demand, and against the fill ------------------------------------------- */

/* FACTOR 1: one page behind the other. */
static void touch_first(enum kind kind, unsigned vcpus, uint32_t factor)
{
	const uint32_t flags = factor == 1 ? INFILL_SESSION_PREFAULT : 0;
	struct infill_counters c;
	struct rig rig;
	long locked;

	if (set_up_protected(&rig, kind, NULL, OPTIONS(.fill = INFILL_FILL_NONE, .flags = flags),
			     vcpus)) {
		CHECK(userfault_protected(rig.guest.vm), "taken for another kind of VM");
		locked = usage_locked();
		verify_all(&rig, vcpus, factor, 0);
		CHECK(!infill_session_wait(rig.session, INFILL_WAIT_RESIDENT, 10000), "%s",
		      infill_error());
		c = counters_of(&rig);
		CHECK(c.demand_pages == PAGES && !c.duplicates, "%llu pages, %llu duplicates",
		      (unsigned long long)c.demand_pages, (unsigned long long)c.duplicates);
		CHECK(factor != 1 || c.prefault_bytes > BYTES / 2, "%llu bytes prefaulted",
		      (unsigned long long)c.prefault_bytes);
		check_donated(locked, PAGES + CODE_PAGES);
		CHECK(!is_ours(&rig, 0) && !is_ours(&rig, HOLE_FROM) && !is_ours(&rig, PAGES - 1),
		      "the VM is not protected");
		/* What it wrote is there, with the flag off, and nothing is filled any more. */
		verify_all(&rig, vcpus, 5, 1);
		CHECK(counters_of(&rig).installs == PAGES, "filled again");
	}
	tear_down(&rig);
}

void test_protected_touch(enum kind kind)
{
	long locked = usage_locked();

	touch_first(kind, 1, 1);
	touch_first(kind, 2, 5);
	check_donated(locked, 0);
}

/* Zeros, too, are there before the guest may touch them. */
void test_protected_fill(enum kind kind)
{
	long locked = usage_locked();
	struct infill_counters c;
	struct rig rig;

	if (set_up_protected(&rig, kind, NULL,
			     OPTIONS(.fill = INFILL_FILL_ALL, .flags = INFILL_SESSION_PREFAULT), 2)) {
		verify_all(&rig, 2, 1, 0);
		CHECK(!infill_session_wait(rig.session, INFILL_WAIT_RESIDENT, 10000), "%s",
		      infill_error());
		c = counters_of(&rig);
		CHECK(c.demand_pages + c.rest_pages == PAGES, "%llu and %llu pages",
		      (unsigned long long)c.demand_pages, (unsigned long long)c.rest_pages);
		verify_all(&rig, 2, 5, 1);
	}
	tear_down(&rig);
	check_donated(locked, 0);
}

static void *look(void *arg)
{
	struct visitor *v = arg;

	for (uint32_t page = v->start; page < PAGES; page += v->step) {
		uint32_t word = *(volatile uint32_t *)(v->rig->memory + (size_t)page * WORDS);

		v->sum += word != word_of(page);
	}
	return NULL;
}

/* By this process, before the guest: by several threads at once, which wait for the same pages. */
void test_protected_own_access(enum kind kind)
{
	struct visitor visitor[VCPUS];
	pthread_t thread[VCPUS];
	struct rig rig;

	if (set_up_protected(&rig, kind, NULL, OPTIONS(.fill = INFILL_FILL_NONE), 1)) {
		for (unsigned i = 0; i < VCPUS; i++) {
			visitor[i] = (struct visitor){ .rig = &rig, .start = 1, .step = 7 };
			pthread_create(&thread[i], NULL, look, &visitor[i]);
		}
		for (unsigned i = 0; i < VCPUS; i++) {
			pthread_join(thread[i], NULL);
			CHECK(!visitor[i].sum, "%u pages are wrong", visitor[i].sum);
		}
		verify_all(&rig, 1, 5, 0);
	}
	tear_down(&rig);
}

static uint32_t sum_of(uint32_t pages)
{
	uint32_t sum = 0;

	for (uint32_t page = 0; page < pages; page++)
		sum += word_of(page);
	return sum;
}

/*
 * A page that this process drops, as it must not, and then wants: it does not
 * hang, and the guest loses nothing.
 */
void test_protected_dropped(enum kind kind)
{
	const uint32_t pages = 128, page = 5;
	struct rig rig;
	uint32_t *at, sum;

	if (kind == ANON && set_up_protected(&rig, kind, NULL, OPTIONS(.fill = INFILL_FILL_NONE), 1)) {
		at = rig.memory + (size_t)page * WORDS;
		for (unsigned i = 0; i < 2; i++) {
			guest_visit(&rig.vcpu[0], pages, 0, 1, 0);
			CHECK(!run(&rig, 0, &sum) && sum == sum_of(pages), "%u: %s", sum,
			      infill_error());
			CHECK(!madvise(at, GUEST_PAGE, MADV_DONTNEED), "%m");
			CHECK(!*(volatile uint32_t *)at, "%u", *at);
		}
		tear_down(&rig);
	}
}

/* ---- ahead ------------------------------------------------------------------------ */

static void record(enum kind kind)
{
	struct rig rig;

	unlink(trace_path);
	if (set_up_protected(&rig, kind, NULL, OPTIONS(RECORD_ALL), 1)) {
		verify_all(&rig, 1, 5, 0);
		CHECK(!infill_session_wait(rig.session, INFILL_WAIT_RECORDED, 60000), "%s",
		      infill_error());
	}
	tear_down(&rig);
}

/* What was recorded is donated before the guest runs. */
void test_protected_trace(enum kind kind)
{
	struct rig rig;
	long locked;

	record(kind);
	if (set_up_protected(&rig, kind, NULL,
			     OPTIONS(.fill = INFILL_FILL_TRACE, .trace = trace_path), 1)) {
		CHECK(!infill_session_wait(rig.session, INFILL_WAIT_TRACE, 10000), "%s",
		      infill_error());
		locked = usage_locked();
		CHECK(!infill_vcpu_prefault(rig.filler[0], 0), "%s", infill_error());
		check_donated(locked, PAGES);
		CHECK(counters_of(&rig).prefault_bytes == BYTES, "%llu bytes",
		      (unsigned long long)counters_of(&rig).prefault_bytes);
		verify_all(&rig, 1, 1, 0);
		CHECK(!counters_of(&rig).faults, "%llu exits",
		      (unsigned long long)counters_of(&rig).faults);
	}
	tear_down(&rig);
}

/* ---- what is refused ----------------------------------------------------------------- */

static int start_again(struct rig *rig, struct infill_region region)
{
	struct infill_memory *memory;
	struct infill_session *s;
	int ret = infill_memory_new(&memory);

	CHECK(!ret && !infill_memory_add(memory, &region), "%s", infill_error());
	ret = infill_session_start_vm(&s, rig->pool, rig->guest.vm, memory, rig->image, NULL);
	if (!ret)
		infill_session_stop(s);
	infill_memory_free(memory);
	return ret;
}

static void check_refused(int ret, int error, const char *part)
{
	CHECK(ret == error && strstr(infill_error(), part), "%d, not %d: %s", ret, error,
	      infill_error());
}

/* Memory that cannot be donated; and all of it, once the guest may have touched it. */
void test_protected_refused(enum kind kind)
{
	struct infill_region region;
	struct rig rig;

	if (set_up_protected(&rig, kind, NULL, OPTIONS(.fill = INFILL_FILL_ALL), 1)) {
		region = rig.region;
		region.backing = INFILL_BACKING_GUEST_MEMFD;
		check_refused(start_again(&rig, region), -EOPNOTSUPP, "cannot have a guest_memfd");
		region.backing = INFILL_BACKING_HUGETLB;
		region.page_size = HUGE_BYTES;
		region.hva &= ~(uint64_t)(HUGE_BYTES - 1);
		check_refused(start_again(&rig, region), -EOPNOTSUPP, "cannot have huge pages");
		region = rig.region;
		region.slot_flags = KVM_MEM_LOG_DIRTY_PAGES;
		check_refused(start_again(&rig, region), -EINVAL, "slot_flags are 0x1");

		check_refused(infill_session_discard(rig.session, GUEST_MEMORY_GPA, GUEST_PAGE),
			      -EOPNOTSUPP, "memory of a protected VM");
		CHECK(!infill_session_wait(rig.session, INFILL_WAIT_RESIDENT, 10000), "%s",
		      infill_error());
		verify_all(&rig, 1, 1, 0);
		check_refused(infill_session_discard(rig.session, GUEST_MEMORY_GPA, BYTES), -EOPNOTSUPP,
			      "memory of a protected VM");
		check_refused(start_again(&rig, rig.region), -EPERM, "has run, or prefaulted");
		verify_all(&rig, 1, 5, 1);
	}
	tear_down(&rig);
}

/* The flag stays for a page that cannot be read: the vCPU is told, whenever it comes there. */
void test_protected_poison(enum kind kind)
{
	static const enum infill_fill fill[] = { INFILL_FILL_NONE, INFILL_FILL_ALL };
	const uint32_t page = 777;
	struct rig rig;

	for (unsigned i = 0; i < 2; i++) {
		break_image(page);
		if (set_up_protected(&rig, kind, NULL, OPTIONS(.fill = fill[i]), 1)) {
			CHECK(fill[i] || !infill_session_wait(rig.session, INFILL_WAIT_RESIDENT, 10000),
			      "%s", infill_error());
			run_into_poison(&rig, page);
		}
		tear_down(&rig);
		mend_image();
	}
}

/* ---- limits and ends ------------------------------------------------------------------- */

#define FEW_PAGES 100

static void set_memlock(rlim_t bytes)
{
	const struct rlimit limit = { bytes, RLIM_INFINITY };

	CHECK(!setrlimit(RLIMIT_MEMLOCK, &limit), "%m");
}

/* So that the limit counts. */
static void drop_ipc_lock(void)
{
	struct __user_cap_header_struct header = { .version = _LINUX_CAPABILITY_VERSION_3 };
	struct __user_cap_data_struct data[2];

	CHECK(!syscall(SYS_capget, &header, data), "%m");
	data[0].effective &= ~(1u << CAP_IPC_LOCK);
	CHECK(!syscall(SYS_capset, &header, data), "%m");
}

/*
 * What is prefaulted for an exit beyond the limit costs nothing; what the guest
 * touches there is an error of KVM_RUN, and the guest goes on with more.
 */
static void run_into_limit(enum kind kind)
{
	struct rig rig;
	uint32_t sum;
	int ret;

	if (set_up_protected(&rig, kind, NULL,
			     OPTIONS(.fill = INFILL_FILL_NONE, .flags = INFILL_SESSION_PREFAULT), 1)) {
		set_memlock((rlim_t)(usage_locked() + FEW_PAGES) * GUEST_PAGE);
		guest_visit(&rig.vcpu[0], PAGES, 0, 1, 0);
		ret = try_run(&rig, 0, &sum);
		CHECK(ret == -ENOMEM, "%d: %s", ret, infill_error());
		CHECK(!infill_session_error(rig.session, NULL), "the session has failed");
		set_memlock(RLIM_INFINITY);
		ret = run(&rig, 0, &sum);
		CHECK(!ret && sum == sum_of_all(), "%d, %u: %s", ret, sum, infill_error());
		verify_all(&rig, 1, 1, 1);
	}
	tear_down(&rig);
}

static void prefault_into_limit(enum kind kind)
{
	struct rig rig;
	int ret;

	if (set_up_protected(&rig, kind, NULL,
			     OPTIONS(.fill = INFILL_FILL_TRACE, .trace = trace_path), 1)) {
		CHECK(!infill_session_wait(rig.session, INFILL_WAIT_TRACE, 10000), "%s",
		      infill_error());
		set_memlock((rlim_t)(usage_locked() + FEW_PAGES) * GUEST_PAGE);
		ret = infill_vcpu_prefault(rig.filler[0], 0);
		check_refused(ret, -ENOMEM, "RLIMIT_MEMLOCK");
		CHECK(counters_of(&rig).prefault_bytes == FEW_PAGES * GUEST_PAGE, "%llu bytes",
		      (unsigned long long)counters_of(&rig).prefault_bytes);
		set_memlock(RLIM_INFINITY);
		/* Nothing of the trace was lost by it. */
		CHECK(!infill_vcpu_prefault(rig.filler[0], 0), "%s", infill_error());
		CHECK(counters_of(&rig).prefault_bytes == BYTES, "%llu bytes",
		      (unsigned long long)counters_of(&rig).prefault_bytes);
		verify_all(&rig, 1, 1, 0);
	}
	tear_down(&rig);
}

void test_protected_memlock(enum kind kind)
{
	int status = -1;
	pid_t child;

	record(kind);
	child = bad ? -1 : fork();
	if (!child) {
		drop_ipc_lock();
		run_into_limit(kind);
		prefault_into_limit(kind);
		_exit(bad);
	}
	CHECK(child > 0 && waitpid(child, &status, 0) == child && !status, "status 0x%x", status);
}

/* Killed in the middle: nothing of it is pinned, and no table is left. */
void test_protected_killed(enum kind kind)
{
	struct usage before = usage_get();
	struct rig rig;
	pid_t child = fork();

	if (!child) {
		if (set_up_protected(&rig, kind, NULL, OPTIONS(.fill = INFILL_FILL_NONE), 2))
			for (uint32_t visits = 0; !bad; visits++)
				verify_all(&rig, 2, 5, visits);
		_exit(1);
	}
	CHECK(usage_wait(&before, PAGES / 2, 60), "no page was pinned");
	kill(child, SIGKILL);
	CHECK(waitpid(child, NULL, 0) == child, "%m");
	CHECK(usage_wait(&before, 0, 20), "not all of it is released");
}
