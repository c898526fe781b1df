// SPDX-License-Identifier: GPL-2.0-only
/*
 * Test what KVM_PRE_FAULT_MEMORY promises beyond mapping memory: its errors,
 * where it stops, by how much it advances, that the guest takes no stage-2
 * fault on what is mapped, and what it leaves alone.
 *
 * Signals, races and full dirty rings are pre_fault_race_test's.
 */
#include <linux/sizes.h>

#include <signal.h>

#include "kvm_test_harness.h"
#include "kvm_util.h"
#include "pre_fault_util.h"
#include "processor.h"
#include "test_util.h"

#define NO_MANUAL_LOG	"no KVM_DIRTY_LOG_INITIALLY_SET"

/* The host's, which is what KVM_PRE_FAULT_MEMORY is in terms of. */
static u64 page_size;

FIXTURE(pre_fault) {
	bool warned;
};

FIXTURE_SETUP(pre_fault)
{
	self->warned = pft_begin();
}

FIXTURE_TEARDOWN(pre_fault)
{
	EXPECT_EQ(self->warned, pft_end());
}

#define PRE_FAULT_TEST(name)	TEST_F_TIMEOUT(pre_fault, name, PFT_TEST_SECONDS)

static void enable_manual_dirty_log(struct kvm_vm *vm)
{
	vm_enable_cap(vm, KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2,
		      KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE | KVM_DIRTY_LOG_INITIALLY_SET);
}

static bool has_manual_dirty_log(void)
{
	return kvm_check_cap(KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2) & KVM_DIRTY_LOG_INITIALLY_SET;
}

PRE_FAULT_TEST(capability)
{
	unsigned int cap = kvm_check_cap(KVM_CAP_PRE_FAULT_MEMORY);

	TEST_ASSERT(cap & 1, "Wanted bit 0 to be set, got 0x%x", cap);
	TEST_ASSERT(!(cap & ~(1 | KVM_PRE_FAULT_FLAG_WRITE)), "Unknown bits in 0x%x", cap);
}

PRE_FAULT_TEST(errors)
{
	const u64 p = page_size, size = 4 * p, gpa = TEST_GPA;
	const struct {
		u64 gpa, size;
		int expected;
	} bad[] = {
		{ gpa + 1,	p,		EINVAL },
		{ gpa + p / 2,	p,		EINVAL },
		{ gpa,		1,		EINVAL },
		{ gpa,		p + p / 2,	EINVAL },
		{ gpa,		0,		EINVAL },
		{ gpa,		-gpa,		EINVAL },
		{ gpa,		-p,		EINVAL },
		{ -p,		p,		EINVAL },
		{ -p,		2 * p,		EINVAL },
		{ gpa - p,	p,		ENOENT },
		{ gpa + size,	p,		ENOENT },
		{ OTHER_GPA,	size,		ENOENT },
		{ BIT_ULL(51),	p,		ENOENT },
		{ -2 * p,	p,		ENOENT },
	};
	struct kvm_vcpu *vcpu;
	struct kvm_vm *vm = pft_create_vm(&vcpu, VM_MEM_SRC_ANONYMOUS, size);
	int i;

	for (i = 0; i < ARRAY_SIZE(bad); i++)
		pre_fault_fails(vcpu, bad[i].gpa, bad[i].size, 0, bad[i].expected);

	for (i = 0; i < 64; i++) {
		if (BIT_ULL(i) != pft_write_flag())
			pre_fault_fails(vcpu, gpa, size, BIT_ULL(i), EINVAL);
	}

	kvm_vm_free(vm);
}

PRE_FAULT_TEST(bad_pointers)
{
	struct kvm_pre_fault_memory *range;
	struct kvm_vcpu *vcpu;
	struct kvm_vm *vm = pft_create_vm(&vcpu, VM_MEM_SRC_ANONYMOUS, 4 * page_size);
	int ret;

	range = kvm_mmap(page_size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1);
	*range = (struct kvm_pre_fault_memory) { .gpa = TEST_GPA, .size = page_size };

	/* What is left of the range can't be written. */
	TEST_ASSERT(!mprotect(range, page_size, PROT_READ), "mprotect() failed");
	ret = __vcpu_ioctl(vcpu, KVM_PRE_FAULT_MEMORY, range);
	TEST_ASSERT(ret == -1 && errno == EFAULT, "Wanted EFAULT, got %d errno %d", ret, errno);

	kvm_munmap(range, page_size);
	ret = __vcpu_ioctl(vcpu, KVM_PRE_FAULT_MEMORY, range);
	TEST_ASSERT(ret == -1 && errno == EFAULT, "Wanted EFAULT, got %d errno %d", ret, errno);

	kvm_vm_free(vm);
}

/* The memslot exists, but not the memory behind it. */
PRE_FAULT_TEST(no_memory)
{
	struct kvm_vcpu *vcpu;
	struct kvm_vm *vm = pft_create_vm(&vcpu, VM_MEM_SRC_ANONYMOUS, 4 * page_size);

	TEST_ASSERT(!mprotect(pft_hva(vm) + 2 * page_size, page_size, PROT_NONE),
		    "mprotect() failed");
	pre_fault_stops(vcpu, TEST_GPA, 4 * page_size, 0, TEST_GPA + 2 * page_size, EFAULT);
	kvm_munmap(pft_hva(vm) + 2 * page_size, page_size);
	pre_fault_fails(vcpu, TEST_GPA + 2 * page_size, page_size, 0, EFAULT);
	pre_fault(vcpu, TEST_GPA + 3 * page_size, page_size, 0);

	kvm_vm_free(vm);
}

/* What is left of a range that ends in, or spans, a hole between two slots. */
PRE_FAULT_TEST(hole)
{
	const u64 size = 4 * page_size;
	const gpa_t hole = TEST_GPA + size, end = TEST_GPA + 3 * size;
	struct kvm_vcpu *vcpu;
	struct kvm_vm *vm = pft_create_vm(&vcpu, VM_MEM_SRC_ANONYMOUS, size);

	pft_add_slot(vm, VM_MEM_SRC_ANONYMOUS, hole + size, OTHER_SLOT, size, 0);

	pre_fault_stops(vcpu, TEST_GPA, end - TEST_GPA, 0, hole, ENOENT);
	pre_fault_stops(vcpu, hole - page_size, 2 * page_size, 0, hole, ENOENT);
	pre_fault_fails(vcpu, hole + size - page_size, 2 * page_size, 0, ENOENT);
	pre_fault_stops(vcpu, hole + size, size + page_size, 0, end, ENOENT);

	kvm_vm_free(vm);
}

/* The guest faults on nothing that is mapped, and on everything that isn't. */
PRE_FAULT_TEST(no_guest_faults)
{
	const u64 size = 64 * page_size;
	struct kvm_vcpu *vcpu;
	struct kvm_vm *vm;

	if (!pft_can_count_faults())
		SKIP(return, NO_FAULT_COUNT);
	vm = pft_create_vm(&vcpu, VM_MEM_SRC_ANONYMOUS, 2 * size);
	pft_populate(pft_hva(vm), 2 * size);

	/* The vCPU has yet to run for the first time. */
	pre_fault(vcpu, TEST_GPA, size, 0);
	TEST_ASSERT_EQ(pft_touch(vcpu, 0, size, false), 0);
	TEST_ASSERT_EQ(pft_touch(vcpu, 0, size, true), 0);
	TEST_ASSERT_EQ(pft_touch(vcpu, size, size, false), 64);

	kvm_vm_free(vm);
}

/* What is mapped counts as done, and stays as it is. */
PRE_FAULT_TEST(repeat)
{
	const u64 size = 64 * page_size;
	struct kvm_vcpu *vcpu;
	struct kvm_vm *vm;
	int i;

	if (!pft_can_count_faults())
		SKIP(return, NO_FAULT_COUNT);
	vm = pft_create_vm(&vcpu, VM_MEM_SRC_ANONYMOUS, 2 * size);
	pft_populate(pft_hva(vm), 2 * size);

	/* Mapped by a prefault, and by the guest. */
	pre_fault(vcpu, TEST_GPA, size, 0);
	pft_touch(vcpu, size, size, true);

	for (i = 0; i < 4; i++) {
#ifdef __x86_64__
		u64 pages = vm_get_stat(vm, pages_4k);
#endif
		pre_fault(vcpu, TEST_GPA, 2 * size, i % 2 ? pft_write_flag() : 0);
		pre_fault_stops(vcpu, TEST_GPA + size, 2 * size, 0, TEST_GPA + 2 * size, ENOENT);
		TEST_ASSERT_EQ(pft_touch(vcpu, 0, 2 * size, true), 0);
#ifdef __x86_64__
		TEST_ASSERT_EQ(vm_get_stat(vm, pages_4k), pages);
#endif
	}

	kvm_vm_free(vm);
}

PRE_FAULT_TEST(tracepoint)
{
	const struct pft_step expected[] = {
		{ TEST_GPA,			page_size },
		{ TEST_GPA + page_size,		page_size },
		{ TEST_GPA + 2 * page_size,	-ENOENT },
	};
	struct pft_step steps[ARRAY_SIZE(expected)] = {};
	struct kvm_pre_fault_memory range = {
		.gpa = TEST_GPA, .size = 4 * page_size,
	};
	struct kvm_vcpu *vcpu;
	struct kvm_vm *vm;

	if (!pft_can_trace())
		SKIP(return, NO_TRACE);
	vm = pft_create_vm(&vcpu, VM_MEM_SRC_ANONYMOUS, 2 * page_size);

	pft_trace_clear();
	TEST_ASSERT_EQ(__pre_fault(vcpu, &range), 0);
	TEST_ASSERT_EQ(pft_trace_steps(steps, ARRAY_SIZE(steps)), ARRAY_SIZE(expected));
	TEST_ASSERT(!memcmp(steps, expected, sizeof(steps)), "Unexpected steps");

	kvm_vm_free(vm);
}

/* Memory that can be mapped by blocks. */
FIXTURE(block) {
	bool warned;
};

FIXTURE_VARIANT(block) {
	enum vm_mem_backing_src_type src;
};

FIXTURE_VARIANT_ADD(block, thp) {
	.src = VM_MEM_SRC_ANONYMOUS_THP,
};

FIXTURE_VARIANT_ADD(block, hugetlb_64kb) {
	.src = VM_MEM_SRC_ANONYMOUS_HUGETLB_64KB,
};

FIXTURE_VARIANT_ADD(block, hugetlb_2mb) {
	.src = VM_MEM_SRC_ANONYMOUS_HUGETLB_2MB,
};

FIXTURE_VARIANT_ADD(block, hugetlb_32mb) {
	.src = VM_MEM_SRC_ANONYMOUS_HUGETLB_32MB,
};

FIXTURE_SETUP(block)
{
	self->warned = pft_begin();
}

FIXTURE_TEARDOWN(block)
{
	EXPECT_EQ(self->warned, pft_end());
}

/* A VM with two blocks, or huge pages, of host memory that is there. */
struct block_vm {
	struct kvm_vm *vm;
	struct kvm_vcpu *vcpu;
	/* What KVM maps at once. */
	u64 granule;
};

static u64 free_huge_pages(u64 size)
{
	char path[128];
	u64 nr = 0;
	FILE *f;

	snprintf(path, sizeof(path),
		 "/sys/kernel/mm/hugepages/hugepages-%lukB/free_hugepages", size / SZ_1K);
	f = fopen(path, "r");
	if (f) {
		TEST_ASSERT(fscanf(f, "%lu", &nr) == 1, "Can't read '%s'", path);
		fclose(f);
	}
	return nr;
}

/* Returns NULL, or why there is no such memory. */
static const char *create_block_vm(struct block_vm *b, enum vm_mem_backing_src_type src)
{
	const u64 pmd_size = page_size * (page_size / sizeof(u64));
	u64 backing;

	if (!pft_can_count_faults())
		return NO_FAULT_COUNT;
	if (src == VM_MEM_SRC_ANONYMOUS_THP && !thp_configured())
		return "no THP";

	backing = get_backing_src_pagesz(src);
	if (is_backing_src_hugetlb(src) && free_huge_pages(backing) < 2)
		return "no free huge pages of that size";
	if (backing > SZ_64M)
		return "blocks that are too large to count on";

	b->granule = backing < pmd_size ? page_size : pmd_size;
	b->vm = pft_create_vm(&b->vcpu, src, 2 * backing);
	if (madvise(pft_hva(b->vm), 2 * backing, MADV_POPULATE_WRITE))
		return "no memory of that size";
	if (src == VM_MEM_SRC_ANONYMOUS_THP &&
	    madvise(pft_hva(b->vm), 2 * backing, MADV_COLLAPSE))
		return "no THP";

	return NULL;
}

#define BLOCK_TEST(name)	TEST_F_TIMEOUT(block, name, PFT_TEST_SECONDS)

/* A page of a block has all of the block mapped, and nothing else. */
BLOCK_TEST(granule)
{
	struct block_vm b;
	const char *why;
	u64 middle;

	why = create_block_vm(&b, variant->src);
	if (why)
		SKIP(return, "%s", why);
	middle = align_down(b.granule / 2, page_size);

	pre_fault(b.vcpu, TEST_GPA + middle, page_size, 0);
	TEST_ASSERT_EQ(pft_touch(b.vcpu, 0, b.granule, false), 0);
	TEST_ASSERT_EQ(pft_touch(b.vcpu, b.granule, b.granule, true), 1);

#ifdef __x86_64__
	TEST_ASSERT_EQ(vm_get_stat(b.vm, pages_2m), b.granule == SZ_2M ? 2 : 0);
#endif
	kvm_vm_free(b.vm);
}

/* A step ends where the block ends, wherever in the block it begins. */
BLOCK_TEST(steps)
{
	struct pft_step steps[2] = {};
	struct block_vm b;
	const char *why;
	u64 first;

	if (!pft_can_trace())
		SKIP(return, NO_TRACE);
	why = create_block_vm(&b, variant->src);
	if (why)
		SKIP(return, "%s", why);
	first = b.granule - align_down(b.granule / 2, page_size);

	/* Up to a page of the next block, while nothing is, and all is mapped. */
	for (int i = 0; i < 2; i++) {
		pft_trace_clear();
		pre_fault(b.vcpu, TEST_GPA + b.granule - first, first + page_size, 0);
		TEST_ASSERT_EQ(pft_trace_steps(steps, 2), 2);
		TEST_ASSERT_EQ(steps[0].gpa, TEST_GPA + b.granule - first);
		TEST_ASSERT_EQ(steps[0].ret, first);
		TEST_ASSERT_EQ(steps[1].gpa, TEST_GPA + b.granule);
		TEST_ASSERT_EQ(steps[1].ret, page_size);
	}
	TEST_ASSERT_EQ(pft_touch(b.vcpu, 0, 2 * b.granule, false), 0);

	kvm_vm_free(b.vm);
}

/*
 * With dirty logging enabled memory is mapped by pages.  A block that is there
 * from before has to stay if it's only to be read, or the guest loses the
 * mapping of the rest of the block.
 */
BLOCK_TEST(dirty_logging_keeps_blocks)
{
	struct block_vm b;
	const char *why;

	if (!has_manual_dirty_log())
		SKIP(return, NO_MANUAL_LOG);
	why = create_block_vm(&b, variant->src);
	if (why)
		SKIP(return, "%s", why);
	enable_manual_dirty_log(b.vm);

	pre_fault(b.vcpu, TEST_GPA, b.granule, 0);
	vm_mem_region_set_flags(b.vm, TEST_SLOT, KVM_MEM_LOG_DIRTY_PAGES);
	pre_fault(b.vcpu, TEST_GPA + page_size, page_size, 0);
	TEST_ASSERT_EQ(pft_touch(b.vcpu, 0, b.granule, false), 0);

	kvm_vm_free(b.vm);
}

/* Reads are fine with a read-only slot, writes have nothing to map. */
PRE_FAULT_TEST(read_only)
{
	const u64 size = 4 * page_size;
	const gpa_t read_only = TEST_GPA + size;
	struct kvm_vcpu *vcpu;
	struct kvm_vm *vm;

	if (!kvm_has_cap(KVM_CAP_READONLY_MEM))
		SKIP(return, "no read-only memslots");
	if (!pft_can_count_faults())
		SKIP(return, NO_FAULT_COUNT);
	vm = pft_create_vm_without_slot(VM_SHAPE_DEFAULT, &vcpu, 2 * size);
	pft_add_slot(vm, VM_MEM_SRC_ANONYMOUS, TEST_GPA, TEST_SLOT, size, 0);
	pft_add_slot(vm, VM_MEM_SRC_ANONYMOUS, read_only, OTHER_SLOT, size, KVM_MEM_READONLY);

	if (pft_write_flag()) {
		pre_fault_fails(vcpu, read_only, size, pft_write_flag(), EACCES);
		pre_fault_stops(vcpu, TEST_GPA, 2 * size, pft_write_flag(), read_only, EACCES);
	}
	pre_fault(vcpu, read_only, size, 0);
	/* What is mapped makes no difference. */
	if (pft_write_flag())
		pre_fault_fails(vcpu, read_only, size, pft_write_flag(), EACCES);
	TEST_ASSERT_EQ(pft_touch(vcpu, size, size, false), 0);

	kvm_vm_free(vm);
}

/*
 * A read of memory that nobody has written maps the zero page, which a write
 * has to replace.  That is what KVM_PRE_FAULT_FLAG_WRITE is for.
 */
PRE_FAULT_TEST(write_intent)
{
	const u64 size = 16 * page_size;
	struct kvm_vcpu *vcpu;
	struct kvm_vm *vm;
	u64 faults;

	if (!pft_write_flag())
		SKIP(return, NO_WRITE);
	if (!pft_can_count_faults())
		SKIP(return, NO_FAULT_COUNT);
	vm = pft_create_vm(&vcpu, VM_MEM_SRC_ANONYMOUS, 3 * size);

	pre_fault(vcpu, TEST_GPA, size, 0);
	faults = pft_touch(vcpu, 0, size, true);
	TEST_ASSERT(faults >= 16, "Wanted 16 faults or more, got %lu", faults);

	pre_fault(vcpu, TEST_GPA + size, size, pft_write_flag());
	TEST_ASSERT_EQ(pft_touch(vcpu, size, size, true), 0);

	/* A mapping to read is upgraded to one to write. */
	pre_fault(vcpu, TEST_GPA + 2 * size, size, 0);
	pre_fault(vcpu, TEST_GPA + 2 * size, size, pft_write_flag());
	TEST_ASSERT_EQ(pft_touch(vcpu, 2 * size, size, true), 0);

	kvm_vm_free(vm);
}

/* A page of a private mapping is the file's until it is copied. */
static bool is_copied(u64 *mem, u64 *file)
{
	const u64 old = *file;
	bool copied;

	WRITE_ONCE(*file, ~old);
	copied = READ_ONCE(*mem) != ~old;
	WRITE_ONCE(*file, old);
	return copied;
}

/* A write to a private mapping of a file stays private, prefaulted or not. */
PRE_FAULT_TEST(private_file)
{
	const u64 size = 4 * page_size, step = page_size / sizeof(u64);
	const u64 words = size / sizeof(u64);
	struct kvm_vcpu *vcpu;
	struct kvm_vm *vm;
	u64 *mem, *file;
	int fd, i;

	if (!pft_write_flag())
		SKIP(return, NO_WRITE);
	if (!pft_can_count_faults())
		SKIP(return, NO_FAULT_COUNT);
	fd = kvm_memfd_alloc(size, false);
	file = kvm_mmap(size, PROT_READ | PROT_WRITE, MAP_SHARED, fd);
	pft_populate(file, size);
	mem = kvm_mmap(size, PROT_READ | PROT_WRITE, MAP_PRIVATE, fd);

	vm = pft_create_vm_without_slot(VM_SHAPE_DEFAULT, &vcpu, size);
	vm_set_user_memory_region(vm, TEST_SLOT, 0, TEST_GPA, size, mem);

	/* One half is mapped from the file first, the other isn't. */
	pre_fault(vcpu, TEST_GPA, size / 2, 0);
	for (i = 0; i < words / 2; i += step)
		TEST_ASSERT(!is_copied(&mem[i], &file[i]), "A read broke CoW");
	pre_fault(vcpu, TEST_GPA, size, pft_write_flag());
	for (i = 0; i < words; i += step)
		TEST_ASSERT(is_copied(&mem[i], &file[i]), "A write didn't break CoW");
	TEST_ASSERT_EQ(pft_touch(vcpu, 0, size, true), 0);

	for (i = 0; i < words; i += step) {
		TEST_ASSERT_EQ(mem[i], TEST_GVA + i * sizeof(*mem));
		TEST_ASSERT_EQ(file[i], i * sizeof(*mem));
	}

	kvm_vm_free(vm);
	kvm_munmap(mem, size);
	kvm_munmap(file, size);
	kvm_close(fd);
}

/* The first 64 host pages of the test's slot, as a bitmap of dirty pages. */
static u64 dirty_log(struct kvm_vm *vm)
{
	u64 bitmap = 0;

	kvm_vm_get_dirty_log(vm, TEST_SLOT, &bitmap);
	return bitmap;
}

static void check_dirty_log(struct kvm_vcpu *vcpu)
{
	struct kvm_vm *vm = vcpu->vm;
	u64 bitmap = ~0ull;

	vm_mem_region_set_flags(vm, TEST_SLOT, KVM_MEM_LOG_DIRTY_PAGES);
	TEST_ASSERT_EQ(dirty_log(vm), ~0ull);
	kvm_vm_clear_dirty_log(vm, TEST_SLOT, &bitmap, 0, 64);
	TEST_ASSERT_EQ(dirty_log(vm), 0);

	pre_fault(vcpu, TEST_GPA + 40 * page_size, 8 * page_size, 0);
#ifdef __aarch64__
	/* On x86 a read may map memory writable, and has it dirty then. */
	TEST_ASSERT_EQ(dirty_log(vm), 0);
#endif
	TEST_ASSERT_EQ(dirty_log(vm) & ~GENMASK_ULL(47, 40), 0);

	bitmap = dirty_log(vm);
	pre_fault(vcpu, TEST_GPA + 3 * page_size, 2 * page_size, pft_write_flag());
	TEST_ASSERT_EQ(dirty_log(vm), bitmap | GENMASK_ULL(4, 3));

	/* What is writable is dirty, what was only read isn't. */
	TEST_ASSERT_EQ(pft_touch(vcpu, 3 * page_size, 2 * page_size, true), 0);
	pft_touch(vcpu, 41 * page_size, page_size, true);
	TEST_ASSERT_EQ(dirty_log(vm), bitmap | GENMASK_ULL(4, 3) | BIT_ULL(41));
}

/* Prefaulting to write dirties what it maps, and nothing else. */
PRE_FAULT_TEST(dirty_log)
{
	struct kvm_vcpu *vcpu;
	struct kvm_vm *vm;

	if (!pft_write_flag())
		SKIP(return, NO_WRITE);
	if (!pft_can_count_faults())
		SKIP(return, NO_FAULT_COUNT);
	if (!has_manual_dirty_log())
		SKIP(return, NO_MANUAL_LOG);
	vm = pft_create_vm(&vcpu, VM_MEM_SRC_ANONYMOUS, 64 * page_size);
	enable_manual_dirty_log(vm);
	pft_populate(pft_hva(vm), 64 * page_size);

	check_dirty_log(vcpu);

	kvm_vm_free(vm);
}

/* Likewise with memory that is mapped writable when logging is enabled. */
PRE_FAULT_TEST(dirty_log_mapped)
{
	struct kvm_vcpu *vcpu;
	struct kvm_vm *vm;

	if (!pft_write_flag())
		SKIP(return, NO_WRITE);
	if (!pft_can_count_faults())
		SKIP(return, NO_FAULT_COUNT);
	if (!has_manual_dirty_log())
		SKIP(return, NO_MANUAL_LOG);
	vm = pft_create_vm(&vcpu, VM_MEM_SRC_ANONYMOUS, 64 * page_size);
	enable_manual_dirty_log(vm);
	pft_populate(pft_hva(vm), 64 * page_size);
	pre_fault(vcpu, TEST_GPA, 64 * page_size, pft_write_flag());

	check_dirty_log(vcpu);

	kvm_vm_free(vm);
}

static bool expect_sigbus;

static void sigbus(int signum)
{
	TEST_ASSERT(expect_sigbus, "A prefault of poisoned memory sent SIGBUS");
}

/* Nothing has consumed the poison: there is an error, and no signal. */
PRE_FAULT_TEST(poison)
{
	struct sigaction sa = { .sa_handler = sigbus };
	const gpa_t poisoned = TEST_GPA + 3 * page_size;
	const u64 size = 8 * page_size;
	struct kvm_vcpu *vcpu;
	struct kvm_vm *vm;
	int ret;

	vm = pft_create_vm(&vcpu, VM_MEM_SRC_ANONYMOUS, size);
	pft_populate(pft_hva(vm), size);
	sigaction(SIGBUS, &sa, NULL);

	/* Whoever injects poison gets a signal. */
	expect_sigbus = true;
	ret = madvise(pft_hva(vm) + 3 * page_size, page_size, MADV_HWPOISON);
	expect_sigbus = false;
	if (ret)
		SKIP(return, "can't poison memory, errno %d", errno);

	pre_fault_stops(vcpu, TEST_GPA, size, 0, poisoned, EHWPOISON);
	pre_fault_fails(vcpu, poisoned, page_size, pft_write_flag(), EHWPOISON);
	pre_fault(vcpu, poisoned + page_size, 4 * page_size, 0);

	kvm_vm_free(vm);
}

/* guest_memfd that is mapped, and shared from the start. */
PRE_FAULT_TEST(guest_memfd)
{
	const u64 size = 64 * page_size, flags = GUEST_MEMFD_FLAG_MMAP |
						 GUEST_MEMFD_FLAG_INIT_SHARED;
	struct kvm_vcpu *vcpu;
	struct kvm_vm *vm;
	u64 *mem, sum = 0;
	int fd, i;

	if (!pft_can_count_faults())
		SKIP(return, NO_FAULT_COUNT);
	vm = pft_create_vm_without_slot(VM_SHAPE_DEFAULT, &vcpu, size);
	if ((vm_check_cap(vm, KVM_CAP_GUEST_MEMFD_FLAGS) & flags) != flags)
		SKIP(return, "no guest_memfd that can be mapped");

	fd = vm_create_guest_memfd(vm, size, flags);
	mem = kvm_mmap(size, PROT_READ | PROT_WRITE, MAP_SHARED, fd);
	for (i = 0; i < size; i += page_size) {
		mem[i / sizeof(*mem)] = i + 1;
		sum += i + 1;
	}
	vm_set_user_memory_region2(vm, TEST_SLOT, KVM_MEM_GUEST_MEMFD, TEST_GPA,
				   size, mem, fd, 0);

	pre_fault(vcpu, TEST_GPA, size, 0);
	pre_fault(vcpu, TEST_GPA, size, pft_write_flag());
	TEST_ASSERT_EQ(pft_touch(vcpu, 0, size, false), 0);
	TEST_ASSERT_EQ(pft_access(vcpu, 0, size, false), sum);
	TEST_ASSERT_EQ(pft_touch(vcpu, 0, size, true), 0);

	/* What is gone is allocated again. */
	kvm_fallocate(fd, FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE, 0, size / 2);
	pre_fault(vcpu, TEST_GPA, size, 0);
	TEST_ASSERT_EQ(pft_touch(vcpu, 0, size, false), 0);
	TEST_ASSERT_EQ(mem[0], 0);
	TEST_ASSERT_EQ(mem[size / 2 / sizeof(*mem)], TEST_GVA + size / 2);

	kvm_munmap(mem, size);
	kvm_close(fd);
	kvm_vm_free(vm);
}

#ifdef __x86_64__
/* The guest wrote all pages, of which the host sees those that are shared. */
static void check_shared(struct kvm_vm *vm, u64 offset, u64 size, bool shared)
{
	u64 end = offset + size;

	for (; offset < end; offset += page_size)
		TEST_ASSERT_EQ(*(u64 *)(pft_hva(vm) + offset),
			       shared ? TEST_GVA + offset : offset);
}

/* A range of which one half is private memory, and the other shared. */
PRE_FAULT_TEST(private_memory)
{
	const struct vm_shape shape = {
		.mode = VM_MODE_DEFAULT, .type = KVM_X86_SW_PROTECTED_VM,
	};
	const u64 size = 64 * page_size;
	struct kvm_vcpu *vcpu;
	struct kvm_vm *vm;

	if (!(kvm_check_cap(KVM_CAP_VM_TYPES) & BIT(KVM_X86_SW_PROTECTED_VM)))
		SKIP(return, "no KVM_X86_SW_PROTECTED_VM");
	vm = pft_create_vm_without_slot(shape, &vcpu, size);
	pft_add_slot(vm, VM_MEM_SRC_ANONYMOUS, TEST_GPA, TEST_SLOT, size, KVM_MEM_GUEST_MEMFD);
	vm_mem_set_private(vm, TEST_GPA, size / 2);
	pft_populate(pft_hva(vm), size);

	pre_fault(vcpu, TEST_GPA, size, 0);
	TEST_ASSERT_EQ(pft_touch(vcpu, 0, size, false), 0);
	TEST_ASSERT_EQ(pft_touch(vcpu, 0, size, true), 0);
	check_shared(vm, 0, size / 2, false);
	check_shared(vm, size / 2, size / 2, true);

	/* Conversions unmap, and a prefault maps what the memory is now. */
	pft_populate(pft_hva(vm), size);
	vm_mem_set_shared(vm, TEST_GPA, size / 2);
	vm_mem_set_private(vm, TEST_GPA + size / 2, size / 2);
	pre_fault(vcpu, TEST_GPA, size, pft_write_flag());
	TEST_ASSERT_EQ(pft_touch(vcpu, 0, size, true), 0);
	check_shared(vm, 0, size / 2, true);
	check_shared(vm, size / 2, size / 2, false);

	kvm_vm_free(vm);
}
#endif

/* Without the capability, e.g. on x86 with shadow paging, the ioctl fails. */
static void check_unsupported(void)
{
	struct kvm_pre_fault_memory range = { .size = page_size };
	struct kvm_vcpu *vcpu;
	struct kvm_vm *vm = vm_create_with_one_vcpu(&vcpu, pft_guest_code);
	int ret = __pre_fault(vcpu, &range);

	TEST_ASSERT(ret == -1 && (errno == EOPNOTSUPP || errno == ENOTTY || errno == EINVAL),
		    "Wanted the ioctl to be unsupported, got %d errno %d", ret, errno);
	kvm_vm_free(vm);
}

int main(int argc, char **argv)
{
	page_size = getpagesize();

	if (!kvm_has_cap(KVM_CAP_PRE_FAULT_MEMORY))
		check_unsupported();
	TEST_REQUIRE(kvm_has_cap(KVM_CAP_PRE_FAULT_MEMORY));

	return test_harness_run(argc, argv);
}
