/* SPDX-License-Identifier: MIT */
/*
 * vmm_msr_test.c: which MSRs are saved, by a KVM that is none: it keeps some, lists fewer,
 * as KVM does, and refuses all others.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <errno.h>
#include <sys/ioctl.h>

#include "scratch.h"
#include "x86/msr.h"

#define LISTED 0xc0000081u
#define TSC 0x10u
#define CONSTANT 0x10au /* cannot be written */

/* What a vCPU keeps: `fd` is its index here. */
static struct msr {
	uint32_t first, count;
	uint64_t value[2][128];
} msrs[] = {
	{ .first = TSC, .count = 1 },
	{ .first = CONSTANT, .count = 1 },
	{ .first = LISTED, .count = 1 },
	{ .first = 0x200, .count = 16 }, /* MTRRs */
	{ .first = 0x250, .count = 1 },
	{ .first = 0x258, .count = 2 },
	{ .first = 0x268, .count = 8 },
	{ .first = 0x2ff, .count = 1 },
	{ .first = 0x400, .count = 128 }, /* machine checks */
};

static uint64_t *find(int vcpu, uint32_t index)
{
	for (size_t i = 0; i < COUNT(msrs); i++)
		if (index >= msrs[i].first && index - msrs[i].first < msrs[i].count)
			return &msrs[i].value[vcpu][index - msrs[i].first];
	return NULL;
}

static int list_msrs(struct kvm_msr_list *list)
{
	static const uint32_t listed[] = { TSC, CONSTANT, LISTED, 0x12345 };

	assert_true(list->nmsrs >= COUNT(listed));
	list->nmsrs = COUNT(listed);
	memcpy(list->indices, listed, sizeof(listed));
	return 0;
}

/* In the place of the C library's, for the whole program. */
int ioctl(int fd, unsigned long request, ...)
{
	struct kvm_msrs *one;
	uint64_t *value;
	va_list args;

	va_start(args, request);
	one = va_arg(args, void *);
	va_end(args);
	if (request == KVM_GET_MSR_INDEX_LIST)
		return list_msrs((void *)one);
	value = find(fd, one->entries[0].index);
	if (!value || (request == KVM_SET_MSRS && one->entries[0].index == CONSTANT))
		return 0;
	if (request == KVM_SET_MSRS)
		*value = one->entries[0].data;
	else
		one->entries[0].data = *value;
	return 1;
}

static void all_that_kvm_keeps_is_saved(void **arg)
{
	struct vm vm = { .kvm = -1 };
	struct vcpu vcpu[2] = { { .vm = &vm, .fd = 0 }, { .vm = &vm, .fd = 1 } };
	struct msr_list list;

	(void)arg;
	for (size_t i = 0; i < COUNT(msrs); i++)
		for (uint32_t n = 0; n < msrs[i].count; n++)
			msrs[i].value[0][n] = msrs[i].first + n + 1000;
	*find(1, CONSTANT) = *find(0, CONSTANT);
	assert_int_equal(msr_read_all(&vcpu[0], &list), 0);
	assert_int_equal(msr_write_all(&vcpu[1], list.entry, list.count), 0);
	for (size_t i = 0; i < COUNT(msrs); i++)
		assert_memory_equal(msrs[i].value[0], msrs[i].value[1], 8 * msrs[i].count);
	*find(1, CONSTANT) = 1;
	assert_int_equal(msr_write_all(&vcpu[1], list.entry, list.count), -EIO);
	msr_list_free(&list);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(all_that_kvm_keeps_is_saved),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
