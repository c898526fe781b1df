/* SPDX-License-Identifier: MIT */
/*
 * fakevmm.h: a VMM without a guest: memory, a userfaultfd made as Firecracker
 * makes it, the handshake, and threads that touch pages and give pages back.
 * Test support; may change freely.
 *
 * What a page must read as is known exactly at every moment.  Each page has
 * one atomic state: what it holds (image content, zero, or what was written
 * to it last), a version, and the operation that its owner is doing to it
 * (writing, removing).  Writers and removers claim a page before they change
 * it; readers claim nothing, look at the state before and after, and accept
 * the old and the new content only while an operation was under way.  So a
 * page that is removed while another thread touches it is judged too: never
 * may old content come back after a zero was seen.
 *
 * No test hangs: a thread that waits for one page longer than the limit
 * ($INFILL_TEST_HANG_S, 60 s) is torn out of the fault by a signal, and the
 * load fails with the page's number.
 */
#ifndef FAKEVMM_H
#define FAKEVMM_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "fakeimage.h"
#include "infill.h"

#define FAKEVMM_REGIONS_MAX 8

enum fakevmm_content {
	FAKEVMM_IMAGE,    /* what the image holds */
	FAKEVMM_REMOVED,  /* zeros */
	FAKEVMM_WRITTEN,  /* what the VMM wrote */
	FAKEVMM_POISONED, /* a touch raises SIGBUS: BUS_MCEERR_AR, if the kernel knows memory errors */
};

/* What other processes may look at while a VMM runs. */
struct fakevmm_shared {
	_Atomic uint64_t touches;   /* pages that were read and judged */
	_Atomic uint64_t unjudged;  /* pages that changed too often while they were read */
	_Atomic uint64_t writes;
	_Atomic uint64_t removed;   /* pages given back */
	_Atomic uint32_t removing;  /* madvise(2) calls under way */
	_Atomic uint32_t connected; /* the handshake was sent */
	_Atomic uint32_t verified;  /* all pages were right at the end */
	_Atomic uint32_t finish;    /* set by anybody: end the load, verify, exit */
	_Atomic uint32_t failed;
	char error[512];            /* valid once `failed` is set */
};

struct fakevmm_options {
	const struct fakeimage *image; /* copied */
	enum infill_backing backing;
	uint64_t page_size;            /* 0: 4096 */
	unsigned regions;              /* equal parts with gaps between them; 0: 1 */
	int cache_fd;                  /* > 0: memory is a private mapping of it */
	bool clone;                    /* fakevmm_fork(): ask the pager for its cache, map that */
	struct fakevmm_shared *shared; /* NULL: private to this process */
};

struct fakevmm_region {
	char *hva;
	uint64_t length;
	uint64_t gpa;
	uint64_t offset; /* in the image */
};

struct fakevmm_run;

struct fakevmm {
	struct fakeimage image;
	uint64_t page_size;
	uint64_t pages;
	enum infill_backing backing;
	bool private_file; /* mapping of a cache */
	unsigned regions;
	struct fakevmm_region region[FAKEVMM_REGIONS_MAX];
	int backing_fd; /* -1: none */
	int uffd;       /* -1: none */
	_Atomic uint64_t *state;
	struct fakevmm_shared *shared;
	struct fakevmm_shared own;
	struct fakevmm_run *run; /* the load under way */
};

enum fakevmm_pattern { FAKEVMM_SEQUENTIAL, FAKEVMM_STRIDED, FAKEVMM_RANDOM };

struct fakevmm_load {
	enum fakevmm_pattern pattern;
	unsigned threads;         /* that touch; 0: 1 */
	unsigned passes;          /* over the pages, each thread; 0: until told to finish */
	uint64_t first, count;    /* pages to touch; count 0: all from `first` on */
	unsigned write_every;     /* of so many touches one writes; 0: none */
	unsigned removers;        /* threads that give pages back while others touch */
	unsigned remove_pages;    /* longest range; 0: 64 */
	unsigned remove_pause_us;
	unsigned remove_ms;       /* removers end after so long; 0: with the touchers */
	bool lock_often;          /* one more thread keeps the address space locked again and
				     again: a removal is then delayed between the pager's
				     reading of its event and its effect */
	unsigned touch_pause_us;
	uint64_t seed;
};

/* Map the memory.  Dies if it cannot. */
struct fakevmm *fakevmm_new(const struct fakevmm_options *options);
void fakevmm_free(struct fakevmm *vmm);

/* The regions, for the library; the caller frees it. */
struct infill_memory *fakevmm_memory(const struct fakevmm *vmm);

/* Make the userfaultfd and register all regions; it is vmm->uffd.  0 or -errno. */
int fakevmm_register(struct fakevmm *vmm);

/*
 * Send the handshake as Firecracker does, over a new connection or on an open
 * one.  The connected socket, which the caller keeps open, or -errno.
 */
int fakevmm_handshake(struct fakevmm *vmm, const char *path);
int fakevmm_handshake_on(struct fakevmm *vmm, int sock);

/* The address of a page, and its offset in the image. */
char *fakevmm_page(const struct fakevmm *vmm, uint64_t page);
uint64_t fakevmm_offset(const struct fakevmm *vmm, uint64_t page);

/* Install pages with the VMM's own content, as it may do before the handshake. */
void fakevmm_populate(struct fakevmm *vmm, uint64_t first, uint64_t count);

/* Say what a page has to be from now on.  No load may run. */
void fakevmm_expect(struct fakevmm *vmm, uint64_t page, enum fakevmm_content content);

/* Give pages back (they must lie in one region) and expect zeros.  0 or -errno. */
int fakevmm_remove(struct fakevmm *vmm, uint64_t first, uint64_t count);

/* Start threads; finish waits for them: 0, or -1 and fakevmm_error(). */
void fakevmm_start(struct fakevmm *vmm, const struct fakevmm_load *load);
int fakevmm_finish(struct fakevmm *vmm);

/* Both. */
int fakevmm_run(struct fakevmm *vmm, const struct fakevmm_load *load);

/* Read every page once, in order, by one thread. */
int fakevmm_verify(struct fakevmm *vmm);

/* Read pages once, in order, by one thread. */
int fakevmm_touch(struct fakevmm *vmm, uint64_t first, uint64_t count);

/* Let a load without passes come to its end. */
void fakevmm_stop(struct fakevmm *vmm);

/* End the load under way although threads of it wait for pages: that is no failure. */
void fakevmm_abandon(struct fakevmm *vmm);

/* Wait until a thread of the load under way waits for PAGE.  False: none does by then. */
bool fakevmm_wait_waiting(struct fakevmm *vmm, uint64_t page, unsigned timeout_ms);

/* What went wrong first: "page 12 (image offset 0xc000): ..."; "" if nothing. */
const char *fakevmm_error(const struct fakevmm *vmm);

/* How many pages the kernel has in memory for this mapping (mincore is not it: pagemap). */
uint64_t fakevmm_present(const struct fakevmm *vmm);

/* Zeroed memory that forked processes share. */
struct fakevmm_shared *fakevmm_shared_new(unsigned count);

/*
 * A VMM in a process of its own: maps, registers, connects to SOCKET, runs
 * LOAD for RUN_MS (0: until its passes are done, or shared->finish), verifies
 * every page and exits 0, or 1 with shared->error.
 */
pid_t fakevmm_fork(const struct fakevmm_options *options, const struct fakevmm_load *load,
		   const char *socket, unsigned run_ms);

/* Wait for a process for so long (times FAKE_SLOWNESS).  Its wait status, or -ETIMEDOUT. */
int fake_wait(pid_t pid, unsigned timeout_ms);

/*
 * Reserve so many free 2 MiB pages; what was added is given back when the
 * process exits.  False: not possible here.
 */
bool fake_hugepages(uint64_t count);

/*
 * The process fails, naming WHAT, if this is not called again within SECONDS
 * (times FAKE_SLOWNESS).  0: off.
 */
void fake_deadline(const char *what, unsigned seconds);

/* CLOCK_MONOTONIC. */
uint64_t fake_now_ns(void);
void fake_sleep_ms(unsigned ms);

#endif
