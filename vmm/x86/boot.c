/* SPDX-License-Identifier: MIT */
/*
 * boot.c: Linux by its 64-bit boot protocol: the kernel is entered in long mode
 * with memory mapped one to one, and RSI at the boot parameters.  It is a bzImage,
 * which unpacks itself, or an ELF file (vmlinux), which is where it runs already.
 * The kernel's Documentation/arch/x86/boot.rst has the protocol.
 */
#include <asm/bootparam.h>
#include <elf.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include "arch.h"
#include "file.h"
#include "x86.h"

#define HEADER 0x1f1      /* of struct setup_header in a bzImage */
#define MAGIC 0x53726448u /* "HdrS" */
#define OLDEST 0x020cu    /* protocol 2.12 is the first with a 64-bit entry */
#define ENTRY_64 0x200
#define LOADER 0xff       /* none that has a number */
#define E820_RAM 1
#define E820_RESERVED 2

/* A file that is to be loaded. */
struct source {
	const char *path;
	int fd;
	uint64_t bytes;
};

/* What loading the kernel finds out. */
struct kernel {
	struct source source;
	uint64_t entry, end; /* of all that it needs while it unpacks */
	uint64_t initrd_max; /* the highest address of an initrd's last byte */
	struct setup_header header;
};

/* ---- files ------------------------------------------------------------------------ */

static int source_open(struct source *source, const char *path)
{
	source->path = path;
	source->fd = file_open(path, &source->bytes);
	return source->fd < 0 ? source->fd : 0;
}

static void source_close(struct source *source)
{
	if (source->fd >= 0)
		close(source->fd);
}

static int get(const struct source *source, void *data, uint64_t length, uint64_t offset)
{
	if (offset > source->bytes || length > source->bytes - offset)
		return vmm_error(-ENOEXEC, "%s: cut short", source->path);
	if (file_read(source->fd, data, length, offset))
		return vmm_error(-errno, "%s: %m", source->path);
	return 0;
}

/* Read LENGTH bytes at OFFSET into the guest at GPA, which must have SPACE bytes there. */
static int load(struct vm *vm, const struct source *source, uint64_t offset, uint64_t length,
		uint64_t gpa, uint64_t space)
{
	void *to = length <= space ? vm_memory(vm, gpa, space) : NULL;

	if (!to || gpa < X86_ACPI_END)
		return vmm_error(-ENOMEM, "%s: does not fit: give the guest more memory",
				 source->path);
	return get(source, to, length, offset);
}

/* ---- the kernel -------------------------------------------------------------------- */

static int load_bzimage(struct vm *vm, struct kernel *kernel)
{
	struct setup_header *h = &kernel->header;
	uint64_t offset = (h->setup_sects ? h->setup_sects + 1u : 5u) * 512;

	if (h->version < OLDEST || !(h->xloadflags & XLF_KERNEL_64))
		return vmm_error(-ENOEXEC, "%s: no 64-bit kernel", kernel->source.path);
	if (offset > kernel->source.bytes)
		return vmm_error(-ENOEXEC, "%s: cut short", kernel->source.path);
	kernel->entry = h->pref_address + ENTRY_64;
	kernel->end = h->pref_address + h->init_size;
	kernel->initrd_max = h->initrd_addr_max;
	return load(vm, &kernel->source, offset, kernel->source.bytes - offset, h->pref_address,
		    h->init_size);
}

static int load_segment(struct vm *vm, struct kernel *kernel, const Elf64_Phdr *segment)
{
	if (segment->p_type != PT_LOAD || !segment->p_memsz)
		return 0;
	if (segment->p_paddr + segment->p_memsz > kernel->end)
		kernel->end = segment->p_paddr + segment->p_memsz;
	return load(vm, &kernel->source, segment->p_offset, segment->p_filesz, segment->p_paddr,
		    segment->p_memsz);
}

static int load_elf(struct vm *vm, struct kernel *kernel, const Elf64_Ehdr *elf)
{
	int err = 0;

	if (elf->e_ident[EI_CLASS] != ELFCLASS64 || elf->e_machine != EM_X86_64 ||
	    elf->e_phentsize != sizeof(Elf64_Phdr))
		return vmm_error(-ENOEXEC, "%s: an ELF file, but no 64-bit kernel",
				 kernel->source.path);
	kernel->entry = elf->e_entry;
	kernel->initrd_max = 0x7fffffff;
	kernel->header.boot_flag = 0xaa55;
	kernel->header.header = MAGIC;
	kernel->header.kernel_alignment = 0x1000000;
	for (unsigned i = 0; i < elf->e_phnum && !err; i++) {
		Elf64_Phdr segment;

		err = get(&kernel->source, &segment, sizeof(segment),
			  elf->e_phoff + i * sizeof(segment));
		if (!err)
			err = load_segment(vm, kernel, &segment);
	}
	return err;
}

static int load_kernel(struct vm *vm, struct kernel *kernel)
{
	Elf64_Ehdr elf;
	int err = get(&kernel->source, &elf, sizeof(elf), 0);

	if (err)
		return err;
	if (!memcmp(elf.e_ident, ELFMAG, SELFMAG))
		return load_elf(vm, kernel, &elf);
	err = get(&kernel->source, &kernel->header, sizeof(kernel->header), HEADER);
	if (err)
		return err;
	if (kernel->header.header != MAGIC)
		return vmm_error(-ENOEXEC, "%s: neither a bzImage nor an ELF file",
				 kernel->source.path);
	return load_bzimage(vm, kernel);
}

/* ---- what it is told --------------------------------------------------------------- */

static void add_e820(struct boot_params *params, uint64_t begin, uint64_t end, uint32_t type)
{
	if (begin < end)
		params->e820_table[params->e820_entries++] =
			(struct boot_e820_entry){ begin, end - begin, type };
}

static void add_memory_map(struct vm *vm, struct boot_params *params)
{
	add_e820(params, 0, X86_LOW_END, E820_RAM);
	add_e820(params, X86_LOW_END, X86_ACPI_END, E820_RESERVED);
	add_e820(params, X86_ACPI_END, vm->region[0].bytes, E820_RAM);
	if (vm->regions > 1)
		add_e820(params, X86_GAP_END, X86_GAP_END + vm->region[1].bytes, E820_RAM);
}

/* As high as it may be, where the kernel does not unpack itself. */
static int load_initrd(struct vm *vm, const struct kernel *kernel, const char *path,
		       struct boot_params *params)
{
	uint64_t end = vm->region[0].bytes, gpa;
	struct source source = { 0 };
	int err = source_open(&source, path);

	if (err)
		return err;
	if (end > kernel->initrd_max + 1)
		end = kernel->initrd_max + 1;
	gpa = end > source.bytes ? (end - source.bytes) & ~4095ull : 0;
	if (gpa < kernel->end)
		gpa = 0;
	err = load(vm, &source, 0, source.bytes, gpa, source.bytes);
	source_close(&source);
	params->hdr.ramdisk_image = (uint32_t)gpa;
	params->hdr.ramdisk_size = (uint32_t)source.bytes;
	return err;
}

static int set_params(struct vm *vm, const struct kernel *kernel, const struct boot *boot)
{
	struct boot_params *params = vm_memory(vm, X86_BOOT_PARAMS, sizeof(*params));
	size_t length = strlen(boot->command_line) + 1;

	if (length > X86_COMMAND_LINE_MAX ||
	    (kernel->header.cmdline_size && length > kernel->header.cmdline_size))
		return vmm_error(-E2BIG, "--append: %zu bytes are too many", length);
	memset(params, 0, sizeof(*params));
	params->hdr = kernel->header;
	params->hdr.type_of_loader = LOADER;
	params->hdr.cmd_line_ptr = X86_COMMAND_LINE;
	memcpy(vm_memory(vm, X86_COMMAND_LINE, length), boot->command_line, length);
	add_memory_map(vm, params);
	return boot->initrd ? load_initrd(vm, kernel, boot->initrd, params) : 0;
}

/* ---- how it is entered ------------------------------------------------------------- */

/* The first 4 GiB, one to one, in pages of 2 MiB. */
static void make_page_tables(struct vm *vm)
{
	const uint64_t present_writable = 3, huge = 1 << 7;
	uint64_t *root = vm_memory(vm, X86_PAGE_TABLES, 6 * 4096);
	uint64_t *second = root + 512, *third = second + 512;

	memset(root, 0, 6 * 4096);
	root[0] = (X86_PAGE_TABLES + 4096) | present_writable;
	for (uint64_t i = 0; i < 4; i++)
		second[i] = (X86_PAGE_TABLES + (2 + i) * 4096) | present_writable;
	for (uint64_t i = 0; i < 4 * 512; i++)
		third[i] = i << 21 | present_writable | huge;
}

/* The selectors that the protocol asks for, in a GDT that the guest could load again. */
static void set_segments(struct vm *vm, struct kvm_sregs *sregs)
{
	static const uint64_t gdt[] = { 0, 0, 0x00af9b000000ffff, 0x00cf93000000ffff };
	struct kvm_segment code = {
		.limit = UINT32_MAX, .selector = 0x10, .type = 0xb, .present = 1, .s = 1,
		.l = 1, .g = 1,
	};
	struct kvm_segment data = {
		.limit = UINT32_MAX, .selector = 0x18, .type = 3, .present = 1, .s = 1,
		.db = 1, .g = 1,
	};

	memcpy(vm_memory(vm, X86_GDT, sizeof(gdt)), gdt, sizeof(gdt));
	sregs->gdt = (struct kvm_dtable){ .base = X86_GDT, .limit = sizeof(gdt) - 1 };
	sregs->cs = code;
	sregs->ds = sregs->es = sregs->fs = sregs->gs = sregs->ss = data;
}

static int set_entry(struct vm *vm, uint64_t entry)
{
	const uint64_t pe = 1, et = 1 << 4, pg = 1u << 31, pae = 1 << 5, lme = 1 << 8, lma = 1 << 10;
	struct kvm_regs regs = { .rip = entry, .rsi = X86_BOOT_PARAMS, .rflags = 2 };
	struct kvm_sregs sregs;
	int fd = vm->vcpu[0].fd;

	if (ioctl(fd, KVM_GET_SREGS, &sregs))
		return vmm_error(-errno, "vCPU 0: its registers: %m");
	make_page_tables(vm);
	set_segments(vm, &sregs);
	sregs.cr3 = X86_PAGE_TABLES;
	sregs.cr4 = pae;
	sregs.cr0 = pe | et | pg;
	sregs.efer = lme | lma;
	if (ioctl(fd, KVM_SET_SREGS, &sregs) || ioctl(fd, KVM_SET_REGS, &regs))
		return vmm_error(-errno, "vCPU 0: its registers: %m");
	return 0;
}

int arch_boot(struct vm *vm, const struct boot *boot)
{
	struct kernel kernel = { 0 };
	int err;

	if (vm->region[0].bytes < 2 * X86_ACPI_END)
		return vmm_error(-EINVAL, "--memory: too little for any kernel");
	err = source_open(&kernel.source, boot->kernel);
	if (!err)
		err = load_kernel(vm, &kernel);
	source_close(&kernel.source);
	if (!err)
		err = set_params(vm, &kernel, boot);
	if (err)
		return err;
	x86_acpi(vm);
	return set_entry(vm, kernel.entry);
}
