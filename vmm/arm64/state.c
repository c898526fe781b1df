/* SPDX-License-Identifier: MIT */
/*
 * state.c: saves and restores an arm64 VM: of each vCPU all registers that KVM
 * names (KVM_GET_REG_LIST: so new ones need no change here), whether it is on,
 * and pending errors; the GIC (gic.c); and the clock.
 *
 * The clock.  The guest reads counters, which are the host's less an offset
 * that is one for the whole VM.  They are set last, to what they were when the
 * VM was saved, and go on from there: the guest's timers, which compare with
 * them, fire as if no time had passed meanwhile.  A protected VM has no offset:
 * it sees how much time has passed, and its timers are late.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>

#include "../arch.h"
#include "../error.h"
#include "cpu.h"
#include "gic.h"

/* Records of the state file; gic.c has some, too. */
#define KIND_REGISTERS ('R' << 8 | 1) /* see struct entry */
#define KIND_MP_STATE ('R' << 8 | 2)  /* struct kvm_mp_state */
#define KIND_EVENTS ('R' << 8 | 3)    /* struct kvm_vcpu_events */
#define KIND_CLOCK ('C' << 8 | 1)     /* struct clock */

#define VIRTUAL_COUNTER KVM_REG_ARM_TIMER_CNT
#define PHYSICAL_COUNTER ARM64_SYS_REG(3, 3, 14, 0, 1)

struct clock {
	uint64_t virtual, physical;
};

/* A register in a record: as long as it needs, a multiple of 8 bytes. */
struct entry {
	uint64_t id;
	uint8_t value[CPU_REGISTER_BYTES_MAX];
};

static size_t entry_bytes(uint64_t id)
{
	size_t bytes = KVM_REG_SIZE(id);

	return sizeof(id) + (bytes < 8 ? 8 : bytes);
}

static bool is_counter(uint64_t id)
{
	return id == VIRTUAL_COUNTER || id == PHYSICAL_COUNTER;
}

/* ---- saving ------------------------------------------------------------------- */

/* The list of a vCPU's registers; the caller frees it.  NULL after an error line. */
static struct kvm_reg_list *list_registers(const struct vcpu *vcpu)
{
	struct kvm_reg_list count = { .n = 0 }, *list;

	/* It does not fit, which is how KVM says how many there are. */
	if (!ioctl(vcpu->fd, KVM_GET_REG_LIST, &count) || errno != E2BIG) {
		vmm_error(-errno, "vCPU %u: KVM_GET_REG_LIST: %m", vcpu->index);
		return NULL;
	}
	list = malloc(sizeof(*list) + count.n * sizeof(list->reg[0]));
	if (list) {
		list->n = count.n;
		if (!ioctl(vcpu->fd, KVM_GET_REG_LIST, list))
			return list;
	}
	vmm_error(-errno, "vCPU %u: KVM_GET_REG_LIST: %m", vcpu->index);
	free(list);
	return NULL;
}

/* Read the listed registers into DATA, which has room; the bytes used, or -errno. */
static long read_registers(struct vcpu *vcpu, const struct kvm_reg_list *list, uint8_t *data)
{
	size_t used = 0;

	for (uint64_t i = 0; i < list->n; i++) {
		struct entry entry = { .id = list->reg[i] };
		bool fits = entry_bytes(entry.id) <= sizeof(entry);
		int code = fits ? cpu_get(vcpu, entry.id, entry.value) : -E2BIG;

		if (code)
			return vmm_error(code, "vCPU %u: reading register 0x%llx: %m", vcpu->index,
					 (unsigned long long)entry.id);
		memcpy(data + used, &entry, entry_bytes(entry.id));
		used += entry_bytes(entry.id);
	}
	return (long)used;
}

static int save_listed(struct vcpu *vcpu, const struct kvm_reg_list *list, struct state *state)
{
	uint8_t *data = malloc(list->n * sizeof(struct entry));
	long bytes;
	int code;

	if (!data)
		return vmm_error(-ENOMEM, "vCPU %u: its registers: %m", vcpu->index);
	bytes = read_registers(vcpu, list, data);
	code = bytes < 0 ? (int)bytes :
			   state_add(state, KIND_REGISTERS, vcpu->index, data, (size_t)bytes);
	free(data);
	return code;
}

static int save_registers(struct vcpu *vcpu, struct state *state)
{
	struct kvm_reg_list *list = list_registers(vcpu);
	int code;

	if (!list)
		return -EIO;
	code = save_listed(vcpu, list, state);
	free(list);
	return code;
}

static int save_vcpu(struct vcpu *vcpu, struct state *state)
{
	struct kvm_mp_state mp_state;
	struct kvm_vcpu_events events;
	int code = save_registers(vcpu, state);

	if (code)
		return code;
	if (ioctl(vcpu->fd, KVM_GET_MP_STATE, &mp_state))
		return vmm_error(-errno, "vCPU %u: KVM_GET_MP_STATE: %m", vcpu->index);
	if (ioctl(vcpu->fd, KVM_GET_VCPU_EVENTS, &events))
		return vmm_error(-errno, "vCPU %u: KVM_GET_VCPU_EVENTS: %m", vcpu->index);
	code = state_add(state, KIND_MP_STATE, vcpu->index, &mp_state, sizeof(mp_state));
	if (!code)
		code = state_add(state, KIND_EVENTS, vcpu->index, &events, sizeof(events));
	return code;
}

/* One read of each counter for all vCPUs, as their offset is the VM's. */
static int save_clock(struct vm *vm, struct state *state)
{
	struct clock clock;
	int code = cpu_get(&vm->vcpu[0], VIRTUAL_COUNTER, &clock.virtual);

	if (!code)
		code = cpu_get(&vm->vcpu[0], PHYSICAL_COUNTER, &clock.physical);
	if (code)
		return vmm_error(code, "the guest's counters: %m");
	return state_add(state, KIND_CLOCK, 0, &clock, sizeof(clock));
}

int arch_save(struct vm *vm, struct state *state)
{
	int code = save_clock(vm, state);

	for (unsigned i = 0; !code && i < vm->vcpus; i++)
		code = save_vcpu(&vm->vcpu[i], state);
	return code ? code : gic_save(vm, state);
}

/* ---- restoring ------------------------------------------------------------------ */

/*
 * Write one register.  What cannot be written must be what it was: the host's
 * properties that a guest relies on, such as the lengths of vectors.
 */
static int load_register(struct vcpu *vcpu, const struct entry *entry)
{
	uint8_t now[CPU_REGISTER_BYTES_MAX];
	int code;

	if (is_counter(entry->id))
		return 0;
	code = cpu_set(vcpu, entry->id, entry->value);
	if (!code || (!cpu_get(vcpu, entry->id, now) &&
		      !memcmp(now, entry->value, KVM_REG_SIZE(entry->id))))
		return 0;
	return vmm_error(code, "vCPU %u: register 0x%llx: this %s cannot have it as it was%s: %m",
			 vcpu->index, (unsigned long long)entry->id,
			 vcpu->vm->is_protected ? "protected VM" : "host",
			 vcpu->vm->is_protected ? ": boot the guest with --protectable" : "");
}

/* Take the next register off a record; -EINVAL when it is cut off. */
static int next_entry(const uint8_t **data, size_t *bytes, struct entry *entry)
{
	size_t size;

	if (*bytes < sizeof(entry->id))
		return -EINVAL;
	memcpy(&entry->id, *data, sizeof(entry->id));
	size = entry_bytes(entry->id);
	if (size > sizeof(*entry) || size > *bytes)
		return -EINVAL;
	memcpy(entry, *data, size);
	*data += size;
	*bytes -= size;
	return 0;
}

bool cpu_was_saved_with(const struct state *state, unsigned vcpu, uint64_t id)
{
	size_t bytes;
	const uint8_t *data = state_get(state, KIND_REGISTERS, vcpu, &bytes);
	struct entry entry = { 0 };

	while (data && bytes && entry.id != id)
		if (next_entry(&data, &bytes, &entry))
			return false; /* load_registers() says so */
	return entry.id == id;
}

static int load_registers(struct vcpu *vcpu, const struct state *state)
{
	size_t bytes;
	const uint8_t *data = state_get(state, KIND_REGISTERS, vcpu->index, &bytes);
	struct entry entry;
	int code = 0;

	if (!data)
		return vmm_error(-EINVAL, "vCPU %u: the state has no registers", vcpu->index);
	while (!code && bytes) {
		if (next_entry(&data, &bytes, &entry))
			return vmm_error(-EINVAL, "vCPU %u: its registers in the state are damaged",
					 vcpu->index);
		code = load_register(vcpu, &entry);
	}
	return code;
}

static int load_vcpu(struct vcpu *vcpu, const struct state *state)
{
	struct kvm_mp_state mp_state;
	struct kvm_vcpu_events events;
	int code = load_registers(vcpu, state);

	if (!code)
		code = state_get_fixed(state, KIND_MP_STATE, vcpu->index, &mp_state,
				       sizeof(mp_state));
	if (!code)
		code = state_get_fixed(state, KIND_EVENTS, vcpu->index, &events, sizeof(events));
	if (code)
		return code;
	if (ioctl(vcpu->fd, KVM_SET_VCPU_EVENTS, &events))
		return vmm_error(-errno, "vCPU %u: KVM_SET_VCPU_EVENTS: %m", vcpu->index);
	if (ioctl(vcpu->fd, KVM_SET_MP_STATE, &mp_state))
		return vmm_error(-errno, "vCPU %u: KVM_SET_MP_STATE: %m", vcpu->index);
	return 0;
}

/*
 * A protected guest reads the host's counter: Linux would stand still until it is
 * where it was.
 */
static int check_host_clock(struct vm *vm, const struct clock *clock)
{
	uint64_t now;
	int code = cpu_get(&vm->vcpu[0], PHYSICAL_COUNTER, &now);

	if (code)
		return vmm_error(code, "the host's counter: %m");
	if (now < clock->virtual || now < clock->physical)
		return vmm_error(-ERANGE, "the guest's counter is ahead of this host's, which a protected guest reads: %m");
	return 0;
}

static int load_clock(struct vm *vm, const struct state *state)
{
	struct clock clock;
	int code = state_get_fixed(state, KIND_CLOCK, 0, &clock, sizeof(clock));

	if (code)
		return code;
	if (vm->is_protected)
		return check_host_clock(vm, &clock);
	code = cpu_set(&vm->vcpu[0], PHYSICAL_COUNTER, &clock.physical);
	if (!code)
		code = cpu_set(&vm->vcpu[0], VIRTUAL_COUNTER, &clock.virtual);
	return code ? vmm_error(code, "the guest's counters: %m") : 0;
}

int arch_load(struct vm *vm, const struct state *state)
{
	int code = 0;

	for (unsigned i = 0; !code && i < vm->vcpus; i++)
		code = load_vcpu(&vm->vcpu[i], state);
	if (!code)
		code = gic_load(vm, state);
	return code ? code : load_clock(vm, state);
}

/*
 * None: steal time is not offered, and without an ITS the GIC has no tables in
 * memory.  What the CPU itself touches, page tables for one, are accesses of
 * the guest to KVM.
 */
int arch_kvm_memory(struct vm *vm, int (*fn)(void *arg, uint64_t gpa, uint64_t bytes), void *arg)
{
	(void)vm;
	(void)fn;
	(void)arg;
	return 0;
}
