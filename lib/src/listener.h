/* SPDX-License-Identifier: MIT */
/*
 * listener.h: the daemon's Unix socket.  Internal; may change freely.
 */
#ifndef INFILL_LISTENER_H
#define INFILL_LISTENER_H

#include <sys/types.h>

/*
 * Listen on PATH, which only its owner may connect to.  What a daemon that
 * died has left there is removed; -EADDRINUSE if one lives, or if something
 * else is there.  DEV and INO become those of the file.  Changes the umask for
 * a moment: single-threaded processes only.  The fd or -errno.
 */
int listener_open(const char *path, dev_t *dev, ino_t *ino);

/* Remove PATH if it is still that file. */
void listener_remove(const char *path, dev_t dev, ino_t ino);

#endif
