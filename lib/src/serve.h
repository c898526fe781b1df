/* SPDX-License-Identifier: MIT */
/*
 * serve.h: the daemon: what its processes share.
 *
 *   supervisor.c  accepts clients (client.c), keeps each VM's files (vm.c),
 *                 starts the worker again when it dies.  Touches no page and
 *                 understands no message: there is little in it to fail.
 *   worker.c      the process that serves: a vmset.c behind a socket pair.
 *   fdstore.c     both in one process; the service manager keeps the files.
 *
 * Ownership of a VM's files (userfaultfd, page states, socket, pidfd):
 *
 *   who                  has them            until
 *   client.c             the only ones       the message is whole
 *   supervisor           the ones that last  the worker reports the VM's end
 *   worker               duplicates          the VM's end, or its own death
 *   worker, orphaned     the ones that last  the VM's end
 *
 * A userfaultfd that is closed everywhere makes a guest read zeros in place of
 * its data.  So one that was received is kept until its process is gone, also
 * if the VM is refused or its session failed.  Internal; may change freely.
 */
#ifndef INFILL_SERVE_H
#define INFILL_SERVE_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>
#include <syslog.h>

#include "infill.h"

#define SERVER_MAX_VMS 256
#define SERVER_MAX_CLIENTS 32
#define SERVER_HANDSHAKE_MS 5000
#define SERVER_ANSWER_MS 10000 /* how long a control request may wait for its answer */

struct server {
	struct infill_server_options options; /* with defaults filled in */
	struct infill_session_options session;
	struct infill_identity identity; /* of the image, when the server started */
	int image_fd;
	int files_max;                /* a VM may send fds while fewer are open */
	int timeline_fd;              /* -1: none */
	int listener;
	int cache_fd, cache_bits_fd;  /* INFILL_SERVER_SHARED; -1: none */
	dev_t socket_dev;             /* of the socket's file, to remove only that; 0: not ours */
	ino_t socket_ino;
	pid_t supervisor;             /* 0: none (INFILL_SERVER_FD_STORE) */
	uint64_t restarts;
};

/* One line for options.log. */
void server_log(const struct server *server, int level, const char *format, ...)
	__attribute__((format(printf, 3, 4)));

/* Tell options.ready_fd that the socket is served. */
void server_ready(const struct server *server);

/*
 * Read a request to stop from options.stop_fd.  How many there have been, if
 * there were BEFORE: 0 to 2.
 */
unsigned server_stop_request(struct server *server, unsigned before);

/* Stop listening and remove the socket. */
void server_unlisten(struct server *server);

#endif
