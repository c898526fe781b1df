// SPDX-License-Identifier: GPL-2.0-only
/*
 * pre_fault_vcpu_test - KVM_PRE_FAULT_MEMORY and the vCPU that it's called on
 *
 * The vCPU lends its memory caches to the ioctl and nothing else.  Verify that
 * neither the vCPU's last exit steers what is prefaulted, nor the prefault
 * changes anything that userspace or the guest can see of the vCPU, whichever
 * exit is pending, and whether or not the prefault succeeds.
 */
#include <linux/sizes.h>
#include <linux/userfaultfd.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#include "kvm_util.h"
#include "processor.h"
#include "test_util.h"
#include "ucall.h"

/* Guest virtual and physical addresses are identical.  No slot is at MMIO. */
#define DATA_GPA		0x100000000UL
#define RO_GPA			0x110000000UL
#define EXEC_GPA		0x120000000UL
#define UFFD_GPA		0x130000000UL
#define MMIO_GPA		0x140000000UL

enum {
	DATA_SLOT = 10,
	RO_SLOT,
	EXEC_SLOT,
	UFFD_SLOT,
};

/* Enough for faults to stand out from exits for interrupts. */
#define DATA_PAGES		128UL
#define EXEC_PAGES		16UL

#define INSN_RET		0xd65f03c0U
#define INSN_MOVZ_X0(imm)	(0xd2800000U | (imm) << 5)

#define MMIO_READ_DATA		0x8001
#define MMIO_WRITE_DATA		0xa55a

/* The larger of the host's and the guest's page sizes. */
static size_t psize;

/*
 * The data slot is a private mapping of a file, data_file is a shared one: they
 * differ in those pages for which CoW is broken.
 */
struct test_vm {
	struct kvm_vm *vm;
	struct kvm_vcpu *vcpu;
	u64 *data;
	u64 *data_file;
	u64 *ro;
	u32 *exec;
	void *uffd_mem;
	int uffd;
};

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

static bool has_write_flag(void)
{
	return kvm_check_cap(KVM_CAP_PRE_FAULT_MEMORY) & KVM_PRE_FAULT_FLAG_WRITE;
}

static void add_slot(struct kvm_vm *vm, u32 slot, u32 flags, u64 gpa, u64 size,
		     void *hva)
{
	vm_set_user_memory_region(vm, slot, flags, gpa, size, hva);
	virt_map(vm, gpa, gpa, size / vm->page_size);
}

static int open_uffd(void *mem, size_t size)
{
	struct uffdio_register reg = {
		.range = { (u64)mem, size },
		.mode = UFFDIO_REGISTER_MODE_MISSING,
	};
	struct uffdio_api api = { .api = UFFD_API };
	int fd = syscall(__NR_userfaultfd, O_CLOEXEC | O_NONBLOCK);

	if (fd < 0)
		return -1;

	TEST_ASSERT(!ioctl(fd, UFFDIO_API, &api), "UFFDIO_API failed");
	TEST_ASSERT(!ioctl(fd, UFFDIO_REGISTER, &reg), "UFFDIO_REGISTER failed");
	return fd;
}

static struct test_vm *create_vm(void *guest_code)
{
	struct test_vm *t = calloc(1, sizeof(*t));
	size_t size = DATA_PAGES * psize;
	int fd;

	TEST_ASSERT(t, "Out of memory");
	t->vm = vm_create_with_one_vcpu(&t->vcpu, guest_code);

	fd = kvm_memfd_alloc(size, false);
	t->data_file = kvm_mmap(size, PROT_READ | PROT_WRITE, MAP_SHARED, fd);
	t->data = kvm_mmap(size, PROT_READ | PROT_WRITE, MAP_PRIVATE, fd);
	kvm_close(fd);
	add_slot(t->vm, DATA_SLOT, 0, DATA_GPA, size, t->data);

	t->ro = kvm_mmap(psize, PROT_READ | PROT_WRITE,
			 MAP_PRIVATE | MAP_ANONYMOUS, -1);
	add_slot(t->vm, RO_SLOT, KVM_MEM_READONLY, RO_GPA, psize, t->ro);

	t->exec = kvm_mmap(EXEC_PAGES * psize, PROT_READ | PROT_WRITE,
			   MAP_PRIVATE | MAP_ANONYMOUS, -1);
	add_slot(t->vm, EXEC_SLOT, 0, EXEC_GPA, EXEC_PAGES * psize, t->exec);

	t->uffd_mem = kvm_mmap(psize, PROT_READ | PROT_WRITE,
			       MAP_PRIVATE | MAP_ANONYMOUS, -1);
	t->uffd = open_uffd(t->uffd_mem, psize);
	add_slot(t->vm, UFFD_SLOT, 0, UFFD_GPA, psize, t->uffd_mem);

	virt_map(t->vm, MMIO_GPA, MMIO_GPA, psize / t->vm->page_size);
	vcpu_args_set(t->vcpu, 1, psize);
	return t;
}

static void free_vm(struct test_vm *t)
{
	kvm_vm_free(t->vm);
	if (t->uffd >= 0)
		close(t->uffd);
	kvm_munmap(t->data_file, DATA_PAGES * psize);
	kvm_munmap(t->data, DATA_PAGES * psize);
	kvm_munmap(t->ro, psize);
	kvm_munmap(t->exec, EXEC_PAGES * psize);
	kvm_munmap(t->uffd_mem, psize);
	free(t);
}

static u64 run_to_sync(struct kvm_vcpu *vcpu)
{
	struct ucall uc;

	vcpu_run(vcpu);
	switch (get_ucall(vcpu, &uc)) {
	case UCALL_SYNC:
		return uc.args[1];
	case UCALL_ABORT:
		REPORT_GUEST_ASSERT(uc);
	default:
		TEST_FAIL("Unexpected exit: %s, ucall %lu",
			  exit_reason_str(vcpu->run->exit_reason), uc.cmd);
	}
	return 0;
}

/* Start over with no page of the data slot mapped, and none of them private. */
static void drop_data(struct test_vm *t)
{
	TEST_ASSERT(!madvise(t->data, DATA_PAGES * psize, MADV_DONTNEED),
		    "MADV_DONTNEED failed");
}

/*
 * What userspace can see of a vCPU.
 */
struct vcpu_state {
	void *run;
	size_t run_size;
	struct kvm_vcpu_events events;
	u64 core[64];
	int nr_core;
};

static bool is_core_u64(u64 id)
{
	return (id & KVM_REG_ARM_COPROC_MASK) == KVM_REG_ARM_CORE &&
	       (id & KVM_REG_SIZE_MASK) == KVM_REG_SIZE_U64;
}

static void save_state(struct kvm_vcpu *vcpu, struct vcpu_state *state)
{
	struct kvm_reg_list *list = vcpu_get_reg_list(vcpu);
	int i;

	memset(state, 0, sizeof(*state));
	state->run_size = __kvm_ioctl(vcpu->vm->kvm_fd, KVM_GET_VCPU_MMAP_SIZE, NULL);
	state->run = malloc(state->run_size);
	TEST_ASSERT(state->run, "Out of memory");
	memcpy(state->run, vcpu->run, state->run_size);
	vcpu_events_get(vcpu, &state->events);

	for (i = 0; i < list->n; i++) {
		if (!is_core_u64(list->reg[i]))
			continue;
		TEST_ASSERT(state->nr_core < ARRAY_SIZE(state->core), "More core registers");
		state->core[state->nr_core++] = vcpu_get_reg(vcpu, list->reg[i]);
	}
	TEST_ASSERT(state->nr_core > 31, "No core registers");
	free(list);
}

static void free_state(struct vcpu_state *state)
{
	free(state->run);
}

static void assert_same_state(struct vcpu_state *a, struct vcpu_state *b,
			      const char *name)
{
	size_t i;

	for (i = 0; i < a->run_size; i++)
		TEST_ASSERT(((u8 *)a->run)[i] == ((u8 *)b->run)[i],
			    "%s: byte 0x%lx of kvm_run is 0x%x, was 0x%x", name, i,
			    ((u8 *)b->run)[i], ((u8 *)a->run)[i]);
	for (i = 0; i < a->nr_core; i++)
		TEST_ASSERT(a->core[i] == b->core[i],
			    "%s: core register %lu is 0x%lx, was 0x%lx", name, i,
			    b->core[i], a->core[i]);
	TEST_ASSERT(!memcmp(&a->events, &b->events, sizeof(a->events)),
		    "%s: the vCPU's pending events changed", name);
}

/*
 * Prefaults to be made while an exit is pending.
 */
struct prefault {
	const char *name;
	u64 gpa;
	u64 flags;
	/* In pages. */
	u64 offset, pages, left;
	int err;
	/* Kick the ioctl out of waiting for the page. */
	bool interrupt;
};

static const struct prefault prefaults[] = {
	{ "read",		DATA_GPA, .pages = DATA_PAGES },
	{ "write",		DATA_GPA, KVM_PRE_FAULT_FLAG_WRITE, .pages = DATA_PAGES },
	{ "read into a hole",	DATA_GPA, .offset = DATA_PAGES - 1, .pages = 2, .left = 1 },
	{ "hole",		MMIO_GPA, .pages = 1, .left = 1, .err = ENOENT },
	{ "interrupted",	UFFD_GPA, .pages = 1, .left = 1, .err = EINTR,
				.interrupt = true },
	{ "write to read-only",	RO_GPA, KVM_PRE_FAULT_FLAG_WRITE, .pages = 1, .left = 1,
				.err = EACCES },
	{ "unknown flag",	DATA_GPA, BIT_ULL(63), .pages = 1, .left = 1, .err = EINVAL },
	{ "nothing",		DATA_GPA, .pages = 0, .left = 0, .err = EINVAL },
};

static void nop_handler(int sig)
{
}

struct kicker {
	pthread_t target;
	int uffd;
	bool done;
};

/* Wait for the page to be asked for, and signal until the ioctl has returned. */
static void *kick(void *arg)
{
	struct kicker *kicker = arg;
	struct pollfd pfd = { .fd = kicker->uffd, .events = POLLIN };
	struct uffd_msg msg;

	TEST_ASSERT(poll(&pfd, 1, -1) == 1, "poll() failed");
	TEST_ASSERT(read(kicker->uffd, &msg, sizeof(msg)) == sizeof(msg),
		    "No message from userfaultfd");
	while (!READ_ONCE(kicker->done)) {
		pthread_kill(kicker->target, SIGUSR1);
		usleep(1000);
	}
	return NULL;
}

static int pre_fault_interrupted(struct test_vm *t, struct kvm_pre_fault_memory *range)
{
	struct sigaction action = { .sa_handler = nop_handler };
	struct kicker kicker = { .target = pthread_self(), .uffd = t->uffd };
	pthread_t thread;
	int ret;

	sigaction(SIGUSR1, &action, NULL);
	kvm_pthread_create(&thread, NULL, kick, &kicker);
	ret = __pre_fault(t->vcpu, range);
	WRITE_ONCE(kicker.done, true);
	kvm_pthread_join(thread, NULL);
	return ret;
}

/* A read must leave the file's page in place, a write must have copied it. */
static void assert_cow(struct test_vm *t, const struct prefault *p)
{
	bool write = p->flags & KVM_PRE_FAULT_FLAG_WRITE;
	u64 i, *page;

	for (i = p->offset; i < p->offset + p->pages - p->left; i++) {
		page = t->data_file + i * psize / sizeof(u64);
		WRITE_ONCE(*page, *page + 1);
		TEST_ASSERT((t->data[i * psize / sizeof(u64)] == *page) == !write,
			    "%s: CoW of page %lu is%s broken", p->name, i,
			    write ? " not" : "");
	}
}

static void do_prefault(struct test_vm *t, const struct prefault *p)
{
	struct kvm_pre_fault_memory range = {
		.gpa = p->gpa + p->offset * psize,
		.size = p->pages * psize,
		.flags = p->flags,
	};
	int ret = p->interrupt ? pre_fault_interrupted(t, &range) :
				 __pre_fault(t->vcpu, &range);

	TEST_ASSERT(ret == -p->err, "%s: returned %d, expected %d", p->name, ret, -p->err);
	TEST_ASSERT(range.size == p->left * psize, "%s: 0x%llx bytes are left",
		    p->name, range.size);
	TEST_ASSERT(range.gpa == p->gpa + (p->offset + p->pages - p->left) * psize,
		    "%s: stopped at 0x%llx", p->name, range.gpa);
	if (p->gpa == DATA_GPA && !p->err)
		assert_cow(t, p);
}

static bool can_prefault(struct test_vm *t, const struct prefault *p)
{
	if (p->interrupt && t->uffd < 0)
		return false;

	return !(p->flags & KVM_PRE_FAULT_FLAG_WRITE) || has_write_flag();
}

/*
 * Exits, left pending while memory is prefaulted.  Each guest makes its access
 * and touches the data slot, over and over.  A sync before and after tells how
 * many exits the latter took, i.e. whether the memory was mapped.
 */
static void guest_touch(u64 page_size, u64 result)
{
	u64 i;

	GUEST_SYNC(result);
	for (i = 0; i < DATA_PAGES; i++)
		READ_ONCE(*(u64 *)(DATA_GPA + i * page_size));
	GUEST_SYNC(0);
}

/* The syndrome of this is far from that of a prefault: register, size, sign. */
static void guest_mmio_read(u64 page_size)
{
	u64 value;

	for (;;) {
		asm volatile("mov x21, #-1\n\t"
			     "ldrsh x21, [%1]\n\t"
			     "mov %0, x21"
			     : "=r" (value) : "r" (MMIO_GPA) : "x21", "memory");
		guest_touch(page_size, value);
	}
}

static void guest_mmio_write(u64 page_size)
{
	for (;;) {
		asm volatile("mov w22, %w0\n\t"
			     "strh w22, [%1]"
			     : : "r" (MMIO_WRITE_DATA), "r" (MMIO_GPA)
			     : "x22", "memory");
		guest_touch(page_size, 1);
	}
}

/* The page is mapped, i.e. the write is a permission fault. */
static void guest_ro_write(u64 page_size)
{
	for (;;) {
		READ_ONCE(*(u64 *)RO_GPA);
		WRITE_ONCE(*(u64 *)RO_GPA, MMIO_WRITE_DATA);
		guest_touch(page_size, 1);
	}
}

/* Likewise, but it is userspace's mapping that denies the write. */
static void guest_denied_write(u64 page_size)
{
	for (;;) {
		READ_ONCE(*(u64 *)EXEC_GPA);
		WRITE_ONCE(*(u64 *)EXEC_GPA, MMIO_WRITE_DATA);
		guest_touch(page_size, READ_ONCE(*(u64 *)EXEC_GPA));
	}
}

static void guest_denied_exec(u64 page_size)
{
	for (;;) {
		u64 (*function)(void) = (void *)EXEC_GPA;

		guest_touch(page_size, function());
	}
}

static void expect_mmio_read(struct test_vm *t)
{
	struct kvm_run *run = t->vcpu->run;

	vcpu_run(t->vcpu);
	TEST_ASSERT_KVM_EXIT_REASON(t->vcpu, KVM_EXIT_MMIO);
	TEST_ASSERT(!run->mmio.is_write && run->mmio.len == 2 &&
		    run->mmio.phys_addr == MMIO_GPA, "Unexpected MMIO access");
}

static void complete_mmio_read(struct test_vm *t)
{
	u16 data = MMIO_READ_DATA;

	memset(t->vcpu->run->mmio.data, 0, sizeof(t->vcpu->run->mmio.data));
	memcpy(t->vcpu->run->mmio.data, &data, sizeof(data));
}

static void expect_write(struct test_vm *t, u64 gpa, u32 len)
{
	struct kvm_run *run = t->vcpu->run;
	u64 data = 0;

	vcpu_run(t->vcpu);
	TEST_ASSERT_KVM_EXIT_REASON(t->vcpu, KVM_EXIT_MMIO);
	memcpy(&data, run->mmio.data, len);
	TEST_ASSERT(run->mmio.is_write && run->mmio.len == len &&
		    run->mmio.phys_addr == gpa && data == MMIO_WRITE_DATA,
		    "Unexpected MMIO access");
}

static void expect_mmio_write(struct test_vm *t)
{
	expect_write(t, MMIO_GPA, 2);
}

static void expect_ro_write(struct test_vm *t)
{
	expect_write(t, RO_GPA, 8);
}

static void complete_nothing(struct test_vm *t)
{
}

static void protect_exec(struct test_vm *t, int prot)
{
	TEST_ASSERT(!mprotect(t->exec, psize, prot), "mprotect() failed");
}

static void expect_efault(struct test_vm *t)
{
	int ret = _vcpu_run(t->vcpu);

	TEST_ASSERT(ret == -1 && errno == EFAULT,
		    "KVM_RUN returned %d (%d), exit %s", ret, errno,
		    exit_reason_str(t->vcpu->run->exit_reason));
}

static void expect_denied_write(struct test_vm *t)
{
	t->exec[0] = 0;
	protect_exec(t, PROT_READ);
	expect_efault(t);
}

static void expect_denied_exec(struct test_vm *t)
{
	t->exec[0] = INSN_MOVZ_X0(0x1234);
	t->exec[1] = INSN_RET;
	protect_exec(t, PROT_NONE);
	expect_efault(t);
}

static void complete_denied(struct test_vm *t)
{
	protect_exec(t, PROT_READ | PROT_WRITE);
}

struct pending_exit {
	const char *name;
	void (*guest_code)(u64 page_size);
	void (*expect)(struct test_vm *t);
	void (*complete)(struct test_vm *t);
	/* What the guest reports once its access completed. */
	u64 result;
};

static const struct pending_exit pending_exits[] = {
	{ "an MMIO read", guest_mmio_read, expect_mmio_read, complete_mmio_read,
	  (s64)(s16)MMIO_READ_DATA },
	{ "an MMIO write", guest_mmio_write, expect_mmio_write, complete_nothing, 1 },
	{ "a write to a read-only slot", guest_ro_write, expect_ro_write,
	  complete_nothing, 1 },
	{ "a write that userspace's mapping denies", guest_denied_write,
	  expect_denied_write, complete_denied, MMIO_WRITE_DATA },
	{ "an instruction fetch that userspace's mapping denies", guest_denied_exec,
	  expect_denied_exec, complete_denied, 0x1234 },
};

static void assert_touch_exits(struct kvm_vcpu *vcpu, bool mapped, const char *name)
{
	u64 exits = vcpu_get_stat(vcpu, exits);

	TEST_ASSERT_EQ(run_to_sync(vcpu), 0);
	exits = vcpu_get_stat(vcpu, exits) - exits;
	TEST_ASSERT((exits < DATA_PAGES / 2) == mapped,
		    "%s: the guest took %lu exits to touch %lu pages", name, exits,
		    DATA_PAGES);
}

static void test_one_prefault(struct test_vm *t, const struct pending_exit *e,
			      const struct prefault *p)
{
	struct vcpu_state before, after;
	u64 result;

	drop_data(t);
	e->expect(t);

	save_state(t->vcpu, &before);
	do_prefault(t, p);
	save_state(t->vcpu, &after);
	assert_same_state(&before, &after, p->name);
	free_state(&before);
	free_state(&after);

	e->complete(t);
	result = run_to_sync(t->vcpu);
	TEST_ASSERT(result == e->result, "%s: the guest got 0x%lx, expected 0x%lx",
		    p->name, result, e->result);
	assert_touch_exits(t->vcpu, !p->err && p->pages == DATA_PAGES, p->name);
}

static void test_pending_exit(const void *arg)
{
	const struct pending_exit *e = arg;
	struct test_vm *t = create_vm(e->guest_code);
	int i;

	for (i = 0; i < ARRAY_SIZE(prefaults); i++)
		if (can_prefault(t, &prefaults[i]))
			test_one_prefault(t, e, &prefaults[i]);

	free_vm(t);
	ksft_test_result_pass("Prefault while the last exit is %s\n", e->name);
}

/*
 * vCPUs that have not run yet.
 */
static void guest_touch_once(u64 page_size)
{
	guest_touch(page_size, 1);
	guest_touch(page_size, 1);
	GUEST_DONE();
}

static void test_first_run(const void *arg)
{
	u64 flags = has_write_flag() ? KVM_PRE_FAULT_FLAG_WRITE : 0;
	u64 half = DATA_PAGES / 2 * psize;
	struct test_vm *t = create_vm(guest_touch_once);

	pre_fault(t->vcpu, DATA_GPA, half, 0);
	pre_fault(t->vcpu, DATA_GPA + half, half, flags);
	TEST_ASSERT_EQ(run_to_sync(t->vcpu), 1);
	assert_touch_exits(t->vcpu, true, "first run");

	/* What a guest takes that isn't prefaulted for. */
	drop_data(t);
	TEST_ASSERT_EQ(run_to_sync(t->vcpu), 1);
	assert_touch_exits(t->vcpu, false, "second run");

	free_vm(t);
	ksft_test_result_pass("Prefault before the first KVM_RUN\n");
}

struct bare_vm {
	struct kvm_vm *vm;
	struct kvm_vcpu *vcpu;
	void *mem;
};

/* A VM with a page of memory, and a vCPU that isn't initialised. */
static struct bare_vm create_bare_vm(void)
{
	struct bare_vm b;

	b.mem = kvm_mmap(psize, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1);
	b.vm = vm_create_barebones();
	vm_set_user_memory_region(b.vm, DATA_SLOT, 0, DATA_GPA, psize, b.mem);
	b.vcpu = __vm_vcpu_add(b.vm, 0);
	return b;
}

static void free_bare_vm(struct bare_vm *b)
{
	kvm_vm_free(b->vm);
	kvm_munmap(b->mem, psize);
}

static void expect_error(struct kvm_vcpu *vcpu, int err)
{
	struct kvm_pre_fault_memory range = { .gpa = DATA_GPA, .size = psize };
	int ret = __pre_fault(vcpu, &range);

	TEST_ASSERT(ret == -err, "Prefault returned %d, expected %d", ret, -err);
	TEST_ASSERT(range.gpa == DATA_GPA && range.size == psize,
		    "A prefault that failed changed the range");
}

static void init_vcpu(struct bare_vm *b, int feature)
{
	struct kvm_vcpu_init init;

	vm_ioctl(b->vm, KVM_ARM_PREFERRED_TARGET, &init);
	if (feature >= 0)
		init.features[0] |= BIT(feature);
	vcpu_ioctl(b->vcpu, KVM_ARM_VCPU_INIT, &init);
}

static void test_uninitialized(const void *arg)
{
	struct bare_vm b = create_bare_vm();

	expect_error(b.vcpu, ENOEXEC);
	init_vcpu(&b, -1);
	pre_fault(b.vcpu, DATA_GPA, psize, 0);

	free_bare_vm(&b);
	ksft_test_result_pass("Prefault on a vCPU that's not initialised\n");
}

/*
 * Under pKVM the prefault has finalized the VM, so that it's too late for an
 * interrupt controller.  A VM that KVM gave up would fail every ioctl.
 */
static void test_vgic(const void *arg)
{
	struct bare_vm b = create_bare_vm();
	int fd;

	init_vcpu(&b, -1);
	pre_fault(b.vcpu, DATA_GPA, psize, 0);
	fd = __kvm_create_device(b.vm, KVM_DEV_TYPE_ARM_VGIC_V3);
	TEST_ASSERT(fd >= 0 || errno == EBUSY || errno == ENODEV,
		    "Creating a vGIC after a prefault failed, errno %d", errno);
	pre_fault(b.vcpu, DATA_GPA, psize, 0);

	if (fd >= 0)
		close(fd);
	free_bare_vm(&b);
	ksft_test_result_pass("Prefault before there's a vGIC: %s\n",
			      fd >= 0 ? "created" : strerror(errno));
}

static void test_unfinalized(const void *arg)
{
	int feature = KVM_ARM_VCPU_SVE;
	struct bare_vm b;

	if (!kvm_check_cap(KVM_CAP_ARM_SVE)) {
		ksft_test_result_skip("Prefault on a vCPU that's not finalised: no SVE\n");
		return;
	}

	b = create_bare_vm();
	init_vcpu(&b, KVM_ARM_VCPU_SVE);
	expect_error(b.vcpu, EPERM);
	vcpu_ioctl(b.vcpu, KVM_ARM_VCPU_FINALIZE, &feature);
	pre_fault(b.vcpu, DATA_GPA, psize, 0);

	free_bare_vm(&b);
	ksft_test_result_pass("Prefault on a vCPU that's not finalised\n");
}

/*
 * The library knows neither protected VMs nor how to run them: do without it.
 * Returns the VM with a page of memory, or -1 if there are no protected VMs.
 */
static int open_protected_vm(void *mem)
{
	struct kvm_userspace_memory_region region = {
		.slot = DATA_SLOT,
		.guest_phys_addr = DATA_GPA,
		.memory_size = psize,
		.userspace_addr = (u64)mem,
	};
	int kvm_fd = open_kvm_dev_path_or_exit();
	int fd = ioctl(kvm_fd, KVM_CREATE_VM, KVM_VM_TYPE_ARM_PROTECTED);

	kvm_close(kvm_fd);
	if (fd >= 0)
		TEST_ASSERT(!ioctl(fd, KVM_SET_USER_MEMORY_REGION, &region),
			    "KVM_SET_USER_MEMORY_REGION failed");
	return fd;
}

static void expect_protected_error(int vcpu_fd, int err)
{
	struct kvm_pre_fault_memory range = { .gpa = DATA_GPA, .size = psize };
	int ret = ioctl(vcpu_fd, KVM_PRE_FAULT_MEMORY, &range);

	TEST_ASSERT(ret == -1 && errno == err, "Prefault returned %d (%d), expected %d",
		    ret, errno, err);
}

static void test_protected(const void *arg)
{
	void *mem = kvm_mmap(psize, PROT_READ | PROT_WRITE,
			     MAP_PRIVATE | MAP_ANONYMOUS, -1);
	struct kvm_vcpu_init init;
	int fd = open_protected_vm(mem), vcpu_fd;

	if (fd < 0) {
		kvm_munmap(mem, psize);
		ksft_test_result_skip("Prefault in a protected VM: not supported\n");
		return;
	}

	TEST_ASSERT_EQ(ioctl(fd, KVM_CHECK_EXTENSION, KVM_CAP_PRE_FAULT_MEMORY), 0);
	vcpu_fd = ioctl(fd, KVM_CREATE_VCPU, 0);
	TEST_ASSERT(vcpu_fd >= 0, "KVM_CREATE_VCPU failed");
	expect_protected_error(vcpu_fd, ENOEXEC);

	TEST_ASSERT(!ioctl(fd, KVM_ARM_PREFERRED_TARGET, &init),
		    "KVM_ARM_PREFERRED_TARGET failed");
	TEST_ASSERT(!ioctl(vcpu_fd, KVM_ARM_VCPU_INIT, &init), "KVM_ARM_VCPU_INIT failed");
	expect_protected_error(vcpu_fd, EOPNOTSUPP);

	kvm_close(vcpu_fd);
	kvm_close(fd);
	kvm_munmap(mem, psize);
	ksft_test_result_pass("Prefault in a protected VM\n");
}

/*
 * Instructions.
 */
static void guest_call(u64 page_size)
{
	u64 (*function)(void);
	u64 i;

	for (i = 0; i < EXEC_PAGES; i++) {
		function = (void *)(EXEC_GPA + i * page_size);
		GUEST_ASSERT_EQ(function(), i);
	}
	GUEST_DONE();
}

static void test_exec(const void *arg)
{
	u64 flags = has_write_flag() ? KVM_PRE_FAULT_FLAG_WRITE : 0;
	struct test_vm *t = create_vm(guest_call);
	struct ucall uc;
	u32 *insn;
	u64 i;

	for (i = 0; i < EXEC_PAGES; i++) {
		insn = t->exec + i * psize / sizeof(u32);
		insn[0] = INSN_MOVZ_X0(i);
		insn[1] = INSN_RET;
		pre_fault(t->vcpu, EXEC_GPA + i * psize, psize, i & 1 ? flags : 0);
	}

	vcpu_run(t->vcpu);
	if (get_ucall(t->vcpu, &uc) == UCALL_ABORT)
		REPORT_GUEST_ASSERT(uc);
	TEST_ASSERT_EQ(uc.cmd, UCALL_DONE);

	free_vm(t);
	ksft_test_result_pass("Execution of prefaulted memory\n");
}

/*
 * A vCPU that runs while another one's ioctl prefaults what it works on.
 */
#define RACE_PAGES		32
#define RACE_ROUNDS		100

/* Set by userspace. */
static bool guest_stop;

static void guest_count(u64 page_size)
{
	u64 *p, round, i;

	for (round = 0; !READ_ONCE(guest_stop); round++) {
		for (i = 0; i < RACE_PAGES; i++) {
			p = (u64 *)(DATA_GPA + i * page_size);
			GUEST_ASSERT_EQ(READ_ONCE(*p), round);
			WRITE_ONCE(*p, round + 1);
		}
	}
	GUEST_SYNC(round);
}

struct runner {
	struct kvm_vcpu *vcpu;
	u64 rounds;
};

static void *run_guest(void *arg)
{
	struct runner *runner = arg;

	runner->rounds = run_to_sync(runner->vcpu);
	return NULL;
}

/*
 * Have each of the guest's pages replaced by a copy when it is written next,
 * i.e. if a prefault maps what it has looked up before, the write is lost.
 */
static pid_t share_memory(void)
{
	pid_t pid = fork();

	TEST_ASSERT(pid >= 0, "fork() failed");
	if (!pid)
		for (;;)
			pause();
	return pid;
}

static void unshare_memory(pid_t pid)
{
	kill(pid, SIGKILL);
	TEST_ASSERT(waitpid(pid, NULL, 0) == pid, "waitpid() failed");
}

static void test_race(const void *arg)
{
	u64 write = has_write_flag() ? KVM_PRE_FAULT_FLAG_WRITE : 0;
	size_t size = RACE_PAGES * psize;
	struct kvm_vcpu *vcpus[2];
	struct runner runner = {};
	pthread_t thread;
	struct kvm_vm *vm;
	u64 *mem, i, j;
	pid_t pid;

	mem = kvm_mmap(size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1);
	vm = vm_create_with_vcpus(2, guest_count, vcpus);
	add_slot(vm, DATA_SLOT, 0, DATA_GPA, size, mem);
	vcpu_args_set(vcpus[0], 1, psize);
	runner.vcpu = vcpus[0];

	kvm_pthread_create(&thread, NULL, run_guest, &runner);
	for (i = 0; i < RACE_ROUNDS; i++) {
		pid = share_memory();
		for (j = 0; j < RACE_PAGES; j++)
			pre_fault(vcpus[1], DATA_GPA, size, j % 4 == 3 ? write : 0);
		unshare_memory(pid);
	}
	write_guest_global(vm, guest_stop, true);
	kvm_pthread_join(thread, NULL);

	for (i = 0; i < RACE_PAGES; i++)
		TEST_ASSERT_EQ(mem[i * psize / sizeof(u64)], runner.rounds);

	kvm_vm_free(vm);
	kvm_munmap(mem, size);
	ksft_test_result_pass("Prefault of what another vCPU works on\n");
}

/*
 * Memory that userspace replaces while it's prefaulted.  If a prefault maps what
 * it has looked up before, the guest never sees what replaced it.
 */
#define STALE_ROUNDS		500
#define STALE_SECONDS		10

static void guest_copy(u64 page_size)
{
	while (!READ_ONCE(guest_stop))
		WRITE_ONCE(*(u64 *)(DATA_GPA + page_size), READ_ONCE(*(u64 *)DATA_GPA));
	GUEST_SYNC(0);
}

struct pre_faulter {
	struct kvm_vcpu *vcpu;
	bool done;
};

static void *pre_fault_repeatedly(void *arg)
{
	u64 write = has_write_flag() ? KVM_PRE_FAULT_FLAG_WRITE : 0, i;
	struct pre_faulter *pre_faulter = arg;

	for (i = 0; !READ_ONCE(pre_faulter->done); i++)
		pre_fault(pre_faulter->vcpu, DATA_GPA, psize, i % 4 == 3 ? write : 0);
	return NULL;
}

static void wait_for(u64 *copy, u64 value)
{
	struct timespec start;

	clock_gettime(CLOCK_MONOTONIC, &start);
	while (READ_ONCE(*copy) != value) {
		TEST_ASSERT(timespec_elapsed(start).tv_sec < STALE_SECONDS,
			    "The guest reads %lu from where there is %lu",
			    READ_ONCE(*copy), value);
		sched_yield();
	}
}

static void test_stale(const void *arg)
{
	struct pre_faulter pre_faulter = {};
	pthread_t threads[2];
	struct kvm_vcpu *vcpus[2];
	struct runner runner = {};
	struct kvm_vm *vm;
	u64 *mem, i;

	mem = kvm_mmap(2 * psize, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1);
	vm = vm_create_with_vcpus(2, guest_copy, vcpus);
	add_slot(vm, DATA_SLOT, 0, DATA_GPA, 2 * psize, mem);
	vcpu_args_set(vcpus[0], 1, psize);
	runner.vcpu = vcpus[0];
	pre_faulter.vcpu = vcpus[1];

	kvm_pthread_create(&threads[0], NULL, run_guest, &runner);
	kvm_pthread_create(&threads[1], NULL, pre_fault_repeatedly, &pre_faulter);
	for (i = 1; i <= STALE_ROUNDS; i++) {
		TEST_ASSERT(!madvise(mem, psize, MADV_DONTNEED), "MADV_DONTNEED failed");
		WRITE_ONCE(*mem, i);
		wait_for(mem + psize / sizeof(u64), i);
	}
	WRITE_ONCE(pre_faulter.done, true);
	write_guest_global(vm, guest_stop, true);
	for (i = 0; i < ARRAY_SIZE(threads); i++)
		kvm_pthread_join(threads[i], NULL);

	kvm_vm_free(vm);
	kvm_munmap(mem, 2 * psize);
	ksft_test_result_pass("Prefault of what userspace replaces\n");
}

/*
 * Memory tags.
 */
#define MTE_TAG(tag)		((u64)(tag) << 56)
#define MTE_PREAMBLE		".arch armv8.5-a\n\t.arch_extension memtag\n\t"
#define MTE_GRANULE		16
#define HOST_TAG		0x9
#define GUEST_TAG		0x5
#define DATA			0x0123456789abcdef

enum {
	MTE_UNTOUCHED_READ,
	MTE_UNTOUCHED_WRITE,
	MTE_TAGGED_READ,
	MTE_TAGGED_WRITE,
	MTE_PAGES,
};

static bool mte_is_tagged(int page)
{
	return page == MTE_TAGGED_READ || page == MTE_TAGGED_WRITE;
}

static bool mte_is_written(int page)
{
	return page == MTE_UNTOUCHED_WRITE || page == MTE_TAGGED_WRITE;
}

static u64 guest_load_tag(u64 addr)
{
	asm volatile(MTE_PREAMBLE "ldg %0, [%0]" : "+r" (addr) : : "memory");
	return (addr >> 56) & 0xf;
}

static void guest_store_tag(u64 addr, u64 tag)
{
	asm volatile(MTE_PREAMBLE "stg %0, [%1]"
		     : : "r" (addr | MTE_TAG(tag)), "r" (addr) : "memory");
}

static void guest_check_tags(u64 page, u64 page_size, u64 tag, u64 data)
{
	u64 addr;

	for (addr = page; addr < page + page_size; addr += MTE_GRANULE) {
		GUEST_ASSERT_EQ(guest_load_tag(addr), tag);
		GUEST_ASSERT_EQ(READ_ONCE(*(u64 *)addr), data);
	}
}

static void guest_mte(u64 page_size)
{
	u64 i, page, addr;

	for (i = 0; i < MTE_PAGES; i++) {
		bool tagged = mte_is_tagged(i);

		page = DATA_GPA + i * page_size;
		guest_check_tags(page, page_size, tagged ? HOST_TAG : 0,
				 tagged ? DATA : 0);
		for (addr = page; addr < page + page_size; addr += MTE_GRANULE) {
			guest_store_tag(addr, GUEST_TAG);
			WRITE_ONCE(*(u64 *)addr, ~DATA);
		}
		guest_check_tags(page, page_size, GUEST_TAG, ~DATA);
	}
	GUEST_DONE();
}

static void copy_tags(struct kvm_vm *vm, u64 gpa, u8 *tags, u64 flags)
{
	struct kvm_arm_copy_mte_tags copy = {
		.guest_ipa = gpa,
		.length = psize,
		.addr = tags,
		.flags = flags,
	};
	int ret = __vm_ioctl(vm, KVM_ARM_MTE_COPY_TAGS, &copy);

	TEST_ASSERT(ret == psize, "Copied the tags of 0x%x bytes", ret);
}

static struct kvm_vm *create_mte_vm(struct kvm_vcpu **vcpu)
{
	struct kvm_vm *vm = vm_create(1);
	struct kvm_vcpu_init init;
	u64 sctlr;

	vm_enable_cap(vm, KVM_CAP_ARM_MTE, 0);

	/* There's no MTE at EL2 of a guest. */
	kvm_get_default_vcpu_target(vm, &init);
	init.features[0] &= ~BIT(KVM_ARM_VCPU_HAS_EL2);
	*vcpu = aarch64_vcpu_add(vm, 0, &init, guest_mte);
	kvm_arch_vm_finalize_vcpus(vm);

	sctlr = vcpu_get_reg(*vcpu, KVM_ARM64_SYS_REG(SYS_SCTLR_EL1));
	vcpu_set_reg(*vcpu, KVM_ARM64_SYS_REG(SYS_SCTLR_EL1), sctlr | SCTLR_ELx_ATA);
	vcpu_set_reg(*vcpu, KVM_ARM64_SYS_REG(SYS_MAIR_EL1),
		     MAIR_ATTRIDX(MAIR_ATTR_NORMAL_TAGGED, MT_NORMAL));
	vcpu_args_set(*vcpu, 1, psize);
	return vm;
}

static void fill_and_pre_fault(struct kvm_vcpu *vcpu, u8 *mem, u8 *tags)
{
	u64 write = has_write_flag() ? KVM_PRE_FAULT_FLAG_WRITE : 0;
	int i, j;

	memset(tags, HOST_TAG, psize / MTE_GRANULE);
	for (i = 0; i < MTE_PAGES; i++) {
		u64 gpa = DATA_GPA + i * psize;

		if (mte_is_tagged(i)) {
			for (j = 0; j < psize; j += sizeof(u64))
				*(u64 *)(mem + i * psize + j) = DATA;
			copy_tags(vcpu->vm, gpa, tags, KVM_ARM_TAGS_TO_GUEST);
		}
		pre_fault(vcpu, gpa, psize, mte_is_written(i) ? write : 0);
	}
}

static void check_guest_tags(struct kvm_vm *vm, u8 *mem, u8 *tags)
{
	int i, j;

	for (i = 0; i < MTE_PAGES; i++) {
		copy_tags(vm, DATA_GPA + i * psize, tags, KVM_ARM_TAGS_FROM_GUEST);
		for (j = 0; j < psize / MTE_GRANULE; j++) {
			TEST_ASSERT_EQ(tags[j], GUEST_TAG);
			TEST_ASSERT_EQ(*(u64 *)(mem + i * psize + j * MTE_GRANULE), ~DATA);
		}
	}
}

static void __test_mte(int prot)
{
	struct kvm_vcpu *vcpu;
	struct kvm_vm *vm;
	struct ucall uc;
	u8 *mem, *tags;

	tags = malloc(psize / MTE_GRANULE);
	TEST_ASSERT(tags, "Out of memory");
	mem = kvm_mmap(MTE_PAGES * psize, prot, MAP_PRIVATE | MAP_ANONYMOUS, -1);
	vm = create_mte_vm(&vcpu);
	add_slot(vm, DATA_SLOT, 0, DATA_GPA, MTE_PAGES * psize, mem);

	fill_and_pre_fault(vcpu, mem, tags);
	vcpu_run(vcpu);
	if (get_ucall(vcpu, &uc) == UCALL_ABORT)
		REPORT_GUEST_ASSERT(uc);
	TEST_ASSERT_EQ(uc.cmd, UCALL_DONE);
	check_guest_tags(vm, mem, tags);

	kvm_vm_free(vm);
	kvm_munmap(mem, MTE_PAGES * psize);
	free(tags);
}

static void test_mte(const void *arg)
{
	int i;

	if (!kvm_check_cap(KVM_CAP_ARM_MTE)) {
		ksft_test_result_skip("Prefault of tagged memory: no MTE\n");
		return;
	}

	/*
	 * KVM initialises tags of pages that userspace has no tags for.  Repeat
	 * to get back some pages that a guest has left its tags in.
	 */
	for (i = 0; i < 8; i++)
		__test_mte(PROT_READ | PROT_WRITE | (i & 1 ? PROT_MTE : 0));

	ksft_test_result_pass("Prefault of tagged memory\n");
}

static const struct testcase {
	void (*test)(const void *arg);
	const void *arg;
} testcases[] = {
	{ test_uninitialized },
	{ test_vgic },
	{ test_unfinalized },
	{ test_first_run },
	{ test_pending_exit, &pending_exits[0] },
	{ test_pending_exit, &pending_exits[1] },
	{ test_pending_exit, &pending_exits[2] },
	{ test_pending_exit, &pending_exits[3] },
	{ test_pending_exit, &pending_exits[4] },
	{ test_exec },
	{ test_race },
	{ test_stale },
	{ test_mte },
	{ test_protected },
};

int main(void)
{
	int i;

	TEST_REQUIRE(kvm_check_cap(KVM_CAP_PRE_FAULT_MEMORY));
	psize = max_t(size_t, getpagesize(),
		      vm_guest_mode_params[VM_MODE_DEFAULT].page_size);

	ksft_print_header();
	ksft_set_plan(ARRAY_SIZE(testcases));
	for (i = 0; i < ARRAY_SIZE(testcases); i++)
		testcases[i].test(testcases[i].arg);

	ksft_finished();
}
