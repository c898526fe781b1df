// SPDX-License-Identifier: GPL-2.0-only
/*
 * Test KVM_MEM_USERFAULT: what exits, what doesn't, what is mapped meanwhile,
 * and what becomes of the bitmap.  Kinds of access are userfault_access_test's.
 *
 * The memory that a test is about has a bit set for what is missing.  provide()
 * is what a VMM does when a vCPU exits for a page.
 */
#include <linux/bitmap.h>
#include <linux/sizes.h>
#include <linux/userfaultfd.h>

#include <semaphore.h>
#include <sys/mman.h>
#include <time.h>

#include "kvm_syscalls.h"
#include "kvm_test_harness.h"
#include "kvm_util.h"
#include "pre_fault_util.h"
#include "processor.h"
#include "test_util.h"
#include "ucall_common.h"
#include "userfault_util.h"

#define NO_MEMORY	"no memory of that kind"
#define NO_BLOCKS	"no blocks"
#define NO_PREFAULT	"no KVM_PRE_FAULT_MEMORY"
#define NO_UFFD		"no userfaultfd"
#define NO_HUGE		"no KVM_USERFAULT_HUGE"

/* The host's, which is what a bit of the bitmap is for. */
static u64 page_size;
static u64 pmd_size;

enum memory {
	MEM_ANONYMOUS,
	MEM_SHMEM,
	MEM_THP,
	MEM_HUGETLB,
	MEM_GUEST_MEMFD,
};

/* A VM of which TEST_SLOT is the memory in question. */
struct uf_vm {
	struct kvm_vm *vm;
	struct kvm_vcpu *vcpu;
	u64 nr_pages;
	u64 *bitmap;
	void *mem;
	/* Or -1. */
	int gmem_fd;
};

static bool has_gmem(struct kvm_vm *vm)
{
	const u64 flags = GUEST_MEMFD_FLAG_MMAP | GUEST_MEMFD_FLAG_INIT_SHARED;

	return (vm_check_cap(vm, KVM_CAP_GUEST_MEMFD_FLAGS) & flags) == flags;
}

/* Those of a host with pages of 64K, 512M each, are too large for a test. */
static bool has_thp(void)
{
	return thp_configured() && pmd_size <= SZ_32M;
}

static bool has_blocks(enum memory memory)
{
	return (memory == MEM_THP && has_thp()) ||
	       (memory == MEM_HUGETLB && pmd_size == SZ_2M);
}

static bool add_memory(struct uf_vm *u, enum memory memory)
{
	static const enum vm_mem_backing_src_type src[] = {
		[MEM_ANONYMOUS]		= VM_MEM_SRC_ANONYMOUS,
		[MEM_SHMEM]		= VM_MEM_SRC_SHMEM,
		[MEM_THP]		= VM_MEM_SRC_ANONYMOUS_THP,
		[MEM_HUGETLB]		= VM_MEM_SRC_ANONYMOUS_HUGETLB_2MB,
		[MEM_GUEST_MEMFD]	= VM_MEM_SRC_ANONYMOUS,
	};
	u64 size = u->nr_pages * page_size;

	if (memory == MEM_GUEST_MEMFD) {
		if (!has_gmem(u->vm))
			return false;

		u->gmem_fd = vm_create_guest_memfd(u->vm, size, GUEST_MEMFD_FLAG_MMAP |
						   GUEST_MEMFD_FLAG_INIT_SHARED);
		vm_mem_add(u->vm, src[memory], TEST_GPA, TEST_SLOT, size / u->vm->page_size,
			   KVM_MEM_GUEST_MEMFD, u->gmem_fd, 0);
		u->mem = kvm_mmap(size, PROT_READ | PROT_WRITE, MAP_SHARED, u->gmem_fd);
		return true;
	}

	if (memory == MEM_THP && !has_thp())
		return false;

	pft_add_slot(u->vm, src[memory], TEST_GPA, TEST_SLOT, size, 0);
	u->mem = pft_hva(u->vm);

	/* Have all of it, so that it's the bitmap that decides what's mapped. */
	if ((memory == MEM_THP || memory == MEM_HUGETLB) &&
	    madvise(u->mem, size, MADV_POPULATE_WRITE))
		return false;

	return memory != MEM_THP || !madvise(u->mem, size, MADV_COLLAPSE);
}

/*
 * Create a VM with some pages of memory, whose bitmap is all clear and whose
 * flag is not set.  Returns false if there's no such memory.
 */
static bool create_vm(struct uf_vm *u, enum memory memory, u64 nr_pages)
{
	if (memory == MEM_THP)
		nr_pages = align_up(nr_pages, pmd_size / page_size);
	if (memory == MEM_HUGETLB)
		nr_pages = align_up(nr_pages, SZ_2M / page_size);

	u->nr_pages = nr_pages;
	u->vm = pft_create_vm_without_slot(VM_SHAPE_DEFAULT, &u->vcpu, nr_pages * page_size);
	u->bitmap = userfault_alloc_bitmap(nr_pages);
	u->gmem_fd = -1;

	return add_memory(u, memory);
}

static void free_vm(struct uf_vm *u)
{
	if (u->gmem_fd >= 0) {
		kvm_munmap(u->mem, u->nr_pages * page_size);
		close(u->gmem_fd);
	}
	kvm_vm_free(u->vm);
	if (u->bitmap)
		userfault_free_bitmap(u->bitmap, u->nr_pages);
}

static void enable(struct uf_vm *u)
{
	userfault_enable(u->vm, TEST_SLOT, u->bitmap);
}

static void disable(struct uf_vm *u)
{
	userfault_disable(u->vm, TEST_SLOT);
}

static u64 *content(struct uf_vm *u, u64 page)
{
	return u->mem + page * page_size;
}

/* The sum of what the guest reads if pages have been provided. */
static u64 sum_of(u64 page, u64 nr)
{
	u64 sum = 0;

	while (nr--)
		sum += 0x1000 + page++;
	return sum;
}

static void fill(struct uf_vm *u, u64 page, u64 nr)
{
	for (; nr--; page++)
		WRITE_ONCE(*content(u, page), 0x1000 + page);
}

static void provide(struct uf_vm *u, u64 page)
{
	TEST_ASSERT(userfault_is_set(u->bitmap, page), "Exit for page %lu, which is there", page);
	fill(u, page, 1);
	userfault_clear(u->bitmap, page, 1);
}

/* What it took the guest to access a range. */
struct toll {
	u64 exits;
	/* Stage-2 faults, those that exit included. */
	u64 faults;
	u64 sum;
};

/* Access pages, provide those that the vCPU exits for. */
static struct toll touch(struct uf_vm *u, u64 page, u64 nr, bool write)
{
	struct kvm_run *run = u->vcpu->run;
	struct toll toll = {};
	u64 before;

	pft_trace_clear();
	before = pft_nr_faults(u->vcpu);
	pft_start_access(u->vcpu, page * page_size, nr * page_size, write);
	for (;;) {
		int ret = _vcpu_run(u->vcpu), err = errno;

		if (!is_userfault_exit(u->vcpu, ret, err)) {
			TEST_ASSERT(!ret, KVM_IOCTL_ERROR(KVM_RUN, ret));
			break;
		}
		TEST_ASSERT_EQ(run->memory_fault.flags, KVM_MEMORY_EXIT_FLAG_USERFAULT);
		TEST_ASSERT_EQ(run->memory_fault.size, page_size);
		provide(u, (run->memory_fault.gpa - TEST_GPA) / page_size);
		toll.exits++;
	}
	toll.sum = pft_finish_access(u->vcpu);
	toll.faults = pft_nr_faults(u->vcpu) - before;
	return toll;
}

/* With shadow paging the guest's own faults count, too. */
static bool can_count_faults(void)
{
	return pft_can_count_faults() && kvm_has_cap(KVM_CAP_PRE_FAULT_MEMORY);
}

static bool has_huge(struct kvm_vm *vm)
{
	return userfault_cap(vm) & KVM_USERFAULT_HUGE;
}

FIXTURE(userfault) {
	bool warned;
};

FIXTURE_SETUP(userfault)
{
	self->warned = pft_begin();
}

FIXTURE_TEARDOWN(userfault)
{
	EXPECT_EQ(self->warned, pft_end());
}

#define USERFAULT_TEST(name)	TEST_F_TIMEOUT(userfault, name, PFT_TEST_SECONDS)

/* Tests that are made for each kind of memory. */
FIXTURE(memory) {
	bool warned;
};

FIXTURE_VARIANT(memory) {
	enum memory memory;
};

FIXTURE_VARIANT_ADD(memory, anonymous) {
	.memory = MEM_ANONYMOUS,
};

FIXTURE_VARIANT_ADD(memory, shmem) {
	.memory = MEM_SHMEM,
};

FIXTURE_VARIANT_ADD(memory, thp) {
	.memory = MEM_THP,
};

FIXTURE_VARIANT_ADD(memory, hugetlb) {
	.memory = MEM_HUGETLB,
};

FIXTURE_VARIANT_ADD(memory, guest_memfd) {
	.memory = MEM_GUEST_MEMFD,
};

FIXTURE_SETUP(memory)
{
	self->warned = pft_begin();
}

FIXTURE_TEARDOWN(memory)
{
	EXPECT_EQ(self->warned, pft_end());
}

#define MEMORY_TEST(name)	TEST_F_TIMEOUT(memory, name, PFT_TEST_SECONDS)

/* Each page exits once, in the order of the guest's accesses, and never again. */
MEMORY_TEST(exits)
{
	const u64 nr = 100;
	struct uf_vm u;
	u64 page;

	if (!create_vm(&u, variant->memory, nr))
		SKIP(return, NO_MEMORY);

	userfault_set(u.bitmap, 0, u.nr_pages);
	enable(&u);

	pft_start_access(u.vcpu, 0, nr * page_size, false);
	for (page = 0; page < nr; page++) {
		vcpu_run_to_userfault(u.vcpu, TEST_GPA + page * page_size);
		/* As long as the page isn't there, it's the same again. */
		if (page % 16 == 0)
			vcpu_run_to_userfault(u.vcpu, TEST_GPA + page * page_size);
		provide(&u, page);
	}
	vcpu_run(u.vcpu);
	TEST_ASSERT_EQ(pft_finish_access(u.vcpu), sum_of(0, nr));

	TEST_ASSERT_EQ(touch(&u, 0, nr, false).exits, 0);
	TEST_ASSERT_EQ(touch(&u, 0, nr, true).exits, 0);

	free_vm(&u);
}

/* It's pages whose bit is set that exit, and no others, for reads and writes. */
MEMORY_TEST(only_set_bits)
{
	const u64 nr = 200;
	struct uf_vm u;
	struct toll toll;
	u64 page;

	if (!create_vm(&u, variant->memory, nr))
		SKIP(return, NO_MEMORY);
	fill(&u, 0, nr);

	/* Around the edges of words, and the last page. */
	for (page = 0; page < nr; page++)
		if (page % 3 == 0 || page % 64 == 63 || page == nr - 1)
			userfault_set(u.bitmap, page, 1);
	enable(&u);

	for (page = 0; page < nr; page++) {
		u64 missing = userfault_is_set(u.bitmap, page);

		toll = touch(&u, page, 1, page % 2);
		TEST_ASSERT(toll.exits == missing, "Page %lu: %lu exits instead of %lu",
			    page, toll.exits, missing);
		if (page % 2 == 0)
			TEST_ASSERT_EQ(toll.sum, sum_of(page, 1));
	}

	free_vm(&u);
}

/*
 * A vCPU that exits for a page that's provided then doesn't fault on it again;
 * if the page is not provided it does.
 */
MEMORY_TEST(one_fault)
{
	const u64 nr = 20;
	struct toll toll;
	struct uf_vm u;
	u64 before;
	int write;

	if (!can_count_faults())
		SKIP(return, NO_FAULT_COUNT);
	if (!create_vm(&u, variant->memory, nr))
		SKIP(return, NO_MEMORY);

	for (write = 0; write <= 1; write++) {
		userfault_set(u.bitmap, 0, nr);
		enable(&u);
		toll = touch(&u, 0, nr, write);
		TEST_ASSERT_EQ(toll.exits, nr);
		TEST_ASSERT_EQ(toll.faults, nr);
		disable(&u);
	}

	userfault_set(u.bitmap, 0, 1);
	enable(&u);
	pft_trace_clear();
	before = pft_nr_faults(u.vcpu);
	pft_start_access(u.vcpu, 0, page_size, false);
	vcpu_run_to_userfault(u.vcpu, TEST_GPA);
	vcpu_run_to_userfault(u.vcpu, TEST_GPA);
	provide(&u, 0);
	vcpu_run(u.vcpu);
	pft_finish_access(u.vcpu);
	TEST_ASSERT_EQ(pft_nr_faults(u.vcpu) - before, 2);

	free_vm(&u);
}

/*
 * What has been mapped is dropped when the flag gets enabled, i.e. a bit that
 * has been set before is honoured.
 */
MEMORY_TEST(enable_drops)
{
	const u64 nr = 100;
	struct toll toll;
	struct uf_vm u;
	u64 page;
	int i;

	if (!create_vm(&u, variant->memory, nr))
		SKIP(return, NO_MEMORY);
	fill(&u, 0, nr);
	TEST_ASSERT_EQ(touch(&u, 0, nr, false).sum, sum_of(0, nr));

	for (i = 0; i < 10; i++) {
		page = i * 11;
		touch(&u, 0, nr, i % 2);
		fill(&u, 0, nr);
		userfault_set(u.bitmap, page, 1);
		enable(&u);
		toll = touch(&u, 0, nr, false);
		TEST_ASSERT(toll.exits == 1, "Round %d: %lu exits", i, toll.exits);
		TEST_ASSERT_EQ(toll.sum, sum_of(0, nr));
		disable(&u);
	}

	free_vm(&u);
}

/* Without the flag a bitmap means nothing, even if it once had it. */
MEMORY_TEST(disable)
{
	const u64 nr = 100;
	struct uf_vm u;

	if (!create_vm(&u, variant->memory, nr))
		SKIP(return, NO_MEMORY);
	fill(&u, 0, nr);

	userfault_set(u.bitmap, 0, u.nr_pages);
	TEST_ASSERT_EQ(touch(&u, 0, nr / 4, false).exits, 0);
	enable(&u);
	TEST_ASSERT_EQ(touch(&u, 0, nr / 2, false).exits, nr / 2);
	disable(&u);
	TEST_ASSERT_EQ(touch(&u, 0, nr, false).exits, 0);
	TEST_ASSERT_EQ(touch(&u, 0, nr, true).exits, 0);

	free_vm(&u);
}

/* Pages only, as long as the flag is set and something of a block is missing. */
MEMORY_TEST(mapping_size)
{
	const u64 nr = pmd_size / page_size;
	struct toll toll;
	struct uf_vm u;

	if (!has_blocks(variant->memory))
		SKIP(return, NO_BLOCKS);
	if (!can_count_faults())
		SKIP(return, NO_FAULT_COUNT);
	if (!create_vm(&u, variant->memory, 3 * nr))
		SKIP(return, NO_MEMORY);
	fill(&u, 0, 3 * nr);

	TEST_ASSERT_EQ(touch(&u, 0, nr, false).faults, 1);

	/* The last page of the first and the second block is missing. */
	userfault_set(u.bitmap, nr - 1, 1);
	userfault_set(u.bitmap, 2 * nr - 1, 1);
	enable(&u);
	TEST_ASSERT_EQ(touch(&u, 0, nr - 1, false).faults, nr - 1);
	toll = touch(&u, nr, nr, false);
	TEST_ASSERT_EQ(toll.exits, 1);
	TEST_ASSERT_EQ(toll.faults, nr);
	TEST_ASSERT_EQ(touch(&u, 2 * nr, nr, false).faults, has_huge(u.vm) ? 1 : nr);
	TEST_ASSERT_EQ(touch(&u, 0, nr - 1, true).faults, 0);
	TEST_ASSERT_EQ(touch(&u, nr, 2 * nr, true).faults, 0);

	/* x86 uses huge pages again.  arm64 leaves everything as it is. */
	disable(&u);
#ifdef __x86_64__
	touch(&u, 0, nr - 1, true);
	touch(&u, nr, 2 * nr, true);
	TEST_ASSERT_EQ(vm_get_stat(u.vm, pages_2m), 3);
#else
	TEST_ASSERT_EQ(touch(&u, 0, nr - 1, true).faults, 0);
	TEST_ASSERT_EQ(touch(&u, nr, 2 * nr, true).faults, 0);
#endif

	free_vm(&u);
}

/* A block whose bits don't begin with a word. */
static void test_block_amid_word(u64 offset)
{
	const u64 nr = pmd_size / page_size, nr_pages = 2 * nr;
	const struct {
		u64 page;
		bool inside;
	} missing[] = {
		{ 0,			false },
		{ offset - 1,		false },
		{ offset,		true },
		{ offset + nr / 2 + 1,	true },
		{ offset + nr - 1,	true },
		{ offset + nr,		false },
		{ nr_pages - 1,		false },
	};
	struct uf_vm u = { .nr_pages = nr_pages, .gmem_fd = -1 };
	struct kvm_userspace_memory_region2 region = {
		.slot = TEST_SLOT,
		/* The block is at TEST_GPA + pmd_size. */
		.guest_phys_addr = TEST_GPA + pmd_size - offset * page_size,
		.memory_size = nr_pages * page_size,
	};
	struct toll toll;
	void *mem;
	int i;

	mem = kvm_mmap(4 * pmd_size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1);
	u.mem = align_ptr_up(mem, pmd_size) + pmd_size - offset * page_size;
	kvm_madvise(align_ptr_up(mem, pmd_size), 3 * pmd_size, MADV_HUGEPAGE);
	fill(&u, 0, nr_pages);
	kvm_madvise(align_ptr_up(mem, pmd_size), 3 * pmd_size, MADV_COLLAPSE);

	u.vm = pft_create_vm_without_slot(VM_SHAPE_DEFAULT, &u.vcpu, 4 * pmd_size);
	u.bitmap = userfault_alloc_bitmap(nr_pages);
	region.userspace_addr = (uintptr_t)u.mem;
	region.userfault_bitmap = (uintptr_t)u.bitmap;

	for (i = 0; i < ARRAY_SIZE(missing); i++) {
		region.flags = KVM_MEM_USERFAULT;
		userfault_set(u.bitmap, missing[i].page, 1);
		vm_ioctl(u.vm, KVM_SET_USER_MEMORY_REGION2, &region);

		/* Two pages that are in the block, and not missing. */
		toll.faults = pft_touch(u.vcpu, pmd_size + page_size, page_size, false);
		toll.faults += pft_touch(u.vcpu, pmd_size + 2 * page_size, page_size, false);
		TEST_ASSERT(toll.faults == 1 + missing[i].inside,
			    "Offset %lu, page %lu missing: %lu faults", offset,
			    missing[i].page, toll.faults);

		userfault_clear(u.bitmap, missing[i].page, 1);
		region.flags = 0;
		vm_ioctl(u.vm, KVM_SET_USER_MEMORY_REGION2, &region);
	}

	kvm_vm_free(u.vm);
	kvm_munmap(mem, 4 * pmd_size);
	userfault_free_bitmap(u.bitmap, nr_pages);
}

USERFAULT_TEST(block_amid_word)
{
	struct kvm_vm *vm = vm_create_barebones();
	bool huge = has_huge(vm);

	kvm_vm_free(vm);
	if (!huge)
		SKIP(return, NO_HUGE);
	if (!can_count_faults())
		SKIP(return, NO_FAULT_COUNT);
	if (!has_thp())
		SKIP(return, NO_MEMORY);

	test_block_amid_word(1);
	test_block_amid_word(5);
	test_block_amid_word(63);
	test_block_amid_word(64);
	test_block_amid_word(100);
}

/* A memslot that lacks the first or the last page of the host's huge page. */
static void test_part_of_block(void *mem, bool first)
{
	const u64 nr = pmd_size / page_size - 1;
	struct uf_vm u = { .nr_pages = nr, .mem = mem + first * page_size, .gmem_fd = -1 };
	struct kvm_userspace_memory_region2 region = {
		.slot = TEST_SLOT,
		.flags = KVM_MEM_USERFAULT,
		.guest_phys_addr = TEST_GPA + first * page_size,
		.memory_size = nr * page_size,
		.userspace_addr = (uintptr_t)u.mem,
	};

	u.vm = pft_create_vm_without_slot(VM_SHAPE_DEFAULT, &u.vcpu, pmd_size);
	u.bitmap = userfault_alloc_bitmap(nr);
	region.userfault_bitmap = (uintptr_t)u.bitmap;
	vm_ioctl(u.vm, KVM_SET_USER_MEMORY_REGION2, &region);
	TEST_ASSERT_EQ(pft_touch(u.vcpu, first * page_size, nr * page_size, false), nr);

	free_vm(&u);
}

USERFAULT_TEST(part_of_block)
{
	void *mem, *block;

	if (!can_count_faults())
		SKIP(return, NO_FAULT_COUNT);
	if (!has_thp())
		SKIP(return, NO_MEMORY);

	mem = kvm_mmap(2 * pmd_size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1);
	block = align_ptr_up(mem, pmd_size);
	kvm_madvise(block, pmd_size, MADV_HUGEPAGE);
	kvm_madvise(block, pmd_size, MADV_POPULATE_WRITE);
	kvm_madvise(block, pmd_size, MADV_COLLAPSE);

	test_part_of_block(block, false);
	test_part_of_block(block, true);
	kvm_munmap(mem, 2 * pmd_size);
}

/* KVM looks at the bit of the page, wherever that is in the bitmap. */
USERFAULT_TEST(last_word)
{
	const u64 sizes[] = { 1, 63, 64, 65, 127, 129 };
	struct uf_vm u;
	int i;

	for (i = 0; i < ARRAY_SIZE(sizes); i++) {
		create_vm(&u, MEM_ANONYMOUS, sizes[i]);
		userfault_set(u.bitmap, sizes[i] - 1, 1);
		enable(&u);
		TEST_ASSERT_EQ(touch(&u, 0, sizes[i], true).exits, 1);
		free_vm(&u);
	}
}

/* A memslot with the flag has no bearing on another one, nor has its bitmap. */
USERFAULT_TEST(other_slot)
{
	const u64 nr = 10;
	struct uf_vm u;
	u64 *bitmap;

	create_vm(&u, MEM_ANONYMOUS, nr);
	pft_add_slot(u.vm, VM_MEM_SRC_ANONYMOUS, OTHER_GPA, OTHER_SLOT, nr * page_size, 0);
	virt_map(u.vm, TEST_GVA + SZ_1G, OTHER_GPA, nr * page_size / u.vm->page_size);
	bitmap = userfault_alloc_bitmap(nr);

	userfault_set(u.bitmap, 0, nr);
	enable(&u);
	pft_access(u.vcpu, SZ_1G, nr * page_size, true);

	userfault_enable(u.vm, OTHER_SLOT, bitmap);
	pft_access(u.vcpu, SZ_1G, nr * page_size, true);
	TEST_ASSERT_EQ(touch(&u, 0, nr, true).exits, nr);

	free_vm(&u);
	userfault_free_bitmap(bitmap, nr);
}

/* The flag is there from the start, and at another address after a move. */
USERFAULT_TEST(create_and_move)
{
	const u64 nr = 10;
	struct uf_vm u;

	create_vm(&u, MEM_ANONYMOUS, nr);
	vm_mem_region_delete(u.vm, TEST_SLOT);
	pft_map_slot0(u.vcpu);

	userfault_set(u.bitmap, 0, nr);
	pft_add_slot(u.vm, VM_MEM_SRC_ANONYMOUS, OTHER_GPA, TEST_SLOT, nr * page_size, 0);
	userfault_set_flags(u.vm, TEST_SLOT, KVM_MEM_USERFAULT, u.bitmap);
	u.mem = pft_hva(u.vm);
	vm_mem_region_move(u.vm, TEST_SLOT, TEST_GPA);
	pft_map_slot0(u.vcpu);
	TEST_ASSERT_EQ(touch(&u, 0, nr / 2, true).exits, nr / 2);
	vm_mem_region_reload(u.vm, TEST_SLOT);
	pft_map_slot0(u.vcpu);
	TEST_ASSERT_EQ(touch(&u, 0, nr, true).exits, nr - nr / 2);

	free_vm(&u);
}

/* The bitmap is gone: no page can be mapped, what is mapped still is. */
static void test_inaccessible_bitmap(struct uf_vm *u, u64 first)
{
	struct kvm_run *run = u->vcpu->run;
	u64 exits = vcpu_get_stat(u->vcpu, userfault_exits);
	int ret, err;

	TEST_ASSERT_EQ(touch(u, 0, first, false).exits, 0);
	pft_start_access(u->vcpu, first * page_size, page_size, true);
	ret = _vcpu_run(u->vcpu);
	err = errno;
	TEST_ASSERT(ret == -1 && err == EFAULT, "Wanted EFAULT, got %d errno %d", ret, err);
	TEST_ASSERT_KVM_EXIT_REASON(u->vcpu, KVM_EXIT_MEMORY_FAULT);
	TEST_ASSERT_EQ(run->memory_fault.flags, 0);
	TEST_ASSERT_EQ(run->memory_fault.gpa, TEST_GPA + first * page_size);
	TEST_ASSERT_EQ(run->memory_fault.size, page_size);
	TEST_ASSERT_EQ(vcpu_get_stat(u->vcpu, userfault_exits), exits);

	if (kvm_has_cap(KVM_CAP_PRE_FAULT_MEMORY))
		pre_fault_fails(u->vcpu, TEST_GPA + first * page_size, page_size, 0, EFAULT);
}

MEMORY_TEST(inaccessible_bitmap)
{
	const u64 nr = 100;
	struct uf_vm u;

	if (!create_vm(&u, variant->memory, nr))
		SKIP(return, NO_MEMORY);
	fill(&u, 0, nr);

	/* Don't let a block be mapped. */
	userfault_set(u.bitmap, nr - 1, 1);
	enable(&u);
	TEST_ASSERT_EQ(touch(&u, 0, 10, true).exits, 0);

	TEST_ASSERT(!mprotect(u.bitmap, page_size, PROT_NONE), "mprotect() failed");
	test_inaccessible_bitmap(&u, 10);
	TEST_ASSERT(!mprotect(u.bitmap, page_size, PROT_READ), "mprotect() failed");
	TEST_ASSERT_EQ(touch(&u, 10, 10, true).exits, 0);

	userfault_free_bitmap(u.bitmap, u.nr_pages);
	test_inaccessible_bitmap(&u, 20);

	/* Another one in the same place will do. */
	u.bitmap = mmap(u.bitmap, page_size, PROT_READ | PROT_WRITE,
			MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
	TEST_ASSERT(u.bitmap != MAP_FAILED, "mmap() failed");
	userfault_set(u.bitmap, 30, 1);
	TEST_ASSERT_EQ(touch(&u, 20, 20, true).exits, 1);

	free_vm(&u);
}

/* The bitmap isn't needed once the flag, or the memslot, is gone. */
MEMORY_TEST(free_bitmap)
{
	const u64 nr = 100;
	struct uf_vm u;

	if (!create_vm(&u, variant->memory, nr))
		SKIP(return, NO_MEMORY);

	userfault_set(u.bitmap, 0, nr);
	enable(&u);
	touch(&u, 0, nr / 2, true);
	disable(&u);
	userfault_free_bitmap(u.bitmap, u.nr_pages);
	TEST_ASSERT_EQ(touch(&u, 0, nr, true).exits, 0);

	u.bitmap = userfault_alloc_bitmap(u.nr_pages);
	userfault_set(u.bitmap, 0, nr);
	enable(&u);
	touch(&u, 0, nr / 2, true);
	vm_mem_region_delete(u.vm, TEST_SLOT);
	userfault_free_bitmap(u.bitmap, u.nr_pages);
	u.bitmap = NULL;

	pft_add_slot(u.vm, VM_MEM_SRC_ANONYMOUS, TEST_GPA, TEST_SLOT, nr * page_size, 0);
	pft_map_slot0(u.vcpu);
	TEST_ASSERT_EQ(touch(&u, 0, nr, true).exits, 0);

	free_vm(&u);
}

struct updater {
	struct uf_vm *u;
	bool delete;
	sem_t done;
};

/* Disable the flag, or delete the memslot, and free the bitmap at once. */
static void *free_after_update(void *data)
{
	struct updater *updater = data;
	struct uf_vm *u = updater->u;

	if (updater->delete)
		vm_mem_region_delete(u->vm, TEST_SLOT);
	else
		disable(u);
	userfault_free_bitmap(u->bitmap, u->nr_pages);
	u->bitmap = NULL;
	sem_post(&updater->done);
	return NULL;
}

static void *run_to_end(void *data)
{
	struct kvm_vcpu *vcpu = data;

	vcpu_run(vcpu);
	/* The memslot may be gone before the guest has used what was mapped. */
	while (vcpu->run->exit_reason == KVM_EXIT_MMIO &&
	       vcpu->run->mmio.phys_addr == TEST_GPA)
		vcpu_run(vcpu);
	pft_finish_access(vcpu);
	return NULL;
}

/*
 * A vCPU waits for the bitmap itself when the flag is disabled, or the memslot
 * deleted.  That has to wait for the vCPU, which would find no bitmap otherwise.
 * An update that doesn't wait takes some time, too: give it that, and demand that
 * it isn't done even so.  Returns false without userfaultfd.
 */
static bool test_bitmap_in_use(struct uf_vm *u, bool delete)
{
	struct updater updater = { .u = u, .delete = delete };
	struct uffdio_zeropage zero = {
		.range = { .start = (u64)u->bitmap, .len = page_size },
	};
	pthread_t vcpu_thread, thread;
	struct timespec until;
	struct uffd_msg msg;
	int uffd;

	uffd = pft_open_uffd(u->bitmap, page_size);
	if (uffd < 0)
		return false;

	sem_init(&updater.done, 0, 0);
	pft_start_access(u->vcpu, 0, page_size, true);
	enable(u);
	kvm_pthread_create(&vcpu_thread, NULL, run_to_end, u->vcpu);
	TEST_ASSERT(read(uffd, &msg, sizeof(msg)) == sizeof(msg), "No message from userfaultfd");
	kvm_pthread_create(&thread, NULL, free_after_update, &updater);

	clock_gettime(CLOCK_REALTIME, &until);
	until = timespec_add_ns(until, NSEC_PER_SEC / 5);
	TEST_ASSERT(sem_timedwait(&updater.done, &until), "The bitmap is freed, but in use");

	TEST_ASSERT(!ioctl(uffd, UFFDIO_ZEROPAGE, &zero),
		    "UFFDIO_ZEROPAGE failed, errno %d", errno);
	kvm_pthread_join(vcpu_thread, NULL);
	kvm_pthread_join(thread, NULL);
	kvm_close(uffd);
	return true;
}

MEMORY_TEST(disable_waits)
{
	struct uf_vm u;

	if (!create_vm(&u, variant->memory, 1))
		SKIP(return, NO_MEMORY);
	if (!test_bitmap_in_use(&u, false))
		SKIP(return, NO_UFFD);
	free_vm(&u);
}

MEMORY_TEST(delete_waits)
{
	struct uf_vm u;

	if (!create_vm(&u, variant->memory, 1))
		SKIP(return, NO_MEMORY);
	if (!test_bitmap_in_use(&u, true))
		SKIP(return, NO_UFFD);
	free_vm(&u);
}

struct repeater {
	struct kvm_vcpu *vcpu;
	u64 sum;
	bool *stop;
};

/* Have the vCPU read all memory again and again, none of which is missing. */
static void *repeat_access(void *data)
{
	struct repeater *repeater = data;

	while (!READ_ONCE(*repeater->stop)) {
		vcpu_run(repeater->vcpu);
		TEST_ASSERT_EQ(pft_finish_access(repeater->vcpu), repeater->sum);
	}
	return NULL;
}

#define NR_REPEATERS	3
#define NR_RACE_ROUNDS	80

/* Each time that the flag is set vCPUs begin to look at a bitmap, which soon goes. */
MEMORY_TEST(free_bitmap_race)
{
	struct uf_vm u = { .nr_pages = 512, .gmem_fd = -1 };
	struct repeater repeaters[NR_REPEATERS];
	struct kvm_vcpu *vcpus[NR_REPEATERS];
	pthread_t threads[NR_REPEATERS];
	bool stop = false;
	int i;

	u.vm = __vm_create_with_vcpus(VM_SHAPE_DEFAULT, NR_REPEATERS,
				      u.nr_pages * page_size / MIN_PAGE_SIZE,
				      pft_guest_code, vcpus);
	virt_map(u.vm, TEST_GVA, TEST_GPA, u.nr_pages * page_size / u.vm->page_size);
	if (!add_memory(&u, variant->memory))
		SKIP(return, NO_MEMORY);
	fill(&u, 0, u.nr_pages);

	pft_start_access(vcpus[0], 0, u.nr_pages * page_size, false);
	for (i = 0; i < NR_REPEATERS; i++) {
		repeaters[i] = (struct repeater) { vcpus[i], sum_of(0, u.nr_pages), &stop };
		kvm_pthread_create(&threads[i], NULL, repeat_access, &repeaters[i]);
	}
	for (i = 0; i < NR_RACE_ROUNDS; i++) {
		u.bitmap = userfault_alloc_bitmap(u.nr_pages);
		enable(&u);
		usleep(i * 25);
		disable(&u);
		userfault_free_bitmap(u.bitmap, u.nr_pages);
	}
	WRITE_ONCE(stop, true);
	for (i = 0; i < NR_REPEATERS; i++)
		kvm_pthread_join(threads[i], NULL);

	u.bitmap = NULL;
	free_vm(&u);
}

/* KVM_PRE_FAULT_MEMORY stops at a page that's missing, and passes it later. */
static void test_pre_fault(struct uf_vm *u, u64 nr, u64 flags)
{
	const u64 missing[] = { 0, 7, 63, 64, nr - 1 };
	u64 gpa, end = TEST_GPA + nr * page_size;
	int i;

	for (i = 0; i < ARRAY_SIZE(missing); i++)
		userfault_set(u->bitmap, missing[i], 1);
	enable(u);

	pre_fault_fails(u->vcpu, TEST_GPA, nr * page_size, flags, EFAULT);
	provide(u, 0);
	for (i = 1, gpa = TEST_GPA; i < ARRAY_SIZE(missing); i++) {
		u64 stop = TEST_GPA + missing[i] * page_size;

		if (gpa < stop)
			pre_fault_stops(u->vcpu, gpa, end - gpa, flags, stop, EFAULT);
		else
			pre_fault_fails(u->vcpu, gpa, end - gpa, flags, EFAULT);
		provide(u, missing[i]);
		pre_fault(u->vcpu, stop, page_size, flags);
		gpa = stop + page_size;
	}

	if (can_count_faults())
		TEST_ASSERT_EQ(touch(u, 0, nr, flags).faults, 0);
	if (!flags)
		TEST_ASSERT_EQ(touch(u, 0, nr, false).sum, sum_of(0, nr));
	disable(u);
}

MEMORY_TEST(pre_fault)
{
	const u64 nr = 100;
	struct uf_vm u;

	if (!kvm_has_cap(KVM_CAP_PRE_FAULT_MEMORY))
		SKIP(return, NO_PREFAULT);
	if (!create_vm(&u, variant->memory, nr))
		SKIP(return, NO_MEMORY);
	fill(&u, 0, u.nr_pages);

	test_pre_fault(&u, nr, 0);
	fill(&u, 0, u.nr_pages);
	if (pft_write_flag())
		test_pre_fault(&u, nr, pft_write_flag());

	free_vm(&u);
}

/* A prefault of a page has its block mapped only if nothing of that is missing. */
USERFAULT_TEST(pre_fault_block)
{
	const u64 nr = pmd_size / page_size;
	struct uf_vm u;

	if (!can_count_faults())
		SKIP(return, NO_FAULT_COUNT);
	if (!create_vm(&u, MEM_THP, 2 * nr))
		SKIP(return, NO_MEMORY);
	if (!has_huge(u.vm))
		SKIP(return, NO_HUGE);
	fill(&u, 0, 2 * nr);

	userfault_set(u.bitmap, 2 * nr - 1, 1);
	enable(&u);
	pre_fault(u.vcpu, TEST_GPA + page_size, page_size, 0);
	pre_fault(u.vcpu, TEST_GPA + (nr + 1) * page_size, page_size, 0);
	TEST_ASSERT_EQ(touch(&u, 0, nr, false).faults, 0);
	TEST_ASSERT_EQ(touch(&u, nr, nr, false).faults, nr - 1);

	free_vm(&u);
}

/* The tracepoint tells of each page that was found missing, the stat of exits. */
USERFAULT_TEST(trace_and_stat)
{
	struct pft_userfault faults[8] = {};
	struct uf_vm u;
	bool prefault;
	u64 exits;
	int nr;

	create_vm(&u, MEM_ANONYMOUS, 10);
	if (!pft_can_trace())
		SKIP(return, NO_TRACE);
	prefault = kvm_has_cap(KVM_CAP_PRE_FAULT_MEMORY);

	userfault_set(u.bitmap, 2, 3);
	enable(&u);
	exits = vcpu_get_stat(u.vcpu, userfault_exits);

	TEST_ASSERT_EQ(touch(&u, 0, 10, false).exits, 3);
	if (prefault) {
		userfault_set(u.bitmap, 4, 1);
		disable(&u);
		enable(&u);
		pre_fault_fails(u.vcpu, TEST_GPA + 4 * page_size, page_size, 0, EFAULT);
	}

	TEST_ASSERT_EQ(vcpu_get_stat(u.vcpu, userfault_exits), exits + 3);
	nr = pft_trace_userfaults(faults, ARRAY_SIZE(faults));
	TEST_ASSERT_EQ(nr, 3 + prefault);
	while (nr--) {
		TEST_ASSERT_EQ(faults[nr].vcpu_id, 0);
		TEST_ASSERT_EQ(faults[nr].slot, TEST_SLOT);
		TEST_ASSERT_EQ(faults[nr].gpa, TEST_GPA + (nr < 3 ? 2 + nr : 4) * page_size);
		TEST_ASSERT_EQ(faults[nr].prefault, nr == 3);
	}

	free_vm(&u);
}

/* Pages are dirty when they are written to, not when they're provided or read. */
MEMORY_TEST(dirty_log)
{
	const u64 nr = 64;
	const u32 log = KVM_MEM_LOG_DIRTY_PAGES;
	unsigned long *dirty;
	struct uf_vm u;
	u64 page;

	if (variant->memory == MEM_GUEST_MEMFD)
		SKIP(return, "no dirty logging of guest_memfd");
	if (!create_vm(&u, variant->memory, nr))
		SKIP(return, NO_MEMORY);
	dirty = bitmap_zalloc(u.nr_pages);

	userfault_set(u.bitmap, 0, nr);
	userfault_set_flags(u.vm, TEST_SLOT, log | KVM_MEM_USERFAULT, u.bitmap);
	TEST_ASSERT_EQ(touch(&u, 0, nr / 2, false).exits, nr / 2);
	TEST_ASSERT_EQ(touch(&u, nr / 4, nr / 2, true).exits, nr / 4);

	kvm_vm_get_dirty_log(u.vm, TEST_SLOT, dirty);
	for (page = 0; page < nr; page++) {
		bool written = page >= nr / 4 && page < 3 * nr / 4;

#ifdef __x86_64__
		/* What is mapped writable for a read counts as dirty. */
		if (page < nr / 4)
			continue;
#endif
		TEST_ASSERT(test_bit(page, dirty) == written, "Page %lu is unexpectedly %s",
			    page, written ? "clean" : "dirty");
	}

	/* Neither flag takes the other with it. */
	userfault_set_flags(u.vm, TEST_SLOT, KVM_MEM_USERFAULT, u.bitmap);
	TEST_ASSERT_EQ(touch(&u, 0, 3 * nr / 4 + 4, true).exits, 4);
	userfault_set_flags(u.vm, TEST_SLOT, log | KVM_MEM_USERFAULT, u.bitmap);
	TEST_ASSERT_EQ(touch(&u, 0, 3 * nr / 4 + 8, true).exits, 4);
	userfault_set_flags(u.vm, TEST_SLOT, log, NULL);
	kvm_vm_get_dirty_log(u.vm, TEST_SLOT, dirty);
	TEST_ASSERT_EQ(touch(&u, 0, nr, true).exits, 0);
	kvm_vm_get_dirty_log(u.vm, TEST_SLOT, dirty);
	for (page = 0; page < nr; page++)
		TEST_ASSERT(test_bit(page, dirty), "Page %lu is clean", page);

	/* With the flag enabled while the log goes on. */
	userfault_set(u.bitmap, 5, 1);
	userfault_set_flags(u.vm, TEST_SLOT, log | KVM_MEM_USERFAULT, u.bitmap);
	kvm_vm_get_dirty_log(u.vm, TEST_SLOT, dirty);
	TEST_ASSERT_EQ(touch(&u, 5, 1, true).exits, 1);
	kvm_vm_get_dirty_log(u.vm, TEST_SLOT, dirty);
	TEST_ASSERT(test_bit(5, dirty) && !test_bit(6, dirty), "Wrong page is dirty");

	free_vm(&u);
	free(dirty);
}

/*
 * When dirty logging ends, blocks come back; but not if some of their pages are
 * missing.
 */
MEMORY_TEST(dirty_log_keeps_pages)
{
	const u64 nr = pmd_size / page_size;
	unsigned long *dirty;
	struct uf_vm u;

	if (!has_blocks(variant->memory))
		SKIP(return, NO_BLOCKS);
	if (!can_count_faults())
		SKIP(return, NO_FAULT_COUNT);
	if (!create_vm(&u, variant->memory, nr))
		SKIP(return, NO_MEMORY);
	dirty = bitmap_zalloc(nr);
	fill(&u, 0, nr);

	userfault_set(u.bitmap, nr - 1, 1);
	enable(&u);
	TEST_ASSERT_EQ(touch(&u, 0, nr - 1, true).faults, nr - 1);

	userfault_set_flags(u.vm, TEST_SLOT, KVM_MEM_LOG_DIRTY_PAGES | KVM_MEM_USERFAULT,
			    u.bitmap);
	kvm_vm_get_dirty_log(u.vm, TEST_SLOT, dirty);
	TEST_ASSERT_EQ(touch(&u, 0, nr / 2, true).faults, nr / 2);

	/* Half of the pages are read-only since logging began. */
	userfault_set_flags(u.vm, TEST_SLOT, KVM_MEM_USERFAULT, u.bitmap);
	TEST_ASSERT_EQ(touch(&u, 0, nr / 2, true).faults, 0);
	TEST_ASSERT_EQ(touch(&u, nr / 2, nr / 2 - 1, true).faults, nr / 2 - 1);
#ifdef __x86_64__
	TEST_ASSERT_EQ(vm_get_stat(u.vm, pages_2m), 0);
#endif

	free_vm(&u);
	free(dirty);
}

/* A block isn't missing any page, but what's logged is pages. */
MEMORY_TEST(dirty_log_needs_pages)
{
	const u64 nr = pmd_size / page_size;
	unsigned long *dirty;
	struct uf_vm u;
	u64 page;

	if (!has_blocks(variant->memory))
		SKIP(return, NO_BLOCKS);
	if (!create_vm(&u, variant->memory, nr))
		SKIP(return, NO_MEMORY);
	dirty = bitmap_zalloc(nr);

	userfault_set_flags(u.vm, TEST_SLOT, KVM_MEM_LOG_DIRTY_PAGES | KVM_MEM_USERFAULT,
			    u.bitmap);
	for (page = 0; page < nr; page += 5) {
		TEST_ASSERT_EQ(touch(&u, page, 1, true).exits, 0);
		kvm_vm_get_dirty_log(u.vm, TEST_SLOT, dirty);
		TEST_ASSERT(test_bit(page, dirty), "Page %lu is clean", page);
	}

	free_vm(&u);
	free(dirty);
}

/*
 * Blocks are read-only since dirty logging began, and can't be mapped whole when
 * they're written to, i.e. have to be split.  There are more of them than a vCPU
 * has pages for tables in stock.
 */
USERFAULT_TEST(split_on_write)
{
	const u64 nr = pmd_size / page_size, nr_blocks = 48;
	struct uf_vm u;
	u64 block;

	if (pmd_size > SZ_2M)
		SKIP(return, "blocks that are too large");
	if (!create_vm(&u, MEM_THP, nr_blocks * nr))
		SKIP(return, NO_MEMORY);

	enable(&u);
	for (block = 0; block < nr_blocks; block++)
		touch(&u, block * nr, 1, false);
	userfault_set_flags(u.vm, TEST_SLOT, KVM_MEM_LOG_DIRTY_PAGES | KVM_MEM_USERFAULT,
			    u.bitmap);
	userfault_set_flags(u.vm, TEST_SLOT, KVM_MEM_USERFAULT, u.bitmap);

	/* Too late for the bits of these pages to have an effect on them. */
	for (block = 0; block < nr_blocks; block++)
		userfault_set(u.bitmap, block * nr + 9, 1);
	for (block = 0; block < nr_blocks; block++)
		TEST_ASSERT_EQ(touch(&u, block * nr, 1, true).exits, 0);

	free_vm(&u);
}

/* Read-only memory can be missing, too. */
USERFAULT_TEST(readonly)
{
	const u32 ro = KVM_MEM_READONLY, log = KVM_MEM_LOG_DIRTY_PAGES;
	const u32 sets[] = { ro, ro | log };
	const u64 nr = 10;
	struct kvm_run *run;
	struct uf_vm u;
	int i, ret;

	create_vm(&u, MEM_ANONYMOUS, nr);
	run = u.vcpu->run;

	for (i = 0; i < ARRAY_SIZE(sets); i++) {
		vm_mem_region_delete(u.vm, TEST_SLOT);
		pft_add_slot(u.vm, VM_MEM_SRC_ANONYMOUS, TEST_GPA, TEST_SLOT,
			     nr * page_size, sets[i]);
		u.mem = pft_hva(u.vm);
		fill(&u, 0, nr);
		TEST_ASSERT_EQ(touch(&u, 0, nr, false).exits, 0);

		userfault_set(u.bitmap, 3, 2);
		userfault_set_flags(u.vm, TEST_SLOT, sets[i] | KVM_MEM_USERFAULT, u.bitmap);
		TEST_ASSERT_EQ(touch(&u, 0, nr, false).exits, 2);
		userfault_set(u.bitmap, 4, 2);
		userfault_set_flags(u.vm, TEST_SLOT, sets[!i] | KVM_MEM_USERFAULT, u.bitmap);
		TEST_ASSERT_EQ(touch(&u, 0, nr, false).exits, 0);
		userfault_set_flags(u.vm, TEST_SLOT, sets[!i], NULL);
		userfault_set_flags(u.vm, TEST_SLOT, sets[i] | KVM_MEM_USERFAULT, u.bitmap);
		TEST_ASSERT_EQ(touch(&u, 0, nr, false).exits, 2);

		/* Still read-only. */
		pft_start_access(u.vcpu, 0, page_size, true);
		ret = _vcpu_run(u.vcpu);
		TEST_ASSERT(!ret, KVM_IOCTL_ERROR(KVM_RUN, ret));
		TEST_ASSERT_KVM_EXIT_REASON(u.vcpu, KVM_EXIT_MMIO);
		TEST_ASSERT_EQ(run->mmio.phys_addr, TEST_GPA);
		vcpu_run(u.vcpu);
		pft_finish_access(u.vcpu);
		TEST_ASSERT_EQ(touch(&u, 0, nr, false).sum, sum_of(0, nr));
	}

	free_vm(&u);
}

/* Several vCPUs need one page: all of them exit, all of them go on. */
#define NR_VCPUS	4

static void guest_read(u64 *p)
{
	GUEST_SYNC1(READ_ONCE(*p));
}

USERFAULT_TEST(many_vcpus)
{
	struct kvm_vcpu *vcpus[NR_VCPUS];
	struct ucall uc;
	struct uf_vm u = { .nr_pages = 1, .gmem_fd = -1 };
	int i;

	u.vm = vm_create_with_vcpus(NR_VCPUS, guest_read, vcpus);
	virt_map(u.vm, TEST_GVA, TEST_GPA, page_size / u.vm->page_size);
	u.bitmap = userfault_alloc_bitmap(1);
	add_memory(&u, MEM_ANONYMOUS);
	userfault_set(u.bitmap, 0, 1);
	enable(&u);

	for (i = 0; i < NR_VCPUS; i++) {
		vcpu_args_set(vcpus[i], 1, TEST_GVA);
		vcpu_run_to_userfault(vcpus[i], TEST_GPA);
	}
	provide(&u, 0);
	for (i = 0; i < NR_VCPUS; i++) {
		TEST_ASSERT_EQ(vcpu_get_stat(vcpus[i], userfault_exits), 1);
		vcpu_run(vcpus[i]);
		TEST_ASSERT_EQ(get_ucall(vcpus[i], &uc), UCALL_SYNC);
		TEST_ASSERT_EQ(uc.args[0], sum_of(0, 1));
	}

	free_vm(&u);
}

int main(int argc, char *argv[])
{
	TEST_REQUIRE(kvm_has_cap(KVM_CAP_USERFAULT));

	page_size = getpagesize();
	pmd_size = page_size * (page_size / sizeof(u64));

	return test_harness_run(argc, argv);
}
