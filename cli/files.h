/* SPDX-License-Identifier: MIT */
/*
 * files.h: are the files that options name of use?  Looked at when the command
 * starts, as a VM that finds out is late.
 */
#ifndef CLI_FILES_H
#define CLI_FILES_H

#include "common.h"

/*
 * --trace and --record.  CLI_FAILED after a message: the trace cannot be read
 * or is none, or nothing can be recorded to where it was asked for.  A trace
 * that is damaged or of another image is warned of only: VMs do without it.
 */
int files_check(const struct common *common);

#endif
