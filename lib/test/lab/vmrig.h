/* SPDX-License-Identifier: MIT */
/*
 * vmrig.h: what the tests of the userfault engine share: a VM with one memslot
 * that a session serves from an image, vCPUs that visit its pages, the check
 * of every byte, and the line of TAP.  A test is a function of a file here, and
 * a line in engine.c's table.
 */
#ifndef INFILL_TEST_VMRIG_H
#define INFILL_TEST_VMRIG_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "guest.h"
#include "infill.h"
#include "kvm_api.h"

#define PAGES 1024u
#define BYTES ((size_t)PAGES * GUEST_PAGE)
#define WORDS (GUEST_PAGE / 4)
#define VCPUS 4u
#define SLOT_WORD 4u   /* of a page: the first that a vCPU counts its visits in */
#define HOLE_FROM 256u /* pages of the image that are a hole ... */
#define HOLE_TO 320u
#define ZERO_FROM 320u /* ... and pages of zeros behind it */
#define ZERO_TO 336u
#define HUGE_BYTES (2u << 20)

/* What the memory is; HUGETLB only where a test says so. */
enum kind { ANON, MEMFD, GUEST_MEMFD, KINDS, HUGETLB = KINDS };
extern const char *const kind_name[];

/* ---- a result -------------------------------------------------------------- */

extern bool bad; /* this test has failed */

__attribute__((format(printf, 1, 2))) void wrong(const char *format, ...);

#define CHECK(condition, ...)                                        \
	do {                                                         \
		if (!(condition)) {                                  \
			wrong("line %d: %s", __LINE__, #condition); \
			wrong(__VA_ARGS__);                          \
		}                                                    \
	} while (0)

/* ---- the image --------------------------------------------------------------- */

extern const char image_path[], trace_path[];

/* Make it anew; an fd, or -1. */
int make_image(void);

/* The first word of a page of the image; the following ones count on from it, but for 0. */
uint32_t word_of(uint32_t page);
uint32_t sum_of_all(void);

/*
 * Have the kernel take a page of the image for broken: reading it fails then,
 * until the file is another one.
 */
void break_image(uint32_t page);
void mend_image(void);

/* ---- one VM ------------------------------------------------------------------ */

struct rig {
	enum kind kind;
	struct guest guest;
	struct guest_vcpu vcpu[VCPUS];
	int fd; /* memfd or guest_memfd; -1 */
	uint32_t *memory;
	struct infill_image *image;
	struct infill_pool *pool;
	struct infill_memory *regions;
	struct infill_session *session;
	struct infill_vcpu *filler[VCPUS];
	struct infill_region region;
};

#define OPTIONS(...) \
	(&(struct infill_session_options){ .size = sizeof(struct infill_session_options), __VA_ARGS__ })

/* Of a recording that ends with all pages, and not because the machine stands still. */
#define RECORD_ALL                                           \
	.record = trace_path, .record_pages = PAGES,         \
	.record_settle_ns = 100000000000, .record_time_ns = 1000000000000

/* False, with the reason said: what is needed for the test is not there. */
bool set_up(struct rig *rig, enum kind kind, const struct infill_session_options *options,
	    unsigned vcpus);

/* The same without a session and vCPUs, which the test makes. */
bool set_up_vm(struct rig *rig, enum kind kind);

/* set_up() with a pager in another process, which listens at PAGER. */
bool set_up_connected(struct rig *rig, enum kind kind, const char *pager,
		      const struct infill_session_options *options, unsigned vcpus);

/* The same for a protected VM; PAGER NULL: this process is it. */
bool set_up_protected(struct rig *rig, enum kind kind, const char *pager,
		      const struct infill_session_options *options, unsigned vcpus);
void tear_down(struct rig *rig);

/*
 * Whether there is another round, the one after ROUND others, of a test that tries a
 * race MOST times: on a slow machine, as a debug kernel in QEMU, as many as fit into
 * some seconds, and three at least.  Ask with 0 first.
 */
bool another_round(unsigned round, unsigned most);

struct infill_counters counters_of(struct rig *rig);

/* Not with shadow paging. */
bool can_prefault(const struct rig *rig);

/* Run a vCPU until its visit is over; 0 and the sum, or what infill_vcpu_exit() said. */
int run(struct rig *rig, unsigned id, uint32_t *sum);

/* The same, or -errno of KVM_RUN if that fails otherwise, -EPROTO for another exit. */
int try_run(struct rig *rig, unsigned id, uint32_t *sum);

/* The first vCPU begins with page 0, and goes through all pages in their order. */
int run_in_order(struct rig *rig, uint32_t *sum);

/* The same, but that PAGE cannot be read, which the vCPU is told, and told again. */
void run_into_poison(struct rig *rig, uint32_t page);

/* A vCPU that goes through all pages, on a thread of its own. */
struct visitor {
	struct rig *rig;
	unsigned id;
	uint32_t start, step, factor, visits;
	uint32_t sum;
	int ret; /* of run() */
};
void *visit(void *visitor);

/* Each of VCPUS goes through all pages once, by another way, and sees the image. */
void visit_all(struct rig *rig, unsigned vcpus, uint32_t step);

/*
 * Each of VCPUS goes through all pages and compares every word: guest_verify().
 * FACTOR as there; VISITS: how often it did before.
 */
void verify_all(struct rig *rig, unsigned vcpus, uint32_t factor, uint32_t visits);

/* Every byte is the image's, but for VISITS in the slot of each of the first VCPUS. */
void check_page(struct rig *rig, uint32_t page, bool zero, unsigned vcpus, uint32_t visits);
void check_memory(struct rig *rig, unsigned vcpus, uint32_t visits);

#endif
