/* SPDX-License-Identifier: MIT */
/*
 * el2trace.h: counts how often EL2 was entered, by the trace that it keeps itself (tracefs'
 * remotes/hypervisor; Documentation/trace/remotes.rst). A kernel has it with NVHE_EL2_DEBUG,
 * so the debug kernel. One count at a time, on the whole machine. What fails ends the program
 * with a line that says what. To be compiled beside a case's program.
 */
#ifndef LAB_PROGRAMS_EL2TRACE_H
#define LAB_PROGRAMS_EL2TRACE_H

#include <stdbool.h>
#include <stdint.h>

struct el2trace {
	uint64_t hypercalls; /* of the host, KVM's and PSCI's */
	uint64_t guest;      /* a guest trapped, or was interrupted */
	uint64_t host;       /* the host touched what its stage-2 did not map, or trapped otherwise */
};

/* Does this kernel keep such a trace? */
bool el2trace_possible(void);

void el2trace_begin(void);

/* Entries since then. One that the trace has lost is an error. */
void el2trace_end(struct el2trace *count);

#endif
