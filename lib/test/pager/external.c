// SPDX-License-Identifier: MIT
/*
 * external.c: a VM with KVM Userfault and the daemon as its pager: every page
 * is what it must be, what the guest wrote stays, and whatever becomes of the
 * pager, the VM's threads are told.
 */
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "fakefuse.h"
#include "fakekvm.h"
#include "fakeserver.h"
#include "remote.h"
#include "rig.h"
#include "trace.h"

#define MIB (1u << 20)

struct bench {
	struct fakeimage image;
	struct fakeserver server;
	struct fakekvm *kvm;
};

static void begin(struct bench *b, uint32_t fill, const struct fakekvm_options *more,
		  const char *image)
{
	struct infill_session_options session = { .size = sizeof(session), .fill = fill };
	struct infill_server_options options = {
		.image = image, .session = &session, .on_error = INFILL_ON_ERROR_TELL,
	};
	struct fakekvm_options kvm = *more;

	if (!image) {
		fakeimage_make(&b->image);
		options.image = b->image.path;
	}
	kvm.image = &b->image;
	fakeserver_start(&b->server, &options);
	b->kvm = fakekvm_new(&kvm);
	if (fakekvm_connect(b->kvm, b->server.socket)) {
		fakeserver_tail(&b->server, 10);
		fail_msg("connect: %s", infill_error());
	}
}

static void assert_right(struct bench *b, int rc)
{
	if (!rc)
		return;
	fakeserver_tail(&b->server, 10);
	fail_msg("%s: %s", strerror(-rc), rc == -EUCLEAN ? b->kvm->wrong : infill_error());
}

static void end(struct bench *b)
{
	fakekvm_free(b->kvm);
	assert_int_equal(fakeserver_stop(&b->server), 0);
	if (*b->image.path)
		fakeimage_remove(&b->image);
}

/* The next notice. */
static uint32_t hear(struct bench *b, char *text)
{
	struct wire_notice notice;
	int rc = remote_notice(b->kvm->remote, &notice, text, 20000);

	if (rc)
		fail_msg("no notice: %s", infill_error());
	return notice.type;
}

static struct bench of(uint64_t bytes)
{
	return (struct bench){ .image = { .bytes = bytes, .seed = 5, .hole_every = 7, .zero_every = 9 } };
}

static void all_is_filled_and_told(void **state)
{
	struct bench b = of(16 * MIB);
	char text[WIRE_NOTICE_MAX];

	(void)state;
	begin(&b, INFILL_FILL_ALL, &(struct fakekvm_options){ .regions = 3, .threads = 2 }, NULL);
	assert_int_equal(hear(&b, text), WIRE_RESIDENT);
	assert_int_equal(fakekvm_missing(b.kvm), 0);
	/* What is zero, and nobody touched, takes none. */
	assert_int_equal(fakekvm_memory_bytes(b.kvm),
			 fakeimage_data_pages(&b.image, FAKE_PAGE) * FAKE_PAGE);
	assert_right(&b, fakekvm_verify(b.kvm));
	assert_int_equal(b.kvm->exits, 0);
	end(&b);
}

/* The first pages of the image, and more of it further on, with gaps. */
static unsigned write_trace(const struct fakeimage *image, const char *path, uint32_t *page)
{
	struct infill_identity identity;
	struct infill_image *source;
	unsigned count = 0;

	for (uint32_t n = 0; n < 200; n++)
		page[count++] = n;
	for (uint32_t n = 1000; n < 3000; n += n % 5 ? 1 : 3)
		page[count++] = n;
	if (infill_image_open(&source, image->path, NULL))
		fail_msg("%s", infill_error());
	infill_image_identity(source, &identity);
	infill_image_close(source);
	assert_int_equal(trace_save(path, &identity, page, count), 0);
	return count;
}

/* What a trace names is there without an exit, zero or not, and nothing else is. */
static void a_trace_is_filled(void **state)
{
	struct infill_session_options session = { .size = sizeof(session),
						  .fill = INFILL_FILL_TRACE };
	struct infill_server_options options = { .session = &session };
	struct bench b = of(16 * MIB);
	uint32_t page[4096];
	uint64_t end_ns, missing;
	char path[200];
	unsigned count;

	(void)state;
	fakeimage_make(&b.image);
	snprintf(path, sizeof(path), "%s/trace", fake_dir());
	count = write_trace(&b.image, path, page);
	session.trace = path;
	options.image = b.image.path;
	fakeserver_start(&b.server, &options);
	b.kvm = fakekvm_new(&(struct fakekvm_options){ .image = &b.image, .regions = 2 });
	assert_int_equal(fakekvm_connect(b.kvm, b.server.socket), 0);
	missing = b.kvm->pages - count;
	end_ns = fake_now_ns() + 20000000000u;
	while (fakekvm_missing(b.kvm) > missing && fake_now_ns() < end_ns)
		fake_sleep_ms(1);
	for (unsigned i = 0; i < count; i++)
		assert_right(&b, fakekvm_touch(b.kvm, 0, page[i], i % 3 == 0));
	assert_int_equal(b.kvm->exits, 0);
	assert_int_equal(fakekvm_missing(b.kvm), missing);
	assert_int_equal(fakeserver_sum(&b.server, "trace_pages", NULL), count);
	assert_right(&b, fakekvm_verify(b.kvm));
	end(&b);
}

static void pages_come_as_they_are_asked_for(void **state)
{
	struct bench b = of(16 * MIB);
	uint64_t demand;

	(void)state;
	begin(&b, INFILL_FILL_NONE, &(struct fakekvm_options){ .regions = 2, .threads = 4 }, NULL);
	fakekvm_start(b.kvm, 3);
	while (b.kvm->touches < 3 * b.kvm->pages && !b.kvm->error)
		fake_sleep_ms(5);
	assert_right(&b, fakekvm_finish(b.kvm));
	assert_true(b.kvm->exits > 0);
	demand = fakeserver_sum(&b.server, "faults", NULL);
	assert_true(demand > 0 && demand <= b.kvm->exits);
	/* Together with what is filled for streams each page is installed once, and never again. */
	assert_right(&b, fakekvm_verify(b.kvm));
	assert_right(&b, fakekvm_verify(b.kvm));
	end(&b);
}

static void ordinary_memory_goes_by_the_userfaultfd(void **state)
{
	struct bench b = of(8 * MIB);
	char text[WIRE_NOTICE_MAX];
	uint64_t number = 0;

	(void)state;
	rig_need_userfaultfd();
	begin(&b, INFILL_FILL_NONE,
	      &(struct fakekvm_options){ .regions = 2, .threads = 4, .ordinary = true }, NULL);
	/* As KVM itself reads it: no exit, the userfaultfd serves. */
	number = *(volatile uint64_t *)(b.kvm->region[1].hva + FAKE_PAGE);
	assert_int_equal(number, fakeimage_word(&b.image, b.kvm->region[1].offset + FAKE_PAGE));
	fakekvm_start(b.kvm, 3);
	while (b.kvm->touches < 2 * b.kvm->pages && !b.kvm->error)
		fake_sleep_ms(5);
	assert_right(&b, fakekvm_finish(b.kvm));
	assert_right(&b, fakekvm_verify(b.kvm));
	assert_int_equal(hear(&b, text), WIRE_RESIDENT);
	end(&b);
}

/*
 * A third of memory is there, one page here and one there.  Going through all of it
 * takes an exit for a window of pages, not one for what lies between two of those.
 */
static void pass_over_what_is_there(bool ordinary)
{
	struct bench b = of(8 * MIB);
	uint64_t told;

	b.image.hole_every = 0; /* what is in no cache is read alone */
	begin(&b, INFILL_FILL_NONE,
	      &(struct fakekvm_options){ .threads = 1, .ordinary = ordinary }, NULL);
	for (uint64_t page = b.kvm->pages; page-- > 0;)
		if (page % 3 == 0)
			assert_right(&b, fakekvm_touch(b.kvm, 0, page, true));
	assert_int_equal(b.kvm->exits, (b.kvm->pages + 2) / 3);
	assert_int_equal(b.kvm->told, b.kvm->exits);
	b.kvm->exits = b.kvm->told = 0;
	assert_right(&b, fakekvm_verify(b.kvm));
	assert_true(b.kvm->exits < 50);
	/* The answers tell of the windows, with what was there. */
	told = b.kvm->told;
	assert_true(told > b.kvm->pages * 9 / 10 && told <= b.kvm->pages);
	end(&b);
}

static void what_is_there_does_not_end_a_stream(void **state)
{
	(void)state;
	pass_over_what_is_there(false);
}

static void nor_in_ordinary_memory(void **state)
{
	(void)state;
	rig_need_userfaultfd();
	pass_over_what_is_there(true);
}

/*
 * Pages 0 to 15 are read for the first one, and no more: then a window that begins among
 * them cannot be filled at once.  fakekvm_touch() holds the answer against the bits.
 */
static void an_answer_names_what_is_there_alone(void **state)
{
	static const uint64_t touch[] = { 6, 3, 4, 7, 11, 15 };
	struct bench b = of(4 * MIB);

	(void)state;
	b.image.hole_every = b.image.zero_every = 0;
	begin(&b, INFILL_FILL_NONE, &(struct fakekvm_options){ .threads = 1 }, NULL);
	fakeimage_cool(&b.image);
	for (size_t i = 0; i < sizeof(touch) / sizeof(touch[0]); i++)
		assert_right(&b, fakekvm_touch(b.kvm, 0, touch[i], false));
	assert_int_equal(b.kvm->exits, sizeof(touch) / sizeof(touch[0]));
	end(&b);
}

static void *touch_once(void *arg)
{
	struct fakekvm *k = arg;

	/* Zeros, or anything. */
	k->touches = 1 + *(volatile uint64_t *)k->region[1].hva % 2;
	return NULL;
}

/* Refused; it closes its userfaultfd, and its ordinary memory must not read as zero. */
static int refused_vm(const char *socket, const struct fakeimage *image)
{
	const struct fakekvm_options options = { .image = image, .regions = 2, .ordinary = true };
	struct fakekvm *k = fakekvm_new(&options);
	pthread_t thread;

	if (fakekvm_connect(k, socket) != -EPROTO ||
	    !strstr(infill_error(), "past the image's end"))
		return 2;
	close(k->uffd);
	pthread_create(&thread, NULL, touch_once, k);
	fake_sleep_ms(500);
	return k->touches ? 3 : 0;
}

/* Give up 16 pages at random, again and again, while vCPUs touch and write. */
static void give_up_at_random(struct bench *b, unsigned times)
{
	uint64_t random = 1;

	fakekvm_start(b->kvm, 3);
	while (times-- && !b->kvm->error) {
		uint64_t touches = b->kvm->touches;

		random = fake_mix(random);
		assert_right(b, fakekvm_discard(b->kvm, random % (b->kvm->pages / 16) * 16, 16));
		while (b->kvm->touches < touches + 64 && !b->kvm->error)
			fake_sleep_ms(1);
	}
	assert_right(b, fakekvm_finish(b->kvm));
}

static void what_is_given_up_reads_as_zero(void **state)
{
	struct bench b = of(16 * MIB);
	char text[WIRE_NOTICE_MAX];

	(void)state;
	b.image.hole_every = b.image.zero_every = 0;
	begin(&b, INFILL_FILL_NONE, &(struct fakekvm_options){ .regions = 2, .threads = 4 }, NULL);
	give_up_at_random(&b, 200);
	assert_right(&b, fakekvm_discard(b.kvm, 0, b.kvm->pages / 2));
	assert_right(&b, fakekvm_verify(b.kvm));
	assert_int_equal(hear(&b, text), WIRE_RESIDENT);
	end(&b);
}

static void ordinary_memory_is_given_up(void **state)
{
	struct bench b = of(8 * MIB);

	(void)state;
	rig_need_userfaultfd();
	begin(&b, INFILL_FILL_ALL,
	      &(struct fakekvm_options){ .regions = 2, .threads = 4, .ordinary = true }, NULL);
	give_up_at_random(&b, 100);
	assert_right(&b, fakekvm_verify(b.kvm));
	end(&b);
}

/*
 * What is donated is out of reach: no page's bit is clear before it is there, be
 * it zero, none is installed twice, and none is given up.
 */
static void a_protected_vm_has_what_it_may_touch(void **state)
{
	struct bench b = of(16 * MIB);
	const struct fakekvm_options options = { .threads = 2, .ordinary = true, .protected = true };
	char text[WIRE_NOTICE_MAX];

	(void)state;
	rig_need_userfaultfd();
	begin(&b, INFILL_FILL_ALL, &options, NULL);
	fakekvm_start(b.kvm, 0);
	do
		assert_right(&b, fakekvm_look(b.kvm));
	while (fakekvm_missing(b.kvm) && !b.kvm->error);
	assert_right(&b, fakekvm_finish(b.kvm));
	assert_right(&b, fakekvm_look(b.kvm));
	assert_int_equal(remote_discard(b.kvm->remote, 0, FAKE_PAGE), -EOPNOTSUPP);
	assert_int_equal(hear(&b, text), WIRE_RESIDENT);
	assert_int_equal(fakeserver_sum(&b.server, "installs", NULL), b.kvm->pages);
	assert_int_equal(fakeserver_sum(&b.server, "duplicates", NULL), 0);
	assert_right(&b, fakekvm_verify(b.kvm));
	end(&b);
}

static void what_cannot_be_given_up_is_refused(void **state)
{
	struct bench b = of(4 * MIB);

	(void)state;
	begin(&b, INFILL_FILL_NONE, &(struct fakekvm_options){ .threads = 1 }, NULL);
	assert_int_equal(remote_discard(b.kvm->remote, FAKE_PAGE / 2, FAKE_PAGE), -EINVAL);
	assert_int_equal(remote_discard(b.kvm->remote, 0, FAKE_PAGE / 2), -EINVAL);
	assert_int_equal(remote_discard(b.kvm->remote, 0, b.image.bytes + FAKE_PAGE), -EINVAL);
	assert_int_equal(remote_discard(b.kvm->remote, b.image.bytes, FAKE_PAGE), -EFAULT);
	assert_right(&b, fakekvm_verify(b.kvm));
	end(&b);
}

static void refused_memory_reads_no_zeros(void **state)
{
	struct bench b = of(4 * MIB);
	struct fakeimage larger = b.image;
	int status;
	pid_t vm;

	(void)state;
	rig_need_userfaultfd();
	begin(&b, INFILL_FILL_NONE, &(struct fakekvm_options){ .threads = 1 }, NULL);
	larger.bytes *= 2;
	vm = fork();
	if (vm == 0)
		_exit(refused_vm(b.server.socket, &larger));
	status = fake_wait(vm, 20000);
	assert_true(WIFEXITED(status));
	assert_int_equal(WEXITSTATUS(status), 0);
	end(&b);
}

static void start_on_fuse(struct bench *b, struct fakefuse *fuse, uint32_t fill)
{
	if (fakefuse_start(fuse, &b->image))
		rig_skip("no FUSE here: neither /dev/fuse nor the right to mount");
	begin(b, fill, &(struct fakekvm_options){ .threads = 2 }, fuse->path);
}

/* What cannot be read is poisoned, alone, for good, and the VM goes on to need its pager. */
static void pages_that_cannot_be_read_are_poisoned(void **state)
{
	struct bench b = of(4 * MIB);
	struct fakefuse fuse;
	struct wire_notice notice;
	char text[WIRE_NOTICE_MAX];

	(void)state;
	b.image.hole_every = b.image.zero_every = 0;
	start_on_fuse(&b, &fuse, INFILL_FILL_NONE);
	atomic_store(&fuse.control->bad[0].offset, 300 * FAKE_PAGE);
	atomic_store(&fuse.control->bad[0].length, FAKE_PAGE);
	b.kvm->version[300] = FAKEKVM_POISONED;
	assert_right(&b, fakekvm_verify(b.kvm));
	assert_right(&b, fakekvm_verify(b.kvm));
	assert_int_equal(fakekvm_missing(b.kvm), 1);
	assert_int_equal(fakeserver_sum(&b.server, "poisoned", NULL), 1);
	/* Without its bit the page would read as zero: nobody may say that all is there. */
	assert_int_equal(remote_notice(b.kvm->remote, &notice, text, 300), -ETIMEDOUT);
	kill(fakeserver_worker(&b.server), SIGKILL);
	assert_right(&b, fakekvm_touch(b.kvm, 0, 300, false));
	end(&b);
	fakefuse_stop(&fuse);
}

static void *touch_first(void *arg)
{
	struct bench *b = arg;

	return (void *)(intptr_t)fakekvm_touch(b->kvm, 0, 0, true);
}

/* A thread that waits for the first page, which cannot be read for now. */
static pthread_t start_slow_read(struct bench *b, struct fakefuse *fuse)
{
	uint64_t end_ns = fake_now_ns() + 20000000000u;
	pthread_t waits;

	b->image.hole_every = b->image.zero_every = 0;
	start_on_fuse(b, fuse, INFILL_FILL_NONE);
	atomic_store(&fuse->control->held.offset, 0);
	atomic_store(&fuse->control->held.length, FAKE_PAGE);
	pthread_create(&waits, NULL, touch_first, b);
	while (!atomic_load(&fuse->control->holding) && fake_now_ns() < end_ns)
		fake_sleep_ms(1);
	assert_true(atomic_load(&fuse->control->holding) > 0);
	return waits;
}

static void one_slow_read_holds_up_nobody(void **state)
{
	struct bench b = of(4 * MIB);
	struct fakefuse fuse;
	pthread_t waits;
	void *rc;

	(void)state;
	waits = start_slow_read(&b, &fuse);
	for (uint64_t page = 512; page < 1024; page++)
		assert_right(&b, fakekvm_touch(b.kvm, 1, page, false));
	assert_int_equal(b.kvm->touches, 512);
	atomic_store(&fuse.control->held.length, 0);
	pthread_join(waits, &rc);
	assert_right(&b, (int)(intptr_t)rc);
	assert_right(&b, fakekvm_verify(b.kvm));
	end(&b);
	fakefuse_stop(&fuse);
}

static atomic_uint signals;

static void on_signal(int number)
{
	(void)number;
	signals++;
}

/* Who has a flag for that is told of a signal; who has none waits on. */
static void a_signal_ends_no_wait_without_a_flag(void **state)
{
	struct sigaction action = { .sa_handler = on_signal }, old;
	const volatile uint8_t stop = 1;
	struct bench b = of(4 * MIB);
	struct fakefuse fuse;
	uint64_t first, bytes;
	pthread_t waits;
	void *rc;

	(void)state;
	waits = start_slow_read(&b, &fuse);
	sigaction(SIGUSR1, &action, &old);
	assert_int_equal(remote_ask(b.kvm->remote, 2, 0, &stop, &first, &bytes), -EINTR);
	for (unsigned i = 0; i < 20; i++) {
		pthread_kill(waits, SIGUSR1);
		fake_sleep_ms(5); /* it is waiting again */
	}
	assert_true(signals > 0);
	atomic_store(&fuse.control->held.length, 0);
	pthread_join(waits, &rc);
	sigaction(SIGUSR1, &old, NULL);
	assert_right(&b, (int)(intptr_t)rc);
	assert_right(&b, fakekvm_verify(b.kvm));
	end(&b);
	fakefuse_stop(&fuse);
}

/* An image that changes cannot be served: who waits is told, by its channel or the notice. */
static void a_failed_session_is_told(void **state)
{
	struct bench b = of(4 * MIB);
	char text[WIRE_NOTICE_MAX];
	int rc;

	(void)state;
	b.image.hole_every = b.image.zero_every = 0;
	begin(&b, INFILL_FILL_NONE, &(struct fakekvm_options){ .threads = 1 }, NULL);
	assert_right(&b, fakekvm_touch(b.kvm, 0, 0, false));
	assert_int_equal(truncate(b.image.path, (off_t)b.image.bytes + FAKE_PAGE), 0);
	rc = fakekvm_touch(b.kvm, 0, 512, false);
	assert_int_equal(rc, -ESTALE);
	/* What was read of it nobody may see. */
	assert_int_equal(fakekvm_missing(b.kvm), b.kvm->pages - 1);
	assert_int_equal(hear(&b, text), WIRE_ERROR);
	assert_non_null(strstr(text, "changed"));
	/* Who asks again is told the same, or finds the connection closed. */
	rc = fakekvm_touch(b.kvm, 0, 600, false);
	assert_true(rc == -ESTALE || rc == -ECONNRESET);
	end(&b);
}

/* The supervisor's end alone costs nothing; the worker's, after it, is an error and no wait. */
static void the_pagers_end_is_an_error(void **state)
{
	struct bench b = of(16 * MIB);
	char text[WIRE_NOTICE_MAX];
	struct wire_notice notice;
	pid_t worker;
	uint64_t touches;

	(void)state;
	begin(&b, INFILL_FILL_NONE, &(struct fakekvm_options){ .threads = 3 }, NULL);
	worker = fakeserver_worker(&b.server);
	assert_true(worker > 0);
	kill(b.server.supervisor, SIGKILL);
	waitpid(b.server.supervisor, NULL, 0);
	fakekvm_start(b.kvm, 3);
	touches = b.kvm->touches;
	while (b.kvm->touches < touches + 200 && !b.kvm->error)
		fake_sleep_ms(1);
	assert_int_equal(b.kvm->error, 0);
	kill(worker, SIGKILL);
	assert_int_equal(fakekvm_join(b.kvm), -ECONNRESET);
	assert_int_equal(remote_notice(b.kvm->remote, &notice, text, 1000), -ECONNRESET);
	fakekvm_free(b.kvm);
	close(b.server.stop_fd);
	fakeimage_remove(&b.image);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(all_is_filled_and_told),
		cmocka_unit_test(a_trace_is_filled),
		cmocka_unit_test(pages_come_as_they_are_asked_for),
		cmocka_unit_test(ordinary_memory_goes_by_the_userfaultfd),
		cmocka_unit_test(what_is_there_does_not_end_a_stream),
		cmocka_unit_test(nor_in_ordinary_memory),
		cmocka_unit_test(an_answer_names_what_is_there_alone),
		cmocka_unit_test(what_is_given_up_reads_as_zero),
		cmocka_unit_test(ordinary_memory_is_given_up),
		cmocka_unit_test(a_protected_vm_has_what_it_may_touch),
		cmocka_unit_test(what_cannot_be_given_up_is_refused),
		cmocka_unit_test(refused_memory_reads_no_zeros),
		cmocka_unit_test(pages_that_cannot_be_read_are_poisoned),
		cmocka_unit_test(one_slow_read_holds_up_nobody),
		cmocka_unit_test(a_signal_ends_no_wait_without_a_flag),
		cmocka_unit_test(a_failed_session_is_told),
		cmocka_unit_test(the_pagers_end_is_an_error),
	};

	fake_deadline("pager/external", 120);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
