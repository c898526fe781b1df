/* SPDX-License-Identifier: MIT */
/* connect.c: a connection to a pager.  Internal; needs no other library, as a VMM links it. */
#include <errno.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "connect.h"
#include "err.h"
#include "loop.h"

/* connect(2) of a Unix socket waits only while the backlog is full. */
static int connect_until(int sock, const struct sockaddr_un *to, uint64_t deadline)
{
	while (connect(sock, (const struct sockaddr *)to, sizeof(*to))) {
		if (errno == EINTR)
			continue;
		if (errno != EAGAIN)
			return -errno;
		if (loop_now() >= deadline)
			return -ETIMEDOUT;
		usleep(5000);
	}
	return 0;
}

int pager_connect(const char *path, uint64_t deadline)
{
	struct sockaddr_un to = { .sun_family = AF_UNIX };
	int sock, rc;

	if (!path || !*path)
		return err_set(-EINVAL, "socket: no path is given");
	if (strlen(path) >= sizeof(to.sun_path))
		return err_set(-ENAMETOOLONG, "%s: a socket's path is at most %zu bytes long", path,
			       sizeof(to.sun_path) - 1);
	strcpy(to.sun_path, path);
	sock = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	if (sock < 0)
		return err_set(-errno, "%s: cannot make a socket: %m", path);
	rc = connect_until(sock, &to, deadline);
	if (!rc)
		return sock;
	close(sock);
	if (rc == -ECONNREFUSED)
		return err_set(rc, "%s: no pager listens there: start `infill serve`", path);
	return err_set(rc, "%s: cannot connect: %m", path);
}
