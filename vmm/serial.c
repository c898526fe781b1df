/* SPDX-License-Identifier: MIT */
/*
 * serial.c: the 16550A of serial.h.  The names of registers and bits are the
 * kernel's, from <linux/serial_reg.h>.
 *
 * What is sent is written at once, so the transmitter is always empty.  When nobody
 * takes the output the vCPU waits, as for a slow line; a pause does not, and what is not
 * written then is part of the state.  What is received waits in a FIFO of 16 bytes; a
 * thread reads more only when there is room, so none is lost.  Every received byte
 * interrupts: the FIFO's trigger level is kept for the guest to read, and not waited for.
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/serial_reg.h>
#include <poll.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include "arch.h"
#include "error.h"
#include "serial.h"

#define FIFO 16u
/* One exit of a vCPU writes a page at most (REP OUTS), which may find the console held. */
#define UNSENT_MAX (VCPUS_MAX * 4096u)

/* All that a restored guest needs; part of the state file. */
struct serial_state {
	uint8_t ier, lcr, mcr, scr, fcr, dll, dlm;
	uint8_t sent;     /* the transmitter became empty, and no one was told */
	uint8_t received; /* bytes in the FIFO */
	uint8_t level;    /* of the interrupt line */
	uint8_t reserved[6];
	uint8_t fifo[FIFO];
};

/* How nobody waits for the output's reader, whoever else may have the same fd. */
enum how {
	BY_WRITE, /* a file, or a pipe or terminal that was opened anew, not to wait */
	BY_SEND,  /* a socket */
	BY_BYTE,  /* what cannot be opened anew: when there is room, and then for one */
};

struct serial {
	struct vm *vm;
	int input, output;
	enum how how;
	bool own_output;      /* to be closed */
	pthread_t thread;
	bool started;
	int wake;             /* eventfd: `hold`, `stop`, `unsent`, or the FIFO's room changed */
	int held;             /* eventfd, readable while `hold` */
	pthread_mutex_t lock; /* the rest */
	bool hold, stop;
	struct serial_state s;
	size_t unsent;        /* bytes that the guest sent and nobody took yet */
	uint8_t waiting[UNSENT_MAX];
};

static void wake(struct serial *serial)
{
	const uint64_t one = 1;

	(void)!write(serial->wake, &one, sizeof(one));
}

/* ---- registers, all under the lock ----------------------------------------------- */

/* The most urgent reason to interrupt, as IIR has it. */
static uint8_t reason(const struct serial_state *s)
{
	if ((s->ier & UART_IER_RDI) && s->received)
		return UART_IIR_RDI;
	if ((s->ier & UART_IER_THRI) && s->sent)
		return UART_IIR_THRI;
	return UART_IIR_NO_INT;
}

static void update_line(struct serial *serial)
{
	bool level = reason(&serial->s) != UART_IIR_NO_INT;

	if (level == serial->s.level)
		return;
	serial->s.level = level;
	arch_serial_irq(serial->vm, level);
}

static void put(struct serial_state *s, uint8_t byte)
{
	if (s->received < FIFO)
		s->fifo[s->received++] = byte;
}

static uint8_t take(struct serial *serial)
{
	struct serial_state *s = &serial->s;
	uint8_t byte = s->fifo[0];

	if (!s->received)
		return 0;
	memmove(s->fifo, s->fifo + 1, --s->received);
	wake(serial);
	return byte;
}

/* The modem is always there; in loopback the guest sees its own lines. */
static uint8_t modem_status(const struct serial_state *s)
{
	uint8_t status = 0;

	if (!(s->mcr & UART_MCR_LOOP))
		return UART_MSR_DCD | UART_MSR_DSR | UART_MSR_CTS;
	status |= s->mcr & UART_MCR_RTS ? UART_MSR_CTS : 0;
	status |= s->mcr & UART_MCR_DTR ? UART_MSR_DSR : 0;
	status |= s->mcr & UART_MCR_OUT1 ? UART_MSR_RI : 0;
	status |= s->mcr & UART_MCR_OUT2 ? UART_MSR_DCD : 0;
	return status;
}

/* Write some of what waits, without waiting. */
static ssize_t write_some(const struct serial *serial)
{
	struct pollfd fd = { .fd = serial->output, .events = POLLOUT };

	switch (serial->how) {
	case BY_WRITE:
		return write(serial->output, serial->waiting, serial->unsent);
	case BY_SEND:
		return send(serial->output, serial->waiting, serial->unsent,
			    MSG_DONTWAIT | MSG_NOSIGNAL);
	case BY_BYTE:
		if (poll(&fd, 1, 0) > 0)
			return write(serial->output, serial->waiting, 1);
		break;
	}
	errno = EAGAIN;
	return -1;
}

/* Write what waits, as much as is taken at once. */
static void flush(struct serial *serial)
{
	while (serial->unsent) {
		ssize_t n = write_some(serial);

		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0 && errno == EAGAIN)
			return;
		/* The guest goes on without a reader, as with a cable that is not plugged in. */
		if (n < 0)
			n = (ssize_t)serial->unsent;
		serial->unsent -= (size_t)n;
		memmove(serial->waiting, serial->waiting + n, serial->unsent);
	}
}

static void transmit(struct serial *serial, uint8_t byte)
{
	if (serial->s.mcr & UART_MCR_LOOP) {
		put(&serial->s, byte);
	} else if (serial->unsent < UNSENT_MAX) {
		serial->waiting[serial->unsent++] = byte;
		flush(serial);
	}
	serial->s.sent = 1;
}

static void set_ier(struct serial_state *s, uint8_t value)
{
	/* The driver learns that the transmitter works when it asks to be told. */
	if ((value & UART_IER_THRI) && !(s->ier & UART_IER_THRI))
		s->sent = 1;
	s->ier = value & 0x0f;
}

static void set_fcr(struct serial *serial, uint8_t value)
{
	if (value & UART_FCR_CLEAR_RCVR) {
		serial->s.received = 0;
		wake(serial);
	}
	serial->s.fcr = value & (UART_FCR_ENABLE_FIFO | UART_FCR_TRIGGER_MASK);
}

static uint8_t read_iir(struct serial_state *s)
{
	uint8_t why = reason(s);

	if (why == UART_IIR_THRI)
		s->sent = 0;
	return why | (s->fcr & UART_FCR_ENABLE_FIFO ? 0xc0 : 0);
}

static uint8_t read_register(struct serial *serial, unsigned reg)
{
	struct serial_state *s = &serial->s;
	const bool divisor = s->lcr & UART_LCR_DLAB;

	switch (reg) {
	case UART_RX:
		return divisor ? s->dll : take(serial);
	case UART_IER:
		return divisor ? s->dlm : s->ier;
	case UART_IIR:
		return read_iir(s);
	case UART_LCR:
		return s->lcr;
	case UART_MCR:
		return s->mcr;
	case UART_LSR:
		return UART_LSR_THRE | UART_LSR_TEMT | (s->received ? UART_LSR_DR : 0);
	case UART_MSR:
		return modem_status(s);
	case UART_SCR:
		return s->scr;
	}
	return 0xff;
}

static void write_register(struct serial *serial, unsigned reg, uint8_t value)
{
	struct serial_state *s = &serial->s;
	const bool divisor = s->lcr & UART_LCR_DLAB;

	switch (reg) {
	case UART_TX:
		if (divisor)
			s->dll = value;
		else
			transmit(serial, value);
		break;
	case UART_IER:
		if (divisor)
			s->dlm = value;
		else
			set_ier(s, value);
		break;
	case UART_FCR:
		set_fcr(serial, value);
		break;
	case UART_LCR:
		s->lcr = value;
		break;
	case UART_MCR:
		s->mcr = value & 0x1f;
		break;
	case UART_SCR:
		s->scr = value;
		break;
	}
}

/*
 * Until what was sent is written, or the VM is to pause or to end.  Others get the lock
 * meanwhile.
 */
static void wait_for_reader(struct serial *serial)
{
	struct pollfd fds[2] = {
		{ .fd = serial->held, .events = POLLIN },
		{ .fd = serial->output, .events = POLLOUT },
	};

	while (serial->unsent && !serial->hold) {
		pthread_mutex_unlock(&serial->lock);
		poll(fds, 2, -1);
		pthread_mutex_lock(&serial->lock);
		flush(serial);
	}
}

uint8_t serial_read(struct serial *serial, unsigned reg)
{
	uint8_t value;

	pthread_mutex_lock(&serial->lock);
	value = read_register(serial, reg);
	update_line(serial);
	pthread_mutex_unlock(&serial->lock);
	return value;
}

void serial_write(struct serial *serial, unsigned reg, uint8_t value)
{
	pthread_mutex_lock(&serial->lock);
	write_register(serial, reg, value);
	update_line(serial);
	wait_for_reader(serial);
	pthread_mutex_unlock(&serial->lock);
}

/* ---- input ------------------------------------------------------------------------ */

/* What to wait for now, -1 for nothing: input that the guest has room for, room for its output. */
static bool choose(struct serial *serial, int *input, int *output)
{
	bool stop;

	pthread_mutex_lock(&serial->lock);
	stop = serial->stop;
	*input = !serial->hold && serial->s.received < FIFO ? serial->input : -1;
	*output = !serial->hold && serial->unsent ? serial->output : -1;
	pthread_mutex_unlock(&serial->lock);
	return !stop;
}

/* What a pause left, or an earlier process: the guest may send nothing more for long. */
static void send_rest(struct serial *serial)
{
	pthread_mutex_lock(&serial->lock);
	if (!serial->hold)
		flush(serial);
	pthread_mutex_unlock(&serial->lock);
}

/* Read what is there, unless that has changed meanwhile.  False at the end of the input. */
static bool receive(struct serial *serial)
{
	uint8_t bytes[FIFO];
	ssize_t n = 0;

	pthread_mutex_lock(&serial->lock);
	if (!serial->hold && serial->s.received < FIFO) {
		n = read(serial->input, bytes, FIFO - serial->s.received);
		for (ssize_t i = 0; i < n; i++)
			put(&serial->s, bytes[i]);
		update_line(serial);
		if (n < 0 && (errno == EINTR || errno == EAGAIN))
			n = 1;
	} else {
		n = 1;
	}
	pthread_mutex_unlock(&serial->lock);
	return n > 0;
}

static void *console_thread(void *arg)
{
	struct serial *serial = arg;
	struct pollfd fds[3] = {
		{ .fd = serial->wake, .events = POLLIN },
		{ .events = POLLIN },
		{ .events = POLLOUT },
	};
	uint64_t drained;

	while (choose(serial, &fds[1].fd, &fds[2].fd)) {
		if (poll(fds, 3, -1) < 0)
			continue;
		if (fds[0].revents && read(serial->wake, &drained, sizeof(drained)) < 0)
			continue;
		if (fds[1].revents && !receive(serial))
			serial->input = -1;
		if (fds[2].revents)
			send_rest(serial);
	}
	return NULL;
}

/* ---- life ------------------------------------------------------------------------- */

/*
 * O_NONBLOCK belongs to the open file, which other processes have too: a shell its terminal.
 * So a pipe or a terminal is opened once more.
 */
static void set_output(struct serial *serial, int output)
{
	struct stat st = { 0 };
	char path[32];
	int own;

	serial->output = output;
	if (fstat(output, &st) || !(S_ISFIFO(st.st_mode) || S_ISCHR(st.st_mode))) {
		serial->how = S_ISSOCK(st.st_mode) ? BY_SEND : BY_WRITE;
		return;
	}
	snprintf(path, sizeof(path), "/proc/self/fd/%d", output);
	own = open(path, O_WRONLY | O_NONBLOCK | O_NOCTTY | O_CLOEXEC);
	serial->how = own < 0 ? BY_BYTE : BY_WRITE;
	if (own < 0)
		return;
	serial->output = own;
	serial->own_output = true;
}

int serial_new(struct serial **serial, struct vm *vm, int output)
{
	struct serial *s = calloc(1, sizeof(*s));

	if (!s)
		return vmm_error(-ENOMEM, "console: %m");
	s->vm = vm;
	set_output(s, output);
	s->wake = eventfd(0, EFD_CLOEXEC);
	s->held = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	pthread_mutex_init(&s->lock, NULL);
	*serial = s;
	return s->wake < 0 || s->held < 0 ? vmm_error(-errno, "console: %m") : 0;
}

int serial_start(struct serial *serial, int input)
{
	int err;

	serial->input = input;
	err = pthread_create(&serial->thread, NULL, console_thread, serial);
	serial->started = !err;
	return err ? vmm_error(-err, "console: its thread: %m") : 0;
}

void serial_free(struct serial *serial)
{
	if (!serial)
		return;
	pthread_mutex_lock(&serial->lock);
	serial->stop = true;
	pthread_mutex_unlock(&serial->lock);
	wake(serial);
	if (serial->started)
		pthread_join(serial->thread, NULL);
	if (serial->wake >= 0)
		close(serial->wake);
	if (serial->held >= 0)
		close(serial->held);
	if (serial->own_output)
		close(serial->output);
	free(serial);
}

void serial_hold(struct serial *serial, bool hold)
{
	uint64_t count = 1;

	pthread_mutex_lock(&serial->lock);
	serial->hold = hold;
	if (hold)
		(void)!write(serial->held, &count, sizeof(count));
	else
		(void)!read(serial->held, &count, sizeof(count));
	pthread_mutex_unlock(&serial->lock);
	wake(serial);
}

int serial_save(struct serial *serial, struct state *state)
{
	int err = state_add(state, STATE_SERIAL, 0, &serial->s, sizeof(serial->s));

	if (err || !serial->unsent)
		return err;
	return state_add(state, STATE_SERIAL_UNSENT, 0, serial->waiting, serial->unsent);
}

int serial_load(struct serial *serial, const struct state *state)
{
	struct serial_state s;
	const void *unsent;
	size_t bytes = 0;
	int err = state_get_fixed(state, STATE_SERIAL, 0, &s, sizeof(s));

	if (err)
		return err;
	if (s.received > FIFO)
		return vmm_error(-EBADMSG, "state: the console has %u bytes of %u", s.received,
				 FIFO);
	unsent = state_get(state, STATE_SERIAL_UNSENT, 0, &bytes);
	if (unsent && bytes > UNSENT_MAX)
		return vmm_error(-EBADMSG, "state: the console has %zu bytes to send", bytes);
	serial->s = s;
	serial->unsent = unsent ? bytes : 0;
	if (unsent)
		memcpy(serial->waiting, unsent, bytes);
	arch_serial_irq(serial->vm, s.level);
	return 0;
}
