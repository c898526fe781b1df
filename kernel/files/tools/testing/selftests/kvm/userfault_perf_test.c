// SPDX-License-Identifier: GPL-2.0
/*
 * userfault_perf_test - what demand paging costs, by userfaultfd and by KVM
 * Userfault
 *
 * vCPUs touch every page of their part of a memslot once.  Its memory is
 * provided on demand, in one of the ways below; the time is from the first
 * vCPU's start to the last one's end.  Some ways provide nothing on demand, and
 * say what the parts of a fault cost.
 */
#include <fcntl.h>
#include <getopt.h>
#include <poll.h>
#include <pthread.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>

#include <linux/sizes.h>
#include <linux/userfaultfd.h>

#include "kvm_syscalls.h"
#include "kvm_util.h"
#include "processor.h"
#include "test_util.h"
#include "ucall_common.h"
#include "userfault_util.h"

#define TEST_SLOT	10
#define TEST_GPA	((gpa_t)SZ_4G)
#define TEST_GVA	0xc0000000ul
#define MAX_VCPUS	64

#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_WRITE 23
#endif

/* Who is told of a fault. */
enum pager {
	PAGER_NONE,
	PAGER_UFFD,		/* a thread for each vCPU, that polls and reads */
	PAGER_UFFD_READ,	/* likewise, and only reads */
	PAGER_EXIT,		/* the vCPU's own thread */
};

/* How it provides memory. */
enum fill {
	FILL_NOTHING,
	FILL_COPY,		/* memcpy() to where the memslot's memory is mapped */
	FILL_SECOND,		/* memcpy() to a second mapping of it */
	FILL_UFFD_COPY,
	FILL_CONTINUE,		/* of a page that is in the page cache */
	FILL_SECOND_CONTINUE,	/* of one that is put there first */
};

enum memory {
	ANON,
	SHMEM,
	GMEM,
};

/* What the guest does for each page. */
enum touch {
	TOUCH,
	EXIT_ONLY,
};

static const struct way {
	const char *name;
	enum memory memory;
	enum pager pager;
	enum fill fill;
	bool populated;
	enum touch touch;
} ways[] = {
	/* No demand paging, and the parts of which a fault consists. */
	{ "none-anon",		 ANON,	PAGER_NONE, FILL_NOTHING },
	{ "none-shmem",		 SHMEM,	PAGER_NONE, FILL_NOTHING },
	{ "none-gmem",		 GMEM,	PAGER_NONE, FILL_NOTHING },
	{ "stage2-anon",	 ANON,	PAGER_NONE, FILL_NOTHING, true },
	{ "stage2-gmem",	 GMEM,	PAGER_NONE, FILL_NOTHING, true },
	{ "bare-exit",		 ANON,	PAGER_NONE, FILL_NOTHING, true, EXIT_ONLY },
	{ "uffd-missing",	 ANON,	PAGER_UFFD, FILL_UFFD_COPY },
	{ "uffd-missing-read",	 ANON,	PAGER_UFFD_READ, FILL_UFFD_COPY },
	{ "uffd-minor",		 SHMEM,	PAGER_UFFD, FILL_CONTINUE, true },
	{ "uffd-minor-read",	 SHMEM,	PAGER_UFFD_READ, FILL_CONTINUE, true },
	{ "uffd-minor-fill",	 SHMEM,	PAGER_UFFD, FILL_SECOND_CONTINUE },
	{ "exit-anon",		 ANON,	PAGER_EXIT, FILL_COPY },
	{ "exit-anon-uffd",	 ANON,	PAGER_EXIT, FILL_UFFD_COPY },
	{ "exit-anon-there",	 ANON,	PAGER_EXIT, FILL_NOTHING, true },
	{ "exit-shmem",		 SHMEM,	PAGER_EXIT, FILL_SECOND },
	{ "exit-shmem-continue", SHMEM,	PAGER_EXIT, FILL_CONTINUE, true },
	{ "exit-shmem-there",	 SHMEM,	PAGER_EXIT, FILL_NOTHING, true },
	{ "exit-gmem",		 GMEM,	PAGER_EXIT, FILL_COPY },
	{ "exit-gmem-there",	 GMEM,	PAGER_EXIT, FILL_NOTHING, true },
};

struct worker {
	struct kvm_vcpu *vcpu;
	pthread_t thread, pager;
	int uffd;
	u64 start, end, exits;
};

static u64 part_size = SZ_8M;
static u64 batch = 1;
static int nr_vcpus = 1;
static bool prefault;
static bool read_only;

static const struct way *way;
static u64 page_size, part_pages;
static struct kvm_vm *vm;
static struct worker workers[MAX_VCPUS];
static pthread_barrier_t barrier;
static char *memory, *second, *content;
static u64 *bitmap;
static int memory_fd;

/* The library's memcpy(), which guests can use, goes byte by byte. */
static void copy(void *dst, const void *src, size_t size)
{
#if defined(__x86_64__)
	size /= 8;
	asm volatile("rep movsq" : "+D"(dst), "+S"(src), "+c"(size) : : "memory");
#elif defined(__aarch64__)
	asm volatile("1:	ldp	q0, q1, [%1], #32\n"
		     "	ldp	q2, q3, [%1], #32\n"
		     "	stp	q0, q1, [%0], #32\n"
		     "	stp	q2, q3, [%0], #32\n"
		     "	subs	%2, %2, #64\n"
		     "	b.ne	1b\n"
		     : "+r"(dst), "+r"(src), "+r"(size)
		     : : "v0", "v1", "v2", "v3", "cc", "memory");
#endif
}

static void guest_code(u64 gva, u64 nr_pages, u64 size, u64 what)
{
	u64 i;

	/* What a first run costs, and the faults on this code, don't count. */
	GUEST_SYNC(0);

	for (i = 0; i < nr_pages; i++) {
		u64 *p = (u64 *)(gva + i * size);

		if (what == 0)
			WRITE_ONCE(*p, i);
		else if (what == 1)
			READ_ONCE(*p);
		else
			GUEST_SYNC(1);
	}
	GUEST_SYNC(0);
}

static u64 now_ns(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC_RAW, &ts);
	return ts.tv_sec * NSEC_PER_SEC + ts.tv_nsec;
}

static void uffd_ioctl(int uffd, unsigned long cmd, void *arg, const char *what)
{
	TEST_ASSERT(!ioctl(uffd, cmd, arg), "%s failed, errno %d", what, errno);
}

/* Provide a batch of pages, of which @page is the first. */
static void provide(int uffd, u64 page)
{
	u64 offset = page * page_size, size = batch * page_size;
	struct uffdio_continue cont = {
		.range = { .start = (uintptr_t)memory + offset, .len = size },
	};
	struct uffdio_copy uffd_copy = {
		.dst = (uintptr_t)memory + offset,
		.src = (uintptr_t)content + offset,
		.len = size,
	};

	switch (way->fill) {
	case FILL_NOTHING:
		break;
	case FILL_COPY:
		copy(memory + offset, content + offset, size);
		break;
	case FILL_SECOND:
		copy(second + offset, content + offset, size);
		break;
	case FILL_UFFD_COPY:
		uffd_ioctl(uffd, UFFDIO_COPY, &uffd_copy, "UFFDIO_COPY");
		break;
	case FILL_SECOND_CONTINUE:
		copy(second + offset, content + offset, size);
		fallthrough;
	case FILL_CONTINUE:
		uffd_ioctl(uffd, UFFDIO_CONTINUE, &cont, "UFFDIO_CONTINUE");
		break;
	}
}

static void prefault_pages(struct kvm_vcpu *vcpu, u64 page)
{
	struct kvm_pre_fault_memory range = {
		.gpa = TEST_GPA + page * page_size,
		.size = batch * page_size,
		.flags = read_only ? 0 : KVM_PRE_FAULT_FLAG_WRITE,
	};

	while (range.size)
		vcpu_ioctl(vcpu, KVM_PRE_FAULT_MEMORY, &range);
}

static void handle_exit(struct worker *w)
{
	u64 page = (w->vcpu->run->memory_fault.gpa - TEST_GPA) / page_size;

	page = align_down(page, batch);
	provide(w->uffd, page);
	userfault_clear(bitmap, page, batch);
	if (prefault)
		prefault_pages(w->vcpu, page);
}

static void *run_vcpu(void *arg)
{
	struct worker *w = arg;
	struct ucall uc;
	int ret;

	pthread_barrier_wait(&barrier);
	w->start = now_ns();
	for (;;) {
		ret = _vcpu_run(w->vcpu);
		if (is_userfault_exit(w->vcpu, ret, errno)) {
			w->exits++;
			handle_exit(w);
			continue;
		}
		TEST_ASSERT(!ret, "KVM_RUN failed, errno %d", errno);
		/* Not get_ucall(), which is more than an exit costs. */
		if (way->touch == EXIT_ONLY && ++w->exits <= part_pages)
			continue;
		break;
	}
	w->end = now_ns();
	TEST_ASSERT_EQ(get_ucall(w->vcpu, &uc), UCALL_SYNC);
	return NULL;
}

static void *run_pager(void *arg)
{
	struct pollfd pollfd = { .events = POLLIN };
	struct worker *w = arg;
	struct uffd_msg msg;
	u64 page;

	pollfd.fd = w->uffd;
	for (;;) {
		if (way->pager == PAGER_UFFD)
			TEST_ASSERT(poll(&pollfd, 1, -1) == 1, "poll() failed");
		TEST_ASSERT_EQ(read(w->uffd, &msg, sizeof(msg)), sizeof(msg));
		TEST_ASSERT_EQ(msg.event, UFFD_EVENT_PAGEFAULT);
		page = (msg.arg.pagefault.address - (uintptr_t)memory) / page_size;
		w->exits++;
		provide(w->uffd, align_down(page, batch));
	}
	return NULL;
}

static void setup_uffd(struct worker *w, int i)
{
	struct uffdio_api api = { .api = UFFD_API };
	struct uffdio_register reg = {
		.range = {
			.start = (uintptr_t)memory + i * part_size,
			.len = part_size,
		},
	};

	if (way->fill != FILL_CONTINUE)
		reg.mode |= UFFDIO_REGISTER_MODE_MISSING;
	if (way->fill != FILL_UFFD_COPY)
		reg.mode |= UFFDIO_REGISTER_MODE_MINOR;

	w->uffd = syscall(__NR_userfaultfd, O_CLOEXEC);
	__TEST_REQUIRE(w->uffd >= 0, "No userfaultfd");
	uffd_ioctl(w->uffd, UFFDIO_API, &api, "UFFDIO_API");
	uffd_ioctl(w->uffd, UFFDIO_REGISTER, &reg, "UFFDIO_REGISTER");
	if (way->pager != PAGER_EXIT)
		pthread_create(&w->pager, NULL, run_pager, w);
}

static void map_memory(u64 size)
{
	int flags = way->memory == ANON ? MAP_PRIVATE | MAP_ANONYMOUS : MAP_SHARED;

	memory_fd = -1;
	if (way->memory == SHMEM) {
		memory_fd = memfd_create("userfault_perf_test", MFD_CLOEXEC);
		TEST_ASSERT(memory_fd >= 0 && !ftruncate(memory_fd, size), "No memfd");
	} else if (way->memory == GMEM) {
		memory_fd = vm_create_guest_memfd(vm, size, GUEST_MEMFD_FLAG_MMAP |
						  GUEST_MEMFD_FLAG_INIT_SHARED);
	}
	memory = kvm_mmap(size, PROT_READ | PROT_WRITE, flags, memory_fd);
	/* Otherwise the figures depend on where the memory happens to be. */
	madvise(memory, size, MADV_NOHUGEPAGE);
	second = way->memory == SHMEM ?
		 kvm_mmap(size, PROT_READ | PROT_WRITE, flags, memory_fd) : NULL;
}

static void add_memslot(u64 nr_pages)
{
	struct kvm_userspace_memory_region2 region = {
		.slot = TEST_SLOT,
		.guest_phys_addr = TEST_GPA,
		.memory_size = nr_pages * page_size,
		.userspace_addr = (uintptr_t)memory,
	};

	if (way->memory == GMEM) {
		region.flags |= KVM_MEM_GUEST_MEMFD;
		region.guest_memfd = memory_fd;
	}
	if (way->pager == PAGER_EXIT) {
		userfault_set(bitmap, 0, nr_pages);
		region.flags |= KVM_MEM_USERFAULT;
		region.userfault_bitmap = (uintptr_t)bitmap;
	}
	vm_ioctl(vm, KVM_SET_USER_MEMORY_REGION2, &region);
}

/* Have each vCPU's code and stack mapped, and wait at its first ucall. */
static void warm_up(struct worker *w, int i)
{
	u64 gva = TEST_GVA + i * part_size;
	struct ucall uc;
	u64 what;

	what = way->touch == EXIT_ONLY ? 2 : read_only;
	vcpu_args_set(w->vcpu, 4, gva, part_pages, page_size, what);
	vcpu_run(w->vcpu);
	TEST_ASSERT_EQ(get_ucall(w->vcpu, &uc), UCALL_SYNC);
}

static bool supported(void)
{
	u64 flags = GUEST_MEMFD_FLAG_MMAP | GUEST_MEMFD_FLAG_INIT_SHARED;

	if (way->pager == PAGER_EXIT && !userfault_cap(vm))
		return false;
	return way->memory != GMEM ||
	       (vm_check_cap(vm, KVM_CAP_GUEST_MEMFD_FLAGS) & flags) == flags;
}

static void measure(void)
{
	u64 size = part_size * nr_vcpus, nr_pages = size / page_size;
	bool uffd = way->pager == PAGER_UFFD || way->pager == PAGER_UFFD_READ ||
		    (way->pager == PAGER_EXIT && way->fill >= FILL_UFFD_COPY);
	u64 start = ~0ull, end = 0, exits = 0;
	int i;

	pthread_barrier_init(&barrier, NULL, nr_vcpus);
	map_memory(size);
	if (way->populated)
		/* The page cache, for a minor fault, and not the mapping. */
		TEST_ASSERT(!madvise(second && way->fill == FILL_CONTINUE ? second : memory,
				     size, MADV_POPULATE_WRITE),
			    "MADV_POPULATE_WRITE failed, errno %d", errno);
	if (second)
		TEST_ASSERT(!madvise(second, size, MADV_DONTNEED), "MADV_DONTNEED failed");
	add_memslot(nr_pages);
	virt_map(vm, TEST_GVA, TEST_GPA, size / vm->page_size);

	for (i = 0; i < nr_vcpus; i++) {
		if (uffd)
			setup_uffd(&workers[i], i);
		warm_up(&workers[i], i);
	}

	for (i = 0; i < nr_vcpus; i++)
		pthread_create(&workers[i].thread, NULL, run_vcpu, &workers[i]);
	for (i = 0; i < nr_vcpus; i++) {
		struct worker *w = &workers[i];

		pthread_join(w->thread, NULL);
		if (w->pager) {
			pthread_cancel(w->pager);
			pthread_join(w->pager, NULL);
		}
		start = min(start, w->start);
		end = max(end, w->end);
		exits += w->exits;
		if (uffd)
			close(w->uffd);
	}

	printf("%-20s vcpus %d batch %lu prefault %d pages %lu ns/page %.1f faults %lu\n",
	       way->name, nr_vcpus, batch, prefault, nr_pages,
	       (double)(end - start) / nr_pages, exits);

	if (way->pager != PAGER_NONE)
		TEST_ASSERT(exits >= nr_pages / batch, "Some pages weren't paged");

	kvm_munmap(memory, size);
	if (second)
		kvm_munmap(second, size);
	if (memory_fd >= 0)
		close(memory_fd);
}

static void run_way(void)
{
	struct kvm_vcpu *vcpus[MAX_VCPUS];
	u64 nr_pages = part_pages * nr_vcpus;
	int i;

	memset(workers, 0, sizeof(workers));
	/* Room for the page tables that map the memory, too. */
	vm = __vm_create_with_vcpus(VM_SHAPE_DEFAULT, nr_vcpus, nr_pages / 128 + 64,
				    guest_code, vcpus);
	for (i = 0; i < nr_vcpus; i++)
		workers[i].vcpu = vcpus[i];

	if (supported()) {
		bitmap = userfault_alloc_bitmap(nr_pages);
		measure();
		kvm_vm_free(vm);
		userfault_free_bitmap(bitmap, nr_pages);
	} else {
		printf("%-20s not supported\n", way->name);
		kvm_vm_free(vm);
	}
}

static void run_ways(const char *only)
{
	int i;

	for (i = 0; i < ARRAY_SIZE(ways); i++) {
		way = &ways[i];
		if (!only || !strcmp(only, way->name))
			run_way();
	}
}

static void help(const char *name)
{
	int i;

	printf("Usage: %s [-h] [-R] [-p] [-b size] [-n batch] [-r rounds] [-v vcpus] [-w way]\n",
	       name);
	printf(" -b: memory of a vCPU, e.g. 8M\n");
	printf(" -n: pages to provide for each fault\n");
	printf(" -p: prefault what was provided\n");
	printf(" -r: how often to go through all ways\n");
	printf(" -R: have the guest read instead of write\n");
	printf(" -w: only this way:");
	for (i = 0; i < ARRAY_SIZE(ways); i++)
		printf(" %s", ways[i].name);
	printf("\n");
}

int main(int argc, char *argv[])
{
	const char *only = NULL;
	int rounds = 1;
	int opt;

	while ((opt = getopt(argc, argv, "b:hn:pr:Rv:w:")) != -1) {
		switch (opt) {
		case 'b':
			part_size = parse_size(optarg);
			break;
		case 'n':
			batch = atoi_positive("Pages in a batch", optarg);
			break;
		case 'p':
			prefault = true;
			break;
		case 'r':
			rounds = atoi_positive("Number of rounds", optarg);
			break;
		case 'R':
			read_only = true;
			break;
		case 'v':
			nr_vcpus = atoi_positive("Number of vCPUs", optarg);
			break;
		case 'w':
			only = optarg;
			break;
		case 'h':
			help(argv[0]);
			return 0;
		default:
			help(argv[0]);
			return 1;
		}
	}

	page_size = getpagesize();
	part_pages = part_size / page_size;
	TEST_ASSERT(nr_vcpus <= MAX_VCPUS, "At most %d vCPUs", MAX_VCPUS);
	TEST_ASSERT(part_size && !(part_size % (batch * page_size)),
		    "The memory of a vCPU must be a multiple of the batch");
	TEST_REQUIRE(kvm_has_cap(KVM_CAP_USERFAULT));

	content = kvm_mmap(part_size * nr_vcpus, PROT_READ | PROT_WRITE,
			   MAP_PRIVATE | MAP_ANONYMOUS, -1);
	TEST_ASSERT(!madvise(content, part_size * nr_vcpus, MADV_POPULATE_WRITE),
		    "MADV_POPULATE_WRITE failed, errno %d", errno);

	while (rounds--)
		run_ways(only);

	return 0;
}
