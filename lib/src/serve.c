/* SPDX-License-Identifier: MIT */
/*
 * serve.c: infill_server_run(): options, image and socket are verified here,
 * then one of the two kinds of daemon runs.  Internal, but for what infill.h
 * says.
 *
 * How it ends.  The first request to stop (options.stop_fd) ends listening:
 * no new VM comes in, and the daemon goes on until every VM is gone or has
 * nothing missing, because closing a userfaultfd before that lets the guest
 * read zeros.  A second request ends it at once; then on_error says what
 * becomes of the VMs that still need pages: KILL kills them; TELL tells them,
 * and leaves it to them that they keep their userfaultfd open and wait.
 */
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <poll.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

#include "cache.h"
#include "err.h"
#include "fdstore.h"
#include "listener.h"
#include "options.h"
#include "serve.h"
#include "supervisor.h"
#include "vm.h"

#define FDS_OWN 64     /* needed whatever is served */
#define FDS_CLIENT 6
#define FDS_VM 16      /* in the worker: what was given, and a session's own */

void server_log(const struct server *server, int level, const char *format, ...)
{
	char line[1024];
	va_list args;

	if (!server->options.log)
		return;
	va_start(args, format);
	vsnprintf(line, sizeof(line), format, args);
	va_end(args);
	server->options.log(level, line, server->options.log_arg);
}

void server_ready(const struct server *server)
{
	if (server->options.ready_fd > 0)
		(void)!write(server->options.ready_fd, "r", 1);
}

/*
 * An eventfd, a signalfd or a pipe: read what one request is at most.  That
 * several bytes in a pipe count as one is as well: two requests at the same
 * moment are a mistake more often than an intention.
 */
unsigned server_stop_request(struct server *server, unsigned before)
{
	char request[128];
	ssize_t n = read(server->options.stop_fd, request, sizeof(request));

	if (n < 0 && (errno == EINTR || errno == EAGAIN))
		return before;
	if (n > 0)
		return before < 2 ? before + 1 : 2;
	server->options.stop_fd = -1; /* closed: no second request can come */
	return before ? before : 1;
}

void server_unlisten(struct server *server)
{
	fd_close(&server->listener);
	if (server->socket_ino)
		listener_remove(server->options.socket, server->socket_dev, server->socket_ino);
	server->socket_ino = 0;
}

/* ---- options ---------------------------------------------------------------------- */

static int check_session(struct infill_session_options *session,
			 const struct infill_session_options *from)
{
	int rc = OPTIONS_COPY(session, from, infill_session_options);

	if (rc)
		return rc;
	if (session->event || session->event_arg || session->timeline_fd > 0 ||
	    session->watch_fd > 0 || session->cache)
		return err_set(-EINVAL, "infill_server_options: session: event, timeline_fd, watch_fd "
			       "and cache must be unset: the server sets them");
	if (session->trace && session->record)
		return err_set(-EINVAL, "trace and record: only one of them can be used at a time");
	if (session->fill > INFILL_FILL_NONE)
		return err_set(-EINVAL, "fill: %u is not known", session->fill);
	return 0;
}

static int check_options(struct infill_server_options *o)
{
	const uint32_t known = INFILL_SERVER_FD_STORE | INFILL_SERVER_SHARED | INFILL_SERVER_ONE_VM;

	if (o->flags & ~known)
		return err_set(-EINVAL, "infill_server_options: flags: %#x is not known",
			       o->flags & ~known);
	if (o->on_error > INFILL_ON_ERROR_TELL)
		return err_set(-EINVAL, "infill_server_options: on_error: %u is not known", o->on_error);
	if (!o->image || !*o->image)
		return err_set(-EINVAL, "image: no path is given");
	if (!o->max_vms)
		o->max_vms = SERVER_MAX_VMS;
	if (!o->max_clients)
		o->max_clients = SERVER_MAX_CLIENTS;
	if (!o->handshake_ms)
		o->handshake_ms = SERVER_HANDSHAKE_MS;
	if (o->max_vms > 65536 || o->max_clients > 4096)
		return err_set(-EINVAL, "max_vms, max_clients: at most 65536 and 4096");
	return 0;
}

/*
 * As many fds as are permitted, and no more VMs than they are enough for: a
 * userfaultfd that cannot be received is closed by the kernel.
 */
static int fit_limits(struct server *server)
{
	struct infill_server_options *o = &server->options;
	uint64_t base = FDS_OWN + (uint64_t)FDS_CLIENT * o->max_clients, vms;
	struct rlimit limit;

	if (getrlimit(RLIMIT_NOFILE, &limit))
		return err_set(-errno, "RLIMIT_NOFILE: %m");
	limit.rlim_cur = limit.rlim_max;
	setrlimit(RLIMIT_NOFILE, &limit);
	/* The other half is for what is opened for VMs: see FDS_VM. */
	server->files_max = limit.rlim_cur / 2 < INT_MAX ? (int)(limit.rlim_cur / 2) : INT_MAX;
	if (limit.rlim_cur == RLIM_INFINITY || limit.rlim_cur >= base + (uint64_t)FDS_VM * o->max_vms)
		return 0;
	vms = limit.rlim_cur > base ? (limit.rlim_cur - base) / FDS_VM : 0;
	if (!vms)
		return err_set(-EMFILE, "RLIMIT_NOFILE: %llu files are too few: raise it to %llu",
			       (unsigned long long)limit.rlim_cur,
			       (unsigned long long)(base + FDS_VM * o->max_vms));
	server_log(server, LOG_WARNING, "max_vms is lowered from %u to %llu: RLIMIT_NOFILE is %llu",
		   o->max_vms, (unsigned long long)vms, (unsigned long long)limit.rlim_cur);
	o->max_vms = (uint32_t)vms;
	return 0;
}

/* ---- files ------------------------------------------------------------------------- */

/* Keep the cache's files here, so that every worker goes on with the same pages. */
static int make_cache(struct server *server, struct infill_image *image)
{
	struct infill_cache *cache;
	int rc;

	if (!(server->options.flags & INFILL_SERVER_SHARED))
		return 0;
	if (server->options.flags & INFILL_SERVER_FD_STORE && fdstore_cache(server))
		return 0;
	rc = infill_cache_new(&cache, image);
	if (rc)
		return rc;
	server->cache_fd = fcntl(cache_content_fd(cache), F_DUPFD_CLOEXEC, 0);
	server->cache_bits_fd = fcntl(cache_bits_fd(cache), F_DUPFD_CLOEXEC, 0);
	infill_cache_free(cache);
	if (server->cache_fd < 0 || server->cache_bits_fd < 0)
		return err_set(-errno, "cache: %m");
	if (server->options.flags & INFILL_SERVER_FD_STORE)
		fdstore_keep_cache(server);
	return 0;
}

/* The image is opened once; every worker gets this open file, whatever becomes of the path. */
static int open_image(struct server *server)
{
	struct infill_image *image;
	int rc;

	/* O_NONBLOCK: a FIFO at this path is an error, not a hang. */
	server->image_fd = open(server->options.image, O_RDONLY | O_CLOEXEC | O_NOCTTY | O_NONBLOCK);
	if (server->image_fd < 0 || fcntl(server->image_fd, F_SETFL, 0))
		return err_set(-errno, "%s: cannot open the image: %m", server->options.image);
	rc = infill_image_open_fd(&image, server->image_fd, server->options.image, NULL);
	if (rc)
		return rc;
	infill_image_identity(image, &server->identity);
	rc = make_cache(server, image);
	infill_image_close(image);
	return rc;
}

static int open_timeline(struct server *server)
{
	const char *path = server->options.timeline;

	if (!path)
		return 0;
	server->timeline_fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_APPEND | O_CLOEXEC, 0666);
	if (server->timeline_fd < 0)
		return err_set(-errno, "%s: cannot write the timeline: %m", path);
	return 0;
}

static int open_socket(struct server *server)
{
	if (server->options.flags & INFILL_SERVER_FD_STORE) {
		server->listener = fdstore_listener();
		if (server->listener >= 0)
			return 0;
	}
	if (!server->options.socket || !*server->options.socket)
		return err_set(-EINVAL, "socket: no path is given");
	server->listener = listener_open(server->options.socket, &server->socket_dev,
					 &server->socket_ino);
	return server->listener < 0 ? server->listener : 0;
}

static int open_files(struct server *server)
{
	int rc = open_image(server);

	if (!rc)
		rc = open_timeline(server);
	return rc ? rc : open_socket(server);
}

int infill_server_run(const struct infill_server_options *options)
{
	struct server server = { .image_fd = -1, .timeline_fd = -1, .listener = -1, .cache_fd = -1,
				 .cache_bits_fd = -1 };
	bool store;
	int rc;

	rc = options_copy(&server.options, sizeof(server.options), options, "infill_server_options", 0);
	if (!rc)
		rc = check_options(&server.options);
	if (!rc)
		rc = check_session(&server.session, server.options.session);
	if (!rc)
		rc = fit_limits(&server);
	store = server.options.flags & INFILL_SERVER_FD_STORE;
	if (!rc && store)
		rc = fdstore_check();
	if (!rc)
		rc = open_files(&server);
	if (!rc)
		rc = store ? fdstore_run(&server) : supervisor_run(&server);
	server_unlisten(&server);
	fd_close(&server.image_fd);
	fd_close(&server.timeline_fd);
	fd_close(&server.cache_fd);
	fd_close(&server.cache_bits_fd);
	return rc;
}
