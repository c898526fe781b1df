/* SPDX-License-Identifier: MIT */
/*
 * load.c: see load.h.
 */
#include <errno.h>
#include <string.h>
#include <unistd.h>

#include "arch.h"
#include "file.h"
#include "load.h"
#include "x86.h"

int source_open(struct source *source, const char *path)
{
	source->path = path;
	source->fd = file_open(path, &source->bytes);
	return source->fd < 0 ? source->fd : 0;
}

void source_close(struct source *source)
{
	if (source->fd >= 0)
		close(source->fd);
}

int source_get(const struct source *source, void *data, uint64_t length, uint64_t offset)
{
	if (offset > source->bytes || length > source->bytes - offset)
		return vmm_error(-ENOEXEC, "%s: cut short", source->path);
	if (file_read(source->fd, data, length, offset))
		return vmm_error(-errno, "%s: %m", source->path);
	return 0;
}

int source_load(struct vm *vm, const struct source *source, uint64_t offset, uint64_t length,
		uint64_t gpa, uint64_t space)
{
	void *to = length <= space ? vm_memory(vm, gpa, space) : NULL;

	if (!to || gpa < X86_ACPI_END)
		return vmm_error(-ENOMEM, "%s: does not fit: give the guest more memory",
				 source->path);
	return source_get(source, to, length, offset);
}

int load_initrd(struct vm *vm, const char *path, uint64_t end, uint64_t max, struct range *where)
{
	uint64_t top = vm->region[0].bytes, gpa;
	struct source source = { 0 };
	int err = source_open(&source, path);

	if (err)
		return err;
	if (top > max + 1)
		top = max + 1;
	gpa = top > source.bytes ? (top - source.bytes) & ~4095ull : 0;
	if (gpa < end)
		gpa = 0;
	err = source_load(vm, &source, 0, source.bytes, gpa, source.bytes);
	source_close(&source);
	*where = (struct range){ gpa, source.bytes };
	return err;
}

int load_command_line(struct vm *vm, const char *text, uint64_t most)
{
	size_t length = strlen(text) + 1;

	if (length > X86_COMMAND_LINE_MAX || length > most)
		return vmm_error(-E2BIG, "--append: %zu bytes are too many", length);
	memcpy(vm_memory(vm, X86_COMMAND_LINE, length), text, length);
	return 0;
}

unsigned memory_map_of(const struct vm *vm, struct map_line map[MAP_LINES])
{
	unsigned lines = 0;

	map[lines++] = (struct map_line){ { 0, X86_LOW_END }, MAP_RAM };
	map[lines++] = (struct map_line){ { X86_LOW_END, X86_ACPI_END - X86_LOW_END }, MAP_RESERVED };
	map[lines++] = (struct map_line){
		{ X86_ACPI_END, vm->region[0].bytes - X86_ACPI_END }, MAP_RAM,
	};
	if (vm->regions > 1)
		map[lines++] = (struct map_line){ { X86_GAP_END, vm->region[1].bytes }, MAP_RAM };
	return lines;
}
