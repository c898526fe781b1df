// SPDX-License-Identifier: GPL-2.0-only
/*
 * Test KVM_MEM_USERFAULT of memslots that are bound to a guest_memfd.
 *
 * Nothing but that flag of such a memslot can be changed.  A changed memslot is
 * a new one for KVM, i.e. the file has to be bound to that, whatever faults,
 * punches a hole or closes the file in the meantime.
 */
#include <fcntl.h>
#include <linux/falloc.h>
#include <linux/sizes.h>
#include <pthread.h>
#include <sys/mman.h>
#include <unistd.h>

#include "kvm_syscalls.h"
#include "kvm_util.h"
#include "processor.h"
#include "test_util.h"
#include "ucall_common.h"
#include "userfault_util.h"

#define GMEM_SLOT	10
#define OTHER_SLOT	11
#define GMEM_GPA	((gpa_t)SZ_4G)
#define OTHER_GPA	(2 * GMEM_GPA)
#define GMEM_GVA	0xc0000000ul

/* Of several sizes of what an xarray has entries for. */
#define NR_PAGES	67
#define NR_VCPUS	2
#define NR_TOGGLES	200

#define GMEM_FLAGS	(GUEST_MEMFD_FLAG_MMAP | GUEST_MEMFD_FLAG_INIT_SHARED)

static size_t page_size;
static size_t gmem_size;

/* Set by userspace for the guest. */
static bool stop;
static u64 stride;

struct gmem_vm {
	struct kvm_vm *vm;
	struct kvm_vcpu *vcpus[NR_VCPUS];
	int fd;
	void *mem;
	u64 *bitmap;
	struct kvm_userspace_memory_region2 region;
};

/* Access all pages until told to stop, and once more to tell what's there. */
static void guest_code(u64 id)
{
	u64 sum, page;

	do {
		for (page = 0; page < NR_PAGES; page++) {
			u64 *p = (u64 *)(GMEM_GVA + page * stride);

			if ((page + id) % 2)
				WRITE_ONCE(p[1], page);
			else
				READ_ONCE(p[1]);
		}
	} while (!READ_ONCE(stop));

	for (;;) {
		for (page = 0, sum = 0; page < NR_PAGES; page++)
			sum += READ_ONCE(*(u64 *)(GMEM_GVA + page * stride));
		GUEST_SYNC1(sum);
	}
}

static void fill(struct gmem_vm *g, u64 page)
{
	WRITE_ONCE(*(u64 *)(g->mem + page * page_size), 1 + page);
}

static const u64 sum_of_all = NR_PAGES * (NR_PAGES + 1) / 2;

static int __set_region(struct gmem_vm *g, struct kvm_userspace_memory_region2 *region)
{
	return __vm_ioctl(g->vm, KVM_SET_USER_MEMORY_REGION2, region);
}

static void set_region(struct gmem_vm *g, u32 flags)
{
	u32 from = g->region.flags;
	int ret;

	g->region.flags = flags;
	ret = __set_region(g, &g->region);
	TEST_ASSERT(!ret, "Flags 0x%x to 0x%x failed, errno %d", from, flags, errno);
}

static void enable(struct gmem_vm *g)
{
	set_region(g, KVM_MEM_GUEST_MEMFD | KVM_MEM_USERFAULT);
}

static void disable(struct gmem_vm *g)
{
	set_region(g, KVM_MEM_GUEST_MEMFD);
}

static void create_vm(struct gmem_vm *g)
{
	int i;

	g->vm = vm_create_with_vcpus(NR_VCPUS, guest_code, g->vcpus);
	for (i = 0; i < NR_VCPUS; i++)
		vcpu_args_set(g->vcpus[i], 1, i);
	virt_map(g->vm, GMEM_GVA, GMEM_GPA, gmem_size / g->vm->page_size);
	stop = true;
	stride = page_size;
	sync_global_to_guest(g->vm, stop);
	sync_global_to_guest(g->vm, stride);

	/* The second half is for another memslot. */
	g->fd = vm_create_guest_memfd(g->vm, 2 * gmem_size, GMEM_FLAGS);
	g->mem = kvm_mmap(gmem_size, PROT_READ | PROT_WRITE, MAP_SHARED, g->fd);
	for (i = 0; i < NR_PAGES; i++)
		fill(g, i);

	g->bitmap = userfault_alloc_bitmap(NR_PAGES);
	g->region = (struct kvm_userspace_memory_region2) {
		.slot = GMEM_SLOT,
		.guest_phys_addr = GMEM_GPA,
		.memory_size = gmem_size,
		.guest_memfd = g->fd,
		.userfault_bitmap = (uintptr_t)g->bitmap,
	};
	set_region(g, KVM_MEM_GUEST_MEMFD);
}

static void free_vm(struct gmem_vm *g)
{
	kvm_vm_free(g->vm);
	if (g->mem)
		kvm_munmap(g->mem, gmem_size);
	if (g->fd >= 0)
		close(g->fd);
	userfault_free_bitmap(g->bitmap, NR_PAGES);
}

/* Run a vCPU until it has accessed all.  Returns how often it exited meanwhile. */
static u64 run(struct gmem_vm *g, struct kvm_vcpu *vcpu, u64 *sum)
{
	struct ucall uc;
	u64 exits = 0;

	for (;;) {
		int ret = _vcpu_run(vcpu), err = errno;
		u64 page;

		if (!is_userfault_exit(vcpu, ret, err)) {
			TEST_ASSERT(!ret, KVM_IOCTL_ERROR(KVM_RUN, ret));
			TEST_ASSERT_KVM_EXIT_REASON(vcpu, UCALL_EXIT_REASON);
			break;
		}
		page = (vcpu->run->memory_fault.gpa - GMEM_GPA) / page_size;
		fill(g, page);
		userfault_clear(g->bitmap, page, 1);
		exits++;
	}
	TEST_ASSERT_EQ(get_ucall(vcpu, &uc), UCALL_SYNC);
	*sum = uc.args[0];
	return exits;
}

static void assert_works(struct gmem_vm *g, const char *msg)
{
	u64 sum;

	run(g, g->vcpus[0], &sum);
	TEST_ASSERT(sum == sum_of_all, "The guest sees other memory after: %s", msg);
}

static void assert_refused(struct gmem_vm *g, struct kvm_userspace_memory_region2 *bad,
			   const char *msg)
{
	int ret = __set_region(g, bad);

	TEST_ASSERT(ret == -1 && errno == EINVAL, "%s should fail with EINVAL, got %d errno %d",
		    msg, ret, errno);
	assert_works(g, msg);
}

/* Toggling the flag, and anything else with it or in its place. */
static void test_refused(struct gmem_vm *g, u32 from)
{
	const u32 gmem = KVM_MEM_GUEST_MEMFD, to = from ^ KVM_MEM_USERFAULT;
	struct kvm_userspace_memory_region2 bad;
	int memfd = kvm_memfd_alloc(2 * gmem_size, false);
	int other = vm_create_guest_memfd(g->vm, 2 * gmem_size, GMEM_FLAGS);
	void *mem = kvm_mmap(gmem_size, PROT_READ | PROT_WRITE,
			     MAP_PRIVATE | MAP_ANONYMOUS, -1);

	if (g->region.flags != from)
		set_region(g, from);

#define assert_refused_with(field, value)			\
do {								\
	bad = g->region;					\
	bad.flags = to;						\
	bad.field = value;					\
	assert_refused(g, &bad, #field " = " #value);		\
	bad.flags = from;					\
	assert_refused(g, &bad, #field " = " #value);		\
} while (0)

	assert_refused_with(guest_memfd, other);
	assert_refused_with(guest_memfd, memfd);
	assert_refused_with(guest_memfd, g->vm->fd);
	assert_refused_with(guest_memfd, -1);
	assert_refused_with(guest_memfd, 1000000);
	assert_refused_with(guest_memfd_offset, page_size);
	assert_refused_with(guest_memfd_offset, page_size / 2);
	assert_refused_with(guest_memfd_offset, gmem_size);
	assert_refused_with(guest_memfd_offset, -page_size);
	assert_refused_with(guest_phys_addr, OTHER_GPA);
	assert_refused_with(guest_phys_addr, GMEM_GPA + page_size);
	assert_refused_with(memory_size, gmem_size - page_size);
	assert_refused_with(memory_size, gmem_size + page_size);
	assert_refused_with(userspace_addr, (uintptr_t)mem);
	assert_refused_with(flags, from);
	assert_refused_with(flags, to | KVM_MEM_LOG_DIRTY_PAGES);
	assert_refused_with(flags, to | KVM_MEM_READONLY);
	assert_refused_with(flags, to & ~gmem);
	assert_refused_with(flags, 0);
	if (to & KVM_MEM_USERFAULT)
		assert_refused_with(userfault_bitmap, 0);
	if (to & KVM_MEM_USERFAULT)
		assert_refused_with(userfault_bitmap, (uintptr_t)g->bitmap + 1);

	kvm_munmap(mem, gmem_size);
	close(other);
	close(memfd);
}

static void test_changes(void)
{
	const u32 gmem = KVM_MEM_GUEST_MEMFD;
	struct gmem_vm g;

	pr_info("Testing changes of a memslot that is bound\n");
	create_vm(&g);
	test_refused(&g, gmem);
	test_refused(&g, gmem | KVM_MEM_USERFAULT);

	/* The file is what matters, not the number of its descriptor. */
	g.region.guest_memfd = kvm_dup(g.fd);
	disable(&g);
	enable(&g);
	assert_works(&g, "toggling with another descriptor");
	close(g.region.guest_memfd);
	free_vm(&g);
}

static void punch_hole(struct gmem_vm *g, u64 page, u64 nr)
{
	kvm_fallocate(g->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, page * page_size,
		      nr * page_size);
}

/* A hole takes what is mapped by the memslot that is there after a toggle. */
static void test_punch_hole(void)
{
	struct gmem_vm g;
	u64 sum, page;
	int i;

	pr_info("Testing holes in a file whose memslot has been toggled\n");
	create_vm(&g);
	for (i = 0; i < 6; i++) {
		if (i % 2)
			disable(&g);
		else
			enable(&g);
		assert_works(&g, "toggling");
		punch_hole(&g, 0, NR_PAGES / 2);
		TEST_ASSERT_EQ(run(&g, g.vcpus[0], &sum), 0);
		TEST_ASSERT_EQ(sum, sum_of_all - (NR_PAGES / 2) * (NR_PAGES / 2 + 1) / 2);

		/* A hole is an invalidation, i.e. a bit that was set before counts. */
		userfault_set(g.bitmap, 0, NR_PAGES);
		punch_hole(&g, 0, NR_PAGES);
		TEST_ASSERT_EQ(run(&g, g.vcpus[0], &sum), i % 2 ? 0 : NR_PAGES);
		TEST_ASSERT_EQ(sum, i % 2 ? 0 : sum_of_all);

		userfault_clear(g.bitmap, 0, NR_PAGES);
		punch_hole(&g, 0, NR_PAGES);
		for (page = 0; page < NR_PAGES; page++)
			fill(&g, page);
	}
	free_vm(&g);
}

struct worker {
	struct gmem_vm *g;
	struct kvm_vcpu *vcpu;
	pthread_t thread;
};

static void *run_worker(void *arg)
{
	struct worker *w = arg;
	u64 sum;

	run(w->g, w->vcpu, &sum);
	return NULL;
}

static void *punch_holes(void *arg)
{
	struct worker *w = arg;
	u64 page;

	for (page = 0; !READ_ONCE(stop); page = (page + 7) % NR_PAGES) {
		punch_hole(w->g, page, 1);
		usleep(500);
	}
	return NULL;
}

/* Toggle the flag while vCPUs fault and, maybe, holes are punched. */
static void test_toggle_under_load(bool holes)
{
	struct worker workers[NR_VCPUS + 1];
	struct gmem_vm g;
	u64 exits, sum;
	int i;

	pr_info("Testing toggles while vCPUs fault%s\n", holes ? " and holes are punched" : "");
	create_vm(&g);
	stop = false;
	sync_global_to_guest(g.vm, stop);
	for (i = 0; i < NR_VCPUS + holes; i++) {
		workers[i].g = &g;
		workers[i].vcpu = i < NR_VCPUS ? g.vcpus[i] : NULL;
		kvm_pthread_create(&workers[i].thread, NULL,
				   i < NR_VCPUS ? run_worker : punch_holes,
				   &workers[i]);
	}

	for (i = 0; i < NR_TOGGLES; i++) {
		userfault_set(g.bitmap, 0, NR_PAGES);
		enable(&g);
		usleep(i % 4 * 500);
		disable(&g);
		/* Have the vCPUs fault without the flag, too. */
		if (i % 8 == 0)
			punch_hole(&g, 0, NR_PAGES);
		usleep(i % 3 * 500);
	}

	stop = true;
	sync_global_to_guest(g.vm, stop);
	for (i = 0; i < NR_VCPUS + holes; i++)
		kvm_pthread_join(workers[i].thread, NULL);

	for (i = 0, exits = 0; i < NR_VCPUS; i++)
		exits += vcpu_get_stat(g.vcpus[i], userfault_exits);
	TEST_ASSERT(exits > NR_PAGES, "Only %lu exits", exits);

	punch_hole(&g, 0, NR_PAGES);
	run(&g, g.vcpus[0], &sum);
	TEST_ASSERT_EQ(sum, 0);
	userfault_set(g.bitmap, 0, NR_PAGES);
	enable(&g);
	assert_works(&g, "many toggles");
	free_vm(&g);
}

static void assert_no_memory(struct gmem_vm *g)
{
	struct kvm_vcpu *vcpu = g->vcpus[0];
	int ret = _vcpu_run(vcpu);

	TEST_ASSERT(ret == -1 && errno == EFAULT, "Wanted EFAULT, got %d errno %d", ret, errno);
	TEST_ASSERT_KVM_EXIT_REASON(vcpu, KVM_EXIT_MEMORY_FAULT);
	TEST_ASSERT_EQ(vcpu->run->memory_fault.flags, 0);
	TEST_ASSERT_EQ(vcpu->run->memory_fault.gpa, GMEM_GPA);
	TEST_ASSERT_EQ(vcpu->run->memory_fault.size, page_size);
}

/* The file is closed: what's missing exits, what isn't can't be had any more. */
static void test_closed_file(bool on)
{
	struct kvm_userspace_memory_region2 region;
	struct gmem_vm g;
	int ret;

	pr_info("Testing a file that is closed while userfault is %s\n", on ? "on" : "off");
	create_vm(&g);
	enable(&g);
	assert_works(&g, "enabling");
	if (!on)
		disable(&g);

	kvm_munmap(g.mem, gmem_size);
	g.mem = NULL;
	close(g.fd);

	userfault_set(g.bitmap, 0, 1);
	if (on) {
		vcpu_run_to_userfault(g.vcpus[0], GMEM_GPA);
		userfault_clear(g.bitmap, 0, 1);
	}
	assert_no_memory(&g);

	region = g.region;
	region.flags ^= KVM_MEM_USERFAULT;
	ret = __set_region(&g, &region);
	TEST_ASSERT(ret == -1 && errno == EINVAL, "Wanted EINVAL, got %d errno %d", ret, errno);
	region.guest_memfd = -1;
	ret = __set_region(&g, &region);
	TEST_ASSERT(ret == -1 && errno == EINVAL, "Wanted EINVAL, got %d errno %d", ret, errno);
	assert_no_memory(&g);

	g.fd = -1;
	g.region.memory_size = 0;
	set_region(&g, 0);
	free_vm(&g);
}

/* A memslot that was toggled gives back its part of the file, and no other. */
static void test_delete(void)
{
	struct kvm_userspace_memory_region2 other;
	struct gmem_vm g;
	u64 page;
	int i;

	pr_info("Testing deletion of memslots that have been toggled\n");
	create_vm(&g);
	other = g.region;
	other.slot = OTHER_SLOT;
	other.guest_phys_addr = OTHER_GPA;
	other.guest_memfd_offset = gmem_size;
	other.userfault_bitmap = 0;
	vm_ioctl(g.vm, KVM_SET_USER_MEMORY_REGION2, &other);

	for (i = 0; i < 4; i++) {
		enable(&g);
		assert_works(&g, "enabling");
		if (i % 2)
			disable(&g);

		/* Bound still, as is the other one's. */
		other.slot = OTHER_SLOT + 1;
		other.guest_phys_addr = OTHER_GPA + gmem_size;
		for (page = 0; page < 2 * NR_PAGES; page += NR_PAGES / 2) {
			other.guest_memfd_offset = page * page_size;
			other.memory_size = page_size;
			TEST_ASSERT(__set_region(&g, &other) == -1 && errno == EEXIST,
				    "Page %lu isn't bound, errno %d", page, errno);
		}

		g.region.memory_size = 0;
		set_region(&g, 0);
		g.region.memory_size = gmem_size;
		enable(&g);
		assert_works(&g, "creating it again");
		disable(&g);
	}
	free_vm(&g);
}

/* Have slab allocations fail that may sleep, too, and tell of it in no log. */
static bool prepare_failures(void)
{
	static const char * const settings[][2] = {
		{ "/sys/kernel/debug/failslab/verbose", "0" },
		{ "/sys/kernel/debug/failslab/ignore-gfp-wait", "N" },
	};
	int i, fd;

	for (i = 0; i < ARRAY_SIZE(settings); i++) {
		fd = open(settings[i][0], O_WRONLY);
		if (fd < 0)
			return false;
		TEST_ASSERT(write(fd, settings[i][1], 1) == 1, "Write to %s failed, errno %d",
			    settings[i][0], errno);
		close(fd);
	}
	return true;
}

/* Try to toggle the flag, with the @nth allocation failing.  False if it has fewer. */
static bool toggle_with_failure(struct gmem_vm *g, int fail_nth, int nth, int *nr_failed)
{
	struct kvm_userspace_memory_region2 region = g->region;
	char text[16] = {};
	int ret, err;

	region.flags ^= KVM_MEM_USERFAULT;
	snprintf(text, sizeof(text), "%d", nth);
	TEST_ASSERT(pwrite(fail_nth, text, strlen(text), 0) > 0, "Can't ask for a failure");
	ret = __set_region(g, &region);
	err = errno;
	memset(text, 0, sizeof(text));
	TEST_ASSERT(pread(fail_nth, text, sizeof(text) - 1, 0) > 0, "Can't tell if it failed");
	TEST_ASSERT(pwrite(fail_nth, "0", 1, 0) == 1, "Can't end failures");

	TEST_ASSERT(!ret || err == ENOMEM, "Toggling failed, errno %d", err);
	if (!ret)
		g->region.flags = region.flags;
	else
		++*nr_failed;

	/* Whether it's set or not, the file is bound to what is the memslot now. */
	userfault_set(g->bitmap, 0, NR_PAGES);
	punch_hole(g, 0, NR_PAGES);
	if (!(g->region.flags & KVM_MEM_USERFAULT)) {
		u64 page, sum;

		TEST_ASSERT_EQ(run(g, g->vcpus[0], &sum), 0);
		TEST_ASSERT_EQ(sum, 0);
		for (page = 0; page < NR_PAGES; page++)
			fill(g, page);
	}
	assert_works(g, "toggling while allocations fail");
	return atoi(text) == 0;
}

/* Out of memory, toggling fails or it doesn't, and nothing is lost. */
static void test_failed_allocations(void)
{
	int fail_nth = open("/proc/thread-self/fail-nth", O_RDWR);
	int nth, nr_failed = 0, i;
	struct gmem_vm g;

	if (fail_nth < 0 || !prepare_failures()) {
		pr_info("Skipping failures, which need CONFIG_FAILSLAB and debugfs\n");
		return;
	}
	pr_info("Testing toggles with each allocation failing\n");
	create_vm(&g);
	for (i = 0; i < 2; i++) {
		u32 from = g.region.flags;

		for (nth = 1; toggle_with_failure(&g, fail_nth, nth, &nr_failed); nth++) {
			if (g.region.flags != from)
				set_region(&g, from);
			TEST_ASSERT(nth < 1000, "Too many allocations");
		}
	}
	pr_info("%d toggles failed\n", nr_failed);
	TEST_ASSERT(nr_failed, "No failure made a toggle fail");
	close(fail_nth);
	free_vm(&g);
}

int main(void)
{
	struct kvm_vm *vm;

	TEST_REQUIRE(kvm_has_cap(KVM_CAP_GUEST_MEMFD));
	TEST_REQUIRE(kvm_has_cap(KVM_CAP_USERFAULT));

	vm = vm_create_barebones();
	TEST_REQUIRE((vm_check_cap(vm, KVM_CAP_GUEST_MEMFD_FLAGS) & GMEM_FLAGS) == GMEM_FLAGS);
	kvm_vm_free(vm);

	page_size = getpagesize();
	gmem_size = NR_PAGES * page_size;

	test_changes();
	test_punch_hole();
	test_closed_file(false);
	test_closed_file(true);
	test_delete();
	test_failed_allocations();
	test_toggle_under_load(false);
	test_toggle_under_load(true);

	return 0;
}
