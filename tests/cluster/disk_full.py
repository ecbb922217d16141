"""The disk that the logs are on is full: requests are answered with the same bytes, a node that is killed comes back, every process
counts the lines it could not write, and writes again once there is room."""
import errno, shutil, subprocess

from harness import *

SAID_S = 2                       # a node tells its counters that often at least


@contextlib.contextmanager
def small_disk(megabytes):
    where = tempfile.mkdtemp(prefix='bt-disk-')
    done = subprocess.run(['mount', '-t', 'tmpfs', '-o', f'size={megabytes}m', 'tmpfs', where], capture_output=True, text=True)
    if done.returncode:
        os.rmdir(where)
        skip(f'nothing may be mounted: {done.stderr.strip()}')
    try:
        yield where
    finally:
        subprocess.run(['umount', '-l', where], check=True)
        os.rmdir(where)


def fill(where):
    path = f'{where}/filler'
    with open(path, 'wb', buffering=0) as f:
        try:
            while True:
                f.write(bytes(4096))
        except OSError as e:
            assert e.errno == errno.ENOSPC, e
    assert shutil.disk_usage(where).free == 0
    return path


def dropped(cluster):
    return {n.id: cluster.counter(n.id, 'baton_log_lines_dropped_total') for n in cluster.nodes()}


def ask(cluster, count):
    """Answers by number, each through both kinds of node."""
    return [cluster.generate(request(tokens=range(1 + i, 120 + i), max_tokens=16, seed=i, temperature=1.0, logprobs=0))[0] for i in range(count)]


def main():
    args = arguments()
    with small_disk(2) as disk:
        tempfile.tempdir = disk                  # where the harness keeps the log
        with Cluster(args, '--prefill', 1, '--decode', 2, '--prefill-policy', 'remote', '--no-prefix-cache') as cluster:
            want = ask(cluster, 20)
            assert set(dropped(cluster).values()) == {0}, dropped(cluster)
            filler, size = fill(disk), cluster.log_size()
            wait_until(lambda: ask(cluster, 4) == want[:4] and min(dropped(cluster).values()) > 0, 60, 'every process drops lines')
            assert ask(cluster, 20) == want, 'other tokens while the disk is full'
            victim = cluster.nodes('decode')[0]
            os.kill(victim.pid, signal.SIGKILL)
            assert ask(cluster, 20) == want, 'other tokens after the failover'
            wait_until(lambda: all(n.state == 'ready' for n in cluster.nodes()), 30, 'the killed node is back')
            assert cluster.node(victim.id).pid != victim.pid
            assert cluster.log_size() < size + 4096, 'there was room for the log'
            os.remove(filler)
            time.sleep(SAID_S)
            before, size = dropped(cluster), cluster.log_size()
            assert ask(cluster, 20) == want
            time.sleep(SAID_S)
            assert dropped(cluster) == before, 'lines are dropped though there is room'
            assert cluster.log_size() > size, 'nothing is written any more'
            cluster.pages_back()
        cluster.log.close()                      # its file goes before its disk does


if __name__ == '__main__':
    main()
