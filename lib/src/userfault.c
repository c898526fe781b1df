/* SPDX-License-Identifier: MIT */
/*
 * userfault.c: bitmaps, memslots and waiters of KVM Userfault.  Internal; the
 * rules that the bitmap follows are KVM's: Documentation/virt/kvm/api.rst,
 * KVM_CAP_USERFAULT.
 */
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/futex.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "err.h"
#include "kvm_api.h"
#include "memory.h"
#include "userfault.h"
#include "wire.h"

#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_WRITE 23
#endif

#define BITS 64u
#define SPINS 256          /* looks at a page before its filler is waited for */
#define WAIT_NS 10000000   /* a wait: short, as its page is looked at again anyway */
#define QUEUES 64          /* pages share them; who is woken in vain looks again */

struct slot {
	struct kvm_api_region region; /* as it is registered */
	char *target;
	_Atomic uint64_t *bitmap;
	size_t bitmap_bytes;
	size_t target_bytes; /* of a mapping that is the userfault's; 0: it is not */
	bool registered;
};

/* Those that wait for one of the pages that share it. */
struct queue_word {
	_Atomic uint32_t turn;
	_Atomic uint32_t sleepers;
} __attribute__((aligned(64)));

struct userfault {
	int vm_fd;
	uint64_t host_page;
	unsigned slots;
	struct slot slot[INFILL_MEMORY_REGIONS_MAX]; /* as the regions of the pagemap */
	const struct pagemap_region *first;          /* of them */
	struct queue_word queue[QUEUES];
};

/* ---- the bits ------------------------------------------------------------ */

/* FD, AT: where in a file; -1: private. */
static int new_bitmap(struct slot *s, uint64_t length, uint64_t host_page, int fd, uint64_t at)
{
	int flags = fd < 0 ? MAP_PRIVATE | MAP_ANONYMOUS : MAP_SHARED;
	void *map;

	s->bitmap_bytes = wire_bitmap_bytes(length, host_page);
	map = mmap(NULL, s->bitmap_bytes, PROT_READ | PROT_WRITE, flags, fd, (off_t)at);
	if (map == MAP_FAILED)
		return err_set(-errno, "userfault: no memory for a bitmap of %llu pages: %m",
			       (unsigned long long)(length / host_page));
	s->bitmap = map;
	memset(map, 0xff, s->bitmap_bytes);
	return 0;
}

/* Bits FIRST to END of a word. */
static uint64_t mask(uint64_t first, uint64_t end)
{
	uint64_t low = UINT64_MAX << first;

	return end == BITS ? low : low & ~(UINT64_MAX << end);
}

static void clear_bits(struct slot *s, uint64_t bit, uint64_t count)
{
	uint64_t end = bit + count;

	while (bit < end) {
		uint64_t word = bit / BITS, last = end - word * BITS;
		uint64_t bits = mask(bit % BITS, last < BITS ? last : BITS);

		/* Orders the content before the bit, as KVM's API asks. */
		atomic_fetch_and_explicit(&s->bitmap[word], ~bits, memory_order_release);
		bit = (word + 1) * BITS;
	}
}

/* ---- memslots -------------------------------------------------------------- */

static int set_region(struct userfault *uf, const struct kvm_api_region *region)
{
	return ioctl(uf->vm_fd, KVM_API_SET_REGION, region) ? -errno : 0;
}

static int slot_error(int err, const struct kvm_api_region *r, const char *what, const char *why)
{
	return err_set(err, "userfault: memslot %u at 0x%llx, 0x%llx bytes: cannot %s: %s", r->slot,
		       (unsigned long long)r->guest_phys_addr, (unsigned long long)r->memory_size,
		       what, why);
}

/* Why KVM refuses to set the flag. */
static const char *why_not_set(int vm_fd, int err)
{
	if (err == -EPERM && userfault_protected(vm_fd))
		return "a vCPU of the protected VM has run, or prefaulted: start the session before, or "
		       "with memslots that are new";
	return strerror(-err);
}

/* Of the regions of the VM the one that became R. */
static const struct infill_region *original(const struct infill_memory *memory,
					    const struct pagemap_region *r)
{
	for (unsigned i = 0; i < memory->count; i++)
		if (memory->region[i].hva == r->hva)
			return &memory->region[i];
	return NULL;
}

/* *AT: where its bitmap begins in BITMAP_FD, then where it ends. */
static int register_slot(struct userfault *uf, const struct infill_region *from,
			 const struct pagemap_region *r, int bitmap_fd, uint64_t *at)
{
	struct slot *s = &uf->slot[uf->slots];
	int err = new_bitmap(s, r->length, uf->host_page, bitmap_fd, *at);

	if (err)
		return err;
	*at += s->bitmap_bytes;
	uf->slots++;
	s->target = (char *)(uintptr_t)(from->fill_hva ? from->fill_hva : from->hva);
	s->region = (struct kvm_api_region){
		.slot = from->slot,
		.flags = from->slot_flags | KVM_MEM_USERFAULT,
		.guest_phys_addr = from->gpa,
		.memory_size = from->length,
		.userspace_addr = from->hva,
		.guest_memfd_offset = from->guest_memfd_offset,
		.guest_memfd = (uint32_t)from->guest_memfd,
		.userfault_bitmap = (uintptr_t)s->bitmap,
	};
	err = set_region(uf, &s->region);
	if (err)
		return slot_error(err, &s->region, "set KVM_MEM_USERFAULT",
				  why_not_set(uf->vm_fd, err));
	s->registered = true;
	return 0;
}

int userfault_check(int vm_fd)
{
	if (ioctl(vm_fd, KVM_CHECK_EXTENSION, KVM_CAP_USERFAULT) > 0)
		return 0;
	return err_set(-EOPNOTSUPP, "userfault: this kernel, or this kind of VM, has no KVM "
				    "Userfault: use a userfaultfd (infill doctor)");
}

/*
 * No capability is for this alone.  Each VM of arm64 may have memslots that are
 * read-only, since Linux 3.x, but one that is protected: its memory is given to
 * it for good and for writing (kvm_pkvm_ext_allowed()).
 */
bool userfault_protected(int vm_fd)
{
#ifdef __aarch64__
	return ioctl(vm_fd, KVM_CHECK_EXTENSION, KVM_CAP_READONLY_MEM) <= 0;
#else
	(void)vm_fd;
	return false;
#endif
}

int userfault_check_protected(const struct infill_memory *memory)
{
	for (unsigned i = 0; i < memory->count; i++) {
		const struct infill_region *r = &memory->region[i];

		if (r->backing == INFILL_BACKING_GUEST_MEMFD || r->backing == INFILL_BACKING_HUGETLB)
			return err_set(-EOPNOTSUPP,
				       "memory region at gpa 0x%llx: a protected VM cannot have %s: use "
				       "anonymous memory or a memfd", (unsigned long long)r->gpa,
				       r->backing == INFILL_BACKING_HUGETLB ? "huge pages of hugetlb" :
									      "a guest_memfd");
		if (r->slot_flags & (KVM_MEM_READONLY | KVM_MEM_LOG_DIRTY_PAGES))
			return err_set(-EINVAL,
				       "memory region at gpa 0x%llx: slot_flags are 0x%x: a protected "
				       "VM has no memslots that are read-only or log dirty pages",
				       (unsigned long long)r->gpa, r->slot_flags);
	}
	return 0;
}

static struct userfault *alloc(const struct pagemap *pm)
{
	struct userfault *uf = aligned_alloc(64, sizeof(*uf));

	if (!uf)
		return NULL;
	memset(uf, 0, sizeof(*uf));
	uf->host_page = (uint64_t)sysconf(_SC_PAGESIZE);
	uf->first = pm->header->region;
	uf->vm_fd = -1;
	return uf;
}

int userfault_new(struct userfault **userfault, int vm_fd, int bitmap_fd,
		  const struct infill_memory *memory, const struct pagemap *pm)
{
	struct userfault *uf = alloc(pm);
	uint64_t at = 0;
	int err = 0;

	if (!uf)
		return err_set(-ENOMEM, "userfault: %m");
	uf->vm_fd = fcntl(vm_fd, F_DUPFD_CLOEXEC, 0);
	if (uf->vm_fd < 0)
		err = err_set(-errno, "userfault: the VM's fd: %m");
	for (unsigned i = 0; i < pm->header->regions && !err; i++) {
		const struct pagemap_region *r = &pm->header->region[i];

		if (r->page_size % uf->host_page)
			err = err_set(-EOPNOTSUPP,
				      "userfault: pages of %llu bytes on a host with pages of %llu",
				      (unsigned long long)r->page_size,
				      (unsigned long long)uf->host_page);
		else
			err = register_slot(uf, original(memory, r), r, bitmap_fd, &at);
	}
	if (err) {
		userfault_disable(uf);
		userfault_free(uf);
		return err;
	}
	*userfault = uf;
	return 0;
}

void userfault_unmap(const struct userfault_part *part, unsigned count)
{
	for (unsigned i = 0; i < count; i++) {
		if (part[i].bitmap)
			munmap(part[i].bitmap, part[i].bitmap_bytes);
		if (part[i].target)
			munmap(part[i].target, part[i].target_bytes);
	}
}

/* A page's state goes before its bit, so only settled pages can have theirs left. */
static void clear_settled(struct userfault *uf, const struct pagemap *pm)
{
	for (unsigned i = 0; i < pm->header->regions; i++) {
		const struct pagemap_region *r = &pm->header->region[i];
		uint64_t end = r->first + r->pages, page = r->first;

		while (page < end) {
			uint64_t n = pagemap_run(pm, page, end - page, PAGE_PRESENT);

			n += pagemap_run(pm, page + n, end - page - n, PAGE_REMOVED);
			if (n)
				userfault_clear(uf, r, page, n);
			page += n ? n : 1;
		}
	}
}

int userfault_adopt(struct userfault **userfault, const struct pagemap *pm,
		    const struct userfault_part *part)
{
	struct userfault *uf = alloc(pm);

	if (!uf)
		return err_set(-ENOMEM, "userfault: %m");
	for (unsigned i = 0; i < pm->header->regions; i++)
		uf->slot[uf->slots++] = (struct slot){
			.bitmap = part[i].bitmap, .bitmap_bytes = part[i].bitmap_bytes,
			.target = part[i].target, .target_bytes = part[i].target_bytes,
		};
	clear_settled(uf, pm);
	*userfault = uf;
	return 0;
}

int userfault_disable(struct userfault *uf)
{
	int err = 0;

	for (unsigned i = 0; i < uf->slots; i++) {
		struct slot *s = &uf->slot[i];
		int one;

		if (!s->registered)
			continue;
		s->region.flags &= ~(uint32_t)KVM_MEM_USERFAULT;
		s->region.userfault_bitmap = 0;
		one = set_region(uf, &s->region);
		s->registered = one != 0;
		if (one && !err)
			err = slot_error(one, &s->region, "clear KVM_MEM_USERFAULT", strerror(-one));
	}
	return err;
}

void userfault_free(struct userfault *uf)
{
	if (!uf)
		return;
	for (unsigned i = 0; i < uf->slots; i++) {
		struct slot *s = &uf->slot[i];

		if (!s->registered)
			munmap((void *)(uintptr_t)s->bitmap, s->bitmap_bytes);
		if (s->target_bytes)
			munmap(s->target, s->target_bytes);
	}
	if (uf->vm_fd >= 0)
		close(uf->vm_fd);
	free(uf);
}

/* ---- pages ----------------------------------------------------------------- */

static struct slot *slot_of(const struct userfault *uf, const struct pagemap_region *r)
{
	return (struct slot *)(uintptr_t)&uf->slot[r - uf->first];
}

void *userfault_target(const struct userfault *uf, const struct pagemap_region *r, uint64_t page)
{
	return slot_of(uf, r)->target + (page - r->first) * r->page_size;
}

int userfault_write(const struct userfault *uf, const struct pagemap_region *r, uint64_t page,
		    uint64_t count, const void *data)
{
	char *target = userfault_target(uf, r, page);
	size_t length = count * r->page_size;

	/* Where there is no memory left a store would raise SIGBUS; this says so. */
	if (madvise(target, length, MADV_POPULATE_WRITE))
		return errno == EFAULT ? -ENOMEM : -errno;
	memcpy(target, data, length);
	return 0;
}

int userfault_drop(const struct userfault *uf, const struct pagemap_region *r, uint64_t page,
		   uint64_t count)
{
	char *target = userfault_target(uf, r, page);
	size_t length = count * r->page_size;

	if (madvise(target, length, MADV_REMOVE)) {
		bool no_file = errno == EINVAL || errno == EACCES; /* or a private mapping of one */

		if (!no_file || r->backing == INFILL_BACKING_GUEST_MEMFD)
			return -errno;
	}
	/* Not to be had of a file: pages of a private mapping, and marks of poison. */
	if (r->backing != INFILL_BACKING_GUEST_MEMFD && madvise(target, length, MADV_DONTNEED))
		return -errno;
	return 0;
}

void userfault_clear(struct userfault *uf, const struct pagemap_region *r, uint64_t page,
		     uint64_t count)
{
	uint64_t per = r->page_size / uf->host_page;

	clear_bits(slot_of(uf, r), (page - r->first) * per, count * per);
	userfault_wake(uf, page, count);
}

bool userfault_missing(const struct userfault *uf, const struct pagemap_region *r, uint64_t page)
{
	uint64_t bit = (page - r->first) * (r->page_size / uf->host_page);

	/* Orders the bit before what is read of the page. */
	return atomic_load_explicit(&slot_of(uf, r)->bitmap[bit / BITS], memory_order_acquire) >>
	       bit % BITS & 1;
}

static uint64_t count_bits(const struct slot *s, uint64_t end)
{
	uint64_t bits = 0;

	for (uint64_t word = 0; word * BITS < end; word++) {
		uint64_t left = end - word * BITS;
		uint64_t value = atomic_load_explicit(&s->bitmap[word], memory_order_relaxed);

		bits += (uint64_t)__builtin_popcountll(value & mask(0, left < BITS ? left : BITS));
	}
	return bits;
}

uint64_t userfault_missing_pages(const struct userfault *uf)
{
	uint64_t pages = 0;

	for (unsigned i = 0; i < uf->slots; i++) {
		const struct pagemap_region *r = &uf->first[i];

		pages += count_bits(&uf->slot[i], r->length / uf->host_page) /
			 (r->page_size / uf->host_page);
	}
	return pages;
}

void userfault_forget(struct userfault *uf)
{
	for (unsigned i = 0; i < uf->slots; i++)
		madvise((void *)(uintptr_t)uf->slot[i].bitmap, uf->slot[i].bitmap_bytes, MADV_REMOVE);
}

/* ---- who waits --------------------------------------------------------------- */

static long futex(_Atomic uint32_t *word, int op, uint32_t value, const struct timespec *timeout)
{
	return syscall(SYS_futex, word, op | FUTEX_PRIVATE_FLAG, value, timeout, NULL, 0);
}

void userfault_wake(struct userfault *uf, uint64_t page, uint64_t count)
{
	/* Pairs with the one in userfault_wait(): either sees what the other has written. */
	atomic_thread_fence(memory_order_seq_cst);
	for (uint64_t i = 0; i < count && i < QUEUES; i++) {
		struct queue_word *q = &uf->queue[(page + i) % QUEUES];

		if (!atomic_load_explicit(&q->sleepers, memory_order_relaxed))
			continue;
		atomic_fetch_add_explicit(&q->turn, 1, memory_order_relaxed);
		futex(&q->turn, FUTEX_WAKE, INT_MAX, NULL);
	}
}

static bool being_filled(const struct pagemap *pm, uint64_t page)
{
	return pagemap_get(pm, page) == PAGE_FILLING;
}

void userfault_wait(struct userfault *uf, const struct pagemap *pm, uint64_t page)
{
	const struct timespec most = { .tv_nsec = WAIT_NS };
	struct queue_word *q = &uf->queue[page % QUEUES];
	uint32_t turn;

	/* Most pages take less time to fill than a sleep does. */
	for (unsigned n = 0; n < SPINS && being_filled(pm, page); n++)
		if (n % 32 == 31)
			sched_yield();
	turn = atomic_load_explicit(&q->turn, memory_order_relaxed);
	atomic_fetch_add_explicit(&q->sleepers, 1, memory_order_relaxed);
	atomic_thread_fence(memory_order_seq_cst);
	if (being_filled(pm, page))
		futex(&q->turn, FUTEX_WAIT, turn, &most);
	atomic_fetch_sub_explicit(&q->sleepers, 1, memory_order_relaxed);
}
