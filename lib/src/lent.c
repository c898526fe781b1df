/* SPDX-License-Identifier: MIT */
/* lent.c: the files that a VMM lends its pager.  Internal. */
#include <errno.h>
#include <fcntl.h>
#include <linux/magic.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <unistd.h>

#include "err.h"
#include "lent.h"
#include "memory.h"

#ifndef GUEST_MEMFD_MAGIC
#define GUEST_MEMFD_MAGIC 0x474d454d
#endif

/* FD is memory of BYTES at least, for good. */
static int check_file(int fd, bool guest_memfd, uint64_t bytes, const char *what, unsigned number)
{
	struct statfs fs;
	struct stat st;
	int seals;

	if (fstatfs(fd, &fs) || fstat(fd, &st))
		return err_set(-EBADF, "hello: %s %u: %m", what, number);
	if (!guest_memfd || (uint32_t)fs.f_type != GUEST_MEMFD_MAGIC) {
		seals = fcntl(fd, F_GET_SEALS);
		if ((uint32_t)fs.f_type != TMPFS_MAGIC || seals < 0)
			return err_set(-EBADF, "hello: %s %u: is no %s", what, number,
				       guest_memfd ? "guest_memfd, and no memfd" : "memfd");
		if (!(seals & F_SEAL_SHRINK))
			return err_set(-EBADF, "hello: %s %u: is not sealed against shrinking: add "
				       "F_SEAL_SHRINK", what, number);
	}
	if ((uint64_t)st.st_size < bytes)
		return err_set(-EBADF, "hello: %s %u: has %lld bytes: %llu are needed", what, number,
			       (long long)st.st_size, (unsigned long long)bytes);
	return 0;
}

static int map(void **to, size_t *mapped, int fd, uint64_t at, uint64_t bytes, const char *what)
{
	void *address = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, (off_t)at);

	if (address == MAP_FAILED)
		return err_set(-errno, "hello: cannot map %llu bytes of %s: %m",
			       (unsigned long long)bytes, what);
	*to = address;
	*mapped = bytes;
	return 0;
}

static int map_region(const struct wire_region *r, const int *fd, struct userfault_part *part)
{
	uint64_t bits = wire_bitmap_bytes(r->bytes, (uint64_t)sysconf(_SC_PAGESIZE));
	int rc = check_file(fd[0], false, r->bitmap_at + bits, "bitmap", 0);

	if (!rc)
		rc = map(&part->bitmap, &part->bitmap_bytes, fd[0], r->bitmap_at, bits, "the bitmap");
	if (rc || r->file == WIRE_NO_FILE)
		return rc;
	rc = check_file(fd[1 + r->file], true, r->file_at + r->bytes, "file", r->file);
	return rc ? rc : map(&part->target, &part->target_bytes, fd[1 + r->file], r->file_at,
			     r->bytes, "a guest_memfd");
}

int lent_map(const struct wire_vm *vm, const int *fd, unsigned count,
	     struct userfault_part part[INFILL_MEMORY_REGIONS_MAX])
{
	unsigned expected = 1 + vm->files + vm->channels;
	int rc = 0;

	memset(part, 0, INFILL_MEMORY_REGIONS_MAX * sizeof(*part));
	if (count != expected)
		return err_set(-EPROTO, "hello: has %u file descriptors that are no userfaultfd: %u "
			       "are announced", count, expected);
	for (unsigned i = 0; i < vm->memory->count && !rc; i++)
		rc = map_region(&vm->region[i], fd, &part[i]);
	if (rc)
		userfault_unmap(part, INFILL_MEMORY_REGIONS_MAX);
	return rc;
}
