/* SPDX-License-Identifier: MIT */
/*
 * vmm_pvh_test.c: kernels as ELF files: the note that says where they are entered, and
 * files that lie.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <elf.h>
#include <errno.h>
#include <string.h>

#include "error.h"
#include "scratch.h"
#include "x86/pvh.h"

#define MIB (1ull << 20)
#define MEMORY_BYTES (4 * MIB)
#define ENTRY (2 * MIB + 16)
#define GIB4 (1ull << 32)

/* What a kernel is: 16 bytes at 2 MiB, with room for 4096, and its notes. */
struct file {
	Elf64_Ehdr elf;
	Elf64_Phdr segment[2];
	uint8_t content[16];
	struct {
		Elf64_Nhdr other;
		char other_name[4];
		uint8_t other_content[8];
		Elf64_Nhdr entry;
		char entry_name[4];
		uint64_t entry_content;
	} notes;
};

static const struct file good = {
	.elf = {
		.e_ident = { ELFMAG0, ELFMAG1, ELFMAG2, ELFMAG3, ELFCLASS64, ELFDATA2LSB },
		.e_machine = EM_X86_64,
		.e_phoff = offsetof(struct file, segment),
		.e_phentsize = sizeof(Elf64_Phdr),
		.e_phnum = 2,
	},
	.segment = {
		{
			.p_type = PT_LOAD, .p_offset = offsetof(struct file, content),
			.p_filesz = 16, .p_paddr = 2 * MIB, .p_memsz = 4096,
		},
		{
			.p_type = PT_NOTE, .p_offset = offsetof(struct file, notes),
			.p_filesz = sizeof(good.notes),
		},
	},
	.content = "the kernel",
	.notes = {
		.other = { .n_namesz = 4, .n_descsz = 5, .n_type = 18 },
		.other_name = "GNU",
		.entry = { .n_namesz = 4, .n_descsz = 8, .n_type = 18 },
		.entry_name = "Xen",
		.entry_content = ENTRY,
	},
};

static uint8_t *memory;

/* Load LENGTH bytes of FILE as a kernel; memory is there at 0 and again at 4 GiB. */
static int load_bytes(const void *file, size_t length, struct pvh_kernel *loaded)
{
	struct vm vm = {
		.regions = 2,
		.region = {
			{ .bytes = MEMORY_BYTES, .hva = memory },
			{ .gpa = GIB4, .bytes = MEMORY_BYTES, .hva = memory },
		},
	};
	struct source source;
	int err;

	memset(memory, 0, MEMORY_BYTES);
	assert_int_equal(source_open(&source, scratch_file("kernel", file, length)), 0);
	err = pvh_load(&vm, &source, loaded);
	source_close(&source);
	return err;
}

/* With as much behind it as a lie may lead to. */
static int load(const struct file *file)
{
	static union {
		struct file file;
		uint8_t bytes[8192];
	} whole;
	struct pvh_kernel loaded;

	whole.file = *file;
	return load_bytes(&whole, sizeof(whole), &loaded);
}

/* It is refused, and WHY is part of what is said. */
static void refuse(const struct file *file, const char *why)
{
	assert_true(load(file) < 0);
	if (!strstr(vmm_error_text(), why))
		fail_msg("'%s' is not in '%s'", why, vmm_error_text());
}

static void a_good_one_is_loaded(void **arg)
{
	struct pvh_kernel loaded;

	(void)arg;
	assert_int_equal(load_bytes(&good, sizeof(good), &loaded), 0);
	assert_int_equal(loaded.entry, ENTRY);
	assert_int_equal(loaded.end, 2 * MIB + 4096);
	assert_memory_equal(memory + 2 * MIB, good.content, sizeof(good.content));
}

/* A 32-bit kernel's note has 4 bytes; what follows them is another note's. */
static void a_note_of_4_bytes_is_enough(void **arg)
{
	struct file file = good;
	struct pvh_kernel loaded;

	(void)arg;
	file.notes.entry.n_descsz = 4;
	file.notes.entry_content |= 0xffffffffull << 32;
	assert_int_equal(load_bytes(&file, sizeof(file), &loaded), 0);
	assert_int_equal(loaded.entry, ENTRY);
}

static void a_file_that_is_cut_short_is_refused(void **arg)
{
	struct pvh_kernel loaded;

	(void)arg;
	for (size_t length = 0; length < sizeof(good); length++)
		assert_true(load_bytes(&good, length, &loaded) < 0);
}

static void one_without_the_note_is_refused(void **arg)
{
	static const char why[] = "no entry by PVH";
	struct file file = good;

	(void)arg;
	file.notes.entry.n_type = 17;
	refuse(&file, why);
	file = good;
	file.notes.entry_name[0] = 'x';
	refuse(&file, why);
	file = good;
	file.notes.entry.n_descsz = 2;
	refuse(&file, why);
	file = good;
	file.segment[1].p_type = PT_NULL;
	refuse(&file, why);
	/* Notes that end before it, or in its middle, or in the padding of the one before. */
	for (size_t n = 0; n < sizeof(file.notes); n++) {
		file = good;
		file.segment[1].p_filesz = n;
		refuse(&file, why);
	}
}

/* Sizes that lead out of the notes, also when they are rounded up, or added up. */
static void notes_that_lie_are_refused(void **arg)
{
	static const uint32_t sizes[] = { 0x7ffffffc, 0x80000000, 0xfffffff4, 0xfffffffd, 0xffffffff,
					  0x10000, 64 };
	static const char why[] = "no entry by PVH";

	(void)arg;
	for (size_t i = 0; i < COUNT(sizes); i++) {
		struct file file = good;

		file.notes.other.n_namesz = sizes[i];
		refuse(&file, why);
		file = good;
		file.notes.other.n_descsz = sizes[i];
		refuse(&file, why);
		file = good;
		file.notes.entry.n_descsz = sizes[i];
		refuse(&file, why);
	}
}

static void headers_that_lie_are_refused(void **arg)
{
	static const char kind[] = "no 64-bit kernel", cut[] = "cut short";
	static const struct {
		size_t at;
		uint64_t value;
		size_t bytes;
		const char *why;
	} table[] = {
		{ offsetof(Elf64_Ehdr, e_ident[EI_CLASS]), ELFCLASS32, 1, kind },
		{ offsetof(Elf64_Ehdr, e_ident[EI_DATA]), ELFDATA2MSB, 1, kind },
		{ offsetof(Elf64_Ehdr, e_machine), EM_AARCH64, 2, kind },
		{ offsetof(Elf64_Ehdr, e_phentsize), 32, 2, kind },
		{ offsetof(Elf64_Ehdr, e_phnum), 65, 2, kind },
		{ offsetof(Elf64_Ehdr, e_phnum), 0xffff, 2, kind },
		{ offsetof(Elf64_Ehdr, e_phnum), 0, 2, "no entry by PVH" },
		{ offsetof(Elf64_Ehdr, e_phoff), UINT64_MAX, 8, cut },
		{ offsetof(Elf64_Ehdr, e_phoff), UINT64_MAX - 111, 8, cut },
		{ offsetof(Elf64_Ehdr, e_phoff), 8192 - 111, 8, cut },
	};

	(void)arg;
	for (size_t i = 0; i < COUNT(table); i++) {
		struct file file = good;

		memcpy((uint8_t *)&file + table[i].at, &table[i].value, table[i].bytes);
		refuse(&file, table[i].why);
	}
}

static void segments_that_lie_are_refused(void **arg)
{
	static const char room[] = "does not fit", cut[] = "cut short";
	static const struct {
		uint64_t offset, bytes, gpa, space;
		const char *why;
	} table[] = {
		{ 0, 4097, 2 * MIB, 4096, room }, /* more in the file than in memory */
		{ UINT64_MAX - 7, 16, 2 * MIB, 4096, cut }, /* elsewhere than in the file */
		{ 0, 8193, 2 * MIB, 16384, cut },
		{ 0, 16, 0, 4096, room },         /* where booting has its own */
		{ 0, 16, MIB - 4096, 8192, room },
		{ 0, 16, MEMORY_BYTES, 4096, room }, /* elsewhere than in memory */
		{ 0, 16, MEMORY_BYTES - 4096, 4097, room },
		{ 0, 16, UINT64_MAX - 15, 16, room },
		{ 0, 16, 2 * MIB, UINT64_MAX - 2 * MIB + 1, room },
		{ 0, 16, 2 * MIB, UINT64_MAX, room },
	};

	(void)arg;
	for (size_t i = 0; i < COUNT(table); i++) {
		struct file file = good;

		file.segment[0].p_offset = table[i].offset;
		file.segment[0].p_filesz = table[i].bytes;
		file.segment[0].p_paddr = table[i].gpa;
		file.segment[0].p_memsz = table[i].space;
		refuse(&file, table[i].why);
	}
}

static void an_entry_elsewhere_is_refused(void **arg)
{
	static const uint64_t entries[] = { 0, MIB - 1, 2 * MIB + 4096, GIB4 + ENTRY, UINT64_MAX };
	struct file file = good;

	(void)arg;
	for (size_t i = 0; i < COUNT(entries); i++) {
		file.notes.entry_content = entries[i];
		refuse(&file, "not in it");
	}
	/* It is there, and cannot be entered in 32-bit mode. */
	file.segment[0].p_paddr = GIB4 + 2 * MIB;
	file.notes.entry_content = GIB4 + ENTRY;
	refuse(&file, "not in it");
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(a_good_one_is_loaded),
		cmocka_unit_test(a_note_of_4_bytes_is_enough),
		cmocka_unit_test(a_file_that_is_cut_short_is_refused),
		cmocka_unit_test(one_without_the_note_is_refused),
		cmocka_unit_test(notes_that_lie_are_refused),
		cmocka_unit_test(headers_that_lie_are_refused),
		cmocka_unit_test(segments_that_lie_are_refused),
		cmocka_unit_test(an_entry_elsewhere_is_refused),
	};

	memory = malloc(MEMORY_BYTES);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
