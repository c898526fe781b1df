/* SPDX-License-Identifier: MIT */
/*
 * host_kvm.c: what KVM can do here.  Internal.  A capability may depend on the
 * kind of VM, so one is made for the questions, and is gone when its fd is
 * closed.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/utsname.h>
#include <unistd.h>

#include "host_kvm.h"
#include "kvm_api.h"

#ifndef KVM_CAP_ARM_SUPPORTED_BLOCK_SIZES /* Linux 6.4 */
#define KVM_CAP_ARM_SUPPORTED_BLOCK_SIZES 229
#endif
#define LOG "/dev/kmsg"
#define COMMAND_LINE "/proc/cmdline"
#define KERNEL_LEVELS 8 /* records of lower numbers come from the kernel, not from who wrote to LOG */

/* ---- the mode of arm64 -------------------------------------------------------- */

enum infill_kvm_mode host_kvm_mode_logged(const char *line)
{
	const char *text = strstr(line, ";kvm [");

	if (!text || atoi(line) >= KERNEL_LEVELS || !strstr(text, " mode initialized successfully"))
		return INFILL_KVM_MODE_UNKNOWN;
	if (strstr(text, "Protected"))
		return INFILL_KVM_MODE_PROTECTED;
	if (strstr(text, "nVHE") || strstr(text, "hVHE"))
		return INFILL_KVM_MODE_NVHE;
	if (strstr(text, "VHE+NV"))
		return INFILL_KVM_MODE_NESTED;
	return strstr(text, "VHE") ? INFILL_KVM_MODE_VHE : INFILL_KVM_MODE_UNKNOWN;
}

enum infill_kvm_mode host_kvm_mode_asked(const char *command_line)
{
	static const char key[] = "kvm-arm.mode=";
	static const struct {
		const char *word;
		enum infill_kvm_mode mode;
	} words[] = {
		{ "protected", INFILL_KVM_MODE_PROTECTED },
		{ "nested", INFILL_KVM_MODE_NESTED },
		{ "nvhe", INFILL_KVM_MODE_NVHE },
	};
	enum infill_kvm_mode mode = INFILL_KVM_MODE_UNKNOWN;

	/* The last one counts. */
	for (const char *at = command_line; (at = strstr(at, key));) {
		at += sizeof(key) - 1;
		mode = INFILL_KVM_MODE_UNKNOWN;
		for (size_t i = 0; i < sizeof(words) / sizeof(words[0]); i++)
			if (!strncmp(at, words[i].word, strlen(words[i].word)))
				mode = words[i].mode;
	}
	return mode;
}

/* The log says what came of it; it may not be readable, or have lost its beginning. */
static uint32_t probe_mode(void)
{
	uint32_t mode = INFILL_KVM_MODE_UNKNOWN;
	char line[8192];
	ssize_t n;
	FILE *file;
	int fd = open(LOG, O_RDONLY | O_NONBLOCK | O_CLOEXEC);

	/* A record at a time; EPIPE: some were overwritten meanwhile. */
	while (fd >= 0 && !mode && ((n = read(fd, line, sizeof(line) - 1)) > 0 || errno == EPIPE)) {
		line[n > 0 ? n : 0] = '\0';
		mode = host_kvm_mode_logged(line);
	}
	if (fd >= 0)
		close(fd);
	file = mode ? NULL : fopen(COMMAND_LINE, "re");
	if (file && fgets(line, sizeof(line), file))
		mode = host_kvm_mode_asked(line);
	if (file)
		fclose(file);
	return mode;
}

/* ---- capabilities --------------------------------------------------------------- */

static int new_vm(int kvm)
{
	unsigned long type = 0;

#ifdef __aarch64__
	int bits = ioctl(kvm, KVM_CHECK_EXTENSION, KVM_CAP_ARM_VM_IPA_SIZE);

	if (bits > 0 && bits < 40)
		type = KVM_VM_TYPE_ARM_IPA_SIZE((unsigned long)bits);
#endif
	return ioctl(kvm, KVM_CREATE_VM, type);
}

/* What FD, of KVM or a VM, says to a capability; 0: it has none of it. */
static int32_t capability(int fd, unsigned long number)
{
	int value = ioctl(fd, KVM_CHECK_EXTENSION, number);

	return value < 0 ? 0 : value;
}

static bool is_arm64(const struct utsname *name)
{
	return !strcmp(name->machine, "aarch64");
}

/*
 * Can a protected VM be made?  To try would taint the kernel.  Under pKVM every
 * kernel from 7.1 on makes them; there a VM of any kind has no block sizes to
 * choose from, and elsewhere each has (kvm_pkvm_ext_allowed()): that pKVM was
 * asked for does not mean that it runs.
 */
static bool has_protected(const struct infill_host *host, const struct utsname *name, int fd)
{
	int major = 0, minor = 0;

	if (host->kvm_mode != INFILL_KVM_MODE_PROTECTED ||
	    sscanf(name->release, "%d.%d", &major, &minor) != 2)
		return false;
	return (major > 7 || (major == 7 && minor >= 1)) &&
	       !capability(fd, KVM_CAP_ARM_SUPPORTED_BLOCK_SIZES);
}

void host_probe_kvm(struct infill_host *host)
{
	int kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC), vm, fd;
	struct utsname name;

	if (kvm < 0) {
		host->kvm_error = -errno;
		return;
	}
	host->kvm_api = ioctl(kvm, KVM_GET_API_VERSION, 0);
	if (host->kvm_api < 0) {
		host->kvm_error = -errno;
		close(kvm);
		return;
	}
	vm = new_vm(kvm);
	host->kvm_vm_error = vm < 0 ? -errno : 0;
	fd = vm < 0 ? kvm : vm;
	host->kvm_pre_fault = capability(fd, KVM_CAP_PRE_FAULT_MEMORY);
	/* The number is the series', far from those that releases have given away. */
	host->kvm_userfault = capability(fd, KVM_CAP_USERFAULT);
	host->kvm_guest_memfd = (uint32_t)capability(fd, KVM_CAP_GUEST_MEMFD_FLAGS);
	if (!uname(&name) && is_arm64(&name)) {
		host->kvm_mode = probe_mode();
		host->kvm_protected = has_protected(host, &name, fd);
	}
	if (vm >= 0)
		close(vm);
	close(kvm);
}
