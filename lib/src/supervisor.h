/* SPDX-License-Identifier: MIT */
/*
 * supervisor.h: the process that keeps VMs' files while workers come and go.
 * Internal; may change freely.
 */
#ifndef INFILL_SUPERVISOR_H
#define INFILL_SUPERVISOR_H

#include "serve.h"

/* Serve until stopped.  0 or -errno. */
int supervisor_run(struct server *server);

#endif
