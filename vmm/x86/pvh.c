/* SPDX-License-Identifier: MIT */
/*
 * pvh.c: see pvh.h.  PVH is Xen's way to enter a kernel directly, which Linux has for any
 * hypervisor with CONFIG_PVH: an ELF note names the physical address of its entry in
 * 32-bit protected mode without paging, where RBX points to a struct start_info.  The
 * kernel's include/xen/interface/hvm/start_info.h has the layout, and
 * arch/x86/platform/pvh/head.S what registers hold.
 */
#include <elf.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>

#include "pvh.h"
#include "x86.h"

#define NOTE_NAME "Xen"
#define NOTE_PHYS32_ENTRY 18
/* What a kernel has, many times; a file may say anything. */
#define SEGMENTS_MAX 64
#define NOTES_MAX 65536u

#define START_MAGIC 0x336ec578u
#define START_VERSION 1 /* the first with a memory map */
#define INITRD_MAX 0x7fffffffu

/* At X86_BOOT_PARAMS, the three of them one after the other. */
struct start_info {
	uint32_t magic, version, flags, modules;
	uint64_t module_list, command_line, rsdp, memory_map;
	uint32_t memory_map_lines, reserved;
};

struct module {
	uint64_t gpa, bytes, command_line, reserved;
};

struct start_map_line {
	uint64_t gpa, bytes;
	uint32_t type, reserved;
};

struct start {
	struct start_info info;
	struct module initrd;
	struct start_map_line map[MAP_LINES];
};

/* ---- the file ---------------------------------------------------------------------- */

static uint64_t padded(uint64_t bytes)
{
	return (bytes + 3) & ~3ull;
}

/* Look for the entry among notes of LENGTH bytes.  False: it is not there. */
static bool find_entry(const uint8_t *notes, uint64_t length, uint64_t *entry)
{
	uint64_t at = 0;

	while (length - at >= sizeof(Elf64_Nhdr)) {
		Elf64_Nhdr note;
		uint64_t name = at + sizeof(note), content;

		memcpy(&note, notes + at, sizeof(note));
		content = name + padded(note.n_namesz);
		at = content + padded(note.n_descsz);
		/* The last one's padding may be missing. */
		if (content + note.n_descsz > length)
			return false;
		if (note.n_type == NOTE_PHYS32_ENTRY && note.n_namesz == sizeof(NOTE_NAME) &&
		    !memcmp(notes + name, NOTE_NAME, sizeof(NOTE_NAME)) &&
		    (note.n_descsz == 4 || note.n_descsz == 8)) {
			*entry = 0;
			memcpy(entry, notes + content, note.n_descsz);
			return true;
		}
		if (at > length)
			return false;
	}
	return false;
}

/* The same in a segment of notes.  1: found, 0: not there, or -errno. */
static int read_notes(const struct source *kernel, const Elf64_Phdr *segment, uint64_t *entry)
{
	uint8_t *notes;
	int err;

	if (segment->p_filesz > NOTES_MAX)
		return 0;
	notes = malloc(segment->p_filesz ? segment->p_filesz : 1);
	if (!notes)
		return vmm_error(-ENOMEM, "%s: %m", kernel->path);
	err = source_get(kernel, notes, segment->p_filesz, segment->p_offset);
	if (!err)
		err = find_entry(notes, segment->p_filesz, entry);
	free(notes);
	return err;
}

/* Have the program headers: their number, or -errno. */
static int read_segments(const struct source *kernel, Elf64_Phdr segment[SEGMENTS_MAX])
{
	Elf64_Ehdr elf;
	int err = source_get(kernel, &elf, sizeof(elf), 0);

	if (err)
		return err;
	if (elf.e_ident[EI_CLASS] != ELFCLASS64 || elf.e_ident[EI_DATA] != ELFDATA2LSB ||
	    elf.e_machine != EM_X86_64 || elf.e_phentsize != sizeof(*segment) ||
	    elf.e_phnum > SEGMENTS_MAX)
		return vmm_error(-ENOEXEC, "%s: an ELF file, but no 64-bit kernel", kernel->path);
	err = source_get(kernel, segment, elf.e_phnum * sizeof(*segment), elf.e_phoff);
	return err ? err : elf.e_phnum;
}

static int load_segment(struct vm *vm, const struct source *kernel, const Elf64_Phdr *segment,
			struct pvh_kernel *loaded)
{
	int err = source_load(vm, kernel, segment->p_offset, segment->p_filesz, segment->p_paddr,
			      segment->p_memsz);

	if (!err && segment->p_paddr + segment->p_memsz > loaded->end)
		loaded->end = segment->p_paddr + segment->p_memsz;
	return err;
}

int pvh_load(struct vm *vm, const struct source *kernel, struct pvh_kernel *loaded)
{
	Elf64_Phdr segment[SEGMENTS_MAX];
	uint64_t entry = 0;
	int found = 0, err = 0, count = read_segments(kernel, segment);

	*loaded = (struct pvh_kernel){ 0 };
	for (int i = 0; i < count && !found; i++)
		if (segment[i].p_type == PT_NOTE)
			found = read_notes(kernel, &segment[i], &entry);
	if (count < 0 || found < 0)
		return count < 0 ? count : found;
	if (!found)
		return vmm_error(-ENOEXEC, "%s: no entry by PVH: it is no kernel with CONFIG_PVH",
				 kernel->path);
	for (int i = 0; i < count && !err; i++)
		if (segment[i].p_type == PT_LOAD && segment[i].p_memsz)
			err = load_segment(vm, kernel, &segment[i], loaded);
	if (err)
		return err;
	if (entry < X86_ACPI_END || entry >= loaded->end || entry > UINT32_MAX)
		return vmm_error(-ENOEXEC, "%s: its entry by PVH is not in it", kernel->path);
	loaded->entry = (uint32_t)entry;
	return 0;
}

/* ---- what it is told --------------------------------------------------------------- */

static int set_start(struct vm *vm, const struct pvh_kernel *kernel, const struct boot *boot)
{
	struct start *start = vm_memory(vm, X86_BOOT_PARAMS, sizeof(*start));
	struct map_line map[MAP_LINES];
	struct range initrd = { 0, 0 };
	unsigned lines = memory_map_of(vm, map);
	int err = load_command_line(vm, boot->command_line, X86_COMMAND_LINE_MAX);

	if (!err && boot->initrd)
		err = load_initrd(vm, boot->initrd, kernel->end, INITRD_MAX, &initrd);
	if (err)
		return err;
	*start = (struct start){
		.info = {
			.magic = START_MAGIC,
			.version = START_VERSION,
			.modules = boot->initrd != NULL,
			.module_list = X86_BOOT_PARAMS + offsetof(struct start, initrd),
			.command_line = X86_COMMAND_LINE,
			.rsdp = X86_ACPI,
			.memory_map = X86_BOOT_PARAMS + offsetof(struct start, map),
			.memory_map_lines = lines,
		},
		.initrd = { .gpa = initrd.begin, .bytes = initrd.bytes },
	};
	for (unsigned i = 0; i < lines; i++)
		start->map[i] = (struct start_map_line){
			.gpa = map[i].range.begin, .bytes = map[i].range.bytes, .type = map[i].type,
		};
	return 0;
}

/* ---- how it is entered ------------------------------------------------------------- */

/* Segments of 4 GiB from 0 on; the kernel loads a GDT of its own before any selector. */
static int set_entry(struct vm *vm, uint32_t entry)
{
	const uint64_t pe = 1, et = 1 << 4;
	const struct kvm_segment code = {
		.limit = UINT32_MAX, .selector = 0x8, .type = 0xb, .present = 1, .db = 1, .s = 1,
		.g = 1,
	};
	const struct kvm_segment data = {
		.limit = UINT32_MAX, .selector = 0x10, .type = 3, .present = 1, .db = 1, .s = 1,
		.g = 1,
	};
	const struct kvm_segment task = { .limit = 0x67, .type = 0xb, .present = 1 };
	struct kvm_regs regs = { .rip = entry, .rbx = X86_BOOT_PARAMS, .rflags = 2 };
	struct kvm_sregs sregs;
	int fd = vm->vcpu[0].fd;

	if (ioctl(fd, KVM_GET_SREGS, &sregs))
		return vmm_error(-errno, "vCPU 0: its registers: %m");
	sregs.cs = code;
	sregs.ds = sregs.es = sregs.fs = sregs.gs = sregs.ss = data;
	sregs.tr = task;
	sregs.cr0 = pe | et;
	sregs.cr4 = 0;
	sregs.efer = 0;
	if (ioctl(fd, KVM_SET_SREGS, &sregs) || ioctl(fd, KVM_SET_REGS, &regs))
		return vmm_error(-errno, "vCPU 0: its registers: %m");
	return 0;
}

int pvh_boot(struct vm *vm, const struct source *kernel, const struct boot *boot)
{
	struct pvh_kernel loaded;
	int err = pvh_load(vm, kernel, &loaded);

	if (!err)
		err = set_start(vm, &loaded, boot);
	return err ? err : set_entry(vm, loaded.entry);
}
