// SPDX-License-Identifier: MIT
/*
 * fakefuse.c: a FUSE server of one file that fails and stalls where it is
 * told to.  It speaks the kernel's protocol itself (linux/fuse.h), because a
 * file as the root of a mount needs five requests only, and no library.
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/fuse.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>

#include "fakefuse.h"

#define REQUEST_MAX (FUSE_MIN_READ_BUFFER + (1u << 20))
#define HELD_MAX 256

struct held {
	uint64_t unique, offset;
	uint32_t length;
};

struct server {
	const struct fakeimage *image;
	struct fakefuse_control *control;
	int dev;
	struct held held[HELD_MAX];
	unsigned held_count;
	char *request, *reply;
};

/* ---- the server's side ---- */

static bool overlaps(const struct fakefuse_range *range, uint64_t offset, uint64_t length)
{
	uint64_t begin = atomic_load(&range->offset), size = atomic_load(&range->length);

	return size && offset < begin + size && begin < offset + length;
}

static bool is_bad(const struct fakefuse_control *control, uint64_t offset, uint64_t length)
{
	for (unsigned i = 0; i < 8; i++)
		if (overlaps(&control->bad[i], offset, length))
			return true;
	return false;
}

/* The kernel may have dropped the request meanwhile: an answer to nothing is harmless. */
static void answer(struct server *s, uint64_t unique, int error, const void *data, size_t length)
{
	struct fuse_out_header header = {
		.len = (uint32_t)(sizeof(header) + length),
		.error = error,
		.unique = unique,
	};
	struct iovec iov[2] = { { &header, sizeof(header) }, { (void *)(uintptr_t)data, length } };

	if (writev(s->dev, iov, length ? 2 : 1) < 0 && errno == ENODEV)
		_exit(0);
}

static void answer_read(struct server *s, uint64_t unique, uint64_t offset, uint32_t length)
{
	if (is_bad(s->control, offset, length)) {
		atomic_fetch_add(&s->control->failed, 1);
		answer(s, unique, -EIO, NULL, 0);
		return;
	}
	if (offset >= s->image->bytes)
		length = 0;
	else if (length > s->image->bytes - offset)
		length = (uint32_t)(s->image->bytes - offset);
	fakeimage_fill(s->image, offset, s->reply, length);
	answer(s, unique, 0, s->reply, length);
}

static void handle_read(struct server *s, uint64_t unique, const struct fuse_read_in *in)
{
	atomic_fetch_add(&s->control->reads, 1);
	if (overlaps(&s->control->held, in->offset, in->size) && s->held_count < HELD_MAX) {
		s->held[s->held_count++] = (struct held){ unique, in->offset, in->size };
		atomic_store(&s->control->holding, s->held_count);
		return;
	}
	answer_read(s, unique, in->offset, in->size);
}

static void release_held(struct server *s)
{
	if (!s->held_count || atomic_load(&s->control->held.length))
		return;
	for (unsigned i = 0; i < s->held_count; i++)
		answer_read(s, s->held[i].unique, s->held[i].offset, s->held[i].length);
	s->held_count = 0;
	atomic_store(&s->control->holding, 0);
}

static void handle_init(struct server *s, uint64_t unique, const struct fuse_init_in *in)
{
	struct fuse_init_out out = {
		.major = FUSE_KERNEL_VERSION,
		.minor = FUSE_KERNEL_MINOR_VERSION,
		.max_readahead = in->max_readahead,
		.flags = in->flags & (FUSE_ASYNC_READ | FUSE_PARALLEL_DIROPS),
		.max_background = 64,
		.congestion_threshold = 48,
		.max_write = 4096,
	};

	answer(s, unique, 0, &out, sizeof(out));
}

static void handle_getattr(struct server *s, uint64_t unique)
{
	struct fuse_attr_out out = {
		.attr_valid = 3600,
		.attr = {
			.ino = 1,
			.size = s->image->bytes,
			.blocks = s->image->bytes / 512,
			.mtime = 1700000000,
			.mode = S_IFREG | 0644,
			.nlink = 1,
			.uid = geteuid(),
			.gid = getegid(),
			.blksize = FAKE_PAGE,
		},
	};

	answer(s, unique, 0, &out, sizeof(out));
}

static void handle(struct server *s)
{
	const struct fuse_in_header *in = (const void *)s->request;
	const void *body = s->request + sizeof(*in);
	struct fuse_open_out open_out = { .open_flags = FOPEN_KEEP_CACHE };

	if (in->opcode == FUSE_INIT)
		handle_init(s, in->unique, body);
	else if (in->opcode == FUSE_GETATTR)
		handle_getattr(s, in->unique);
	else if (in->opcode == FUSE_OPEN)
		answer(s, in->unique, 0, &open_out, sizeof(open_out));
	else if (in->opcode == FUSE_READ)
		handle_read(s, in->unique, body);
	else if (in->opcode == FUSE_RELEASE || in->opcode == FUSE_FLUSH)
		answer(s, in->unique, 0, NULL, 0);
	else if (in->opcode != FUSE_FORGET && in->opcode != FUSE_BATCH_FORGET &&
		 in->opcode != FUSE_INTERRUPT)
		answer(s, in->unique, -ENOSYS, NULL, 0);
}

static void serve(struct server *s)
{
	for (;;) {
		struct pollfd ready = { s->dev, POLLIN, 0 };

		poll(&ready, 1, 5);
		release_held(s);
		if (!(ready.revents & POLLIN)) {
			if (ready.revents & POLLERR)
				_exit(0);
			continue;
		}
		if (read(s->dev, s->request, REQUEST_MAX) > 0)
			handle(s);
		else if (errno == ENODEV)
			_exit(0);
	}
}

/* ---- mounting ---- */

static void write_file(const char *path, const char *text)
{
	int fd = open(path, O_WRONLY | O_CLOEXEC);

	if (fd < 0)
		return;
	if (write(fd, text, strlen(text)) < 0)
		errno = 0;
	close(fd);
}

/* A mount namespace where this process may mount; root needs no user namespace. */
static int namespace_enter(void)
{
	unsigned uid = geteuid(), gid = getegid();
	char map[64];

	if (unshare(CLONE_NEWNS | (uid ? CLONE_NEWUSER : 0)))
		return -errno;
	if (uid) {
		snprintf(map, sizeof(map), "%u %u 1", uid, uid);
		write_file("/proc/self/uid_map", map);
		write_file("/proc/self/setgroups", "deny");
		snprintf(map, sizeof(map), "%u %u 1", gid, gid);
		write_file("/proc/self/gid_map", map);
	}
	return mount("none", "/", NULL, MS_REC | MS_PRIVATE, NULL) ? -errno : 0;
}

static int fuse_mount(int dev, const char *at)
{
	char options[128];

	snprintf(options, sizeof(options), "fd=%d,rootmode=%o,user_id=%u,group_id=%u", dev,
		 S_IFREG | 0644, geteuid(), getegid());
	return mount("infill-test", at, "fuse", MS_NOSUID | MS_NODEV, options) ? -errno : 0;
}

/* The server's process.  READY gets 0 or -errno. */
static void server_main(struct fakefuse *fuse, const char *at, int ready)
{
	struct server server = { .image = &fuse->image, .control = fuse->control };
	int result;

	prctl(PR_SET_PDEATHSIG, SIGKILL);
	alarm(0);
	result = namespace_enter();
	server.dev = open("/dev/fuse", O_RDWR | O_CLOEXEC);
	if (!result && server.dev < 0)
		result = -errno;
	if (!result)
		result = fuse_mount(server.dev, at);
	server.request = aligned_alloc(FAKE_PAGE, REQUEST_MAX + FAKE_PAGE);
	server.reply = aligned_alloc(FAKE_PAGE, REQUEST_MAX + FAKE_PAGE);
	if (!server.request || !server.reply)
		result = -ENOMEM;
	if (write(ready, &result, sizeof(result)) != sizeof(result) || result)
		_exit(1);
	close(ready);
	serve(&server);
}

/* ---- the test's side ---- */

static int mount_point(char *path, size_t size)
{
	static unsigned number;
	int fd;

	snprintf(path, size, "%s/fuse-%u", fake_dir(), number++);
	fd = open(path, O_CREAT | O_RDWR | O_CLOEXEC, 0600);
	if (fd < 0)
		return -errno;
	close(fd);
	return 0;
}

int fakefuse_start(struct fakefuse *fuse, const struct fakeimage *image)
{
	char at[400];
	int ready[2], result = mount_point(at, sizeof(at));

	memset(fuse, 0, sizeof(*fuse));
	fuse->image = *image;
	fuse->fd = -1;
	fuse->control = mmap(NULL, sizeof(*fuse->control), PROT_READ | PROT_WRITE,
			     MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (result || fuse->control == MAP_FAILED || pipe2(ready, O_CLOEXEC))
		fake_die("pipe of the FUSE server");
	fuse->server = fork();
	if (fuse->server == 0)
		server_main(fuse, at, ready[1]);
	close(ready[1]);
	if (read(ready[0], &result, sizeof(result)) != sizeof(result))
		result = -ECHILD;
	close(ready[0]);
	snprintf(fuse->path, sizeof(fuse->path), "/proc/%d/root%s", (int)fuse->server, at);
	if (!result)
		fuse->fd = open(fuse->path, O_RDONLY | O_CLOEXEC);
	if (!result && fuse->fd < 0)
		result = -errno;
	if (result)
		fakefuse_stop(fuse);
	return result;
}

void fakefuse_stop(struct fakefuse *fuse)
{
	if (fuse->server > 0) {
		kill(fuse->server, SIGKILL);
		waitpid(fuse->server, NULL, 0);
	}
	if (fuse->fd >= 0)
		close(fuse->fd);
	munmap(fuse->control, sizeof(*fuse->control));
	fuse->server = 0;
	fuse->fd = -1;
}
