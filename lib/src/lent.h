/* SPDX-License-Identifier: MIT */
/*
 * lent.h: the files that a VMM lends its pager with a hello: bitmaps and guest
 * memory, verified and mapped.  A hostile VMM may send any file: one that it
 * can cut short would kill the pager by SIGBUS when that touches it, one of
 * FUSE would hang it.  So a file is a guest_memfd, whose size is fixed, or a
 * memfd of shared memory that is sealed against shrinking; nothing else.
 * Internal.
 */
#ifndef INFILL_LENT_H
#define INFILL_LENT_H

#include "userfault.h"
#include "wire.h"

/*
 * Map for each region of VM what PART says.  FD has the hello's files: the
 * bitmaps' memfd, then vm->files; COUNT fds were received, userfaultfd not
 * among them.  0; -EPROTO: not so many fds as announced; -EBADF: a file of
 * another kind, not sealed or too short; as mmap(2).
 */
int lent_map(const struct wire_vm *vm, const int *fd, unsigned count,
	     struct userfault_part part[INFILL_MEMORY_REGIONS_MAX]);

#endif
