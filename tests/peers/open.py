"""Opens ESP with scapy: frames and keys come as JSON, what was in the packets goes out as JSON, one for each frame.

in:   {"keys": {SPI: {"key": hexadecimal digits of AES key and salt, "esn": whether}}, "frames": [hexadecimal digits]}
out:  [null for a frame without ESP, {"error": text}, or {"spi", "seq", "udp": whether, "inner": hexadecimal digits}]

Also what is around the ESP is checked: header checksum, lengths, and the UDP header of RFC 3948.
"""
import json
import sys
import warnings

warnings.filterwarnings("ignore")
from scapy.all import IP, UDP, Ether, IPv6, raw
from scapy.layers.ipsec import ESP, SecurityAssociation


def outer(frame):
    """The IP packet and its payload, where that may be ESP: with IPv6 without extension headers."""
    packet = Ether(frame)
    packet = packet.getlayer(IP) or packet.getlayer(IPv6)
    if packet is None:
        return None
    if packet.version == 4:
        length, protocol, header = packet.len, packet.proto, 4 * packet.ihl
        again = packet.copy()
        del again.chksum
        if raw(again)[:20] != raw(packet)[:20]:
            raise ValueError("the header checksum of the outer packet is wrong")
    else:
        length, protocol, header = packet.plen + 40, packet.nh, 40
    body = raw(packet)[header:length]
    if protocol == 50:
        return False, body
    if protocol == 17:
        datagram = UDP(body)
        if (datagram.sport, datagram.dport) == (4500, 4500) and len(body) > 12 and body[8:12] != bytes(4):
            if datagram.len != len(body):
                raise ValueError("the length in the UDP header is wrong")
            # Over IPv4 there is none (RFC 3948 2.1), over IPv6 there must be (RFC 8200 8.1).
            again = packet.copy()
            del again[UDP].chksum
            right = 0 if packet.version == 4 else UDP(raw(again)[header:length]).chksum
            if datagram.chksum != right:
                raise ValueError(f"the UDP checksum is {datagram.chksum:#x}, not {right:#x}")
            return True, body[8:]
    return None


def opened(frame, keys):
    found = outer(frame)
    if found is None:
        return None
    udp, body = found
    sealed = ESP(body)
    known = keys.get(str(sealed.spi))
    if known is None:
        raise ValueError(f"SPI {sealed.spi:#x} is nobody's")
    key, esn = bytes.fromhex(known["key"]), known["esn"]
    judge = SecurityAssociation(
        ESP, spi=sealed.spi, crypt_algo="AES-GCM", crypt_key=key, esn_en=esn, tunnel_header=IP()
    )
    carried = IP(src="192.0.2.1", dst="192.0.2.2", proto=50) / ESP(body)
    inner = judge.decrypt(carried, esn=0) if esn else judge.decrypt(carried)
    return {"spi": sealed.spi, "seq": sealed.seq, "udp": udp, "inner": raw(inner).hex()}


def main():
    asked = json.load(sys.stdin)
    answers = []
    for frame in asked["frames"]:
        try:
            answers.append(opened(bytes.fromhex(frame), asked["keys"]))
        except Exception as error:  # scapy has many
            answers.append({"error": repr(error)})
    json.dump(answers, sys.stdout)


main()
