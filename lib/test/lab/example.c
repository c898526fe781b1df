/* SPDX-License-Identifier: MIT */
/*
 * example.c: the README's example of KVM Userfault fills a guest's memory.  It is
 * compiled into this program as it is.
 */
#include "tests.h"

#include <errno.h>

int userfault_main(void);

/* The fill may be through before the vCPU runs, which would then miss nothing: there is none. */
static int start_without_fill(struct infill_session **session, struct infill_pool *pool, int vm_fd,
			      const struct infill_memory *memory, struct infill_image *image,
			      const struct infill_session_options *options)
{
	CHECK(!options, "the example has options: give this function's caller theirs");
	return infill_session_start_vm(session, pool, vm_fd, memory, image,
				       OPTIONS(.fill = INFILL_FILL_NONE));
}

#define main userfault_main
#define infill_session_start_vm start_without_fill
#include "../../../examples/userfault.c"
#undef infill_session_start_vm
#undef main

#define THROUGH 1000 /* nothing else returns that */

/* What its handler has to know; one VM at a time. */
static struct guest_vcpu *running;
static uint32_t found;

static int handle(struct kvm_run *run)
{
	return run == running->run && guest_done(running, &found) ? THROUGH : -EPROTO;
}

/* What a VMM has made before it needs the example, and all pages, each missing at first. */
void test_example(enum kind kind)
{
	struct infill_counters c = { .size = sizeof(c) };
	struct pager pager = { 0 };
	struct rig rig;
	int ret;

	if (set_up_vm(&rig, kind)) {
		running = &rig.vcpu[0];
		found = 0;
		ret = pager_start(&pager, rig.guest.vm, image_path, &rig.region);
		CHECK(!ret, "%d: %s", ret, infill_error());
		ret = ret ? ret : guest_vcpu_new(running, &rig.guest, 0);
		ret = ret ? ret : guest_visit(running, PAGES, 0, 387, 0);
		ret = ret ? ret : run_vcpu(&pager, running->fd, running->run, handle);
		CHECK(ret == THROUGH, "%d: %s", ret, infill_error());
		CHECK(found == sum_of_all(), "%u, not %u", found, sum_of_all());
		CHECK(!infill_session_counters(pager.session, &c) && c.faults == PAGES, "%llu exits",
		      (unsigned long long)c.faults);
		if (!bad)
			check_memory(&rig, 1, 1);
		pager_stop(&pager);
	}
	tear_down(&rig);
}
