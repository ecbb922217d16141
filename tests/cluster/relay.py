"""A cable with a delay, in user space, for kernels without netem: frames that come out of PORT are held for MS milliseconds and
then put into the bridge through a tap device, and the other way round.

    host eth0 ==== PORT (off the bridge) --- this process --- tap in BRIDGE

Offloads stay as they are: both ends speak of a frame with its virtio_net_hdr, so a checksum that is still to be computed stays so.
Prints the tap's name when it listens: who started it then moves the cable over (nothing is lost meanwhile). At SIGTERM it takes no more,
passes on what it has, and prints how many milliseconds the latest frame came too late.

    python relay.py PORT MS
"""
import collections, contextlib, fcntl, os, select, signal, socket, struct, sys, time

TUNSETIFF, IFF_TAP, IFF_NO_PI, IFF_VNET_HDR = 0x400454ca, 0x0002, 0x1000, 0x4000
SOL_PACKET, PACKET_VNET_HDR, PACKET_IGNORE_OUTGOING, PACKET_ADD_MEMBERSHIP, PACKET_MR_PROMISC = 263, 15, 23, 1, 1
SO_RCVBUFFORCE, ETH_P_ALL, FRAME_MAX = 33, 3, 1 << 17


def open_tap(name):
    tap = os.open('/dev/net/tun', os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(tap, TUNSETIFF, struct.pack('16sH22x', name.encode(), IFF_TAP | IFF_NO_PI | IFF_VNET_HDR))
    return tap


def open_port(name):
    s = socket.socket(socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_NONBLOCK, 0)
    s.setsockopt(SOL_PACKET, PACKET_VNET_HDR, 1)
    s.setsockopt(SOL_PACKET, PACKET_IGNORE_OUTGOING, 1)
    s.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 8 << 20)
    s.bind((name, ETH_P_ALL))
    s.setsockopt(SOL_PACKET, PACKET_ADD_MEMBERSHIP, struct.pack('iHH8s', socket.if_nametoindex(name), PACKET_MR_PROMISC, 0, b''))
    return s


class Direction:
    """Frames on their way, in the order in which they came: all of them wait equally long."""

    def __init__(self, take, give, delay_s):
        self.take, self.give, self.delay_s, self.frames, self.late_s = take, give, delay_s, collections.deque(), 0.0

    def came(self):
        due = time.monotonic() + self.delay_s
        with contextlib.suppress(BlockingIOError):
            while True:
                self.frames.append((due, self.take()))

    def due_s(self):
        return self.frames[0][0] - time.monotonic() if self.frames else 3600

    def pass_on(self):
        now = time.monotonic()
        while self.frames and self.frames[0][0] <= now:
            due, frame = self.frames.popleft()
            self.late_s = max(self.late_s, now - due)
            with contextlib.suppress(OSError):           # full or down: a cable loses it, too
                self.give(frame)


def main():
    port, delay_s = sys.argv[1], float(sys.argv[2]) / 1000
    tap, raw = open_tap(f'{port}d'), open_port(port)
    out = Direction(lambda: raw.recv(FRAME_MAX), lambda frame: os.write(tap, frame), delay_s)
    back = Direction(lambda: os.read(tap, FRAME_MAX), raw.send, delay_s)
    over = []
    signal.signal(signal.SIGTERM, lambda *_: over.append(True))
    poll = select.poll()
    poll.register(raw, select.POLLIN)
    poll.register(tap, select.POLLIN)
    print(f'{port}d', flush=True)
    while not over:
        for fd, _ in poll.poll(max(0, min(out.due_s(), back.due_s(), 0.1)) * 1000):
            (back if fd == tap else out).came()
        out.pass_on()
        back.pass_on()
    while out.frames or back.frames:
        out.pass_on()
        back.pass_on()
        time.sleep(0.001)
    print(int(1000 * max(out.late_s, back.late_s)), flush=True)


main()
