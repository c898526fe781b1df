/* SPDX-License-Identifier: MIT */
/* cut.h: for the targets: a message that arrives in pieces. */
#ifndef INFILL_FUZZ_CUT_H
#define INFILL_FUZZ_CUT_H

#include <errno.h>

#include "handshake.h"

/* What handshake_scan() says of BYTES at last, in pieces of LENGTH bytes. */
static inline int scan_cut(const char *bytes, size_t size, size_t length)
{
	struct handshake_scan s = { 0 };
	int rc = -EAGAIN;

	for (size_t at = 0; at < size && (rc == -EAGAIN || rc == 0); at += length)
		rc = handshake_scan(&s, bytes + at, size - at < length ? size - at : length);
	return rc;
}

#endif
