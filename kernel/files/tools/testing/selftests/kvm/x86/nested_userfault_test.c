// SPDX-License-Identifier: GPL-2.0-only
/*
 * Test that a nested guest's access to a page that's missing exits with the
 * address of L1, also if L1 has nested TDP tables that map the page to another
 * address of L2.
 */
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

/* mov $0x1234, %eax; ret */
static const u8 code[] = { 0xb8, 0x34, 0x12, 0, 0, 0xc3 };

static void l2_guest_code(gva_t base)
{
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

static void l2_guest_code_tdp_enabled(void)
{
	l2_guest_code(ALIAS_BASE);
}

static void l2_guest_code_tdp_disabled(void)
{
	l2_guest_code(TEST_BASE);
}

static void l1_vmx_code(struct vmx_pages *vmx)
{
	GUEST_ASSERT(vmx->vmcs_gpa);
	GUEST_ASSERT(prepare_for_vmx_operation(vmx));
	GUEST_ASSERT(load_vmcs(vmx));
	prepare_vmcs(vmx, vmx->eptp_gpa ? l2_guest_code_tdp_enabled :
					  l2_guest_code_tdp_disabled);

	GUEST_ASSERT(!vmlaunch());
	GUEST_ASSERT_EQ(vmreadz(VM_EXIT_REASON), EXIT_REASON_VMCALL);
}

static void l1_svm_code(struct svm_test_data *svm)
{
	generic_svm_setup(svm, svm->ncr3_gpa ? l2_guest_code_tdp_enabled :
					       l2_guest_code_tdp_disabled);

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

static void test_nested_userfault(bool nested_tdp)
{
	gva_t nested_gva = 0;
	struct kvm_vcpu *vcpu;
	struct kvm_vm *vm;
	struct ucall uc;
	u64 *bitmap;
	int i;

	pr_info("Nested TDP: %s\n", nested_tdp ? "enabled" : "disabled");

	vm = vm_create_with_one_vcpu(&vcpu, l1_guest_code);
	if (nested_tdp)
		vm_enable_tdp(vm);
	if (kvm_cpu_has(X86_FEATURE_VMX))
		vcpu_alloc_vmx(vm, &nested_gva);
	else
		vcpu_alloc_svm(vm, &nested_gva);
	vcpu_args_set(vcpu, 1, nested_gva);

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

int main(int argc, char *argv[])
{
	TEST_REQUIRE(kvm_cpu_has(X86_FEATURE_VMX) || kvm_cpu_has(X86_FEATURE_SVM));
	TEST_REQUIRE(kvm_has_cap(KVM_CAP_USERFAULT));

	test_nested_userfault(false);
	if (kvm_cpu_has_tdp())
		test_nested_userfault(true);

	return 0;
}
