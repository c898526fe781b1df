/* SPDX-License-Identifier: MIT */
/*
 * host_kvm.h: what KVM can do here.  Internal; any thread.
 */
#ifndef INFILL_HOST_KVM_H
#define INFILL_HOST_KVM_H

#include "infill.h"

/* Fill in the fields of HOST that begin with kvm_; they are zero before. */
void host_probe_kvm(struct infill_host *host);

/* The mode that a line of the kernel's log, or the kernel's command line, tells; else UNKNOWN. */
enum infill_kvm_mode host_kvm_mode_logged(const char *line);
enum infill_kvm_mode host_kvm_mode_asked(const char *command_line);

#endif
