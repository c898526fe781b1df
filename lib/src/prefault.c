/* SPDX-License-Identifier: MIT */
/*
 * prefault.c: KVM_PRE_FAULT_MEMORY and its errno rules.  Internal.
 */
#include <errno.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/resource.h>

#include "err.h"
#include "kvm_api.h"
#include "prefault.h"

#define TRIES 3 /* while a memslot is being changed */

/* What an errno says: 0: it is about the page that stopped it; else as prefault_range(). */
static int judge(int error)
{
	switch (error) {
	case EFAULT:     /* missing, or no memory is mapped there */
	case EHWPOISON:  /* the guest's access will tell */
	case ENOENT:     /* no memslot */
	case EACCES:
		return 0;
	case EAGAIN: /* a memslot is going away or moving */
	case EINTR:  /* the vCPU's thread has something else to do */
	case ENOMEM: /* for KVM's tables */
		return err_set(-EAGAIN, "KVM_PRE_FAULT_MEMORY: %s", strerror(error));
	}
	return err_set(-EOPNOTSUPP, "KVM_PRE_FAULT_MEMORY: %s",
		       error == ENOTTY || error == EINVAL || error == EOPNOTSUPP ?
			       "this VM does not support it" : "refused");
}

/* By the limit, or the host has none: the kernel says the same. */
static int no_memory(uint64_t gpa)
{
	struct rlimit limit = { RLIM_INFINITY, RLIM_INFINITY };

	getrlimit(RLIMIT_MEMLOCK, &limit);
	if (limit.rlim_cur == RLIM_INFINITY)
		return err_set(-ENOMEM, "KVM_PRE_FAULT_MEMORY: 0x%llx: the host, or the VMM's control "
					"group, has no memory left", (unsigned long long)gpa);
	return err_set(-ENOMEM, "KVM_PRE_FAULT_MEMORY: 0x%llx: no memory within RLIMIT_MEMLOCK, %llu KiB, "
				"which all pages of protected VMs count against: raise it, or give the "
				"VMM CAP_IPC_LOCK; or the host has none left", (unsigned long long)gpa,
		       (unsigned long long)limit.rlim_cur >> 10);
}

/* 0: as for any VM. */
static int judge_donation(int error, uint64_t gpa)
{
	switch (error) {
	case ENOMEM:
		return no_memory(gpa);
	case EHWPOISON:
		return err_set(-EHWPOISON, "KVM_PRE_FAULT_MEMORY: 0x%llx: the host's memory is broken there",
			       (unsigned long long)gpa);
	case EPERM:
		return err_set(-EPERM, "KVM_PRE_FAULT_MEMORY: 0x%llx: cannot be given to the protected VM: "
				       "another VM has it, or the vCPU is not finalized",
			       (unsigned long long)gpa);
	case EOPNOTSUPP:
		return err_set(-EOPNOTSUPP, "KVM_PRE_FAULT_MEMORY: 0x%llx: a protected VM can be given "
					    "anonymous memory and memfds, no other files",
			       (unsigned long long)gpa);
	}
	return 0;
}

int prefault_range(int vcpu_fd, uint64_t gpa, uint64_t bytes, bool protected, uint64_t *done)
{
	struct kvm_api_pre_fault range = { .gpa = gpa, .size = bytes };
	unsigned tries = 0;
	int err = 0, error;

	while (!err && range.size) {
		/* Progress is reported in the range, by 0. */
		if (!ioctl(vcpu_fd, KVM_API_PRE_FAULT, &range))
			continue;
		error = errno;
		if (error == EAGAIN && ++tries < TRIES)
			continue;
		err = protected ? judge_donation(error, range.gpa) : 0;
		if (!err)
			err = judge(error);
		if (!err)
			break;
	}
	*done = bytes - range.size;
	return err;
}
