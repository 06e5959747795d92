// SPDX-License-Identifier: MIT OR GPL-2.0-only
//
// The kernel as source and sink of frames for perf/veth.rs, faster than any program could be. Compiled by
// scripts/build-bpf.

typedef unsigned int u32;
typedef unsigned long long u64;

#define SECTION(name) __attribute__((section(name), used))
#define NUMBER(name, value) int (*name)[value]
#define TYPE(name, type) type *name

enum { XDP_DROP = 1 };
enum { BPF_MAP_TYPE_ARRAY = 2, BPF_MAP_TYPE_PERCPU_ARRAY = 6 };

static void *(*const map_lookup)(void *map, const void *key) = (void *)1;
static long (*const redirect)(u32 device, u64 flags) = (void *)23;

// Index of the device that the source sends through.
struct {
    NUMBER(type, BPF_MAP_TYPE_ARRAY);
    NUMBER(max_entries, 1);
    TYPE(key, u32);
    TYPE(value, u32);
} TARGET SECTION(".maps");

// Frames that reached the sink.
struct {
    NUMBER(type, BPF_MAP_TYPE_PERCPU_ARRAY);
    NUMBER(max_entries, 1);
    TYPE(key, u32);
    TYPE(value, u64);
} RECEIVED SECTION(".maps");

// Run by BPF_PROG_TEST_RUN with live frames.
SECTION("xdp")
int source(void *context)
{
    u32 zero = 0;
    u32 *target = map_lookup(&TARGET, &zero);
    return target ? redirect(*target, 0) : XDP_DROP;
}

// Attached to the far end of a veth.
SECTION("xdp")
int sink(void *context)
{
    u32 zero = 0;
    u64 *received = map_lookup(&RECEIVED, &zero);
    if (received)
        *received += 1;
    return XDP_DROP;
}

char LICENSE[] SECTION("license") = "Dual MIT/GPL";
