/* SPDX-License-Identifier: MIT */
/*
 * handshake.h: Firecracker's userfaultfd handshake, both sides: one message,
 * a JSON array of regions and one fd.  The bytes come from a VMM whose guest
 * may be hostile: parse nothing else here.  Internal.
 */
#ifndef INFILL_HANDSHAKE_H
#define INFILL_HANDSHAKE_H

#include <stddef.h>
#include <stdint.h>

#include "infill.h"

#define HANDSHAKE_MAX 65536 /* bytes of JSON */

enum handshake_kind {
	HANDSHAKE_VM,    /* regions: with one fd, the userfaultfd */
	HANDSHAKE_STAT,  /* {"infill": "stat"} */
	HANDSHAKE_HDR,   /* {"infill": "hdr"} */
	HANDSHAKE_CACHE, /* {"infill": "cache"}: answered by {"infill":"cache"} with a memfd */
};

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

#endif
