/* SPDX-License-Identifier: MIT */
/*
 * boot.c: memory of an arm64 guest, and how Linux is put into it: an Image, as
 * the kernel's Documentation/arch/arm64/booting.rst says.  Another format of
 * kernel would begin in load_kernel().
 *
 * What arch_boot() leaves in memory, from its begin to its end:
 *
 *	the Image and room for its bss | free | initrd | device tree, 2 MiB
 */
#include <errno.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include "../arch.h"
#include "../error.h"
#include "../file.h"
#include "cpu.h"
#include "fdt.h"
#include "map.h"

/* Linux maps the tree by one block of this size, which it may not leave. */
#define FDT_BYTES 0x200000ull
#define PAGE 4096ull

struct image_header {
	uint32_t code[2];
	uint64_t text_offset; /* from a 2 MiB boundary, where it wants to be */
	uint64_t image_bytes; /* with bss, which is not in the file */
	uint64_t flags;
	uint64_t reserved[3];
	uint32_t magic;
	uint32_t pe;
};

#define IMAGE_MAGIC 0x644d5241u /* "ARM\x64" */
#define IMAGE_BIG_ENDIAN 1u

/* ---- layout ----------------------------------------------------------------- */

int arch_layout(struct vm *vm)
{
	vm->regions = 1;
	vm->region[0].gpa = MAP_MEMORY;
	vm->region[0].bytes = vm->memory_bytes;
	return 0;
}

/* 40 bits of guest-physical addresses are KVM's default; a small CPU has fewer. */
long arch_vm_type(int kvm, const struct vm *vm)
{
	int bits = ioctl(kvm, KVM_CHECK_EXTENSION, KVM_CAP_ARM_VM_IPA_SIZE);
	bool fewer = bits > 0 && bits < 40;
	long type = fewer ? (long)KVM_VM_TYPE_ARM_IPA_SIZE(bits) : 0;

	if (MAP_MEMORY + vm->memory_bytes > 1ull << (fewer ? bits : 40))
		return vmm_error(-E2BIG, "memory: %llu MiB: more than this host can address",
				 (unsigned long long)vm->memory_bytes >> 20);
	return vm->is_protected ? type | (long)KVM_VM_TYPE_ARM_PROTECTED : type;
}

/* ---- files ------------------------------------------------------------------ */

/* A file that is to be loaded. */
struct file {
	const char *path;
	int fd;
	uint64_t bytes;
};

static int open_file(struct file *file, const char *path)
{
	file->path = path;
	file->fd = file_open(path, &file->bytes);
	return file->fd < 0 ? file->fd : 0;
}

/* Read all of it into the guest at GPA. */
static int load_file(struct vm *vm, const struct file *file, uint64_t gpa)
{
	void *at = vm_memory(vm, gpa, file->bytes);

	if (file_read(file->fd, at, file->bytes, 0))
		return vmm_error(-errno, "%s: reading it: %m", file->path);
	return 0;
}

/* ---- what is loaded ----------------------------------------------------------- */

/* Where things are; END is the end of what is still free. */
struct plan {
	uint64_t entry, kernel_end, initrd, initrd_bytes, fdt, end;
};

static int no_room(const char *what)
{
	return vmm_error(-ENOSPC, "%s: does not fit into the guest's memory: use --memory", what);
}

static int check_header(const struct file *file, const struct image_header *header)
{
	if (header->magic != IMAGE_MAGIC)
		return vmm_error(-ENOEXEC, "%s: not an arm64 Image", file->path);
	if (header->flags & IMAGE_BIG_ENDIAN)
		return vmm_error(-ENOEXEC, "%s: a big-endian kernel", file->path);
	if (header->image_bytes < file->bytes || header->text_offset >= FDT_BYTES)
		return vmm_error(-ENOEXEC, "%s: its header makes no sense, or it is older than Linux 3.17",
				 file->path);
	return 0;
}

static int place_kernel(struct vm *vm, const struct file *file, struct plan *plan)
{
	struct image_header header;
	int code;

	if (pread(file->fd, &header, sizeof(header), 0) != sizeof(header))
		return vmm_error(-ENOEXEC, "%s: too short for an arm64 Image", file->path);
	code = check_header(file, &header);
	if (code)
		return code;
	plan->entry = MAP_MEMORY + header.text_offset;
	if (header.image_bytes > plan->end - plan->entry)
		return no_room(file->path);
	plan->kernel_end = plan->entry + header.image_bytes;
	return load_file(vm, file, plan->entry);
}

static int load_kernel(struct vm *vm, const char *path, struct plan *plan)
{
	struct file file;
	int code = open_file(&file, path);

	if (code)
		return code;
	code = place_kernel(vm, &file, plan);
	close(file.fd);
	return code;
}

static int load_initrd(struct vm *vm, const char *path, struct plan *plan)
{
	struct file file;
	int code = open_file(&file, path);

	if (code)
		return code;
	if (file.bytes > plan->end - plan->kernel_end) {
		code = no_room(path);
	} else {
		plan->initrd = (plan->end - file.bytes) & ~(PAGE - 1);
		plan->initrd_bytes = file.bytes;
		code = plan->initrd < plan->kernel_end ? no_room(path) :
							 load_file(vm, &file, plan->initrd);
	}
	close(file.fd);
	return code;
}

static int place_fdt(const struct vm *vm, struct plan *plan)
{
	if (vm->memory_bytes < 2 * FDT_BYTES)
		return no_room("device tree");
	plan->fdt = (MAP_MEMORY + vm->memory_bytes - FDT_BYTES) & ~(FDT_BYTES - 1);
	plan->end = plan->fdt;
	return 0;
}

static int write_fdt(struct vm *vm, const char *command_line, const struct plan *plan)
{
	struct fdt_boot boot = {
		.command_line = command_line,
		.initrd = plan->initrd,
		.initrd_bytes = plan->initrd_bytes,
	};

	return fdt_write(vm, &boot, vm_memory(vm, plan->fdt, FDT_BYTES), FDT_BYTES);
}

int arch_boot(struct vm *vm, const struct boot *boot)
{
	struct plan plan = { 0 };
	int code = place_fdt(vm, &plan);

	if (!code)
		code = load_kernel(vm, boot->kernel, &plan);
	if (!code && boot->initrd)
		code = load_initrd(vm, boot->initrd, &plan);
	if (!code)
		code = write_fdt(vm, boot->command_line, &plan);
	if (!code)
		code = cpu_set_entry(&vm->vcpu[0], plan.entry, plan.fdt);
	return code;
}
