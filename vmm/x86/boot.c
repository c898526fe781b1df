/* SPDX-License-Identifier: MIT */
/*
 * boot.c: Linux as a bzImage, which unpacks itself, by its 64-bit boot protocol: the
 * kernel is entered in long mode with memory mapped one to one, and RSI at the boot
 * parameters.  The kernel's Documentation/arch/x86/boot.rst has the protocol.  An ELF
 * file (vmlinux) is entered by PVH: pvh.c.
 */
#include <asm/bootparam.h>
#include <elf.h>
#include <errno.h>
#include <string.h>
#include <sys/ioctl.h>

#include "arch.h"
#include "load.h"
#include "pvh.h"
#include "x86.h"

#define HEADER 0x1f1      /* of struct setup_header in a bzImage */
#define MAGIC 0x53726448u /* "HdrS" */
#define OLDEST 0x020cu    /* protocol 2.12 is the first with a 64-bit entry */
#define ENTRY_64 0x200
#define LOADER 0xff       /* none that has a number */

/* What loading the kernel finds out. */
struct kernel {
	uint64_t entry, end; /* of all that it needs while it unpacks */
	uint64_t initrd_max; /* the highest address of an initrd's last byte */
	struct setup_header header;
};

/* ---- the kernel -------------------------------------------------------------------- */

static int load_bzimage(struct vm *vm, const struct source *source, struct kernel *kernel)
{
	struct setup_header *h = &kernel->header;
	int err = source_get(source, h, sizeof(*h), HEADER);
	uint64_t offset;

	if (err)
		return err;
	if (h->header != MAGIC)
		return vmm_error(-ENOEXEC, "%s: neither a bzImage nor an ELF file", source->path);
	if (h->version < OLDEST || !(h->xloadflags & XLF_KERNEL_64))
		return vmm_error(-ENOEXEC, "%s: no 64-bit kernel", source->path);
	offset = (h->setup_sects ? h->setup_sects + 1u : 5u) * 512;
	if (offset > source->bytes)
		return vmm_error(-ENOEXEC, "%s: cut short", source->path);
	kernel->entry = h->pref_address + ENTRY_64;
	kernel->end = h->pref_address + h->init_size;
	kernel->initrd_max = h->initrd_addr_max;
	return source_load(vm, source, offset, source->bytes - offset, h->pref_address,
			   h->init_size);
}

/* ---- what it is told --------------------------------------------------------------- */

static void add_memory_map(const struct vm *vm, struct boot_params *params)
{
	struct map_line map[MAP_LINES];

	params->e820_entries = (uint8_t)memory_map_of(vm, map);
	for (unsigned i = 0; i < params->e820_entries; i++)
		params->e820_table[i] = (struct boot_e820_entry){
			map[i].range.begin, map[i].range.bytes, map[i].type,
		};
}

static int set_params(struct vm *vm, const struct kernel *kernel, const struct boot *boot)
{
	struct boot_params *params = vm_memory(vm, X86_BOOT_PARAMS, sizeof(*params));
	const uint32_t most = kernel->header.cmdline_size;
	struct range initrd;
	int err = load_command_line(vm, boot->command_line, most ? most : X86_COMMAND_LINE_MAX);

	if (err)
		return err;
	memset(params, 0, sizeof(*params));
	params->hdr = kernel->header;
	params->hdr.type_of_loader = LOADER;
	params->hdr.cmd_line_ptr = X86_COMMAND_LINE;
	add_memory_map(vm, params);
	if (!boot->initrd)
		return 0;
	err = load_initrd(vm, boot->initrd, kernel->end, kernel->initrd_max, &initrd);
	params->hdr.ramdisk_image = (uint32_t)initrd.begin;
	params->hdr.ramdisk_size = (uint32_t)initrd.bytes;
	return err;
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

static int boot_bzimage(struct vm *vm, const struct source *source, const struct boot *boot)
{
	struct kernel kernel = { 0 };
	int err = load_bzimage(vm, source, &kernel);

	if (!err)
		err = set_params(vm, &kernel, boot);
	return err ? err : set_entry(vm, kernel.entry);
}

static int boot_source(struct vm *vm, const struct source *source, const struct boot *boot)
{
	unsigned char magic[SELFMAG];
	int err = source_get(source, magic, sizeof(magic), 0);

	if (err)
		return err;
	return memcmp(magic, ELFMAG, SELFMAG) ? boot_bzimage(vm, source, boot) :
						pvh_boot(vm, source, boot);
}

int arch_boot(struct vm *vm, const struct boot *boot)
{
	struct source source;
	int err;

	if (vm->region[0].bytes < 2 * X86_ACPI_END)
		return vmm_error(-EINVAL, "--memory: too little for any kernel");
	err = source_open(&source, boot->kernel);
	if (err)
		return err;
	err = boot_source(vm, &source, boot);
	source_close(&source);
	if (!err)
		x86_acpi(vm);
	return err;
}
