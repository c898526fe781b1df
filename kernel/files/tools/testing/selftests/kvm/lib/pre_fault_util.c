// SPDX-License-Identifier: GPL-2.0-only
/*
 * What tests of KVM_PRE_FAULT_MEMORY share: a VM whose guest touches what it is
 * told to, wrappers of the ioctl that check what holds for every call, and ways
 * to count the stage-2 faults that the guest takes.
 */
#include <linux/sizes.h>

#include <signal.h>
#include <sys/stat.h>

#include "kvm_util.h"
#include "pre_fault_util.h"
#include "processor.h"
#include "test_util.h"
#include "ucall_common.h"

/* What the guest is to touch next. */
static struct guest_access {
	u64 gva;
	u64 size;
	u64 stride;
	bool write;
} guest_access;

void pft_guest_code(void)
{
	for (;;) {
		u64 sum = 0, offset;

		for (offset = 0; offset < guest_access.size; offset += guest_access.stride) {
			u64 *p = (u64 *)(guest_access.gva + offset);

			if (guest_access.write)
				WRITE_ONCE(*p, (u64)p);
			else
				sum += READ_ONCE(*p);
		}
		GUEST_SYNC1(sum);
	}
}

/*
 * The trace events of this task, in a tracefs instance of their own.  Needed to
 * count stage-2 faults on arm64, since the event tells the IPA: the stat counts
 * the guest's faults on its code and page tables, too.
 */
static char trace_dir[128];

static void trace_write(const char *file, const char *value)
{
	char path[256];
	int fd;

	snprintf(path, sizeof(path), "%s/%s", trace_dir, file);
	fd = open(path, O_WRONLY | O_TRUNC);
	TEST_ASSERT(fd >= 0, "Failed to open '%s'", path);
	if (*value)
		test_write(fd, value, strlen(value));
	kvm_close(fd);
}

static void trace_stop(void)
{
	if (trace_dir[0])
		rmdir(trace_dir);
	trace_dir[0] = '\0';
}

static void trace_enable(const char *event)
{
	char file[64], filter[64];

	snprintf(filter, sizeof(filter), "common_pid == %d", kvm_gettid());
	snprintf(file, sizeof(file), "events/kvm/%s/filter", event);
	trace_write(file, filter);
	snprintf(file, sizeof(file), "events/kvm/%s/enable", event);
	trace_write(file, "1");
}

bool pft_can_trace(void)
{
	return trace_dir[0];
}

static void trace_start(void)
{
	static const char * const dirs[] = {
		"/sys/kernel/tracing", "/sys/kernel/debug/tracing",
	};
	char path[128];
	int i;

	for (i = 0; i < ARRAY_SIZE(dirs); i++) {
		snprintf(path, sizeof(path), "%s/events/kvm/kvm_pre_fault_memory", dirs[i]);
		if (access(path, F_OK))
			continue;

		snprintf(trace_dir, sizeof(trace_dir), "%s/instances/pre_fault.%d",
			 dirs[i], getpid());
		if (!mkdir(trace_dir, 0700))
			break;
		trace_dir[0] = '\0';
	}
	if (!trace_dir[0])
		return;

	atexit(trace_stop);
	trace_enable("kvm_pre_fault_memory");
#ifdef __aarch64__
	trace_enable("kvm_guest_fault");
#endif
}

/* Returns the next line about @event, NULL at the end of the trace. */
static char *trace_next(FILE *trace, const char *event)
{
	static char line[256];
	char *text;

	while (fgets(line, sizeof(line), trace)) {
		text = strstr(line, event);
		if (text)
			return text + strlen(event);
	}
	return NULL;
}

static FILE *trace_read(void)
{
	char path[256];
	FILE *trace;

	snprintf(path, sizeof(path), "%s/trace", trace_dir);
	trace = fopen(path, "r");
	TEST_ASSERT(trace, "Failed to open '%s'", path);
	return trace;
}

void pft_trace_clear(void)
{
	if (trace_dir[0])
		trace_write("trace", "");
}

/* Fills @steps with the steps since pft_trace_clear(), and returns their number. */
int pft_trace_steps(struct pft_step *steps, int max)
{
	FILE *trace = trace_read();
	unsigned int vcpu_id;
	char what[8], *text;
	int nr = 0;

	while ((text = trace_next(trace, "kvm_pre_fault_memory: "))) {
		struct pft_step *step = &steps[nr++];

		TEST_ASSERT(nr <= max, "More than %d steps", max);
		TEST_ASSERT(sscanf(text, "vcpu %u gpa 0x%lx %7s %ld", &vcpu_id,
				   &step->gpa, what, &step->ret) == 4,
			    "Unexpected event: %s", text);
		TEST_ASSERT_EQ(vcpu_id, 0);
		TEST_ASSERT(!strcmp(what, step->ret < 0 ? "error" : "size"),
			    "Unexpected event: %s", text);
	}
	fclose(trace);
	return nr;
}

#ifdef __x86_64__
/* Nothing else than what a test is about faults, see pft_create_vm(). */
static u64 nr_guest_faults(struct kvm_vcpu *vcpu)
{
	return vcpu_get_stat(vcpu, pf_taken);
}

bool pft_can_count_faults(void)
{
	return true;
}
#else
static u64 nr_guest_faults(struct kvm_vcpu *vcpu)
{
	FILE *trace = trace_read();
	u64 ipa, nr = 0;
	char *text;

	while ((text = trace_next(trace, "kvm_guest_fault: "))) {
		TEST_ASSERT(sscanf(text, "ipa 0x%lx", &ipa) == 1,
			    "Unexpected event: %s", text);
		nr += ipa >= TEST_GPA;
	}
	fclose(trace);
	return nr;
}

bool pft_can_count_faults(void)
{
	return trace_dir[0];
}
#endif

/* KVM_PRE_FAULT_FLAG_WRITE if it is supported, else 0. */
u64 pft_write_flag(void)
{
	return kvm_check_cap(KVM_CAP_PRE_FAULT_MEMORY) & KVM_PRE_FAULT_FLAG_WRITE;
}

/* The bare ioctl, which must leave kvm_run alone, and @range if it fails. */
int __pre_fault(struct kvm_vcpu *vcpu, struct kvm_pre_fault_memory *range)
{
	const struct kvm_pre_fault_memory old = *range;
	const struct kvm_run run = *vcpu->run;
	int ret;

	ret = __vcpu_ioctl(vcpu, KVM_PRE_FAULT_MEMORY, range);
	if (ret < 0) {
		TEST_ASSERT(!memcmp(&old, range, sizeof(old)),
			    "Failed with errno %d, and changed the range", errno);
	} else {
		TEST_ASSERT(range->size < old.size, "Succeeded without progress");
		TEST_ASSERT_EQ(range->gpa + range->size, old.gpa + old.size);
		TEST_ASSERT_EQ(range->flags, old.flags);
	}
	TEST_ASSERT(!memcmp(&run, vcpu->run, sizeof(run)), "kvm_run was changed");

	return ret;
}

void pre_fault(struct kvm_vcpu *vcpu, gpa_t gpa, u64 size, u64 flags)
{
	struct kvm_pre_fault_memory range = {
		.gpa = gpa, .size = size, .flags = flags,
	};
	int ret = __pre_fault(vcpu, &range);

	TEST_ASSERT_VM_VCPU_IOCTL(!ret, KVM_PRE_FAULT_MEMORY, ret, vcpu->vm);
	TEST_ASSERT(!range.size, "0x%llx of 0x%lx bytes left", range.size, size);
}

void pre_fault_fails(struct kvm_vcpu *vcpu, gpa_t gpa, u64 size,
		     u64 flags, int expected)
{
	struct kvm_pre_fault_memory range = {
		.gpa = gpa, .size = size, .flags = flags,
	};
	int ret = __pre_fault(vcpu, &range);

	TEST_ASSERT(ret == -1 && errno == expected,
		    "gpa 0x%lx size 0x%lx flags 0x%lx: wanted errno %d, got %d errno %d",
		    gpa, size, flags, expected, ret, errno);
}

void pre_fault_stops(struct kvm_vcpu *vcpu, gpa_t gpa, u64 size,
		     u64 flags, gpa_t stop, int expected)
{
	struct kvm_pre_fault_memory range = {
		.gpa = gpa, .size = size, .flags = flags,
	};
	int ret = __pre_fault(vcpu, &range);

	TEST_ASSERT_VM_VCPU_IOCTL(!ret, KVM_PRE_FAULT_MEMORY, ret, vcpu->vm);
	TEST_ASSERT_EQ(range.gpa, stop);
	pre_fault_fails(vcpu, stop, range.size, flags, expected);
}

/*
 * Have KVM map all that the guest needs to run, so that the stats of x86 have
 * no other faults than those on the memory that the test is about.
 */
void pft_map_slot0(struct kvm_vcpu *vcpu)
{
#ifdef __x86_64__
	struct userspace_mem_region *slot0 = memslot2region(vcpu->vm, 0);
	u64 size = slot0->region.memory_size;

	/* A prefault maps it writable even if there is no flag to ask for that. */
	TEST_ASSERT(!madvise(slot0->host_mem, size, MADV_POPULATE_WRITE),
		    "MADV_POPULATE_WRITE failed");
	pre_fault(vcpu, 0, size, 0);
#endif
}

struct kvm_vm *pft_create_vm_without_slot(struct vm_shape shape,
					  struct kvm_vcpu **vcpu, u64 size)
{
	struct kvm_vm *vm;

	vm = __vm_create_shape_with_one_vcpu(shape, vcpu, size / MIN_PAGE_SIZE, pft_guest_code);
	virt_map(vm, TEST_GVA, TEST_GPA, size / vm->page_size);
	pft_map_slot0(*vcpu);
	return vm;
}

void pft_add_slot(struct kvm_vm *vm, enum vm_mem_backing_src_type src,
		  gpa_t gpa, u32 slot, u64 size, u32 flags)
{
	vm_userspace_mem_region_add(vm, src, gpa, slot, size / vm->page_size, flags);
}

struct kvm_vm *pft_create_vm(struct kvm_vcpu **vcpu,
			     enum vm_mem_backing_src_type src, u64 size)
{
	struct kvm_vm *vm = pft_create_vm_without_slot(VM_SHAPE_DEFAULT, vcpu, size);

	pft_add_slot(vm, src, TEST_GPA, TEST_SLOT, size, 0);
	return vm;
}

void *pft_hva(struct kvm_vm *vm)
{
	return memslot2region(vm, TEST_SLOT)->host_mem;
}

/* Allocate host memory, so that a read doesn't map the zero page. */
void pft_populate(void *mem, u64 size)
{
	u64 offset;

	for (offset = 0; offset < size; offset += getpagesize())
		WRITE_ONCE(*(u64 *)(mem + offset), offset);
}

u64 pft_access(struct kvm_vcpu *vcpu, u64 offset, u64 size, bool write)
{
	struct ucall uc;

	guest_access.gva = TEST_GVA + offset;
	guest_access.size = size;
	guest_access.stride = getpagesize();
	guest_access.write = write;
	sync_global_to_guest(vcpu->vm, guest_access);

	vcpu_run(vcpu);
	switch (get_ucall(vcpu, &uc)) {
	case UCALL_SYNC:
		break;
	case UCALL_ABORT:
		REPORT_GUEST_ASSERT(uc);
		break;
	default:
		TEST_FAIL("Unexpected exit: %s", exit_reason_str(vcpu->run->exit_reason));
	}
	return uc.args[0];
}

u64 pft_touch(struct kvm_vcpu *vcpu, u64 offset, u64 size, bool write)
{
	u64 before;

	pft_trace_clear();
	before = nr_guest_faults(vcpu);
	pft_access(vcpu, offset, size, write);
	return nr_guest_faults(vcpu) - before;
}

static void hang(int signum)
{
	TEST_FAIL("KVM_PRE_FAULT_MEMORY, or who waits for it, hangs");
}

/* True if the kernel has ever warned: KVM's WARNs must not be reachable. */
static bool kernel_warned(void)
{
	unsigned long taint = 0;
	FILE *f = fopen("/proc/sys/kernel/tainted", "r");

	if (f) {
		TEST_ASSERT(fscanf(f, "%lu", &taint) == 1, "Can't read the taint flags");
		fclose(f);
	}
	return taint & BIT(9);
}

bool pft_begin(void)
{
	struct sigaction sa = { .sa_handler = hang };

	sigaction(SIGALRM, &sa, NULL);
	alarm(PFT_HANG_SECONDS);
	trace_start();

	return kernel_warned();
}

bool pft_end(void)
{
	trace_stop();
	return kernel_warned();
}
