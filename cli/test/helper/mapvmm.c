/* SPDX-License-Identifier: MIT */
/*
 * mapvmm.c: the smallest VMM for tests of `infill attach`: maps a memory file
 * in one of many ways and checks every byte that it sees.
 *
 *   mapvmm CASE FILE [ARGUMENT]
 *
 * FILE.ref is a plain copy of FILE.  Exit 0: all was right, else 1 and a line
 * on stderr.  Add a case: a function, and a line in `cases`.
 */
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#define PAGE 4096

static const char *argument;
static const char *file_name;
static int file;
static size_t size;
static unsigned char *reference;

static _Noreturn void fail(const char *what)
{
	fprintf(stderr, "mapvmm: %s: %s\n", what, strerror(errno));
	exit(1);
}

static unsigned char *map(void *at, size_t length, int prot, int flags, off_t offset)
{
	unsigned char *memory = mmap(at, length, prot, flags, file, offset);

	if (memory == MAP_FAILED)
		fail("mmap");
	return memory;
}

static unsigned char *map_all(int flags)
{
	return map(NULL, size, PROT_READ | PROT_WRITE, flags, 0);
}

static void same(const unsigned char *memory, size_t offset, size_t length)
{
	errno = 0;
	for (size_t i = 0; i < length; i += PAGE)
		if (memcmp(memory + i, reference + offset + i, PAGE)) {
			fprintf(stderr, "mapvmm: byte %zu: wrong content\n", offset + i);
			exit(1);
		}
}

static void zero(const unsigned char *memory, size_t length)
{
	for (size_t i = 0; i < length; i++)
		if (memory[i]) {
			fprintf(stderr, "mapvmm: byte %zu: not zero\n", i);
			exit(1);
		}
}

static void expect(int result, int error, const char *what)
{
	if (result != -1 || errno != error)
		fail(what);
}

/* ---- cases ------------------------------------------------------------------- */

/* Backwards, as a guest reads in no order that a pager would choose; then write everything. */
static void read_and_write(unsigned char *memory)
{
	for (size_t i = size; i; i -= PAGE)
		same(memory + i - PAGE, i - PAGE, PAGE);
	for (size_t i = 0; i < size; i += PAGE)
		memset(memory + i, (int)(i / PAGE) | 1, PAGE);
	for (size_t i = 0; i < size; i++)
		if (memory[i] != (unsigned char)((i / PAGE) | 1))
			fail("what was written has gone");
}

static void shared(void)
{
	read_and_write(map_all(MAP_SHARED));
}

static void private(void)
{
	read_and_write(map_all(MAP_PRIVATE));
}

static void populate(void)
{
	read_and_write(map_all(MAP_SHARED | MAP_POPULATE));
}

static void locked(void)
{
	if (mlockall(MCL_CURRENT | MCL_FUTURE))
		fail("mlockall");
	read_and_write(map_all(MAP_PRIVATE));
}

static void read_only(void)
{
	unsigned char *memory = map(NULL, size, PROT_READ, MAP_SHARED, 0);

	same(memory, 0, size);
}

/* Without access first, as a reservation of the file itself. */
static void no_access(void)
{
	unsigned char *memory = map(NULL, size, PROT_NONE, MAP_SHARED, 0);

	if (mprotect(memory, size, PROT_READ | PROT_WRITE))
		fail("mprotect");
	read_and_write(memory);
}

/* As QEMU does it, in two regions, the upper one first. */
static void fixed(void)
{
	size_t half = size / 2;
	unsigned char *area = mmap(NULL, size + 2 * PAGE, PROT_NONE,
				   MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

	map(area + PAGE + half, half, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, (off_t)half);
	map(area + PAGE, half, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, 0);
	read_and_write(area + PAGE);
}

static void punch(int flags)
{
	unsigned char *memory = map_all(flags);
	size_t half = size / 2;

	same(memory, 0, 4 * PAGE);
	if (fallocate(file, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, (off_t)half))
		fail("fallocate");
	if (flags == MAP_SHARED && madvise(memory, half, MADV_DONTNEED))
		fail("madvise");
	zero(memory, half);
	same(memory + half, half, size - half);
}

static void punch_shared(void)
{
	punch(MAP_SHARED);
}

static void punch_private(void)
{
	punch(MAP_PRIVATE);
}

/* MADV_DONTNEED takes nothing from a shared file, filled or not. */
static void dontneed(void)
{
	unsigned char *memory = map_all(MAP_SHARED);

	same(memory, 0, size / 2);
	if (madvise(memory, size, MADV_DONTNEED))
		fail("madvise");
	read_and_write(memory);
}

/* A hole in the file must not touch what is where a mapping of it was. */
static void unmap(void)
{
	const int fresh = MAP_PRIVATE | MAP_ANONYMOUS;
	unsigned char *memory = map_all(MAP_SHARED);
	size_t half = size / 2, quarter = size / 4;

	if (munmap(memory, quarter) ||
	    mmap(memory, quarter, PROT_READ | PROT_WRITE, fresh | MAP_FIXED_NOREPLACE, -1, 0) !=
		    memory ||
	    mmap(memory + quarter, quarter, PROT_READ | PROT_WRITE, fresh | MAP_FIXED, -1, 0) !=
		    memory + quarter)
		fail("mmap in the place of the image");
	memset(memory, 0x55, half);
	for (size_t at = 0; at < half; at += quarter)
		expect(fallocate(file, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)at,
				 (off_t)quarter), EROFS, "a hole where nothing is mapped");
	for (size_t i = 0; i < half; i++)
		if (memory[i] != 0x55)
			fail("a hole was punched into another mapping");
	same(memory + half, half, size - half);
}

static void twice(void)
{
	map_all(MAP_SHARED);
	if (mmap(NULL, size, PROT_READ, MAP_SHARED, file, 0) != MAP_FAILED || errno != EBUSY)
		fail("a second mapping");
}

static void twice_private(void)
{
	unsigned char *first = map_all(MAP_PRIVATE), *second = map_all(MAP_PRIVATE);

	read_and_write(first);
	read_and_write(second);
}

static void beyond(void)
{
	map(NULL, 2 * size, PROT_READ | PROT_WRITE, MAP_SHARED, 0);
}

static void resize(void)
{
	if (ftruncate(file, (off_t)size) || fallocate(file, 0, 0, (off_t)size) ||
	    posix_fallocate(file, 0, (off_t)size) || truncate(file_name, (off_t)size))
		fail("the size that it has");
	expect(ftruncate(file, (off_t)size * 2), EROFS, "ftruncate");
	expect(truncate(file_name, 0), EROFS, "truncate");
	expect(fallocate(file, 0, 0, (off_t)size * 2), EROFS, "fallocate");
	if (posix_fallocate(file, 0, (off_t)size * 2) != EROFS)
		fail("posix_fallocate");
	read_and_write(map_all(MAP_SHARED));
}

/* However it is opened, it cannot be written. */
static void reopen(void)
{
	int fds[] = { open(file_name, O_RDWR | O_CREAT, 0600), open(file_name, O_WRONLY | O_TRUNC),
		      openat(AT_FDCWD, file_name, O_RDWR), creat(file_name, 0600) };

	for (size_t i = 0; i < sizeof(fds) / sizeof(fds[0]); i++) {
		if (fds[i] < 0)
			fail("open");
		expect((int)write(fds[i], "x", 1), EBADF, "write");
	}
	expect(open(file_name, O_RDWR | O_CREAT | O_EXCL, 0600), EEXIST, "open with O_EXCL");
	read_and_write(map_all(MAP_SHARED));
}

static void moved(void)
{
	unsigned char *memory = map_all(MAP_SHARED);

	if (mremap(memory, size, 2 * size, MREMAP_MAYMOVE) != MAP_FAILED || errno != ENOMEM)
		fail("mremap that grows");
	if (mremap(memory, size, size / 2, 0) != memory)
		fail("mremap that shrinks");
	same(memory, 0, size / 2);
}

/* Several areas of one mapping to the kernel, which fills none across their borders. */
static void split(void)
{
	unsigned char *memory = map_all(MAP_SHARED);

	for (size_t i = 5; i < size / PAGE; i += 7)
		if (mprotect(memory + i * PAGE, PAGE, PROT_READ))
			fail("mprotect");
	same(memory, 0, size);
}

/* A child has no part in the memory, or its touch would make zeros of missing pages. */
static void forked(void)
{
	unsigned char *memory = map_all(MAP_SHARED);
	pid_t child = fork();
	int status;

	if (!child) {
		signal(SIGSEGV, SIG_DFL);
		_exit(memory[size - 1]);
	}
	waitpid(child, &status, 0);
	if (!WIFSIGNALED(status) || WTERMSIG(status) != SIGSEGV)
		fail("a child has the mapping");
	read_and_write(memory);
}

/* What a VMM that closes every fd closes. */
static void closes(void)
{
	unsigned char *memory = map_all(MAP_SHARED);

	for (int fd = 3; fd < 4096; fd++)
		close(fd);
	same(memory, 0, size);
}

/* The first process ends when the second has mapped, which then writes the file ARGUMENT. */
static void background(void)
{
	int ready[2], out;
	char byte;

	if (pipe(ready))
		fail("pipe");
	if (fork()) {
		close(ready[1]);
		exit(read(ready[0], &byte, 1) != 1);
	}
	close(ready[0]);
	setsid();
	unsigned char *memory = map_all(MAP_SHARED);

	if (write(ready[1], "r", 1) != 1)
		fail("write");
	usleep(300000);
	read_and_write(memory);
	out = open(argument, O_WRONLY | O_CREAT | O_EXCL, 0600);
	if (out < 0 || write(out, "right\n", 6) != 6)
		fail(argument);
}

static void exits(void)
{
	same(map_all(MAP_SHARED), 0, PAGE);
	exit(atoi(argument));
}

static void killed(void)
{
	same(map_all(MAP_SHARED), 0, PAGE);
	raise(atoi(argument));
}

/* Say so, then wait for a signal or the end of standard input; then check all. */
static void waits(void)
{
	unsigned char *memory = map_all(MAP_SHARED);
	char byte;

	same(memory, 0, PAGE);
	printf("mapped\n");
	fflush(stdout);
	(void)!read(0, &byte, 1);
	read_and_write(memory);
}

static void never(void)
{
}

static const struct {
	const char *name;
	void (*run)(void);
} cases[] = {
	{ "background", background },
	{ "beyond", beyond },
	{ "closes", closes },
	{ "dontneed", dontneed },
	{ "exits", exits },
	{ "fixed", fixed },
	{ "forked", forked },
	{ "killed", killed },
	{ "locked", locked },
	{ "moved", moved },
	{ "never", never },
	{ "no-access", no_access },
	{ "populate", populate },
	{ "private", private },
	{ "punch-private", punch_private },
	{ "punch-shared", punch_shared },
	{ "read-only", read_only },
	{ "reopen", reopen },
	{ "resize", resize },
	{ "shared", shared },
	{ "split", split },
	{ "twice", twice },
	{ "twice-private", twice_private },
	{ "unmap", unmap },
	{ "waits", waits },
};

static void read_reference(const char *name)
{
	char path[4096];
	FILE *copy;

	snprintf(path, sizeof(path), "%s.ref", name);
	copy = fopen(path, "r");
	reference = malloc(size);
	if (!copy || !reference || fread(reference, 1, size, copy) != size)
		fail(path);
	fclose(copy);
}

int main(int argc, char **argv)
{
	struct stat st;

	if (argc < 3)
		return 2;
	file_name = argv[2];
	argument = argv[3];
	file = open(file_name, O_RDWR);
	if (file < 0 || fstat(file, &st))
		fail(file_name);
	size = (size_t)st.st_size;
	read_reference(file_name);
	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++)
		if (!strcmp(argv[1], cases[i].name)) {
			cases[i].run();
			return 0;
		}
	fprintf(stderr, "mapvmm: %s: no such case\n", argv[1]);
	return 2;
}
