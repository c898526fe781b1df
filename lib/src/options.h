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
 * sizeof(size_t), or the uint32_t at offset RESERVED (0: there is none) is not
 * zero; -E2BIG: bytes that this library does not know are not zero.  WHAT
 * names the struct in the message.
 */
int options_copy(void *to, size_t size, const void *from, const char *what, size_t reserved);

/* The same for a struct TYPE that has a member `reserved`: all of them have to come here. */
#define OPTIONS_COPY(to, from, type)                                                   \
	options_copy(to, sizeof(struct type), from, #type, offsetof(struct type, reserved))

#endif
