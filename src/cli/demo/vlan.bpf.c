// SPDX-License-Identifier: MIT OR GPL-2.0-only
//
// Puts a host's device onto a VLAN, where the kernel has no 8021q device: every frame that leaves gets the tag, and of
// what comes only frames with the tag are taken, without it. Compiled by scripts/build-bpf.

typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;

#define SECTION(name) __attribute__((section(name), used))

// linux/pkt_cls.h
enum { TC_ACT_OK = 0, TC_ACT_SHOT = 2 };

struct __sk_buff {
    u32 len, pkt_type, mark, queue_mapping, protocol, vlan_present, vlan_tci, vlan_proto;
};

static long (*const vlan_push)(struct __sk_buff *frame, u16 protocol, u16 tag) = (void *)18;
static long (*const vlan_pop)(struct __sk_buff *frame) = (void *)19;

// The VLAN, set when the program is loaded.
const volatile u16 VLAN = 1;

// IEEE 802.1Q, in network order.
#define TAGGED __builtin_bswap16(0x8100)

SECTION("classifier")
int leave(struct __sk_buff *frame)
{
    return vlan_push(frame, TAGGED, VLAN) ? TC_ACT_SHOT : TC_ACT_OK;
}

SECTION("classifier")
int arrive(struct __sk_buff *frame)
{
    if (!frame->vlan_present || frame->vlan_proto != TAGGED || (frame->vlan_tci & 0xfff) != VLAN)
        return TC_ACT_SHOT;
    return vlan_pop(frame) ? TC_ACT_SHOT : TC_ACT_OK;
}

char LICENSE[] SECTION("license") = "Dual MIT/GPL";
