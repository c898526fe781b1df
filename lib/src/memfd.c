/* SPDX-License-Identifier: MIT */
/*
 * memfd.c: a memfd of a size.  Internal; may change freely.
 */
#include <errno.h>
#include <sys/mman.h>
#include <unistd.h>

#include "memfd.h"

#ifndef MFD_NOEXEC_SEAL
#define MFD_NOEXEC_SEAL 8u
#endif

int memfd_make(const char *name, uint64_t bytes)
{
	/* vm.memfd_noexec=2 permits no others; kernels before 6.3 do not know the flag. */
	int fd = memfd_create(name, MFD_CLOEXEC | MFD_ALLOW_SEALING | MFD_NOEXEC_SEAL);

	if (fd < 0 && errno == EINVAL)
		fd = memfd_create(name, MFD_CLOEXEC | MFD_ALLOW_SEALING);
	if (fd < 0)
		return -errno;
	if (ftruncate(fd, (off_t)bytes)) {
		int code = -errno;

		close(fd);
		return code;
	}
	return fd;
}
