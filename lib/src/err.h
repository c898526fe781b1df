/* SPDX-License-Identifier: MIT */
/*
 * err.h: the reason of this thread's last failure, for infill_error().
 * Internal; may change freely.
 */
#ifndef INFILL_ERR_H
#define INFILL_ERR_H

/*
 * Remember "what: why" for this thread and return CODE, a -errno.  The text is
 * cut at 511 bytes.  A text that ends in ": %m" gets the text of CODE.
 */
int err_set(int code, const char *format, ...) __attribute__((format(printf, 2, 3), cold));

/* The text, "" if none. */
const char *err_text(void);

#endif
