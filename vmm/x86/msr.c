/* SPDX-License-Identifier: MIT */
/*
 * msr.c: see msr.h.  A page that KVM shares with a guest by another MSR gets a
 * line in `shared`.
 */
#include <asm/kvm_para.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>

#include "arch.h"
#include "msr.h"

#define MSR_TSC 0x10u
#define MSR_TSC_DEADLINE 0x6e0u
#define MSRS_MAX 4096u
#define UNLISTED_MAX 256u /* those of `unlisted` */

/* For one at a time: KVM stops at the first that it does not know. */
struct one_msr {
	struct kvm_msrs head;
	struct kvm_msr_entry entry;
};

static bool read_one(int fd, uint32_t index, uint64_t *value)
{
	struct one_msr msr = { .head.nmsrs = 1, .entry.index = index };

	if (ioctl(fd, KVM_GET_MSRS, &msr) != 1)
		return false;
	*value = msr.entry.data;
	return true;
}

static bool write_one(int fd, const struct kvm_msr_entry *entry)
{
	struct one_msr msr = { .head.nmsrs = 1, .entry = { .index = entry->index, .data = entry->data } };

	return ioctl(fd, KVM_SET_MSRS, &msr) == 1;
}

/*
 * What a guest can write, KVM keeps, and its list lacks.  What else the list lacks is
 * in other parts of the state (EFER, APIC_BASE, FS and GS base, those of the x2APIC), is a
 * constant or a command, or needs what no vCPU here has: CMCI (MCi_CTL2), Hyper-V, Xen.
 */
static const struct {
	uint32_t first, count;
} unlisted[] = {
	{ 0x200, 16 },             /* MTRRs: base and mask of 8 variable ranges */
	{ 0x250, 1 }, { 0x258, 2 }, { 0x268, 8 }, /* ... the fixed ranges */
	{ 0x2ff, 1 },              /* ... the type of all else */
	{ 0x400, 4 * 32 },         /* machine check banks: control, status, address, more */
};

/* The numbers of all that may need saving; NULL after vmm_error(). */
static struct kvm_msr_list *known(const struct vm *vm)
{
	struct kvm_msr_list *list = calloc(1, sizeof(*list) + MSRS_MAX * sizeof(list->indices[0]));

	if (list)
		list->nmsrs = MSRS_MAX - UNLISTED_MAX;
	if (!list || ioctl(vm->kvm, KVM_GET_MSR_INDEX_LIST, list)) {
		vmm_error(-errno, "MSRs: %m");
		free(list);
		return NULL;
	}
	for (unsigned i = 0; i < sizeof(unlisted) / sizeof(unlisted[0]); i++)
		for (uint32_t n = 0; n < unlisted[i].count; n++)
			list->indices[list->nmsrs++] = unlisted[i].first + n;
	return list;
}

int msr_read_all(struct vcpu *vcpu, struct msr_list *list)
{
	struct kvm_msr_list *names = known(vcpu->vm);

	*list = (struct msr_list){ 0 };
	if (!names)
		return -EIO;
	list->entry = calloc(names->nmsrs, sizeof(list->entry[0]));
	if (!list->entry) {
		free(names);
		return vmm_error(-ENOMEM, "MSRs: %m");
	}
	for (uint32_t i = 0; i < names->nmsrs; i++) {
		struct kvm_msr_entry entry = { .index = names->indices[i] };
		uint64_t value;

		if (!read_one(vcpu->fd, entry.index, &value))
			continue;
		entry.data = value;
		list->entry[list->count++] = entry;
	}
	free(names);
	return 0;
}

void msr_list_free(struct msr_list *list)
{
	free(list->entry);
	*list = (struct msr_list){ 0 };
}

static int write_or_same(struct vcpu *vcpu, const struct kvm_msr_entry *entry)
{
	uint64_t value;

	if (write_one(vcpu->fd, entry) ||
	    (read_one(vcpu->fd, entry->index, &value) && value == entry->data))
		return 0;
	return vmm_error(-EIO, "restoring MSR %#x of %u to %#llx: this host refuses it",
			 entry->index, vcpu->index, (unsigned long long)entry->data);
}

int msr_write_all(struct vcpu *vcpu, const struct kvm_msr_entry *entry, size_t count)
{
	const struct kvm_msr_entry *deadline = NULL;
	int err = 0;

	/*
	 * The TSC first and the deadline, which is compared with it, last.  The wall
	 * clock's registers not at all: a write has KVM write the time to the guest,
	 * which writes them itself whenever it wants to know.
	 */
	for (size_t i = 0; i < count && !err; i++)
		if (entry[i].index == MSR_TSC)
			err = write_or_same(vcpu, &entry[i]);
	for (size_t i = 0; i < count && !err; i++) {
		if (entry[i].index == MSR_TSC_DEADLINE)
			deadline = &entry[i];
		else if (entry[i].index != MSR_TSC && entry[i].index != MSR_KVM_WALL_CLOCK &&
			 entry[i].index != MSR_KVM_WALL_CLOCK_NEW)
			err = write_or_same(vcpu, &entry[i]);
	}
	return err || !deadline ? err : write_or_same(vcpu, deadline);
}

int msr_kvm_memory(struct vcpu *vcpu, int (*fn)(void *arg, uint64_t gpa, uint64_t bytes),
		   void *arg)
{
	/* The address is the value without its low bits; bit 0 turns it on. */
	static const struct {
		uint32_t index;
		uint32_t low_bits, bytes;
	} shared[] = {
		{ MSR_KVM_SYSTEM_TIME, 0x1, 32 },
		{ MSR_KVM_SYSTEM_TIME_NEW, 0x1, 32 },
		{ MSR_KVM_STEAL_TIME, 0x3f, 64 },
		{ MSR_KVM_ASYNC_PF_EN, 0x3f, 64 },
		{ MSR_KVM_PV_EOI_EN, 0x3, 4 },
	};
	uint64_t value;
	int err = 0;

	for (unsigned i = 0; i < sizeof(shared) / sizeof(shared[0]) && !err; i++)
		if (read_one(vcpu->fd, shared[i].index, &value) && (value & 1))
			err = fn(arg, value & ~(uint64_t)shared[i].low_bits, shared[i].bytes);
	return err;
}
