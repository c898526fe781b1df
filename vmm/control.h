/* SPDX-License-Identifier: MIT */
/*
 * control.h: the socket by which a running VM is asked for a snapshot.
 *
 * A client connects and sends three lines: `snapshot`, the absolute path of the
 * memory file, the absolute path of the state file.  It is answered by one line,
 * `ok` or `error: what: why`, and the connection is closed.
 */
#ifndef INFILL_VMM_CONTROL_H
#define INFILL_VMM_CONTROL_H

#include <limits.h>
#include <stdbool.h>

struct control_request {
	int fd; /* who asked */
	char memory[PATH_MAX], state[PATH_MAX];
};

/* Listen at PATH, for this user only; the fd, or -errno after vmm_error(). */
int control_listen(const char *path);

/* Close FD and remove PATH. */
void control_close(int fd, const char *path);

/*
 * Accept and read one request; one that is none, or takes too long, is answered and
 * closed here.  True if control_answer() is due.
 */
bool control_accept(int fd, struct control_request *request);

/* ERROR: NULL if it was done, else why not. */
void control_answer(struct control_request *request, const char *error);

/* The client: ask at PATH, and return when it was done.  0, or -errno after vmm_error(). */
int control_snapshot(const char *path, const char *memory, const char *state);

#endif
