"""A cable with a delay, in user space, for kernels without netem: frames that come out of PORT are held for MS milliseconds and
then put into the bridge through a tap device, and the other way round.

    host eth0 ==== PORT (off the bridge) --- this process --- tap in BRIDGE

Offloads stay as they are: both ends speak of a frame with its virtio_net_hdr, so a checksum that is still to be computed stays so.
Prints a line when it works; at SIGTERM it takes the tap away and prints how many frames it has held.

    python relay.py PORT BRIDGE MS
"""
import collections, fcntl, select, signal, socket, struct, subprocess, sys, time

TUNSETIFF, IFF_TAP, IFF_NO_PI, IFF_VNET_HDR = 0x400454ca, 0x0002, 0x1000, 0x4000
SOL_PACKET, PACKET_VNET_HDR, PACKET_IGNORE_OUTGOING, PACKET_ADD_MEMBERSHIP, PACKET_MR_PROMISC = 263, 15, 23, 1, 1
SO_RCVBUFFORCE, ETH_P_ALL, FRAME_MAX = 33, 3, 1 << 17


def open_tap(name):
    tap = open('/dev/net/tun', 'r+b', buffering=0)
    fcntl.ioctl(tap, TUNSETIFF, struct.pack('16sH22x', name.encode(), IFF_TAP | IFF_NO_PI | IFF_VNET_HDR))
    return tap


def open_port(name):
    s = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
    s.setsockopt(SOL_PACKET, PACKET_VNET_HDR, 1)
    s.setsockopt(SOL_PACKET, PACKET_IGNORE_OUTGOING, 1)
    s.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 8 << 20)
    s.bind((name, ETH_P_ALL))
    s.setsockopt(SOL_PACKET, PACKET_ADD_MEMBERSHIP, struct.pack('iHH8s', socket.if_nametoindex(name), PACKET_MR_PROMISC, 0, b''))
    return s


class Direction:
    """Frames on their way, in the order in which they came: all of them wait equally long."""

    def __init__(self, take, give, delay_s):
        self.take, self.give, self.delay_s, self.frames, self.held = take, give, delay_s, collections.deque(), 0

    def came(self):
        self.frames.append((time.monotonic() + self.delay_s, self.take()))
        self.held += 1

    def due_s(self):
        return self.frames[0][0] - time.monotonic() if self.frames else 3600

    def pass_on(self):
        while self.due_s() <= 0:
            try:
                self.give(self.frames.popleft()[1])
            except OSError:                      # full or just going down: a cable loses it, too
                pass


def main():
    port, bridge, delay_s = sys.argv[1], sys.argv[2], float(sys.argv[3]) / 1000
    tap_name = f'{port}d'
    tap, raw = open_tap(tap_name), open_port(port)
    subprocess.run(['ip', 'link', 'set', tap_name, 'master', bridge, 'up'], check=True)
    out = Direction(lambda: raw.recv(FRAME_MAX), tap.write, delay_s)
    back = Direction(lambda: tap.read(FRAME_MAX), raw.send, delay_s)
    over = []
    signal.signal(signal.SIGTERM, lambda *_: over.append(True))
    poll = select.poll()
    poll.register(raw, select.POLLIN)
    poll.register(tap, select.POLLIN)
    print('ready', flush=True)
    while not over:
        for fd, _ in poll.poll(max(0, min(out.due_s(), back.due_s(), 0.1)) * 1000):
            (out if fd == raw.fileno() else back).came()
        out.pass_on()
        back.pass_on()
    print(out.held, back.held, flush=True)


main()
