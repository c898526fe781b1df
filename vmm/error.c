/* SPDX-License-Identifier: MIT */
/*
 * error.c: one line for each error.  Change here where the lines go to.
 */
#include <errno.h>
#include <stdarg.h>
#include <stdio.h>

#include "error.h"

static _Thread_local char text[512];

int vmm_error(int code, const char *format, ...)
{
	va_list args;

	errno = -code;
	va_start(args, format);
	vsnprintf(text, sizeof(text), format, args);
	va_end(args);
	/* One write, so that lines of several threads do not mix. */
	fprintf(stderr, "infill-vmm: %s\n", text);
	return code;
}

const char *vmm_error_text(void)
{
	return text;
}
