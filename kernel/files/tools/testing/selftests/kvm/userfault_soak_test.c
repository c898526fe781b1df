// SPDX-License-Identifier: GPL-2.0-only
/*
 * Do to a VM with KVM_MEM_USERFAULT what a VMM may do, at random and for as long
 * as is wanted, while vCPUs access its memory: enable and disable the flag, fill
 * and discard pages, prefault, log dirty pages, delete and create memslots, make
 * huge pages and send signals.
 *
 * What the guest may see of a page is the same all the time.  A page has its own
 * number in it, and that of its generation, which is the memslot's or an older
 * one while nobody told the guest of a newer one; or there is no memslot, and the
 * answer to a read is all ones.  A page that was discarded and not filled again,
 * i.e. zeros, must never be seen.
 *
 * What each thread does follows from the seed.  How the threads get in each
 * other's way doesn't, i.e. a seed has to be tried more than once.
 */
#include <linux/falloc.h>
#include <linux/sizes.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <sys/mman.h>
#include <time.h>

#include "kvm_syscalls.h"
#include "kvm_util.h"
#include "processor.h"
#include "test_util.h"
#include "ucall_common.h"
#include "userfault_util.h"

#define FIRST_SLOT	10
#define SLOT_GPA(slot)	((gpa_t)SZ_4G + (slot) * (gpa_t)SZ_1G)
#define SLOT_GVA(slot)	(0xc0000000ul + (slot) * (gva_t)SZ_1G)

#define NR_PAGES	512ul
#define NR_VCPUS	3
#define NR_CHANGERS	2
#define DEFAULT_SECONDS	10
#define PROGRESS_SECONDS 10

#ifdef __x86_64__
#define EMULATES_ACCESSES true
#else
#define EMULATES_ACCESSES false
#endif

/* What a read returns where there's no memslot. */
#define NOTHING		~0ul

#ifndef MADV_COLLAPSE
#define MADV_COLLAPSE	25
#endif

enum memory {
	MEM_ANONYMOUS,
	MEM_SHMEM,
	MEM_THP,
	MEM_GUEST_MEMFD,
	NR_MEMORIES,
};

enum change {
	CHANGE_ENABLE,
	CHANGE_DISABLE,
	CHANGE_DISCARD,
	CHANGE_PUNCH,
	CHANGE_RESET,
	CHANGE_LOG,
	CHANGE_COLLAPSE,
	NR_CHANGES,
};

static const char * const change_names[] = {
	[CHANGE_ENABLE]		= "enabled",
	[CHANGE_DISABLE]	= "disabled",
	[CHANGE_DISCARD]	= "discarded",
	[CHANGE_PUNCH]		= "punched",
	[CHANGE_RESET]		= "reset",
	[CHANGE_LOG]		= "dirty logging",
	[CHANGE_COLLAPSE]	= "collapsed",
};

/* Shared with the guest, on a page of its own. */
struct shared {
	/* By memslot: nothing older may be seen. */
	u64 oldest[NR_MEMORIES];
	u64 nr_slots;
	u64 page_size;
	u64 seed;
	u64 stop;
};

/*
 * A memslot.  Its pages are filled with the lock held for reading, anything else
 * is done with it held for writing.
 */
struct slot {
	struct kvm_userspace_memory_region2 region;
	enum memory memory;
	void *mem;
	void *allocated;
	size_t allocated_size;
	int gmem_fd;
	u64 *bitmap;
	pthread_rwlock_t lock;
	u64 generation;
	/* The last generation of each page that somebody has taken on to fill. */
	u64 filled[NR_PAGES];
};

static struct shared guest_shared;
static struct shared *shared;

static struct kvm_vm *vm;
static struct kvm_vcpu *vcpus[NR_VCPUS];
static pthread_t vcpu_threads[NR_VCPUS];
static struct slot slots[NR_MEMORIES];
static int nr_slots;
static size_t page_size;
static size_t slot_size;
static u64 seed;
static bool stop;

/* What KVM_CAP_PRE_FAULT_MEMORY returns. */
static int pre_fault_cap;

/* How often each vCPU's thread has entered or left KVM_RUN: odd while it's in there. */
static u64 nr_entered[NR_VCPUS];

/* What was done, to be told and to prove that it was. */
static u64 nr_changes[NR_CHANGES];
static u64 nr_exits, nr_prefaulted, nr_prefaulted_for_write, nr_nothing, nr_signals;
/* Memslots that were created with pages missing. */
static u64 nr_incomplete;

static void count(u64 *counter, u64 by)
{
	__atomic_fetch_add(counter, by, __ATOMIC_RELAXED);
}

/* Also for the guest, which has no library (Knuth's MMIX generator). */
static u64 next(u64 *state)
{
	*state = *state * 6364136223846793005ul + 1442695040888963407ul;
	return *state >> 24;
}

static u64 value(u64 gen, u64 page)
{
	return gen << 32 | (page + 1);
}

static void guest_check(u64 slot, u64 page, u64 v, u64 oldest)
{
	__GUEST_ASSERT(v == NOTHING || (u32)v == page + 1,
		       "Page %lu of memslot %lu has 0x%lx", page, slot, v);
	__GUEST_ASSERT(v >> 32 >= oldest,
		       "Page %lu of memslot %lu is of generation %lu, not %lu",
		       page, slot, v >> 32, oldest);
}

static void guest_code(u64 id)
{
	u64 size = guest_shared.page_size, state = guest_shared.seed + id;

	while (!READ_ONCE(guest_shared.stop)) {
		u64 slot = next(&state) % guest_shared.nr_slots;
		u64 page = next(&state) % NR_PAGES;
		u64 *p = (u64 *)(SLOT_GVA(slot) + page * size);
		u64 oldest, first, last;

		/* Plain accesses, as others can't be emulated as MMIO on arm64. */
		oldest = __atomic_load_n(&guest_shared.oldest[slot], __ATOMIC_ACQUIRE);
		first = READ_ONCE(p[0]);
		__atomic_thread_fence(__ATOMIC_ACQUIRE);
		last = READ_ONCE(p[size / sizeof(u64) - 1]);
		guest_check(slot, page, first, oldest);
		guest_check(slot, page, last, oldest);
		if (first != NOTHING)
			__GUEST_ASSERT(last >= first,
				       "Page %lu of memslot %lu: 0x%lx, then 0x%lx",
				       page, slot, first, last);

		if (next(&state) % 2)
			WRITE_ONCE(p[1 + id], first);
	}
	GUEST_DONE();
}

static bool is_enabled(struct slot *s)
{
	return s->region.flags & KVM_MEM_USERFAULT;
}

static void set_region(struct slot *s, u32 flags, size_t size)
{
	struct kvm_userspace_memory_region2 region = s->region;
	int ret;

	region.flags = flags;
	region.memory_size = size;
	ret = __vm_ioctl(vm, KVM_SET_USER_MEMORY_REGION2, &region);
	TEST_ASSERT(!ret, "Memslot %d: flags 0x%x to 0x%x, size 0x%lx: errno %d",
		    (int)(s - slots), s->region.flags, flags, size, errno);
	s->region.flags = flags;
}

/* Fill a page if it's missing and nobody else does.  Called with the lock held. */
static void __fill(struct slot *s, u64 page)
{
	u64 *p = s->mem + page * page_size;
	u64 old, i;

	old = __atomic_load_n(&s->filled[page], __ATOMIC_RELAXED);
	if (old == s->generation ||
	    !__atomic_compare_exchange_n(&s->filled[page], &old, s->generation, false,
					 __ATOMIC_RELAXED, __ATOMIC_RELAXED))
		return;

	for (i = 0; i < page_size / sizeof(u64); i++)
		WRITE_ONCE(p[i], value(s->generation, page));
	userfault_clear(s->bitmap, page, 1);
}

static void fill(struct slot *s, u64 page)
{
	pthread_rwlock_rdlock(&s->lock);
	__fill(s, page);
	pthread_rwlock_unlock(&s->lock);
}

/* Discard pages whose bits are set. */
static void discard(struct slot *s, u64 page, u64 nr)
{
	const size_t at = page * page_size, size = nr * page_size;

	switch (s->memory) {
	case MEM_GUEST_MEMFD:
		kvm_fallocate(s->gmem_fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, at, size);
		break;
	case MEM_SHMEM:
		kvm_madvise(s->mem + at, size, MADV_REMOVE);
		break;
	default:
		kvm_madvise(s->mem + at, size, MADV_DONTNEED);
		break;
	}
	for (; nr; nr--)
		s->filled[page++] = 0;
}

/* Without the flag, or the memslot, KVM has no business with the bitmap. */
static void protect_bitmap(struct slot *s, int prot)
{
	TEST_ASSERT(!mprotect(s->bitmap, page_size, prot), "mprotect() failed");
}

static void begin_generation(struct slot *s)
{
	s->generation++;
	__atomic_store_n(&shared->oldest[s - slots], s->generation, __ATOMIC_RELEASE);
}

static bool enable(struct slot *s)
{
	if (is_enabled(s))
		return false;
	protect_bitmap(s, PROT_READ | PROT_WRITE);
	userfault_set(s->bitmap, 0, NR_PAGES);
	set_region(s, s->region.flags | KVM_MEM_USERFAULT, slot_size);
	begin_generation(s);
	discard(s, 0, NR_PAGES);
	return true;
}

/* Nothing may be missing without the flag. */
static bool disable(struct slot *s)
{
	u64 page;

	if (!is_enabled(s))
		return false;
	for (page = 0; page < NR_PAGES; page++)
		__fill(s, page);
	set_region(s, s->region.flags & ~KVM_MEM_USERFAULT, slot_size);
	protect_bitmap(s, PROT_NONE);
	return true;
}

static bool discard_all(struct slot *s)
{
	if (!is_enabled(s))
		return false;
	userfault_set(s->bitmap, 0, NR_PAGES);
	discard(s, 0, NR_PAGES);
	begin_generation(s);
	return true;
}

static bool punch(struct slot *s, u64 *state)
{
	u64 page = next(state) % NR_PAGES, nr = 1 + next(state) % (NR_PAGES - page);

	if (!is_enabled(s))
		return false;
	userfault_set(s->bitmap, page, nr);
	discard(s, page, nr);
	return true;
}

/* Have all vCPUs leave KVM_RUN that are in it. */
static void kick_vcpus(void)
{
	int i;

	for (i = 0; i < NR_VCPUS; i++) {
		u64 *now = &nr_entered[i];
		u64 then = __atomic_load_n(now, __ATOMIC_SEQ_CST);

		/* Again, as a signal that comes just before KVM_RUN is lost. */
		while (then % 2 && __atomic_load_n(now, __ATOMIC_SEQ_CST) == then) {
			pthread_kill(vcpu_threads[i], SIGUSR1);
			usleep(200);
		}
	}
}

static bool misses_pages(struct slot *s)
{
	u64 page;

	for (page = 0; page < NR_PAGES; page++)
		if (userfault_is_set(s->bitmap, page))
			return true;
	return false;
}

/*
 * A vCPU that found no memslot may have its access emulated when there's one
 * again.  On x86, that is an access of KVM's own, for which the bitmap doesn't
 * count, so nothing may be missing until such a vCPU is done.
 */
static bool reset(struct slot *s, u64 *state)
{
	const bool complete = EMULATES_ACCESSES || next(state) % 2;
	u32 flags = s->region.flags;
	u64 page;

	set_region(s, 0, 0);
	protect_bitmap(s, PROT_NONE);
	usleep(next(state) % 1000);
	if (flags & KVM_MEM_USERFAULT) {
		protect_bitmap(s, PROT_READ | PROT_WRITE);
		for (page = 0; complete && page < NR_PAGES; page++)
			__fill(s, page);
		if (misses_pages(s))
			count(&nr_incomplete, 1);
	}
	set_region(s, flags, slot_size);
	if (EMULATES_ACCESSES)
		kick_vcpus();
	return true;
}

/* Not for guest_memfd, where KVM refuses it. */
static bool log_dirty(struct slot *s)
{
	static unsigned long dirty[NR_MEMORIES][NR_PAGES / BITS_PER_LONG + 1];
	struct kvm_dirty_log log = {
		.slot = s->region.slot,
		.dirty_bitmap = dirty[s - slots],
	};

	if (s->memory == MEM_GUEST_MEMFD)
		return false;
	set_region(s, s->region.flags ^ KVM_MEM_LOG_DIRTY_PAGES, slot_size);
	if (s->region.flags & KVM_MEM_LOG_DIRTY_PAGES)
		vm_ioctl(vm, KVM_GET_DIRTY_LOG, &log);
	return true;
}

/* It may fail for many reasons, and is there to have huge pages now and then. */
static bool collapse(struct slot *s)
{
	return s->memory == MEM_THP && !madvise(s->mem, slot_size, MADV_COLLAPSE);
}

static bool make_change(struct slot *s, enum change what, u64 *state)
{
	switch (what) {
	case CHANGE_ENABLE:	return enable(s);
	case CHANGE_DISABLE:	return disable(s);
	case CHANGE_DISCARD:	return discard_all(s);
	case CHANGE_PUNCH:	return punch(s, state);
	case CHANGE_RESET:	return reset(s, state);
	case CHANGE_LOG:	return log_dirty(s);
	default:		return collapse(s);
	}
}

static void *run_changer(void *arg)
{
	u64 state = seed + 100 + (unsigned long)arg;

	while (!READ_ONCE(stop)) {
		struct slot *s = &slots[next(&state) % nr_slots];
		enum change change = next(&state) % NR_CHANGES;

		pthread_rwlock_wrlock(&s->lock);
		if (make_change(s, change, &state))
			count(&nr_changes[change], 1);
		pthread_rwlock_unlock(&s->lock);

		if (next(&state) % 8 == 0) {
			pthread_kill(vcpu_threads[next(&state) % NR_VCPUS], SIGUSR1);
			count(&nr_signals, 1);
		}
		usleep(next(&state) % 4000);
	}
	return NULL;
}

static void *run_filler(void *arg)
{
	u64 state = seed + 200;

	while (!READ_ONCE(stop)) {
		fill(&slots[next(&state) % nr_slots], next(&state) % NR_PAGES);
		if (next(&state) % 16 == 0)
			usleep(next(&state) % 500);
	}
	return NULL;
}

static void pre_fault(struct kvm_vcpu *vcpu, u64 *state)
{
	u64 page = next(state) % NR_PAGES;
	struct kvm_pre_fault_memory range = {
		.gpa = SLOT_GPA(next(state) % nr_slots) + page * page_size,
		.size = (1 + next(state) % (NR_PAGES - page)) * page_size,
		.flags = next(state) % 2 ? pre_fault_cap & KVM_PRE_FAULT_FLAG_WRITE : 0,
	};
	u64 size = range.size;
	int ret = __vcpu_ioctl(vcpu, KVM_PRE_FAULT_MEMORY, &range);

	/* It's missing, being deleted, deleted, or a signal came. */
	TEST_ASSERT(!ret || errno == EFAULT || errno == EAGAIN || errno == ENOENT ||
		    errno == EINTR, "KVM_PRE_FAULT_MEMORY failed, errno %d", errno);
	count(range.flags ? &nr_prefaulted_for_write : &nr_prefaulted,
	      (size - range.size) / page_size);
}

static struct slot *slot_of(gpa_t gpa)
{
	u64 slot = (gpa - SLOT_GPA(0)) / SZ_1G;

	TEST_ASSERT(gpa >= SLOT_GPA(0) && slot < nr_slots &&
		    gpa - SLOT_GPA(slot) < slot_size, "Exit for gpa 0x%lx", gpa);
	return &slots[slot];
}

/* True if it was for memory that isn't there, of one or the other kind. */
static bool handle_exit(struct kvm_vcpu *vcpu, int ret, int err)
{
	struct kvm_run *run = vcpu->run;
	struct slot *s;

	if (is_userfault_exit(vcpu, ret, err)) {
		s = slot_of(run->memory_fault.gpa);
		fill(s, (run->memory_fault.gpa - SLOT_GPA(s - slots)) / page_size);
		count(&nr_exits, 1);
		return true;
	}
	if (ret && err == EINTR)
		return true;
	TEST_ASSERT(!ret, "KVM_RUN failed, errno %d, exit %s", err,
		    exit_reason_str(run->exit_reason));

	/* Deleted.  On arm64, it's how ucalls are made, too. */
	if (run->exit_reason == KVM_EXIT_MMIO && run->mmio.phys_addr >= SLOT_GPA(0) &&
	    run->mmio.phys_addr < SLOT_GPA(nr_slots)) {
		slot_of(run->mmio.phys_addr);
		memset(run->mmio.data, 0xff, sizeof(run->mmio.data));
		count(&nr_nothing, 1);
		return true;
	}
	return false;
}

static void *run_vcpu(void *arg)
{
	unsigned long id = (unsigned long)arg;
	struct kvm_vcpu *vcpu = vcpus[id];
	u64 state = seed + 300 + id;
	struct ucall uc;

	while (1) {
		int ret, err;

		__atomic_fetch_add(&nr_entered[id], 1, __ATOMIC_SEQ_CST);
		ret = __vcpu_run(vcpu);
		err = errno;
		__atomic_fetch_add(&nr_entered[id], 1, __ATOMIC_SEQ_CST);

		if (!handle_exit(vcpu, ret, err))
			break;
		if (pre_fault_cap && next(&state) % 4 == 0)
			pre_fault(vcpu, &state);
	}
	if (get_ucall(vcpu, &uc) == UCALL_ABORT)
		REPORT_GUEST_ASSERT(uc);
	TEST_ASSERT(uc.cmd == UCALL_DONE, "Unexpected exit: %s",
		    exit_reason_str(vcpu->run->exit_reason));
	return NULL;
}

/* Does nothing but interrupt KVM_RUN and KVM_PRE_FAULT_MEMORY. */
static void on_signal(int sig)
{
}

/* False if there's no such memory here. */
static bool alloc_memory(struct slot *s)
{
	const u64 gmem_flags = GUEST_MEMFD_FLAG_MMAP | GUEST_MEMFD_FLAG_INIT_SHARED;
	bool shared_mem = s->memory == MEM_SHMEM;

	s->gmem_fd = -1;
	if (s->memory == MEM_THP && !thp_configured())
		return false;

	if (s->memory == MEM_GUEST_MEMFD) {
		if (!kvm_has_cap(KVM_CAP_GUEST_MEMFD) ||
		    (vm_check_cap(vm, KVM_CAP_GUEST_MEMFD_FLAGS) & gmem_flags) != gmem_flags)
			return false;
		s->gmem_fd = vm_create_guest_memfd(vm, slot_size, gmem_flags);
		s->allocated_size = slot_size;
		s->mem = kvm_mmap(slot_size, PROT_READ | PROT_WRITE, MAP_SHARED, s->gmem_fd);
		s->allocated = s->mem;
		return true;
	}

	s->allocated_size = slot_size + (s->memory == MEM_THP ? get_trans_hugepagesz() : 0);
	s->allocated = kvm_mmap(s->allocated_size, PROT_READ | PROT_WRITE,
				shared_mem ? MAP_SHARED | MAP_ANONYMOUS :
					     MAP_PRIVATE | MAP_ANONYMOUS, -1);
	s->mem = s->allocated;
	if (s->memory == MEM_THP) {
		s->mem = align_ptr_up(s->allocated, get_trans_hugepagesz());
		kvm_madvise(s->mem, slot_size, MADV_HUGEPAGE);
	}
	return true;
}

static void add_slot(enum memory memory)
{
	struct slot *s = &slots[nr_slots];
	pthread_rwlockattr_t attr;

	s->memory = memory;
	if (!alloc_memory(s))
		return;

	/* Who changes a memslot must not be kept out by those who fill pages. */
	pthread_rwlockattr_init(&attr);
	pthread_rwlockattr_setkind_np(&attr, PTHREAD_RWLOCK_PREFER_WRITER_NONRECURSIVE_NP);
	pthread_rwlock_init(&s->lock, &attr);

	s->generation = 1;
	s->bitmap = userfault_alloc_bitmap(NR_PAGES);
	userfault_set(s->bitmap, 0, NR_PAGES);
	s->region = (struct kvm_userspace_memory_region2) {
		.slot = FIRST_SLOT + nr_slots,
		.guest_phys_addr = SLOT_GPA(nr_slots),
		.memory_size = slot_size,
		.userspace_addr = (uintptr_t)s->mem,
		.guest_memfd = s->gmem_fd,
		.userfault_bitmap = (uintptr_t)s->bitmap,
	};
	set_region(s, KVM_MEM_USERFAULT |
		   (memory == MEM_GUEST_MEMFD ? KVM_MEM_GUEST_MEMFD : 0), slot_size);
	virt_map(vm, SLOT_GVA(nr_slots), SLOT_GPA(nr_slots), slot_size / vm->page_size);
	nr_slots++;
}

static void create_vm(void)
{
	int i;

	vm = vm_create_with_vcpus(NR_VCPUS, guest_code, vcpus);
	for (i = 0; i < NR_VCPUS; i++)
		vcpu_args_set(vcpus[i], 1, i);
	for (i = 0; i < NR_MEMORIES; i++)
		add_slot(i);

	shared = addr_gva2hva(vm, (gva_t)&guest_shared);
	*shared = (struct shared) {
		.nr_slots = nr_slots,
		.page_size = page_size,
		.seed = seed,
	};
	for (i = 0; i < nr_slots; i++)
		shared->oldest[i] = 1;
}

static void free_vm(void)
{
	struct slot *s;

	kvm_vm_free(vm);
	for (s = slots; s < slots + nr_slots; s++) {
		userfault_free_bitmap(s->bitmap, NR_PAGES);
		kvm_munmap(s->allocated, s->allocated_size);
		if (s->gmem_fd >= 0)
			close(s->gmem_fd);
	}
}

static void tell(long seconds)
{
	int i;

	pr_info("%lds: %lu exits, %lu pages prefaulted, %lu for writing, ",
		seconds, nr_exits, nr_prefaulted, nr_prefaulted_for_write);
	pr_info("%lu accesses to nothing, %lu signals, %lu incomplete memslots created",
		nr_nothing, nr_signals, nr_incomplete);
	for (i = 0; i < NR_CHANGES; i++)
		pr_info(", %lu %s", nr_changes[i], change_names[i]);
	pr_info("\n");
}

static void soak(long seconds)
{
	pthread_t threads[NR_CHANGERS + 1];
	long i, second;

	for (i = 0; i < NR_VCPUS; i++)
		kvm_pthread_create(&vcpu_threads[i], NULL, run_vcpu, (void *)i);
	for (i = 0; i < NR_CHANGERS; i++)
		kvm_pthread_create(&threads[i], NULL, run_changer, (void *)i);
	kvm_pthread_create(&threads[i], NULL, run_filler, NULL);

	for (second = 1; second <= seconds; second++) {
		sleep(1);
		if (second % PROGRESS_SECONDS == 0 && second < seconds)
			tell(second);
	}

	/* vCPUs wait for their pages until the last, then there's nobody to signal. */
	WRITE_ONCE(stop, true);
	for (i = 0; i < NR_CHANGERS + 1; i++)
		kvm_pthread_join(threads[i], NULL);
	WRITE_ONCE(shared->stop, 1);
	for (i = 0; i < NR_VCPUS; i++)
		kvm_pthread_join(vcpu_threads[i], NULL);
	tell(seconds);
}

static void help(const char *name)
{
	printf("usage: %s [-h] [-s seed] [-t seconds]\n", name);
	printf(" -s: what the threads do follows from it (default: the time)\n");
	printf(" -t: how long (default: %d)\n", DEFAULT_SECONDS);
}

int main(int argc, char *argv[])
{
	struct sigaction action = { .sa_handler = on_signal };
	long seconds = DEFAULT_SECONDS;
	int opt, i;

	seed = time(NULL);
	while ((opt = getopt(argc, argv, "hs:t:")) != -1) {
		switch (opt) {
		case 's':
			seed = strtoul(optarg, NULL, 0);
			break;
		case 't':
			seconds = atoi_positive("Seconds", optarg);
			break;
		case 'h':
		default:
			help(argv[0]);
			exit(opt == 'h' ? 0 : 1);
		}
	}

	TEST_REQUIRE(kvm_has_cap(KVM_CAP_USERFAULT));
	pr_info("The seed is %lu, for -s\n", seed);

	pre_fault_cap = kvm_check_cap(KVM_CAP_PRE_FAULT_MEMORY);
	page_size = getpagesize();
	slot_size = NR_PAGES * page_size;
	sigaction(SIGUSR1, &action, NULL);
	create_vm();
	soak(seconds);
	free_vm();

	TEST_ASSERT(nr_exits && nr_nothing && nr_signals, "Something never happened");
	TEST_ASSERT(nr_incomplete || EMULATES_ACCESSES, "No memslot was created incomplete");
	TEST_ASSERT(nr_prefaulted || !pre_fault_cap, "Nothing was prefaulted");
	TEST_ASSERT(nr_prefaulted_for_write || !(pre_fault_cap & KVM_PRE_FAULT_FLAG_WRITE),
		    "Nothing was prefaulted for writing");
	for (i = 0; i < NR_CHANGES; i++)
		TEST_ASSERT(nr_changes[i] || i == CHANGE_COLLAPSE, "Never %s", change_names[i]);
	return 0;
}
