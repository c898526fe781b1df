// SPDX-License-Identifier: GPL-2.0-only
/*
 * pre_fault_nested_test - KVM_PRE_FAULT_MEMORY on a vCPU that runs a nested guest
 *
 * What is prefaulted is an IPA of the VM, i.e. of L1, even if the vCPU's last
 * exit was from L2.  L1 runs L2 on stage-2 tables that give the same addresses
 * another meaning, so that an L2 whose shadow stage-2 was populated in place of
 * the VM's canonical one reads somebody else's data, and so that an address
 * that was mistaken for one of L2 isn't there at all.
 *
 * L1 and L2 share their stage-1, their code, and the mapping of it.  L2 exits to
 * userspace by way of ucalls, since L1 maps the ucall page for L2, too.
 *
 * Nothing is unmapped while L2 has a shadow stage-2, nor is a shadow stage-2
 * reused for another root, as KVM then walks all of the shadow's IPA space, with
 * a TLB invalidation for each gigabyte, which takes minutes under emulation.
 * The memslot has dirty logging enabled instead, so that prefaulting it first
 * for reading and then for writing changes mappings.
 */
#include <linux/bitfield.h>
#include <linux/sizes.h>
#include <pthread.h>
#include <sched.h>
#include <sys/mman.h>
#include <sys/wait.h>

#include <asm/ptrace.h>

#include "kvm_util.h"
#include "processor.h"
#include "test_util.h"
#include "ucall.h"

/*
 * L1 maps area n of L2 to area (n + rotation) % NR_ROTATED of its own, depending
 * on the root, and L2's MMIO area to where there is no memslot.
 */
enum {
	NR_ROTATED = 3,
	MMIO_AREA = NR_ROTATED,
	/* Not mapped by L1. */
	ABSENT_AREA,
	/* L1's VNCR_EL2 points here. */
	VNCR_AREA,
	NR_AREAS,
};

/* Enough for faults to stand out from exits for other reasons. */
#define AREA_PAGES		128UL
#define DATA_GPA		0x100000000UL
#define MMIO_GPA		0x140000000UL
#define DATA_SLOT		10

#define MMIO_DATA		0x8001
#define ABSENT_DATA		0xabcd
#define VNCR_DATA		0x123456000UL
/* Where FEAT_NV2 has VTTBR_EL2. */
#define VNCR_VTTBR_OFFSET	0x20

#define MAX_VCPUS		2
#define STRESS_ROUNDS		200
/* What KVM has per vCPU. */
#define NR_SHADOWS		2
#define LEAK_ROUNDS		300

/* VTTBR_EL2, VTCR_EL2 and stage-2 descriptors. */
#define VTTBR_VMID(vmid)	((u64)(vmid) << 48)
#define VTCR_SL0(x)		((u64)(x) << 6)
#define VTCR_PS_40_BITS		(2UL << 16)
#define VTCR_RES1		BIT(31)
#define S2_NORMAL		(0xfUL << 2)
#define S2_RW			(3UL << 6)

/* L2 to L1. */
enum {
	HVC_SET_VTTBR,
	HVC_SET_VM,
	HVC_SET_NV,
	HVC_TOUCH,
	HVC_READ_VNCR,
	HVC_GET_FETCH_ABORTS,
};

/* Set by userspace for L1 and L2. */
static struct {
	u64 page_size;
	u64 vtcr;
	u64 roots[NR_ROTATED];
	u64 l2_stacks[MAX_VCPUS];
} config;

/* L1's. */
static u64 l1_vttbr[MAX_VCPUS];
static u64 l1_fetch_aborts[MAX_VCPUS];

static size_t psize;
static u64 *data;

static u64 area_gpa(int area)
{
	return DATA_GPA + area * AREA_PAGES * config.page_size;
}

static u64 pattern(int area, u64 page)
{
	return 0x5eed0000 + area * 0x1000 + page;
}

/*
 * L1, a hypervisor at EL2 with E2H.
 */
#define copy_el2_to_el1(reg)						\
	write_sysreg_s(read_sysreg_s(SYS_##reg##_EL1), SYS_##reg##_EL12)

static void l1_set_vttbr(u64 vttbr)
{
	l1_vttbr[guest_get_vcpuid()] = vttbr;
	/* Needs no TLB invalidation: a VMID always goes with the same table. */
	write_sysreg(vttbr, vttbr_el2);
	isb();
}

static void l1_set_hcr(u64 bits, bool set)
{
	sysreg_clear_set(hcr_el2, set ? 0 : bits, set ? bits : 0);
	isb();
}

static void l1_set_nv(bool set)
{
	write_sysreg_s(area_gpa(VNCR_AREA), SYS_VNCR_EL2);
	l1_set_hcr(HCR_EL2_NV | HCR_EL2_NV2, set);
}

static void l1_touch(u64 area)
{
	u64 i;

	for (i = 0; i < AREA_PAGES; i++)
		READ_ONCE(*(u64 *)(area_gpa(area) + i * config.page_size));
}

static void l1_hvc_handler(struct ex_regs *regs)
{
	u64 arg = regs->regs[1];

	switch (regs->regs[0]) {
	case HVC_SET_VTTBR:
		l1_set_vttbr(arg);
		break;
	case HVC_SET_VM:
		l1_set_hcr(HCR_EL2_VM, arg);
		break;
	case HVC_SET_NV:
		l1_set_nv(arg);
		break;
	case HVC_TOUCH:
		l1_touch(arg);
		break;
	case HVC_READ_VNCR:
		regs->regs[0] = READ_ONCE(*(u64 *)(area_gpa(VNCR_AREA) +
						   VNCR_VTTBR_OFFSET));
		break;
	case HVC_GET_FETCH_ABORTS:
		regs->regs[0] = l1_fetch_aborts[guest_get_vcpuid()];
		break;
	default:
		GUEST_FAIL("Unexpected HVC %lu", regs->regs[0]);
	}
}

/* L2 loads to x21 from what L1 hasn't mapped. */
static void l1_data_abort_handler(struct ex_regs *regs)
{
	u64 ipa = FIELD_GET(GENMASK(43, 4), read_sysreg(hpfar_el2)) << 12;

	GUEST_ASSERT_EQ(ipa, area_gpa(ABSENT_AREA));
	regs->regs[21] = ABSENT_DATA;
	regs->pc += 4;
}

/* Userspace has replaced L1's root by an empty one. */
static void l1_fetch_abort_handler(struct ex_regs *regs)
{
	u64 id = guest_get_vcpuid();

	__GUEST_ASSERT(read_sysreg(vttbr_el2) != l1_vttbr[id],
		       "Fetch from 0x%lx aborted, hpfar 0x%lx, esr 0x%lx", regs->pc,
		       read_sysreg(hpfar_el2), read_sysreg(esr_el1));
	l1_fetch_aborts[id]++;
	l1_set_vttbr(l1_vttbr[id]);
}

static void guest_l1(void *l2_code)
{
	u64 id = guest_get_vcpuid();

	GUEST_ASSERT_EQ(get_current_el(), 2);

	copy_el2_to_el1(SCTLR);
	copy_el2_to_el1(MAIR);
	copy_el2_to_el1(TCR);
	copy_el2_to_el1(TTBR0);
	copy_el2_to_el1(VBAR);
	write_sysreg_s(3 << 20, SYS_CPACR_EL12);
	write_sysreg(config.l2_stacks[id], sp_el1);

	write_sysreg(config.vtcr, vtcr_el2);
	l1_set_hcr(HCR_EL2_TGE, false);
	l1_set_hcr(HCR_EL2_VM, true);
	l1_set_vttbr(config.roots[1 - id] | VTTBR_VMID(1 + id));

	write_sysreg(l2_code, elr_el1);
	write_sysreg(PSR_MODE_EL1h | PSR_D_BIT | PSR_A_BIT | PSR_I_BIT | PSR_F_BIT,
		     spsr_el1);
	isb();
	asm volatile("eret" : : : "memory");
	__builtin_unreachable();
}

/*
 * L2.
 */
static u64 l2_hvc(u64 function, u64 arg)
{
	register u64 x0 asm("x0") = function;
	register u64 x1 asm("x1") = arg;

	asm volatile("hvc #0" : "+r" (x0) : "r" (x1) : "memory");
	return x0;
}

static void __l2_check(int rotation, u64 step)
{
	int area;
	u64 i, *p;

	for (area = 0; area < NR_ROTATED; area++) {
		for (i = 0; i < AREA_PAGES; i += step) {
			p = (u64 *)(area_gpa(area) + i * config.page_size);
			GUEST_ASSERT_EQ(READ_ONCE(*p),
					pattern((area + rotation) % NR_ROTATED, i));
		}
	}
}

static void l2_check(int rotation)
{
	__l2_check(rotation, 1);
}

static u64 l2_load(u64 addr)
{
	u64 value;

	asm volatile("mov x21, #-1\n\t"
		     "ldrsh x21, [%1]\n\t"
		     "mov %0, x21"
		     : "=r" (value) : "r" (addr) : "x21", "memory");
	return value;
}

static void guest_l2_view(void)
{
	GUEST_SYNC(0);
	l2_check(1);
	/* What L1 takes to touch its own memory, prefaulted and not. */
	GUEST_SYNC(1);
	l2_hvc(HVC_TOUCH, 0);
	GUEST_SYNC(2);
	l2_hvc(HVC_TOUCH, VNCR_AREA);
	GUEST_SYNC(3);
	l2_check(1);
	GUEST_DONE();
}

static void guest_l2_mmio(void)
{
	GUEST_ASSERT_EQ(l2_load(area_gpa(MMIO_AREA)), (u64)(s16)MMIO_DATA);
	l2_check(1);
	GUEST_DONE();
}

static void guest_l2_absent(void)
{
	GUEST_ASSERT_EQ(l2_load(area_gpa(ABSENT_AREA)), ABSENT_DATA);
	GUEST_SYNC(0);
	GUEST_ASSERT_EQ(l2_load(area_gpa(ABSENT_AREA)), ABSENT_DATA);
	GUEST_DONE();
}

static void guest_l2_empty_root(void)
{
	GUEST_SYNC(0);
	GUEST_ASSERT(l2_hvc(HVC_GET_FETCH_ABORTS, 0));
	l2_check(1);
	GUEST_DONE();
}

static void guest_l2_vm_off(void)
{
	l2_check(1);
	l2_hvc(HVC_SET_VM, false);
	GUEST_SYNC(0);
	l2_check(0);
	l2_hvc(HVC_SET_VM, true);
	l2_check(1);
	GUEST_DONE();
}

/* As a hypervisor has it, i.e. the access is to L1's VNCR page. */
static void guest_l2_vncr(void)
{
	l2_hvc(HVC_SET_NV, true);
	write_sysreg(VNCR_DATA, vttbr_el2);
	GUEST_SYNC(0);
	GUEST_ASSERT_EQ(read_sysreg(vttbr_el2), VNCR_DATA);
	write_sysreg(VNCR_DATA * 2, vttbr_el2);
	GUEST_ASSERT_EQ(l2_hvc(HVC_READ_VNCR, 0), VNCR_DATA * 2);
	l2_hvc(HVC_SET_NV, false);
	l2_check(1);
	GUEST_DONE();
}

static void guest_l2_leak(void)
{
	GUEST_SYNC(0);
	GUEST_FAIL("Userspace isn't supposed to run this vCPU again");
}

static void guest_l2_stress(void)
{
	u64 id = guest_get_vcpuid();
	u64 i, root, vmid;

	for (i = 0; i < STRESS_ROUNDS; i++) {
		root = 1 - id + i % NR_SHADOWS;
		vmid = 1 + i % NR_SHADOWS * MAX_VCPUS + id;
		l2_hvc(HVC_SET_VTTBR, config.roots[root] | VTTBR_VMID(vmid));
		GUEST_SYNC(i);
		/* A few pages will do, their faults are what takes the time. */
		__l2_check(root, 8);
	}
	GUEST_DONE();
}

/*
 * Userspace.
 */
static bool has_write_flag(void)
{
	return kvm_check_cap(KVM_CAP_PRE_FAULT_MEMORY) & KVM_PRE_FAULT_FLAG_WRITE;
}

static int __pre_fault(struct kvm_vcpu *vcpu, struct kvm_pre_fault_memory *range)
{
	int ret = __vcpu_ioctl(vcpu, KVM_PRE_FAULT_MEMORY, range);

	return ret ? -errno : 0;
}

/* Prefault all of the range.  KVM may stop early, e.g. because of a signal. */
static void pre_fault(struct kvm_vcpu *vcpu, u64 gpa, u64 size, u64 flags)
{
	struct kvm_pre_fault_memory range = {
		.gpa = gpa,
		.size = size,
		.flags = flags,
	};
	int ret;

	while (range.size) {
		ret = __pre_fault(vcpu, &range);
		TEST_ASSERT(!ret || ret == -EINTR || ret == -EAGAIN,
			    "Prefault of 0x%llx failed: %d", range.gpa, ret);
	}
}

/* Populate the VM's stage-2 with areas of L1, read-only, then writable. */
static void pre_fault_areas(struct kvm_vcpu *vcpu, int nr_areas)
{
	u64 size = nr_areas * AREA_PAGES * psize;

	pre_fault(vcpu, DATA_GPA, size, 0);
	if (has_write_flag())
		pre_fault(vcpu, DATA_GPA, size, KVM_PRE_FAULT_FLAG_WRITE);
}

/* Map a page in an L1-owned stage-2 of two or three levels. */
static void s2_map(struct kvm_vm *vm, u64 root, int levels, u64 ipa, u64 gpa)
{
	unsigned int bits = vm->page_shift - 3;
	u64 table = root, *entry;
	int level;

	for (level = levels - 1; ; level--) {
		entry = (u64 *)addr_gpa2hva(vm, table) +
			(ipa >> (vm->page_shift + level * bits) & (BIT(bits) - 1));
		if (!level)
			break;
		if (!*entry)
			*entry = vm_alloc_page_table(vm) | PMD_TYPE_TABLE | PTE_VALID;
		table = *entry & PTE_ADDR_MASK(vm->page_shift);
	}
	*entry = gpa | S2_NORMAL | S2_RW | PTE_SHARED | PTE_AF | PTE_TYPE_PAGE | PTE_VALID;
}

/* As many levels as have a start level of 1 (4K) or 2. */
static int s2_levels(struct kvm_vm *vm)
{
	return vm->page_size == SZ_4K ? 3 : 2;
}

static u64 s2_create(struct kvm_vm *vm, int rotation)
{
	u64 root = vm_alloc_page_table(vm), gpa, offset;
	int levels = s2_levels(vm), area;
	struct userspace_mem_region *slot0 = memslot2region(vm, 0);

	for (gpa = 0; gpa < slot0->region.memory_size; gpa += vm->page_size)
		s2_map(vm, root, levels, gpa, gpa);
	s2_map(vm, root, levels, vm->ucall_mmio_addr, vm->ucall_mmio_addr);
	s2_map(vm, root, levels, area_gpa(MMIO_AREA), MMIO_GPA);

	for (area = 0; area < NR_ROTATED; area++)
		for (offset = 0; offset < AREA_PAGES * psize; offset += vm->page_size)
			s2_map(vm, root, levels, area_gpa(area) + offset,
			       area_gpa((area + rotation) % NR_ROTATED) + offset);

	return root;
}

static u64 vtcr(struct kvm_vm *vm)
{
	u64 ia_bits = vm->page_shift + s2_levels(vm) * (vm->page_shift - 3);
	u64 tg0 = vm->page_size == SZ_4K ? TCR_TG0_4K :
		  vm->page_size == SZ_16K ? TCR_TG0_16K : TCR_TG0_64K;

	return TCR_T0SZ(ia_bits) | VTCR_SL0(1) | TCR_IRGN0_WBWA | TCR_ORGN0_WBWA |
	       TCR_SH0_INNER | tg0 | VTCR_PS_40_BITS | VTCR_RES1;
}

static void fill_data(void)
{
	u64 i, area;

	for (area = 0; area < NR_AREAS; area++)
		for (i = 0; i < AREA_PAGES; i++)
			data[(area * AREA_PAGES + i) * psize / sizeof(u64)] =
				pattern(area, i);
}

static struct kvm_vm *create_vm(int nr_vcpus, struct kvm_vcpu **vcpus, void *l2_code)
{
	size_t size = NR_AREAS * AREA_PAGES * psize;
	struct kvm_vm *vm;
	int i;

	vm = vm_create_with_vcpus(nr_vcpus, guest_l1, vcpus);
	vm_init_descriptor_tables(vm);
	vm_install_sync_handler(vm, VECTOR_SYNC_LOWER_64, ESR_ELx_EC_HVC64, l1_hvc_handler);
	vm_install_sync_handler(vm, VECTOR_SYNC_LOWER_64, ESR_ELx_EC_DABT_LOW,
				l1_data_abort_handler);
	vm_install_sync_handler(vm, VECTOR_SYNC_LOWER_64, ESR_ELx_EC_IABT_LOW,
				l1_fetch_abort_handler);

	data = kvm_mmap(size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1);
	fill_data();
	vm_set_user_memory_region(vm, DATA_SLOT, KVM_MEM_LOG_DIRTY_PAGES, DATA_GPA,
				  size, data);
	virt_map(vm, DATA_GPA, DATA_GPA, size / vm->page_size);

	config.vtcr = vtcr(vm);
	for (i = 0; i < NR_ROTATED; i++)
		config.roots[i] = s2_create(vm, i);
	for (i = 0; i < nr_vcpus; i++) {
		config.l2_stacks[i] = vm_alloc(vm, SZ_64K, KVM_UTIL_MIN_VADDR) + SZ_64K;
		vcpu_init_descriptor_tables(vcpus[i]);
		vcpu_args_set(vcpus[i], 1, l2_code);
	}
	sync_global_to_guest(vm, config);
	return vm;
}

static struct kvm_vm *create_vm_with_one_vcpu(struct kvm_vcpu **vcpu, void *l2_code)
{
	return create_vm(1, vcpu, l2_code);
}

static void assert_ucall(struct kvm_vcpu *vcpu, u64 cmd, u64 arg)
{
	struct ucall uc;

	if (get_ucall(vcpu, &uc) == UCALL_ABORT)
		REPORT_GUEST_ASSERT(uc);

	TEST_ASSERT(uc.cmd == cmd && (cmd != UCALL_SYNC || uc.args[1] == arg),
		    "Expected ucall %lu (%lu), got %lu (%lu), exit %s", cmd, arg, uc.cmd,
		    uc.args[1], exit_reason_str(vcpu->run->exit_reason));
}

static void assert_in_l2(struct kvm_vcpu *vcpu)
{
	u64 pstate = vcpu_get_reg(vcpu, ARM64_CORE_REG(regs.pstate));

	TEST_ASSERT_EQ(pstate & PSR_MODE_MASK, PSR_MODE_EL1h);
}

static void run_to_sync(struct kvm_vcpu *vcpu, u64 arg)
{
	vcpu_run(vcpu);
	assert_ucall(vcpu, UCALL_SYNC, arg);
	assert_in_l2(vcpu);
}

static void run_to_done(struct kvm_vcpu *vcpu)
{
	vcpu_run(vcpu);
	assert_ucall(vcpu, UCALL_DONE, 0);
}

static u64 exits_to_sync(struct kvm_vcpu *vcpu, u64 arg)
{
	u64 exits = vcpu_get_stat(vcpu, exits);

	run_to_sync(vcpu, arg);
	return vcpu_get_stat(vcpu, exits) - exits;
}

static void test_view(void)
{
	struct kvm_vcpu *vcpu;
	u64 exits;

	create_vm_with_one_vcpu(&vcpu, guest_l2_view);
	run_to_sync(vcpu, 0);
	pre_fault_areas(vcpu, VNCR_AREA);
	run_to_sync(vcpu, 1);

	exits = exits_to_sync(vcpu, 2);
	TEST_ASSERT(exits < AREA_PAGES / 2, "L1 took %lu exits to touch %lu pages",
		    exits, AREA_PAGES);
	exits = exits_to_sync(vcpu, 3);
	TEST_ASSERT(exits >= AREA_PAGES, "%lu exits for %lu pages that aren't mapped",
		    exits, AREA_PAGES);

	run_to_done(vcpu);
}

static void expect_hole(struct kvm_vcpu *vcpu)
{
	struct kvm_pre_fault_memory range = { .gpa = MMIO_GPA, .size = psize };
	int ret = __pre_fault(vcpu, &range);

	TEST_ASSERT(ret == -ENOENT, "Prefault of a hole returned %d", ret);
}

static void test_mmio(void)
{
	struct kvm_vcpu *vcpu;
	struct kvm_run *run;
	u16 value = MMIO_DATA;

	create_vm_with_one_vcpu(&vcpu, guest_l2_mmio);
	run = vcpu->run;
	vcpu_run(vcpu);
	TEST_ASSERT_KVM_EXIT_REASON(vcpu, KVM_EXIT_MMIO);
	TEST_ASSERT(run->mmio.phys_addr == MMIO_GPA && !run->mmio.is_write,
		    "Unexpected MMIO access at 0x%llx", run->mmio.phys_addr);
	assert_in_l2(vcpu);

	/* To L2, the MMIO area is a hole; to L1, the area is memory. */
	pre_fault_areas(vcpu, NR_AREAS);
	expect_hole(vcpu);
	TEST_ASSERT_KVM_EXIT_REASON(vcpu, KVM_EXIT_MMIO);

	memcpy(run->mmio.data, &value, sizeof(value));
	run_to_done(vcpu);
}

static void test_absent(void)
{
	struct kvm_vcpu *vcpu;

	create_vm_with_one_vcpu(&vcpu, guest_l2_absent);
	run_to_sync(vcpu, 0);
	pre_fault_areas(vcpu, NR_AREAS);
	run_to_done(vcpu);
}

static void test_empty_root(void)
{
	struct kvm_vcpu *vcpu;
	struct kvm_vm *vm = create_vm_with_one_vcpu(&vcpu, guest_l2_empty_root);
	u64 empty = vm_alloc_page_table(vm);

	run_to_sync(vcpu, 0);
	/* Still in L2, of which nothing can be translated now. */
	vcpu_set_reg(vcpu, KVM_ARM64_SYS_REG(SYS_VTTBR_EL2), empty | VTTBR_VMID(100));
	pre_fault(vcpu, 0, psize, 0);
	pre_fault_areas(vcpu, NR_AREAS);
	run_to_done(vcpu);
}

static void test_vm_off(void)
{
	struct kvm_vcpu *vcpu;

	create_vm_with_one_vcpu(&vcpu, guest_l2_vm_off);
	run_to_sync(vcpu, 0);
	pre_fault_areas(vcpu, NR_AREAS);
	run_to_done(vcpu);
}

static bool has_recursive_nv(struct kvm_vcpu *vcpu)
{
	u64 mmfr4 = vcpu_get_reg(vcpu, KVM_ARM64_SYS_REG(SYS_ID_AA64MMFR4_EL1));

	return SYS_FIELD_GET(ID_AA64MMFR4_EL1, NV_frac, mmfr4) >=
	       ID_AA64MMFR4_EL1_NV_frac_NV2_ONLY;
}

static void test_vncr(void)
{
	struct kvm_vcpu *vcpu;

	create_vm_with_one_vcpu(&vcpu, guest_l2_vncr);
	if (!has_recursive_nv(vcpu))
		exit(KSFT_SKIP);

	run_to_sync(vcpu, 0);
	pre_fault_areas(vcpu, NR_AREAS);
	run_to_done(vcpu);
}

/*
 * Each time the vCPU is loaded it needs a shadow stage-2 for a new pair of root
 * and VMID.  KVM runs out of them if a prefault fails to put the last one.
 */
static void test_leak(void)
{
	struct kvm_vcpu *vcpu;
	u64 i;

	create_vm_with_one_vcpu(&vcpu, guest_l2_leak);
	run_to_sync(vcpu, 0);
	for (i = 0; i < LEAK_ROUNDS; i++) {
		vcpu_set_reg(vcpu, KVM_ARM64_SYS_REG(SYS_VTTBR_EL2),
			     config.roots[i % NR_ROTATED] | VTTBR_VMID(2 + i % 100));
		pre_fault(vcpu, DATA_GPA + i * psize, psize, 0);
	}
}

static void *stress_vcpu(void *arg)
{
	u64 write = has_write_flag() ? KVM_PRE_FAULT_FLAG_WRITE : 0;
	struct kvm_vcpu *vcpu = arg;
	u64 i, gpa;

	for (i = 0; i < STRESS_ROUNDS; i++) {
		run_to_sync(vcpu, i);
		/* A page that's new, and of nobody else. */
		gpa = DATA_GPA + (i * MAX_VCPUS + vcpu->id) * psize;
		pre_fault(vcpu, gpa, psize, 0);
		pre_fault(vcpu, gpa, psize, write);
	}
	run_to_done(vcpu);
	return NULL;
}

/* Preempt whatever the CPU is about. */
static void *preempt(void *arg)
{
	bool *done = arg;

	while (!READ_ONCE(*done))
		usleep(200);

	return NULL;
}

static void test_stress(void)
{
	struct kvm_vcpu *vcpus[MAX_VCPUS];
	pthread_t threads[MAX_VCPUS + 1];
	cpu_set_t old, one;
	bool done = false;
	int i;

	kvm_static_assert(STRESS_ROUNDS * MAX_VCPUS <= NR_AREAS * AREA_PAGES);
	create_vm(MAX_VCPUS, vcpus, guest_l2_stress);

	/* Have the threads, which inherit it, compete for one CPU. */
	kvm_pthread_getaffinity(pthread_self(), &old);
	CPU_ZERO(&one);
	for (i = 0; !CPU_ISSET(i, &old); i++)
		;
	CPU_SET(i, &one);
	kvm_pthread_setaffinity(pthread_self(), &one);

	for (i = 0; i < MAX_VCPUS; i++)
		kvm_pthread_create(&threads[i], NULL, stress_vcpu, vcpus[i]);
	kvm_pthread_create(&threads[i], NULL, preempt, &done);
	for (i = 0; i < MAX_VCPUS; i++)
		kvm_pthread_join(threads[i], NULL);
	WRITE_ONCE(done, true);
	kvm_pthread_join(threads[i], NULL);
}

static const struct {
	const char *name;
	void (*test)(void);
} tests[] = {
	{ "Prefault for L1 leaves L2's view alone", test_view },
	{ "Prefault while an MMIO read of L2 is pending", test_mmio },
	{ "Prefault of what L1 doesn't map for L2", test_absent },
	{ "Prefault with an empty nested stage-2 root", test_empty_root },
	{ "Prefault while L1 has nested stage-2 disabled", test_vm_off },
	{ "Prefault while L2 has a VNCR page", test_vncr },
	{ "Prefault with more roots than KVM has shadow stage-2s", test_leak },
	{ "Prefault while vCPUs change their shadow stage-2", test_stress },
};

/*
 * Leave it to the exit of a process to destroy the VM at once: deleting its
 * memslots one by one would unmap all shadow stage-2s for each.
 */
static void run_in_child(const char *name, void (*test)(void))
{
	pid_t pid;
	int status;

	fflush(stdout);
	pid = fork();
	TEST_ASSERT(pid >= 0, "fork() failed");
	if (!pid) {
		test();
		exit(KSFT_PASS);
	}

	TEST_ASSERT(waitpid(pid, &status, 0) == pid, "waitpid() failed");
	if (!WIFEXITED(status))
		ksft_test_result_fail("%s\n", name);
	else if (WEXITSTATUS(status) == KSFT_SKIP)
		ksft_test_result_skip("%s\n", name);
	else
		ksft_test_result(WEXITSTATUS(status) == KSFT_PASS, "%s\n", name);
}

int main(void)
{
	int i;

	TEST_REQUIRE(kvm_check_cap(KVM_CAP_PRE_FAULT_MEMORY));
	TEST_REQUIRE(test_supports_el2());
	psize = max_t(size_t, getpagesize(),
		      vm_guest_mode_params[VM_MODE_DEFAULT].page_size);
	config.page_size = psize;

	ksft_print_header();
	ksft_set_plan(ARRAY_SIZE(tests));
	for (i = 0; i < ARRAY_SIZE(tests); i++)
		run_in_child(tests[i].name, tests[i].test);

	ksft_finished();
}
