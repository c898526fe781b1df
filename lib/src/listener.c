/* SPDX-License-Identifier: MIT */
/*
 * listener.c: the daemon's Unix socket.  Internal; may change freely.
 */
#include <errno.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include "err.h"
#include "listener.h"

#define BACKLOG 128

/* Does somebody listen there?  1, 0 or -errno. */
static int is_live(const struct sockaddr_un *at)
{
	int sock = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	int rc;

	if (sock < 0)
		return -errno;
	rc = connect(sock, (const struct sockaddr *)at, sizeof(*at)) ? -errno : 0;
	close(sock);
	if (rc == -ECONNREFUSED || rc == -ENOENT)
		return 0;
	return rc && rc != -EAGAIN ? rc : 1; /* EAGAIN: its backlog is full */
}

/* Make way for bind(2). */
static int remove_stale(const struct sockaddr_un *at)
{
	struct stat st;
	int live;

	if (lstat(at->sun_path, &st))
		return errno == ENOENT ? 0 : err_set(-errno, "%s: %m", at->sun_path);
	if (!S_ISSOCK(st.st_mode))
		return err_set(-EADDRINUSE, "%s: is there already and is no socket: choose another path",
			       at->sun_path);
	live = is_live(at);
	if (live < 0)
		return err_set(live, "%s: cannot find out whether a daemon listens there: %m",
			       at->sun_path);
	if (live)
		return err_set(-EADDRINUSE, "%s: a daemon listens there: stop it or choose another path",
			       at->sun_path);
	if (unlink(at->sun_path) && errno != ENOENT)
		return err_set(-errno, "%s: cannot remove the socket that a dead daemon left: %m",
			       at->sun_path);
	return 0;
}

static int bind_private(int sock, const struct sockaddr_un *at)
{
	mode_t before = umask(0177);
	int rc = bind(sock, (const struct sockaddr *)at, sizeof(*at)) ? -errno : 0;

	umask(before);
	if (rc == -EADDRINUSE)
		return err_set(rc, "%s: another daemon was started there just now", at->sun_path);
	if (rc)
		return err_set(rc, "%s: cannot make the socket: %m", at->sun_path);
	return 0;
}

int listener_open(const char *path, dev_t *dev, ino_t *ino)
{
	struct sockaddr_un at = { .sun_family = AF_UNIX };
	struct stat st;
	int sock, rc;

	if (strlen(path) >= sizeof(at.sun_path))
		return err_set(-ENAMETOOLONG, "%s: a socket's path is at most %zu bytes long", path,
			       sizeof(at.sun_path) - 1);
	strcpy(at.sun_path, path);
	rc = remove_stale(&at);
	if (rc)
		return rc;
	sock = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	if (sock < 0)
		return err_set(-errno, "%s: cannot make a socket: %m", path);
	rc = bind_private(sock, &at);
	if (!rc && (lstat(path, &st) || listen(sock, BACKLOG)))
		rc = err_set(-errno, "%s: cannot listen: %m", path);
	if (rc) {
		close(sock);
		return rc;
	}
	*dev = st.st_dev;
	*ino = st.st_ino;
	return sock;
}

void listener_remove(const char *path, dev_t dev, ino_t ino)
{
	struct stat st;

	if (!lstat(path, &st) && st.st_dev == dev && st.st_ino == ino)
		unlink(path);
}
