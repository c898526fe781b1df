/* SPDX-License-Identifier: MIT */
/*
 * handshake.h: Firecracker's userfaultfd handshake, both sides: one message,
 * a JSON array of regions and one fd.  The bytes come from a VMM whose guest
 * may be hostile: parse nothing else here.  Internal.
 */
#ifndef INFILL_HANDSHAKE_H
#define INFILL_HANDSHAKE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "infill.h"
#include "wire.h"

#define HANDSHAKE_MAX 65536 /* bytes of JSON */
#define HANDSHAKE_DEPTH 8   /* nested arrays and objects */

enum handshake_kind {
	HANDSHAKE_VM,    /* regions: with one fd, the userfaultfd */
	HANDSHAKE_STAT,  /* {"infill": "stat"} */
	HANDSHAKE_HDR,   /* {"infill": "hdr"} */
	HANDSHAKE_CACHE, /* {"infill": "cache"}: answered by {"infill":"cache"} with a memfd */
	HANDSHAKE_MARK,  /* {"infill": "mark", "mark": "restored", "vm": 1}: handshake_mark() */
};

/*
 * Where a message ends: quotes and brackets are counted, nothing is
 * understood; or it is a binary one, which says how long it is: wire.h.  All
 * zero at the start.
 */
struct handshake_scan {
	size_t length; /* bytes seen */
	char first;    /* '[', '{' or WIRE_FIRST, 0: only white space so far */
	bool string, escape, whole;
	unsigned depth;
	uint8_t head[WIRE_HEAD]; /* of a binary message */
};

/*
 * Look at LENGTH more bytes.  0: the message is whole; -EAGAIN: it goes on;
 * -EPROTO: it cannot become a message, text by err_set().
 */
int handshake_scan(struct handshake_scan *scan, const char *bytes, size_t length);

/*
 * Parse a whole message.  For HANDSHAKE_VM a new MEMORY is given to the
 * caller; regions need not be sorted; `page_size` wins over `page_size_kib`
 * (both bytes), neither means 4096; `offset` reaching past IMAGE_BYTES is
 * -ERANGE, everything else that is wrong -EPROTO or what infill_memory_add()
 * says; unknown fields are ignored.  Returns the kind or -errno, text by
 * err_set().  -EAGAIN: LENGTH is a true prefix of a message.
 */
int handshake_parse(const char *json, size_t length, uint64_t image_bytes,
		    struct infill_memory **memory);

/*
 * What a message that is HANDSHAKE_MARK says.  *VM is 0 if it names none.  0, or
 * -EPROTO, text by err_set().
 */
int handshake_mark(const char *json, size_t length, enum infill_mark *mark, uint64_t *vm);

/* The word for MARK in such a message; NULL: there is no such mark. */
const char *handshake_mark_name(enum infill_mark mark);

/*
 * Write the message that describes MEMORY to BUFFER, without a NUL.  Its
 * length, or -ENOSPC.
 */
int handshake_write(char *buffer, size_t size, const struct infill_memory *memory);

#endif
