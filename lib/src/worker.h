/* SPDX-License-Identifier: MIT */
/*
 * worker.h: the process that serves.  Internal; may change freely.
 */
#ifndef INFILL_WORKER_H
#define INFILL_WORKER_H

#include "serve.h"

/* How many files a vmset, its control requests and a few more can wait for. */
size_t worker_files(const struct server *server);

/*
 * Serve what comes through LINK, a SOCK_SEQPACKET socket to the supervisor.
 * Once the supervisor is gone, go on until the last VM ended.  For a process
 * that was just forked; never returns.
 */
_Noreturn void worker_run(const struct server *server, int link);

#endif
