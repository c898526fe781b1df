/* SPDX-License-Identifier: MIT */
/*
 * reader.c: asynchronous reads by io_uring or, where that is not permitted,
 * by threads.  Internal; the contract is in reader.h.
 */
#include <errno.h>
#include <liburing.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "err.h"
#include "image.h"
#include "reader.h"

#define DEPTH 256   /* entries of the ring; more wait in `queued` */
#define THREADS 4   /* without io_uring */

struct reader {
	bool ring_works;
	unsigned busy; /* submitted and not reaped */
	struct io_uring ring;
	unsigned in_ring;
	struct reader_request *queued, **queued_tail; /* for the ring, or for the threads */

	/* Without io_uring; `lock` covers queued, done and stop. */
	pthread_t thread[THREADS];
	unsigned threads;
	pthread_mutex_t lock;
	pthread_cond_t work;
	struct reader_request *done;
	bool stop;
	int eventfd;
};

static void enqueue(struct reader *r, struct reader_request *q)
{
	q->next = NULL;
	*r->queued_tail = q;
	r->queued_tail = &q->next;
}

static struct reader_request *dequeue(struct reader *r)
{
	struct reader_request *q = r->queued;

	if (q) {
		r->queued = q->next;
		if (!r->queued)
			r->queued_tail = &r->queued;
	}
	return q;
}

static void *read_thread(void *arg)
{
	struct reader *r = arg;
	const uint64_t one = 1;

	pthread_mutex_lock(&r->lock);
	while (!r->stop) {
		struct reader_request *q = dequeue(r);

		if (!q) {
			pthread_cond_wait(&r->work, &r->lock);
			continue;
		}
		pthread_mutex_unlock(&r->lock);
		q->result = image_read(q->image, q->offset, q->buffer, q->length);
		pthread_mutex_lock(&r->lock);
		q->next = r->done;
		r->done = q;
		/* Only fails at 2^64 - 1 requests. */
		(void)!write(r->eventfd, &one, sizeof(one));
	}
	pthread_mutex_unlock(&r->lock);
	return NULL;
}

static int start_threads(struct reader *r)
{
	sigset_t all, old;
	int err = 0;

	r->eventfd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	if (r->eventfd < 0)
		return err_set(-errno, "reader: eventfd: %m");
	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &old);
	while (r->threads < THREADS && !err) {
		err = pthread_create(&r->thread[r->threads], NULL, read_thread, r);
		if (!err)
			r->threads++;
	}
	pthread_sigmask(SIG_SETMASK, &old, NULL);
	return r->threads ? 0 : err_set(-err, "reader: cannot start a thread: %m");
}

int reader_new(struct reader **reader)
{
	struct reader *r = calloc(1, sizeof(*r));
	int err = 0;

	if (!r)
		return err_set(-ENOMEM, "reader: %m");
	r->eventfd = -1;
	r->queued_tail = &r->queued;
	pthread_mutex_init(&r->lock, NULL);
	pthread_cond_init(&r->work, NULL);
	/* The variable lets tests and operators choose the threads where io_uring works. */
	r->ring_works = !getenv("INFILL_NO_IO_URING") && !io_uring_queue_init(DEPTH, &r->ring, 0);
	if (!r->ring_works)
		err = start_threads(r);
	if (err) {
		reader_free(r);
		return err;
	}
	*reader = r;
	return 0;
}

int reader_fd(const struct reader *r)
{
	return r->ring_works ? r->ring.ring_fd : r->eventfd;
}

void reader_submit(struct reader *r, struct reader_request *q)
{
	r->busy++;
	pthread_mutex_lock(&r->lock);
	enqueue(r, q);
	if (!r->ring_works)
		pthread_cond_signal(&r->work);
	pthread_mutex_unlock(&r->lock);
}

void reader_flush(struct reader *r)
{
	if (!r->ring_works || !r->queued)
		return;
	while (r->queued && r->in_ring < DEPTH) {
		struct io_uring_sqe *sqe = io_uring_get_sqe(&r->ring);
		struct reader_request *q;

		if (!sqe)
			break;
		q = dequeue(r);
		image_prep(q->image, sqe, q->offset, q->buffer, q->length);
		io_uring_sqe_set_data(sqe, q);
		r->in_ring++;
	}
	/* EAGAIN and EBUSY leave entries in the ring for the next call. */
	io_uring_submit(&r->ring);
}

/* One completion of the ring; NULL if there is none, or if it has to be read again. */
static struct reader_request *reap_ring(struct reader *r, bool *again)
{
	struct reader_request *q;
	struct io_uring_cqe *cqe;

	*again = false;
	if (io_uring_peek_cqe(&r->ring, &cqe))
		return NULL;
	q = io_uring_cqe_get_data(cqe);
	q->result = image_end(q->image, cqe->res, q->offset, q->length);
	io_uring_cqe_seen(&r->ring, cqe);
	r->in_ring--;
	if (q->result != -EAGAIN)
		return q;
	enqueue(r, q);
	*again = true;
	return NULL;
}

static struct reader_request *reap_threads(struct reader *r)
{
	struct reader_request *q;
	uint64_t count;

	pthread_mutex_lock(&r->lock);
	q = r->done;
	if (q)
		r->done = q->next;
	if (!r->done)
		(void)!read(r->eventfd, &count, sizeof(count));
	pthread_mutex_unlock(&r->lock);
	return q;
}

struct reader_request *reader_reap(struct reader *r)
{
	struct reader_request *q;
	bool again = false;

	if (!r->busy)
		return NULL;
	if (!r->ring_works) {
		q = reap_threads(r);
	} else {
		do
			q = reap_ring(r, &again);
		while (again);
		reader_flush(r);
	}
	if (q)
		r->busy--;
	return q;
}

unsigned reader_busy(const struct reader *r)
{
	return r->busy;
}

void reader_free(struct reader *r)
{
	if (!r)
		return;
	pthread_mutex_lock(&r->lock);
	r->stop = true;
	pthread_cond_broadcast(&r->work);
	pthread_mutex_unlock(&r->lock);
	for (unsigned i = 0; i < r->threads; i++)
		pthread_join(r->thread[i], NULL);
	if (r->ring_works)
		io_uring_queue_exit(&r->ring);
	if (r->eventfd >= 0)
		close(r->eventfd);
	pthread_cond_destroy(&r->work);
	pthread_mutex_destroy(&r->lock);
	free(r);
}
