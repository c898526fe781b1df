/* SPDX-License-Identifier: MIT */
/*
 * prefault.c: KVM_PRE_FAULT_MEMORY and its errno rules.  Internal.
 */
#include <errno.h>
#include <sys/ioctl.h>

#include "err.h"
#include "kvm_api.h"
#include "prefault.h"

#define TRIES 3 /* while a memslot is being changed */

/* What an errno says about the page that stopped it. */
static int judge(int error, unsigned *tries)
{
	switch (error) {
	case EAGAIN: /* a memslot is going away or moving */
		return ++*tries < TRIES ? -EAGAIN : 0;
	case EINTR:      /* the vCPU's thread has something else to do */
	case EFAULT:     /* missing, or no memory is mapped there */
	case EHWPOISON:  /* the guest's access will tell */
	case ENOENT:     /* no memslot */
	case EACCES:
	case ENOMEM:
		return 0;
	}
	return err_set(-EOPNOTSUPP, "KVM_PRE_FAULT_MEMORY: %s",
		       error == ENOTTY || error == EINVAL || error == EOPNOTSUPP ?
			       "this VM does not support it" : "refused");
}

int prefault_range(int vcpu_fd, uint64_t gpa, uint64_t bytes, uint64_t *done)
{
	struct kvm_api_pre_fault range = { .gpa = gpa, .size = bytes };
	unsigned tries = 0;
	int err = 0;

	while (!err && range.size) {
		/* Progress is reported in the range, by 0. */
		if (!ioctl(vcpu_fd, KVM_API_PRE_FAULT, &range))
			continue;
		err = judge(errno, &tries);
		if (!err)
			break;
		if (err == -EAGAIN)
			err = 0;
	}
	*done = bytes - range.size;
	return err;
}
