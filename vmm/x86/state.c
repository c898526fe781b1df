/* SPDX-License-Identifier: MIT */
/*
 * state.c: all of an x86-64 VM but its memory.  Kinds of records are 'X' << 8 |
 * number; a number never gets another meaning.  Something new that KVM can get and
 * set by one ioctl is a struct part.
 *
 * The order of restoring matters:
 *  - CPUID before all, as it decides what registers may hold;
 *  - TSC frequency before the TSC, all TSCs before the VM's clock, which KVM
 *    computes from them;
 *  - control registers (with the APIC's base) before the local APIC, the APIC before
 *    the MSRs (its timer's deadline is one, and is ignored in another mode);
 *  - registers before events: setting RIP drops what is pending;
 *  - interrupt controllers before the vCPUs, which would else see their lines move.
 * MP_STATE is got first: getting it may make KVM deliver an INIT or SIPI.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>

#include "arch.h"
#include "msr.h"
#include "x86.h"

#define KIND(number) ('X' << 8 | (number))
#define KIND_CPUID KIND(1)
#define KIND_TSC_KHZ KIND(2)
#define KIND_SREGS KIND(3)
#define KIND_LAPIC KIND(4)
#define KIND_MSRS KIND(5)
#define KIND_REGS KIND(6)
#define KIND_XSAVE KIND(7)
#define KIND_XCRS KIND(8)
#define KIND_DEBUGREGS KIND(9)
#define KIND_MP_STATE KIND(10)
#define KIND_EVENTS KIND(11)
#define KIND_IRQCHIP KIND(12) /* index: KVM_IRQCHIP_* */
#define KIND_PIT KIND(13)
#define KIND_CLOCK KIND(14)

#define CPUID_ENTRIES 256
#define PART_MAX 4096 /* of those of fixed size; XSAVE is apart */

/* What is got and set by one ioctl each, as it is. */
struct part {
	uint32_t kind;
	const char *name;
	unsigned long get, set;
	size_t bytes;
};

static const struct part mp_state_part = { KIND_MP_STATE, "MP state", KVM_GET_MP_STATE,
					   KVM_SET_MP_STATE, sizeof(struct kvm_mp_state) };
static const struct part sregs_part = { KIND_SREGS, "control registers", KVM_GET_SREGS2,
					KVM_SET_SREGS2, sizeof(struct kvm_sregs2) };
static const struct part lapic_part = { KIND_LAPIC, "local APIC", KVM_GET_LAPIC, KVM_SET_LAPIC,
					sizeof(struct kvm_lapic_state) };
static const struct part regs_part = { KIND_REGS, "registers", KVM_GET_REGS, KVM_SET_REGS,
				       sizeof(struct kvm_regs) };
static const struct part xcrs_part = { KIND_XCRS, "XCRs", KVM_GET_XCRS, KVM_SET_XCRS,
				       sizeof(struct kvm_xcrs) };
static const struct part debugregs_part = { KIND_DEBUGREGS, "debug registers", KVM_GET_DEBUGREGS,
					    KVM_SET_DEBUGREGS, sizeof(struct kvm_debugregs) };
static const struct part events_part = { KIND_EVENTS, "events", KVM_GET_VCPU_EVENTS,
					 KVM_SET_VCPU_EVENTS, sizeof(struct kvm_vcpu_events) };
static const struct part pit_part = { KIND_PIT, "timer", KVM_GET_PIT2, KVM_SET_PIT2,
				      sizeof(struct kvm_pit_state2) };

static int save_part(int fd, const struct part *part, uint32_t index, struct state *state)
{
	uint8_t data[PART_MAX] = { 0 };

	if (ioctl(fd, part->get, data))
		return vmm_error(-errno, "saving %s of %u: %m", part->name, index);
	return state_add(state, part->kind, index, data, part->bytes);
}

static int load_part(int fd, const struct part *part, uint32_t index, const struct state *state)
{
	uint8_t data[PART_MAX];
	int err = state_get_fixed(state, part->kind, index, data, part->bytes);

	if (!err && ioctl(fd, part->set, data))
		err = vmm_error(-errno, "restoring %s of %u: %m", part->name, index);
	return err;
}

/* ---- parts that have a size of their own ----------------------------------------------- */

static int save_cpuid(struct vcpu *vcpu, struct state *state)
{
	struct {
		struct kvm_cpuid2 head;
		struct kvm_cpuid_entry2 entry[CPUID_ENTRIES];
	} cpuid = { .head.nent = CPUID_ENTRIES };

	if (ioctl(vcpu->fd, KVM_GET_CPUID2, &cpuid))
		return vmm_error(-errno, "saving CPUID of %u: %m", vcpu->index);
	return state_add(state, KIND_CPUID, vcpu->index, &cpuid,
			 sizeof(cpuid.head) + cpuid.head.nent * sizeof(cpuid.entry[0]));
}

static int load_cpuid(struct vcpu *vcpu, const struct state *state)
{
	size_t bytes;
	const struct kvm_cpuid2 *cpuid = state_get(state, KIND_CPUID, vcpu->index, &bytes);

	if (!cpuid || bytes < sizeof(*cpuid) || cpuid->nent > CPUID_ENTRIES ||
	    bytes != sizeof(*cpuid) + cpuid->nent * sizeof(cpuid->entries[0]))
		return vmm_error(-EBADMSG, "state: CPUID of %u: missing or damaged", vcpu->index);
	if (ioctl(vcpu->fd, KVM_SET_CPUID2, cpuid))
		return vmm_error(-errno, "restoring CPUID of %u: is it of another host? %m",
				 vcpu->index);
	return 0;
}

/* Bytes of a vCPU's FPU state, which grow with the features of the host. */
static size_t xsave_bytes(const struct vm *vm)
{
	int bytes = ioctl(vm->fd, KVM_CHECK_EXTENSION, KVM_CAP_XSAVE2);

	return bytes > (int)sizeof(struct kvm_xsave) ? (size_t)bytes : sizeof(struct kvm_xsave);
}

static int save_xsave(struct vcpu *vcpu, struct state *state)
{
	const size_t bytes = xsave_bytes(vcpu->vm);
	bool large = bytes > sizeof(struct kvm_xsave);
	void *data = calloc(1, bytes);
	int err;

	if (!data)
		return vmm_error(-ENOMEM, "saving the FPU of %u: %m", vcpu->index);
	if (ioctl(vcpu->fd, large ? KVM_GET_XSAVE2 : KVM_GET_XSAVE, data))
		err = vmm_error(-errno, "saving the FPU of %u: %m", vcpu->index);
	else
		err = state_add(state, KIND_XSAVE, vcpu->index, data, bytes);
	free(data);
	return err;
}

static int load_xsave(struct vcpu *vcpu, const struct state *state)
{
	size_t bytes = 0;
	const void *data = state_get(state, KIND_XSAVE, vcpu->index, &bytes);

	/* KVM reads as much as it would write. */
	if (!data || bytes != xsave_bytes(vcpu->vm))
		return vmm_error(-EBADMSG, "state: the FPU of %u: missing, or of another host",
				 vcpu->index);
	if (ioctl(vcpu->fd, KVM_SET_XSAVE, data))
		return vmm_error(-errno, "restoring the FPU of %u: %m", vcpu->index);
	return 0;
}

static int save_tsc_khz(struct vcpu *vcpu, struct state *state)
{
	int khz = ioctl(vcpu->fd, KVM_GET_TSC_KHZ, 0);
	uint64_t value = (uint64_t)khz;

	if (khz < 0)
		return vmm_error(-errno, "saving the TSC's frequency of %u: %m", vcpu->index);
	return state_add(state, KIND_TSC_KHZ, vcpu->index, &value, sizeof(value));
}

static int load_tsc_khz(struct vcpu *vcpu, const struct state *state)
{
	uint64_t khz;
	int err = state_get_fixed(state, KIND_TSC_KHZ, vcpu->index, &khz, sizeof(khz));

	/* Where it is the same, hosts that cannot scale it have nothing to do. */
	if (err || (uint64_t)ioctl(vcpu->fd, KVM_GET_TSC_KHZ, 0) == khz)
		return err;
	if (ioctl(vcpu->fd, KVM_SET_TSC_KHZ, khz))
		return vmm_error(-errno, "this host cannot give vCPU %u a TSC of %llu kHz: %m",
				 vcpu->index, (unsigned long long)khz);
	return 0;
}

static int save_msrs(struct vcpu *vcpu, struct state *state)
{
	struct msr_list list;
	int err = msr_read_all(vcpu, &list);

	if (!err)
		err = state_add(state, KIND_MSRS, vcpu->index, list.entry,
				list.count * sizeof(list.entry[0]));
	msr_list_free(&list);
	return err;
}

static int load_msrs(struct vcpu *vcpu, const struct state *state)
{
	size_t bytes = 0;
	const struct kvm_msr_entry *entry = state_get(state, KIND_MSRS, vcpu->index, &bytes);

	if (!entry || bytes % sizeof(*entry))
		return vmm_error(-EBADMSG, "state: MSRs of %u: missing or damaged", vcpu->index);
	return msr_write_all(vcpu, entry, bytes / sizeof(*entry));
}

/* ---- a vCPU ------------------------------------------------------------------------------ */

static int save_vcpu(struct vcpu *vcpu, struct state *state)
{
	static const struct part *const parts[] = {
		&mp_state_part, &sregs_part, &lapic_part, &regs_part, &xcrs_part, &debugregs_part,
		&events_part,
	};
	int err = 0;

	for (unsigned i = 0; i < sizeof(parts) / sizeof(parts[0]) && !err; i++)
		err = save_part(vcpu->fd, parts[i], vcpu->index, state);
	if (!err)
		err = save_cpuid(vcpu, state);
	if (!err)
		err = save_tsc_khz(vcpu, state);
	if (!err)
		err = save_xsave(vcpu, state);
	return err ? err : save_msrs(vcpu, state);
}

static int load_vcpu(struct vcpu *vcpu, const struct state *state)
{
	static const struct part *const before[] = { &sregs_part, &lapic_part };
	static const struct part *const after[] = {
		&regs_part, &debugregs_part, &mp_state_part, &events_part,
	};
	int err = load_cpuid(vcpu, state);

	if (!err)
		err = load_tsc_khz(vcpu, state);
	for (unsigned i = 0; i < sizeof(before) / sizeof(before[0]) && !err; i++)
		err = load_part(vcpu->fd, before[i], vcpu->index, state);
	if (!err)
		err = load_part(vcpu->fd, &xcrs_part, vcpu->index, state);
	if (!err)
		err = load_xsave(vcpu, state);
	if (!err)
		err = load_msrs(vcpu, state);
	for (unsigned i = 0; i < sizeof(after) / sizeof(after[0]) && !err; i++)
		err = load_part(vcpu->fd, after[i], vcpu->index, state);
	return err;
}

/* ---- the VM ------------------------------------------------------------------------------- */

static int save_irqchip(struct vm *vm, uint32_t chip, struct state *state)
{
	struct kvm_irqchip data = { .chip_id = chip };

	if (ioctl(vm->fd, KVM_GET_IRQCHIP, &data))
		return vmm_error(-errno, "saving interrupt controller %u: %m", chip);
	return state_add(state, KIND_IRQCHIP, chip, &data, sizeof(data));
}

static int load_irqchip(struct vm *vm, uint32_t chip, const struct state *state)
{
	struct kvm_irqchip data;
	int err = state_get_fixed(state, KIND_IRQCHIP, chip, &data, sizeof(data));

	data.chip_id = chip;
	if (!err && ioctl(vm->fd, KVM_SET_IRQCHIP, &data))
		err = vmm_error(-errno, "restoring interrupt controller %u: %m", chip);
	return err;
}

static int save_clock(struct vm *vm, struct state *state)
{
	struct kvm_clock_data clock = { 0 };

	if (ioctl(vm->fd, KVM_GET_CLOCK, &clock))
		return vmm_error(-errno, "saving the clock: %m");
	return state_add(state, KIND_CLOCK, 0, &clock.clock, sizeof(clock.clock));
}

/* Without a flag: it goes on from there, however long the state was a file. */
static int load_clock(struct vm *vm, const struct state *state)
{
	struct kvm_clock_data clock = { 0 };
	uint64_t saved;
	int err = state_get_fixed(state, KIND_CLOCK, 0, &saved, sizeof(saved));

	clock.clock = saved;
	if (!err && ioctl(vm->fd, KVM_SET_CLOCK, &clock))
		err = vmm_error(-errno, "restoring the clock: %m");
	/* Watchdogs of the guest shall not count the pause; one without kvmclock has no such flag. */
	for (unsigned i = 0; i < vm->vcpus && !err; i++)
		ioctl(vm->vcpu[i].fd, KVM_KVMCLOCK_CTRL, 0);
	return err;
}

int arch_save(struct vm *vm, struct state *state)
{
	int err = 0;

	for (unsigned i = 0; i < vm->vcpus && !err; i++)
		err = save_vcpu(&vm->vcpu[i], state);
	for (uint32_t chip = 0; chip < KVM_NR_IRQCHIPS && !err; chip++)
		err = save_irqchip(vm, chip, state);
	if (!err)
		err = save_part(vm->fd, &pit_part, 0, state);
	return err ? err : save_clock(vm, state);
}

int arch_load(struct vm *vm, const struct state *state)
{
	int err = 0;

	for (uint32_t chip = 0; chip < KVM_NR_IRQCHIPS && !err; chip++)
		err = load_irqchip(vm, chip, state);
	if (!err)
		err = load_part(vm->fd, &pit_part, 0, state);
	for (unsigned i = 0; i < vm->vcpus && !err; i++)
		err = load_vcpu(&vm->vcpu[i], state);
	return err ? err : load_clock(vm, state);
}

int arch_kvm_memory(struct vm *vm, int (*fn)(void *arg, uint64_t gpa, uint64_t bytes), void *arg)
{
	int err = 0;

	for (unsigned i = 0; i < vm->vcpus && !err; i++)
		err = msr_kvm_memory(&vm->vcpu[i], fn, arg);
	return err;
}
