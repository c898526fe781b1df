/* SPDX-License-Identifier: MIT */
/*
 * restore.h: the command `restore`.
 */
#ifndef INFILL_VMM_RESTORE_H
#define INFILL_VMM_RESTORE_H

#include "engine.h"

struct restore_options {
	const struct engine_ops *engine;
	struct engine_options engine_options;
	const char *state;
	const char *control; /* NULL: none */
	enum memory_backing backing;
	bool is_protected; /* with backing anonymous */
};

/* Restore and run to the end; the exit status. */
int restore(const struct restore_options *options);

#endif
