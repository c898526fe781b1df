/* SPDX-License-Identifier: MIT */
/*
 * handshake_fuzz.c: libFuzzer target for what a VMM sends.  Beside memory
 * errors it looks for regions that later code could not live with, and for
 * messages whose end depends on how they were cut.
 */
#include <errno.h>
#include <stdint.h>
#include <stdlib.h>

#include "cut.h"
#include "handshake.h"
#include "memory.h"

#define IMAGE (1ull << 30)

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void check_regions(const struct infill_memory *memory)
{
	if (!memory->count || memory->count > INFILL_MEMORY_REGIONS_MAX)
		abort();
	for (unsigned i = 0; i < memory->count; i++) {
		const struct infill_region *r = &memory->region[i];

		if (r->page_size != 4096 && r->page_size != 2 << 20)
			abort();
		if (!r->length || r->length % r->page_size || r->hva % r->page_size)
			abort();
		if (r->offset > IMAGE || r->length > IMAGE - r->offset || r->hva + r->length < r->hva)
			abort();
		if (i && memory->region[i - 1].hva + memory->region[i - 1].length > r->hva)
			abort();
	}
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	const char *text = (const char *)data;
	struct infill_memory *memory;
	enum infill_mark mark;
	uint64_t vm;
	int rc = handshake_parse(text, size, IMAGE, &memory);
	int end = scan_cut(text, size, 7);

	if ((rc == HANDSHAKE_VM) != (memory != NULL))
		abort();
	if ((rc == -EAGAIN) != (end == -EAGAIN) || (rc >= 0 && end))
		abort();
	if (rc == HANDSHAKE_MARK && !handshake_mark(text, size, &mark, &vm) && !handshake_mark_name(mark))
		abort();
	if (memory)
		check_regions(memory);
	infill_memory_free(memory);
	return 0;
}
