/* SPDX-License-Identifier: MIT */
/*
 * acpi.c: what a guest must be told of its machine that it cannot ask: which CPUs
 * and interrupt controllers there are (MADT), and how it is powered off (FADT, and
 * the sleep state _S5 in the DSDT), since Linux powers a PC off by ACPI alone.
 *
 * Power management ports, from X86_PM on, as the FADT has them:
 *	0  event status, 2 bytes: nothing ever happens
 *	2  event enable, 2 bytes: nothing can be enabled
 *	4  control, 2 bytes: ACPI is on; sleep type and the bit that goes to sleep
 *	8  reset, 1 byte: the value 1
 * They have no state.  Names of fields are the ACPI specification's.
 */
#include <string.h>

#include "arch.h"
#include "x86.h"

#define EVENT 0
#define CONTROL 4
#define RESET 8
#define RESET_VALUE 1

#define CONTROL_SCI_EN 1u
#define CONTROL_SLP_EN (1u << 13)
#define SLP_TYP(control) ((control) >> 10 & 7)
#define S5 5 /* as in `aml` below */

struct __attribute__((packed)) rsdp {
	char signature[8];
	uint8_t checksum;
	char oem[6];
	uint8_t revision;
	uint32_t rsdt, length;
	uint64_t xsdt;
	uint8_t extended_checksum, reserved[3];
};

struct __attribute__((packed)) table {
	char signature[4];
	uint32_t length;
	uint8_t revision, checksum;
	char oem[6], oem_table[8];
	uint32_t oem_revision;
	char creator[4];
	uint32_t creator_revision;
};

struct __attribute__((packed)) xsdt {
	struct table table;
	uint64_t entry[2];
};

struct __attribute__((packed)) fadt {
	struct table table;
	uint32_t facs, dsdt;
	uint8_t model, profile;
	uint16_t sci_int;
	uint32_t smi_cmd;
	uint8_t acpi_enable, acpi_disable, s4bios_req, pstate_cnt;
	uint32_t pm1a_evt_blk, pm1b_evt_blk, pm1a_cnt_blk, pm1b_cnt_blk;
	uint32_t pm2_cnt_blk, pm_tmr_blk, gpe0_blk, gpe1_blk;
	uint8_t pm1_evt_len, pm1_cnt_len, pm2_cnt_len, pm_tmr_len;
	uint8_t gpe0_len, gpe1_len, gpe1_base, cst_cnt;
	uint16_t p_lvl2_lat, p_lvl3_lat, flush_size, flush_stride;
	uint8_t duty_offset, duty_width, day_alrm, mon_alrm, century;
	uint16_t iapc_boot_arch;
	uint8_t reserved;
	uint32_t flags;
	struct __attribute__((packed)) {
		uint8_t space, width, offset, access;
		uint64_t address;
	} reset_reg;
	uint8_t reset_value;
	uint16_t arm_boot_arch;
	uint8_t minor;
	uint64_t x_facs, x_dsdt;
	uint8_t x_blocks[96]; /* zero: those from above hold */
};

#define FADT_WBINVD (1u << 0)
#define FADT_PROC_C1 (1u << 2)
#define FADT_NO_FIXED_BUTTONS (3u << 4)
#define FADT_NO_FIXED_RTC (1u << 6)
#define FADT_RESET_REG (1u << 10)
#define BOOT_NO_VGA (1u << 2)
#define BOOT_NO_RTC (1u << 5)

struct __attribute__((packed)) facs {
	char signature[4];
	uint32_t length;
	uint8_t rest[56];
};

/* Name (_S5, Package (4) { 5, 5, 0, 0 }) */
static const uint8_t aml[] = {
	0x08, '_', 'S', '5', '_', 0x12, 0x08, 0x04, 0x0a, S5, 0x0a, S5, 0x00, 0x00,
};

struct __attribute__((packed)) dsdt {
	struct table table;
	uint8_t aml[sizeof(aml)];
};

struct __attribute__((packed)) lapic {
	uint8_t type, length, uid, apic_id;
	uint32_t flags;
};

struct __attribute__((packed)) ioapic {
	uint8_t type, length, id, reserved;
	uint32_t address, gsi_base;
};

struct __attribute__((packed)) override {
	uint8_t type, length, bus, source;
	uint32_t gsi;
	uint16_t flags;
};

struct __attribute__((packed)) madt {
	struct table table;
	uint32_t lapic_address, flags;
	struct ioapic ioapic;
	struct override timer, sci;
	struct lapic lapic[VCPUS_MAX];
};

/* Where each of them is, from X86_ACPI on; the specification wants multiples of 64 for one. */
struct __attribute__((packed)) all {
	struct rsdp rsdp __attribute__((aligned(64)));
	struct xsdt xsdt __attribute__((aligned(64)));
	struct facs facs __attribute__((aligned(64)));
	struct dsdt dsdt __attribute__((aligned(64)));
	struct fadt fadt __attribute__((aligned(64)));
	struct madt madt __attribute__((aligned(64)));
};

_Static_assert(sizeof(struct all) <= X86_ACPI_END - X86_ACPI, "the tables fit");
_Static_assert(sizeof(struct fadt) == 244, "as long as the FADT of ACPI 3.0");

static uint8_t checksum(const void *data, size_t length)
{
	const uint8_t *at = data;
	uint8_t sum = 0;

	while (length--)
		sum = (uint8_t)(sum + *at++);
	return (uint8_t)-sum;
}

static void seal(struct table *table, const char *signature, size_t length, uint8_t revision)
{
	memcpy(table->signature, signature, sizeof(table->signature));
	table->length = (uint32_t)length;
	table->revision = revision;
	memcpy(table->oem, "INFILL", sizeof(table->oem));
	memcpy(table->oem_table, "INFILVMM", sizeof(table->oem_table));
	memcpy(table->creator, "INFL", sizeof(table->creator));
	table->checksum = 0;
	table->checksum = checksum(table, length);
}

static void make_fadt(struct fadt *fadt, uint64_t facs, uint64_t dsdt)
{
	fadt->facs = (uint32_t)facs;
	fadt->dsdt = (uint32_t)dsdt;
	fadt->x_dsdt = dsdt;
	fadt->sci_int = X86_SCI_IRQ;
	fadt->pm1a_evt_blk = X86_PM + EVENT;
	fadt->pm1_evt_len = 4;
	fadt->pm1a_cnt_blk = X86_PM + CONTROL;
	fadt->pm1_cnt_len = 2;
	fadt->p_lvl2_lat = fadt->p_lvl3_lat = UINT16_MAX; /* no such sleep of a CPU */
	fadt->iapc_boot_arch = BOOT_NO_VGA | BOOT_NO_RTC;
	fadt->flags = FADT_WBINVD | FADT_PROC_C1 | FADT_NO_FIXED_BUTTONS | FADT_NO_FIXED_RTC |
		      FADT_RESET_REG;
	fadt->reset_reg.space = 1; /* ports */
	fadt->reset_reg.width = 8;
	fadt->reset_reg.access = 1;
	fadt->reset_reg.address = X86_PM + RESET;
	fadt->reset_value = RESET_VALUE;
	seal(&fadt->table, "FACP", sizeof(*fadt), 3);
}

static void make_madt(struct madt *madt, unsigned vcpus)
{
	const uint16_t level_high = 0xd;

	madt->lapic_address = X86_LAPIC;
	madt->flags = 1; /* there is a pair of 8259 */
	madt->ioapic = (struct ioapic){
		.type = 1, .length = sizeof(madt->ioapic), .address = X86_IOAPIC,
	};
	madt->timer = (struct override){
		.type = 2, .length = sizeof(madt->timer), .source = 0, .gsi = 2,
	};
	madt->sci = (struct override){
		.type = 2, .length = sizeof(madt->sci), .source = X86_SCI_IRQ,
		.gsi = X86_SCI_IRQ, .flags = level_high,
	};
	for (unsigned i = 0; i < vcpus; i++)
		madt->lapic[i] = (struct lapic){
			.length = sizeof(madt->lapic[i]), .uid = (uint8_t)i,
			.apic_id = (uint8_t)i, .flags = 1,
		};
	seal(&madt->table, "APIC",
	     offsetof(struct madt, lapic) + vcpus * sizeof(madt->lapic[0]), 3);
}

void x86_acpi(struct vm *vm)
{
	struct all *all = vm_memory(vm, X86_ACPI, sizeof(*all));

	memset(all, 0, sizeof(*all));
	memcpy(all->facs.signature, "FACS", sizeof(all->facs.signature));
	all->facs.length = sizeof(all->facs);
	memcpy(all->dsdt.aml, aml, sizeof(aml));
	seal(&all->dsdt.table, "DSDT", sizeof(all->dsdt), 2);
	make_fadt(&all->fadt, X86_ACPI + offsetof(struct all, facs),
		  X86_ACPI + offsetof(struct all, dsdt));
	make_madt(&all->madt, vm->vcpus);
	all->xsdt.entry[0] = X86_ACPI + offsetof(struct all, fadt);
	all->xsdt.entry[1] = X86_ACPI + offsetof(struct all, madt);
	seal(&all->xsdt.table, "XSDT", sizeof(all->xsdt), 1);

	memcpy(all->rsdp.signature, "RSD PTR ", sizeof(all->rsdp.signature));
	memcpy(all->rsdp.oem, "INFILL", sizeof(all->rsdp.oem));
	all->rsdp.revision = 2;
	all->rsdp.length = sizeof(all->rsdp);
	all->rsdp.xsdt = X86_ACPI + offsetof(struct all, xsdt);
	all->rsdp.checksum = checksum(&all->rsdp, offsetof(struct rsdp, length));
	all->rsdp.extended_checksum = checksum(&all->rsdp, sizeof(all->rsdp));
}

uint32_t x86_pm_read(unsigned offset)
{
	return offset == CONTROL ? CONTROL_SCI_EN : 0;
}

enum next x86_pm_write(unsigned offset, uint32_t value)
{
	if (offset == CONTROL && (value & CONTROL_SLP_EN) && SLP_TYP(value) == S5)
		return NEXT_POWER_OFF;
	if (offset == RESET && value == RESET_VALUE)
		return NEXT_RESET;
	return NEXT_RUN;
}
