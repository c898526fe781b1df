/* SPDX-License-Identifier: MIT */
/*
 * cpu.c: makes an arm64 vCPU and gives access to its registers.  The features
 * of a vCPU are chosen here; a restored guest needs those that it had.
 */
#include <errno.h>
#include <sys/ioctl.h>

#include "../arch.h"
#include "../error.h"
#include "cpu.h"

#define CORE_REGISTER(name) \
	(KVM_REG_ARM64 | KVM_REG_SIZE_U64 | KVM_REG_ARM_CORE | KVM_REG_ARM_CORE_REG(name))
#define MPIDR_EL1 ARM64_SYS_REG(3, 0, 0, 0, 5)
#define APIAKEYLO_EL1 ARM64_SYS_REG(3, 0, 2, 1, 0)
#define APGAKEYLO_EL1 ARM64_SYS_REG(3, 0, 2, 3, 0)
/* Aff3 and Aff2..Aff0; the other bits say nothing about who it is. */
#define MPIDR_AFFINITY 0xff00ffffffull

int cpu_get(struct vcpu *vcpu, uint64_t id, void *value)
{
	struct kvm_one_reg reg = { .id = id, .addr = (uintptr_t)value };

	return ioctl(vcpu->fd, KVM_GET_ONE_REG, &reg) ? -errno : 0;
}

int cpu_set(struct vcpu *vcpu, uint64_t id, const void *value)
{
	struct kvm_one_reg reg = { .id = id, .addr = (uintptr_t)value };

	return ioctl(vcpu->fd, KVM_SET_ONE_REG, &reg) ? -errno : 0;
}

int cpu_affinity(struct vcpu *vcpu, uint64_t *affinity)
{
	int code = cpu_get(vcpu, MPIDR_EL1, affinity);

	if (code)
		return vmm_error(code, "vCPU %u: MPIDR_EL1: %m", vcpu->index);
	*affinity &= MPIDR_AFFINITY;
	return 0;
}

/* KVM has reset it to EL1 with interrupts masked and the MMU off, as Linux wants it. */
int cpu_set_entry(struct vcpu *vcpu, uint64_t pc, uint64_t fdt)
{
	int code = cpu_set(vcpu, CORE_REGISTER(regs.pc), &pc);

	if (!code)
		code = cpu_set(vcpu, CORE_REGISTER(regs.regs[0]), &fdt);
	return code ? vmm_error(code, "vCPU %u: its entry point: %m", vcpu->index) : 0;
}

static bool has(const struct vm *vm, int capability)
{
	return ioctl(vm->fd, KVM_CHECK_EXTENSION, capability) > 0;
}

static void add_feature(struct kvm_vcpu_init *init, unsigned feature)
{
	init->features[feature / 32] |= 1u << feature % 32;
}

/*
 * True if the vCPU shall have a feature that the host offers this VM by a capability,
 * and that brings the register ID: a restored guest has what it had, and no more.
 */
static bool shall_have(const struct vcpu *vcpu, int capability, uint64_t id)
{
	const struct vm *vm = vcpu->vm;

	return has(vm, capability) && (!vm->saved || cpu_was_saved_with(vm->saved, vcpu->index, id));
}

/* No protected VM has it, so a guest that may go on in one must not. */
static bool shall_have_sve(const struct vcpu *vcpu)
{
	return !vcpu->vm->protectable &&
	       shall_have(vcpu, KVM_CAP_ARM_SVE, KVM_REG_ARM64_SVE_VLS);
}

/*
 * All that the host has and a guest can use.  All vCPUs but the first are off
 * until the guest starts them by PSCI.
 */
static void choose_features(const struct vcpu *vcpu, struct kvm_vcpu_init *init)
{
	add_feature(init, KVM_ARM_VCPU_PSCI_0_2);
	if (vcpu->index)
		add_feature(init, KVM_ARM_VCPU_POWER_OFF);
	if (shall_have_sve(vcpu))
		add_feature(init, KVM_ARM_VCPU_SVE);
	if (shall_have(vcpu, KVM_CAP_ARM_PTRAUTH_ADDRESS, APIAKEYLO_EL1) &&
	    shall_have(vcpu, KVM_CAP_ARM_PTRAUTH_GENERIC, APGAKEYLO_EL1)) {
		add_feature(init, KVM_ARM_VCPU_PTRAUTH_ADDRESS);
		add_feature(init, KVM_ARM_VCPU_PTRAUTH_GENERIC);
	}
}

int arch_vcpu_init(struct vcpu *vcpu)
{
	struct kvm_vcpu_init init = { 0 };
	int feature = KVM_ARM_VCPU_SVE;

	if (ioctl(vcpu->vm->fd, KVM_ARM_PREFERRED_TARGET, &init))
		return vmm_error(-errno, "vCPU %u: KVM_ARM_PREFERRED_TARGET: %m", vcpu->index);
	choose_features(vcpu, &init);
	if (ioctl(vcpu->fd, KVM_ARM_VCPU_INIT, &init))
		return vmm_error(-errno, "vCPU %u: KVM_ARM_VCPU_INIT: %m", vcpu->index);
	/* The lengths of vectors are KVM's choice: all that the host has. */
	if (shall_have_sve(vcpu) && ioctl(vcpu->fd, KVM_ARM_VCPU_FINALIZE, &feature))
		return vmm_error(-errno, "vCPU %u: KVM_ARM_VCPU_FINALIZE: %m", vcpu->index);
	return 0;
}
