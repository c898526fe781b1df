/* SPDX-License-Identifier: MIT */
/* tests.h: tests of the userfault engine that are in files of their own; engine.c has the table. */
#ifndef INFILL_TEST_LAB_TESTS_H
#define INFILL_TEST_LAB_TESTS_H

#include "vmrig.h"

/* discard.c: pages that the guest gives up */
void test_discard(enum kind kind);
void test_discard_all(enum kind kind);
void test_discard_refused(enum kind kind);
void test_discard_race(enum kind kind);
void test_discard_touched(enum kind kind);
void test_dropped(enum kind kind);

/* failure.c: a session that has failed */
void test_failed(enum kind kind);
/*
 * Of a VM whose session has failed, at the end of a test: who touches PAGE gets a memory
 * error, if it is missing, or else reads it.
 */
void check_nobody_waits(struct rig *rig, uint32_t page, bool missing);

/* protected.c: protected VMs; KIND is ANON or MEMFD */
void test_protected_touch(enum kind kind);
void test_protected_fill(enum kind kind);
void test_protected_own_access(enum kind kind);
void test_protected_dropped(enum kind kind);
void test_protected_trace(enum kind kind);
void test_protected_refused(enum kind kind);
void test_protected_poison(enum kind kind);
void test_protected_memlock(enum kind kind);
void test_protected_killed(enum kind kind);
const char *why_no_protected_vms(void); /* NULL: there are some */

/* external.c: a pager in another process; of protected VMs, KIND is ANON or MEMFD */
void test_pager_gone(enum kind kind);
void test_protected_pager(enum kind kind);
void test_protected_pager_gone(enum kind kind);

/* recording.c: first touches by vCPUs and by others */
void test_recording_order(enum kind kind);
void test_recording_threads(enum kind kind);
void test_recording_same_pages(enum kind kind);

/* example.c: examples/userfault.c */
void test_example(enum kind kind);

/* shortage.c: no huge page is free; KIND is HUGETLB */
void test_shortage(enum kind kind);
void test_shortage_passes(enum kind kind);
void test_shortage_of_fill(enum kind kind);
void test_shortage_discard(enum kind kind);

#endif
