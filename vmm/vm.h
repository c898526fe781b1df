/* SPDX-License-Identifier: MIT */
/*
 * vm.h: one VM as the reference VMM sees it: its fds, its memory, its vCPUs,
 * and the devices that all architectures have.
 *
 * Threads.  main creates the VM and its vCPUs, then starts one thread for each
 * vCPU; only that thread issues the vCPU's ioctls while it runs.  To pause, main
 * stops every vCPU thread outside of KVM_RUN (vm_pause()); from then until
 * vm_resume() main alone may use all fds, and nothing in the guest changes.
 */
#ifndef INFILL_VMM_VM_H
#define INFILL_VMM_VM_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#include "kvm_api.h"

#define VCPUS_MAX 16
#define REGIONS_MAX 4
#define VM_EXITS 64 /* kvm_run.exit_reason that are counted */

struct vm;
struct state;

/* What a vCPU does next; all but NEXT_RUN end the VM. */
enum next { NEXT_RUN, NEXT_POWER_OFF, NEXT_RESET, NEXT_FAIL, NEXT_STOP };

struct vcpu {
	struct vm *vm;
	unsigned index;
	int fd;
	int stat_fd; /* KVM's statistics; -1: none */
	struct kvm_run *run;
	size_t run_size;
	pthread_t thread;
	bool started;
	_Atomic uint64_t exits[VM_EXITS]; /* by reason; its thread counts, any reads */
	void *arch; /* what the architecture keeps; may stay NULL */
};

enum memory_backing { MEMORY_MEMFD, MEMORY_HUGETLB, MEMORY_GUEST_MEMFD, MEMORY_ANONYMOUS };
#define MEMORY_BACKINGS 4

/* One memslot; guest-physical memory may lie in several (x86: below and above 4 GiB). */
struct region {
	uint32_t slot;
	uint64_t gpa, bytes;
	uint64_t offset; /* of its content in the memory file */
	uint8_t *hva;
	int fd;          /* memfd, or guest_memfd, that HVA maps from `fd_offset` on; -1: none */
	uint64_t fd_offset;
};

struct vm {
	int kvm, fd;
	int stat_fd; /* KVM's statistics; -1: none */
	uint64_t memory_bytes;
	enum memory_backing backing;
	bool is_protected; /* its memory is the guest's alone (pKVM) */
	bool protectable;  /* it has no feature that a protected VM has not */
	const struct state *saved; /* what it is restored from; NULL: it is booted */
	struct region region[REGIONS_MAX];
	unsigned regions;
	struct vcpu vcpu[VCPUS_MAX];
	unsigned vcpus;
	struct serial *serial;
	void *arch; /* what the architecture keeps; may stay NULL */

	/*
	 * Who answers KVM_EXIT_MEMORY_FAULT, on the vCPU's thread; NULL: it is an
	 * error.  Set by an engine before vm_start().
	 */
	enum next (*memory_fault)(struct vcpu *vcpu, void *arg);
	void *memory_fault_arg;
	/* Have all of memory there before it is saved; 0, or -errno after vmm_error(); NULL: it is. */
	int (*make_whole)(void *arg);
	void *make_whole_arg;

	/*
	 * Lets vCPUs go that wait in KVM_RUN for a page, which nobody may provide any more.
	 * After vm_end(), when all have been told to stop; NULL: none waits there.
	 */
	void (*let_go)(void *arg);
	void *let_go_arg;

	/*
	 * Writes what the pager has done as a JSON object, on main's thread; NULL: there
	 * is none.  Set by an engine before vm_start().
	 */
	void (*pager_stat)(FILE *out, void *arg);
	void *pager_stat_arg;

	uint64_t run_ns;      /* CLOCK_MONOTONIC before the first KVM_RUN */

	pthread_mutex_t lock; /* the next four */
	pthread_cond_t changed;
	bool pause;           /* vCPUs shall park */
	unsigned parked;      /* so many have */
	enum next end;        /* NEXT_RUN until the VM has ended */
	int end_fd;           /* readable from then on */
};

struct vm_options {
	uint64_t memory_bytes;
	unsigned vcpus;
	enum memory_backing backing;
	bool is_protected; /* a VM of pKVM whose memory the host cannot read; backing: anonymous */
	bool protectable;  /* to be restored as one later */
	const struct state *saved; /* what it is to be restored from; NULL: it is to be booted */
	/* Maps guest memory: sets hva and fd.  NULL: memory_map(), by `backing`. */
	int (*map)(struct vm *vm, struct region *region, void *arg);
	void *map_arg;
};

/*
 * Create the VM, its memory, and its vCPUs, which do not run.  0 or -errno after
 * vmm_error(); vm_stop() and vm_destroy() are due in both cases.
 */
int vm_create(struct vm *vm, const struct vm_options *options);

/* Start the vCPUs' threads and the console's input; they run at once. */
int vm_start(struct vm *vm);

/* See above.  Main only, not twice.  vm_pause() returns early when the VM ends: ask vm_state(). */
void vm_pause(struct vm *vm);
void vm_resume(struct vm *vm);

/* The VM has ended, END says how; the first one counts.  Other vCPUs go on until vm_stop(). */
void vm_end(struct vm *vm, enum next end);

/* What was given to the vm_end() that counts, NEXT_RUN before it.  Any thread. */
enum next vm_state(struct vm *vm);

/* End all threads; memory stays mapped.  Then vm_destroy(): unmap and close everything. */
void vm_stop(struct vm *vm);
void vm_destroy(struct vm *vm);

/* Where GPA is in this process, if LENGTH bytes from there on are memory; else NULL. */
void *vm_memory(struct vm *vm, uint64_t gpa, uint64_t length);

#endif
