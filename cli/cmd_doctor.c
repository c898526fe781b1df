/* SPDX-License-Identifier: MIT */
/*
 * cmd_doctor.c: `infill doctor`: what this host can do, and the remedy for
 * each thing that is missing.  A check is one function that fills in one line.
 */
#include <errno.h>
#include <getopt.h>
#include <inttypes.h>
#include <jansson.h>
#include <linux/capability.h>
#include <pwd.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "cli.h"
#include "infill.h"

#define CHECKS_MAX 24

/* GUEST_MEMFD_FLAG_*, which headers before Linux 6.18 lack. */
#define GUEST_MEMFD_MMAP 1u
#define GUEST_MEMFD_INIT_SHARED 2u

enum verdict {
	OK,
	MISSING,  /* something is lost without it */
	FATAL,    /* no VM can be served without it */
};

struct check {
	const char *name;
	enum verdict verdict;
	char found[160];
	char remedy[800];  /* lines; empty: none needed */
};

struct report {
	struct infill_host host;
	int seccomp;           /* filters on this process, 0: none */
	uint64_t capabilities; /* effective ones, a bit each */
	struct check check[CHECKS_MAX];
	unsigned count;
	bool able;
};

enum { KEY_JSON = CLI_FIRST_KEY };

static const struct cli_option doctor_options[] = {
	{ "json", KEY_JSON, NULL, "print one JSON object" },
	{ 0 },
};

/* UFFD_FEATURE_*: newer ones are not in the headers of every system that this builds on. */
static const struct {
	uint64_t bit;
	const char *name, *linux_version, *use;
	bool fatal;
} features[] = {
	{ 1u << 3, "EVENT_REMOVE", "4.11", "balloons, and infill at all", true },
	{ 1u << 5, "MISSING_SHMEM", "4.11", "memory in a memfd, as infill attach uses", true },
	{ 1u << 4, "MISSING_HUGETLBFS", "4.11", "huge pages", false },
	{ 1u << 10, "MINOR_SHMEM", "5.14", "clones that share memory (--shared)", false },
	{ 1u << 14, "POISON", "6.6", "a memory error in the guest where a page cannot be read",
	  false },
};

/* ---- checks ------------------------------------------------------------------- */

static struct check *add(struct report *r, const char *name, enum verdict verdict,
			 const char *format, ...) __attribute__((format(printf, 4, 5)));
static struct check *add(struct report *r, const char *name, enum verdict verdict,
			 const char *format, ...)
{
	struct check *check = &r->check[r->count++];
	va_list args;

	check->name = name;
	check->verdict = verdict;
	va_start(args, format);
	vsnprintf(check->found, sizeof(check->found), format, args);
	va_end(args);
	return check;
}

static void remedy(struct check *check, const char *format, ...)
	__attribute__((format(printf, 2, 3)));
static void remedy(struct check *check, const char *format, ...)
{
	va_list args;

	va_start(args, format);
	vsnprintf(check->remedy, sizeof(check->remedy), format, args);
	va_end(args);
}

/* What /proc says of this process. */
static void read_status(struct report *r)
{
	FILE *file = fopen("/proc/self/status", "re");
	char line[256];

	while (file && fgets(line, sizeof(line), file)) {
		sscanf(line, "Seccomp: %d", &r->seccomp);
		sscanf(line, "CapEff: %" SCNx64, &r->capabilities);
	}
	if (file)
		fclose(file);
}

/* The user that lacks something, as setfacl(1) and usermod(8) take it. */
static const char *user_name(void)
{
	static char number[16];
	const struct passwd *user = getpwuid(geteuid());

	snprintf(number, sizeof(number), "%u", geteuid());
	return user ? user->pw_name : number;
}

/*
 * Who opens the userfaultfd is the VMM, which shares nothing with this process
 * but its user; file capabilities would keep the shim from being preloaded.
 */
static void remedy_permission(struct report *r, struct check *check)
{
	if (r->seccomp && (!geteuid() || r->host.sysctl == 1)) {
		remedy(check,
		       "a seccomp filter forbids it: allow the system call `userfaultfd` in the "
		       "container's\nseccomp profile, or give the container --device "
		       "/dev/userfaultfd");
		return;
	}
	remedy(check,
	       "the VMM opens it: under infill attach what runs after --, with infill serve\n"
	       "Firecracker; infill serve itself needs no right. For the VMM, any one of:\n"
	       "  setfacl -m u:%.32s:rw /dev/userfaultfd     (Linux 6.1 or later)\n"
	       "  sysctl -w vm.unprivileged_userfaultfd=1\n"
	       "  setpriv --reuid USER --regid GROUP --init-groups --inh-caps +sys_ptrace \\\n"
	       "    --ambient-caps +sys_ptrace infill attach ..., as root\n"
	       "  AmbientCapabilities=CAP_SYS_PTRACE in its systemd service\n"
	       "but not setcap, which lets infill attach preload nothing%s",
	       user_name(),
	       r->seccomp ? "\nand `userfaultfd` in the container's seccomp profile" : "");
}

static void check_userfaultfd(struct report *r)
{
	static const char name[] = "userfaultfd";
	const struct infill_host *host = &r->host;

	switch (host->userfaultfd) {
	case INFILL_USERFAULTFD_SYSCALL:
		add(r, name, OK, "by system call%s", geteuid() ? "" : ", as root");
		break;
	case INFILL_USERFAULTFD_DEVICE:
		add(r, name, OK, "by /dev/userfaultfd");
		break;
	case INFILL_USERFAULTFD_USER_ONLY:
		remedy_permission(r, add(r, name, FATAL,
					 "for faults from user mode only, which is not "
					 "enough for KVM"));
		break;
	default:
		if (host->userfaultfd_error == -ENOSYS)
			remedy(add(r, name, FATAL, "this kernel has none"),
			       "run a kernel with CONFIG_USERFAULTFD=y");
		else
			remedy_permission(r, add(r, name, FATAL, "%s",
						 strerror(-host->userfaultfd_error)));
	}
}

static void check_permission(struct report *r)
{
	const struct infill_host *host = &r->host;

	if (host->sysctl < 0)
		add(r, "unprivileged", OK, "no vm.unprivileged_userfaultfd");
	else
		add(r, "unprivileged", OK, "vm.unprivileged_userfaultfd is %d", host->sysctl);
	if (!host->device_error)
		add(r, "device", OK, "/dev/userfaultfd can be opened");
	else if (host->userfaultfd == INFILL_USERFAULTFD_SYSCALL)
		add(r, "device", OK, "/dev/userfaultfd: %s (not needed)",
		    strerror(-host->device_error));
	else if (host->device_error == -ENOENT)
		remedy(add(r, "device", MISSING, "no /dev/userfaultfd"),
		       "run Linux 6.1 or later; in a container, give it --device /dev/userfaultfd");
	else
		remedy(add(r, "device", MISSING, "/dev/userfaultfd: %s",
			   strerror(-host->device_error)),
		       "for good, in /etc/udev/rules.d/60-userfaultfd.rules:\n"
		       "  KERNEL==\"userfaultfd\", GROUP=\"kvm\", MODE=\"0660\"");
}

static void check_features(struct report *r)
{
	if (!r->host.features)
		return; /* what is missing is the userfaultfd */
	for (size_t i = 0; i < sizeof(features) / sizeof(features[0]); i++) {
		bool has = r->host.features & features[i].bit;
		struct check *check = add(r, features[i].name,
					  has ? OK : features[i].fatal ? FATAL : MISSING,
					  has ? "for %s" : "none: no %s", features[i].use);

		if (!has)
			remedy(check, "run Linux %s or later%s", features[i].linux_version,
			       strstr(features[i].name, "HUGETLB") ? " with CONFIG_HUGETLBFS=y"
								   : "");
	}
}

static void check_hugepages(struct report *r)
{
	const struct infill_host *host = &r->host;

	if (host->hugepages_2m)
		add(r, "huge pages", OK, "%" PRIu64 " of 2 MiB, %" PRIu64 " free",
		    host->hugepages_2m, host->hugepages_2m_free);
	else
		remedy(add(r, "huge pages", MISSING, "none reserved: VMs have 4 KiB pages"),
		       "sysctl vm.nr_hugepages=N    (a guest of 1 GiB needs 512)");
}

static bool kvm_works(const struct infill_host *host)
{
	return !host->kvm_error && !host->kvm_vm_error;
}

static void check_kvm(struct report *r)
{
	const struct infill_host *host = &r->host;
	struct check *check;

	if (kvm_works(host)) {
		add(r, "KVM", OK, "/dev/kvm, API version %d", host->kvm_api);
		return;
	}
	if (!host->kvm_error) {
		check = add(r, "KVM", MISSING, "/dev/kvm makes no VM: %s: guests are emulated",
			    strerror(-host->kvm_vm_error));
		remedy(check, host->kvm_vm_error == -EBUSY ?
				      "another hypervisor has the CPUs: end it" :
				      "enable virtualization in the firmware");
		return;
	}
	check = add(r, "KVM", MISSING, "/dev/kvm: %s: guests are emulated",
		    strerror(-host->kvm_error));
	if (host->kvm_error == -EACCES || host->kvm_error == -EPERM)
		remedy(check, "usermod -aG kvm %.32s, then log in again", user_name());
	else
		remedy(check,
		       "modprobe kvm_intel or kvm_amd; enable virtualization in the firmware, or "
		       "nested\nvirtualization if this is a VM; in a container, give it --device "
		       "/dev/kvm");
}

/* A VM may have one that is mapped and has the guest's memory in it. */
static bool has_guest_memfd(const struct infill_host *host)
{
	const uint32_t both = GUEST_MEMFD_MMAP | GUEST_MEMFD_INIT_SHARED;

	return (host->kvm_guest_memfd & both) == both;
}

static bool has_userfaultfd(const struct infill_host *host)
{
	return host->userfaultfd == INFILL_USERFAULTFD_SYSCALL ||
	       host->userfaultfd == INFILL_USERFAULTFD_DEVICE;
}

static void check_kvm_capabilities(struct report *r)
{
	const struct infill_host *host = &r->host;

	if (!kvm_works(host))
		return;
	if (host->kvm_pre_fault)
		add(r, "KVM_PRE_FAULT_MEMORY", OK, "stage-2 mappings can be made ahead");
	else
		remedy(add(r, "KVM_PRE_FAULT_MEMORY", MISSING,
			   "none: each page costs a stage-2 fault"),
		       "run Linux 6.11 or later, on x86 with two-dimensional paging (EPT or NPT)");
	if (host->kvm_userfault)
		add(r, "KVM Userfault", OK, "faults exit to the vCPU's thread");
	else
		remedy(add(r, "KVM Userfault", MISSING, "none: a VMM fills by userfaultfd alone"),
		       "no released kernel has it: nothing to do, unless you build one with infill's "
		       "patches");
	if (has_guest_memfd(host))
		add(r, "guest_memfd", OK, "can be mapped, and is shared from the start");
	else
		remedy(add(r, "guest_memfd", MISSING, "none that can be %s",
			   host->kvm_guest_memfd & GUEST_MEMFD_MMAP ? "shared from the start" :
								     "mapped"),
		       "run Linux 6.18 or later; VMs have a memfd or huge pages without it");
}

/* arm64 alone has modes; on others, and where nothing tells it, there is no line. */
static void check_kvm_mode(struct report *r)
{
	static const char *const modes[] = {
		[INFILL_KVM_MODE_VHE] = "VHE: the host's kernel runs at EL2",
		[INFILL_KVM_MODE_NESTED] = "VHE, and guests may have guests",
		[INFILL_KVM_MODE_NVHE] = "nVHE: the host's kernel runs at EL1",
		[INFILL_KVM_MODE_PROTECTED] = "pKVM: what runs at EL2 does not trust the host",
	};

	if (r->host.kvm_mode && r->host.kvm_mode < sizeof(modes) / sizeof(modes[0]))
		add(r, "KVM mode", OK, "%s", modes[r->host.kvm_mode]);
}

/* Does no limit of locked memory count for this process? */
static bool may_lock(const struct report *r)
{
	return r->host.memlock_bytes == UINT64_MAX || r->capabilities >> CAP_IPC_LOCK & 1;
}

/*
 * pKVM's VMs whose memory the host loses.  None is made to see: the first one
 * taints the kernel, and what looks at a host changes nothing.
 */
static void check_protected_vms(struct report *r)
{
	static const char name[] = "protected VMs";
	const struct infill_host *host = &r->host;

	if (!host->kvm_mode)
		return;
	if (host->kvm_mode != INFILL_KVM_MODE_PROTECTED)
		remedy(add(r, name, MISSING, "none: KVM is not pKVM"),
		       "boot with kvm-arm.mode=protected, if guests' memory is to be kept from the host");
	else if (!host->kvm_protected)
		remedy(add(r, name, MISSING, "none: this KVM makes none"),
		       "run Linux 7.1 or later, whose log says that KVM's Protected mode was initialized");
	else if (!host->kvm_userfault)
		remedy(add(r, name, MISSING, "can be made, but their memory cannot be filled on demand"),
		       "as for KVM Userfault");
	else if (!may_lock(r))
		remedy(add(r, name, MISSING, "can be made, but RLIMIT_MEMLOCK is %" PRIu64 " KiB",
			   host->memlock_bytes >> 10),
		       "each page that such a guest has touched is locked. For the VMM, any one of:\n"
		       "  ulimit -l unlimited\n"
		       "  LimitMEMLOCK=infinity in its systemd service\n"
		       "  AmbientCapabilities=CAP_IPC_LOCK there");
	else
		add(r, name, OK, "can be made: infill-vmm --protected; not tried, as that taints the kernel");
}

/* What of infill-vmm(1) can be had. */
static void check_infill_vmm(struct report *r)
{
	const struct infill_host *host = &r->host;

	if (!kvm_works(host)) {
		remedy(add(r, "infill-vmm", MISSING, "it needs KVM"), "as for KVM");
		return;
	}
	add(r, "infill-vmm", OK, "--engine eager, mmap%s%s; --backing memfd, anonymous%s%s",
	    has_userfaultfd(host) ? ", uffd" : "", host->kvm_userfault ? ", userfault" : "",
	    host->hugepages_2m ? ", hugetlb" : "", has_guest_memfd(host) ? ", guest-memfd" : "");
}

static void check_io_uring(struct report *r)
{
	int32_t error = r->host.io_uring_error;
	struct check *check;

	if (!error) {
		add(r, "io_uring", OK, "cold reads do not hold up other faults");
		return;
	}
	check = add(r, "io_uring", MISSING, "%s: cold reads go to 4 threads, slower than io_uring",
		    strerror(-error));
	if (error == -EPERM || error == -EACCES)
		remedy(check, "sysctl -w kernel.io_uring_disabled=0%s",
		       r->seccomp
			       ? "\nand `io_uring_setup`, `io_uring_enter`, `io_uring_register` in "
				 "the container's seccomp profile"
			       : "");
	else if (error == -ENOSYS)
		remedy(check, "run a kernel with CONFIG_IO_URING=y%s",
		       r->seccomp ? ", or allow it in the container's seccomp profile" : "");
	else
		remedy(check, "raise RLIMIT_MEMLOCK: ulimit -l unlimited");
}

static void check_machine(struct report *r)
{
	const struct infill_host *host = &r->host;

	add(r, "kernel", OK, "Linux %s", host->kernel);
	add(r, "CPUs", OK, "%u", host->cpus);
	if (host->memlock_bytes == UINT64_MAX)
		add(r, "RLIMIT_MEMLOCK", OK, "unlimited");
	else
		add(r, "RLIMIT_MEMLOCK", OK, "%" PRIu64 " KiB", host->memlock_bytes >> 10);
}

static void examine(struct report *r)
{
	r->host.size = sizeof(r->host);
	infill_host_probe(&r->host);
	read_status(r);
	check_machine(r);
	check_userfaultfd(r);
	check_permission(r);
	check_features(r);
	check_hugepages(r);
	check_kvm(r);
	check_kvm_mode(r);
	check_kvm_capabilities(r);
	check_protected_vms(r);
	check_infill_vmm(r);
	check_io_uring(r);
	r->able = true;
	for (unsigned i = 0; i < r->count; i++)
		r->able = r->able && r->check[i].verdict != FATAL;
}

/* ---- what is printed ------------------------------------------------------------ */

static const char *engine_reason(const struct report *r)
{
	if (!r->able)
		return "no VM can be served before the remedies above";
	if (r->host.kvm_userfault)
		return "userfaultfd works here; a VMM that embeds libinfill can use KVM Userfault";
	return "userfaultfd works here, and the kernel has no KVM Userfault";
}

static void print_lines(const char *text)
{
	while (*text) {
		int length = (int)strcspn(text, "\n");

		printf("%30s%.*s\n", "", length, text);
		text += length + (text[length] == '\n');
	}
}

static int print_table(const struct report *r)
{
	for (unsigned i = 0; i < r->count; i++) {
		const struct check *check = &r->check[i];

		printf("%-21s %-7s %s\n", check->name, check->verdict == OK ? "ok" : "missing",
		       check->found);
		print_lines(check->remedy);
	}
	printf("\nengine: %s: %s", r->able ? "uffd" : "none", engine_reason(r));
	return cli_print("");
}

static int print_json(const struct report *r)
{
	static const char *const verdicts[] = { "ok", "missing", "fatal" };
	json_t *checks = json_array(), *root;
	char *text;
	int status;

	for (unsigned i = 0; i < r->count; i++) {
		const struct check *check = &r->check[i];

		json_array_append_new(
			checks, json_pack("{s:s, s:s, s:s, s:s?}", "name", check->name, "state",
					  verdicts[check->verdict], "found", check->found, "remedy",
					  *check->remedy ? check->remedy : NULL));
	}
	root = json_pack("{s:s, s:b, s:s?, s:s, s:o}", "version", infill_version(), "able", r->able,
			 "engine", r->able ? "uffd" : NULL, "reason", engine_reason(r), "checks",
			 checks);
	text = root ? json_dumps(root, JSON_INDENT(2)) : NULL;
	status = text ? cli_print(text) : cli_fail("doctor: out of memory");
	free(text);
	json_decref(root);
	return status;
}

static int doctor(const struct cli_command *command, int argc, char **argv)
{
	static struct report report;
	bool json = false;
	int key, status;

	while ((key = cli_next(command, argc, argv)) != CLI_END) {
		if (key == CLI_STOP || key == CLI_WRONG)
			return cli_stopped(key);
		json = true;
	}
	if (optind < argc)
		return cli_usage(command, "%s: not expected", argv[optind]);
	examine(&report);
	status = json ? print_json(&report) : print_table(&report);
	return status == CLI_OK && !report.able ? CLI_FAILED : status;
}

const struct cli_command cmd_doctor = {
	.name = "doctor",
	.arguments = "[--json]",
	.help = "say what this host can do, and how to get what is missing",
	.run = doctor,
	.options = { doctor_options },
};
