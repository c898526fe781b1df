/* SPDX-License-Identifier: MIT */
/*
 * files.c: looks at the files that --trace and --record name.  A file of a new
 * option gets a function here and a line in files_check().
 */
#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <syslog.h>
#include <unistd.h>

#include "files.h"
#include "trace.h"

/* How every trace begins: infill-trace(7). */
static const char magic[8] = { 'i', 'n', 'f', 'i', 'l', 'l', 't', 'r' };

/* Only one that has the mark of a trace can be a damaged one. */
static bool is_trace(const char *path)
{
	char begin[sizeof(magic)];
	int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
	ssize_t n = fd < 0 ? -1 : read(fd, begin, sizeof(begin));

	if (fd >= 0)
		close(fd);
	return n == sizeof(begin) && !memcmp(begin, magic, sizeof(magic));
}

static int warn_trace(const struct common *c)
{
	char line[PATH_MAX + 256];

	snprintf(line, sizeof(line), "--trace: %s; VMs do without it", infill_error());
	common_log(LOG_WARNING, line, (void *)(uintptr_t)&c->verbose);
	return CLI_OK;
}

/*
 * Does the service manager hand over VMs of an earlier pager?  They need this
 * one more than its trace, which may be gone by now.
 */
static bool goes_on(const struct common *c)
{
	const char *name = getenv("LISTEN_FDNAMES");

	if (!(c->server.flags & INFILL_SERVER_FD_STORE))
		return false;
	for (; name && (name = strstr(name, "infill.")); name++)
		if (isdigit((unsigned char)name[strlen("infill.")]))
			return true; /* others are not of VMs */
	return false;
}

static int check_trace(const struct common *c)
{
	const char *path = c->session.trace;
	struct infill_identity identity;
	struct infill_image *image;
	struct trace trace;
	int error;

	if (infill_image_open(&image, c->server.image, NULL))
		return CLI_OK; /* the pager says why */
	infill_image_identity(image, &identity);
	infill_image_close(image);
	error = trace_load(&trace, path, &identity);
	trace_free(&trace);
	if (!error)
		return CLI_OK;
	if (error == -ESTALE || error == -EPROTO || goes_on(c))
		return warn_trace(c);
	if (error == -EBADMSG && is_trace(path))
		return warn_trace(c);
	if (error == -EBADMSG)
		return cli_fail("--trace: %s: is not a trace: record one with --record", path);
	return cli_fail("--trace: %s", infill_error());
}

/* Make a file as the recording will, beside where it will be renamed to. */
static int check_record(const struct common *c)
{
	const char *path = c->session.record;
	char temporary[PATH_MAX];
	struct stat st;
	int fd;

	if (!stat(path, &st) && !S_ISREG(st.st_mode))
		return cli_fail("--record: %s: is not a regular file: name one to be written", path);
	if (snprintf(temporary, sizeof(temporary), "%s.tmp.XXXXXX", path) >=
	    (int)sizeof(temporary))
		errno = ENAMETOOLONG;
	else if ((fd = mkostemp(temporary, O_CLOEXEC)) >= 0) {
		close(fd);
		unlink(temporary);
		return CLI_OK;
	}
	if (goes_on(c))
		return CLI_OK; /* the session says it when it writes */
	return cli_fail("--record: %s: cannot write a trace there: %s", path, strerror(errno));
}

int files_check(const struct common *c)
{
	int status = c->session.trace ? check_trace(c) : CLI_OK;

	return status == CLI_OK && c->session.record ? check_record(c) : status;
}
