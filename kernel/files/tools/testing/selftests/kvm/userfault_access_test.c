// SPDX-License-Identifier: GPL-2.0-only
/*
 * Test that a page that's missing, see KVM_MEM_USERFAULT, makes any kind of
 * access exit, that of a page table walk included, and that the guest goes on
 * with what has been provided.
 */
#include <linux/sizes.h>

#ifdef __aarch64__
#include <sys/auxv.h>
#include <asm/hwcap.h>
#endif
#include <sys/mman.h>

#include "kvm_syscalls.h"
#include "kvm_util.h"
#include "processor.h"
#include "test_util.h"
#include "ucall_common.h"
#include "userfault_util.h"

#define TEST_SLOT	10
#define TEST_GPA	((gpa_t)SZ_4G)
#define TEST_GVA	0xc0000000ul
#define WALK_GVA	(TEST_GVA + SZ_1G)

/* Accesses of kind n are to page 2 * n, and may extend to the next one. */
#define NR_PAGES	32ul

enum kind {
	KIND_READ,
	KIND_WRITE,
	KIND_ATOMIC,
	KIND_EXCLUSIVE,
	KIND_EXECUTE,
	KIND_PAIR,
	KIND_STRADDLE,
	KIND_ZERO,
	KIND_VECTOR,
	KIND_PRE_INDEXED_READ,
	KIND_PRE_INDEXED_WRITE,
	KIND_TRANSLATE,
};

#ifdef __x86_64__
static u64 guest_atomic(u64 *p)
{
	u64 value = 1;

	asm volatile("lock xaddq %0, %1" : "+r" (value), "+m" (*p) : : "memory");
	return value;
}

static u64 guest_exclusive(u64 *p)
{
	u64 old = 0x1003, new = 0x1003;

	asm volatile("lock cmpxchgq %2, %1" : "+a" (old), "+m" (*p) : "r" (new) : "memory");
	return old;
}

static u64 guest_pair(u64 *p)
{
	u64 a[2];

	asm volatile("movdqu (%0), %%xmm0\n\tmovdqu %%xmm0, (%1)"
		     : : "r" (p), "r" (a) : "xmm0", "memory");
	return a[0];
}

static void guest_zero(u64 *p)
{
	u64 n = 64;

	asm volatile("rep stosb" : "+D" (p), "+c" (n) : "a" (0) : "memory");
}

/* An exception, for which the CPU reads the IDT. */
static u64 guest_vector(u64 *p)
{
	struct desc_ptr old = get_idt(), new = { .size = old.size, .address = (gva_t)p };

	set_idt(&new);
	asm volatile("ud2");
	set_idt(&old);
	return 0x77;
}

static void guest_ud_handler(struct ex_regs *regs)
{
	regs->rip += 2;
}

static bool has_atomics(void)
{
	return true;
}

/* mov $0x1234, %eax; ret */
static const u8 code[] = { 0xb8, 0x34, 0x12, 0, 0, 0xc3 };
#else
static u64 guest_atomic(u64 *p)
{
	u64 value;

	asm volatile(".arch_extension lse\n\tldaddal %2, %0, %1"
		     : "=r" (value), "+Q" (*p) : "r" (1ul) : "memory");
	return value;
}

static u64 guest_exclusive(u64 *p)
{
	u64 value;
	u32 failed;

	asm volatile("1:	ldaxr %0, %1\n"
		     "	stlxr %w2, %0, %1\n"
		     "	cbnz %w2, 1b" : "=&r" (value), "+Q" (*p), "=&r" (failed) : : "memory");
	return value;
}

static u64 guest_pair(u64 *p)
{
	u64 a, b;

	asm volatile("ldp %0, %1, [%2]" : "=r" (a), "=r" (b) : "r" (p) : "memory");
	return a;
}

static void guest_zero(u64 *p)
{
	asm volatile("dc zva, %0" : : "r" (p) : "memory");
}

/* These two have no valid syndrome, by which MMIO would be emulated. */
static u64 guest_pre_indexed_read(u64 *p)
{
	u64 value;

	p--;
	asm volatile("ldr %0, [%1, #8]!" : "=&r" (value), "+r" (p) : : "memory");
	return value;
}

static void guest_pre_indexed_write(u64 *p)
{
	p--;
	asm volatile("str %1, [%0, #8]!" : "+r" (p) : "r" (1ul) : "memory");
}

/* Returns true if @p can't be translated. */
static u64 guest_translate(u64 *p)
{
	asm volatile("at s1e1r, %0" : : "r" (p));
	isb();
	return read_sysreg(par_el1) & 1;
}

/* The vector table is code, and depends on its position. */
static u64 guest_vector(u64 *p)
{
	return 0;
}

static bool has_atomics(void)
{
	return getauxval(AT_HWCAP) & HWCAP_ATOMICS;
}

/* mov w0, #0x1234; ret */
static const u32 code[] = { 0x52824680, 0xd65f03c0 };
#endif

static struct {
	enum kind kind;
	u64 gva;
	u64 page_size;
} guest_args;

static void guest_code(void)
{
	for (;;) {
		u64 *p = (u64 *)guest_args.gva;
		u64 value = 0;

		switch (guest_args.kind) {
		case KIND_READ:
			value = READ_ONCE(*p);
			break;
		case KIND_WRITE:
			WRITE_ONCE(*p, 1);
			break;
		case KIND_ATOMIC:
			value = guest_atomic(p);
			break;
		case KIND_EXCLUSIVE:
			value = guest_exclusive(p);
			break;
		case KIND_EXECUTE:
			value = ((u32 (*)(void))p)();
			break;
		case KIND_PAIR:
			value = guest_pair(p);
			break;
		case KIND_STRADDLE:
			p = (void *)p + guest_args.page_size - 4;
			value = READ_ONCE(*p) >> 32;
			break;
		case KIND_ZERO:
			guest_zero(p);
			break;
		case KIND_VECTOR:
			value = guest_vector(p);
			break;
#ifdef __aarch64__
		case KIND_PRE_INDEXED_READ:
			value = guest_pre_indexed_read(p);
			break;
		case KIND_PRE_INDEXED_WRITE:
			guest_pre_indexed_write(p);
			break;
		case KIND_TRANSLATE:
			value = guest_translate(p);
			break;
#endif
		default:
			break;
		}
		GUEST_SYNC1(value);
	}
}

enum memory {
	MEM_ANONYMOUS,
	MEM_SHMEM,
	MEM_GUEST_MEMFD,
	NR_MEMORIES,
};

static const char * const names[] = {
	[MEM_ANONYMOUS]		= "anonymous memory",
	[MEM_SHMEM]		= "shmem",
	[MEM_GUEST_MEMFD]	= "guest_memfd",
};

static u64 page_size;

static struct kvm_vm *vm;
static struct kvm_vcpu *vcpu;
static u64 *bitmap;
static void *mem;

static u64 *content(u64 page)
{
	return mem + page * page_size;
}

static bool create_vm(enum memory memory)
{
	const u64 flags = GUEST_MEMFD_FLAG_MMAP | GUEST_MEMFD_FLAG_INIT_SHARED;
	const u64 size = NR_PAGES * page_size;
	int fd = -1;

	vm = vm_create_with_one_vcpu(&vcpu, guest_code);
	if (memory == MEM_GUEST_MEMFD) {
		if ((vm_check_cap(vm, KVM_CAP_GUEST_MEMFD_FLAGS) & flags) != flags)
			return false;
		fd = vm_create_guest_memfd(vm, size, flags);
	}
	vm_mem_add(vm, memory == MEM_SHMEM ? VM_MEM_SRC_SHMEM : VM_MEM_SRC_ANONYMOUS,
		   TEST_GPA, TEST_SLOT, size / vm->page_size,
		   fd >= 0 ? KVM_MEM_GUEST_MEMFD : 0, fd, 0);
	mem = memslot2region(vm, TEST_SLOT)->host_mem;
	if (fd >= 0) {
		mem = kvm_mmap(size, PROT_READ | PROT_WRITE, MAP_SHARED, fd);
		close(fd);
	}
	virt_map(vm, TEST_GVA, TEST_GPA, size / vm->page_size);
	bitmap = userfault_alloc_bitmap(NR_PAGES);
	return true;
}

static void free_vm(enum memory memory)
{
	kvm_vm_free(vm);
	userfault_free_bitmap(bitmap, NR_PAGES);
	if (memory == MEM_GUEST_MEMFD)
		kvm_munmap(mem, NR_PAGES * page_size);
}

/*
 * Have the guest make an access.  What's missing has its content already, i.e.
 * only the bit is cleared.  Returns how often the vCPU exited for that.
 */
static u64 run_kind(enum kind kind, u64 gva, u64 *value)
{
	struct kvm_run *run = vcpu->run;
	struct ucall uc;
	u64 exits = 0;

	guest_args.kind = kind;
	guest_args.gva = gva;
	guest_args.page_size = page_size;
	sync_global_to_guest(vm, guest_args);

	for (;;) {
		int ret = _vcpu_run(vcpu), err = errno;
		u64 page;

		if (!is_userfault_exit(vcpu, ret, err)) {
			TEST_ASSERT(!ret, KVM_IOCTL_ERROR(KVM_RUN, ret));
			break;
		}
		TEST_ASSERT_EQ(run->memory_fault.flags, KVM_MEMORY_EXIT_FLAG_USERFAULT);
		TEST_ASSERT_EQ(run->memory_fault.size, page_size);
		page = (run->memory_fault.gpa - TEST_GPA) / page_size;
		TEST_ASSERT_EQ(run->memory_fault.gpa, TEST_GPA + page * page_size);
		TEST_ASSERT(page < NR_PAGES && userfault_is_set(bitmap, page),
			    "Exit for page %lu, which is there", page);
		userfault_clear(bitmap, page, 1);
		exits++;
	}
	TEST_ASSERT_EQ(get_ucall(vcpu, &uc), UCALL_SYNC);
	*value = uc.args[0];
	return exits;
}

static void test_kind(enum kind kind, u64 exits, u64 expected)
{
	/* An odd offset, as what's reported is the page. */
	u64 offset = kind == KIND_READ ? 0x48 : 0, value, got;
	u64 page = 2 * kind;

	*content(page) = 0x1000 + page;
	*content(page + 1) = 0x1001 + page;
	if (kind == KIND_READ)
		content(page)[offset / sizeof(u64)] = expected;
	if (kind == KIND_EXECUTE) {
		memcpy(content(page), code, sizeof(code));
		__builtin___clear_cache((void *)content(page), (void *)content(page + 1));
	}

#ifdef __x86_64__
	if (kind == KIND_VECTOR)
		memcpy(content(page), addr_gva2hva(vm, vm->arch.idt), page_size);
#endif

	got = run_kind(kind, TEST_GVA + page * page_size + offset, &value);
	TEST_ASSERT(got == exits, "Kind %d: %lu exits", kind, got);
	TEST_ASSERT(value == expected, "Kind %d: got 0x%lx instead of 0x%lx", kind, value,
		    expected);
	TEST_ASSERT(!run_kind(kind, TEST_GVA + page * page_size + offset, &value),
		    "Kind %d exits twice", kind);
}

static void test_kinds(enum memory memory)
{
	if (!create_vm(memory)) {
		pr_info("Skipping %s\n", names[memory]);
		kvm_vm_free(vm);
		return;
	}
	pr_info("Testing kinds of access to %s\n", names[memory]);
	userfault_set(bitmap, 0, NR_PAGES);
	userfault_enable(vm, TEST_SLOT, bitmap);

	test_kind(KIND_READ, 1, 0x77);
	test_kind(KIND_WRITE, 1, 0);
	test_kind(KIND_EXCLUSIVE, 1, 0x1000 + 2 * KIND_EXCLUSIVE);
	test_kind(KIND_EXECUTE, 1, 0x1234);
	test_kind(KIND_PAIR, 1, 0x1000 + 2 * KIND_PAIR);
	test_kind(KIND_STRADDLE, 2, 0x1001 + 2 * KIND_STRADDLE);
	test_kind(KIND_ZERO, 1, 0);
	TEST_ASSERT_EQ(*content(2 * KIND_ZERO), 0);
	if (has_atomics())
		test_kind(KIND_ATOMIC, 1, 0x1000 + 2 * KIND_ATOMIC);
#ifdef __x86_64__
	vm_install_exception_handler(vm, UD_VECTOR, guest_ud_handler);
	test_kind(KIND_VECTOR, 1, 0x77);
#else
	test_kind(KIND_PRE_INDEXED_READ, 1, 0x1000 + 2 * KIND_PRE_INDEXED_READ);
	test_kind(KIND_PRE_INDEXED_WRITE, 1, 0);
	TEST_ASSERT_EQ(*content(2 * KIND_PRE_INDEXED_WRITE), 1);
	/* The page's address is all that this is about. */
	test_kind(KIND_TRANSLATE, 0, 0);
	TEST_ASSERT(userfault_is_set(bitmap, 2 * KIND_TRANSLATE),
		    "A translation has made the page present");
#endif

	free_vm(memory);
}

/* The guest's page tables are missing. */
static void test_page_tables(void)
{
	u64 nr, value;

#ifdef __x86_64__
	/* It's KVM who reads them with shadow paging. */
	if (!kvm_has_cap(KVM_CAP_PRE_FAULT_MEMORY)) {
		pr_info("Skipping page tables\n");
		return;
	}
#endif
	pr_info("Testing page tables\n");
	create_vm(MEM_ANONYMOUS);

	/* The last two levels, at the beginning of the memslot. */
	vm->memslots[MEM_REGION_PT] = TEST_SLOT;
	virt_map(vm, WALK_GVA, TEST_GPA + 8 * page_size, page_size / vm->page_size);
	vm->memslots[MEM_REGION_PT] = 0;
	*content(8) = 0x88;

	/* They have the size of the guest's pages, a bit that of the host's. */
	nr = DIV_ROUND_UP(2 * vm->page_size, page_size);
	userfault_set(bitmap, 0, nr);
	userfault_enable(vm, TEST_SLOT, bitmap);
	TEST_ASSERT_EQ(run_kind(KIND_READ, WALK_GVA, &value), nr);
	TEST_ASSERT_EQ(value, 0x88);
	TEST_ASSERT_EQ(run_kind(KIND_READ, WALK_GVA, &value), 0);

	free_vm(MEM_ANONYMOUS);
}

int main(void)
{
	int i;

	TEST_REQUIRE(kvm_has_cap(KVM_CAP_USERFAULT));
	page_size = getpagesize();

	for (i = 0; i < NR_MEMORIES; i++)
		test_kinds(i);
	test_page_tables();

	return 0;
}
