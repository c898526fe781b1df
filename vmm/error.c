/* SPDX-License-Identifier: MIT */
/*
 * error.c: prints the line about a failure.  The wording is set where failures
 * are found; only the line's frame is here.
 */
#include <errno.h>
#include <stdarg.h>
#include <stdio.h>

#include "error.h"

int vmm_error(int code, const char *format, ...)
{
	char text[512];
	va_list args;

	va_start(args, format);
	errno = -code; /* for %m */
	vsnprintf(text, sizeof(text), format, args);
	va_end(args);
	/* One call, so that lines of two threads do not mix. */
	fprintf(stderr, "infill-vmm: %s\n", text);
	return code;
}
