/* SPDX-License-Identifier: MIT */
/*
 * memory.c: guest memory in a memfd, in huge pages, in a guest_memfd, or in none.
 * For another backing add a word to `words` and a case to make_fd().
 */
#include <errno.h>
#include <linux/memfd.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

#include "error.h"
#include "memory.h"

#define PAGE 4096u
#define HUGE_PAGE (2u << 20)

static const char *const words[] = {
	[MEMORY_MEMFD] = "memfd",
	[MEMORY_HUGETLB] = "hugetlb",
	[MEMORY_GUEST_MEMFD] = "guest-memfd",
	[MEMORY_ANONYMOUS] = "anonymous",
};

bool memory_backing_of(const char *word, enum memory_backing *backing)
{
	for (unsigned i = 0; i < sizeof(words) / sizeof(words[0]); i++)
		if (!strcmp(word, words[i])) {
			*backing = (enum memory_backing)i;
			return true;
		}
	return false;
}

uint64_t memory_granule(enum memory_backing backing)
{
	return backing == MEMORY_HUGETLB ? HUGE_PAGE : PAGE;
}

/* ---- mapping --------------------------------------------------------------- */

static int make_guest_memfd(const struct vm *vm, uint64_t bytes)
{
	struct kvm_create_guest_memfd create = {
		.size = bytes,
		/* Without these the host could not map it, and would see none of its pages. */
		.flags = GUEST_MEMFD_FLAG_MMAP | GUEST_MEMFD_FLAG_INIT_SHARED,
	};
	int flags = ioctl(vm->fd, KVM_CHECK_EXTENSION, KVM_CAP_GUEST_MEMFD_FLAGS);

	if (flags < 0 || ((uint64_t)flags & create.flags) != create.flags) {
		errno = EOPNOTSUPP;
		return -1;
	}
	return ioctl(vm->fd, KVM_CREATE_GUEST_MEMFD, &create);
}

/* An fd of BYTES, or -1 with errno. */
static int make_fd(const struct vm *vm, uint64_t bytes)
{
	unsigned flags = MFD_CLOEXEC;
	int fd;

	if (vm->backing == MEMORY_GUEST_MEMFD)
		return make_guest_memfd(vm, bytes);
	if (vm->backing == MEMORY_HUGETLB)
		flags |= MFD_HUGETLB | MFD_HUGE_2MB;
	fd = memfd_create("guest", flags);
	if (fd >= 0 && ftruncate(fd, (off_t)bytes)) {
		close(fd);
		return -1;
	}
	return fd;
}

int memory_map(struct vm *vm, struct region *region)
{
	int flags = MAP_SHARED;
	void *map;

	if (vm->backing == MEMORY_ANONYMOUS) {
		flags = MAP_PRIVATE | MAP_ANONYMOUS;
	} else {
		region->fd = make_fd(vm, region->bytes);
		if (region->fd < 0)
			return vmm_error(-errno, "memory: %s: %m", words[vm->backing]);
	}
	map = mmap(NULL, region->bytes, PROT_READ | PROT_WRITE, flags, region->fd, 0);
	if (map == MAP_FAILED)
		return vmm_error(-errno, "memory: mapping %llu bytes of %s: %m",
				 (unsigned long long)region->bytes, words[vm->backing]);
	region->hva = map;
	return 0;
}

void memory_unmap(struct region *region)
{
	if (region->hva)
		munmap(region->hva, region->bytes);
	if (region->fd >= 0)
		close(region->fd);
	region->hva = NULL;
	region->fd = -1;
}

int memory_set_slot(struct vm *vm, const struct region *region)
{
	struct kvm_userspace_memory_region2 slot = {
		.slot = region->slot,
		.guest_phys_addr = region->gpa,
		.memory_size = region->bytes,
		.userspace_addr = (uintptr_t)region->hva,
	};
	/* Kernels from before 6.8 know only the first one; it is the beginning of the second. */
	unsigned long request = KVM_SET_USER_MEMORY_REGION;

	if (vm->backing == MEMORY_GUEST_MEMFD) {
		request = KVM_SET_USER_MEMORY_REGION2;
		slot.flags = KVM_MEM_GUEST_MEMFD;
		slot.guest_memfd = (uint32_t)region->fd;
		slot.guest_memfd_offset = region->fd_offset;
	}
	if (ioctl(vm->fd, request, &slot))
		return vmm_error(-errno, "memory: slot %u: %m", region->slot);
	return 0;
}

/* ---- the memory file --------------------------------------------------------- */

static bool is_zero(const uint8_t *page)
{
	return !page[0] && !memcmp(page, page + 1, PAGE - 1);
}

/* Write the pages of REGION that are not zero, neighbours at once. */
static int save_region(const struct region *region, int fd)
{
	uint64_t from = 0, to;

	while (from < region->bytes) {
		if (is_zero(region->hva + from)) {
			from += PAGE;
			continue;
		}
		for (to = from + PAGE; to < region->bytes && !is_zero(region->hva + to);)
			to += PAGE;
		if (file_write(fd, region->hva + from, to - from, region->offset + from))
			return -errno;
		from = to;
	}
	return 0;
}

int memory_save(struct vm *vm, const char *path, struct new_file *file)
{
	int err = file_new(file, path);

	if (err)
		return err;
	if (ftruncate(file->fd, (off_t)vm->memory_bytes))
		err = -errno;
	for (unsigned i = 0; i < vm->regions && !err; i++)
		err = save_region(&vm->region[i], file->fd);
	return file_complete(file, err);
}

int memory_open(const char *path, uint64_t bytes)
{
	uint64_t found;
	int fd = file_open(path, &found);

	if (fd < 0 || found == bytes)
		return fd;
	close(fd);
	return vmm_error(-EINVAL, "%s: not the memory file of the state: not of %llu bytes", path,
			 (unsigned long long)bytes);
}

int memory_load(const struct region *region, int fd, const char *path)
{
	const off_t end = (off_t)(region->offset + region->bytes);
	off_t from = (off_t)region->offset, to;

	/* Holes are zero, as the memory is: do not fill it with zero pages. */
	while ((from = lseek(fd, from, SEEK_DATA)) >= 0 && from < end) {
		to = lseek(fd, from, SEEK_HOLE);
		if (to < 0 || to > end)
			to = end;
		if (file_read(fd, region->hva + (from - (off_t)region->offset),
			      (uint64_t)(to - from), (uint64_t)from))
			return vmm_error(-errno, "%s: %m", path);
		from = to;
	}
	return from < 0 && errno != ENXIO ? vmm_error(-errno, "%s: %m", path) : 0;
}
