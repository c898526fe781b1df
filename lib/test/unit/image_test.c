/* SPDX-License-Identifier: MIT */
/*
 * image_test.c: opening raw images, the ways to read them, and that each of
 * these notices a file that has changed.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <errno.h>
#include <liburing.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/vfs.h>

#include "image.h"
#include "infill.h"
#include "scratch.h"

#define PAGE 4096u
#define PAGES 16u

static unsigned char expected(uint64_t offset)
{
	return (unsigned char)(1 + offset / PAGE * 7 + offset % 251);
}

/* An image of PAGES pages of known bytes, last modified in 2001. */
static const char *make(const char *name)
{
	static unsigned char data[PAGES * PAGE];
	const struct timespec times[2] = { { 1000000000, 0 }, { 1000000000, 0 } };
	const char *path;

	for (size_t i = 0; i < sizeof(data); i++)
		data[i] = expected(i);
	path = scratch_file(name, data, sizeof(data));
	assert_int_equal(utimensat(AT_FDCWD, path, times, 0), 0);
	return path;
}

static struct infill_image *open_image(const char *path)
{
	struct infill_image *image;

	if (infill_image_open(&image, path, NULL))
		fail_msg("%s", infill_error());
	return image;
}

static void assert_bytes(const void *data, uint64_t offset, size_t length)
{
	const unsigned char *at = data;

	for (size_t i = 0; i < length; i++)
		if (at[i] != expected(offset + i))
			fail_msg("byte %zu is %u", i, at[i]);
}

static bool run_in_memory_fs(void)
{
	struct statfs fs;

	return !statfs(scratch("."), &fs) && fs.f_type == 0x01021994; /* tmpfs */
}

/* Which pages of a file are in the page cache: bit 0 of each. */
static void look_into_cache(const char *path, unsigned char vec[PAGES])
{
	int fd = open(path, O_RDONLY);
	void *at = mmap(NULL, PAGES * PAGE, PROT_READ, MAP_SHARED, fd, 0);

	assert_int_equal(mincore(at, PAGES * PAGE, vec), 0);
	munmap(at, PAGES * PAGE);
	close(fd);
}

/* Drop the page cache of a file; skip the test where that cannot be. */
static void drop(const char *path)
{
	unsigned char vec[PAGES] = { 0 };
	int fd;

	if (run_in_memory_fs()) {
		print_message("tmpfs has no page cache to drop: set TMPDIR to a disk\n");
		skip();
	}
	fd = open(path, O_RDONLY);
	fsync(fd);
	posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED);
	close(fd);
	look_into_cache(path, vec);
	for (unsigned i = 0; i < PAGES; i++)
		if (vec[i] & 1) {
			print_message("the page cache cannot be dropped here\n");
			skip();
		}
}

/* ---- opening ------------------------------------------------------------------ */

static void open_refuses(const char *path, int code, const char *why)
{
	struct infill_image *image;
	char text[512];

	alarm(10); /* a FIFO must not hang */
	assert_int_equal(infill_image_open(&image, path, NULL), code);
	alarm(0);
	assert_null(image);
	snprintf(text, sizeof(text), "%s: %s", path, why);
	assert_string_equal(infill_error(), text);
}

static void open_refuses_what_is_no_image(void **state)
{
	unsigned fds;

	(void)state;
	assert_int_equal(mkfifo(scratch("fifo"), 0644), 0);
	assert_int_equal(mkdir(scratch("folder"), 0755), 0);
	fds = scratch_fds();
	open_refuses(scratch("missing"), -ENOENT,
		     "cannot open the image: No such file or directory");
	open_refuses(scratch("folder"), -EINVAL, "is a directory: give the memory file in it");
	open_refuses(scratch("fifo"), -EINVAL,
		     "is not a regular file: give the memory file of a snapshot");
	open_refuses("/dev/zero", -EINVAL,
		     "is not a regular file: give the memory file of a snapshot");
	open_refuses(scratch_file("empty", "", 0), -EINVAL,
		     "is empty: give the memory file of a snapshot");
	open_refuses(scratch_file("odd", "12345", 5), -EINVAL,
		     "is 5 bytes, not a multiple of 4096: it is cut short or no raw memory file");
	assert_int_equal(scratch_fds(), fds);
}

static void open_refuses_what_may_not_be_read(void **state)
{
	const char *path = make("secret");
	bool root = !geteuid();

	(void)state;
	chmod(path, 0);
	if (root && seteuid(65534)) {
		print_message("root reads everything, and cannot be left\n");
		skip();
	}
	open_refuses(path, -EACCES, "cannot open the image: Permission denied");
	if (root)
		assert_int_equal(seteuid(0), 0);
}

static void open_refuses_more_than_16_tib(void **state)
{
	struct infill_image *image;
	int fd = memfd_create("huge", MFD_CLOEXEC);

	(void)state;
	assert_int_equal(ftruncate(fd, (1ll << 44) + PAGE), 0);
	assert_int_equal(infill_image_open_fd(&image, fd, "huge", NULL), -EFBIG);
	assert_int_equal(ftruncate(fd, 1ll << 44), 0);
	assert_int_equal(infill_image_open_fd(&image, fd, "huge", NULL), 0);
	infill_image_close(image);
	close(fd);
}

static void open_fd_refuses_unusable_descriptors(void **state)
{
	static const struct {
		int flags, code;
	} table[] = {
		{ O_WRONLY, -EBADF },
		{ O_PATH, -EBADF },
		{ O_RDONLY | O_NONBLOCK, -EINVAL },
	};
	const char *path = make("fd");
	struct infill_image *image;

	(void)state;
	assert_int_equal(infill_image_open_fd(&image, -1, "fd", NULL), -EBADF);
	for (size_t i = 0; i < COUNT(table); i++) {
		int fd = open(path, table[i].flags | O_CLOEXEC);

		assert_int_equal(infill_image_open_fd(&image, fd, "fd", NULL), table[i].code);
		close(fd);
	}
}

static void open_fd_keeps_its_own_descriptor(void **state)
{
	int fd = open(make("own"), O_RDONLY | O_CLOEXEC);
	struct infill_image *image;
	char page[PAGE];

	(void)state;
	assert_int_equal(infill_image_open_fd(&image, fd, "own", NULL), 0);
	close(fd);
	assert_int_equal(image_read(image, PAGE, page, PAGE), 0);
	assert_bytes(page, PAGE, PAGE);
	infill_image_close(image);
}

static void open_refuses_unknown_options(void **state)
{
	static const struct infill_image_options table[] = {
		{ .size = sizeof(table[0]), .flags = 1 },
		{ .size = sizeof(table[0]), .flags = 1u << 31 },
		{ .size = sizeof(table[0]), .reserved = 1 },
		{ .size = 0 },
	};
	const char *path = make("options");
	struct infill_image *image;

	(void)state;
	for (size_t i = 0; i < COUNT(table); i++)
		assert_int_equal(infill_image_open(&image, path, &table[i]), -EINVAL);
}

static void identity_is_the_files(void **state)
{
	const char *path = make("identity");
	struct infill_image *image = open_image(path);
	struct infill_identity identity;
	struct stat st;

	(void)state;
	assert_int_equal(stat(path, &st), 0);
	infill_image_identity(image, &identity);
	assert_int_equal(identity.bytes, PAGES * PAGE);
	assert_int_equal(infill_image_bytes(image), PAGES * PAGE);
	assert_int_equal(identity.inode, st.st_ino);
	assert_int_equal(identity.mtime_sec, 1000000000);
	assert_int_equal(identity.mtime_nsec, 0);
	assert_string_equal(image_name(image), path);
	infill_image_close(image);
	infill_image_close(NULL);
}

/* ---- reading ------------------------------------------------------------------ */

static void read_now_gives_what_is_cached(void **state)
{
	struct infill_image *image = open_image(make("cached"));
	char page[2 * PAGE];

	(void)state;
	assert_int_equal(image_read_now(image, 3 * PAGE, page, sizeof(page)), 0);
	assert_bytes(page, 3 * PAGE, sizeof(page));
	infill_image_close(image);
}

/* How often this thread gave its CPU away to wait for something. */
static long waits(void)
{
	struct rusage usage;

	assert_int_equal(getrusage(RUSAGE_THREAD, &usage), 0);
	return usage.ru_nvcsw;
}

/*
 * It has the kernel read, and a disk may be done before the kernel looks again: on a
 * busy machine each time.  That is no wait either, and is told from one by the thread's
 * own count.  The count alone proves nothing, as a queue of the disk's may be full.
 */
static void read_now_does_not_wait(void **state)
{
	const char *path = make("cold");
	struct infill_image *image = open_image(path);
	const int tries = 50;
	char page[PAGE];
	int code = 0, waited = 0;

	(void)state;
	for (int i = 0; i < tries && !code; i++) {
		long before;

		drop(path);
		before = waits();
		code = image_read_now(image, 9 * PAGE, page, PAGE);
		waited += waits() != before;
	}
	if (code)
		assert_int_equal(code, -EAGAIN);
	else if (waited == tries)
		fail_msg("it waited for the disk, %d times of %d", waited, tries);
	assert_int_equal(image_read(image, 9 * PAGE, page, PAGE), 0);
	assert_bytes(page, 9 * PAGE, PAGE);
	infill_image_close(image);
}

static void the_kernel_reads_nothing_ahead(void **state)
{
	const char *path = make("ahead");
	struct infill_image *image = open_image(path);
	unsigned char vec[PAGES] = { 0 };
	char page[PAGE];

	(void)state;
	drop(path);
	/* The first page: a read that looks sequential. */
	assert_int_equal(image_read(image, 0, page, PAGE), 0);
	look_into_cache(path, vec);
	assert_true(vec[0] & 1);
	assert_false(vec[2] & 1);
	infill_image_close(image);
}

static void ranges_past_the_end_are_refused(void **state)
{
	static const struct {
		uint64_t offset;
		size_t length;
	} table[] = {
		{ PAGES * PAGE, PAGE },
		{ (PAGES - 1) * PAGE, 2 * PAGE },
		{ UINT64_MAX - PAGE + 1, PAGE },
		{ PAGE, SIZE_MAX },
		{ PAGE, SIZE_MAX - PAGE + 1 },
	};
	struct infill_image *image = open_image(make("range"));
	char page[2 * PAGE];

	(void)state;
	for (size_t i = 0; i < COUNT(table); i++) {
		assert_int_equal(image_read_now(image, table[i].offset, page, table[i].length),
				 -ERANGE);
		assert_int_equal(image_read(image, table[i].offset, page, table[i].length), -ERANGE);
		assert_int_equal(image_end(image, 0, table[i].offset, table[i].length), -ERANGE);
	}
	infill_image_close(image);
}

static void holes_are_told_from_data(void **state)
{
	/* pages: 0-3 hole, 4-5 data, 6-7 hole, 8 data, 9-15 hole */
	static const struct {
		unsigned page, end;
		bool hole;
	} table[] = {
		{ 0, 4, true }, { 2, 4, true },   { 4, 6, false },  { 5, 6, false },
		{ 6, 8, true }, { 8, 9, false },  { 9, 16, true },  { 15, 16, true },
	};
	const char *path = scratch("holes");
	int fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0644);
	struct infill_image *image;
	uint64_t end;

	(void)state;
	assert_int_equal(ftruncate(fd, 16 * PAGE), 0);
	assert_int_equal(pwrite(fd, "x", 1, 4 * PAGE + 100), 1);
	assert_int_equal(pwrite(fd, "x", 1, 5 * PAGE), 1);
	assert_int_equal(pwrite(fd, "x", 1, 8 * PAGE + 4095), 1);
	close(fd);
	image = open_image(path);
	for (size_t i = 0; i < COUNT(table); i++) {
		bool hole = image_hole(image, (uint64_t)table[i].page * PAGE, &end);

		assert_int_equal(hole, table[i].hole);
		assert_int_equal(end, (uint64_t)table[i].end * PAGE);
	}
	assert_false(image_hole(image, 16 * PAGE, &end));
	infill_image_close(image);
}

static void a_file_cut_short_is_no_hole(void **state)
{
	const char *path = make("cut-hole");
	struct infill_image *image = open_image(path);
	uint64_t end;

	(void)state;
	assert_int_equal(truncate(path, PAGE), 0);
	assert_false(image_hole(image, 4 * PAGE, &end));
	infill_image_close(image);
}

/* ---- io_uring ----------------------------------------------------------------- */

static struct io_uring ring;

static void ring_or_skip(void)
{
	int code = io_uring_queue_init(4, &ring, 0);

	if (!code)
		return;
	print_message("io_uring: %s\n", strerror(-code));
	skip();
}

static int ring_read(struct infill_image *image, uint64_t offset, void *buffer, size_t length)
{
	struct io_uring_cqe *cqe;
	int result;

	image_prep(image, io_uring_get_sqe(&ring), offset, buffer, length);
	assert_int_equal(io_uring_submit(&ring), 1);
	assert_int_equal(io_uring_wait_cqe(&ring, &cqe), 0);
	result = cqe->res;
	io_uring_cqe_seen(&ring, cqe);
	return image_end(image, result, offset, length);
}

static void a_ring_reads_what_is_cold(void **state)
{
	const char *path = make("ring");
	struct infill_image *image = open_image(path);
	char page[4 * PAGE];

	(void)state;
	drop(path);
	ring_or_skip();
	assert_int_equal(ring_read(image, 8 * PAGE, page, sizeof(page)), 0);
	assert_bytes(page, 8 * PAGE, sizeof(page));
	io_uring_queue_exit(&ring);
	infill_image_close(image);
}

static void end_judges_results(void **state)
{
	static const struct {
		int result, code;
	} table[] = {
		{ 2 * PAGE, 0 },     { -EAGAIN, -EAGAIN }, { -EINTR, -EAGAIN }, { -EIO, -EIO },
		{ PAGE, -EAGAIN },   { 17, -EAGAIN },      { 0, -EAGAIN },      { -ENXIO, -ENXIO },
	};
	struct infill_image *image = open_image(make("end"));

	(void)state;
	for (size_t i = 0; i < COUNT(table); i++)
		assert_int_equal(image_end(image, table[i].result, PAGE, 2 * PAGE), table[i].code);
	infill_image_close(image);
}

/* ---- changes ------------------------------------------------------------------ */

static void change_bytes(const char *path)
{
	int fd = open(path, O_WRONLY | O_CLOEXEC);

	assert_int_equal(pwrite(fd, "other", 5, 7 * PAGE), 5);
	close(fd);
}

static void change_longer(const char *path)
{
	assert_int_equal(truncate(path, (PAGES + 1) * PAGE), 0);
}

static void change_shorter(const char *path)
{
	assert_int_equal(truncate(path, PAGE), 0);
}

static void set_mtime(const char *path, time_t sec, long nsec)
{
	const struct timespec times[2] = { { 0, UTIME_OMIT }, { sec, nsec } };

	assert_int_equal(utimensat(AT_FDCWD, path, times, 0), 0);
}

static void change_seconds(const char *path)
{
	set_mtime(path, 1000000001, 0);
}

static void change_nanoseconds(const char *path)
{
	set_mtime(path, 1000000000, 1);
}

static void change_size_alone(const char *path)
{
	change_longer(path);
	set_mtime(path, 1000000000, 0);
}

static void (*const changes[])(const char *path) = { change_bytes, change_longer, change_shorter,
						      change_seconds, change_nanoseconds,
						      change_size_alone };

static int way_unverified(struct infill_image *image)
{
	char page[PAGE];
	int err = image_read_unverified(image, 0, page, PAGE);

	return err ? err : infill_image_check(image);
}

static int way_read_now(struct infill_image *image)
{
	char page[PAGE];

	return image_read_now(image, 0, page, PAGE);
}

static int way_read(struct infill_image *image)
{
	char page[2 * PAGE];

	return image_read(image, 0, page, sizeof(page));
}

static int way_ring(struct infill_image *image)
{
	char page[2 * PAGE];

	return ring_read(image, 0, page, sizeof(page));
}

static void notices_changes(int (*way)(struct infill_image *image))
{
	for (size_t i = 0; i < COUNT(changes); i++) {
		const char *path = make("changing");
		struct infill_image *image = open_image(path);

		assert_int_equal(way(image), 0);
		changes[i](path);
		assert_int_equal(way(image), -ESTALE);
		assert_int_equal(infill_image_check(image), -ESTALE);
		infill_image_close(image);
	}
}

static void read_now_notices_changes(void **state)
{
	(void)state;
	notices_changes(way_read_now);
}

static void several_reads_notice_changes(void **state)
{
	(void)state;
	notices_changes(way_unverified);
}

static void read_notices_changes(void **state)
{
	(void)state;
	notices_changes(way_read);
}

static void ring_notices_changes(void **state)
{
	(void)state;
	ring_or_skip();
	notices_changes(way_ring);
	io_uring_queue_exit(&ring);
}

static void a_cut_is_stale_for_every_result(void **state)
{
	static const int results[] = { 0, 17, PAGE, 2 * PAGE, -EAGAIN, -EINTR, -EIO };

	(void)state;
	for (size_t i = 0; i < COUNT(results); i++) {
		const char *path = make("cut");
		struct infill_image *image = open_image(path);

		change_shorter(path);
		assert_int_equal(image_end(image, results[i], PAGE, 2 * PAGE), -ESTALE);
		infill_image_close(image);
	}
}

static void stale_is_for_good(void **state)
{
	const char *path = make("back");
	struct infill_image *image = open_image(path);

	(void)state;
	change_bytes(path);
	assert_int_equal(infill_image_check(image), -ESTALE);
	assert_non_null(strstr(infill_error(), "has changed since it was opened"));
	set_mtime(path, 1000000000, 0);
	assert_int_equal(infill_image_check(image), -ESTALE);
	assert_int_equal(way_read_now(image), -ESTALE);
	infill_image_close(image);
}

static void a_new_file_of_that_name_does_not_matter(void **state)
{
	char path[192];
	struct infill_image *image;
	char page[PAGE];

	(void)state;
	snprintf(path, sizeof(path), "%s", make("renamed"));
	image = open_image(path);
	assert_int_equal(rename(make("other"), path), 0);
	assert_int_equal(image_read(image, PAGE, page, PAGE), 0);
	assert_bytes(page, PAGE, PAGE);
	infill_image_close(image);
}

/* ---- zero pages ----------------------------------------------------------------- */

static void zero_is_zero_in_every_byte(void **state)
{
	static const size_t lengths[] = { 64, 128, PAGE, 2u << 20 };
	unsigned char *data = aligned_alloc(64, 2u << 20);

	(void)state;
	memset(data, 0, 2u << 20);
	for (size_t i = 0; i < COUNT(lengths); i++) {
		size_t step = lengths[i] > PAGE ? 4093 : 1;

		assert_true(image_is_zero(data, lengths[i]));
		for (size_t at = 0; at < lengths[i]; at += step) {
			data[at] = 0x80;
			assert_false(image_is_zero(data, lengths[i]));
			data[at] = 0;
		}
		data[lengths[i] - 1] = 1;
		assert_false(image_is_zero(data, lengths[i]));
		data[lengths[i] - 1] = 0;
	}
	/* All bytes alike, but not zero. */
	memset(data, 0xff, PAGE);
	assert_false(image_is_zero(data, PAGE));
	free(data);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(open_refuses_what_is_no_image),
		cmocka_unit_test(open_refuses_what_may_not_be_read),
		cmocka_unit_test(open_refuses_more_than_16_tib),
		cmocka_unit_test(open_fd_refuses_unusable_descriptors),
		cmocka_unit_test(open_fd_keeps_its_own_descriptor),
		cmocka_unit_test(open_refuses_unknown_options),
		cmocka_unit_test(identity_is_the_files),
		cmocka_unit_test(read_now_gives_what_is_cached),
		cmocka_unit_test(read_now_does_not_wait),
		cmocka_unit_test(the_kernel_reads_nothing_ahead),
		cmocka_unit_test(ranges_past_the_end_are_refused),
		cmocka_unit_test(holes_are_told_from_data),
		cmocka_unit_test(a_file_cut_short_is_no_hole),
		cmocka_unit_test(a_ring_reads_what_is_cold),
		cmocka_unit_test(end_judges_results),
		cmocka_unit_test(read_now_notices_changes),
		cmocka_unit_test(several_reads_notice_changes),
		cmocka_unit_test(read_notices_changes),
		cmocka_unit_test(ring_notices_changes),
		cmocka_unit_test(a_cut_is_stale_for_every_result),
		cmocka_unit_test(stale_is_for_good),
		cmocka_unit_test(a_new_file_of_that_name_does_not_matter),
		cmocka_unit_test(zero_is_zero_in_every_byte),
	};

	return cmocka_run_group_tests_name("image", tests, NULL, NULL);
}
