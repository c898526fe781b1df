// SPDX-License-Identifier: GPL-2.0-only
/*
 * Test that a guest with asynchronous page faults isn't told to wait for a page
 * of a memslot with KVM_MEM_USERFAULT, and that a fault that was made to wait
 * before the flag was set doesn't map a page that's missing since.
 */
#include <asm/kvm_para.h>
#include <linux/userfaultfd.h>

#include "apic.h"
#include "kvm_util.h"
#include "processor.h"
#include "test_util.h"
#include "userfault_util.h"
#include "userfaultfd_util.h"

#define TEST_SLOT	1
#define TEST_GPA	0xc0000000ul
#define VALUE		0x1234567812345678ul

#define READY_VECTOR	0xf0

/* What the guest has come to. */
enum {
	STAGE_NOT_PRESENT = 1,
	STAGE_READ,
};

struct test {
	struct kvm_vcpu *vcpu;
	struct kvm_vm *vm;
	struct uffd_desc *uffd;
	u64 *bitmap;
};

/* Shared with the guest. */
static struct kvm_vcpu_pv_apf_data apf __aligned(64);
static u32 ready_token;

/*
 * Don't return to the access until the interrupt has told that the page is ready:
 * by then KVM is done with the fault that it has made to wait.
 */
static void guest_not_present(struct ex_regs *regs)
{
	u32 token = get_cr2();

	GUEST_ASSERT_EQ(apf.flags, KVM_PV_REASON_PAGE_NOT_PRESENT);
	WRITE_ONCE(apf.flags, 0);
	GUEST_SYNC(STAGE_NOT_PRESENT);

	sti();
	while (READ_ONCE(ready_token) != token)
		cpu_relax();
	cli();
}

/* Also comes with a token that's for every page, when MSR_KVM_ASYNC_PF_EN is written. */
static void guest_ready(struct ex_regs *regs)
{
	WRITE_ONCE(ready_token, apf.token);
	WRITE_ONCE(apf.token, 0);
	x2apic_write_reg(APIC_EOI, 0);
	wrmsr(MSR_KVM_ASYNC_PF_ACK, 1);
}

static void guest_code(gpa_t apf_gpa)
{
	x2apic_enable();
	wrmsr(MSR_KVM_ASYNC_PF_INT, READY_VECTOR);
	wrmsr(MSR_KVM_ASYNC_PF_EN, apf_gpa | KVM_ASYNC_PF_ENABLED |
	      KVM_ASYNC_PF_SEND_ALWAYS | KVM_ASYNC_PF_DELIVERY_AS_INT);
	/* There's no waiting for a page in the shadow of STI. */
	sti_nop();

	GUEST_ASSERT_EQ(READ_ONCE(*(u64 *)TEST_GPA), VALUE);
	GUEST_SYNC(STAGE_READ);
	GUEST_DONE();
}

static void provide(int uffd, u64 hva)
{
	static u64 page[PAGE_SIZE / sizeof(u64)] __aligned(PAGE_SIZE) = { VALUE };
	struct uffdio_copy copy = {
		.dst = hva,
		.src = (u64)page,
		.len = PAGE_SIZE,
	};

	TEST_ASSERT(!ioctl(uffd, UFFDIO_COPY, &copy), __KVM_IOCTL_ERROR("UFFDIO_COPY", -1));
}

static int provide_at_once(int uffd_mode, int uffd, struct uffd_msg *msg)
{
	provide(uffd, align_down(msg->arg.pagefault.address, PAGE_SIZE));
	return 0;
}

static int provide_later(int uffd_mode, int uffd, struct uffd_msg *msg)
{
	return 0;
}

static struct test create(uffd_handler_t handler)
{
	struct test t;

	t.vm = vm_create_with_one_vcpu(&t.vcpu, guest_code);
	vm_install_exception_handler(t.vm, PF_VECTOR, guest_not_present);
	vm_install_exception_handler(t.vm, READY_VECTOR, guest_ready);
	vcpu_args_set(t.vcpu, 1, addr_hva2gpa(t.vm, addr_gva2hva(t.vm, (gva_t)&apf)));

	vm_userspace_mem_region_add(t.vm, VM_MEM_SRC_ANONYMOUS, TEST_GPA, TEST_SLOT, 1, 0);
	virt_map(t.vm, TEST_GPA, TEST_GPA, 1);
	t.bitmap = userfault_alloc_bitmap(1);
	t.uffd = uffd_setup_demand_paging(UFFDIO_REGISTER_MODE_MISSING, 0,
					  addr_gpa2hva(t.vm, TEST_GPA), PAGE_SIZE, 1, handler);
	return t;
}

static void destroy(struct test *t)
{
	uffd_stop_demand_paging(t->uffd);
	kvm_vm_free(t->vm);
	userfault_free_bitmap(t->bitmap, 1);
}

static void run_to_stage(struct test *t, u64 stage)
{
	struct ucall uc;

	vcpu_run(t->vcpu);
	if (get_ucall(t->vcpu, &uc) == UCALL_ABORT)
		REPORT_GUEST_ASSERT(uc);

	TEST_ASSERT_EQ(uc.cmd, UCALL_SYNC);
	TEST_ASSERT_EQ(uc.args[1], stage);
}

/* That the tests below can tell one from the other: without the flag, the guest waits. */
static void test_without_flag(void)
{
	struct test t = create(provide_at_once);

	run_to_stage(&t, STAGE_NOT_PRESENT);
	run_to_stage(&t, STAGE_READ);
	destroy(&t);
}

/* The page isn't missing to KVM, but userfaultfd provides it: KVM waits, not the guest. */
static void test_with_flag(void)
{
	struct test t = create(provide_at_once);

	userfault_enable(t.vm, TEST_SLOT, t.bitmap);
	run_to_stage(&t, STAGE_READ);
	destroy(&t);
}

/* The flag is set while the guest waits, and the page, when it's ready, is missing or not. */
static void test_flag_set_meanwhile(bool missing)
{
	struct test t = create(provide_later);

	run_to_stage(&t, STAGE_NOT_PRESENT);

	if (missing)
		userfault_set(t.bitmap, 0, 1);
	userfault_enable(t.vm, TEST_SLOT, t.bitmap);
	provide(t.uffd->uffd, (u64)addr_gpa2hva(t.vm, TEST_GPA));
	if (missing) {
		vcpu_run_to_userfault(t.vcpu, TEST_GPA);
		userfault_clear(t.bitmap, 0, 1);
	}

	run_to_stage(&t, STAGE_READ);
	destroy(&t);
}

int main(int argc, char *argv[])
{
	TEST_REQUIRE(kvm_has_cap(KVM_CAP_USERFAULT));
	TEST_REQUIRE(kvm_has_cap(KVM_CAP_ASYNC_PF_INT));

	ksft_print_header();
	ksft_set_plan(4);

	test_without_flag();
	ksft_test_result_pass("A guest waits for a page without the flag\n");
	test_with_flag();
	ksft_test_result_pass("A guest doesn't wait for a page with the flag\n");
	test_flag_set_meanwhile(false);
	ksft_test_result_pass("A guest waits, and the page isn't missing\n");
	test_flag_set_meanwhile(true);
	ksft_test_result_pass("A guest waits, and the page is missing\n");

	ksft_finished();
}
