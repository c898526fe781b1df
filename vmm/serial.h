/* SPDX-License-Identifier: MIT */
/*
 * serial.h: a 16550A, the console of every guest: what the guest sends goes to
 * one fd, what another fd has to read reaches the guest.  It knows registers,
 * not buses: an architecture maps register N to port base + N, or to an MMIO
 * address.  Its interrupt is arch_serial_irq(), a level.
 */
#ifndef INFILL_VMM_SERIAL_H
#define INFILL_VMM_SERIAL_H

#include <stdbool.h>
#include <stdint.h>

#include "state.h"

struct serial;
struct vm;

/* Registers, bytes apart; what a driver has to be told of the clock is no more than that. */
#define SERIAL_REGISTERS 8
#define SERIAL_CLOCK_HZ 1843200

/*
 * OUTPUT gets what the guest sends; if nobody takes it the guest waits, and a pause need
 * not.  *SERIAL is freed by serial_free().
 */
int serial_new(struct serial **serial, struct vm *vm, int output);

/*
 * Start to feed the guest what INPUT has, until its end, and to write what an earlier pause
 * left; once, when the VM runs.
 */
int serial_start(struct serial *serial, int input);

/* Stop the thread of serial_start() and free; NULL is ignored. */
void serial_free(struct serial *serial);

/* A guest's access to register 0 to 7.  vCPU threads. */
uint8_t serial_read(struct serial *serial, unsigned reg);
void serial_write(struct serial *serial, unsigned reg, uint8_t value);

/*
 * Hold back input while the VM is paused, so that nothing in the guest changes, and go on.
 * No vCPU waits for the output's reader meanwhile: what it sent is kept.  vm_pause() and
 * vm_resume() call these, and vm_stop() so that all vCPUs end.
 */
void serial_hold(struct serial *serial, bool hold);

/*
 * The complete state as a record of STATE, while held.  serial_load() comes after
 * arch_load(), and sets the level of the interrupt line anew.
 */
int serial_save(struct serial *serial, struct state *state);
int serial_load(struct serial *serial, const struct state *state);

#endif
