/* SPDX-License-Identifier: MIT */
/*
 * err.c: one line of text for each thread about its last failure.
 * Internal; the wording of messages is set where they are raised.
 */
#include <errno.h>
#include <stdarg.h>
#include <stdio.h>

#include "err.h"
#include "infill.h"

static _Thread_local char text[512];

int err_set(int code, const char *format, ...)
{
	va_list args;

	va_start(args, format);
	errno = -code; /* for %m */
	vsnprintf(text, sizeof(text), format, args);
	va_end(args);
	return code;
}

const char *err_text(void)
{
	return text;
}

const char *infill_error(void)
{
	return text;
}

const char *infill_version(void)
{
	return INFILL_VERSION;
}
