/* SPDX-License-Identifier: MIT */
/*
 * poison.h: a session of this process's VM with KVM Userfault has failed: nobody
 * fills any more, and who waits for memory has to know.
 * Internal.
 */
#ifndef INFILL_POISON_H
#define INFILL_POISON_H

#include "session.h"

/*
 * vCPUs are told when they exit.  But one that is in KVM, which waits for the
 * userfaultfd, and any other thread that does, would wait for ever, and hold up who
 * ends the VM: all that is missing is poisoned, so that they get a memory error, and
 * what reads as zero is waited for no more.  Any thread, while others may be in the
 * middle of an install: they find the page there, and it is poisoned.
 */
void poison_missing(struct infill_session *s);

#endif
