// SPDX-License-Identifier: MIT OR GPL-2.0-only
//
// The kernel as source and sink of frames for perf/veth, faster than any program could be. Compiled by
// scripts/build-bpf.

typedef unsigned int u32;
typedef unsigned long long u64;

#define SECTION(name) __attribute__((section(name), used))
#define NUMBER(name, value) int (*name)[value]
#define TYPE(name, type) type *name

enum { XDP_DROP = 1 };
enum { BPF_MAP_TYPE_ARRAY = 2, BPF_MAP_TYPE_PERCPU_ARRAY = 6 };

static void *(*const map_lookup)(void *map, const void *key) = (void *)1;
static u64 (*const nanoseconds)(void) = (void *)5;
static long (*const redirect)(u32 device, u64 flags) = (void *)23;
static long (*const store)(void *context, u32 offset, const void *bytes, u32 length) = (void *)190;

// Longest frame.
enum { FRAME = 1536 };
// Time is counted in parts of a nanosecond.
enum { PARTS = 1024 };
// Debts of the pace that are paid, in parts: a source that was held up for longer goes on from where it is.
enum { DEBT = 20000 * PARTS };

// What the source is to do, and has done. Written while it stands still.
struct order {
    // Index of the device to send through.
    u64 device;
    // Bytes of a frame.
    u64 length;
    // Frames to take in turn.
    u64 frames;
    // Parts of a nanosecond between two frames, 0 for as fast as it goes.
    u64 pace;
    // Frames to send.
    u64 most;
    // Frames sent.
    u64 sent;
    // When the next is due.
    u64 due;
    // When the first was.
    u64 begun;
};

struct {
    NUMBER(type, BPF_MAP_TYPE_ARRAY);
    NUMBER(max_entries, 1);
    TYPE(key, u32);
    TYPE(value, struct order);
} ORDER SECTION(".maps");

struct frame {
    unsigned char bytes[FRAME];
};

// The frames. The program that loads this says how many.
struct {
    NUMBER(type, BPF_MAP_TYPE_ARRAY);
    NUMBER(max_entries, 1);
    TYPE(key, u32);
    TYPE(value, struct frame);
} FRAMES SECTION(".maps");

// Frames that reached the sink.
struct {
    NUMBER(type, BPF_MAP_TYPE_PERCPU_ARRAY);
    NUMBER(max_entries, 1);
    TYPE(key, u32);
    TYPE(value, u64);
} RECEIVED SECTION(".maps");

// Not 0 when the source is to end before it has sent all.
struct {
    NUMBER(type, BPF_MAP_TYPE_ARRAY);
    NUMBER(max_entries, 1);
    TYPE(key, u32);
    TYPE(value, u32);
} STOP SECTION(".maps");

// Run by BPF_PROG_TEST_RUN with live frames of the order's length.
SECTION("xdp")
int source(void *context)
{
    u32 zero = 0;
    struct order *order = map_lookup(&ORDER, &zero);
    u32 *stop = map_lookup(&STOP, &zero);
    if (!order || !stop || *stop || order->sent >= order->most)
        return XDP_DROP;
    if (order->pace) {
        u64 now = nanoseconds() * PARTS;
        if (now < order->due)
            return XDP_DROP;
        if (!order->begun)
            order->begun = order->due = now;
        order->due = (now - order->due > DEBT ? now - DEBT : order->due) + order->pace;
    }
    u32 which = order->sent % order->frames;
    struct frame *frame = map_lookup(&FRAMES, &which);
    u32 length = order->length;
    // Keeps the compiler from reading the length once more, behind the check.
    __asm__ volatile("" : "+r"(length));
    if (!frame || length < 14 || length > FRAME || store(context, 0, frame->bytes, length))
        return XDP_DROP;
    order->sent++;
    return redirect(order->device, 0);
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
