/* SPDX-License-Identifier: MIT */
/*
 * cpuid.c: what a vCPU says of itself: what KVM supports on this host, less what
 * the state file could not hold.  To hide another feature clear its bit in adjust().
 */
#include <errno.h>
#include <stdlib.h>
#include <sys/ioctl.h>

#include "arch.h"
#include "x86.h"

#define ENTRIES 256

#ifndef KVM_CAP_TSC_DEADLINE_TIMER
#define KVM_CAP_TSC_DEADLINE_TIMER 72
#endif

#define BIT(n) (1u << (n))

/* Every vCPU is a package of its own, with its index as APIC ID: nothing is shared. */
static void adjust(struct kvm_cpuid_entry2 *e, const struct vcpu *vcpu, bool deadline)
{
	switch (e->function) {
	case 1:
		e->ebx = (e->ebx & 0xffff) | 1u << 16 | vcpu->index << 24;
		e->edx &= ~BIT(28);  /* several threads */
		e->ecx &= ~BIT(5);   /* VMX: a guest's guests are not saved */
		e->ecx &= ~BIT(24);
		e->ecx |= deadline ? BIT(24) : 0;
		break;
	case 4:
	case 0x8000001d:
		e->eax &= 0x3fff; /* CPUs that share it, cores of the package */
		break;
	case 0xb: /* topology */
	case 0x1f:
		e->eax = e->ebx = e->ecx = 0;
		e->edx = vcpu->index;
		break;
	case 0x80000001:
		e->ecx &= ~(BIT(2) | BIT(22)); /* SVM as VMX; more of topology */
		break;
	case 0x80000008:
		e->ecx = 0; /* threads of the package */
		break;
	case 0x8000000a: /* SVM */
	case 0x8000001e: /* topology */
		e->eax = e->ebx = e->ecx = e->edx = 0;
		break;
	}
}

int x86_cpuid(struct vcpu *vcpu)
{
	struct kvm_cpuid2 *cpuid = calloc(1, sizeof(*cpuid) + ENTRIES * sizeof(cpuid->entries[0]));
	bool deadline = ioctl(vcpu->vm->kvm, KVM_CHECK_EXTENSION, KVM_CAP_TSC_DEADLINE_TIMER) > 0;
	int err = cpuid ? 0 : -ENOMEM;

	if (!err) {
		cpuid->nent = ENTRIES;
		err = ioctl(vcpu->vm->kvm, KVM_GET_SUPPORTED_CPUID, cpuid) ? -errno : 0;
	}
	if (!err) {
		for (uint32_t i = 0; i < cpuid->nent; i++)
			adjust(&cpuid->entries[i], vcpu, deadline);
		err = ioctl(vcpu->fd, KVM_SET_CPUID2, cpuid) ? -errno : 0;
	}
	free(cpuid);
	return err ? vmm_error(err, "vCPU %u: CPUID: %m", vcpu->index) : 0;
}
