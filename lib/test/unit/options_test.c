/* SPDX-License-Identifier: MIT */
/*
 * options_test.c: option structs of older and newer callers.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <errno.h>
#include <stdio.h>

#include "infill.h"
#include "options.h"
#include "scratch.h"

struct ours {
	size_t size;
	uint64_t a, b;
};

struct newer {
	struct ours known;
	uint64_t more[2];
};

static void the_same_size_is_copied(void **state)
{
	const struct ours from = { sizeof(from), 1, 2 };
	struct ours to;

	(void)state;
	assert_int_equal(options_copy(&to, sizeof(to), &from, "ours", 0), 0);
	assert_memory_equal(&to, &from, sizeof(to));
}

static void null_is_all_defaults(void **state)
{
	const struct ours want = { sizeof(want), 0, 0 };
	struct ours to;

	(void)state;
	memset(&to, 0x55, sizeof(to));
	assert_int_equal(options_copy(&to, sizeof(to), NULL, "ours", 0), 0);
	assert_memory_equal(&to, &want, sizeof(to));
}

static void what_an_older_caller_lacks_is_zero(void **state)
{
	static const struct {
		size_t size;
		uint64_t a, b;
	} table[] = {
		{ 8, 0, 0 },
		{ 16, 0x0101010101010101, 0 },
		{ 20, 0x0101010101010101, 0x01010101 },
	};
	struct ours from, to;

	(void)state;
	for (size_t i = 0; i < COUNT(table); i++) {
		memset(&from, 1, sizeof(from));
		memset(&to, 0x55, sizeof(to));
		from.size = table[i].size;
		assert_int_equal(options_copy(&to, sizeof(to), &from, "ours", 0), 0);
		assert_int_equal(to.size, sizeof(to));
		assert_int_equal(to.a, table[i].a);
		assert_int_equal(to.b, table[i].b);
	}
}

static void a_newer_caller_may_only_add_zeros(void **state)
{
	struct newer from = { .known = { sizeof(from), 1, 2 } };
	struct ours to;

	(void)state;
	assert_int_equal(options_copy(&to, sizeof(to), &from, "ours", 0), 0);
	assert_int_equal(to.size, sizeof(to));
	assert_int_equal(to.b, 2);
	for (size_t i = 0; i < sizeof(from.more); i++) {
		((char *)from.more)[i] = 1;
		assert_int_equal(options_copy(&to, sizeof(to), &from, "ours", 0), -E2BIG);
		((char *)from.more)[i] = 0;
	}
	assert_string_equal(infill_error(), "ours: has options that libinfill does not know");
}

static void absurd_sizes_are_refused(void **state)
{
	static const size_t sizes[] = { 0, 1, 7, 65537, SIZE_MAX };
	struct ours from = { 0 }, to;

	(void)state;
	for (size_t i = 0; i < COUNT(sizes); i++) {
		from.size = sizes[i];
		assert_int_equal(options_copy(&to, sizeof(to), &from, "ours", 0), -EINVAL);
	}
	assert_non_null(strstr(infill_error(), "set it to sizeof(struct ours)"));
}

/* Each struct with a member `reserved`, through the function that takes it. */

#define RESERVED(type) static const struct type with_##type = { .size = sizeof(struct type), .reserved = 7 }

RESERVED(infill_image_options);
RESERVED(infill_region);
RESERVED(infill_pool_options);
RESERVED(infill_session_options);

static int use_image(void)
{
	struct infill_image *image;

	return infill_image_open(&image, "/dev/null", &with_infill_image_options);
}

static int use_region(void)
{
	struct infill_memory *memory;
	int code;

	assert_int_equal(infill_memory_new(&memory), 0);
	code = infill_memory_add(memory, &with_infill_region);
	infill_memory_free(memory);
	return code;
}

static int use_pool(void)
{
	struct infill_pool *pool;

	return infill_pool_new(&pool, &with_infill_pool_options);
}

/* The options come first: neither image nor pool nor descriptors are looked at. */
static int use_session(void)
{
	struct infill_session *session;

	return infill_session_adopt_state(&session, NULL, NULL, NULL, -1, -1,
					  &with_infill_session_options);
}

static int use_server(void)
{
	const struct infill_server_options options = {
		.size = sizeof(options),
		.socket = "socket",
		.image = "image",
		.session = &with_infill_session_options,
	};

	return infill_server_run(&options);
}

static void reserved_is_refused_everywhere(void **state)
{
	static const struct {
		const char *what;
		int (*use)(void);
	} table[] = {
		{ "infill_image_options", use_image },
		{ "infill_region", use_region },
		{ "infill_pool_options", use_pool },
		{ "infill_session_options", use_session },
		{ "infill_session_options", use_server },
	};
	char want[100];

	(void)state;
	for (size_t i = 0; i < COUNT(table); i++) {
		assert_int_equal(table[i].use(), -EINVAL);
		snprintf(want, sizeof(want), "%s: reserved is 7: it must be 0", table[i].what);
		assert_string_equal(infill_error(), want);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(the_same_size_is_copied),
		cmocka_unit_test(null_is_all_defaults),
		cmocka_unit_test(what_an_older_caller_lacks_is_zero),
		cmocka_unit_test(a_newer_caller_may_only_add_zeros),
		cmocka_unit_test(absurd_sizes_are_refused),
		cmocka_unit_test(reserved_is_refused_everywhere),
	};

	return cmocka_run_group_tests_name("options", tests, NULL, NULL);
}
