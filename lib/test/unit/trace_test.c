/* SPDX-License-Identifier: MIT */
/*
 * trace_test.c: trace files, good and damaged, and the runs made of them.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <dirent.h>
#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <sys/mount.h>
#include <sys/resource.h>
#include <sys/wait.h>

#define XXH_INLINE_ALL
#include <xxhash.h>

#include "infill.h"
#include "scratch.h"
#include "trace.h"

#define PAGE 4096u

static const struct infill_identity image = {
	.bytes = 1000 * PAGE, .inode = 12345, .mtime_sec = -7, .mtime_nsec = 999999999,
};

static const uint32_t touched[] = { 500, 3, 4, 999, 5, 0, 500 };

/* ---- merging ------------------------------------------------------------------ */

struct merge_case {
	uint32_t page[8];
	size_t count, window;
	struct trace_run run[6]; /* in pages */
};

static void runs_are(const struct trace *t, const struct trace_run *run)
{
	uint64_t bytes = 0;
	size_t i;

	for (i = 0; run[i].length; i++) {
		assert_true(i < t->count);
		assert_int_equal(t->run[i].offset, run[i].offset * PAGE);
		assert_int_equal(t->run[i].length, run[i].length * PAGE);
		bytes += t->run[i].length;
	}
	assert_int_equal(t->count, i);
	assert_int_equal(t->bytes, bytes);
}

static void neighbours_within_a_window_are_joined(void **state)
{
	static const struct merge_case table[] = {
		{ { 7 }, 1, 1024, { { 7, 1 } } },
		{ { 3, 1, 2 }, 3, 1024, { { 1, 3 } } },
		{ { 9, 1, 8, 0 }, 4, 1024, { { 0, 2 }, { 8, 2 } } },
		{ { 9, 1, 8, 0 }, 4, 2, { { 1, 1 }, { 9, 1 }, { 0, 1 }, { 8, 1 } } },
		{ { 5, 5, 5 }, 3, 1024, { { 5, 1 } } },
		{ { 5, 6, 5, 7 }, 4, 2, { { 5, 2 }, { 7, 1 } } },
		{ { 3, 2, 1 }, 3, 1, { { 3, 1 }, { 2, 1 }, { 1, 1 } } },
		{ { 3, 2, 1 }, 3, 0, { { 3, 1 }, { 2, 1 }, { 1, 1 } } },
		{ { 1, 2, 3, 4 }, 4, 3, { { 1, 3 }, { 4, 1 } } },
		{ { 0, 64, 63, 127 }, 4, 1024, { { 0, 1 }, { 63, 2 }, { 127, 1 } } },
		{ { UINT32_MAX, UINT32_MAX - 1, 0 }, 3, 8, { { 0, 1 }, { UINT32_MAX - 1, 2 } } },
	};

	(void)state;
	for (size_t i = 0; i < COUNT(table); i++) {
		struct trace t;

		assert_int_equal(trace_merge(&t, table[i].page, table[i].count, table[i].window,
					     table[i].window), 0);
		runs_are(&t, table[i].run);
		trace_free(&t);
	}
}

static void windows_grow_up_to_their_bound(void **state)
{
	static const uint32_t page[] = { 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2 };
	static const struct trace_run runs[8] = { { 12, 1 }, { 10, 2 }, { 6, 4 }, { 2, 4 } };
	struct trace t;

	(void)state;
	assert_int_equal(trace_merge(&t, page, COUNT(page), 1, 4), 0);
	runs_are(&t, runs);
	trace_free(&t);
}

static void no_pages_make_no_runs(void **state)
{
	struct trace t;

	(void)state;
	assert_int_equal(trace_merge(&t, NULL, 0, 1024, 1024), 0);
	assert_int_equal(t.count, 0);
	assert_null(t.run);
	trace_free(&t);
	trace_free(&t);
}

static void a_long_trace_names_each_page_once(void **state)
{
	enum { N = 20000, HIGHEST = 9973 };
	static uint32_t page[N];
	static unsigned char seen[HIGHEST];
	struct trace t;
	uint32_t x = 1;

	(void)state;
	for (size_t i = 0; i < N; i++)
		page[i] = (x = x * 1664525 + 1013904223) % HIGHEST;
	assert_int_equal(trace_merge(&t, page, N, 256, 4096), 0);
	for (size_t i = 0; i < t.count; i++)
		for (uint64_t at = 0; at < t.run[i].length; at += PAGE)
			assert_int_equal(seen[(t.run[i].offset + at) / PAGE]++, 0);
	for (size_t i = 0; i < N; i++)
		assert_int_equal(seen[page[i]], 1);
	trace_free(&t);
}

/* ---- files -------------------------------------------------------------------- */

static const char *saved(const char *name)
{
	const char *path = scratch(name);

	assert_int_equal(trace_save(path, &image, touched, COUNT(touched)), 0);
	return path;
}

static size_t bytes_of(const char *path, unsigned char *data, size_t size)
{
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	ssize_t length = read(fd, data, size);

	assert_true(length > 0);
	close(fd);
	return (size_t)length;
}

static void the_index_finds_the_run_of_a_page(void **state)
{
	struct trace_run run[] = {
		{ .offset = 0x9000, .length = 0x3000 },
		{ .offset = 0x1000, .length = 0x1000 },
		{ .offset = 0x4000, .length = 0x2000 },
	};
	const struct trace t = { .count = 3, .run = run };
	struct trace_index index;

	(void)state;
	assert_int_equal(trace_index_new(&index, &t), 0);
	for (uint64_t offset = 0; offset < 0x10000; offset += 0x1000) {
		const struct trace_run *found = trace_index_find(&index, offset);
		const struct trace_run *wanted = NULL;

		for (int i = 0; i < 3; i++)
			if (offset - run[i].offset < run[i].length)
				wanted = &run[i];
		assert_int_equal(found != NULL, wanted != NULL);
		if (wanted)
			assert_int_equal(found->offset, wanted->offset);
	}
	trace_index_free(&index);
	assert_int_equal(trace_index_new(&index, &(struct trace){ .count = 0 }), 0);
	assert_null(trace_index_find(&index, 0));
	trace_index_free(&index);
}

static void what_is_saved_is_loaded(void **state)
{
	static const struct trace_run want[] = {
		{ 0, 1 }, { 3, 3 }, { 500, 1 }, { 999, 1 }, { 0, 0 },
	};
	const char *path = saved("good");
	struct trace t;

	(void)state;
	assert_int_equal(trace_load(&t, path, &image), 0);
	runs_are(&t, want);
	trace_free(&t);
}

static void an_empty_trace_is_a_trace(void **state)
{
	const char *path = scratch("none");
	struct trace t;

	(void)state;
	assert_int_equal(trace_save(path, &image, NULL, 0), 0);
	assert_int_equal(trace_load(&t, path, &image), 0);
	assert_int_equal(t.count, 0);
	trace_free(&t);
}

/* The file of two pages, byte for byte, as trace.c documents it. */
static void the_file_is_as_documented(void **state)
{
	static const unsigned char want[64] =
		"infilltr\1\0\0\0\70\0\0\0"
		"\0\200\76\0\0\0\0\0" /* 1000 pages: 4096000 */
		"\71\60\0\0\0\0\0\0"
		"\371\377\377\377\377\377\377\377"
		"\377\311\232\73\0\0\0\0"
		"\2\0\0\0\0\0\0\0"
		"\2\1\0\0\3\0\0\0";
	static const uint32_t page[] = { 258, 3 };
	const char *path = scratch("bytes");
	unsigned char data[128];
	uint64_t sum;

	(void)state;
	assert_int_equal(trace_save(path, &image, page, 2), 0);
	assert_int_equal(bytes_of(path, data, sizeof(data)), 72);
	assert_memory_equal(data, want, 64);
	sum = XXH3_64bits(want, 64);
	for (unsigned i = 0; i < 8; i++)
		assert_int_equal(data[64 + i], sum >> 8 * i & 0xff);
}

static int parse(const void *data, size_t length)
{
	struct trace t;
	int code = trace_parse(&t, data, length, &image, "T");

	assert_int_equal(t.count ? 1 : 0, code ? 0 : 1);
	trace_free(&t);
	return code;
}

static void every_damaged_byte_is_noticed(void **state)
{
	unsigned char data[256];
	size_t length = bytes_of(saved("flip"), data, sizeof(data));

	(void)state;
	assert_int_equal(parse(data, length), 0);
	for (size_t i = 0; i < length; i++)
		for (unsigned bit = 0; bit < 8; bit++) {
			data[i] ^= (unsigned char)(1u << bit);
			assert_int_equal(parse(data, length),
					 i >= 8 && i < 12 ? -EPROTO : -EBADMSG);
			data[i] ^= (unsigned char)(1u << bit);
		}
}

static void every_wrong_length_is_noticed(void **state)
{
	unsigned char data[256] = { 0 };
	size_t length = bytes_of(saved("length"), data, sizeof(data));

	(void)state;
	for (size_t i = 0; i < sizeof(data); i++) {
		/* On the heap, so that a sanitizer sees a read past it. */
		unsigned char *copy = malloc(i + !i);

		memcpy(copy, data, i);
		assert_int_equal(parse(copy, i), i == length ? 0 : -EBADMSG);
		free(copy);
	}
}

static void put_sum(unsigned char *data, size_t length)
{
	uint64_t sum = XXH3_64bits(data, length - 8);

	for (unsigned i = 0; i < 8; i++)
		data[length - 8 + i] = (unsigned char)(sum >> 8 * i);
}

/* Damage with a good checksum: what somebody made by hand. */
static void lies_with_a_good_checksum_are_noticed(void **state)
{
	static const struct {
		size_t at;
		unsigned char byte[8];
		size_t length;
		int code;
		const char *text;
	} table[] = {
		{ 0, "infilltX", 8, -EBADMSG, "T: is not a trace: record one" },
		{ 8, { 2 }, 4, -EPROTO,
		  "T: is a trace of version 2, but 1 is known: record it again" },
		{ 12, { 52 }, 4, -EBADMSG, "T: is damaged: wrong header: record it again" },
		{ 48, { 6 }, 8, -EBADMSG, "T: is damaged: wrong length: record it again" },
		{ 48, { 8 }, 8, -EBADMSG, "T: is damaged: wrong length: record it again" },
		{ 48, { 7, 0, 0, 0, 0, 0, 0, 0x40 }, 8, -EBADMSG,
		  "T: is damaged: wrong length: record it again" },
		{ 56, { 0xe8, 3 }, 4, -EBADMSG,
		  "T: is damaged: names a page past the end of the image: record it again" },
		{ 80, { 255, 255, 255, 255 }, 4, -EBADMSG,
		  "T: is damaged: names a page past the end of the image: record it again" },
	};
	unsigned char data[256];
	size_t length = bytes_of(saved("lies"), data, sizeof(data));

	(void)state;
	for (size_t i = 0; i < COUNT(table); i++) {
		unsigned char copy[256];

		memcpy(copy, data, sizeof(copy));
		memcpy(copy + table[i].at, table[i].byte, table[i].length);
		put_sum(copy, length);
		assert_int_equal(parse(copy, length), table[i].code);
		assert_string_equal(infill_error(), table[i].text);
	}
}

static void the_trace_of_another_image_is_foreign(void **state)
{
	struct infill_identity other[4] = { image, image, image, image };
	const char *path = saved("foreign");

	(void)state;
	other[0].bytes += PAGE;
	other[1].inode++;
	other[2].mtime_sec++;
	other[3].mtime_nsec--;
	for (size_t i = 0; i < COUNT(other); i++) {
		struct trace t;

		assert_int_equal(trace_load(&t, path, &other[i]), -ESTALE);
		assert_non_null(strstr(infill_error(), "was recorded from another image"));
		assert_int_equal(t.count, 0);
	}
}

static void load_refuses_what_is_no_file(void **state)
{
	struct trace t;
	unsigned fds;

	(void)state;
	assert_int_equal(mkfifo(scratch("fifo"), 0644), 0);
	scratch_file("huge", "", 0);
	assert_int_equal(truncate(scratch("huge"), (1ll << 30) + 1), 0);
	fds = scratch_fds();
	alarm(10);
	assert_int_equal(trace_load(&t, scratch("fifo"), &image), -EINVAL);
	assert_int_equal(trace_load(&t, "/dev/zero", &image), -EINVAL);
	alarm(0);
	assert_int_equal(trace_load(&t, scratch("."), &image), -EINVAL);
	assert_int_equal(trace_load(&t, scratch("missing"), &image), -ENOENT);
	assert_int_equal(trace_load(&t, scratch("huge"), &image), -EFBIG);
	assert_int_equal(trace_load(&t, scratch_file("empty", "", 0), &image), -EBADMSG);
	assert_int_equal(scratch_fds(), fds);
}

/* ---- saving ------------------------------------------------------------------- */

static unsigned files_in(const char *folder)
{
	DIR *dir = opendir(folder);
	unsigned count = 0;

	while (readdir(dir))
		count++;
	closedir(dir);
	return count - 2;
}

static void saving_replaces_the_old_trace(void **state)
{
	static const uint32_t later[] = { 42 };
	static const struct trace_run want[] = { { 42, 1 }, { 0, 0 } };
	const char *path = scratch("folder/trace");
	struct trace t;

	(void)state;
	assert_int_equal(mkdir(scratch("folder"), 0755), 0);
	assert_int_equal(trace_save(path, &image, touched, COUNT(touched)), 0);
	assert_int_equal(trace_save(path, &image, later, 1), 0);
	assert_int_equal(trace_load(&t, path, &image), 0);
	runs_are(&t, want);
	trace_free(&t);
	assert_int_equal(files_in(scratch("folder")), 1);
}

static void a_trace_in_the_working_folder_is_saved(void **state)
{
	struct trace t;

	(void)state;
	assert_int_equal(chdir(scratch(".")), 0);
	assert_int_equal(trace_save("here", &image, touched, 1), 0);
	assert_int_equal(trace_load(&t, "here", &image), 0);
	trace_free(&t);
	assert_int_equal(chdir("/"), 0);
}

static void save_refuses_what_it_could_not_load(void **state)
{
	static const uint32_t past[] = { 1, 1000 };
	const char *path = scratch("past");

	(void)state;
	assert_int_equal(trace_save(path, &image, past, 2), -EINVAL);
	assert_int_equal(trace_save(path, &image, past, SIZE_MAX / 4), -EFBIG);
	assert_int_equal(access(path, F_OK), -1);
}

static void save_names_what_is_wrong(void **state)
{
	char text[300];
	const char *path = scratch("no/such/folder");

	(void)state;
	snprintf(text, sizeof(text), "%s: cannot write the trace: No such file or directory", path);
	assert_int_equal(trace_save(path, &image, touched, 1), -ENOENT);
	assert_string_equal(infill_error(), text);
	assert_int_equal(trace_save(scratch("."), &image, touched, 1), -EBUSY);
}

/* In a child: the limit cannot be raised again. */
static int save_with_a_file_size_limit(const char *path)
{
	const struct rlimit limit = { 60, 60 };

	signal(SIGXFSZ, SIG_IGN);
	if (setrlimit(RLIMIT_FSIZE, &limit))
		return 1;
	return -trace_save(path, &image, touched + 1, 2);
}

static void a_failed_save_keeps_the_old_trace(void **state)
{
	const char *path = scratch("keep/trace");
	unsigned char before[256], after[256];
	size_t length;
	int status;
	pid_t child;

	(void)state;
	assert_int_equal(mkdir(scratch("keep"), 0755), 0);
	assert_int_equal(trace_save(path, &image, touched, COUNT(touched)), 0);
	length = bytes_of(path, before, sizeof(before));
	child = fork();
	if (!child)
		_exit(save_with_a_file_size_limit(path));
	assert_int_equal(waitpid(child, &status, 0), child);
	assert_int_equal(status, EFBIG << 8);
	assert_int_equal(bytes_of(path, after, sizeof(after)), length);
	assert_memory_equal(before, after, length);
	assert_int_equal(files_in(scratch("keep")), 1);
}

/* In a child with mounts of its own; 77: not permitted. */
static int save_on_a_full_disk(const char *folder, const char *path)
{
	static uint32_t many[4096];

	if (unshare(CLONE_NEWNS) || mount("none", "/", NULL, MS_REC | MS_PRIVATE, NULL) ||
	    mount("tmpfs", folder, "tmpfs", 0, "size=8k"))
		return 77;
	if (trace_save(path, &image, touched, 3))
		return 1;
	if (trace_save(path, &image, many, COUNT(many)) != -ENOSPC)
		return 2;
	if (!strstr(infill_error(), "cannot write the trace: No space left on device"))
		return 3;
	return files_in(folder) == 1 ? 0 : 4;
}

static void a_full_disk_is_told(void **state)
{
	const char *path = scratch("full/trace"), *folder = scratch("full");
	int status;
	pid_t child;

	(void)state;
	assert_int_equal(mkdir(folder, 0755), 0);
	child = fork();
	if (!child)
		_exit(save_on_a_full_disk(folder, path));
	assert_int_equal(waitpid(child, &status, 0), child);
	if (status == 77 << 8) {
		print_message("this user may not mount a small file system\n");
		skip();
	}
	assert_int_equal(status, 0);
}

static void *save_often(void *arg)
{
	uintptr_t failed = 0;

	for (unsigned i = 0; i < 50; i++)
		failed += trace_save(arg, &image, touched, COUNT(touched)) != 0;
	return (void *)failed;
}

static void threads_may_save_to_one_path(void **state)
{
	char path[192];
	pthread_t thread[4];
	struct trace t;

	(void)state;
	snprintf(path, sizeof(path), "%s", saved("shared"));
	for (size_t i = 0; i < COUNT(thread); i++)
		assert_int_equal(pthread_create(&thread[i], NULL, save_often, path), 0);
	for (unsigned i = 0; i < 100; i++) {
		assert_int_equal(trace_load(&t, path, &image), 0);
		trace_free(&t);
	}
	for (size_t i = 0; i < COUNT(thread); i++) {
		void *failed;

		pthread_join(thread[i], &failed);
		assert_null(failed);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(neighbours_within_a_window_are_joined),
		cmocka_unit_test(windows_grow_up_to_their_bound),
		cmocka_unit_test(no_pages_make_no_runs),
		cmocka_unit_test(a_long_trace_names_each_page_once),
		cmocka_unit_test(the_index_finds_the_run_of_a_page),
		cmocka_unit_test(what_is_saved_is_loaded),
		cmocka_unit_test(an_empty_trace_is_a_trace),
		cmocka_unit_test(the_file_is_as_documented),
		cmocka_unit_test(every_damaged_byte_is_noticed),
		cmocka_unit_test(every_wrong_length_is_noticed),
		cmocka_unit_test(lies_with_a_good_checksum_are_noticed),
		cmocka_unit_test(the_trace_of_another_image_is_foreign),
		cmocka_unit_test(load_refuses_what_is_no_file),
		cmocka_unit_test(saving_replaces_the_old_trace),
		cmocka_unit_test(a_trace_in_the_working_folder_is_saved),
		cmocka_unit_test(save_refuses_what_it_could_not_load),
		cmocka_unit_test(save_names_what_is_wrong),
		cmocka_unit_test(a_failed_save_keeps_the_old_trace),
		cmocka_unit_test(a_full_disk_is_told),
		cmocka_unit_test(threads_may_save_to_one_path),
	};

	return cmocka_run_group_tests_name("trace", tests, NULL, NULL);
}
