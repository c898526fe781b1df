# SPDX-License-Identifier: MIT
# Makefile: builds everything into build/.  New .c files are found by themselves;
# change flags, install paths and new kinds of programs here.
#
#   make [V=1] [CC=clang]           library, command, shim, reference VMM
#   make tests bench fuzz examples  what their names say
#   make install DESTDIR= PREFIX=/usr/local
#   make SAN=address,undefined      the same into build/asan
#   make SAN=thread                 the same into build/tsan
#   make SYSTEMD=0                  without libsystemd, and so without --fd-store

.DELETE_ON_ERROR:
.SUFFIXES:
MAKEFLAGS += --no-builtin-rules

VERSION := $(shell sed -n 's/^.define INFILL_VERSION "\(.*\)"$$/\1/p' lib/include/infill.h)
SOVERSION := $(firstword $(subst ., ,$(VERSION)))

PREFIX ?= /usr/local
DESTDIR ?=
V ?= 0
SAN ?=
SYSTEMD ?= 1

ifeq ($(origin CC),default)
CC := gcc
endif
LD ?= ld
CLANG ?= clang
PKG_CONFIG ?= pkg-config

ifeq ($(SAN),)
B := build
else ifeq ($(SAN),thread)
B := build/tsan
else
B := build/asan
endif

# ---- sources: one list each, sorted ----------------------------------------

LIB_SRC := $(filter-out $(if $(filter 0,$(SYSTEMD)),lib/src/fdstore.c),$(sort $(wildcard lib/src/*.c)))
CLI_SRC := $(filter-out cli/shim.c,$(sort $(wildcard cli/*.c)))
SHIM_SRC := $(sort $(wildcard cli/shim.c))
# The reference VMM; VMM_ARCH is the machine that it is built for, as uname -m has it.
VMM_ARCH ?= $(shell uname -m)
VMM_FOLDER := $(patsubst aarch64,arm64,$(patsubst x86_64,x86,$(VMM_ARCH)))
VMM_SRC := $(sort $(wildcard vmm/*.c vmm/$(VMM_FOLDER)/*.c))
# What several tests share; a test program takes from it what it needs.
SUPPORT_SRC := $(sort $(wildcard lib/test/fake/*.c))
# Programs in a folder `helper` are run by other tests, from build/test/helper/.
TEST_SRC := $(sort $(foreach g,unit pager crash bad-input helper,$(wildcard lib/test/$(g)/*.c))) \
	$(sort $(wildcard cli/test/*.c cli/test/helper/*.c))
# Tests for machines of the lab, each with what the folder shares.
LAB_TEST_SRC := lib/test/lab/engine.c
# A pager in another process, and what that is made of.
LAB_SUPPORT_SRC := $(filter-out $(LAB_TEST_SRC),$(sort $(wildcard lib/test/lab/*.c))) \
	$(addprefix lib/test/fake/,fakeimage.c fakeload.c fakeserver.c fakevmm.c)
VMM_TEST_SRC := $(sort $(wildcard vmm/test/unit/*.c vmm/test/unit/$(VMM_FOLDER)/*.c))
BENCH_SRC := $(sort $(wildcard bench/*.c))
FUZZ_SRC := $(sort $(wildcard lib/fuzz/*.c))
VMM_FUZZ_SRC := $(sort $(wildcard vmm/fuzz/*.c))
EXAMPLE_SRC := $(sort $(wildcard examples/*.c))
MAN := $(sort $(wildcard man/*.1 man/*.3 man/*.7))

objects = $(patsubst %.c,$(B)/obj/%.o,$(1))

# ---- flags -----------------------------------------------------------------

# libxxhash is used from its header alone.
PACKAGES := liburing jansson $(if $(filter-out 0,$(SYSTEMD)),libsystemd) libxxhash
PACKAGE_CFLAGS := $(shell $(PKG_CONFIG) --cflags $(PACKAGES))
PACKAGE_LIBS := $(shell $(PKG_CONFIG) --libs $(PACKAGES))

CFLAGS ?= -O2 -g
WARNINGS := -Wall -Wextra -Werror -Wshadow -Wmissing-prototypes -Wstrict-prototypes \
	-Wold-style-definition -Wformat=2 -Wundef -Wwrite-strings -Wpointer-arith
# _GNU_SOURCE is empty so that a source that defines it too agrees.
CPPFLAGS_ALL = -D_GNU_SOURCE= -Ilib/include -Ilib/src $(CPPFLAGS)
CPPFLAGS_ALL += $(if $(filter 0,$(SYSTEMD)),-DINFILL_NO_SYSTEMD)
CFLAGS_ALL = -std=gnu11 $(CFLAGS) $(WARNINGS) -pthread -fPIC -fvisibility=hidden \
	-ffunction-sections -fdata-sections -fno-omit-frame-pointer $(PACKAGE_CFLAGS)
LDFLAGS_ALL = -pthread -Wl,--as-needed $(LDFLAGS)
ifeq ($(SAN),)
CPPFLAGS_ALL += -D_FORTIFY_SOURCE=2
CFLAGS_ALL += -fstack-protector-strong
LDFLAGS_ALL += -Wl,-z,relro,-z,now
else
CFLAGS_ALL += -fsanitize=$(SAN) -fno-sanitize-recover=undefined
LDFLAGS_ALL += -fsanitize=$(SAN)
# gcc's TSan does not follow fences.  One that orders writes against the death of
# the process, for another process to see, is no race between threads.
CFLAGS_ALL += $(if $(filter thread,$(SAN)),-Wno-unknown-warning-option -Wno-tsan)
endif
CLI_CPPFLAGS := -DINFILL_LIBEXECDIR='"$(PREFIX)/lib/infill"'
TEST_CPPFLAGS := -Ilib/test/fake -Icli
FUZZ_FLAGS := -fsanitize=fuzzer-no-link,address,undefined -fno-sanitize-recover=undefined

ifeq ($(V),0)
Q := @
say = @printf '  %-5s %s\n' '$(1)' '$(2)'
else
Q :=
say = @:
endif

# ---- what there is to make -------------------------------------------------

STATIC := $(B)/libinfill.a
SHARED := $(B)/libinfill.so.$(VERSION)
SUPPORT := $(B)/obj/libsupport.a
# Nothing is linked before its first source exists.
ALL := $(if $(LIB_SRC),$(STATIC) $(B)/libinfill.pc) \
	$(if $(wildcard lib/libinfill.map),$(SHARED)) \
	$(if $(CLI_SRC),$(B)/infill) $(if $(VMM_SRC),$(B)/infill-vmm) $(if $(SHIM_SRC),$(B)/libinfill-attach.so)
test_group = $(patsubst cli/test/%.c,cli/%.c,$(patsubst cli/test/helper/%.c,helper/%.c,\
	$(patsubst lib/test/%.c,%.c,$(1))))
TESTS := $(foreach t,$(TEST_SRC),$(B)/test/$(basename $(call test_group,$(t)))) \
	$(foreach t,$(VMM_TEST_SRC),$(B)/test/unit/$(basename $(notdir $(t))))
FUZZERS := $(patsubst lib/fuzz/%.c,build/fuzz/%,$(FUZZ_SRC)) \
	$(patsubst vmm/fuzz/%.c,build/fuzz/%,$(VMM_FUZZ_SRC))
EXAMPLES := $(patsubst examples/%.c,$(B)/examples/%,$(EXAMPLE_SRC))

.PHONY: all tests bench fuzz examples install uninstall clean FORCE
all: $(ALL)
tests: all $(TESTS)
bench: all $(if $(BENCH_SRC),$(B)/bench/restore)
fuzz: $(FUZZERS)
examples: $(EXAMPLES)

# Files that change only when the flags that they hold change; what is built
# with the flags depends on them.
define stamp
$(1): FORCE
	@mkdir -p $$(@D)
	@printf '%s\n' '$$(subst ','\'',$(2))' | cmp -s - $$@ || printf '%s\n' '$$(subst ','\'',$(2))' > $$@
endef
$(eval $(call stamp,$(B)/obj/flags,$$(CC) $$(CPPFLAGS_ALL) $$(CFLAGS_ALL) $$(LDFLAGS_ALL)))
$(eval $(call stamp,$(B)/obj/flags.cli,$$(CLI_CPPFLAGS)))
# Names of what goes into an archive or a program made of a folder: a file that
# was removed must leave it.
$(eval $(call stamp,$(B)/obj/sources,$$(LIB_SRC) . $$(CLI_SRC) . $$(VMM_SRC) . $$(SUPPORT_SRC) . $$(BENCH_SRC)))

# ---- objects ---------------------------------------------------------------

$(B)/obj/cli/%.o: CPPFLAGS_ALL += $(CLI_CPPFLAGS)
$(call objects,$(CLI_SRC) $(SHIM_SRC)): $(B)/obj/flags.cli
$(B)/obj/lib/test/%.o $(B)/obj/cli/test/%.o: CPPFLAGS_ALL += $(TEST_CPPFLAGS)

# The VMM includes what is installed of the library, nothing from inside it.
$(call objects,$(VMM_SRC) $(VMM_TEST_SRC)): CPPFLAGS_ALL := $(patsubst -Ilib/src,-Ivmm,$(CPPFLAGS_ALL))
$(call objects,$(VMM_TEST_SRC)): CPPFLAGS_ALL += -Ilib/test/unit

$(B)/obj/%.o: %.c $(B)/obj/flags
	$(call say,CC,$<)
	@mkdir -p $(@D)
	$(Q)$(CC) $(CPPFLAGS_ALL) $(CFLAGS_ALL) -MMD -MP -c -o $@ $<

-include $(patsubst %.o,%.d,$(call objects,$(LIB_SRC) $(CLI_SRC) $(SHIM_SRC) $(VMM_SRC) \
	$(SUPPORT_SRC) $(VMM_TEST_SRC) $(LAB_TEST_SRC) $(LAB_SUPPORT_SRC) $(TEST_SRC) $(BENCH_SRC) $(EXAMPLE_SRC)))

# ---- library ---------------------------------------------------------------

$(STATIC): $(call objects,$(LIB_SRC)) $(B)/obj/sources
	$(call say,AR,$@)
	$(Q)rm -f $@ && ar rcsD $@ $(filter %.o,$^)

# What is installed as libinfill.a: one object, whose internal symbols are local
# so that they cannot clash with a program's own.  Tests use $(STATIC), which has
# them all.
$(B)/installed/libinfill.a: $(call objects,$(LIB_SRC)) $(B)/obj/sources
	$(call say,AR,$@)
	@mkdir -p $(@D)
	$(Q)rm -f $@ && $(LD) -r -o $(@D)/infill.o $(filter %.o,$^) && \
		objcopy --localize-hidden $(@D)/infill.o && ar rcsD $@ $(@D)/infill.o && \
		rm $(@D)/infill.o

# That each symbol of the map exists is checked by scripts/test/abi/symbols.py.
$(SHARED): $(call objects,$(LIB_SRC)) lib/libinfill.map $(B)/obj/sources
	$(call say,LD,$@)
	$(Q)$(CC) -shared -o $@ $(LDFLAGS_ALL) $(if $(SAN),,-Wl$(comma)-z$(comma)defs) \
		-Wl,-soname,libinfill.so.$(SOVERSION) \
		-Wl,--version-script,lib/libinfill.map $(filter %.o,$^) $(PACKAGE_LIBS)
	$(Q)ln -sf libinfill.so.$(VERSION) $(B)/libinfill.so.$(SOVERSION)
	$(Q)ln -sf libinfill.so.$(SOVERSION) $(B)/libinfill.so
comma := ,

# Recipe of a pkg-config file: $(1) its path, $(2) includedir, $(3) libdir.
define write_pc
	$(Q)printf '%s\n' 'prefix=$(PREFIX)' 'includedir=$(2)' 'libdir=$(3)' '' 'Name: libinfill' \
		'Description: Populates the memory of KVM guests on demand and ahead of time' \
		'Version: $(VERSION)' 'Cflags: -I$${includedir}' 'Libs: -L$${libdir} -linfill' \
		'Libs.private: -pthread' \
		'Requires.private: $(filter-out libxxhash,$(PACKAGES))' > $(1)
endef

# The one in build/ serves the tree itself; install writes its own.
$(B)/libinfill.pc: lib/include/infill.h Makefile
	@mkdir -p $(@D)
	$(call write_pc,$@,$(CURDIR)/lib/include,$(CURDIR)/$(B))

# ---- command and shim ------------------------------------------------------

$(B)/infill: $(call objects,$(CLI_SRC)) $(STATIC) $(B)/obj/sources
	$(call say,LD,$@)
	$(Q)$(CC) -o $@ $(LDFLAGS_ALL) $(filter %.o %.a,$^) $(PACKAGE_LIBS)

ifeq ($(SAN),)
$(B)/libinfill-attach.so: $(call objects,$(SHIM_SRC)) $(STATIC)
	$(call say,LD,$@)
	$(Q)$(CC) -shared -o $@ $(LDFLAGS_ALL) -Wl,-z,defs -Wl,--exclude-libs,ALL -Wl,--gc-sections \
		$(filter %.o %.a,$^) $(PACKAGE_LIBS)
else
# A sanitizer's runtime cannot be preloaded into a VMM that has none.
$(B)/libinfill-attach.so: FORCE
	@$(MAKE) --no-print-directory SAN= build/libinfill-attach.so
	@mkdir -p $(@D)
	@cmp -s build/libinfill-attach.so $@ || cp build/libinfill-attach.so $@
endif

# ---- reference VMM ----------------------------------------------------------

# What it needs of the library as one object whose other symbols are local: a VMM
# has a vm.c and a memory.c of its own.  Nothing of the server is in it, so that it
# can be linked statically with liburing alone (lab/static).
OBJCOPY = $(patsubst %gcc,%objcopy,$(if $(findstring gcc,$(CC)),$(CC),gcc))
$(B)/obj/vmm/infill.o: $(call objects,$(VMM_SRC)) $(STATIC)
	@mkdir -p $(@D)
	$(Q)$(CC) -nostdlib -r -o $@ $$(nm -u $(filter %.o,$^) | \
		sed -n 's/^ *U \(infill_[a-z0-9_]*\)$$/-Wl,-u,\1/p' | sort -u) $(STATIC)
	$(Q)$(OBJCOPY) --localize-hidden $@

# Device trees are arm64's; the library has no pkg-config file in Debian 12.
VMM_LIBS := $(if $(filter arm64,$(VMM_FOLDER)),-lfdt)
$(B)/infill-vmm: $(call objects,$(VMM_SRC)) $(B)/obj/vmm/infill.o $(B)/obj/sources
	$(call say,LD,$@)
	$(Q)$(CC) -o $@ $(LDFLAGS_ALL) $(filter %.o,$^) $(PACKAGE_LIBS) $(VMM_LIBS)

# ---- tests, bench, examples ------------------------------------------------

$(SUPPORT): $(call objects,$(SUPPORT_SRC)) $(B)/obj/sources
	@rm -f $@ && ar rcsD $@ $(filter %.o,$^)

define test_program
$(B)/test/$(basename $(call test_group,$(1))): $(call objects,$(1)) $(SUPPORT) $(STATIC)
	$$(call say,LD,$$@)
	@mkdir -p $$(@D)
	$$(Q)$$(CC) -o $$@ $$(LDFLAGS_ALL) $$(filter %.o %.a,$$^) $$(PACKAGE_LIBS) -lcmocka -ldl -lm
endef
$(foreach t,$(TEST_SRC),$(eval $(call test_program,$(t))))

# A unit test of the VMM has all of it but main.c.
define vmm_test_program
$(B)/test/unit/$(basename $(notdir $(1))): $(call objects,$(1)) \
		$(call objects,$(filter-out vmm/main.c,$(VMM_SRC))) $(B)/obj/vmm/infill.o
	$$(call say,LD,$$@)
	@mkdir -p $$(@D)
	$$(Q)$$(CC) -o $$@ $$(LDFLAGS_ALL) $$(filter %.o,$$^) $$(PACKAGE_LIBS) $$(VMM_LIBS) -lcmocka
endef
$(foreach t,$(VMM_TEST_SRC),$(eval $(call vmm_test_program,$(t))))

# Of libinfill as the VMM has it; lab/static builds it for a machine of the lab.
$(patsubst lib/test/lab/%.c,$(B)/test/lab/%,$(LAB_TEST_SRC)): $(B)/test/lab/%: \
		$(B)/obj/lib/test/lab/%.o $(call objects,$(LAB_SUPPORT_SRC)) $(STATIC)
	$(call say,LD,$@)
	@mkdir -p $(@D)
	$(Q)$(CC) -o $@ $(LDFLAGS_ALL) $^ $(PACKAGE_LIBS)

$(B)/bench/restore: $(call objects,$(BENCH_SRC)) $(STATIC) $(B)/obj/sources
	$(call say,LD,$@)
	@mkdir -p $(@D)
	$(Q)$(CC) -o $@ $(LDFLAGS_ALL) $(filter %.o %.a,$^) $(PACKAGE_LIBS) -lm

$(B)/examples/%: $(B)/obj/examples/%.o $(STATIC)
	$(call say,LD,$@)
	@mkdir -p $(@D)
	$(Q)$(CC) -o $@ $(LDFLAGS_ALL) $(filter %.o %.a,$^) $(PACKAGE_LIBS)

# ---- fuzz: clang's libFuzzer, the library built again for it ----------------

FUZZ_INCLUDES := -Ilib/include -Ilib/src
build/fuzz/obj/vmm/%.o: FUZZ_INCLUDES := -Ilib/include -Ivmm

build/fuzz/obj/%.o: %.c Makefile
	$(call say,FUZZ,$<)
	@mkdir -p $(@D)
	$(Q)$(CLANG) $(CPPFLAGS) -D_GNU_SOURCE= $(FUZZ_INCLUDES) -std=gnu11 -O1 -g \
		$(WARNINGS) -Wno-missing-prototypes -pthread $(PACKAGE_CFLAGS) $(FUZZ_FLAGS) \
		-MMD -MP -c -o $@ $<

build/fuzz/%: build/fuzz/obj/lib/fuzz/%.o $(patsubst %.c,build/fuzz/obj/%.o,$(LIB_SRC))
	$(call say,LD,$@)
	$(Q)$(CLANG) -pthread -fsanitize=fuzzer,address,undefined -o $@ $^ $(PACKAGE_LIBS)

# One reader of the VMM each, without the rest of it.
build/fuzz/vmm_state_fuzz: $(patsubst %,build/fuzz/obj/vmm/%.o,fuzz/vmm_state_fuzz state file)
	$(call say,LD,$@)
	@mkdir -p $(@D)
	$(Q)$(CLANG) -fsanitize=fuzzer,address,undefined -o $@ $^

-include $(patsubst %.c,build/fuzz/obj/%.d,$(LIB_SRC) $(FUZZ_SRC) $(VMM_FUZZ_SRC) vmm/state.c vmm/file.c)

# ---- install ---------------------------------------------------------------

D = $(DESTDIR)$(PREFIX)
install: all $(B)/installed/libinfill.a
	$(call say,INST,$(D))
	$(Q)install -d $(D)/bin $(D)/include $(D)/lib/infill $(D)/lib/pkgconfig
	$(Q)install -m 755 $(B)/infill $(B)/infill-vmm $(D)/bin/
	$(Q)install -m 644 $(B)/libinfill-attach.so $(D)/lib/infill/
	$(Q)install -m 644 lib/include/infill.h $(D)/include/
	$(Q)install -m 644 $(B)/installed/libinfill.a $(SHARED) $(D)/lib/
	$(Q)ln -sf libinfill.so.$(VERSION) $(D)/lib/libinfill.so.$(SOVERSION)
	$(Q)ln -sf libinfill.so.$(SOVERSION) $(D)/lib/libinfill.so
	$(call write_pc,$(D)/lib/pkgconfig/libinfill.pc,$${prefix}/include,$${prefix}/lib)
	$(Q)for page in $(MAN); do \
		install -D -m 644 $$page $(D)/share/man/man$${page##*.}/$${page##*/} || exit; done
	$(Q)scripts/man-aliases $(D)/share/man/man3

uninstall:
	rm -rf $(D)/bin/infill $(D)/bin/infill-vmm $(D)/lib/infill $(D)/include/infill.h $(D)/lib/libinfill.* \
		$(D)/lib/pkgconfig/libinfill.pc $(D)/share/man/man*/infill*.[137]

# What was downloaded (build/guest, build/apt) and the logs stay.
clean:
	rm -rf build/obj build/test build/bench build/fuzz build/examples build/asan build/tsan \
		build/installed build/infill build/infill-vmm build/libinfill*
