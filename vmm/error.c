/* SPDX-License-Identifier: MIT */
/*
 * error.c: one line for each error.  Change here where the lines go to.
 */
#include <errno.h>
#include <poll.h>
#include <stdarg.h>
#include <stdio.h>
#include <unistd.h>

#include "error.h"

static _Thread_local char text[512];

int vmm_error(int code, const char *format, ...)
{
	struct pollfd fd = { .fd = STDERR_FILENO, .events = POLLOUT };
	va_list args;

	errno = -code;
	va_start(args, format);
	vsnprintf(text, sizeof(text), format, args);
	va_end(args);
	/*
	 * One write, so that lines of several threads do not mix.  A reader who takes nothing
	 * for so long loses the line: the VMM must be able to end.
	 */
	if (poll(&fd, 1, 1000) != 0)
		fprintf(stderr, "infill-vmm: %s\n", text);
	return code;
}

const char *vmm_error_text(void)
{
	return text;
}
