/* SPDX-License-Identifier: MIT */
/*
 * gic.c: the interrupt controller, a GICv3 in KVM: makes it, drives the
 * console's line, saves and restores it.
 *
 * Its state is in three places: the distributor (interrupts that all vCPUs
 * share), a redistributor for each vCPU (its private interrupts), and system
 * registers of each vCPU (priorities, what is being handled).  Beside the
 * registers KVM keeps the level of each input line, which a level-triggered
 * interrupt follows.  A register that is to be saved is a line in a table
 * here.  There is no ITS, so no LPIs and no tables in guest memory.
 */
#include <errno.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include "../arch.h"
#include "../error.h"
#include "cpu.h"
#include "gic.h"
#include "map.h"

struct gic {
	int fd;
};

/* SGIs, PPIs and 32 SPIs: the fewest that KVM makes. */
#define INTERRUPTS 64u

/* Records of the state file. */
#define KIND_DISTRIBUTOR ('G' << 8 | 1)
#define KIND_REDISTRIBUTOR ('G' << 8 | 2)
#define KIND_INTERFACE ('G' << 8 | 3)

/* ---- what is saved ---------------------------------------------------------- */

/* WORDS registers of 32 bits from OFFSET on, or one set of line levels. */
struct bank {
	uint32_t group, offset, words;
};

#define DISTRIBUTOR KVM_DEV_ARM_VGIC_GRP_DIST_REGS
#define REDISTRIBUTOR KVM_DEV_ARM_VGIC_GRP_REDIST_REGS
#define LEVELS KVM_DEV_ARM_VGIC_GRP_LEVEL_INFO
#define LEVELS_FROM(interrupt) \
	(VGIC_LEVEL_INFO_LINE_LEVEL << KVM_DEV_ARM_VGIC_LINE_LEVEL_INFO_SHIFT | (interrupt))
/* Shared interrupts of a register bank that begins with the 32 private ones. */
#define SHARED(offset, bits) \
	DISTRIBUTOR, (offset) + 32 * (bits) / 8, (INTERRUPTS - 32) * (bits) / 32

/*
 * In the order of restoring: the revision that all else follows from; then
 * what interrupts are; then what became of them, which is queued for a vCPU by
 * their routes, groups and priorities; at last whether any is forwarded.
 */
static const struct bank distributor[] = {
	{ DISTRIBUTOR, 0x0008, 1 }, /* GICD_IIDR */
	{ DISTRIBUTOR, 0x000c, 1 }, /* GICD_TYPER2: refused where it differs */
	{ SHARED(0x0080, 1) },      /* GICD_IGROUPR */
	{ SHARED(0x0c00, 2) },      /* GICD_ICFGR */
	{ SHARED(0x0400, 8) },      /* GICD_IPRIORITYR */
	{ SHARED(0x6000, 64) },     /* GICD_IROUTER */
	{ LEVELS, LEVELS_FROM(32), 1 },
	{ SHARED(0x0200, 1) },      /* GICD_ISPENDR: latched, apart from the level */
	{ SHARED(0x0300, 1) },      /* GICD_ISACTIVER */
	{ SHARED(0x0100, 1) },      /* GICD_ISENABLER */
	{ DISTRIBUTOR, 0x0000, 1 }, /* GICD_CTLR */
};

static const struct bank redistributor[] = {
	{ REDISTRIBUTOR, 0x00070, 2 }, /* GICR_PROPBASER */
	{ REDISTRIBUTOR, 0x00078, 2 }, /* GICR_PENDBASER */
	{ REDISTRIBUTOR, 0x10080, 1 }, /* GICR_IGROUPR0 */
	{ REDISTRIBUTOR, 0x10c00, 2 }, /* GICR_ICFGR0, GICR_ICFGR1 */
	{ REDISTRIBUTOR, 0x10400, 8 }, /* GICR_IPRIORITYR */
	{ LEVELS, LEVELS_FROM(0), 1 },
	{ REDISTRIBUTOR, 0x10200, 1 }, /* GICR_ISPENDR0 */
	{ REDISTRIBUTOR, 0x10300, 1 }, /* GICR_ISACTIVER0 */
	{ REDISTRIBUTOR, 0x10100, 1 }, /* GICR_ISENABLER0 */
};

#define BANKS(table) (sizeof(table) / sizeof((table)[0]))
/* More than any of the tables has words. */
#define WORDS_MAX 128

/* System registers as KVM numbers them here: op0, op1, CRn, CRm, op2. */
#define ICC(op0, op1, crn, crm, op2) \
	((op0) << 14 | (op1) << 11 | (crn) << 7 | (crm) << 3 | (op2))

struct interface_register {
	uint32_t number;
	unsigned priority_bits; /* it is there when the GIC has so many */
};

/* ICC_CTLR_EL1 first: it says how many priority bits there are. */
static const struct interface_register interface[] = {
	{ ICC(3, 0, 12, 12, 4), 0 }, /* ICC_CTLR_EL1 */
	{ ICC(3, 0, 12, 12, 5), 0 }, /* ICC_SRE_EL1 */
	{ ICC(3, 0, 4, 6, 0), 0 },   /* ICC_PMR_EL1 */
	{ ICC(3, 0, 12, 8, 3), 0 },  /* ICC_BPR0_EL1 */
	{ ICC(3, 0, 12, 12, 3), 0 }, /* ICC_BPR1_EL1 */
	{ ICC(3, 0, 12, 8, 4), 0 },  /* ICC_AP0R0_EL1 */
	{ ICC(3, 0, 12, 8, 5), 6 },  /* ICC_AP0R1_EL1 */
	{ ICC(3, 0, 12, 8, 6), 7 },  /* ICC_AP0R2_EL1 */
	{ ICC(3, 0, 12, 8, 7), 7 },  /* ICC_AP0R3_EL1 */
	{ ICC(3, 0, 12, 9, 0), 0 },  /* ICC_AP1R0_EL1 */
	{ ICC(3, 0, 12, 9, 1), 6 },  /* ICC_AP1R1_EL1 */
	{ ICC(3, 0, 12, 9, 2), 7 },  /* ICC_AP1R2_EL1 */
	{ ICC(3, 0, 12, 9, 3), 7 },  /* ICC_AP1R3_EL1 */
	{ ICC(3, 0, 12, 12, 6), 0 }, /* ICC_IGRPEN0_EL1 */
	{ ICC(3, 0, 12, 12, 7), 0 }, /* ICC_IGRPEN1_EL1 */
};

#define INTERFACE_REGISTERS (sizeof(interface) / sizeof(interface[0]))

static unsigned priority_bits(uint64_t ctlr)
{
	return (ctlr >> 8 & 7) + 1;
}

/* ---- attributes ----------------------------------------------------------- */

static int attribute(const struct vm *vm, unsigned long request, uint32_t group, uint64_t number,
		     void *value)
{
	const struct gic *gic = vm->arch;
	struct kvm_device_attr attr = { .group = group, .attr = number, .addr = (uintptr_t)value };

	return ioctl(gic->fd, request, &attr) ? -errno : 0;
}

static int set(const struct vm *vm, uint32_t group, uint64_t number, void *value)
{
	return attribute(vm, KVM_SET_DEVICE_ATTR, group, number, value);
}

/*
 * A vCPU as KVM's attributes for the GIC name it: its affinity, whose fields
 * stand side by side here, in the upper half.
 */
static int owner_of(struct vcpu *vcpu, uint64_t *owner)
{
	uint64_t affinity;
	int code = cpu_affinity(vcpu, &affinity);

	if (code)
		return code;
	*owner = (affinity >> 32 << 24 | (affinity & 0xffffff)) << 32;
	return 0;
}

/* ---- making it ------------------------------------------------------------ */

static int set_address(struct vm *vm, uint64_t type, uint64_t address)
{
	return set(vm, KVM_DEV_ARM_VGIC_GRP_ADDR, type, &address);
}

int arch_vm_init(struct vm *vm)
{
	struct kvm_create_device device = { .type = KVM_DEV_TYPE_ARM_VGIC_V3 };
	uint32_t interrupts = INTERRUPTS;
	struct gic *gic;
	int code;

	if (ioctl(vm->fd, KVM_CREATE_DEVICE, &device))
		return vmm_error(-errno, "GICv3: the host's interrupt controller cannot give one: %m");
	gic = malloc(sizeof(*gic));
	if (!gic)
		return vmm_error(-ENOMEM, "GICv3: %m");
	gic->fd = (int)device.fd;
	vm->arch = gic;
	code = set(vm, KVM_DEV_ARM_VGIC_GRP_NR_IRQS, 0, &interrupts);
	if (!code)
		code = set_address(vm, KVM_VGIC_V3_ADDR_TYPE_DIST, MAP_GICD);
	/* KVM places the redistributors of the vCPUs from here on as they are created. */
	if (!code)
		code = set_address(vm, KVM_VGIC_V3_ADDR_TYPE_REDIST, MAP_GICR);
	return code ? vmm_error(code, "GICv3: its addresses: %m") : 0;
}

int arch_vm_ready(struct vm *vm)
{
	int code = set(vm, KVM_DEV_ARM_VGIC_GRP_CTRL, KVM_DEV_ARM_VGIC_CTRL_INIT, NULL);

	return code ? vmm_error(code, "GICv3: KVM_DEV_ARM_VGIC_CTRL_INIT: %m") : 0;
}

void arch_vm_free(struct vm *vm)
{
	struct gic *gic = vm->arch;

	if (gic)
		close(gic->fd);
	free(gic);
	vm->arch = NULL;
}

void arch_serial_irq(struct vm *vm, bool level)
{
	struct kvm_irq_level line = {
		.irq = KVM_ARM_IRQ_TYPE_SPI << KVM_ARM_IRQ_TYPE_SHIFT |
		       (MAP_SPI_FIRST + MAP_SERIAL_SPI),
		.level = level,
	};

	if (ioctl(vm->fd, KVM_IRQ_LINE, &line))
		vmm_error(-errno, "the console's interrupt: %m");
}

/* ---- saving and restoring it ------------------------------------------------ */

/* Read or write, by REQUEST, all banks of a table from or to WORDS; how many, or -errno. */
static int move_banks(struct vm *vm, unsigned long request, uint64_t owner,
		      const struct bank *bank, size_t banks, uint32_t words[WORDS_MAX])
{
	int count = 0, code;

	for (; banks--; bank++) {
		for (uint32_t i = 0; i < bank->words; i++) {
			uint64_t number = owner | (bank->offset + 4 * i);

			code = attribute(vm, request, bank->group, number, &words[count++]);
			if (code)
				return vmm_error(code, "GICv3: register 0x%x of group %u: %m",
						 bank->offset + 4 * i, bank->group);
		}
	}
	return count;
}

/* Read or write, by REQUEST, the system registers of one vCPU. */
static int move_interface(struct vm *vm, unsigned long request, uint64_t owner,
			  uint64_t value[INTERFACE_REGISTERS])
{
	for (size_t i = 0; i < INTERFACE_REGISTERS; i++) {
		int code;

		if (i && priority_bits(value[0]) < interface[i].priority_bits)
			continue;
		code = attribute(vm, request, KVM_DEV_ARM_VGIC_GRP_CPU_SYSREGS,
				 owner | interface[i].number, &value[i]);
		if (code)
			return vmm_error(code, "GICv3: system register 0x%x: %m",
					 interface[i].number);
	}
	return 0;
}

static int save_vcpu(struct vcpu *vcpu, struct state *state)
{
	uint64_t owner, value[INTERFACE_REGISTERS] = { 0 };
	uint32_t words[WORDS_MAX];
	int code = owner_of(vcpu, &owner), count;

	if (code)
		return code;
	count = move_banks(vcpu->vm, KVM_GET_DEVICE_ATTR, owner, redistributor,
			   BANKS(redistributor), words);
	if (count < 0)
		return count;
	code = state_add(state, KIND_REDISTRIBUTOR, vcpu->index, words, sizeof(words[0]) * (size_t)count);
	if (!code)
		code = move_interface(vcpu->vm, KVM_GET_DEVICE_ATTR, owner, value);
	if (!code)
		code = state_add(state, KIND_INTERFACE, vcpu->index, value, sizeof(value));
	return code;
}

int gic_save(struct vm *vm, struct state *state)
{
	uint32_t words[WORDS_MAX];
	int code, count;

	count = move_banks(vm, KVM_GET_DEVICE_ATTR, 0, distributor, BANKS(distributor), words);
	if (count < 0)
		return count;
	code = state_add(state, KIND_DISTRIBUTOR, 0, words, sizeof(words[0]) * (size_t)count);
	for (unsigned i = 0; !code && i < vm->vcpus; i++)
		code = save_vcpu(&vm->vcpu[i], state);
	return code;
}

/* Bytes of a record that holds all banks of a table. */
static size_t banks_bytes(const struct bank *bank, size_t banks)
{
	size_t words = 0;

	for (; banks--; bank++)
		words += bank->words;
	return words * sizeof(uint32_t);
}

static int load_banks(struct vm *vm, const struct state *state, uint32_t kind, uint32_t index,
		      uint64_t owner, const struct bank *bank, size_t banks)
{
	uint32_t words[WORDS_MAX];
	int code = state_get_fixed(state, kind, index, words, banks_bytes(bank, banks));

	if (!code)
		code = move_banks(vm, KVM_SET_DEVICE_ATTR, owner, bank, banks, words);
	return code < 0 ? code : 0;
}

static int load_vcpu(struct vcpu *vcpu, const struct state *state)
{
	uint64_t owner, value[INTERFACE_REGISTERS];
	int code = owner_of(vcpu, &owner);

	if (!code)
		code = load_banks(vcpu->vm, state, KIND_REDISTRIBUTOR, vcpu->index, owner,
				  redistributor, BANKS(redistributor));
	if (!code)
		code = state_get_fixed(state, KIND_INTERFACE, vcpu->index, value, sizeof(value));
	if (!code)
		code = move_interface(vcpu->vm, KVM_SET_DEVICE_ATTR, owner, value);
	return code;
}

int gic_load(struct vm *vm, const struct state *state)
{
	int code = load_banks(vm, state, KIND_DISTRIBUTOR, 0, 0, distributor, BANKS(distributor));

	for (unsigned i = 0; !code && i < vm->vcpus; i++)
		code = load_vcpu(&vm->vcpu[i], state);
	return code;
}
