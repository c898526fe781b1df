/* SPDX-License-Identifier: MIT */
/*
 * wire_fuzz.c: libFuzzer target for the hello of a VM with KVM Userfault.
 * Beside memory errors it looks for regions that the pager could not live
 * with, and for messages whose end depends on how they were cut.
 */
#include <stdint.h>
#include <stdlib.h>

#include "cut.h"
#include "handshake.h"
#include "memory.h"
#include "wire.h"

#define IMAGE (1ull << 30)

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* What lent_map() adds up and maps. */
static void check_place(const struct wire_vm *vm, unsigned i)
{
	const struct infill_region *r = &vm->memory->region[i];
	const struct wire_region *w = &vm->region[i];

	if (w->gpa != r->gpa || w->bytes != r->length || w->bitmap_at % 4096 || w->file_at % 4096)
		abort();
	if (w->bitmap_at + wire_bitmap_bytes(r->length, 4096) > INT64_MAX ||
	    w->file_at + r->length > INT64_MAX)
		abort();
	if ((r->backing == INFILL_BACKING_GUEST_MEMFD) != (w->file < vm->files))
		abort();
	if (w->file == WIRE_NO_FILE && !vm->uffd)
		abort();
}

static void check(const struct wire_vm *vm)
{
	const struct infill_region *r = vm->memory->region;

	if (!vm->memory->count || vm->memory->count > INFILL_MEMORY_REGIONS_MAX)
		abort();
	if (vm->files > WIRE_FILES_MAX || !vm->channels || vm->channels > WIRE_CHANNELS_MAX)
		abort();
	for (unsigned i = 0; i < vm->memory->count; i++) {
		if (!r[i].length || r[i].length % r[i].page_size || r[i].gpa % r[i].page_size)
			abort();
		if (r[i].offset > IMAGE || r[i].length > IMAGE - r[i].offset)
			abort();
		for (unsigned k = 0; k < i; k++)
			if (r[i].gpa < r[k].gpa + r[k].length && r[k].gpa < r[i].gpa + r[i].length)
				abort();
		check_place(vm, i);
	}
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct wire_vm vm;
	int whole = scan_cut((const char *)data, size, size), cut = scan_cut((const char *)data, size, 3);
	int rc = wire_parse(data, size, IMAGE, &vm);

	if (whole != cut || (rc == 0) != (vm.memory != NULL))
		abort();
	/* Who parses it has found its end before. */
	if (rc == 0 && whole)
		abort();
	if (rc == 0)
		check(&vm);
	infill_memory_free(vm.memory);
	return 0;
}
