/* SPDX-License-Identifier: MIT */
/*
 * memory.h: the guest's regions, checked and sorted by hva.  Internal.
 */
#ifndef INFILL_MEMORY_H
#define INFILL_MEMORY_H

#include <stdbool.h>
#include <stdint.h>

#include "infill.h"

struct infill_memory {
	unsigned count;
	struct infill_region region[INFILL_MEMORY_REGIONS_MAX]; /* sorted by hva */
	bool mapped[INFILL_MEMORY_REGIONS_MAX];                 /* by infill_memory_map() */
};

#endif
