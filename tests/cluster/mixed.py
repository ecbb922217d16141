"""A cluster put together by hand, with nodes that do not fit each other: another arithmetic, another model. They
are shown as a mismatch and never asked; what a client gets is the others' answer. A node that is asked
directly with the wrong pairing refuses and names the field."""
import contextlib, tempfile

from harness import *

PAGES = '--kv-pages', 64


def other_model(args):
    """The same file but for one bit of its last tensor (padding at the end is under 32 bytes)."""
    content = bytearray(pathlib.Path(args.model).read_bytes())
    content[-64] ^= 1
    return content


def refused_by_the_node(address):
    """A hand-made Decode call whose pairing is another model's."""
    node_pb, _ = stubs('node')
    with grpc.insecure_channel(address) as channel:
        call = channel.unary_stream('/baton.node.v1.Node/Decode', request_serializer=node_pb.DecodeRequest.SerializeToString)
        wrong = node_pb.DecodeRequest(pairing=node_pb.Pairing(protocol=1, model_digest='0' * 32), request_id='x', epoch=1,
                                      tokens=[5, 6], prompt_count=2, max_tokens=4, lease_ms=1000)
        try:
            list(call(wrong, timeout=10))
            raise AssertionError('a foreign pairing was served')
        except grpc.RpcError as e:
            assert e.code() == grpc.StatusCode.FAILED_PRECONDITION and 'model_digest' in e.details(), e


def main():
    args = arguments()
    with tempfile.NamedTemporaryFile(prefix='bt-other-', suffix='.gguf') as other, contextlib.ExitStack() as stack:
        other.write(other_model(args))
        other.flush()
        fitting = [stack.enter_context(node(args, 'decode', 'decode-1', *PAGES)),
                   stack.enter_context(node(args, 'prefill', 'prefill-1', *PAGES))]
        server = stack.enter_context(process(args, 'coordinator', '--model', args.model, '--listen', '127.0.0.1:0', '--prefill-policy', 'remote',
                                             '--expect-prefill', 1, '--expect-decode', 1, '--nodes', ','.join(fitting)))
        with grpc.insecure_channel(server) as channel:
            inference = pb_grpc.InferenceStub(channel)
            want, _, finish = collect(inference.Generate(request(long_text(300), max_tokens=8), timeout=60))
            assert (finish.prefill_node, finish.decode_node) == ('prefill-1', 'decode-1')
        strangers = [stack.enter_context(node(args, 'decode', 'scalar', *PAGES, '--isa', 'scalar')),
                     stack.enter_context(node(args, 'decode', 'other-model', *PAGES, model=other.name)),
                     stack.enter_context(node(args, 'prefill', 'other-kv', *PAGES, '--kv-dtype', 'f32'))]
        mixed = stack.enter_context(process(args, 'coordinator', '--model', args.model, '--listen', '127.0.0.1:0', '--id', 'mixed',
                                            '--prefill-policy', 'remote', '--nodes', ','.join(fitting[:1] + strangers + fitting[1:])))
        with grpc.insecure_channel(mixed) as channel:
            inference, control = pb_grpc.InferenceStub(channel), pb_grpc.ClusterStub(channel)
            nodes = lambda: {n.id: n for n in control.Topology(pb.TopologyRequest(), timeout=10).nodes if n.role != 'coordinator'}
            wait_until(lambda: {n.state for n in nodes().values()} == {'ready', 'mismatch'}, 10, 'every node is judged')
            ready = {id: n for id, n in nodes().items() if n.state == 'ready'}
            print('used together:', sorted(ready))  # what the decode node heard first fits to
            for role in ('prefill', 'decode'):
                assert len({n.numerics for n in ready.values() if n.role == role}) == 1, nodes()
            assert 'other-model' not in ready, nodes()
            for _ in range(6):
                tokens, _, finish = collect(inference.Generate(request(long_text(300), max_tokens=8), timeout=60))
                assert finish.decode_node in ready and finish.prefill_node in ready, finish
                assert (finish.prefill_node, finish.decode_node) != ('prefill-1', 'decode-1') or tokens == want
        refused_by_the_node(fitting[0])


if __name__ == '__main__':
    main()
