/* SPDX-License-Identifier: MIT */
/*
 * handshake_test.c: Firecracker's handshake: every version's messages, and
 * every way in which one can be wrong.  Messages are what VMMs out there send:
 * cases are added, none change.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "err.h"
#include "handshake.h"
#include "memory.h"

#define IMAGE (1ull << 30)
#define ITEMS(a) (sizeof(a) / sizeof(*(a)))

/* One region in the words of Firecracker 1.1, with more fields in place of MORE. */
#define REGION(hva, size, offset, more) \
	"{\"base_host_virt_addr\":" hva ",\"size\":" size ",\"offset\":" offset more "}"

/* ---- what is understood ------------------------------------------------------------ */

struct good {
	const char *name, *json;
	struct infill_region want;
};

static const struct good good[] = {
	{ "1.1: three fields", "[" REGION("1048576", "8192", "0", "") "]",
	  { .hva = 1 << 20, .length = 8192, .page_size = 4096 } },
	{ "1.7: page_size_kib in bytes",
	  "[" REGION("2097152", "4194304", "2097152", ",\"page_size_kib\":2097152") "]",
	  { .hva = 2 << 20, .length = 4 << 20, .offset = 2 << 20, .page_size = 2 << 20,
	    .backing = INFILL_BACKING_HUGETLB } },
	{ "1.12: both page sizes",
	  "[" REGION("4096", "4096", "4096", ",\"page_size\":4096,\"page_size_kib\":4096") "]",
	  { .hva = 4096, .length = 4096, .offset = 4096, .page_size = 4096 } },
	{ "page_size wins",
	  "[" REGION("4096", "4096", "0", ",\"page_size\":4096,\"page_size_kib\":2097152") "]",
	  { .hva = 4096, .length = 4096, .page_size = 4096 } },
	{ "gpa_start", "[" REGION("4096", "4096", "0", ",\"gpa_start\":1073741824") "]",
	  { .hva = 4096, .length = 4096, .gpa = 1 << 30, .page_size = 4096 } },
	{ "backing", "[" REGION("4096", "4096", "0", ",\"backing\":\"shmem\"") "]",
	  { .hva = 4096, .length = 4096, .page_size = 4096, .backing = INFILL_BACKING_SHMEM } },
	{ "2 MiB pages that are not hugetlb",
	  "[" REGION("2097152", "2097152", "0", ",\"page_size\":2097152,\"backing\":\"anon\"") "]",
	  { .hva = 2 << 20, .length = 2 << 20, .page_size = 2 << 20 } },
	{ "unknown fields",
	  "[" REGION("4096", "4096", "0", ",\"is_guest_memfd\":false,\"x\":{\"y\":[1,-2,\"]\"]}") "]",
	  { .hva = 4096, .length = 4096, .page_size = 4096 } },
	{ "white space", " \r\n\t[ " REGION(" 4096 ", "4096", "0", "") " ]\n",
	  { .hva = 4096, .length = 4096, .page_size = 4096 } },
	{ "the last page of the image", "[" REGION("4096", "4096", "1073737728", "") "]",
	  { .hva = 4096, .length = 4096, .offset = IMAGE - 4096, .page_size = 4096 } },
};

static void understands_every_version(void **state)
{
	(void)state;
	for (size_t i = 0; i < ITEMS(good); i++) {
		const struct infill_region *want = &good[i].want, *got;
		struct infill_memory *memory;
		int rc = handshake_parse(good[i].json, strlen(good[i].json), IMAGE, &memory);

		if (rc != HANDSHAKE_VM)
			fail_msg("%s: %s", good[i].name, err_text());
		got = &memory->region[0];
		if (memory->count != 1 || got->hva != want->hva || got->length != want->length ||
		    got->offset != want->offset || got->gpa != want->gpa ||
		    got->page_size != want->page_size || got->backing != want->backing)
			fail_msg("%s: the region is another one", good[i].name);
		infill_memory_free(memory);
	}
}

static void understands_regions_in_any_order(void **state)
{
	const char *json = "[" REGION("1048576", "4096", "4096", "") ","
			   REGION("4096", "4096", "0", "") "]";
	struct infill_memory *memory;

	(void)state;
	assert_int_equal(handshake_parse(json, strlen(json), IMAGE, &memory), HANDSHAKE_VM);
	assert_int_equal(memory->count, 2);
	assert_int_equal(memory->region[0].hva, 4096);
	assert_int_equal(memory->region[1].offset, 4096);
	infill_memory_free(memory);
}

static void understands_control_requests(void **state)
{
	static const struct {
		const char *json;
		int kind;
	} known[] = {
		{ "{\"infill\":\"stat\"}", HANDSHAKE_STAT },
		{ " {\"infill\" : \"hdr\", \"more\": 1}\n", HANDSHAKE_HDR },
		{ "{\"infill\":\"cache\"}", HANDSHAKE_CACHE },
		{ "{\"infill\":\"mark\"}", HANDSHAKE_MARK },
	};
	struct infill_memory *memory;

	(void)state;
	for (size_t i = 0; i < ITEMS(known); i++) {
		assert_int_equal(handshake_parse(known[i].json, strlen(known[i].json), 0, &memory),
				 known[i].kind);
		assert_null(memory);
	}
}

static void understands_marks(void **state)
{
	static const struct {
		const char *json;
		int code;
		enum infill_mark mark;
		uint64_t vm;
	} known[] = {
		{ "{\"infill\":\"mark\",\"mark\":\"restored\"}", 0, INFILL_MARK_RESTORED, 0 },
		{ "{\"infill\":\"mark\",\"mark\":\"first_work\",\"vm\":7}", 0,
		  INFILL_MARK_FIRST_WORK, 7 },
		{ .json = "{\"infill\":\"mark\"}", .code = -EPROTO },
		{ .json = "{\"infill\":\"mark\",\"mark\":1}", .code = -EPROTO },
		{ .json = "{\"infill\":\"mark\",\"mark\":\"\"}", .code = -EPROTO },
		{ .json = "{\"infill\":\"mark\",\"mark\":\"restored\",\"vm\":0}", .code = -EPROTO },
		{ .json = "{\"infill\":\"mark\",\"mark\":\"restored\",\"vm\":-1}", .code = -EPROTO },
		{ .json = "{\"infill\":\"mark\",\"mark\":\"restored\",\"vm\":\"1\"}",
		  .code = -EPROTO },
	};

	(void)state;
	for (size_t i = 0; i < ITEMS(known); i++) {
		enum infill_mark mark = 0;
		uint64_t vm = 0;

		assert_int_equal(handshake_mark(known[i].json, strlen(known[i].json), &mark, &vm),
				 known[i].code);
		assert_int_equal(mark, known[i].mark);
		assert_int_equal(vm, known[i].vm);
	}
	for (enum infill_mark mark = 0; mark < 4; mark++)
		assert_true(!handshake_mark_name(mark) == (mark < 1 || mark > 2));
}

/* ---- what is refused ---------------------------------------------------------------- */

struct bad {
	int code;
	const char *json, *why; /* part of the text */
};

static const struct bad bad[] = {
	{ -EPROTO, "GET / HTTP/1.1", "is not JSON" },
	{ -EPROTO, "]", "is not JSON" },
	{ -EPROTO, "\"[]\"", "is not JSON" },
	{ -EPROTO, "[}", "is not JSON" },
	{ -EPROTO, "[1,]", "is not JSON" },
	{ -EPROTO, "[]", "names no region" },
	{ -EPROTO, "[] []", "bytes follow" },
	{ -EPROTO, "[[]]", "region 0: is not an object" },
	{ -EPROTO, "[null]", "region 0: is not an object" },
	{ -EPROTO, "[[[[[[[[[]]]]]]]]]", "nested deeper" },
	{ -EPROTO, "{}", "is an object" },
	{ -EPROTO, "{\"infill\":\"sTat\"}", "is an object" },
	{ -EPROTO, "{\"infill\":1}", "is an object" },
	{ -EPROTO, "{\"infill\":\"error\",\"what\":\"?\"}", "is an object" },
	{ -EPROTO, "[\"\x01\"]", "control character" },
	{ -EPROTO, "[\"\xff\"]", "is not JSON" },
	{ -EPROTO, "[\"\\u0000\"]", "is not JSON" },
	{ -EPROTO, "[{\"size\":4096,\"offset\":0}]", "base_host_virt_addr: is missing" },
	{ -EPROTO, "[{\"base_host_virt_addr\":4096,\"offset\":0}]", "size: is missing" },
	{ -EPROTO, "[{\"base_host_virt_addr\":4096,\"size\":4096}]", "offset: is missing" },
	{ -EPROTO, "[" REGION("4096", "4096", "0", ",\"size\":8192") "]", "duplicate" },
	{ -EPROTO, "[" REGION("\"4096\"", "4096", "0", "") "]", "is not an integer" },
	{ -EPROTO, "[" REGION("4096", "4096.0", "0", "") "]", "is not an integer" },
	{ -EPROTO, "[" REGION("4096", "true", "0", "") "]", "is not an integer" },
	{ -EPROTO, "[" REGION("4096", "4096", "null", "") "]", "is not an integer" },
	{ -EPROTO, "[" REGION("-4096", "4096", "0", "") "]", "is negative" },
	{ -EPROTO, "[" REGION("4096", "-4096", "0", "") "]", "is negative" },
	{ -EPROTO, "[" REGION("4096", "4096", "-4096", "") "]", "is negative" },
	{ -EPROTO, "[" REGION("18446744073709547520", "4096", "0", "") "]", "too big integer" },
	{ -EPROTO, "[" REGION("4096", "0", "0", "") "]", "size: is 0" },
	{ -EPROTO, "[" REGION("4096", "4095", "0", "") "]", "size: is 4095" },
	{ -EPROTO, "[" REGION("4097", "4096", "0", "") "]", "is not aligned" },
	{ -EPROTO, "[" REGION("4096", "4096", "1", "") "]", "offset: 1" },
	{ -EPROTO, "[" REGION("4096", "2097152", "0", ",\"page_size\":2097152") "]",
	  "is not aligned" },
	{ -EPROTO, "[" REGION("2097152", "4096", "0", ",\"page_size\":2097152") "]", "size: is 4096" },
	{ -EPROTO, "[" REGION("4096", "4096", "0", ",\"page_size\":0") "]", "page_size: is 0" },
	{ -EPROTO, "[" REGION("4096", "4096", "0", ",\"page_size\":4") "]", "page_size: is 4" },
	{ -EPROTO, "[" REGION("4096", "4096", "0", ",\"page_size_kib\":2048") "]", "page_size: is" },
	{ -EPROTO, "[" REGION("4096", "4096", "0", ",\"page_size\":4096,\"page_size_kib\":\"4\"") "]",
	  "page_size_kib: is not" },
	{ -EPROTO, "[" REGION("4096", "4096", "0", ",\"backing\":\"disk\"") "]", "backing: must" },
	{ -EPROTO, "[" REGION("4096", "4096", "0", ",\"backing\":0") "]", "backing: must" },
	{ -EINVAL, "[" REGION("4096", "4096", "0", ",\"backing\":\"hugetlb\"") "]", "hugetlb" },
	{ -EPROTO, "[" REGION("4096", "4096", "0", ",\"gpa_start\":-1") "]", "gpa_start: is neg" },
	{ -EINVAL, "[" REGION("4096", "4096", "0", ",\"gpa_start\":1") "]", "gpa" },
	{ -EPROTO, "[" REGION("4096", "4096", "0", ",\"gpa_start\":0") ","
	  REGION("8192", "4096", "0", "") "]", "region 1: gpa_start: is given for some" },
	{ -EPROTO, "[" REGION("4096", "4096", "0", ",\"is_guest_memfd\":true") "]", "guest_memfd" },
	{ -ERANGE, "[" REGION("4096", "4096", "1073741824", "") "]", "past the image's end" },
	{ -ERANGE, "[" REGION("4096", "8192", "1073737728", "") "]", "past the image's end" },
	{ -ERANGE, "[" REGION("4096", "9223372036854771712", "4096", "") "]", "past the image's" },
	{ -ERANGE, "[" REGION("4096", "4096", "9223372036854771712", "") "]", "past the image's" },
	{ -EEXIST, "[" REGION("4096", "8192", "0", "") "," REGION("8192", "4096", "0", "") "]",
	  "overlap in hva" },
	{ -EEXIST, "[" REGION("4096", "4096", "0", ",\"gpa_start\":4096") ","
	  REGION("65536", "4096", "0", ",\"gpa_start\":4096") "]", "overlap in gpa" },
};

static void expect_refusal(const char *json, size_t length, int code, const char *why)
{
	struct infill_memory *memory = (void *)1;
	int rc = handshake_parse(json, length, IMAGE, &memory);

	if (rc != code)
		fail_msg("%.100s: %d in place of %d: %s", json, rc, code, err_text());
	if (memory)
		fail_msg("%.100s: refused, but a memory was given", json);
	if (!strstr(err_text(), why))
		fail_msg("%.100s: says \"%s\", not \"%s\"", json, err_text(), why);
}

static void refuses_what_is_wrong(void **state)
{
	(void)state;
	for (size_t i = 0; i < ITEMS(bad); i++)
		expect_refusal(bad[i].json, strlen(bad[i].json), bad[i].code, bad[i].why);
}

static void refuses_a_nul(void **state)
{
	static const char json[] = "[\0]";

	(void)state;
	expect_refusal(json, 3, -EPROTO, "control character");
}

/* A message with COUNT regions of a page each. */
static char *many(unsigned count)
{
	char *json = malloc(128 * (size_t)count + 3), *at = json;

	for (unsigned i = 0; i < count; i++)
		at += sprintf(at, "%s" REGION("%u", "4096", "0", ""), i ? "," : "[", (i + 1) * 8192);
	strcpy(at, "]");
	return json;
}

static void bounds_the_number_of_regions(void **state)
{
	char *most = many(INFILL_MEMORY_REGIONS_MAX), *more = many(INFILL_MEMORY_REGIONS_MAX + 1);
	struct infill_memory *memory;

	(void)state;
	assert_int_equal(handshake_parse(most, strlen(most), IMAGE, &memory), HANDSHAKE_VM);
	assert_int_equal(memory->count, INFILL_MEMORY_REGIONS_MAX);
	infill_memory_free(memory);
	expect_refusal(more, strlen(more), -ENOSPC, "names 65 regions");
	free(most);
	free(more);
}

static void bounds_the_length(void **state)
{
	static const char message[] = "[" REGION("4096", "4096", "0", "") "]";
	char *json = malloc(HANDSHAKE_MAX + 1);
	struct infill_memory *memory;

	(void)state;
	memset(json, ' ', HANDSHAKE_MAX + 1);
	memcpy(json, message, sizeof(message) - 1);
	assert_int_equal(handshake_parse(json, HANDSHAKE_MAX, IMAGE, &memory), HANDSHAKE_VM);
	infill_memory_free(memory);
	expect_refusal(json, HANDSHAKE_MAX + 1, -EPROTO, "is longer than");
	memset(json, ' ', HANDSHAKE_MAX);
	json[0] = '[';
	expect_refusal(json, HANDSHAKE_MAX, -EPROTO, "is longer than");
	expect_refusal(json, HANDSHAKE_MAX - 1, -EAGAIN, "is not whole");
	free(json);
}

/* ---- pieces -------------------------------------------------------------------------- */

static void every_prefix_goes_on(void **state)
{
	const char *json = "[" REGION("4096", "4096", "0", ",\"x\":\"a\\\"]}\",\"y\":[{}]") "]";

	(void)state;
	for (size_t i = 0; i < strlen(json); i++)
		expect_refusal(json, i, -EAGAIN, "is not whole");
}

static void finds_the_end_in_pieces(void **state)
{
	const char *json = "[" REGION("4096", "4096", "0", ",\"x\":\"a\\\\\\\"]\"") "]";
	struct handshake_scan scan = { 0 };
	size_t i;

	(void)state;
	for (i = 0; i + 1 < strlen(json); i++)
		assert_int_equal(handshake_scan(&scan, json + i, 1), -EAGAIN);
	assert_int_equal(handshake_scan(&scan, json + i, 1), 0);
	assert_int_equal(scan.first, '[');
	assert_int_equal(handshake_scan(&scan, "\n", 1), 0);
	assert_int_equal(handshake_scan(&scan, "[", 1), -EPROTO);
}

/* ---- the client's side ----------------------------------------------------------------- */

static struct infill_memory *two_regions(uint64_t gpa)
{
	struct infill_region a = { .size = sizeof(a), .hva = 1 << 30, .length = 4 << 20, .gpa = 0,
				   .page_size = 4096, .backing = INFILL_BACKING_SHMEM };
	struct infill_region b = { .size = sizeof(b), .hva = 8 << 20, .length = 2 << 20, .gpa = gpa,
				   .offset = 4 << 20, .page_size = 2 << 20,
				   .backing = INFILL_BACKING_HUGETLB };
	struct infill_memory *memory;

	assert_int_equal(infill_memory_new(&memory), 0);
	assert_int_equal(infill_memory_add(memory, &a), 0);
	assert_int_equal(infill_memory_add(memory, &b), 0);
	return memory;
}

static void what_is_written_is_understood(void **state)
{
	(void)state;
	for (int known = 0; known < 2; known++) {
		struct infill_memory *sent = two_regions(known ? 4ull << 30 : 0), *got;
		char json[1024];
		int n = handshake_write(json, sizeof(json), sent);

		assert_true(n > 0);
		assert_int_equal(handshake_parse(json, (size_t)n, IMAGE, &got), HANDSHAKE_VM);
		assert_memory_equal(got, sent, sizeof(*sent));
		json[n] = 0;
		assert_int_equal(strstr(json, "gpa_start") != NULL, known);
		infill_memory_free(sent);
		infill_memory_free(got);
	}
}

static void the_form_is_firecrackers(void **state)
{
	struct infill_region r = { .size = sizeof(r), .hva = 4096, .length = 8192 };
	struct infill_memory *memory;
	char json[1024];
	int n;

	(void)state;
	assert_int_equal(infill_memory_new(&memory), 0);
	assert_int_equal(infill_memory_add(memory, &r), 0);
	n = handshake_write(json, sizeof(json), memory);
	assert_true(n > 0);
	json[n] = 0;
	assert_string_equal(json, "[{\"base_host_virt_addr\":4096,\"size\":8192,\"offset\":0,"
			    "\"page_size\":4096,\"page_size_kib\":4096,\"backing\":\"anon\"}]");
	infill_memory_free(memory);
}

static void a_buffer_that_is_too_small_is_an_error(void **state)
{
	struct infill_memory *memory = two_regions(4ull << 30);
	char json[1024];
	int n = handshake_write(json, sizeof(json), memory);

	(void)state;
	for (size_t size = 0; size < (size_t)n; size++) {
		json[size] = '!';
		assert_int_equal(handshake_write(json, size, memory), -ENOSPC);
		assert_int_equal(json[size], '!');
	}
	infill_memory_free(memory);
}

static void sends_one_message_with_one_fd(void **state)
{
	struct infill_memory *memory = two_regions(4ull << 30);
	char json[4096], want[4096], control[CMSG_SPACE(4 * sizeof(int))];
	struct iovec part = { json, sizeof(json) };
	struct msghdr m = { .msg_iov = &part, .msg_iovlen = 1, .msg_control = control,
			    .msg_controllen = sizeof(control) };
	int pair[2], pipes[2], fd;

	(void)state;
	assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM, 0, pair), 0);
	assert_int_equal(pipe(pipes), 0);
	assert_int_equal(infill_handshake_send_on(pair[0], pipes[1], memory), 0);
	assert_int_equal(recvmsg(pair[1], &m, 0), handshake_write(want, sizeof(want), memory));
	assert_memory_equal(json, want, (size_t)handshake_write(want, sizeof(want), memory));
	assert_int_equal(CMSG_FIRSTHDR(&m)->cmsg_len, CMSG_LEN(sizeof(int)));
	memcpy(&fd, CMSG_DATA(CMSG_FIRSTHDR(&m)), sizeof(int));
	assert_int_equal(write(fd, "x", 1), 1);
	assert_int_equal(read(pipes[0], json, 1), 1);
	close(fd);
	close(pair[0]);
	close(pair[1]);
	close(pipes[0]);
	close(pipes[1]);
	infill_memory_free(memory);
}

static void a_pager_that_refuses_is_quoted(void **state)
{
	static const char line[] = "{\"infill\":\"error\",\"what\":\"there are too many\"}\n";
	struct infill_memory *memory = two_regions(0);
	int pair[2];

	(void)state;
	assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM, 0, pair), 0);
	assert_int_equal(write(pair[1], line, sizeof(line) - 1), sizeof(line) - 1);
	close(pair[1]);
	assert_int_equal(infill_handshake_send_on(pair[0], 0, memory), -EPIPE);
	assert_string_equal(infill_error(), "pager: there are too many");
	close(pair[0]);
	infill_memory_free(memory);
}

static void a_path_that_cannot_be_is_an_error(void **state)
{
	struct infill_memory *memory = two_regions(0);
	char path[200];

	(void)state;
	memset(path, 'x', sizeof(path) - 1);
	path[sizeof(path) - 1] = 0;
	assert_int_equal(infill_handshake_send(path, 0, memory), -ENAMETOOLONG);
	assert_non_null(strstr(infill_error(), "at most 107 bytes"));
	assert_int_equal(infill_handshake_send("", 0, memory), -EINVAL);
	assert_int_equal(infill_handshake_send("/nonexistent/socket", 0, memory), -ENOENT);
	assert_non_null(strstr(infill_error(), "/nonexistent/socket: cannot connect"));
	infill_memory_free(memory);
}

int main(void)
{
	static const struct CMUnitTest tests[] = {
		cmocka_unit_test(understands_every_version),
		cmocka_unit_test(understands_regions_in_any_order),
		cmocka_unit_test(understands_control_requests),
		cmocka_unit_test(understands_marks),
		cmocka_unit_test(refuses_what_is_wrong),
		cmocka_unit_test(refuses_a_nul),
		cmocka_unit_test(bounds_the_number_of_regions),
		cmocka_unit_test(bounds_the_length),
		cmocka_unit_test(every_prefix_goes_on),
		cmocka_unit_test(finds_the_end_in_pieces),
		cmocka_unit_test(what_is_written_is_understood),
		cmocka_unit_test(the_form_is_firecrackers),
		cmocka_unit_test(a_buffer_that_is_too_small_is_an_error),
		cmocka_unit_test(sends_one_message_with_one_fd),
		cmocka_unit_test(a_pager_that_refuses_is_quoted),
		cmocka_unit_test(a_path_that_cannot_be_is_an_error),
	};

	return cmocka_run_group_tests_name("handshake", tests, NULL, NULL);
}
