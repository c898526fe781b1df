/* SPDX-License-Identifier: MIT */
/*
 * shim.c: libinfill-attach.so, which `infill attach` preloads into a VMM.
 *
 * Model.  The VMM maps its memory file.  The mapping is made, but of fresh
 * memory (a memfd for MAP_SHARED, anonymous memory for MAP_PRIVATE) that is
 * registered with a userfaultfd and sent to the pager, as Firecracker does;
 * each mapping is a VM of its own to the pager.  The file itself is never
 * opened for writing, resized or punched.  What cannot be done right makes the
 * VMM's call fail and is reported to `infill attach`: a VMM must never run on
 * memory that nobody fills.
 *
 * This runs inside of any program at all, also in shells that start the VMM,
 * and is inert until F is mapped.  So it prints nothing, keeps errno, calls
 * the kernel directly where it passes a call on, and looks at an fd by device
 * and inode instead of keeping lists of fds.
 *
 * Environment, set by `infill attach`: INFILL_ATTACH_IMAGE, the file;
 * INFILL_ATTACH_SOCKET, the pager; INFILL_ATTACH_REPORT, a FIFO that gets a
 * line `mapped PID BYTES` or `error TEXT`; INFILL_ATTACH_ONE, if set, permits
 * one mapping only.
 */
#undef _FORTIFY_SOURCE /* its inline open() and this one exclude each other */
#include <errno.h>
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "infill.h"

#define EXPORT __attribute__((visibility("default")))
#define MAPPINGS 64
#define FIRST_FD 512 /* above what a VMM closes in a loop or passes on */
#define PAGE 4096ull

#ifndef MAP_SYNC
#define MAP_SYNC 0x80000
#endif

/* Entry points of programs built with _FORTIFY_SOURCE. */
int __open_2(const char *path, int flags);
int __open64_2(const char *path, int flags);
int __openat_2(int dir, const char *path, int flags);
int __openat64_2(int dir, const char *path, int flags);

/* What is replaced where.  Written under `lock`; readers see a slot as empty or whole. */
struct mapping {
	_Atomic uintptr_t end; /* 0: the slot is free; stored last */
	uintptr_t start;
	uint64_t offset;
	bool shared;
};

static struct {
	atomic_int state; /* 0: not looked yet, 1: inert, 2: active */
	const char *socket, *report;
	bool one;
	dev_t dev;
	ino_t ino;
	uint64_t bytes;
} attach;

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static struct mapping mappings[MAPPINGS];
static atomic_uint used; /* slots of `mappings` that were ever used */
static struct { uint64_t offset, end; } taken[MAPPINGS]; /* of the image, by shared mappings */
static unsigned taken_count, mapped_count;
static int memory_fd = -1; /* behind all shared mappings */

/* ---- set-up and report ---------------------------------------------------- */

/* Constructors of other libraries may map files before this one's, so each call comes here. */
static bool active(void)
{
	const char *image, *socket_path, *report_path;
	int state = atomic_load_explicit(&attach.state, memory_order_acquire), keep = errno;
	struct stat st;

	if (state)
		return state == 2;
	image = getenv("INFILL_ATTACH_IMAGE");
	socket_path = getenv("INFILL_ATTACH_SOCKET");
	report_path = getenv("INFILL_ATTACH_REPORT");
	state = 1;
	if (image && socket_path && report_path && !stat(image, &st) && S_ISREG(st.st_mode)) {
		attach.dev = st.st_dev;
		attach.ino = st.st_ino;
		attach.bytes = (uint64_t)st.st_size;
		/* The VMM may change its environment. */
		attach.socket = strdup(socket_path);
		attach.report = strdup(report_path);
		attach.one = getenv("INFILL_ATTACH_ONE");
		state = attach.socket && attach.report ? 2 : 1;
	}
	atomic_store_explicit(&attach.state, state, memory_order_release);
	errno = keep;
	return state == 2;
}

static __attribute__((constructor)) void begin(void)
{
	active();
}

/* One write, so that lines are whole. */
static void report(const char *kind, const char *text)
{
	char line[700];
	int fd, length, keep = errno;

	length = snprintf(line, sizeof(line), "%s %.600s\n", kind, text);
	fd = (int)syscall(SYS_openat, AT_FDCWD, attach.report, O_WRONLY | O_NONBLOCK | O_CLOEXEC);
	if (fd >= 0) {
		(void)!write(fd, line, (size_t)length);
		close(fd);
	}
	errno = keep;
}

/* Report why a call fails, and let it: sets errno to CODE; -1. */
static int refuse(int code, const char *format, ...) __attribute__((format(printf, 2, 3), cold));
static int refuse(int code, const char *format, ...)
{
	char text[600];
	va_list args;

	va_start(args, format);
	vsnprintf(text, sizeof(text), format, args);
	va_end(args);
	report("error", text);
	errno = code;
	return -1;
}

static bool is_image(const struct stat *st)
{
	return st->st_dev == attach.dev && st->st_ino == attach.ino;
}

static bool is_image_fd(int fd)
{
	struct stat st;
	int keep = errno;
	bool is = fd >= 0 && active() && !fstat(fd, &st) && is_image(&st);

	errno = keep;
	return is;
}

static bool is_image_path(int dir, const char *path, int flags)
{
	struct stat st;
	int keep = errno;
	bool is = active() && path &&
		  !fstatat(dir, path, &st, flags & O_NOFOLLOW ? AT_SYMLINK_NOFOLLOW : 0) &&
		  is_image(&st);

	errno = keep;
	return is;
}

/* ---- the list of mappings --------------------------------------------------- */

static void *raw_mmap(void *address, size_t length, int prot, int flags, int fd, off_t offset)
{
	return (void *)syscall(SYS_mmap, address, length, prot, flags, fd, offset);
}

/* The first mapping from slot *NEXT on that overlaps [START, END); NULL: none. */
static struct mapping *overlapping(uintptr_t start, uintptr_t end, unsigned *next)
{
	unsigned count = atomic_load_explicit(&used, memory_order_acquire);

	for (; *next < count; ++*next) {
		struct mapping *m = &mappings[*next];
		uintptr_t its_end = atomic_load_explicit(&m->end, memory_order_acquire);

		if (its_end && m->start < end && start < its_end) {
			++*next;
			return m;
		}
	}
	return NULL;
}

/* Call with the lock.  False: no slot is free. */
static bool remember(uintptr_t start, uintptr_t end, uint64_t offset, bool shared)
{
	unsigned count = atomic_load(&used), slot = 0;

	while (slot < count && atomic_load(&mappings[slot].end))
		slot++;
	if (slot == MAPPINGS)
		return false;
	mappings[slot].start = start;
	mappings[slot].offset = offset;
	mappings[slot].shared = shared;
	atomic_store_explicit(&mappings[slot].end, end, memory_order_release);
	if (slot == count)
		atomic_store_explicit(&used, count + 1, memory_order_release);
	return true;
}

/* Something else is at [START, START + LENGTH) from now on. */
static void forget(void *start, size_t length)
{
	uintptr_t from = (uintptr_t)start, to = from + ((length + PAGE - 1) & ~(PAGE - 1));
	struct mapping *m;
	unsigned next = 0;

	/* The lock is taken only when there is something to do: see fork() in a threaded VMM. */
	if (!overlapping(from, to, &next))
		return;
	pthread_mutex_lock(&lock);
	next = 0;
	while ((m = overlapping(from, to, &next))) {
		struct mapping was = { .start = m->start,
				       .offset = m->offset,
				       .shared = m->shared };
		uintptr_t end = atomic_exchange(&m->end, 0);

		if (was.start < from)
			remember(was.start, from, was.offset, was.shared);
		if (to < end)
			remember(to, end, was.offset + (to - was.start), was.shared);
	}
	pthread_mutex_unlock(&lock);
}

/* ---- mmap: the replacement --------------------------------------------------- */

struct request {
	void *address;
	uint64_t length, offset;
	int prot, flags;
	bool shared;
};

/* Move FD out of the VMM's way; it keeps its number where that cannot be. */
static int move_up(int fd)
{
	int high = fd < 0 ? -1 : fcntl(fd, F_DUPFD_CLOEXEC, FIRST_FD);

	if (high < 0)
		return fd;
	close(fd);
	return high;
}

/* Can the request be answered at all?  0, or -1 after a report. */
static int check(const struct request *r)
{
	if (r->offset > attach.bytes || r->length > attach.bytes - r->offset)
		return refuse(EINVAL,
			      "the VMM maps bytes %llu to %llu of the image, which has %llu: "
			      "give the VM the memory size that it was saved with",
			      (unsigned long long)r->offset,
			      (unsigned long long)(r->offset + r->length),
			      (unsigned long long)attach.bytes);
	if (attach.one && mapped_count)
		return refuse(ENOTSUP,
			      "the VMM maps the image a second time: with --record only one "
			      "mapping is possible");
	/*
	 * Two shared mappings of one page would be two opinions about whether it
	 * is missing, and after a balloon took it one of them would be wrong.
	 */
	for (unsigned i = 0; r->shared && i < taken_count; i++)
		if (r->offset < taken[i].end && taken[i].offset < r->offset + r->length)
			return refuse(EBUSY,
				      "the VMM maps bytes %llu to %llu of the image twice with "
				      "MAP_SHARED, which cannot be filled lazily",
				      (unsigned long long)r->offset,
				      (unsigned long long)(r->offset + r->length));
	if (taken_count == MAPPINGS || mapped_count == MAPPINGS)
		return refuse(ENOMEM, "the VMM maps the image more than %d times", MAPPINGS);
	return 0;
}

static int make_memory_fd(void)
{
	int fd;

	if (memory_fd >= 0)
		return 0;
	fd = move_up((int)syscall(SYS_memfd_create, "infill", MFD_CLOEXEC));
	if (fd < 0)
		return refuse(errno, "memfd_create: %s", strerror(errno));
	if (syscall(SYS_ftruncate, fd, attach.bytes)) {
		int keep = errno;

		close(fd);
		return refuse(keep, "memory of %llu bytes: %s", (unsigned long long)attach.bytes,
			      strerror(keep));
	}
	memory_fd = fd;
	return 0;
}

/*
 * Map without access, so that neither mlockall() nor MAP_POPULATE fills it
 * with zeros before it is registered.
 */
static void *map_memory(const struct request *r)
{
	const int kept = MAP_FIXED | MAP_FIXED_NOREPLACE | MAP_NORESERVE
#ifdef MAP_32BIT
			 | MAP_32BIT
#endif
		;
	int flags = r->flags & kept;

	if (r->shared)
		return raw_mmap(r->address, r->length, PROT_NONE, flags | MAP_SHARED, memory_fd,
				(off_t)r->offset);
	return raw_mmap(r->address, r->length, PROT_NONE, flags | MAP_PRIVATE | MAP_ANONYMOUS, -1,
			0);
}

static int watch(int uffd, void *at, uint64_t length)
{
	struct uffdio_register reg = {
		.range = { .start = (uintptr_t)at, .len = length },
		.mode = UFFDIO_REGISTER_MODE_MISSING,
	};

	/* A child would see missing pages as zeros, and with MAP_SHARED so would the VM then. */
	if (syscall(SYS_madvise, at, length, MADV_DONTFORK))
		return refuse(errno, "madvise: %s", strerror(errno));
	if (ioctl(uffd, UFFDIO_REGISTER, &reg))
		return refuse(errno, "userfaultfd: cannot register %llu bytes: %s",
			      (unsigned long long)length, strerror(errno));
	return 0;
}

/* Hand the memory at AT to the pager.  The connection stays open with the VMM. */
static int hand_over(const struct request *r, int uffd, void *at)
{
	struct infill_region region = {
		.size = sizeof(region),
		.hva = (uintptr_t)at,
		.length = r->length,
		.offset = r->offset,
		.page_size = PAGE,
		.backing = r->shared ? INFILL_BACKING_SHMEM : INFILL_BACKING_ANON,
	};
	struct infill_memory *memory;
	int error = infill_memory_new(&memory);

	if (!error) {
		error = infill_memory_add(memory, &region);
		if (!error)
			error = infill_handshake_send(attach.socket, uffd, memory);
		infill_memory_free(memory);
	}
	if (error < 0)
		return refuse(-error, "%s", infill_error());
	move_up(error);
	return 0;
}

static int set_up(const struct request *r, int uffd, void *at)
{
	if (watch(uffd, at, r->length) || hand_over(r, uffd, at))
		return -1;
	if (syscall(SYS_mprotect, at, r->length, r->prot))
		return refuse(errno, "mprotect: %s", strerror(errno));
	if (r->flags & MAP_LOCKED)
		syscall(SYS_mlock2, at, r->length, MLOCK_ONFAULT);
	return 0;
}

/* Undo a mapping; where it replaced others leave a reservation, so that nothing else gets there. */
static void *give_back(const struct request *r, void *at)
{
	int keep = errno;

	if (r->flags & MAP_FIXED)
		raw_mmap(at, r->length, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED |
			 MAP_NORESERVE, -1, 0);
	else
		syscall(SYS_munmap, at, r->length);
	errno = keep;
	return MAP_FAILED;
}

static int open_uffd(bool shared)
{
	int fd = infill_host_userfaultfd(UFFD_FEATURE_EVENT_REMOVE |
					 (shared ? UFFD_FEATURE_MISSING_SHMEM : 0));

	return fd < 0 ? refuse(-fd, "%s", infill_error()) : move_up(fd);
}

/* Call with the lock. */
static void *replace_locked(const struct request *r)
{
	void *at = MAP_FAILED;
	char text[64];
	int uffd;

	if (check(r) || (r->shared && make_memory_fd()))
		return MAP_FAILED;
	uffd = open_uffd(r->shared);
	if (uffd < 0)
		return MAP_FAILED;
	at = map_memory(r);
	if (at == MAP_FAILED)
		refuse(errno, "mmap of %llu bytes: %s", (unsigned long long)r->length,
		       strerror(errno));
	else if (set_up(r, uffd, at))
		at = give_back(r, at);
	if (at == MAP_FAILED) {
		int keep = errno;

		close(uffd);
		errno = keep;
		return at;
	}
	if (r->shared) {
		taken[taken_count].offset = r->offset;
		taken[taken_count++].end = r->offset + r->length;
	}
	mapped_count++;
	remember((uintptr_t)at, (uintptr_t)at + r->length, r->offset, r->shared);
	snprintf(text, sizeof(text), "%d %llu", (int)getpid(), (unsigned long long)r->length);
	report("mapped", text);
	return at;
}

static void *replace(void *address, size_t length, int prot, int flags, off_t offset)
{
	struct request r = {
		.address = address,
		.length = (length + PAGE - 1) & ~(PAGE - 1),
		.offset = (uint64_t)offset,
		.prot = prot,
		.flags = flags,
		.shared = (flags & MAP_TYPE) != MAP_PRIVATE,
	};
	int keep = errno;
	void *at;

	/* As the kernel answers for a file that is not on persistent memory. */
	if ((flags & MAP_TYPE) == MAP_SHARED_VALIDATE && flags & MAP_SYNC)
		return errno = EOPNOTSUPP, MAP_FAILED;
	if (!length || offset % (off_t)PAGE)
		return errno = EINVAL, MAP_FAILED;
	if (flags & MAP_HUGETLB) {
		refuse(EINVAL,
		       "the VMM maps the image with huge pages, which a file does not have");
		return MAP_FAILED;
	}
	if (flags & MAP_FIXED)
		forget(address, length);
	pthread_mutex_lock(&lock);
	at = replace_locked(&r);
	pthread_mutex_unlock(&lock);
	if (at != MAP_FAILED)
		errno = keep;
	return at;
}

EXPORT void *mmap(void *address, size_t length, int prot, int flags, int fd, off_t offset)
{
	if (!(flags & MAP_ANONYMOUS) && is_image_fd(fd))
		return replace(address, length, prot, flags, offset);
	if (flags & MAP_FIXED)
		forget(address, length);
	return raw_mmap(address, length, prot, flags, fd, offset);
}

EXPORT void *mmap64(void *, size_t, int, int, int, off64_t) __attribute__((alias("mmap")));

/* ---- what a VMM does with a mapping ------------------------------------------- */

EXPORT int munmap(void *address, size_t length)
{
	/* First: another thread may map the image there as soon as it is free. */
	forget(address, length);
	return (int)syscall(SYS_munmap, address, length);
}

EXPORT void *mremap(void *old, size_t old_size, size_t new_size, int flags, ...)
{
	uintptr_t start = (uintptr_t)old;
	unsigned next = 0;
	void *target = NULL, *at;
	va_list args;

	va_start(args, flags);
	if (flags & MREMAP_FIXED)
		target = va_arg(args, void *);
	va_end(args);
	/* Memory that moves leaves its userfaultfd, and what is missing would be zero. */
	if (overlapping(start, start + old_size, &next) &&
	    (new_size > old_size || flags & ~MREMAP_MAYMOVE)) {
		refuse(ENOMEM, "the VMM moves or grows its mapping of the image by mremap(), "
		       "which cannot be filled lazily");
		return MAP_FAILED;
	}
	at = (void *)syscall(SYS_mremap, old, old_size, new_size, flags, target);
	if (at == MAP_FAILED)
		return at;
	if (at == old && new_size < old_size)
		forget((char *)old + new_size, old_size - new_size);
	if (target)
		forget(target, new_size);
	return at;
}

EXPORT int madvise(void *address, size_t length, int advice)
{
	uintptr_t start = (uintptr_t)address, end = start + length;
	unsigned next = 0;
	struct mapping *m = overlapping(start, end, &next);

	if (m && advice == MADV_DOFORK)
		return errno = EINVAL, -1;
	/*
	 * On a shared file this drops page tables and no content, but the pager
	 * would take it for a balloon's and let missing pages read as zero.
	 */
	if (m && advice == MADV_DONTNEED && m->shared) {
		if (start >= m->start && end <= atomic_load(&m->end) && start % PAGE == 0)
			return 0;
		return errno = EINVAL, -1;
	}
	return (int)syscall(SYS_madvise, address, length, advice);
}

/* A hole in [OFFSET, END) of the image: in the memory that stands for it. */
static int punch(uint64_t offset, uint64_t end)
{
	unsigned count = atomic_load_explicit(&used, memory_order_acquire), hit = 0;

	for (unsigned i = 0; i < count; i++) {
		struct mapping *m = &mappings[i];
		uintptr_t its_end = atomic_load_explicit(&m->end, memory_order_acquire);
		uint64_t from, to;

		if (!its_end)
			continue;
		from = offset > m->offset ? offset : m->offset;
		to = m->offset + (its_end - m->start);
		to = end < to ? end : to;
		if (from >= to)
			continue;
		hit++;
		if (syscall(SYS_madvise, m->start + (from - m->offset), to - from,
			    m->shared ? MADV_REMOVE : MADV_DONTNEED))
			return -1;
	}
	return hit ? 0 : (errno = EROFS, -1);
}

EXPORT int fallocate(int fd, int mode, off_t offset, off_t length)
{
	uint64_t end = (uint64_t)offset + (uint64_t)length;

	if (!is_image_fd(fd))
		return (int)syscall(SYS_fallocate, fd, mode, offset, length);
	if (offset < 0 || length <= 0)
		return errno = EINVAL, -1;
	if (mode == FALLOC_FL_KEEP_SIZE || (!mode && end <= attach.bytes))
		return 0;
	if (!mode)
		return refuse(EROFS, "the VMM grows the image to %llu bytes: it is never written",
			      (unsigned long long)end);
	if (mode != (FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE))
		return errno = EOPNOTSUPP, -1;
	if ((uint64_t)offset % PAGE || (uint64_t)length % PAGE)
		return errno = EINVAL, -1;
	return punch((uint64_t)offset, end);
}

EXPORT int fallocate64(int, int, off64_t, off64_t) __attribute__((alias("fallocate")));

/* Returns the error, as it does in libc, which fills the file in other ways if need be. */
EXPORT int posix_fallocate(int fd, off_t offset, off_t length)
{
	int keep = errno, error = 0;

	if (fallocate(fd, 0, offset, length))
		error = errno;
	errno = keep;
	return error;
}

EXPORT int posix_fallocate64(int, off64_t, off64_t) __attribute__((alias("posix_fallocate")));

/* ---- the file is never written -------------------------------------------------- */

static int resize(off_t length)
{
	if (length >= 0 && (uint64_t)length == attach.bytes)
		return 0;
	return refuse(EROFS, "the VMM sets the image's size from %llu to %lld bytes: it is never "
		      "written", (unsigned long long)attach.bytes, (long long)length);
}

EXPORT int ftruncate(int fd, off_t length)
{
	return is_image_fd(fd) ? resize(length) : (int)syscall(SYS_ftruncate, fd, length);
}

EXPORT int ftruncate64(int, off64_t) __attribute__((alias("ftruncate")));

EXPORT int truncate(const char *path, off_t length)
{
	return is_image_path(AT_FDCWD, path, 0) ? resize(length) :
						  (int)syscall(SYS_truncate, path, length);
}

EXPORT int truncate64(const char *, off64_t) __attribute__((alias("truncate")));

/* O_CREAT | O_EXCL stays as it is: it fails. */
static int open_at(int dir, const char *path, int flags, mode_t mode)
{
	bool writes = (flags & O_ACCMODE) != O_RDONLY || flags & O_TRUNC;

	if (writes && !(flags & O_EXCL) && is_image_path(dir, path, flags))
		flags = (flags & ~(O_ACCMODE | O_TRUNC | O_CREAT | O_APPEND)) | O_RDONLY;
	return (int)syscall(SYS_openat, dir, path, flags, mode);
}

#define TAKE_MODE(flags, mode)                             \
	do {                                               \
		va_list args;                              \
		va_start(args, flags);                     \
		if ((flags) & O_CREAT || ((flags) & O_TMPFILE) == O_TMPFILE) \
			(mode) = va_arg(args, mode_t);     \
		va_end(args);                              \
	} while (0)

EXPORT int open(const char *path, int flags, ...)
{
	mode_t mode = 0;

	TAKE_MODE(flags, mode);
	return open_at(AT_FDCWD, path, flags, mode);
}

EXPORT int openat(int dir, const char *path, int flags, ...)
{
	mode_t mode = 0;

	TAKE_MODE(flags, mode);
	return open_at(dir, path, flags, mode);
}

EXPORT int __open_2(const char *path, int flags)
{
	return open_at(AT_FDCWD, path, flags, 0);
}

EXPORT int __openat_2(int dir, const char *path, int flags)
{
	return open_at(dir, path, flags, 0);
}

EXPORT int creat(const char *path, mode_t mode)
{
	return open_at(AT_FDCWD, path, O_CREAT | O_WRONLY | O_TRUNC, mode);
}

EXPORT int open64(const char *, int, ...) __attribute__((alias("open")));
EXPORT int openat64(int, const char *, int, ...) __attribute__((alias("openat")));
EXPORT int __open64_2(const char *, int) __attribute__((alias("__open_2")));
EXPORT int __openat64_2(int, const char *, int) __attribute__((alias("__openat_2")));
EXPORT int creat64(const char *, mode_t) __attribute__((alias("creat")));
