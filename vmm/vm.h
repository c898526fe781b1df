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

#include <linux/kvm.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define VCPUS_MAX 16
#define REGIONS_MAX 4

struct vm;

struct vcpu {
	struct vm *vm;
	unsigned index;
	int fd;
	struct kvm_run *run;
	size_t run_size;
	pthread_t thread;
	bool started;
	void *arch; /* what the architecture keeps; may stay NULL */
};

enum memory_backing { MEMORY_MEMFD, MEMORY_HUGETLB, MEMORY_GUEST_MEMFD };

/* One memslot; guest-physical memory may lie in several (x86: below and above 4 GiB). */
struct region {
	uint32_t slot;
	uint64_t gpa, bytes;
	uint64_t offset; /* of its content in the memory file */
	uint8_t *hva;
	int fd;          /* memfd, or guest_memfd, that HVA maps from `fd_offset` on */
	uint64_t fd_offset;
};

struct vm {
	int kvm, fd;
	uint64_t memory_bytes;
	enum memory_backing backing;
	struct region region[REGIONS_MAX];
	unsigned regions;
	struct vcpu vcpu[VCPUS_MAX];
	unsigned vcpus;
	struct serial *serial;
	void *arch; /* what the architecture keeps; may stay NULL */
};

/* Where GPA is in this process, if LENGTH bytes from there on are memory; else NULL. */
void *vm_memory(struct vm *vm, uint64_t gpa, uint64_t length);

#endif
