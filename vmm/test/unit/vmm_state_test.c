/* SPDX-License-Identifier: MIT */
/*
 * vmm_state_test.c: state files of infill-vmm, good and damaged.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <errno.h>
#include <sys/stat.h>

#define XXH_INLINE_ALL
#include <xxhash.h>

#include "error.h"
#include "scratch.h"
#include "state.h"
#include "vm.h"

#define A1 ('A' << 8 | 1)
#define A2 ('A' << 8 | 2)
#define HEADER 48u
#define RECORDS_AT 32u
#define CHECKSUM_AT 40u

static const struct vm vm = {
	.memory_bytes = 4096 * 100, .vcpus = 2, .regions = 1,
	.region = { { .gpa = 4096, .bytes = 4096 * 100, .offset = 0 } },
};

/* A file with three records, in memory; *LENGTH is its size. */
static uint8_t *good(size_t *length)
{
	struct state *state = state_new();
	struct new_file file;
	struct stat st;
	uint8_t *bytes;
	int fd;

	assert_non_null(state);
	assert_int_equal(state_add(state, A1, 0, "12345", 5), 0);
	assert_int_equal(state_add(state, A1, 1, "12345678", 8), 0);
	assert_int_equal(state_add(state, A2, 0, "", 0), 0);
	assert_int_equal(state_write(state, &vm, scratch("good"), &file), 0);
	assert_int_equal(file_place(&file), 0);
	state_free(state);
	fd = open(scratch("good"), O_RDONLY | O_CLOEXEC);
	assert_int_equal(fstat(fd, &st), 0);
	bytes = malloc((size_t)st.st_size);
	assert_int_equal(read(fd, bytes, (size_t)st.st_size), st.st_size);
	close(fd);
	*length = (size_t)st.st_size;
	return bytes;
}

/* Make header and checksum agree with the records again. */
static void seal(uint8_t *bytes, size_t length)
{
	uint64_t records = length - HEADER, sum;

	memcpy(bytes + RECORDS_AT, &records, sizeof(records));
	sum = XXH3_64bits_withSeed(bytes + HEADER, records, XXH3_64bits(bytes, CHECKSUM_AT));
	memcpy(bytes + CHECKSUM_AT, &sum, sizeof(sum));
}

static int read_bytes(const uint8_t *bytes, size_t length)
{
	struct state *state = (void *)1;
	int err = state_read(&state, scratch_file("damaged", bytes, length));

	if (err)
		assert_null(state);
	else
		state_free(state);
	return err;
}

/* ---- damaged files ------------------------------------------------------------- */

static void a_file_of_any_other_length_is_refused(void **arg)
{
	size_t length;
	uint8_t *bytes = good(&length);

	(void)arg;
	assert_int_equal(read_bytes(bytes, length), 0);
	for (size_t n = 0; n < length; n++)
		assert_int_equal(read_bytes(bytes, n), -EBADMSG);
	bytes = realloc(bytes, length + 8);
	memset(bytes + length, 0, 8);
	assert_int_equal(read_bytes(bytes, length + 8), -EBADMSG);
	free(bytes);
}

static void every_flipped_bit_is_refused(void **arg)
{
	size_t length;
	uint8_t *bytes = good(&length);

	(void)arg;
	for (size_t bit = 0; bit < 8 * length; bit++) {
		bytes[bit / 8] ^= (uint8_t)(1 << bit % 8);
		assert_true(read_bytes(bytes, length) < 0);
		bytes[bit / 8] ^= (uint8_t)(1 << bit % 8);
	}
	free(bytes);
}

struct field {
	size_t at, bytes;
	uint64_t value;
	int error;
};

static void headers_that_cannot_be_are_refused(void **arg)
{
	static const struct field table[] = {
		{ 8, 4, 0, -EPROTO }, { 8, 4, 2, -EPROTO },      /* version */
		{ 12, 4, 0, -EPROTO }, { 12, 4, 77, -EPROTO },   /* architecture */
		{ 16, 8, 0, -EBADMSG }, { 16, 8, 4095, -EBADMSG }, /* memory */
		{ 16, 8, 1ull << 63, -EBADMSG }, { 16, 8, ~4095ull, -EBADMSG },
		{ 24, 4, 0, -EBADMSG }, { 24, 4, VCPUS_MAX + 1, -EBADMSG },
		{ 24, 4, UINT32_MAX, -EBADMSG },
		{ 28, 4, 0, -EBADMSG }, { 28, 4, 56, -EBADMSG }, /* bytes of the header */
		{ 32, 8, 0, -EBADMSG }, { 32, 8, UINT64_MAX, -EBADMSG },
		{ 32, 8, UINT64_MAX - 47, -EBADMSG },
	};
	size_t length;
	uint8_t *bytes = good(&length), *copy = malloc(length);

	(void)arg;
	for (size_t i = 0; i < COUNT(table); i++) {
		memcpy(copy, bytes, length);
		memcpy(copy + table[i].at, &table[i].value, table[i].bytes);
		assert_int_equal(read_bytes(copy, length), table[i].error);
	}
	free(copy);
	free(bytes);
}

static void records_that_cannot_be_are_refused(void **arg)
{
	static const struct field table[] = {
		{ 8, 4, 1000, -EBADMSG },       /* bytes: past the end */
		{ 8, 4, UINT32_MAX, -EBADMSG }, /* ... wraps when it is rounded up */
		{ 8, 4, UINT32_MAX - 6, -EBADMSG },
		{ 12, 4, 1, -EBADMSG },         /* what must be zero */
		{ 21, 1, 1, -EBADMSG },         /* padding */
		{ 4, 4, 1, -EBADMSG },          /* the same kind and index as the second */
	};
	size_t length;
	uint8_t *bytes = good(&length), *copy = malloc(length);

	(void)arg;
	for (size_t i = 0; i < COUNT(table); i++) {
		memcpy(copy, bytes, length);
		memcpy(copy + HEADER + table[i].at, &table[i].value, table[i].bytes);
		seal(copy, length);
		assert_int_equal(read_bytes(copy, length), table[i].error);
	}
	/* A record more that is cut short: 8 bytes are no head of one. */
	bytes = realloc(bytes, length + 8);
	memset(bytes + length, 0, 8);
	seal(bytes, length + 8);
	assert_int_equal(read_bytes(bytes, length + 8), -EBADMSG);
	free(copy);
	free(bytes);
}

/* As each is compared with all others, a file of many small ones would take hours. */
static void more_records_than_can_be_are_refused(void **arg)
{
	const size_t most = 1024, one = 16;
	size_t length;
	uint8_t *bytes = good(&length);
	struct state *state = state_new();

	(void)arg;
	bytes = realloc(bytes, HEADER + (most + 1) * one);
	memset(bytes + HEADER, 0, (most + 1) * one);
	for (uint32_t i = 0; i <= most; i++) {
		memcpy(bytes + HEADER + i * one + 4, &i, sizeof(i)); /* its index */
		assert_int_equal(state_add(state, A1, i, "", 0), i < most ? 0 : -EFBIG);
	}
	seal(bytes, HEADER + most * one);
	assert_int_equal(read_bytes(bytes, HEADER + most * one), 0);
	seal(bytes, HEADER + (most + 1) * one);
	assert_int_equal(read_bytes(bytes, HEADER + (most + 1) * one), -EBADMSG);
	state_free(state);
	free(bytes);
}

static void what_is_no_file_is_refused(void **arg)
{
	struct state *state;

	(void)arg;
	assert_int_equal(state_read(&state, scratch("none")), -ENOENT);
	assert_int_equal(mkdir(scratch("folder"), 0700), 0);
	assert_int_equal(state_read(&state, scratch("folder")), -EBADMSG);
	assert_int_equal(mkfifo(scratch("fifo"), 0600), 0);
	assert_int_equal(state_read(&state, scratch("fifo")), -EBADMSG);
	assert_null(state);
	assert_string_not_equal(vmm_error_text(), "");
}

/* ---- good ones ------------------------------------------------------------------- */

static void what_was_written_is_read(void **arg)
{
	struct state *state;
	char data[8];
	size_t length;

	(void)arg;
	free(good(&length));
	assert_int_equal(state_read(&state, scratch("good")), 0);
	assert_int_equal(state_memory_bytes(state), vm.memory_bytes);
	assert_int_equal(state_vcpus(state), 2);
	assert_memory_equal(state_get(state, A1, 0, &length), "12345", 5);
	assert_int_equal(length, 5);
	assert_int_equal(state_get_fixed(state, A1, 1, data, 8), 0);
	assert_memory_equal(data, "12345678", 8);
	assert_non_null(state_get(state, A2, 0, &length));
	assert_int_equal(length, 0);
	assert_null(state_get(state, A2, 1, &length));
	assert_int_equal(state_get_fixed(state, A2, 1, data, 0), -EBADMSG);
	assert_int_equal(state_get_fixed(state, A1, 0, data, 8), -EBADMSG);
	state_free(state);
}

static void another_layout_is_refused(void **arg)
{
	struct state *state = state_new();
	struct vm other = vm;

	(void)arg;
	assert_int_equal(state_check_layout(state, &vm), -EPROTO);
	assert_int_equal(state_add_layout(state, &vm), 0);
	assert_int_equal(state_check_layout(state, &vm), 0);
	other.region[0].gpa = 0;
	assert_int_equal(state_check_layout(state, &other), -EPROTO);
	other = vm;
	other.regions = 2;
	assert_int_equal(state_check_layout(state, &other), -EPROTO);
	state_free(state);
}

static void a_file_that_cannot_be_written_leaves_nothing(void **arg)
{
	struct state *state = state_new();
	struct new_file file;

	(void)arg;
	assert_int_equal(state_write(state, &vm, scratch("no/such/folder"), &file), -ENOENT);
	assert_int_equal(mkdir(scratch("taken"), 0700), 0);
	assert_int_equal(state_write(state, &vm, scratch("taken"), &file), -EISDIR);
	assert_int_equal(rmdir(scratch("taken")), 0);
	state_free(state);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(a_file_of_any_other_length_is_refused),
		cmocka_unit_test(every_flipped_bit_is_refused),
		cmocka_unit_test(headers_that_cannot_be_are_refused),
		cmocka_unit_test(records_that_cannot_be_are_refused),
		cmocka_unit_test(more_records_than_can_be_are_refused),
		cmocka_unit_test(what_is_no_file_is_refused),
		cmocka_unit_test(what_was_written_is_read),
		cmocka_unit_test(another_layout_is_refused),
		cmocka_unit_test(a_file_that_cannot_be_written_leaves_nothing),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
