"""Processes of etcd, on this machine or in a namespace."""
import atexit, base64, json, socket, subprocess, time, urllib.error, urllib.request

from harness import wait_until

PATIENCE_S = 30     # for what has no bound of its own, on a busy machine


def free_ports(count):
    sockets = [socket.socket() for _ in range(count)]
    for s in sockets:
        s.bind(('127.0.0.1', 0))
    ports = [s.getsockname()[1] for s in sockets]
    for s in sockets:
        s.close()
    return ports


class Member:
    """One etcd process; its own data, its own ports. within: what its command is put behind."""

    def __init__(self, name, client, peer, cluster, directory, host='127.0.0.1', within=()):
        self.url, self.directory, self.log = f'http://{host}:{client}', directory, open(f'{directory}.log', 'w+')
        self.endpoint = f'{host}:{client}'
        self.command = [*within, 'etcd', '--name', name, '--data-dir', directory, '--initial-cluster', cluster,
                        '--listen-client-urls', self.url, '--advertise-client-urls', self.url,
                        '--listen-peer-urls', f'http://{host}:{peer}', '--log-level', 'error', '--logger', 'zap',
                        '--initial-advertise-peer-urls', f'http://{host}:{peer}', '--heartbeat-interval', '100', '--bcrypt-cost', '4']
        self.start()

    def start(self):
        self.process = subprocess.Popen(self.command, stdout=self.log, stderr=self.log)
        atexit.register(self.kill, self.process)

    def kill(self, process=None):
        process = process or self.process
        if process.poll() is None:
            process.kill()
            process.wait()

    def ask(self, path, body, timeout=10, token=None):
        request = urllib.request.Request(self.url + path, json.dumps(body).encode(), {'Authorization': token} if token else {})
        with urllib.request.urlopen(request, timeout=timeout) as answer:
            return json.load(answer)

    def answers(self, timeout=1):
        """Reads through the leader: the cluster works."""
        try:
            return bool(self.ask('/v3/kv/range', {'key': base64.b64encode(b'x').decode()}, timeout))
        except (OSError, urllib.error.URLError):
            return False

    def ready(self):
        wait_until(self.answers, PATIENCE_S, 'etcd answers', 0.05)
        return time.monotonic()

    def entries(self, token=None):
        """id -> (its key as etcd tells it, the store's revision)."""
        first, end = b'/story/nodes/', b'/story/nodes0'
        answer = self.ask('/v3/kv/range', {'key': base64.b64encode(first).decode(), 'range_end': base64.b64encode(end).decode()},
                          token=token)
        return {base64.b64decode(kv['key'])[len(first):].decode(): kv for kv in answer.get('kvs', [])}, \
            int(answer['header']['revision'])

    def ids(self, token=None):
        return set(self.entries(token)[0])


def etcd(directory, count):
    ports = free_ports(2 * count)
    cluster = ','.join(f'm{i}=http://127.0.0.1:{ports[2 * i + 1]}' for i in range(count))
    members = [Member(f'm{i}', ports[2 * i], ports[2 * i + 1], cluster, f'{directory}/m{i}') for i in range(count)]
    for m in members:
        m.ready()
    return members
