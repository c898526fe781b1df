/* SPDX-License-Identifier: MIT */
/*
 * fakekvm.h: a VM with KVM Userfault and a pager in another process, where
 * there is no KVM: sealed memfds in the place of guest_memfds, and threads in
 * the place of vCPUs, which look at a page's bit as KVM does, ask over a
 * channel while it is set, and then check the page's every word.  Pages that
 * they write must never change again by themselves.
 * Test support; may change freely.
 */
#ifndef FAKEKVM_H
#define FAKEKVM_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "fakeimage.h"
#include "infill.h"

#define FAKEKVM_REGIONS_MAX 4
#define FAKEKVM_THREADS_MAX 8
#define FAKEKVM_LOCKS 32 /* TSan follows 64 that one thread holds */

struct remote;

struct fakekvm_options {
	const struct fakeimage *image; /* copied */
	unsigned regions;              /* 0: 1 */
	unsigned threads;              /* vCPUs; 0: 1 */
	bool ordinary;                 /* the last region is anonymous memory with a userfaultfd */
	bool protected;                /* says that the VM is; all its memory is ordinary */
};

struct fakekvm_region {
	char *hva;
	uint64_t length, gpa, offset;
	_Atomic uint64_t *bitmap;
	int file; /* -1: ordinary memory */
};

struct fakekvm {
	struct fakeimage image;
	unsigned regions, threads;
	struct fakekvm_region region[FAKEKVM_REGIONS_MAX];
	uint64_t pages;
	char *reserved; /* where the regions are */
	int bitmap_fd, uffd; /* uffd -1: none */
	bool protected;
	struct remote *remote;
	_Atomic uint32_t *version; /* of each page: 0: the image's; 1: poisoned; else what was written */
	pthread_mutex_t lock[FAKEKVM_LOCKS];
	_Atomic uint64_t exits, touches;
	_Atomic uint64_t told; /* pages that answers said are there, all of them together */
	_Atomic bool stop;
	/* The load under way. */
	pthread_t thread[FAKEKVM_THREADS_MAX];
	unsigned running, write_every;
	_Atomic int error; /* the first -errno that a thread was told */
	char wrong[200];   /* what the first thread found that must not be; "" */
};

#define FAKEKVM_POISONED 1u
#define FAKEKVM_ZERO (1u << 31) /* given up; what is written there later counts on from here */

/* Map the memory; dies if it cannot. */
struct fakekvm *fakekvm_new(const struct fakekvm_options *options);
void fakekvm_free(struct fakekvm *k);

/* As remote_connect(). */
int fakekvm_connect(struct fakekvm *k, const char *socket);

/*
 * As a vCPU: access PAGE until its bit is clear, check it, write it if asked.
 * 0; -EUCLEAN: it is not what it must be, see k->wrong; else what the pager said.
 */
int fakekvm_touch(struct fakekvm *k, unsigned thread, uint64_t page, bool write);

/*
 * As a VMM with a balloon: COUNT pages from PAGE on, of one region, are given up
 * and have to read as zero.  0, or what the pager said.
 */
int fakekvm_discard(struct fakekvm *k, uint64_t page, uint64_t count);

/*
 * Is all of the ordinary memory there whose bits are clear, without anybody
 * having to wait for it?  0, or -EUCLEAN, see k->wrong.
 */
int fakekvm_look(struct fakekvm *k);

/* Every page, by one thread. */
int fakekvm_verify(struct fakekvm *k);

/* All threads touch pages at random, one of WRITE_EVERY is written (0: none), until the end. */
void fakekvm_start(struct fakekvm *k, unsigned write_every);
int fakekvm_finish(struct fakekvm *k);

/* Wait until all threads have returned, because they were told an error. */
int fakekvm_join(struct fakekvm *k);

/* Pages with a bit that is set. */
uint64_t fakekvm_missing(const struct fakekvm *k);

/* Bytes of memory that the guest memory in memfds takes. */
uint64_t fakekvm_memory_bytes(const struct fakekvm *k);

#endif
