/* SPDX-License-Identifier: MIT */
/*
 * control.c: both ends of the control socket.  Another request is another first
 * line, and a case in parse().
 */
#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include "control.h"
#include "error.h"

/* A client that has connected sends its lines at once. */
#define REQUEST_SECONDS 5
#define REQUEST_MAX (2 * PATH_MAX + 16)

static int make_socket(const char *path, struct sockaddr_un *address)
{
	int fd;

	*address = (struct sockaddr_un){ .sun_family = AF_UNIX };
	if (strlen(path) >= sizeof(address->sun_path))
		return vmm_error(-ENAMETOOLONG, "%s: %m", path);
	strcpy(address->sun_path, path);
	fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	return fd < 0 ? vmm_error(-errno, "%s: a socket: %m", path) : fd;
}

/* ---- the VM's end ------------------------------------------------------------------ */

static bool is_socket(const char *path)
{
	struct stat st;

	return !lstat(path, &st) && S_ISSOCK(st.st_mode);
}

/* Remove a socket that nobody listens at any more, as a VMM that was killed leaves it. */
static int remove_left(const char *path, const struct sockaddr_un *address)
{
	int err, fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);

	if (fd < 0)
		return vmm_error(-errno, "%s: a socket: %m", path);
	err = connect(fd, (const struct sockaddr *)address, sizeof(*address)) ? -errno : 0;
	close(fd);
	if (!err || err == -EAGAIN)
		return vmm_error(-EADDRINUSE, "%s: another process listens there", path);
	/* A file that is no socket refuses connections, too. */
	if (err != -ECONNREFUSED || !is_socket(path))
		return vmm_error(-EADDRINUSE, "%s: it is there, and not a VMM's that has ended",
				 path);
	return unlink(path) && errno != ENOENT ? vmm_error(-errno, "%s: %m", path) : 0;
}

static int bind_to(int fd, const struct sockaddr_un *address)
{
	const mode_t mask = umask(0177);
	int err = bind(fd, (const struct sockaddr *)address, sizeof(*address)) ? -errno : 0;

	umask(mask);
	return err;
}

int control_listen(const char *path)
{
	struct sockaddr_un address;
	int err, fd = make_socket(path, &address);

	if (fd < 0)
		return fd;
	err = bind_to(fd, &address);
	if (err == -EADDRINUSE) {
		err = remove_left(path, &address);
		if (err) {
			close(fd);
			return err;
		}
		err = bind_to(fd, &address);
	}
	if (!err && listen(fd, 4))
		err = -errno;
	if (!err)
		return fd;
	close(fd);
	return vmm_error(err, "%s: %m", path);
}

void control_close(int fd, const char *path)
{
	if (fd < 0)
		return;
	close(fd);
	unlink(path);
}

/* Take a line out of *TEXT; NULL if there is no whole one. */
static char *next_line(char **text)
{
	char *line = *text, *end = strchr(line, '\n');

	if (!end)
		return NULL;
	*end = '\0';
	*text = end + 1;
	return line;
}

static bool parse(char *text, struct control_request *request)
{
	const char *verb = next_line(&text), *memory, *state;

	request->verb = verb && !strcmp(verb, "stat") ? CONTROL_STAT : CONTROL_SNAPSHOT;
	if (request->verb == CONTROL_STAT)
		return !*text;
	if (!verb || strcmp(verb, "snapshot"))
		return false;
	memory = next_line(&text);
	state = memory ? next_line(&text) : NULL;
	if (!state || *text || memory[0] != '/' || state[0] != '/')
		return false;
	return snprintf(request->memory, PATH_MAX, "%s", memory) < PATH_MAX &&
	       snprintf(request->state, PATH_MAX, "%s", state) < PATH_MAX;
}

/* Read until all lines of the request are there, the end, or the limit. */
static void read_text(int fd, char *text)
{
	static const char one_line[] = "stat\n";
	size_t used = 0;
	unsigned lines = 0;

	text[0] = '\0';
	while (lines < 3 && used < REQUEST_MAX - 1) {
		if (lines && !strncmp(text, one_line, strlen(one_line)))
			break;
		ssize_t n = recv(fd, text + used, REQUEST_MAX - 1 - used, 0);

		if (n <= 0)
			break;
		for (ssize_t i = 0; i < n; i++)
			lines += text[used + (size_t)i] == '\n';
		used += (size_t)n;
		text[used] = '\0';
	}
}

bool control_accept(int fd, struct control_request *request)
{
	const struct timeval limit = { .tv_sec = REQUEST_SECONDS };
	char text[REQUEST_MAX];

	request->fd = accept4(fd, NULL, NULL, SOCK_CLOEXEC);
	if (request->fd < 0)
		return false;
	setsockopt(request->fd, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof(limit));
	read_text(request->fd, text);
	if (parse(text, request))
		return true;
	control_answer(request, "control socket: the request is not understood");
	return false;
}

void control_answer(struct control_request *request, const char *error)
{
	char line[768];
	int length = error ? snprintf(line, sizeof(line), "error: %s\n", error) :
			     snprintf(line, sizeof(line), "ok\n");

	(void)!send(request->fd, line, (size_t)length, MSG_NOSIGNAL | MSG_DONTWAIT);
	close(request->fd);
	request->fd = -1;
}

void control_answer_text(struct control_request *request, const char *text)
{
	(void)!send(request->fd, text, strlen(text), MSG_NOSIGNAL | MSG_DONTWAIT);
	close(request->fd);
	request->fd = -1;
}

/* ---- the client's end ---------------------------------------------------------------- */

static int absolute(const char *path, char *to)
{
	char folder[PATH_MAX] = "";
	int length;

	if (path[0] != '/' && !getcwd(folder, sizeof(folder)))
		return vmm_error(-errno, "%s: %m", path);
	length = snprintf(to, PATH_MAX, "%s%s%s", folder, *folder ? "/" : "", path);
	if (length >= PATH_MAX || strchr(to, '\n'))
		return vmm_error(-EINVAL, "%s: a path that cannot be sent", path);
	return 0;
}

static int connect_to(const char *path)
{
	struct sockaddr_un address;
	int err, fd = make_socket(path, &address);

	if (fd < 0 || !connect(fd, (struct sockaddr *)&address, sizeof(address)))
		return fd;
	err = vmm_error(-errno, "%s: %m", path);
	close(fd);
	return err;
}

/*
 * Send REQUEST to the VM at PATH; its answer, one line without its end, is for the
 * caller to free(), NULL after vmm_error() and *ERR if it is an error or none.
 */
static char *exchange(const char *path, const char *request, int *err)
{
	int fd = connect_to(path);
	FILE *stream = fd < 0 ? NULL : fdopen(fd, "r");
	char *line = NULL;
	size_t size = 0;
	ssize_t n = -1;

	*err = fd < 0 ? fd : 0;
	if (fd >= 0 && (!stream || send(fd, request, strlen(request), MSG_NOSIGNAL) < 0))
		*err = vmm_error(-errno, "%s: %m", path);
	else if (fd >= 0)
		n = getline(&line, &size, stream);
	if (n > 0)
		line[strcspn(line, "\n")] = '\0';
	if (n > 0 && !strncmp(line, "error: ", 7))
		*err = vmm_error(-EIO, "%s", line + 7);
	else if (n <= 0 && !*err)
		*err = vmm_error(-EIO, "%s: the VM ended without an answer", path);
	if (stream)
		fclose(stream);
	else if (fd >= 0)
		close(fd);
	if (!*err)
		return line;
	free(line);
	return NULL;
}

int control_snapshot(const char *path, const char *memory, const char *state)
{
	char memory_path[PATH_MAX], state_path[PATH_MAX], request[REQUEST_MAX];
	int err = absolute(memory, memory_path);

	if (!err)
		err = absolute(state, state_path);
	if (err)
		return err;
	snprintf(request, sizeof(request), "snapshot\n%s\n%s\n", memory_path, state_path);
	free(exchange(path, request, &err));
	return err;
}

int control_stat(const char *path)
{
	int err;
	char *line = exchange(path, "stat\n", &err);

	if (line && (printf("%s\n", line) < 0 || fflush(stdout)))
		err = vmm_error(-errno, "standard output: %m");
	free(line);
	return err;
}
