// SPDX-License-Identifier: GPL-2.0-only
/*
 * userfault_nested_test - KVM_MEM_USERFAULT and a guest's guest
 *
 * L1 runs L2 on stage-2 tables that map the memory in question elsewhere than L1
 * has it.  Userspace knows L1's addresses only, and that's what an exit has to
 * tell it.  What L1's VNCR_EL2 points to is memory that KVM maps for L2 on its
 * own accord, and that can be missing, too.
 *
 * L1 and L2 share their stage-1 and their code.  L2 exits to userspace by way of
 * ucalls, since L1 maps the ucall page for L2, too.
 *
 * When the flag is enabled, KVM walks all of the addresses that a shadow stage-2
 * may have, which takes more than a minute under emulation.  Hence only one test
 * does it once there's a shadow stage-2.
 */
#include <linux/sizes.h>
#include <sys/mman.h>
#include <sys/wait.h>

#include <asm/ptrace.h>

#include "kvm_syscalls.h"
#include "kvm_util.h"
#include "pre_fault_util.h"
#include "processor.h"
#include "test_util.h"
#include "ucall.h"
#include "userfault_util.h"

/* L2 has page n where L1 has page (n + ROTATION) % NR_PAGES, but the last one. */
#define NR_PAGES		24ul
#define ROTATION		5
#define VNCR_PAGE		NR_PAGES
#define NR_ALL_PAGES		(NR_PAGES + 1)
#define DATA_GPA		0x100000000ul
#define DATA_SLOT		10

/* L2 has block n where L1 has block NR_BLOCKS - 1 - n. */
#define NR_BLOCKS		2ul
#define BLOCK_SIZE		((u64)SZ_2M)
#define BLOCK_PAGES		(BLOCK_SIZE / SZ_4K)
#define BLOCK_GPA		(DATA_GPA + SZ_1G)
#define BLOCK_SLOT		11

#define VNCR_DATA		0x123456000ul
/* Where FEAT_NV2 has VTTBR_EL2. */
#define VNCR_VTTBR_OFFSET	0x20

/* VTTBR_EL2, VTCR_EL2 and stage-2 descriptors. */
#define VTTBR_VMID(vmid)	((u64)(vmid) << 48)
#define VTCR_SL0(x)		((u64)(x) << 6)
#define VTCR_PS_40_BITS		(2ul << 16)
#define VTCR_RES1		BIT(31)
#define S2_NORMAL		(0xful << 2)
#define S2_RW			(3ul << 6)

/* L2 to L1. */
enum {
	HVC_SET_NV,
	HVC_READ,
	HVC_READ_VNCR,
};

/* Set by userspace for L1 and L2. */
static struct {
	u64 page_size;
	u64 vtcr;
	u64 root;
	u64 l2_stack;
} config;

static size_t psize;
static u64 *bitmap;
static void *data;
static int gmem_fd = -1;

static u64 page_gpa(u64 page)
{
	return DATA_GPA + page * config.page_size;
}

static u64 pattern(u64 page)
{
	return 0x5eed0000 + page;
}

/*
 * L1, a hypervisor at EL2 with E2H.
 */
#define copy_el2_to_el1(reg)						\
	write_sysreg_s(read_sysreg_s(SYS_##reg##_EL1), SYS_##reg##_EL12)

static void l1_set_hcr(u64 bits, bool set)
{
	sysreg_clear_set(hcr_el2, set ? 0 : bits, set ? bits : 0);
	isb();
}

static void l1_hvc_handler(struct ex_regs *regs)
{
	u64 arg = regs->regs[1];

	switch (regs->regs[0]) {
	case HVC_SET_NV:
		write_sysreg_s(page_gpa(VNCR_PAGE), SYS_VNCR_EL2);
		l1_set_hcr(HCR_EL2_NV | HCR_EL2_NV2, arg);
		break;
	case HVC_READ:
		regs->regs[0] = READ_ONCE(*(u64 *)page_gpa(arg));
		break;
	case HVC_READ_VNCR:
		regs->regs[0] = READ_ONCE(*(u64 *)(page_gpa(VNCR_PAGE) +
						   VNCR_VTTBR_OFFSET));
		break;
	default:
		GUEST_FAIL("Unexpected HVC %lu", regs->regs[0]);
	}
}

static void guest_l1(void *l2_code)
{
	GUEST_ASSERT_EQ(get_current_el(), 2);

	copy_el2_to_el1(SCTLR);
	copy_el2_to_el1(MAIR);
	copy_el2_to_el1(TCR);
	copy_el2_to_el1(TTBR0);
	copy_el2_to_el1(VBAR);
	write_sysreg_s(3 << 20, SYS_CPACR_EL12);
	write_sysreg(config.l2_stack, sp_el1);

	write_sysreg(config.vtcr, vtcr_el2);
	write_sysreg(config.root | VTTBR_VMID(1), vttbr_el2);
	l1_set_hcr(HCR_EL2_TGE, false);
	l1_set_hcr(HCR_EL2_VM, true);

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

static void l2_check_data(void)
{
	u64 i;

	for (i = 0; i < NR_PAGES; i++) {
		u64 *p = (u64 *)page_gpa(i);

		/* A page's first fault is for a read or for a write. */
		if (i % 2)
			WRITE_ONCE(p[1], i);
		GUEST_ASSERT_EQ(READ_ONCE(*p), pattern((i + ROTATION) % NR_PAGES));
	}
}

static void guest_l2_data(void)
{
	for (;;) {
		l2_check_data();
		GUEST_SYNC(0);
	}
}

/* Each page is touched by L1, and by L2, which has it elsewhere. */
static void guest_l2_both(void)
{
	u64 i;

	for (i = 0; i < NR_PAGES; i++) {
		GUEST_ASSERT_EQ(l2_hvc(HVC_READ, (i + ROTATION) % NR_PAGES),
				pattern((i + ROTATION) % NR_PAGES));
		GUEST_ASSERT_EQ(READ_ONCE(*(u64 *)page_gpa(i)),
				pattern((i + ROTATION) % NR_PAGES));
	}
	GUEST_SYNC(0);
}

/* Read all blocks over and over, but tell of each. */
static void guest_l2_blocks(void)
{
	u64 page, block, gpa;

	for (;;) {
		for (block = 0; block < NR_BLOCKS; block++) {
			gpa = BLOCK_GPA + block * BLOCK_SIZE;
			for (page = 0; page < BLOCK_PAGES; page++)
				GUEST_ASSERT_EQ(READ_ONCE(*(u64 *)(gpa + page * SZ_4K)),
						pattern((NR_BLOCKS - 1 - block) *
							BLOCK_PAGES + page));
			GUEST_SYNC(block);
		}
	}
}

/* As a hypervisor has it, i.e. the access is to L1's VNCR page. */
static void l2_check_vncr(void)
{
	write_sysreg(VNCR_DATA, vttbr_el2);
	GUEST_SYNC(1);
	GUEST_ASSERT_EQ(read_sysreg(vttbr_el2), VNCR_DATA);
	GUEST_ASSERT_EQ(l2_hvc(HVC_READ_VNCR, 0), VNCR_DATA);
}

static void guest_l2_vncr(void)
{
	l2_hvc(HVC_SET_NV, true);
	l2_check_vncr();
	GUEST_SYNC(2);
}

static void guest_l2_drops(void)
{
	l2_check_data();
	l2_hvc(HVC_SET_NV, true);
	l2_check_vncr();
	l2_hvc(HVC_SET_NV, false);
	l2_check_data();
	GUEST_SYNC(2);
}

/*
 * Userspace.
 */

/* Map a page, or a block, in an L1-owned stage-2 of two or three levels. */
static void __s2_map(struct kvm_vm *vm, u64 root, int levels, u64 ipa, u64 gpa,
		     bool block)
{
	unsigned int bits = vm->page_shift - 3;
	u64 table = root, *entry;
	int level;

	for (level = levels - 1; ; level--) {
		entry = (u64 *)addr_gpa2hva(vm, table) +
			(ipa >> (vm->page_shift + level * bits) & (BIT(bits) - 1));
		if (level == block)
			break;
		if (!*entry)
			*entry = vm_alloc_page_table(vm) | PMD_TYPE_TABLE | PTE_VALID;
		table = *entry & PTE_ADDR_MASK(vm->page_shift);
	}
	*entry = gpa | S2_NORMAL | S2_RW | PTE_SHARED | PTE_AF | PTE_VALID;
	if (!block)
		*entry |= PTE_TYPE_PAGE;
}

static void s2_map(struct kvm_vm *vm, u64 root, int levels, u64 ipa, u64 gpa)
{
	__s2_map(vm, root, levels, ipa, gpa, false);
}

/* As many levels as have a start level of 1 (4K) or 2. */
static int s2_levels(struct kvm_vm *vm)
{
	return vm->page_size == SZ_4K ? 3 : 2;
}

static u64 s2_create(struct kvm_vm *vm)
{
	struct userspace_mem_region *slot0 = memslot2region(vm, 0);
	u64 root = vm_alloc_page_table(vm), gpa, page, offset;
	int levels = s2_levels(vm);

	for (gpa = 0; gpa < slot0->region.memory_size; gpa += vm->page_size)
		s2_map(vm, root, levels, gpa, gpa);
	s2_map(vm, root, levels, vm->ucall_mmio_addr, vm->ucall_mmio_addr);

	for (page = 0; page < NR_PAGES; page++)
		for (offset = 0; offset < psize; offset += vm->page_size)
			s2_map(vm, root, levels, page_gpa(page) + offset,
			       page_gpa((page + ROTATION) % NR_PAGES) + offset);

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

static void provide(u64 page)
{
	/* What the VNCR page has are registers, which need no content. */
	if (page != VNCR_PAGE)
		WRITE_ONCE(*(u64 *)(data + page * psize), pattern(page));
	userfault_clear(bitmap, page, 1);
}

static void add_data(struct kvm_vm *vm, bool gmem)
{
	const u64 gmem_flags = GUEST_MEMFD_FLAG_MMAP | GUEST_MEMFD_FLAG_INIT_SHARED;
	u64 size = NR_ALL_PAGES * psize;

	if (gmem) {
		if ((vm_check_cap(vm, KVM_CAP_GUEST_MEMFD_FLAGS) & gmem_flags) != gmem_flags)
			exit(KSFT_SKIP);
		gmem_fd = vm_create_guest_memfd(vm, size, gmem_flags);
	}
	vm_mem_add(vm, VM_MEM_SRC_ANONYMOUS, DATA_GPA, DATA_SLOT, size / vm->page_size,
		   gmem ? KVM_MEM_GUEST_MEMFD : 0, gmem_fd, 0);
	data = gmem ? kvm_mmap(size, PROT_READ | PROT_WRITE, MAP_SHARED, gmem_fd) :
		      memslot2region(vm, DATA_SLOT)->host_mem;
	virt_map(vm, DATA_GPA, DATA_GPA, size / vm->page_size);
}

static struct kvm_vm *create_vm(struct kvm_vcpu **vcpu, void *l2_code, bool gmem)
{
	struct kvm_vm *vm;

	vm = vm_create_with_one_vcpu(vcpu, guest_l1);
	vm_init_descriptor_tables(vm);
	vm_install_sync_handler(vm, VECTOR_SYNC_LOWER_64, ESR_ELx_EC_HVC64, l1_hvc_handler);
	add_data(vm, gmem);
	bitmap = userfault_alloc_bitmap(NR_ALL_PAGES);

	config.vtcr = vtcr(vm);
	config.root = s2_create(vm);
	config.l2_stack = vm_alloc(vm, SZ_64K, KVM_UTIL_MIN_VADDR) + SZ_64K;
	sync_global_to_guest(vm, config);
	vcpu_init_descriptor_tables(*vcpu);
	vcpu_args_set(*vcpu, 1, l2_code);
	return vm;
}

/* All is missing, whatever has been mapped so far. */
static void enable(struct kvm_vm *vm)
{
	userfault_set(bitmap, 0, NR_ALL_PAGES);
	userfault_enable(vm, DATA_SLOT, bitmap);
}

static void run_to_sync(struct kvm_vcpu *vcpu, u64 arg)
{
	struct ucall uc;

	vcpu_run(vcpu);
	if (get_ucall(vcpu, &uc) == UCALL_ABORT)
		REPORT_GUEST_ASSERT(uc);
	TEST_ASSERT_EQ(uc.cmd, UCALL_SYNC);
	TEST_ASSERT_EQ(uc.args[1], arg);
}

static void run_to_page(struct kvm_vcpu *vcpu, u64 page)
{
	vcpu_run_to_userfault(vcpu, page_gpa(page));
	vcpu_run_to_userfault(vcpu, page_gpa(page));
	provide(page);
}

static bool in_l2(struct kvm_vcpu *vcpu)
{
	u64 pstate = vcpu_get_reg(vcpu, ARM64_CORE_REG(regs.pstate));

	return (pstate & PSR_MODE_MASK) == PSR_MODE_EL1h;
}

static void run_to_data(struct kvm_vcpu *vcpu)
{
	u64 i;

	for (i = 0; i < NR_PAGES; i++) {
		run_to_page(vcpu, (i + ROTATION) % NR_PAGES);
		TEST_ASSERT(in_l2(vcpu), "L1 needs the page");
	}
}

static void test_data(bool gmem)
{
	struct kvm_vcpu *vcpu;
	struct kvm_vm *vm = create_vm(&vcpu, guest_l2_data, gmem);

	enable(vm);
	run_to_data(vcpu);
	run_to_sync(vcpu, 0);

	/* Disabling takes nothing away. */
	userfault_disable(vm, DATA_SLOT);
	run_to_sync(vcpu, 0);
}

static void test_both(bool gmem)
{
	struct kvm_vcpu *vcpu;
	struct kvm_vm *vm = create_vm(&vcpu, guest_l2_both, gmem);
	u64 i;

	enable(vm);
	for (i = 0; i < NR_PAGES; i++) {
		run_to_page(vcpu, (i + ROTATION) % NR_PAGES);
		TEST_ASSERT(!in_l2(vcpu), "L2 needs the page");
	}
	run_to_sync(vcpu, 0);
}

static bool has_recursive_nv(struct kvm_vcpu *vcpu)
{
	u64 mmfr4 = vcpu_get_reg(vcpu, KVM_ARM64_SYS_REG(SYS_ID_AA64MMFR4_EL1));

	return SYS_FIELD_GET(ID_AA64MMFR4_EL1, NV_frac, mmfr4) >=
	       ID_AA64MMFR4_EL1_NV_frac_NV2_ONLY;
}

static void test_vncr(bool gmem)
{
	struct kvm_vcpu *vcpu;
	struct kvm_vm *vm = create_vm(&vcpu, guest_l2_vncr, gmem);

	if (!has_recursive_nv(vcpu))
		exit(KSFT_SKIP);

	enable(vm);
	run_to_page(vcpu, VNCR_PAGE);
	run_to_sync(vcpu, 1);
	userfault_disable(vm, DATA_SLOT);
	run_to_sync(vcpu, 2);
}

/* L2 has everything mapped, the VNCR page included, when the flag is enabled. */
static void test_drops(bool gmem)
{
	struct kvm_vcpu *vcpu;
	struct kvm_vm *vm = create_vm(&vcpu, guest_l2_drops, gmem);
	u64 i;

	if (!has_recursive_nv(vcpu))
		exit(KSFT_SKIP);

	for (i = 0; i < NR_ALL_PAGES; i++)
		provide(i);
	run_to_sync(vcpu, 1);
	enable(vm);
	run_to_page(vcpu, VNCR_PAGE);
	run_to_data(vcpu);
	run_to_sync(vcpu, 2);
}

static void assert_no_memory(struct kvm_vcpu *vcpu, u64 page)
{
	int ret = _vcpu_run(vcpu);

	TEST_ASSERT(ret == -1 && errno == EFAULT, "Wanted EFAULT, got %d errno %d", ret, errno);
	TEST_ASSERT_KVM_EXIT_REASON(vcpu, KVM_EXIT_MEMORY_FAULT);
	TEST_ASSERT_EQ(vcpu->run->memory_fault.flags, 0);
	TEST_ASSERT_EQ(vcpu->run->memory_fault.gpa, page_gpa(page));
	TEST_ASSERT_EQ(vcpu->run->memory_fault.size, psize);
}

/* There's no memory because the file is gone, i.e. the bitmap plays no role. */
static void close_file(struct kvm_vm *vm)
{
	kvm_munmap(data, NR_ALL_PAGES * psize);
	close(gmem_fd);
	close(memslot2region(vm, DATA_SLOT)->region.guest_memfd);
}

static void test_no_memory(bool gmem)
{
	struct kvm_vcpu *vcpu;
	struct kvm_vm *vm = create_vm(&vcpu, guest_l2_data, gmem);

	close_file(vm);
	assert_no_memory(vcpu, ROTATION);
	TEST_ASSERT(in_l2(vcpu), "L1 needs the page");
}

static void test_no_vncr_memory(bool gmem)
{
	struct kvm_vcpu *vcpu;
	struct kvm_vm *vm = create_vm(&vcpu, guest_l2_vncr, gmem);

	if (!has_recursive_nv(vcpu))
		exit(KSFT_SKIP);

	close_file(vm);
	assert_no_memory(vcpu, VNCR_PAGE);
}

/* A bitmap that can't be read isn't L1's fault either. */
static void test_no_bitmap(bool gmem)
{
	struct kvm_vcpu *vcpu;
	struct kvm_vm *vm = create_vm(&vcpu, guest_l2_vncr, gmem);

	if (!has_recursive_nv(vcpu))
		exit(KSFT_SKIP);

	enable(vm);
	TEST_ASSERT(!mprotect(bitmap, psize, PROT_NONE), "mprotect() failed");
	assert_no_memory(vcpu, VNCR_PAGE);
	TEST_ASSERT(!mprotect(bitmap, psize, PROT_READ | PROT_WRITE), "mprotect() failed");
	run_to_page(vcpu, VNCR_PAGE);
	run_to_sync(vcpu, 1);
}

/* Returns where the blocks are in userspace, all of them filled. */
static void *add_blocks(struct kvm_vm *vm)
{
	const u64 size = NR_BLOCKS * BLOCK_SIZE;
	u64 page, block;
	void *mem;

	vm_userspace_mem_region_add(vm, VM_MEM_SRC_ANONYMOUS_THP, BLOCK_GPA, BLOCK_SLOT,
				    size / vm->page_size, 0);
	virt_map(vm, BLOCK_GPA, BLOCK_GPA, size / vm->page_size);
	for (block = 0; block < NR_BLOCKS; block++)
		__s2_map(vm, config.root, s2_levels(vm), BLOCK_GPA + block * BLOCK_SIZE,
			 BLOCK_GPA + (NR_BLOCKS - 1 - block) * BLOCK_SIZE, true);

	mem = memslot2region(vm, BLOCK_SLOT)->host_mem;
	for (page = 0; page < NR_BLOCKS * BLOCK_PAGES; page++)
		WRITE_ONCE(*(u64 *)(mem + page * SZ_4K), pattern(page));
	return mem;
}

/*
 * L2 reads all blocks.  One that is complete takes one fault.  Of one whose last
 * page is missing each page takes one, and one more if it's missing itself.
 */
static void test_blocks(bool gmem)
{
	const u64 missing[] = { 77, BLOCK_PAGES - 1 };
	struct kvm_vcpu *vcpu;
	struct kvm_vm *vm;
	void *mem;
	int i;

	pft_begin();
	if (!thp_configured() || psize != SZ_4K || !pft_can_trace())
		exit(KSFT_SKIP);

	vm = create_vm(&vcpu, guest_l2_blocks, gmem);
	if (!(userfault_cap(vm) & KVM_USERFAULT_HUGE))
		exit(KSFT_SKIP);
	mem = add_blocks(vm);
	if (madvise(mem, NR_BLOCKS * BLOCK_SIZE, MADV_COLLAPSE))
		exit(KSFT_SKIP);
	bitmap = userfault_alloc_bitmap(NR_BLOCKS * BLOCK_PAGES);
	for (i = 0; i < ARRAY_SIZE(missing); i++)
		userfault_set(bitmap, missing[i], 1);
	userfault_enable(vm, BLOCK_SLOT, bitmap);

	/* L1's last block. */
	pft_trace_clear();
	run_to_sync(vcpu, 0);
	TEST_ASSERT_EQ(pft_nr_faults(vcpu), 1);

	/* And its first. */
	pft_trace_clear();
	for (i = 0; i < ARRAY_SIZE(missing); i++) {
		vcpu_run_to_userfault(vcpu, BLOCK_GPA + missing[i] * SZ_4K);
		TEST_ASSERT(in_l2(vcpu), "L1 needs the page");
		userfault_clear(bitmap, missing[i], 1);
	}
	run_to_sync(vcpu, 1);
	TEST_ASSERT_EQ(pft_nr_faults(vcpu), BLOCK_PAGES + ARRAY_SIZE(missing));

	pft_trace_clear();
	run_to_sync(vcpu, 0);
	run_to_sync(vcpu, 1);
	TEST_ASSERT_EQ(pft_nr_faults(vcpu), 0);
}

static const struct {
	const char *name;
	void (*test)(bool gmem);
	bool gmem;
} tests[] = {
	{ "L2 needs a page",				test_data,		false },
	{ "L2 needs a page of guest_memfd",		test_data,		true },
	{ "L1 needs a page before L2 does",		test_both,		false },
	{ "L1 needs a page of guest_memfd before L2",	test_both,		true },
	{ "L2 needs the VNCR page",			test_vncr,		false },
	{ "L2 needs the VNCR page in guest_memfd",	test_vncr,		true },
	{ "No memory for L2",				test_no_memory,		true },
	{ "No memory for the VNCR page",		test_no_vncr_memory,	true },
	{ "No bitmap to look up the VNCR page in",	test_no_bitmap,		false },
	{ "L2 needs a page of a block, or none",	test_blocks,		false },
	{ "L2 has everything mapped before",		test_drops,		false },
};

/* Leave it to the exit of a process to destroy the VM at once, which is faster. */
static void run_in_child(const char *name, void (*test)(bool gmem), bool gmem)
{
	pid_t pid;
	int status;

	fflush(stdout);
	pid = fork();
	TEST_ASSERT(pid >= 0, "fork() failed");
	if (!pid) {
		test(gmem);
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

	TEST_REQUIRE(kvm_has_cap(KVM_CAP_USERFAULT));
	TEST_REQUIRE(test_supports_el2());
	psize = max_t(size_t, getpagesize(),
		      vm_guest_mode_params[VM_MODE_DEFAULT].page_size);
	config.page_size = psize;

	ksft_print_header();
	ksft_set_plan(ARRAY_SIZE(tests));
	for (i = 0; i < ARRAY_SIZE(tests); i++)
		run_in_child(tests[i].name, tests[i].test, tests[i].gmem);

	ksft_finished();
}
