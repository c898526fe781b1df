/* SPDX-License-Identifier: MIT */
/*
 * fakefuse.h: an image file on a file system that fails and stalls where it
 * is told to: a FUSE server of one file, in a process and a mount namespace
 * of its own.  Reads of bad ranges are real EIOs of the kernel, reads of held
 * ranges really wait.  Test support; may change freely.
 */
#ifndef FAKEFUSE_H
#define FAKEFUSE_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "fakeimage.h"

struct fakefuse_range {
	_Atomic uint64_t offset;
	_Atomic uint64_t length; /* 0: none */
};

/* Shared with the server; may be changed while it runs. */
struct fakefuse_control {
	struct fakefuse_range bad[8];  /* reads of it fail with EIO */
	struct fakefuse_range held;    /* reads of it wait until this is empty */
	_Atomic uint64_t reads;        /* requests that reached the server */
	_Atomic uint64_t holding;      /* of them, waiting now */
	_Atomic uint64_t failed;       /* of them, answered with EIO */
};

struct fakefuse {
	struct fakeimage image;
	struct fakefuse_control *control;
	pid_t server;
	int fd;         /* the file, read-only */
	char path[512];  /* a path to it for other processes (through /proc) */
};

/*
 * Start a server for the content of IMAGE (its file is not needed).
 * 0 or -errno: no /dev/fuse, or no right to mount.
 */
int fakefuse_start(struct fakefuse *fuse, const struct fakeimage *image);

/* End it.  Reads that are under way fail. */
void fakefuse_stop(struct fakefuse *fuse);

#endif
