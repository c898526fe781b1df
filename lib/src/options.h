/* SPDX-License-Identifier: MIT */
/*
 * options.h: copy a caller's option struct into ours, whichever is longer.
 * Internal.
 */
#ifndef INFILL_OPTIONS_H
#define INFILL_OPTIONS_H

#include <stddef.h>

/*
 * Copy FROM (its first member is its size, SIZE_MAX-safe) to TO of SIZE bytes;
 * what FROM lacks is zero.  NULL: all zero.  -EINVAL: a size of less than
 * sizeof(size_t); -E2BIG: bytes that this library does not know are not zero.
 * WHAT names the struct in the message.
 */
int options_copy(void *to, size_t size, const void *from, const char *what);

#endif
