/* SPDX-License-Identifier: MIT */
/*
 * prefault_test.c: what prefault_range() makes of each answer that
 * KVM_PRE_FAULT_MEMORY may give.  Most of them need a race or broken memory to
 * come about, so the ioctl is this file's: it goes through a list of answers.
 * That KVM's own are as these is for lib/test/lab/engine.c and the series'
 * pre_fault_* tests to show.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <errno.h>
#include <stdbool.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "infill.h"
#include "kvm_api.h"
#include "prefault.h"

#define VCPU 1000 /* no open fd */
#define PAGE 4096u
#define GPA 0x40000000u
#define ANSWERS 6

/* One answer: so many pages are mapped, and then the errno; 0: success. */
struct answer {
	unsigned pages;
	int error;
};

static struct {
	struct answer answer[ANSWERS];
	unsigned calls;
	uint64_t gpa; /* where the next call has to begin */
} kvm;

/* As KVM does it: progress is in the range, with and without an error. */
int ioctl(int fd, unsigned long request, ...)
{
	const struct answer *answer = &kvm.answer[kvm.calls];
	struct kvm_api_pre_fault *range;
	va_list args;

	va_start(args, request);
	range = va_arg(args, void *);
	va_end(args);
	if (fd != VCPU)
		return (int)syscall(SYS_ioctl, fd, request, range);
	assert_int_equal(request, KVM_API_PRE_FAULT);
	assert_true(++kvm.calls < ANSWERS);
	assert_int_equal(range->gpa, kvm.gpa);
	assert_int_equal(range->flags, 0);
	assert_in_range(answer->pages * PAGE, 0, range->size);
	range->gpa += answer->pages * PAGE;
	range->size -= answer->pages * PAGE;
	kvm.gpa = range->gpa;
	errno = answer->error;
	return answer->error ? -1 : 0;
}

static rlim_t memlock;

int getrlimit(__rlimit_resource_t resource, struct rlimit *limit)
{
	assert_int_equal(resource, RLIMIT_MEMLOCK);
	*limit = (struct rlimit){ memlock, RLIM_INFINITY };
	return 0;
}

static const struct row {
	const char *name;
	struct answer answer[ANSWERS];
	unsigned calls;
	unsigned done; /* of 8 pages */
	int result;
	int donated; /* the result for a protected VM */
} rows[] = {
	{ "all at once", { { 8, 0 } }, 1, 8, 0, 0 },
	{ "in three calls", { { 1, 0 }, { 4, 0 }, { 3, 0 } }, 3, 8, 0, 0 },
	{ "missing", { { 3, 0 }, { 2, EFAULT } }, 2, 5, 0, 0 },
	{ "missing at once", { { 0, EFAULT } }, 1, 0, 0, 0 },
	{ "a signal", { { 2, EINTR } }, 1, 2, -EAGAIN, -EAGAIN },
	{ "broken memory", { { 7, EHWPOISON } }, 1, 7, 0, -EHWPOISON },
	{ "no memslot", { { 4, ENOENT } }, 1, 4, 0, 0 },
	{ "not readable", { { 1, EACCES } }, 1, 1, 0, 0 },
	{ "no memory", { { 1, ENOMEM } }, 1, 1, -EAGAIN, -ENOMEM },
	{ "a memslot that moves", { { 0, EAGAIN }, { 2, EAGAIN }, { 6, 0 } }, 3, 8, 0, 0 },
	{ "a memslot that moves on and on", { { 0, EAGAIN }, { 0, EAGAIN }, { 1, EAGAIN } }, 3, 1,
	  -EAGAIN, -EAGAIN },
	{ "not for this VM", { { 0, EOPNOTSUPP } }, 1, 0, -EOPNOTSUPP, -EOPNOTSUPP },
	{ "not for this kernel", { { 0, EINVAL } }, 1, 0, -EOPNOTSUPP, -EOPNOTSUPP },
	{ "no such ioctl", { { 0, ENOTTY } }, 1, 0, -EOPNOTSUPP, -EOPNOTSUPP },
	{ "another VM's", { { 3, EPERM } }, 1, 3, -EOPNOTSUPP, -EPERM },
	{ "any more", { { 2, 0 }, { 1, EIO } }, 2, 3, -EOPNOTSUPP, -EOPNOTSUPP },
};

static void answered(const struct row *row, bool protected, int result)
{
	uint64_t done = 99;

	memset(&kvm, 0, sizeof(kvm));
	memcpy(kvm.answer, row->answer, sizeof(kvm.answer));
	kvm.gpa = GPA;
	assert_int_equal(prefault_range(VCPU, GPA, 8 * PAGE, protected, &done), result);
	assert_int_equal(done, row->done * PAGE);
	assert_int_equal(kvm.calls, row->calls);
	if (result)
		assert_non_null(strstr(infill_error(), "KVM_PRE_FAULT_MEMORY"));
}

static void each_answer(void **state)
{
	const struct row *row = *state;

	answered(row, false, row->result);
	answered(row, true, row->donated);
}

/* The kernel says the same of a limit and of a host that has none. */
static void no_memory_names_a_limit_that_there_is(void **state)
{
	const struct row *row = rows;

	(void)state;
	while (row->donated != -ENOMEM)
		row++;
	memlock = 64 << 10;
	answered(row, true, row->donated);
	assert_non_null(strstr(infill_error(),
			       "0x40001000: no memory within RLIMIT_MEMLOCK, 64 KiB"));
	memlock = RLIM_INFINITY;
	answered(row, true, row->donated);
	assert_null(strstr(infill_error(), "RLIMIT_MEMLOCK"));
	assert_non_null(strstr(infill_error(), "0x40001000: the host"));
}

static void nothing_is_asked_for(void **state)
{
	uint64_t done = 99;

	(void)state;
	memset(&kvm, 0, sizeof(kvm));
	assert_int_equal(prefault_range(VCPU, GPA, 0, false, &done), 0);
	assert_int_equal(done, 0);
	assert_int_equal(kvm.calls, 0);
}

#define ROWS (sizeof(rows) / sizeof(rows[0]))

int main(void)
{
	struct CMUnitTest tests[ROWS + 2];

	for (size_t i = 0; i < ROWS; i++)
		tests[i] = (struct CMUnitTest){ .name = rows[i].name, .test_func = each_answer,
						.initial_state = (void *)(uintptr_t)&rows[i] };
	tests[ROWS] = (struct CMUnitTest)cmocka_unit_test(nothing_is_asked_for);
	tests[ROWS + 1] = (struct CMUnitTest)cmocka_unit_test(no_memory_names_a_limit_that_there_is);
	return cmocka_run_group_tests_name("prefault", tests, NULL, NULL);
}
