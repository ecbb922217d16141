"""A decode node is stopped (SIGSTOP) while it answers; its request goes on elsewhere; then it is continued.
The zombie can neither emit a token nor write a page: its stream is gone, and a frame that is sent to it
under the old ticket is refused and counted."""
import os, signal, threading, time

from harness import *


def stopped_while_decoding(cluster):
    want, _, _ = cluster.generate(request(long_text(600), max_tokens=120))
    stopped = []

    def stop(tokens):
        if len(tokens) >= 8 and not stopped:
            busy = busy_node(cluster, 'decode')
            os.kill(busy.pid, signal.SIGSTOP)
            wait_until(lambda: process_state(busy.pid) == 'T', 2, 'the node is stopped')
            stopped.append(busy)

    stream = cluster.inference.Generate(request(long_text(600), max_tokens=120), timeout=60)
    tokens, _, finish = collect(stream, stop)
    assert stopped and finish.attempts == 2, finish
    assert tokens == want, 'other tokens after the failover'
    assert finish.decode_node != stopped[0].id
    assert process_state(stopped[0].pid) == 'T', 'the zombie woke up by itself'
    os.kill(stopped[0].pid, signal.SIGCONT)
    wait_until(lambda: cluster.node(stopped[0].id).state == 'ready', 10, 'the zombie is a node again')
    cluster.pages_back(3)
    assert cluster.node(stopped[0].id).pid == stopped[0].pid


def stopped_while_landing(cluster):
    """The decode node is stopped before the pages are there: they arrive in its socket while nobody reads.
    Continued, it finds frames of an attempt that was given up. Returns how many it refused."""
    want, _, _ = cluster.generate(request(long_text(3000, 5000), max_tokens=12))
    before = {n.id: cluster.counter(n.id, 'baton_kv_frames_refused_total') for n in cluster.nodes('decode')}
    answer = []
    thread = threading.Thread(target=lambda: answer.append(cluster.generate(request(long_text(3000, 5000), max_tokens=12))))
    thread.start()
    busy = []

    def landing():
        busy[:] = [n for n in cluster.nodes('decode') if n.pages.promised + n.pages.landing > 0]
        return busy

    wait_until(landing, 20, 'pages are promised')
    zombie = busy[0]
    os.kill(zombie.pid, signal.SIGSTOP)
    wait_until(lambda: process_state(zombie.pid) == 'T', 2, 'the node is stopped')
    thread.join(60)
    tokens, _, finish = answer[0]
    assert tokens == want and finish.decode_node != zombie.id and finish.attempts > 1, finish
    os.kill(zombie.pid, signal.SIGCONT)
    wait_until(lambda: cluster.node(zombie.id).state == 'ready', 10, 'the zombie is a node again')
    cluster.pages_back(5)
    tokens, _, _ = cluster.generate(request(long_text(3000, 5000), max_tokens=12))
    assert tokens == want, 'a stale page was read'
    refused = cluster.counter(zombie.id, 'baton_kv_frames_refused_total') - before[zombie.id]
    print(f'{zombie.id}: {refused} frames of the old attempt were refused')
    return refused


def main():
    args = arguments()
    flags = ['--prefill', 1, '--decode', 2, '--prefill-policy', 'remote', '--chunk', 64, '--no-prefix-cache']
    with Cluster(args, *flags) as cluster:
        stopped_while_decoding(cluster)
        # Frames that are read before the cancel still belong to the promise and may land; those read after it are
        # refused. Which come first when the zombie wakes is a race: it must have been seen the second way.
        assert any(stopped_while_landing(cluster) for _ in range(5)), 'no frame of an old attempt was ever refused'


if __name__ == '__main__':
    main()
