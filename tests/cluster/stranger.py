"""A client that has nothing but baton.proto and grpcio, and knows no file of this repo (tests/client)."""
import subprocess, sys

from harness import *

args = arguments()
with Cluster(args) as cluster:
    subprocess.run([sys.executable, str(ROOT / 'tests' / 'client' / 'stranger.py'), '--server', cluster.server], check=True, timeout=120)
