/* SPDX-License-Identifier: MIT */
/*
 * vcpu_test.c: what a vCPU's thread asks the kernel for: which pages of a trace
 * are prefaulted, when, and by whom.  The ioctls are this file's.  That the
 * kernel's own are as these is for lib/test/lab/engine.c to show.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <errno.h>
#include <linux/userfaultfd.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "infill.h"
#include "kvm_api.h"
#include "memory.h"
#include "session.h"
#include "userfault.h"
#include "vcpu.h"

#define PAGE 4096ull
#define VCPU 1000 /* no open fd, and those behind it */
#define VCPUS 4
#define UFFD 2000 /* no open fd either */
#define SMALL 256u /* pages of each of two regions */
#define SECOND_GPA (4ull << 30) /* with a gap before it */
#define HUGE_GPA (8ull << 30)
#define HUGE_AT (2 * SMALL * PAGE)
#define ASKED 64

/* Guest-physical pages, and the errno for the first call that comes to PAGE. */
struct asked {
	uint64_t page, count;
};

static struct {
	pthread_mutex_t lock;
	struct asked asked[ASKED];
	unsigned count;
	uint64_t stop; /* a page that cannot be mapped ... */
	int error;     /* ... because of that; 0: there is none */
	unsigned stops; /* so many times */
} kvm;

/* Of the userfaultfd. */
static struct {
	int error;      /* that installs meet; 0: none */
	uint64_t woken; /* who waits at this address */
	unsigned wakes;
} uffd;

struct desk {
	struct infill_session s;
	struct infill_vcpu *v[VCPUS];
	int state_fd, image_fd;
};

static int pre_fault(struct kvm_api_pre_fault *range)
{
	uint64_t end = range->gpa + range->size, to = end;
	int error = 0;

	pthread_mutex_lock(&kvm.lock);
	if (kvm.stops && kvm.stop * PAGE >= range->gpa && kvm.stop * PAGE < end) {
		to = kvm.stop * PAGE;
		error = to == range->gpa ? kvm.error : 0;
		kvm.stops -= error != 0;
	}
	if (to > range->gpa && kvm.count < ASKED)
		kvm.asked[kvm.count++] = (struct asked){ range->gpa / PAGE, (to - range->gpa) / PAGE };
	range->gpa = to;
	range->size = end - to;
	pthread_mutex_unlock(&kvm.lock);
	errno = error;
	return error ? -1 : 0;
}

/* Pages of zeros are all that it is given here. */
static int userfaultfd(unsigned long request, void *argument)
{
	struct uffdio_zeropage *zero = argument;
	const struct uffdio_range *range = argument;

	if (request == UFFDIO_WAKE) {
		uffd.woken = range->start;
		uffd.wakes++;
		return 0;
	}
	assert_int_equal(request, UFFDIO_ZEROPAGE);
	zero->zeropage = uffd.error ? -uffd.error : (int64_t)zero->range.len;
	errno = uffd.error;
	return uffd.error ? -1 : 0;
}

int ioctl(int fd, unsigned long request, ...)
{
	void *argument;
	va_list args;

	va_start(args, request);
	argument = va_arg(args, void *);
	va_end(args);
	if (fd >= VCPU && fd < VCPU + VCPUS && request == KVM_API_PRE_FAULT)
		return pre_fault(argument);
	if (fd == UFFD)
		return userfaultfd(request, argument);
	return (int)syscall(SYS_ioctl, fd, request, argument);
}

static void *map(uint64_t bytes)
{
	void *address = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	assert_true(address != MAP_FAILED);
	return address;
}

/* Small pages of a guest_memfd, others with a gap before them in the guest, and two huge ones. */
static int set_up_missing(void **state)
{
	static struct desk d;
	struct infill_memory m = { .count = 3 };
	const struct infill_identity id = { 0 };
	struct userfault_part part[3] = { 0 };
	bool resumed;

	memset(&d, 0, sizeof(d));
	memset(&kvm, 0, sizeof(kvm));
	memset(&uffd, 0, sizeof(uffd));
	pthread_mutex_init(&kvm.lock, NULL);
	pthread_mutex_init(&d.s.lock, NULL);
	d.s.uffd = UFFD;
	d.s.options.flags = INFILL_SESSION_PREFAULT;
	d.image_fd = memfd_create("image", MFD_CLOEXEC);
	assert_int_equal(ftruncate(d.image_fd, HUGE_AT + 2 * HUGE_PAGE), 0);
	assert_int_equal(infill_image_open_fd(&d.s.image, d.image_fd, "image", NULL), 0);
	m.region[0] = (struct infill_region){ .hva = 1 << 30, .length = SMALL * PAGE,
					      .page_size = PAGE,
					      .backing = INFILL_BACKING_GUEST_MEMFD };
	m.region[1] = (struct infill_region){ .hva = 2u << 30, .length = SMALL * PAGE,
					      .page_size = PAGE, .offset = SMALL * PAGE,
					      .gpa = SECOND_GPA };
	m.region[2] = (struct infill_region){ .hva = 3u << 30, .length = 2 * HUGE_PAGE,
					      .page_size = HUGE_PAGE, .offset = HUGE_AT,
					      .gpa = HUGE_GPA };
	d.state_fd = memfd_create("state", MFD_CLOEXEC);
	assert_int_equal(pagemap_open(&d.s.pm, d.state_fd, &m, &id, 0, &resumed), 0);
	for (unsigned i = 0; i < 3; i++) {
		part[i].bitmap_bytes = PAGE;
		part[i].bitmap = map(PAGE);
	}
	part[0].target_bytes = SMALL * PAGE;
	part[0].target = map(part[0].target_bytes);
	assert_int_equal(userfault_adopt(&d.s.userfault, &d.s.pm, part), 0);
	for (unsigned i = 0; i < VCPUS; i++)
		assert_int_equal(infill_vcpu_new(&d.v[i], &d.s, VCPU + (int)i), 0);
	*state = &d;
	return 0;
}

static int set_up(void **state)
{
	int rc = set_up_missing(state);
	struct pagemap *pm = &((struct desk *)*state)->s.pm;

	pagemap_move(pm, 0, pm->header->pages, PAGE_FILLING);
	pagemap_move(pm, 0, pm->header->pages, PAGE_PRESENT);
	return rc;
}

static int tear_down(void **state)
{
	struct desk *d = *state;

	for (unsigned i = 0; i < VCPUS; i++)
		infill_vcpu_free(d->v[i]);
	vcpu_free_retired(&d->s);
	userfault_free(d->s.userfault);
	trace_index_free(&d->s.trace_index);
	pagemap_close(&d->s.pm);
	infill_image_close(d->s.image);
	close(d->image_fd);
	close(d->state_fd);
	return 0;
}

static void set_trace(struct desk *d, struct trace_run *run, size_t count)
{
	d->s.trace = (struct trace){ .count = count, .run = run };
}

#define SET_TRACE(d, run) set_trace(d, run, sizeof(run) / sizeof(run[0]))

/* What was asked for since the last time is this, and no more. */
static void assert_asked(const struct asked *asked, unsigned count)
{
	for (unsigned i = 0; i < count && i < kvm.count; i++) {
		assert_int_equal(kvm.asked[i].page, asked[i].page);
		assert_int_equal(kvm.asked[i].count, asked[i].count);
	}
	assert_int_equal(kvm.count, count);
	kvm.count = 0;
}

#define ASSERT_ASKED(...) \
	assert_asked((const struct asked[]){ __VA_ARGS__ }, \
		     sizeof((const struct asked[]){ __VA_ARGS__ }) / sizeof(struct asked))
#define ASSERT_NOTHING_ASKED() assert_asked(NULL, 0)

static void prefault(struct desk *d, unsigned vcpu, uint64_t bytes, int result)
{
	assert_int_equal(infill_vcpu_prefault(d->v[vcpu], bytes), result);
}

/* ---- which pages ------------------------------------------------------------ */

static void a_run_is_parted_where_its_region_ends(void **state)
{
	struct desk *d = *state;
	struct trace_run run[] = {
		{ (SMALL - 2) * PAGE, 5 * PAGE },
		{ HUGE_AT - PAGE, 2 * PAGE },
		{ HUGE_AT + HUGE_PAGE + PAGE, 16 * HUGE_PAGE }, /* the image is larger */
	};

	SET_TRACE(d, run);
	prefault(d, 0, 0, 0);
	ASSERT_ASKED({ SMALL - 2, 2 }, { SECOND_GPA / PAGE, 3 },
		     { SECOND_GPA / PAGE + SMALL - 1, 1 }, { HUGE_GPA / PAGE, 512 },
		     { HUGE_GPA / PAGE + 512, 512 });
	prefault(d, 0, 0, 0);
	ASSERT_NOTHING_ASKED();
}

static void what_is_not_there_is_passed_over(void **state)
{
	struct desk *d = *state;
	struct trace_run run[] = { { 0, 8 * PAGE }, { 16 * PAGE, 4 * PAGE } };

	pagemap_move(&d->s.pm, 4, 2, PAGE_REMOVED); /* given up */
	d->s.pm.state[0] = PAGE_MISSING;
	d->s.pm.state[16] = PAGE_POISONED;
	SET_TRACE(d, run);
	prefault(d, 0, 0, 0);
	ASSERT_ASKED({ 1, 3 }, { 6, 2 }, { 17, 3 });
}

/* Removed is what a page that is there is called after a thread has waited for it in vain. */
static void a_protected_vm_gives_nothing_up(void **state)
{
	struct desk *d = *state;
	struct trace_run run[] = { { 0, 8 * PAGE } };

	d->s.protected = true;
	pagemap_move(&d->s.pm, 4, 1, PAGE_REMOVED);
	SET_TRACE(d, run);
	prefault(d, 0, 0, 0);
	ASSERT_ASKED({ 0, 8 });
}

/* ---- how many at a time ----------------------------------------------------- */

static void the_next_call_goes_on(void **state)
{
	struct desk *d = *state;
	struct trace_run run[] = { { 0, 10 * PAGE }, { 20 * PAGE, 10 * PAGE },
				   { HUGE_AT, 2 * HUGE_PAGE } };

	SET_TRACE(d, run);
	prefault(d, 0, 3 * PAGE + 100, 0);
	ASSERT_ASKED({ 0, 4 });
	prefault(d, 1, 1, 0);
	ASSERT_ASKED({ 4, 1 });
	prefault(d, 0, 7 * PAGE, 0);
	ASSERT_ASKED({ 5, 5 }, { 20, 2 });
	/* Of a vCPU that is gone, too. */
	infill_vcpu_free(d->v[0]);
	d->v[0] = NULL;
	prefault(d, 1, 8 * PAGE + 5, 0);
	ASSERT_ASKED({ 22, 8 }, { HUGE_GPA / PAGE, 512 });
	prefault(d, 2, 0, 0);
	ASSERT_ASKED({ HUGE_GPA / PAGE + 512, 512 });
	prefault(d, 1, 0, 0);
	ASSERT_NOTHING_ASKED();
}

static void *prefault_some(void *arg)
{
	for (unsigned i = 0; i < 8; i++)
		if (infill_vcpu_prefault(arg, 3 * PAGE))
			return arg;
	return NULL;
}

static void several_leave_nothing_out(void **state)
{
	struct desk *d = *state;
	struct trace_run run[16];
	bool seen[SMALL] = { 0 };
	pthread_t thread[VCPUS];
	void *failed;

	for (unsigned i = 0; i < 16; i++)
		run[i] = (struct trace_run){ i * 16 * PAGE, 7 * PAGE };
	SET_TRACE(d, run);
	for (unsigned i = 0; i < VCPUS; i++)
		assert_int_equal(pthread_create(&thread[i], NULL, prefault_some, d->v[i]), 0);
	for (unsigned i = 0; i < VCPUS; i++) {
		pthread_join(thread[i], &failed);
		assert_null(failed);
	}
	prefault(d, 0, 0, 0);
	assert_in_range(kvm.count, 1, ASKED - 1);
	for (unsigned i = 0; i < kvm.count; i++)
		for (uint64_t n = 0; n < kvm.asked[i].count; n++) {
			assert_false(seen[kvm.asked[i].page + n]);
			seen[kvm.asked[i].page + n] = true;
		}
	for (unsigned page = 0; page < SMALL; page++)
		assert_int_equal(seen[page], page % 16 < 7);
}

/* ---- what stops it ---------------------------------------------------------- */

static const struct row {
	const char *name;
	int error;
	unsigned stops;   /* times that page 5 of 10 has it */
	int result;       /* for the call that meets it */
	int donated;      /* ... of a protected VM */
	bool passed_over; /* is the page left to the guest? */
} rows[] = {
	{ "a signal", EINTR, 1, 0, 0, false },
	{ "a memslot that moves on and on", EAGAIN, 3, 0, 0, false },
	{ "no memory", ENOMEM, 1, 0, -ENOMEM, false },
	{ "not there", EFAULT, 1, 0, 0, true },
	{ "broken memory", EHWPOISON, 1, 0, -EHWPOISON, true },
	{ "another VM's", EPERM, 1, -EOPNOTSUPP, -EPERM, true },
};

static void stopped_by(struct desk *d, const struct row *row, bool protected)
{
	struct trace_run run[] = { { 0, 10 * PAGE }, { 20 * PAGE, 2 * PAGE } };
	uint64_t from = 5 + row->passed_over;
	int result = protected ? row->donated : row->result;

	kvm.stop = 5;
	kvm.error = row->error;
	kvm.stops = row->stops;
	d->s.protected = protected;
	d->s.prefault_next = 0;
	SET_TRACE(d, run);
	prefault(d, 0, 0, result);
	/* One page's own trouble does not end a call that can go on. */
	if (row->passed_over && !result) {
		ASSERT_ASKED({ 0, 5 }, { from, 10 - from }, { 20, 2 });
		return;
	}
	ASSERT_ASKED({ 0, 5 });
	prefault(d, 1, 0, 0);
	ASSERT_ASKED({ from, 10 - from }, { 20, 2 });
}

static void goes_on_after_it(void **state)
{
	struct desk *d;
	void *fresh;

	(void)state;
	for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++)
		for (int protected = 0; protected < 2; protected++) {
			assert_int_equal(set_up(&fresh), 0);
			d = fresh;
			print_message("%s%s\n", rows[i].name, protected ? ", protected" : "");
			stopped_by(d, &rows[i], protected);
			tear_down(&fresh);
		}
}

static void never_for_this_vm(void **state)
{
	struct desk *d = *state;
	struct trace_run run[] = { { 0, 10 * PAGE } };

	kvm.error = EOPNOTSUPP;
	kvm.stops = 10;
	SET_TRACE(d, run);
	for (unsigned i = 0; i < VCPUS; i++) {
		kvm.stop = i;
		prefault(d, i, 0, -EOPNOTSUPP);
	}
	ASSERT_NOTHING_ASKED();
}

/* ---- exits ------------------------------------------------------------------ */

static int exit_at(struct desk *d, uint64_t gpa)
{
	struct kvm_run *run = map(PAGE);
	struct kvm_api_memory_fault *fault = (void *)(uintptr_t)kvm_api_memory_fault(run);
	int rc;

	run->exit_reason = KVM_EXIT_MEMORY_FAULT;
	fault->flags = KVM_MEMORY_EXIT_FLAG_USERFAULT;
	fault->gpa = gpa;
	rc = infill_vcpu_exit(d->v[0], run);
	munmap(run, PAGE);
	return rc;
}

/* What is filled for an exit is prefaulted behind its page; an error for good ends that. */
static void a_failed_prefault_is_no_reason_to_stop(void **state)
{
	static const struct {
		int error;
		bool goes_on;
	} errors[] = { { EINTR, true }, { ENOMEM, true }, { EHWPOISON, true }, { EPERM, true },
		       { EOPNOTSUPP, false } };
	struct desk *d = *state;
	struct trace_run run[] = { { 0, SMALL * PAGE } };

	d->s.protected = true;
	SET_TRACE(d, run);
	assert_int_equal(trace_index_new(&d->s.trace_index, &d->s.trace), 0);
	for (uint64_t i = 0; i < sizeof(errors) / sizeof(errors[0]); i++) {
		uint64_t page = i * 2 * EXIT_RUN_MAX, next = page + EXIT_RUN_MAX;

		kvm.stop = page + 5;
		kvm.error = errors[i].error;
		kvm.stops = 1;
		assert_int_equal(exit_at(d, page * PAGE), 0);
		ASSERT_ASKED({ page + 1, 4 });
		assert_int_equal(exit_at(d, next * PAGE), 0);
		if (errors[i].goes_on)
			ASSERT_ASKED({ next + 1, EXIT_RUN_MAX - 1 });
		else
			ASSERT_NOTHING_ASKED();
	}
}

/* An install wakes who waits in the kernel; one that finds the page there does not. */
static void who_waits_for_a_page_that_was_there_is_woken(void **state)
{
	const uint64_t page = 9;
	struct desk *d = *state;

	d->s.options.fill = INFILL_FILL_NONE;
	assert_int_equal(exit_at(d, SECOND_GPA), 0);
	assert_int_equal(uffd.wakes, 0);
	uffd.error = EEXIST;
	assert_int_equal(exit_at(d, SECOND_GPA + page * PAGE), 0);
	assert_int_equal(pagemap_get(&d->s.pm, SMALL + page), PAGE_PRESENT);
	assert_int_equal(uffd.wakes, 1);
	assert_int_equal(uffd.woken, (2ull << 30) + page * PAGE);
}

#define TEST(f) cmocka_unit_test_setup_teardown(f, set_up, tear_down)
#define TEST_MISSING(f) cmocka_unit_test_setup_teardown(f, set_up_missing, tear_down)

int main(void)
{
	const struct CMUnitTest tests[] = {
		TEST(a_run_is_parted_where_its_region_ends),
		TEST(what_is_not_there_is_passed_over),
		TEST(a_protected_vm_gives_nothing_up),
		TEST(the_next_call_goes_on),
		TEST(several_leave_nothing_out),
		cmocka_unit_test(goes_on_after_it),
		TEST(never_for_this_vm),
		TEST_MISSING(a_failed_prefault_is_no_reason_to_stop),
		TEST_MISSING(who_waits_for_a_page_that_was_there_is_woken),
	};

	return cmocka_run_group_tests_name("vcpu", tests, NULL, NULL);
}
