/* SPDX-License-Identifier: MIT */
/*
 * warm.h: have the bytes that a trace names read into the page cache while
 * the VMM is still starting, so that the session finds them there.
 *
 * It only asks the kernel to read; nothing waits for it, and nothing depends
 * on it.  Internal.
 */
#ifndef INFILL_WARM_H
#define INFILL_WARM_H

#include "infill.h"

struct warm;

/*
 * Begin on a thread of its own, in the order of the trace at PATH; one that
 * cannot be used is the session's to report.  IMAGE must outlive it.  NULL:
 * there is no thread or no memory for it.
 */
struct warm *warm_start(struct infill_image *image, const char *path);

/* Stop, in the middle if need be.  NULL is ignored. */
void warm_stop(struct warm *warm);

#endif
