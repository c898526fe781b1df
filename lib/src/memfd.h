/* SPDX-License-Identifier: MIT */
/*
 * memfd.h: make memfds the same way everywhere.  Internal.
 */
#ifndef INFILL_MEMFD_H
#define INFILL_MEMFD_H

#include <stdint.h>

/*
 * A new memfd of BYTES, all a hole, close-on-exec, sealable, not executable
 * where the kernel knows that.  The fd or -errno, without err_set().
 */
int memfd_make(const char *name, uint64_t bytes);

#endif
