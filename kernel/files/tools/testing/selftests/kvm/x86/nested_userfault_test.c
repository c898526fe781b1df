// SPDX-License-Identifier: GPL-2.0-only
/*
 * Test that a nested guest's access to a page that's missing exits with the
 * address of L1, also if L1 has nested TDP tables that map the page to another
 * address of L2; and that a huge page is mapped for a nested guest only if none
 * of its pages is missing.
 */
#include <linux/sizes.h>
#include <sys/mman.h>

#include "kvm_util.h"
#include "processor.h"
#include "svm_util.h"
#include "test_util.h"
#include "userfault_util.h"
#include "vmx.h"

#define TEST_SLOT	1
#define NR_PAGES	3
#define TEST_BASE	0xc0000000ul
/* With nested TDP, L2 has the pages here, where L1 has no memory. */
#define ALIAS_BASE	0xd0000000ul

#define PAGE_GPA(i)	(TEST_BASE + (i) * PAGE_SIZE)
#define ALIAS_GPA(i)	(ALIAS_BASE + (i) * PAGE_SIZE)

#define NR_ROUNDS	3

/* With nested TDP, L2 has them elsewhere and the other way round. */
#define BLOCK_SLOT	2
#define NR_BLOCKS	2
#define BLOCK_PAGES	(SZ_2M / PAGE_SIZE)
#define BLOCK_BASE	0x100000000ul
#define ALIAS_BLOCK_BASE 0x140000000ul

/* mov $0x1234, %eax; ret */
static const u8 code[] = { 0xb8, 0x34, 0x12, 0, 0, 0xc3 };

/* Set by userspace for L1 and L2. */
static struct {
	void (*l2_code)(void);
	/* Where L2 has its memory. */
	gva_t base;
	gva_t block_base;
} config;

static void l2_guest_code(void)
{
	gva_t base = config.base;
	int i;

	for (i = 0; i < NR_ROUNDS; i++) {
		GUEST_SYNC1(READ_ONCE(*(u64 *)base));
		WRITE_ONCE(*(u64 *)(base + PAGE_SIZE), i);
		GUEST_SYNC1(i);
		GUEST_SYNC1(((u32 (*)(void))(base + 2 * PAGE_SIZE))());
	}

	/* Exit to L1 and never come back.  */
	vmcall();
}

/* Read all blocks over and over, but tell of each. */
static void l2_block_code(void)
{
	u64 page, block, sum;

	for (;;) {
		for (block = 0; block < NR_BLOCKS; block++) {
			for (page = 0, sum = 0; page < BLOCK_PAGES; page++)
				sum += READ_ONCE(*(u64 *)(config.block_base +
							  block * SZ_2M + page * PAGE_SIZE));
			GUEST_SYNC1(sum);
		}
	}
}

static void l1_vmx_code(struct vmx_pages *vmx)
{
	GUEST_ASSERT(vmx->vmcs_gpa);
	GUEST_ASSERT(prepare_for_vmx_operation(vmx));
	GUEST_ASSERT(load_vmcs(vmx));
	prepare_vmcs(vmx, config.l2_code);

	GUEST_ASSERT(!vmlaunch());
	GUEST_ASSERT_EQ(vmreadz(VM_EXIT_REASON), EXIT_REASON_VMCALL);
}

static void l1_svm_code(struct svm_test_data *svm)
{
	generic_svm_setup(svm, config.l2_code);

	run_guest(svm->vmcb, svm->vmcb_gpa);
	GUEST_ASSERT_EQ(svm->vmcb->control.exit_code, SVM_EXIT_VMMCALL);
}

static void l1_guest_code(void *data)
{
	if (this_cpu_has(X86_FEATURE_VMX))
		l1_vmx_code(data);
	else
		l1_svm_code(data);

	/* What was provided for L2 is there for L1. */
	GUEST_SYNC1(READ_ONCE(*(u64 *)TEST_BASE));
	GUEST_DONE();
}

static u64 run_to_sync(struct kvm_vcpu *vcpu)
{
	struct ucall uc;

	vcpu_run(vcpu);
	if (get_ucall(vcpu, &uc) == UCALL_ABORT)
		REPORT_GUEST_ASSERT(uc);

	TEST_ASSERT_EQ(uc.cmd, UCALL_SYNC);
	return uc.args[0];
}

static void provide(struct kvm_vm *vm, u64 *bitmap, int page)
{
	void *hva = addr_gpa2hva(vm, PAGE_GPA(page));

	if (page == 2)
		memcpy(hva, code, sizeof(code));
	else
		*(u64 *)hva = 0x1000 + page;
	userfault_clear(bitmap, page, 1);
}

/* The vCPU can't do without the page until it's provided. */
static u64 run_to_page(struct kvm_vcpu *vcpu, u64 *bitmap, int page)
{
	vcpu_run_to_userfault(vcpu, PAGE_GPA(page));
	vcpu_run_to_userfault(vcpu, PAGE_GPA(page));
	provide(vcpu->vm, bitmap, page);
	return run_to_sync(vcpu);
}

static void map_pages(struct kvm_vm *vm, bool nested_tdp)
{
	int i;

	vm_userspace_mem_region_add(vm, VM_MEM_SRC_ANONYMOUS, TEST_BASE, TEST_SLOT,
				    NR_PAGES, 0);
	virt_map(vm, TEST_BASE, TEST_BASE, NR_PAGES);
	virt_map(vm, ALIAS_BASE, ALIAS_BASE, NR_PAGES);
	if (!nested_tdp)
		return;

	tdp_identity_map_default_memslots(vm);
	for (i = 0; i < NR_PAGES; i++)
		tdp_map(vm, ALIAS_GPA(i), PAGE_GPA(i), PAGE_SIZE);
}

static struct kvm_vm *create_vm(struct kvm_vcpu **vcpu, bool nested_tdp,
				void (*l2_code)(void))
{
	gva_t nested_gva = 0;
	struct kvm_vm *vm;

	vm = vm_create_with_one_vcpu(vcpu, l1_guest_code);
	if (nested_tdp)
		vm_enable_tdp(vm);
	if (kvm_cpu_has(X86_FEATURE_VMX))
		vcpu_alloc_vmx(vm, &nested_gva);
	else
		vcpu_alloc_svm(vm, &nested_gva);
	vcpu_args_set(*vcpu, 1, nested_gva);

	config.l2_code = l2_code;
	config.base = nested_tdp ? ALIAS_BASE : TEST_BASE;
	config.block_base = nested_tdp ? ALIAS_BLOCK_BASE : BLOCK_BASE;
	sync_global_to_guest(vm, config);
	return vm;
}

static void test_nested_userfault(bool nested_tdp)
{
	struct kvm_vcpu *vcpu;
	struct kvm_vm *vm;
	struct ucall uc;
	u64 *bitmap;
	int i;

	pr_info("Nested TDP: %s\n", nested_tdp ? "enabled" : "disabled");

	vm = create_vm(&vcpu, nested_tdp, l2_guest_code);
	map_pages(vm, nested_tdp);
	bitmap = userfault_alloc_bitmap(NR_PAGES);

	/* From the second round on, what L2 has mapped is dropped. */
	for (i = 0; i < NR_ROUNDS; i++) {
		userfault_disable(vm, TEST_SLOT);
		userfault_set(bitmap, 0, NR_PAGES);
		userfault_enable(vm, TEST_SLOT, bitmap);

		TEST_ASSERT_EQ(run_to_page(vcpu, bitmap, 0), 0x1000);
		TEST_ASSERT_EQ(run_to_page(vcpu, bitmap, 1), i);
		TEST_ASSERT_EQ(*(u64 *)addr_gpa2hva(vm, PAGE_GPA(1)), i);
		TEST_ASSERT_EQ(run_to_page(vcpu, bitmap, 2), 0x1234);
	}

	TEST_ASSERT_EQ(run_to_sync(vcpu), 0x1000);
	vcpu_run(vcpu);
	TEST_ASSERT_EQ(get_ucall(vcpu, &uc), UCALL_DONE);

	kvm_vm_free(vm);
	userfault_free_bitmap(bitmap, NR_PAGES);
}

/* Returns false if there are no huge pages. */
static bool map_blocks(struct kvm_vm *vm, bool nested_tdp)
{
	const u64 size = NR_BLOCKS * SZ_2M;
	u64 page, block, *mem;

	vm_userspace_mem_region_add(vm, VM_MEM_SRC_ANONYMOUS_THP, BLOCK_BASE, BLOCK_SLOT,
				    size / PAGE_SIZE, 0);
	mem = addr_gpa2hva(vm, BLOCK_BASE);
	for (page = 0; page < NR_BLOCKS * BLOCK_PAGES; page++)
		mem[page * PAGE_SIZE / sizeof(*mem)] = page;
	if (madvise(mem, size, MADV_COLLAPSE))
		return false;

	virt_map(vm, config.block_base, config.block_base, NR_BLOCKS * BLOCK_PAGES);
	if (!nested_tdp)
		return true;

	tdp_identity_map_default_memslots(vm);
	for (block = 0; block < NR_BLOCKS; block++)
		__virt_pg_map(vm, &vm->stage2_mmu, ALIAS_BLOCK_BASE + block * SZ_2M,
			      BLOCK_BASE + (NR_BLOCKS - 1 - block) * SZ_2M, PG_LEVEL_2M);
	return true;
}

/* The sum of the pages of a block, which begins with that page. */
static u64 sum_of(u64 first)
{
	return BLOCK_PAGES * first + BLOCK_PAGES * (BLOCK_PAGES - 1) / 2;
}

/*
 * Have L2 read all blocks.  One that is complete is mapped as a huge page.  One
 * that isn't, isn't; until its last page is provided.
 */
static void read_blocks(struct kvm_vcpu *vcpu, u64 *bitmap, bool nested_tdp)
{
	u64 i, page, first, before;

	for (i = 0; i < NR_BLOCKS; i++) {
		first = (nested_tdp ? NR_BLOCKS - 1 - i : i) * BLOCK_PAGES;
		before = vm_get_stat(vcpu->vm, pages_2m);
		if (!userfault_is_set(bitmap, first + BLOCK_PAGES - 1)) {
			TEST_ASSERT_EQ(run_to_sync(vcpu), sum_of(first));
			TEST_ASSERT_EQ(vm_get_stat(vcpu->vm, pages_2m), before + 1);
			continue;
		}

		for (page = first; page < first + BLOCK_PAGES; page++) {
			if (!userfault_is_set(bitmap, page))
				continue;
			vcpu_run_to_userfault(vcpu, BLOCK_BASE + page * PAGE_SIZE);
			TEST_ASSERT_EQ(vm_get_stat(vcpu->vm, pages_2m), before);
			userfault_clear(bitmap, page, 1);
		}
		TEST_ASSERT_EQ(run_to_sync(vcpu), sum_of(first));
	}
}

static void test_blocks(bool nested_tdp)
{
	const u64 missing[] = { 77, 0, BLOCK_PAGES, 2 * BLOCK_PAGES - 1 };
	u64 last;
	struct kvm_vcpu *vcpu;
	struct kvm_vm *vm;
	u64 *bitmap;
	int i;

	pr_info("Huge pages, nested TDP: %s\n", nested_tdp ? "enabled" : "disabled");

	vm = create_vm(&vcpu, nested_tdp, l2_block_code);
	if (!(userfault_cap(vm) & KVM_USERFAULT_HUGE) || !thp_configured() ||
	    !map_blocks(vm, nested_tdp)) {
		print_skip("No huge pages");
		kvm_vm_free(vm);
		return;
	}
	bitmap = userfault_alloc_bitmap(NR_BLOCKS * BLOCK_PAGES);

	/* Have all else mapped, so that a huge page is one of these blocks. */
	for (i = 0; i < NR_BLOCKS; i++)
		run_to_sync(vcpu);
	for (i = 0; i < ARRAY_SIZE(missing); i++) {
		/* With the block's last one no page of it can be mapped with others. */
		last = align_down(missing[i], BLOCK_PAGES) + BLOCK_PAGES - 1;
		userfault_set(bitmap, missing[i], 1);
		userfault_set(bitmap, last, 1);
		userfault_enable(vm, BLOCK_SLOT, bitmap);
		read_blocks(vcpu, bitmap, nested_tdp);
		userfault_disable(vm, BLOCK_SLOT);
	}

	kvm_vm_free(vm);
	userfault_free_bitmap(bitmap, NR_BLOCKS * BLOCK_PAGES);
}

int main(int argc, char *argv[])
{
	TEST_REQUIRE(kvm_cpu_has(X86_FEATURE_VMX) || kvm_cpu_has(X86_FEATURE_SVM));
	TEST_REQUIRE(kvm_has_cap(KVM_CAP_USERFAULT));

	test_nested_userfault(false);
	if (kvm_cpu_has_tdp())
		test_nested_userfault(true);

	/* With shadow paging there are none, as the guest's own tables have none. */
	if (!kvm_is_tdp_enabled())
		return 0;

	test_blocks(false);
	if (kvm_cpu_has_tdp())
		test_blocks(true);

	return 0;
}
