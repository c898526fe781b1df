/* SPDX-License-Identifier: MIT */
/*
 * wire_test.c: the binary messages between a VMM and its pager: what the
 * library writes is what infill-protocol(7) says, byte by byte, and every way
 * in which a hello can be wrong is refused with its reason.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <errno.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "err.h"
#include "handshake.h"
#include "memory.h"
#include "wire.h"

#define IMAGE (1ull << 30)
#define ITEMS(a) (sizeof(a) / sizeof(*(a)))

struct hello {
	struct wire_hello head;
	struct wire_region region[4];
};

/* Two guest_memfds' regions and one of ordinary memory. */
static struct hello good(void)
{
	return (struct hello){
		.head = { .magic = WIRE_MAGIC, .version = 1, .bytes = 64 + 3 * 64, .flags = WIRE_UFFD,
			  .regions = 3, .files = 2, .channels = 5, .bit_bytes = 4096 },
		.region = {
			{ .gpa = 0, .bytes = 1 << 20, .page_size = 4096, .backing = 3, .file = 1,
			  .file_at = 8192 },
			{ .gpa = 1 << 20, .bytes = 1 << 20, .offset = 1 << 20, .bitmap_at = 4096,
			  .page_size = 4096, .backing = 3, .file = 0 },
			{ .gpa = 4 << 20, .bytes = 4 << 20, .offset = 4 << 20, .hva = 6 << 20,
			  .bitmap_at = 8192, .page_size = 2 << 20, .backing = 2,
			  .file = WIRE_NO_FILE },
		},
	};
}

static void need_small_pages(void)
{
	if (sysconf(_SC_PAGESIZE) != 4096)
		skip();
}

static void understands_a_hello(void **state)
{
	struct hello h = good();
	struct wire_vm vm;

	(void)state;
	need_small_pages();
	if (wire_parse(&h, h.head.bytes, IMAGE, &vm))
		fail_msg("%s", err_text());
	assert_int_equal(vm.memory->count, 3);
	assert_int_equal(vm.files, 2);
	assert_int_equal(vm.channels, 5);
	assert_true(vm.uffd);
	/* Sorted by hva: ordinary memory is first, a guest_memfd has none that a process can have. */
	assert_int_equal(vm.memory->region[0].hva, 6 << 20);
	assert_int_equal(vm.region[0].bitmap_at, 8192);
	assert_true(vm.memory->region[1].hva >> 63);
	assert_int_equal(vm.memory->region[1].gpa, 0);
	assert_int_equal(vm.region[1].file, 1);
	assert_int_equal(vm.region[2].gpa, 1 << 20);
	assert_int_equal(vm.memory->region[2].backing, INFILL_BACKING_GUEST_MEMFD);
	infill_memory_free(vm.memory);
}

/* Of a protected VM, which has neither guest_memfds nor huge pages. */
static void understands_a_protected_vm(void **state)
{
	struct hello h = good();
	struct wire_vm vm;

	(void)state;
	need_small_pages();
	h.head.flags |= WIRE_PROTECTED;
	h.head.bytes = 64 + 64;
	h.head.regions = 1;
	h.head.files = 0;
	h.region[0] = h.region[2];
	assert_int_equal(wire_parse(&h, h.head.bytes, IMAGE, &vm), -EPROTO);
	assert_non_null(strstr(err_text(), "region 0: backing: a protected VM has"));
	h.region[0].backing = INFILL_BACKING_SHMEM;
	assert_int_equal(wire_parse(&h, h.head.bytes, IMAGE, &vm), 0);
	assert_true(vm.protected);
	infill_memory_free(vm.memory);
	h.head.flags = WIRE_UFFD;
	assert_int_equal(wire_parse(&h, h.head.bytes, IMAGE, &vm), 0);
	assert_false(vm.protected);
	infill_memory_free(vm.memory);
}

/* One field of a good hello, and what is said of it. */
struct wrong {
	const char *name;
	size_t at, size;
	uint64_t value;
	const char *part;
};

#define HEAD(field, value, part) \
	{ #field, offsetof(struct hello, head.field), sizeof(((struct hello *)0)->head.field), value, \
	  part }
#define REGION(i, field, value, part)                                                           \
	{ #field " of " #i, offsetof(struct hello, region[i].field),                             \
	  sizeof(((struct hello *)0)->region[i].field), value, part }

static const struct wrong wrong[] = {
	HEAD(magic[1], 'i', "magic"),
	HEAD(version, 0, "version: is 0: this pager speaks 1"),
	HEAD(version, 2, "version: is 2"),
	HEAD(bytes, 64 + 2 * 64, "bytes: is 192"),
	HEAD(flags, 4 | WIRE_UFFD, "flags: 0x4"),
	HEAD(flags, WIRE_PROTECTED | WIRE_UFFD, "backing: a protected VM has"),
	HEAD(flags, 0x80000000u | WIRE_UFFD, "flags: 0x80000000"),
	HEAD(flags, 0, "none is announced"),
	HEAD(regions, 0, "regions: is 0"),
	HEAD(regions, 65, "regions: is 65"),
	HEAD(regions, UINT32_MAX, "regions: is 4294967295"),
	HEAD(regions, 2, "bytes: is 256"),
	HEAD(files, 33, "files: is 33"),
	HEAD(files, 1, "file: there is none"),
	HEAD(channels, 0, "channels: is 0"),
	HEAD(channels, 193, "channels: is 193"),
	HEAD(bit_bytes, 8192, "bit_bytes: is 8192"),
	HEAD(bit_bytes, 0, "bit_bytes: is 0"),
	HEAD(reserved[0], 1, "reserved[0]"),
	HEAD(reserved[2], 1ull << 63, "reserved[2]"),
	REGION(0, bytes, 0, "bytes: must be a multiple"),
	REGION(0, bytes, 4097, "bytes: must be a multiple"),
	REGION(0, bytes, IMAGE + 4096, "past the image's end"),
	REGION(0, offset, IMAGE, "past the image's end"),
	REGION(0, offset, UINT64_MAX & ~4095ull, "past the image's end"),
	REGION(0, offset, 1, "offset: must be"),
	REGION(0, gpa, 1, "gpa, offset: must be"),
	REGION(0, gpa, 1ull << 63, "gpa: is too large"),
	REGION(0, gpa, UINT64_MAX & ~4095ull, "gpa: is too large"),
	REGION(1, gpa, 0, "region 1: overlaps another in gpa"),
	REGION(1, gpa, 4 << 20, "region 2: overlaps another in gpa"),
	REGION(0, hva, 4096, "hva: must be 0"),
	REGION(2, hva, 0, "hva: is no address"),
	REGION(2, hva, 1ull << 63, "hva: is no address"),
	REGION(2, hva, 4096, "hva is not aligned"),
	REGION(0, bitmap_at, 1, "bitmap_at"),
	REGION(0, bitmap_at, UINT64_MAX & ~4095ull, "bitmap_at"),
	REGION(0, bitmap_at, INT64_MAX & ~4095ull, "bitmap_at"),
	REGION(0, file_at, 1, "file_at"),
	REGION(0, file_at, UINT64_MAX & ~4095ull, "file_at"),
	REGION(2, file_at, 4096, "only a guest_memfd has one"),
	REGION(2, file, 0, "only a guest_memfd has one"),
	REGION(0, file, 2, "file: there is none"),
	REGION(0, file, WIRE_NO_FILE, "file: there is none"),
	REGION(0, page_size, 0, "page_size: must be"),
	REGION(0, page_size, 2048, "page_size: must be"),
	REGION(0, page_size, 8192, "page_size: must be"),
	REGION(0, backing, 4, "backing: is not known"),
	REGION(0, backing, UINT32_MAX, "backing: is not known"),
	REGION(2, page_size, 4096, "hugetlb"),
	REGION(1, reserved, 1, "reserved: must be 0"),
};

static void refuses_what_is_wrong(void **state)
{
	(void)state;
	need_small_pages();
	for (size_t i = 0; i < ITEMS(wrong); i++) {
		const struct wrong *w = &wrong[i];
		struct hello h = good();
		struct wire_vm vm;

		memcpy((char *)&h + w->at, &w->value, w->size);
		if (!wire_parse(&h, 64 + 3 * 64, IMAGE, &vm))
			fail_msg("%s: is accepted as %llu", w->name, (unsigned long long)w->value);
		if (!strstr(err_text(), w->part))
			fail_msg("%s: \"%s\" does not say \"%s\"", w->name, err_text(), w->part);
		assert_null(vm.memory);
	}
}

static void refuses_every_prefix(void **state)
{
	const struct hello h = good();
	struct wire_vm vm;

	(void)state;
	for (size_t length = 0; length < h.head.bytes; length++)
		assert_int_equal(wire_parse(&h, length, IMAGE, &vm), -EPROTO);
}

/* However it is cut, its end is found, and a byte behind it is one too many. */
static void finds_its_end(void **state)
{
	struct hello h = good();
	const char *bytes = (const char *)&h;

	(void)state;
	for (size_t cut = 1; cut <= h.head.bytes; cut += 13) {
		struct handshake_scan s = { 0 };

		for (size_t at = 0; at < h.head.bytes; at += cut) {
			size_t n = h.head.bytes - at < cut ? h.head.bytes - at : cut;

			assert_int_equal(handshake_scan(&s, bytes + at, n),
					 at + n == h.head.bytes ? 0 : -EAGAIN);
		}
		assert_int_equal(handshake_scan(&s, "", 1), -EPROTO);
		assert_non_null(strstr(err_text(), "bytes follow"));
	}
}

static void refuses_a_wrong_head_at_once(void **state)
{
	static const uint32_t lengths[] = { 0, 63, WIRE_MAX + 1, UINT32_MAX };
	struct hello h = good();

	(void)state;
	for (size_t i = 1; i < 8; i++) {
		struct handshake_scan s = { 0 };

		h.head.magic[i] ^= 1;
		assert_int_equal(handshake_scan(&s, (const char *)&h, i + 1), -EPROTO);
		h.head.magic[i] ^= 1;
	}
	for (size_t i = 0; i < ITEMS(lengths); i++) {
		struct handshake_scan s = { 0 };

		h.head.bytes = lengths[i];
		assert_int_equal(handshake_scan(&s, (const char *)&h, 16), -EPROTO);
		assert_non_null(strstr(err_text(), "bytes: is"));
	}
}

static void writes_what_it_understands(void **state)
{
	struct hello out;
	struct infill_memory *memory;
	struct infill_region r = { .size = sizeof(r), .gpa = 1 << 20, .hva = 1 << 20,
				   .length = 160 << 20, .page_size = 4096,
				   .backing = INFILL_BACKING_GUEST_MEMFD, .guest_memfd = 7,
				   .guest_memfd_offset = 4096 };
	int file[WIRE_FILES_MAX];
	unsigned files;
	struct wire_vm vm;

	(void)state;
	need_small_pages();
	assert_int_equal(infill_memory_new(&memory), 0);
	assert_int_equal(infill_memory_add(memory, &r), 0);
	r.gpa = r.hva = 1 << 30;
	r.offset = 160 << 20;
	assert_int_equal(infill_memory_add(memory, &r), 0);
	r = (struct infill_region){ .size = sizeof(r), .gpa = 2u << 30, .hva = 2u << 30,
				    .length = 4096, .offset = 320 << 20 };
	assert_int_equal(infill_memory_add(memory, &r), 0);
	assert_int_equal(wire_write(&out, sizeof(out), memory, 3, WIRE_UFFD, file, &files), 64 + 3 * 64);
	assert_int_equal(files, 1); /* the same file twice is sent once */
	assert_int_equal(file[0], 7);
	assert_int_equal(wire_parse(&out, out.head.bytes, IMAGE, &vm), 0);
	/* 40960 bits: 5120 bytes, so two pages each. */
	assert_int_equal(out.region[1].bitmap_at, 8192);
	assert_int_equal(out.region[2].bitmap_at, 16384);
	assert_int_equal(out.region[1].file_at, 4096);
	assert_int_equal(vm.memory->region[0].gpa, 2u << 30);
	assert_int_equal(wire_write(&out, 64 + 2 * 64, memory, 3, WIRE_UFFD, file, &files), -ENOSPC);
	infill_memory_free(vm.memory);
	infill_memory_free(memory);
}

/* The bytes of the hello's beginning, as the manual page has them. */
static void has_the_documented_layout(void **state)
{
	static const uint8_t begin[] = { 0x89, 'I', 'N', 'F', 'I', 'L', 'L', '\n', 1, 0, 0, 0,
					 0, 1, 0, 0, 1, 0, 0, 0, 3, 0, 0, 0, 2, 0, 0, 0, 5, 0, 0, 0,
					 0, 16, 0, 0, 0, 0, 0, 0 };
	struct hello h = good();

	(void)state;
	assert_memory_equal(&h, begin, sizeof(begin));
	assert_int_equal(offsetof(struct wire_region, page_size), 48);
	assert_int_equal(offsetof(struct wire_region, file), 56);
	assert_int_equal(offsetof(struct wire_answer, gpa), 16);
}

static void tells_a_notice(void **state)
{
	struct {
		struct wire_notice head;
		char text[32];
	} got = { 0 };
	int pair[2];

	(void)state;
	assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM, 0, pair), 0);
	wire_tell(pair[0], WIRE_ERROR, -ESTALE, "why not");
	assert_int_equal(read(pair[1], &got, sizeof(got)), 16 + 7);
	assert_int_equal(got.head.type, 3);
	assert_int_equal(got.head.bytes, 23);
	assert_int_equal(got.head.error, ESTALE);
	assert_string_equal(got.text, "why not");
	close(pair[1]);
	wire_tell(pair[0], WIRE_SERVED, 0, ""); /* no SIGPIPE */
	close(pair[0]);
	wire_tell(-1, WIRE_SERVED, 0, "");
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(understands_a_hello),
		cmocka_unit_test(understands_a_protected_vm),
		cmocka_unit_test(refuses_what_is_wrong),
		cmocka_unit_test(refuses_every_prefix),
		cmocka_unit_test(finds_its_end),
		cmocka_unit_test(refuses_a_wrong_head_at_once),
		cmocka_unit_test(writes_what_it_understands),
		cmocka_unit_test(has_the_documented_layout),
		cmocka_unit_test(tells_a_notice),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
