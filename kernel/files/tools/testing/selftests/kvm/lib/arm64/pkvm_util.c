// SPDX-License-Identifier: GPL-2.0-only
/*
 * Protected VMs under pKVM: what they need to be created, a guest that does as
 * it's told without memory that the host could read, and what they take of the
 * host.
 */
#include <linux/arm-smccc.h>
#include <setjmp.h>
#include <signal.h>

#include "kvm_util.h"
#include "pkvm_util.h"
#include "processor.h"
#include "test_util.h"

#define HVC_MEM_SHARE	ARM_SMCCC_CALL_VAL(ARM_SMCCC_FAST_CALL, ARM_SMCCC_SMC_64,	\
					   ARM_SMCCC_OWNER_VENDOR_HYP, 3)
#define HVC_MEM_UNSHARE	ARM_SMCCC_CALL_VAL(ARM_SMCCC_FAST_CALL, ARM_SMCCC_SMC_64,	\
					   ARM_SMCCC_OWNER_VENDOR_HYP, 4)

/* A page of MMIO, not that of ucalls, below the memory that tests are about. */
#define MMIO_GPA	(TEST_GPA - SZ_2M)
#define MMIO_GVA	0xb0000000ul

/*
 * A page of slot 0, in the same table of the guest's as memory of less than 2M
 * that a test is about.
 */
#define BOOT_GVA	(TEST_GVA + SZ_2M - getpagesize())

/* Registers of the page of MMIO. */
enum {
	REG_OP		= 0x00,
	REG_ADDR	= 0x08,
	REG_NR		= 0x10,
	REG_VALUE	= 0x18,
	REG_STRIDE	= 0x20,
	REG_RESULT	= 0x28,
};

static u64 guest_get(int reg)
{
	return readq_relaxed((void *)MMIO_GVA + reg);
}

static void guest_put(u64 result)
{
	writeq_relaxed(result, (void *)MMIO_GVA + REG_RESULT);
}

static u64 guest_share(u32 function, u64 gpa)
{
	struct arm_smccc_res res;

	smccc_hvc(function, gpa, 0, 0, 0, 0, 0, 0, &res);

	return res.a0;
}

static u64 guest_do(u64 op, u64 addr, u64 value)
{
	switch (op) {
	case PKVM_READ:
		return READ_ONCE(*(u64 *)addr);
	case PKVM_WRITE:
		WRITE_ONCE(*(u64 *)addr, value);
		return 0;
	case PKVM_SHARE:
		return guest_share(HVC_MEM_SHARE, addr);
	case PKVM_UNSHARE:
		return guest_share(HVC_MEM_UNSHARE, addr);
	}
	return -1;
}

static void guest_code(void)
{
	for (;;) {
		u64 op = guest_get(REG_OP), addr = guest_get(REG_ADDR);
		u64 nr = guest_get(REG_NR), value = guest_get(REG_VALUE);
		u64 stride = guest_get(REG_STRIDE), result = 0;

		for (; nr; nr--, addr += stride)
			result += guest_do(op, addr, value);
		guest_put(result);
	}
}

bool pkvm_has_protected_vms(void)
{
	int kvm_fd = open_kvm_dev_path_or_exit();
	int fd = ioctl(kvm_fd, KVM_CREATE_VM, KVM_VM_TYPE_ARM_PROTECTED);

	kvm_close(kvm_fd);
	if (fd >= 0)
		kvm_close(fd);

	return fd >= 0;
}

struct kvm_vm *pkvm_create_vm_with_vcpus(int nr_vcpus, struct kvm_vcpu **vcpus,
					 u64 size)
{
	struct vm_shape shape = VM_SHAPE_DEFAULT;
	struct kvm_vm *vm;

	shape.type = KVM_VM_TYPE_ARM_PROTECTED;
	vm = __vm_create_with_vcpus(shape, nr_vcpus, size / MIN_PAGE_SIZE, guest_code,
				    vcpus);
	virt_map(vm, TEST_GVA, TEST_GPA, size / vm->page_size);
	virt_map(vm, MMIO_GVA, MMIO_GPA, 1);
	if (size < SZ_2M)
		virt_map(vm, BOOT_GVA,
			 vm_phy_page_alloc(vm, KVM_GUEST_PAGE_TABLE_MIN_PADDR, 0), 1);

	return vm;
}

struct kvm_vm *pkvm_create_vm(struct kvm_vcpu **vcpu,
			      enum vm_mem_backing_src_type src, u64 size)
{
	struct kvm_vm *vm = pkvm_create_vm_with_vcpus(1, vcpu, size);

	pft_add_slot(vm, src, TEST_GPA, TEST_SLOT, size, 0);

	return vm;
}

void pkvm_add_memory(struct kvm_vm *vm, void *mem, u64 size)
{
	vm_set_user_memory_region(vm, TEST_SLOT, 0, TEST_GPA, size, mem);
}

static u64 get_register(struct pkvm_call *call, int reg)
{
	switch (reg) {
	case REG_OP:
		return call->op;
	case REG_ADDR:
		return call->addr;
	case REG_NR:
		return call->nr;
	case REG_VALUE:
		return call->value;
	case REG_STRIDE:
		return getpagesize();
	}
	TEST_FAIL("The guest reads register 0x%x", reg);
	return 0;
}

int __pkvm_call(struct kvm_vcpu *vcpu, struct pkvm_call *call)
{
	struct kvm_run *run = vcpu->run;
	u64 *data = (u64 *)run->mmio.data;
	int reg;

	for (;;) {
		if (_vcpu_run(vcpu))
			return -errno;

		TEST_ASSERT_KVM_EXIT_REASON(vcpu, KVM_EXIT_MMIO);
		reg = run->mmio.phys_addr - MMIO_GPA;
		if (run->mmio.is_write)
			break;
		*data = get_register(call, reg);
	}

	TEST_ASSERT_EQ(reg, REG_RESULT);
	call->result = *data;

	return 0;
}

u64 pkvm_call(struct kvm_vcpu *vcpu, enum pkvm_op op, u64 addr, u64 nr, u64 value)
{
	struct pkvm_call call = { .op = op, .addr = addr, .nr = nr, .value = value };
	int ret = __pkvm_call(vcpu, &call);

	TEST_ASSERT(!ret, "KVM_RUN failed: %d, exit %s", ret,
		    exit_reason_str(vcpu->run->exit_reason));

	return call.result;
}

struct pkvm_usage pkvm_boot(struct kvm_vcpu *vcpu)
{
	pkvm_call(vcpu, PKVM_READ, BOOT_GVA, 1, 0);
	pkvm_call(vcpu, PKVM_WRITE, BOOT_GVA, 1, 0);

	return pkvm_get_usage();
}

u64 pkvm_sum_of(u64 first, u64 nr)
{
	return (2 * first + nr - 1) * nr / 2 * getpagesize();
}

static long read_counter(const char *path, const char *name)
{
	FILE *file = fopen(path, "r");
	char line[256];
	long value;

	TEST_ASSERT(file, "Can't open '%s'", path);
	while (fgets(line, sizeof(line), file)) {
		if (strncmp(line, name, strlen(name)))
			continue;
		TEST_ASSERT(sscanf(line + strlen(name), "%ld", &value) == 1,
			    "'%s' has '%s'", path, line);
		fclose(file);
		return value;
	}
	TEST_FAIL("'%s' has no '%s'", path, name);
	return 0;
}

/* Have the counters of all CPUs added up. */
static void refresh_counters(void)
{
	FILE *file = fopen("/proc/sys/vm/stat_refresh", "w");

	if (!file)
		return;
	fputs("1", file);
	fclose(file);
}

struct pkvm_usage pkvm_get_usage(void)
{
	struct pkvm_usage usage;

	refresh_counters();
	usage.locked = read_counter("/proc/self/status", "VmLck:") * 1024 / getpagesize();
	usage.pinned = read_counter("/proc/vmstat", "nr_foll_pin_acquired ") -
		       read_counter("/proc/vmstat", "nr_foll_pin_released ");
	usage.tables = read_counter("/proc/meminfo", "SecPageTables:") * 1024 / getpagesize();

	return usage;
}

void pkvm_assert_pages(const struct pkvm_usage *base, long pages)
{
	struct pkvm_usage usage = pkvm_get_usage();

	TEST_ASSERT_EQ(usage.locked - base->locked, pages);
	TEST_ASSERT_EQ(usage.pinned - base->pinned, pages);
}

void pkvm_assert_released(const struct pkvm_usage *base)
{
	struct pkvm_usage usage = pkvm_get_usage();

	pkvm_assert_pages(base, 0);
	TEST_ASSERT_EQ(usage.tables, base->tables);
}

static sigjmp_buf no_access;

static void segv_handler(int sig)
{
	siglongjmp(no_access, 1);
}

u64 pkvm_kernel_read(void *mem)
{
	int fd = open("/proc/self/mem", O_RDONLY);
	u64 word;

	TEST_ASSERT(fd >= 0, "Can't open /proc/self/mem");
	TEST_ASSERT_EQ(pread(fd, &word, sizeof(word), (uintptr_t)mem), sizeof(word));
	kvm_close(fd);

	return word;
}

void pkvm_kernel_write(void *mem, u64 word)
{
	int fd = open("/proc/self/mem", O_WRONLY);

	TEST_ASSERT(fd >= 0, "Can't open /proc/self/mem");
	TEST_ASSERT_EQ(pwrite(fd, &word, sizeof(word), (uintptr_t)mem), sizeof(word));
	kvm_close(fd);
}

static bool host_can_access(void *mem, bool write)
{
	struct sigaction action = { .sa_handler = segv_handler }, old;
	bool can;

	sigaction(SIGSEGV, &action, &old);
	if (sigsetjmp(no_access, 1)) {
		can = false;
	} else {
		if (write)
			WRITE_ONCE(*(u64 *)mem, ~0ul);
		else
			READ_ONCE(*(u64 *)mem);
		can = true;
	}
	sigaction(SIGSEGV, &old, NULL);

	return can;
}

bool pkvm_host_can_read(void *mem)
{
	return host_can_access(mem, false);
}

bool pkvm_host_can_write(void *mem)
{
	return host_can_access(mem, true);
}
