/* SPDX-License-Identifier: MIT */
/*
 * control.h: the socket by which a running VM is asked for a snapshot, or for what
 * it has done.
 *
 * A client connects and sends three lines: `snapshot`, the absolute path of the
 * memory file, the absolute path of the state file; or the one line `stat`.  It is
 * answered by one line, `ok`, or the text that it asked for, or `error: what: why`,
 * and the connection is closed.
 */
#ifndef INFILL_VMM_CONTROL_H
#define INFILL_VMM_CONTROL_H

#include <limits.h>
#include <stdbool.h>

enum control_verb { CONTROL_SNAPSHOT, CONTROL_STAT };

struct control_request {
	int fd; /* who asked */
	enum control_verb verb;
	/* Of a snapshot. */
	char memory[PATH_MAX], state[PATH_MAX];
};

/*
 * Listen at PATH, for this user only; the fd, or -errno after vmm_error().  A socket that
 * is there already is taken over if nobody listens at it.
 */
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

/* Answer by TEXT, one line with its end; what the client does not take is lost. */
void control_answer_text(struct control_request *request, const char *text);

/* The client: ask at PATH, and return when it was done.  0, or -errno after vmm_error(). */
int control_snapshot(const char *path, const char *memory, const char *state);

/* The client: print what the VM at PATH has done to standard output.  As above. */
int control_stat(const char *path);

#endif
