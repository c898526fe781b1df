/* SPDX-License-Identifier: MIT */
/*
 * fdstore.h: the daemon without a supervisor: the service manager keeps each
 * VM's files in its fd store.  Internal; names of stored fds are an interface
 * between versions of infill.
 */
#ifndef INFILL_FDSTORE_H
#define INFILL_FDSTORE_H

#include "serve.h"

#ifdef INFILL_NO_SYSTEMD
#include <errno.h>

#include "err.h"

static inline int fdstore_check(void)
{
	return err_set(-EOPNOTSUPP, "fds cannot be stored: infill was built without libsystemd");
}

static inline int fdstore_listener(void)
{
	return -1;
}

static inline bool fdstore_cache(struct server *server)
{
	(void)server;
	return false;
}

static inline void fdstore_keep_cache(const struct server *server)
{
	(void)server;
}

static inline int fdstore_run(struct server *server)
{
	(void)server;
	return fdstore_check();
}
#else

/* Is there a service manager to keep fds?  0 or -ENOTCONN. */
int fdstore_check(void);

/* The listening socket that the service manager passed; -1: none. */
int fdstore_listener(void);

/* Take the cache's files that the service manager has kept.  False: it has none. */
bool fdstore_cache(struct server *server);

/* Let the service manager keep them. */
void fdstore_keep_cache(const struct server *server);

/* Serve until stopped, with the VMs that the service manager has kept.  0 or -errno. */
int fdstore_run(struct server *server);

#endif

#endif
