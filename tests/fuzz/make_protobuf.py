"""Writes tests/fuzz/corpus/protobuf: one small message of each kind, as tests/fuzz/protobuf.c reads them.
    python tests/fuzz/make_protobuf.py        (needs grpcio-tools)"""
import importlib, pathlib, sys, tempfile
from grpc_tools import protoc

root = pathlib.Path(__file__).resolve().parents[2]
out = tempfile.mkdtemp()
assert protoc.main(['', f'-I{root}/proto', f'--python_out={out}', 'baton.proto', 'node.proto']) == 0
sys.path.insert(0, out)
b, n = importlib.import_module('baton_pb2'), importlib.import_module('node_pb2')

pairing = n.Pairing(protocol=1, model_digest='d', numerics='n', kv_layout='k')
sampling = n.SamplingParams(temperature=0.5, top_k=5, top_p=0.9, repetition=1.1, seed=7, logprobs=2, bias=[n.Bias(token=3, bias=-1)])
seeds = [
    b.GenerateRequest(prompt='Hello', max_tokens=5, stop=['\n\n', 'é'], stop_tokens=[2], n=2, logprobs=3, prompt_logprobs=2, request_id='id',
                      sampling=b.Sampling(temperature=1, top_p=0.5, seed=3, logit_bias=[b.TokenBias(token=4, bias=2)])),
    n.DecodeRequest(pairing=pairing, request_id='a', epoch=1, tokens=range(5, 40), prompt_count=33, max_tokens=20, sampling=sampling,
                    stop_tokens=[1], lease_ms=5000, local_tokens_max=16, prompt_logprobs=n.PromptLogprobs(first=1, top=2)),
    n.PrefillRequest(pairing=pairing, request_id='a', epoch=1, tokens=range(5, 40), prompt_count=35, sampling=sampling, ticket=9,
                     kv_address='127.0.0.1:7', skip=16, send_end=34),
    b.GenerateChunk(text='x', tokens=[b.TokenInfo(token=3, logprob=-1, top=[b.TokenLogprob(token=1, logprob=-2, text='y')])],
                    finish=b.Finish(reason=1, usage=b.Usage(prompt_tokens=3))),
    b.GenerateResult(request_id='x', choices=[b.Choice(text='t')]), b.TokenizeRequest(text='abc', special=True),
    b.DetokenizeRequest(tokens=[1, 2, 3]), b.ListModelsResult(models=[b.Model(id='m', context=8)]), b.GetModelRequest(id='m'),
    b.TopologyResult(nodes=[b.Node(id='n', pages=b.PageCounts(total=3), counters=[b.Counter(name='c', value=1)])]),
    b.NodeRequest(id='n'), b.SetRoleRequest(id='n', role='decode'),
    n.DecodeEvent(tokens=n.Tokens(tokens=[n.Token(index=3, token=4, logprob=-1)])),
    n.PrefillEvent(first_token=n.FirstToken(token=n.Token(index=3, token=4))), n.WatchRequest(protocol=1, heartbeat_ms=100),
    n.NodeState(id='n', pairing=pairing, pages=[1, 2, 3], counters=[n.StateCounter(name='c', value=2)]), n.ControlRequest(action=1),
]
corpus = root / 'tests' / 'fuzz' / 'corpus' / 'protobuf'
corpus.mkdir(parents=True, exist_ok=True)
for i, m in enumerate(seeds):
    (corpus / f'{i:02d}_{m.DESCRIPTOR.name}').write_bytes(bytes([i]) + m.SerializeToString())
chat = b.GenerateRequest(chat=b.Chat(messages=[b.ChatMessage(role='user', content='hi')]))
(corpus / '00_chat').write_bytes(b'\0' + chat.SerializeToString())
seen = b.GenerateRequest(prompt='Hello', stop=['bc'], n=2, sampling=b.Sampling(temperature=1, seed=3),
                         seen=[b.Seen(index=1, tokens=[65, 66, 200, 201]), b.Seen(tokens=[70, 71, 2], finished=True)])
(corpus / '00_seen').write_bytes(b'\0' + seen.SerializeToString())
(corpus / '00_tokens').write_bytes(b'\0' + b.GenerateRequest(tokens=b.Tokens(ids=[3, 4, 287])).SerializeToString())
