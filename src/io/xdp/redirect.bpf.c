// SPDX-License-Identifier: MIT OR GPL-2.0-only
//
// Decides for each frame that a port receives: to the gateway's socket, or up to the kernel.
//
// Compiled by scripts/build-bpf; the object beside this file is what the program loads. No headers of the kernel or
// of libbpf are used, so the same compiler makes the same bytes anywhere.
//
// The order of the questions is the meaning of this file. The first that applies decides:
//
//   the program is off                                pass
//   the port belongs to the gateway alone             redirect
//   VLAN-tagged                                       redirect
//   ARP, LLDP, LACP, STP                              pass
//   multicast, broadcast, link-local destination      pass
//   neighbour discovery                               pass
//   not to an address of ours                         redirect
//   to an address where tunnels end:
//     ESP, fragments too                              redirect
//     UDP 500                                         pass
//     UDP 4500: IKE (zero marker) or keepalive        pass
//     UDP 4500: anything else                         redirect
//   to a NAT address: a listed service                pass
//   to a NAT address: anything else                   redirect
//   to an address of ours: the rest                   pass
//
// Later fragments of a datagram go where its first fragment went. To redirect is to give the frame to the socket of
// the receive queue; without a socket the frame is dropped, so that nothing gets around the gateway.

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;

#define SECTION(name) __attribute__((section(name), used))
#define INLINE static inline __attribute__((always_inline))
#define NUMBER(name, value) int (*name)[value]
#define TYPE(name, type) type *name

// linux/bpf.h
enum { XDP_DROP = 1, XDP_PASS = 2, XDP_REDIRECT = 4 };
enum {
    BPF_MAP_TYPE_HASH = 1,
    BPF_MAP_TYPE_ARRAY = 2,
    BPF_MAP_TYPE_PERCPU_ARRAY = 6,
    BPF_MAP_TYPE_LRU_HASH = 9,
    BPF_MAP_TYPE_LPM_TRIE = 11,
    BPF_MAP_TYPE_XSKMAP = 17,
};
enum { BPF_F_NO_PREALLOC = 1 };

struct xdp_md {
    u32 data, data_end, data_meta, ingress_ifindex, rx_queue_index, egress_ifindex;
};

static void *(*const map_lookup)(void *map, const void *key) = (void *)1;
static long (*const map_update)(void *map, const void *key, const void *value, u64 flags) = (void *)2;
static long (*const redirect_map)(void *map, u64 key, u64 flags) = (void *)51;

// Flags of SETTINGS. src/io/xdp/program.rs has the same, and the verdicts too.
enum { SETTING_ON = 1, SETTING_EXCLUSIVE = 2 };
// Flags of an own address. None: the kernel's own, like any address of a host.
enum { ADDRESS_TUNNEL = 1, ADDRESS_NAT = 2 };

enum verdict {
    OFF,          // pass: the program is off
    EXCLUSIVE,    // redirect: the port belongs to the gateway alone
    TAGGED,       // redirect: VLAN-tagged
    LINK_CONTROL, // pass: ARP, LLDP, LACP, STP
    MULTICAST,    // pass: multicast, broadcast, link-local
    NEIGHBOUR,    // pass: neighbour discovery
    UNREADABLE,   // redirect: no header that can be read; the gateway drops it with its own reason
    TRANSIT,      // redirect: not to an address of ours
    ESP,          // redirect: ESP to a tunnel address
    IKE,          // pass: UDP 500, and IKE or keepalives on UDP 4500
    ESP_IN_UDP,   // redirect: other UDP 4500
    SERVICE,      // pass: a listed service of a NAT address
    NAT,          // redirect: anything else to a NAT address
    HOST,         // pass: anything else to an address of ours
    NO_SOCKET,    // drop: to be redirected, but the queue has no socket
    VERDICTS,
};

struct {
    NUMBER(type, BPF_MAP_TYPE_XSKMAP);
    NUMBER(max_entries, 256);
    TYPE(key, u32);
    TYPE(value, u32);
} SOCKETS SECTION(".maps");

struct {
    NUMBER(type, BPF_MAP_TYPE_ARRAY);
    NUMBER(max_entries, 1);
    TYPE(key, u32);
    TYPE(value, u32);
} SETTINGS SECTION(".maps");

struct {
    NUMBER(type, BPF_MAP_TYPE_PERCPU_ARRAY);
    NUMBER(max_entries, VERDICTS);
    TYPE(key, u32);
    TYPE(value, u64);
} COUNTERS SECTION(".maps");

struct prefix4 {
    u32 length;
    u8 address[4];
};

struct prefix6 {
    u32 length;
    u8 address[16];
};

struct {
    NUMBER(type, BPF_MAP_TYPE_LPM_TRIE);
    NUMBER(map_flags, BPF_F_NO_PREALLOC);
    NUMBER(max_entries, 65536);
    TYPE(key, struct prefix4);
    TYPE(value, u32);
} ADDRESSES4 SECTION(".maps");

struct {
    NUMBER(type, BPF_MAP_TYPE_LPM_TRIE);
    NUMBER(map_flags, BPF_F_NO_PREALLOC);
    NUMBER(max_entries, 65536);
    TYPE(key, struct prefix6);
    TYPE(value, u32);
} ADDRESSES6 SECTION(".maps");

// The kernel's services on NAT addresses: protocol, and destination port as it stands in the packet (0 for protocols
// without ports).
struct service {
    u8 protocol;
    u8 zero;
    u16 port;
};

struct {
    NUMBER(type, BPF_MAP_TYPE_HASH);
    NUMBER(max_entries, 1024);
    TYPE(key, struct service);
    TYPE(value, u32);
} SERVICES SECTION(".maps");

// Where the first fragment of a datagram went. The oldest entries go first.
struct datagram {
    u32 source[4];
    u32 destination[4];
    u32 identification;
    u32 protocol;
};

struct {
    NUMBER(type, BPF_MAP_TYPE_LRU_HASH);
    NUMBER(max_entries, 4096);
    TYPE(key, struct datagram);
    TYPE(value, u32);
} FRAGMENTS SECTION(".maps");

#define BE16(x) ((u16)((((x) & 0xff) << 8) | (((x) >> 8) & 0xff)))

enum {
    ETHERTYPE_IPV4 = 0x0800,
    ETHERTYPE_ARP = 0x0806,
    ETHERTYPE_VLAN = 0x8100,
    ETHERTYPE_IPV6 = 0x86dd,
    ETHERTYPE_SLOW = 0x8809, // LACP and its kin
    ETHERTYPE_QINQ = 0x88a8,
    ETHERTYPE_LLDP = 0x88cc,
    ETHERTYPE_OLD_QINQ = 0x9100,
    LARGEST_LENGTH = 1500, // below: an LLC frame, such as STP
};
enum { HOP_BY_HOP = 0, TCP = 6, UDP = 17, ROUTING = 43, FRAGMENT = 44, PROTOCOL_ESP = 50, AH = 51, ICMPV6 = 58,
       DESTINATION_OPTIONS = 60, SCTP = 132, UDP_LITE = 136, DCCP = 33 };
enum { PORT_IKE = 500, PORT_NAT_T = 4500 };
// How far into a frame headers are followed: the verifier wants a bound.
enum { FURTHEST = 2048 };
enum fragment { WHOLE, FIRST, LATER };

// All fields lie at even offsets, as the headers do in a frame, so nothing needs packing.
struct ethernet {
    u8 destination[6], source[6];
    u16 type;
};

struct ipv4 {
    u8 version_length, tos;
    u16 total_length, identification, fragment;
    u8 ttl, protocol;
    u16 checksum;
    u8 source[4], destination[4];
};

struct ipv6 {
    u8 version_class, class_flow[3];
    u16 payload_length;
    u8 next_header, hop_limit;
    u8 source[16], destination[16];
};

struct udp {
    u16 source, destination, length, checksum;
};

// What is known of a packet to an own address.
struct packet {
    struct datagram datagram;
    enum fragment fragment;
    u32 protocol;
    u32 offset; // of the header behind IP, from the start of the frame
};

// The header behind IP, as far as the frame has it.
struct transport {
    int has_ports, has_payload;
    u16 destination, length;
    u32 payload; // its first four bytes
};

INLINE struct transport read_transport(void *data, void *end, u32 offset)
{
    struct transport transport = {};
    if (offset > FURTHEST)
        return transport;
    const struct udp *udp = data + offset;
    if ((void *)(udp + 1) > end)
        return transport;
    transport.has_ports = 1;
    transport.destination = udp->destination;
    transport.length = BE16(udp->length);
    const u8 *payload = (const void *)(udp + 1);
    if (payload + 4 > (const u8 *)end)
        return transport;
    transport.has_payload = 1;
    transport.payload = payload[0] | payload[1] | payload[2] | payload[3];
    return transport;
}

// RFC 3948: a keepalive is one byte 0xff; IKE has four zero bytes where ESP has its SPI. The frame may be padded, so
// the UDP length counts. What is too short to be ESP is left to the kernel to judge.
INLINE int is_esp_in_udp(const struct transport *transport)
{
    return transport->length >= sizeof(struct udp) + 4 && transport->has_payload && transport->payload;
}

INLINE int has_ports(u32 protocol)
{
    return protocol == TCP || protocol == UDP || protocol == SCTP || protocol == DCCP || protocol == UDP_LITE;
}

// A whole packet, or the first fragment of one, to an own address with these flags.
INLINE enum verdict own_first(void *data, void *end, const struct packet *packet, u32 flags)
{
    struct transport transport = read_transport(data, end, packet->offset);
    if ((flags & ADDRESS_TUNNEL) && packet->protocol == UDP && transport.has_ports) {
        if (transport.destination == BE16(PORT_IKE))
            return IKE;
        if (transport.destination == BE16(PORT_NAT_T))
            return is_esp_in_udp(&transport) ? ESP_IN_UDP : IKE;
    }
    if (!(flags & ADDRESS_NAT))
        return HOST;
    struct service service = { .protocol = packet->protocol };
    if (has_ports(packet->protocol)) {
        if (!transport.has_ports)
            return NAT;
        service.port = transport.destination;
    }
    return map_lookup(&SERVICES, &service) ? SERVICE : NAT;
}

INLINE enum verdict own(void *data, void *end, struct packet *packet, u32 flags)
{
    if ((flags & ADDRESS_TUNNEL) && packet->protocol == PROTOCOL_ESP)
        return ESP;
    if (packet->fragment == WHOLE)
        return own_first(data, end, packet, flags);
    if (!(flags & (ADDRESS_TUNNEL | ADDRESS_NAT)))
        return HOST;
    if (packet->fragment == FIRST) {
        u32 verdict = own_first(data, end, packet, flags);
        map_update(&FRAGMENTS, &packet->datagram, &verdict, 0);
        return verdict;
    }
    u32 *verdict = map_lookup(&FRAGMENTS, &packet->datagram);
    if (verdict)
        return *verdict;
    // Its first fragment has not been seen.
    if (flags & ADDRESS_NAT)
        return NAT;
    return packet->protocol == UDP ? ESP_IN_UDP : HOST;
}

INLINE enum verdict ipv4(void *data, void *end, struct packet *packet)
{
    const struct ipv4 *ip = data + sizeof(struct ethernet);
    if ((void *)(ip + 1) > end || ip->version_length >> 4 != 4 || (ip->version_length & 15) < 5)
        return UNREADABLE;
    const u8 *to = ip->destination;
    int link_local = to[0] == 169 && to[1] == 254;
    int broadcast = (to[0] & to[1] & to[2] & to[3]) == 255;
    if (link_local || broadcast || to[0] >> 4 == 14)
        return MULTICAST;

    struct prefix4 key = { .length = 32 };
    __builtin_memcpy(key.address, to, 4);
    u32 *flags = map_lookup(&ADDRESSES4, &key);
    if (!flags)
        return TRANSIT;

    u16 fragment = BE16(ip->fragment);
    packet->fragment = fragment & 0x1fff ? LATER : fragment & 0x2000 ? FIRST : WHOLE;
    packet->protocol = packet->datagram.protocol = ip->protocol;
    packet->offset = sizeof(struct ethernet) + (ip->version_length & 15) * 4;
    __builtin_memcpy(&packet->datagram.source[3], ip->source, 4);
    __builtin_memcpy(&packet->datagram.destination[3], ip->destination, 4);
    packet->datagram.identification = ip->identification;
    return own(data, end, packet, *flags);
}

// Goes past the extension headers. What cannot be read stays with the protocol reached so far.
INLINE void ipv6_extensions(void *data, void *end, struct packet *packet)
{
    for (int i = 0; i < 6; i++) {
        u32 offset = packet->offset;
        if (offset > FURTHEST)
            return;
        const u8 *header = data + offset;
        if (header + 8 > (const u8 *)end)
            return;
        switch (packet->protocol) {
        case HOP_BY_HOP:
        case ROUTING:
        case DESTINATION_OPTIONS:
            packet->offset = offset + (header[1] + 1) * 8;
            break;
        case AH:
            packet->offset = offset + (header[1] + 2) * 4;
            break;
        case FRAGMENT: {
            u16 where = header[2] << 8 | header[3];
            packet->fragment = where & 0xfff8 ? LATER : where & 1 ? FIRST : WHOLE;
            __builtin_memcpy(&packet->datagram.identification, header + 4, 4);
            packet->offset = offset + 8;
            break;
        }
        default:
            return;
        }
        int last = packet->fragment == LATER;
        packet->protocol = header[0];
        if (last)
            return; // What follows is not a header.
    }
}

INLINE enum verdict ipv6(void *data, void *end, struct packet *packet)
{
    const struct ipv6 *ip = data + sizeof(struct ethernet);
    if ((void *)(ip + 1) > end || ip->version_class >> 4 != 6)
        return UNREADABLE;
    const u8 *to = ip->destination;
    if (to[0] == 0xff || (to[0] == 0xfe && (to[1] & 0xc0) == 0x80))
        return MULTICAST;
    // RFC 4861: types 133 to 137, valid only with a hop limit of 255, which no router lets through.
    const u8 *type = (const void *)(ip + 1);
    if (ip->next_header == ICMPV6 && ip->hop_limit == 255 && type + 1 <= (const u8 *)end && *type >= 133 &&
        *type <= 137)
        return NEIGHBOUR;

    struct prefix6 key = { .length = 128 };
    __builtin_memcpy(key.address, to, 16);
    u32 *flags = map_lookup(&ADDRESSES6, &key);
    if (!flags)
        return TRANSIT;

    packet->protocol = ip->next_header;
    packet->offset = sizeof(struct ethernet) + sizeof(*ip);
    __builtin_memcpy(packet->datagram.source, ip->source, 16);
    __builtin_memcpy(packet->datagram.destination, ip->destination, 16);
    ipv6_extensions(data, end, packet);
    packet->datagram.protocol = packet->protocol;
    return own(data, end, packet, *flags);
}

INLINE enum verdict judge(void *data, void *end)
{
    u32 zero = 0;
    u32 *settings = map_lookup(&SETTINGS, &zero);
    if (!settings || !(*settings & SETTING_ON))
        return OFF;
    if (*settings & SETTING_EXCLUSIVE)
        return EXCLUSIVE;

    const struct ethernet *ethernet = data;
    if ((void *)(ethernet + 1) > end)
        return UNREADABLE;
    u16 type = BE16(ethernet->type);
    if (type == ETHERTYPE_VLAN || type == ETHERTYPE_QINQ || type == ETHERTYPE_OLD_QINQ)
        return TAGGED;
    if (type == ETHERTYPE_ARP || type == ETHERTYPE_LLDP || type == ETHERTYPE_SLOW || type <= LARGEST_LENGTH)
        return LINK_CONTROL;
    if (ethernet->destination[0] & 1)
        return MULTICAST;
    struct packet packet = {};
    if (type == ETHERTYPE_IPV4)
        return ipv4(data, end, &packet);
    if (type == ETHERTYPE_IPV6)
        return ipv6(data, end, &packet);
    return TRANSIT;
}

INLINE int is_redirect(enum verdict verdict)
{
    const u32 redirects =
        1 << EXCLUSIVE | 1 << TAGGED | 1 << UNREADABLE | 1 << TRANSIT | 1 << ESP | 1 << ESP_IN_UDP | 1 << NAT;
    return redirects >> verdict & 1;
}

INLINE int decide(struct xdp_md *context)
{
    u32 verdict = judge((void *)(long)context->data, (void *)(long)context->data_end);
    int action = XDP_PASS;
    if (is_redirect(verdict)) {
        // The lower bits of the flags are the answer where the queue has no socket.
        action = redirect_map(&SOCKETS, context->rx_queue_index, XDP_DROP);
        if (action != XDP_REDIRECT)
            verdict = NO_SOCKET;
    }
    u64 *counter = map_lookup(&COUNTERS, &verdict);
    if (counter)
        *counter += 1;
    return action;
}

SECTION("xdp")
int causeway(struct xdp_md *context)
{
    return decide(context);
}

// The same for devices whose MTU is beyond a page: frames come in pieces, of which the first is seen here. Drivers take
// such a program where they refuse the other, and may be slower with it.
SECTION("xdp.frags")
int causeway_frags(struct xdp_md *context)
{
    return decide(context);
}

char LICENSE[] SECTION("license") = "Dual MIT/GPL";
