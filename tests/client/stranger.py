#!/usr/bin/env python3
"""stranger.py -- a client that knows baton only by its .proto files, made with the ordinary gRPC tools.

    pip install -r requirements.txt
    python3 stranger.py --server 127.0.0.1:50051 [--only health,reflection,compression]

It generates its stubs into a temporary folder, then calls a running baton as any user's program would.
One line a check; the last line is `N passed, M failed`; exit status 1 if any failed.
"""
import argparse
import importlib
import pathlib
import sys
import tempfile
import time

import grpc
from grpc_tools import protoc

PROTO = pathlib.Path(__file__).resolve().parents[2] / "proto"
FILES = ["baton.proto", "health.proto", "reflection.proto", "reflection_v1alpha.proto"]
PROMPT = "The capital of France is"
SERVICES = {"baton.v1.Inference", "baton.v1.Cluster", "grpc.health.v1.Health"}


def generate_stubs(folder):
    rc = protoc.main(["protoc", f"-I{PROTO}", f"--python_out={folder}", f"--grpc_python_out={folder}", *FILES])
    if rc != 0:
        sys.exit(f"protoc failed on {PROTO}: exit status {rc}")
    sys.path.insert(0, folder)
    modules = {}
    for file in FILES:
        name = file.removesuffix(".proto")
        modules[name] = importlib.import_module(f"{name}_pb2")
        modules[name + "_grpc"] = importlib.import_module(f"{name}_pb2_grpc")
    return modules


def expect(condition, text):
    if not condition:
        raise AssertionError(text)


def expect_code(call, code):
    """call() must fail with that gRPC code and say why."""
    try:
        result = call()
        if hasattr(result, "__iter__"):
            list(result)
    except grpc.RpcError as e:
        expect(e.code() == code, f"expected {code.name}, got {e.code().name}: {e.details()}")
        expect(e.details(), f"{code.name} without a text")
        return
    raise AssertionError(f"expected {code.name}, got an answer")


class Stranger:
    def __init__(self, modules, channel):
        self.channel = channel
        self.b = modules["baton"]
        self.h = modules["health"]
        self.modules = modules
        self.inference = modules["baton_grpc"].InferenceStub(channel)
        self.health = modules["health_grpc"].HealthStub(channel)

    def request(self, **fields):
        fields.setdefault("prompt", PROMPT)
        fields.setdefault("max_tokens", 16)
        if "tokens" in fields or "chat" in fields:
            del fields["prompt"]
        return self.b.GenerateRequest(**fields)

    # ---- reflection and health

    def reflect(self, version, **question):
        pb = self.modules[version]
        stub = self.modules[version + "_grpc"].ServerReflectionStub(self.channel)
        return next(iter(stub.ServerReflectionInfo(iter([pb.ServerReflectionRequest(**question)]), timeout=10)))

    def check_reflection(self):
        for version in ("reflection", "reflection_v1alpha"):
            listed = {s.name for s in self.reflect(version, list_services="").list_services_response.service}
            expect(listed, f"{version} lists no service")
            for name in listed:
                reply = self.reflect(version, file_containing_symbol=name)
                expect(reply.file_descriptor_response.file_descriptor_proto, f"{version} has no file for {name}")
            reply = self.reflect(version, file_containing_symbol="no.such.Symbol")
            expect(reply.error_response.error_code == grpc.StatusCode.NOT_FOUND.value[0],
                   f"unknown symbol: {reply}")

    def check_reflection_services(self):
        listed = {s.name for s in self.reflect("reflection", list_services="").list_services_response.service}
        expect(SERVICES <= listed, f"expected {sorted(SERVICES)} among {sorted(listed)}")

    def check_reflection_descriptors(self):
        """What the server says of itself is enough to build a message, as grpcurl does."""
        from google.protobuf import descriptor_pb2, descriptor_pool
        pool = descriptor_pool.DescriptorPool()
        reply = self.reflect("reflection", file_containing_symbol="baton.v1.Inference")
        for raw in reversed(reply.file_descriptor_response.file_descriptor_proto):
            pool.Add(descriptor_pb2.FileDescriptorProto.FromString(raw))
        methods = {m.name for m in pool.FindServiceByName("baton.v1.Inference").methods}
        expect({"Generate", "GenerateOnce", "Tokenize"} <= methods, f"methods: {sorted(methods)}")

    def check_health(self):
        serving = self.h.HealthCheckResponse.SERVING
        for service in ("", "baton.v1.Inference"):
            got = self.health.Check(self.h.HealthCheckRequest(service=service), timeout=5).status
            expect(got == serving, f"service '{service}': expected SERVING, got {got}")
        expect_code(lambda: self.health.Check(self.h.HealthCheckRequest(service="no.such"), timeout=5),
                    grpc.StatusCode.NOT_FOUND)
        watch = self.health.Watch(self.h.HealthCheckRequest(service=""), timeout=5)
        expect(next(watch).status == serving, "Watch does not begin with SERVING")
        watch.cancel()
        watch = self.health.Watch(self.h.HealthCheckRequest(service="no.such"), timeout=5)
        expect(next(watch).status == self.h.HealthCheckResponse.SERVICE_UNKNOWN, "expected SERVICE_UNKNOWN")
        watch.cancel()

    def check_compression(self):
        """A compressed request is refused and disturbs nothing."""
        expect_code(lambda: self.health.Check(self.h.HealthCheckRequest(service="x" * 5000), timeout=5,
                                              compression=grpc.Compression.Gzip), grpc.StatusCode.UNIMPLEMENTED)
        self.health.Check(self.h.HealthCheckRequest(), timeout=5)

    # ---- inference

    def check_models(self):
        models = self.inference.ListModels(self.b.ListModelsRequest(), timeout=5).models
        expect(len(models) >= 1 and models[0].id and models[0].context > 0, f"models: {models}")
        got = self.inference.GetModel(self.b.GetModelRequest(id=models[0].id), timeout=5)
        expect(got == models[0], "GetModel differs from ListModels")

    def check_tokenize(self):
        for text in (PROMPT, "Zürich — 東京 🙂\n\tx = 1"):
            tokens = self.inference.Tokenize(self.b.TokenizeRequest(text=text), timeout=5).tokens
            back = self.inference.Detokenize(self.b.DetokenizeRequest(tokens=tokens), timeout=5).text
            expect(tokens and back == text, f"{text!r} came back as {back!r}")

    def check_generate(self):
        once = self.inference.GenerateOnce(self.request(), timeout=60)
        chunks = list(self.inference.Generate(self.request(), timeout=60))
        text = "".join(c.text for c in chunks)
        expect(text and text == once.choices[0].text, f"streamed {text!r}, whole {once.choices[0].text!r}")
        finish = chunks[-1].finish
        expect(finish.usage.completion_tokens == 16 and finish.decode_node, f"finish: {finish}")
        expect(sum(len(c.tokens) for c in chunks) == 16, "expected 16 tokens in the chunks")

    def check_seed(self):
        sampling = self.b.Sampling(temperature=0.9, seed=42)
        texts = {self.inference.GenerateOnce(self.request(sampling=sampling), timeout=60).choices[0].text
                 for _ in range(3)}
        expect(len(texts) == 1, f"one seed, {len(texts)} answers")

    def check_bad_requests(self):
        bad, once = grpc.StatusCode.INVALID_ARGUMENT, self.inference.GenerateOnce
        nan = float("nan")
        for fields in ({"prompt": ""}, {"max_tokens": 0}, {"max_tokens": -1}, {"tokens": self.b.Tokens()},
                       {"tokens": self.b.Tokens(ids=[-1])}, {"tokens": self.b.Tokens(ids=[2**31 - 1])},
                       {"sampling": self.b.Sampling(temperature=nan)},
                       {"sampling": self.b.Sampling(temperature=-1)},
                       {"sampling": self.b.Sampling(top_p=nan)}, {"sampling": self.b.Sampling(top_k=-1)}):
            try:
                expect_code(lambda: once(self.request(**fields), timeout=20), bad)
                expect_code(lambda: self.inference.Generate(self.request(**fields), timeout=20), bad)
            except AssertionError as e:
                raise AssertionError(f"{fields}: {e}") from None
        expect_code(lambda: once(self.b.GenerateRequest(max_tokens=4), timeout=20), bad)
        expect_code(lambda: once(self.request(prompt="word " * 200000), timeout=20), bad)
        expect_code(lambda: once(self.request(model="no-such-model"), timeout=20), grpc.StatusCode.NOT_FOUND)

    def check_cancel(self):
        stream = self.inference.Generate(self.request(max_tokens=400, ignore_eos=True), timeout=60)
        next(stream)
        stream.cancel()
        try:
            list(stream)
            raise AssertionError("the stream went on after its cancel")
        except grpc.RpcError as e:
            expect(e.code() == grpc.StatusCode.CANCELLED, f"got {e.code().name}")

    def check_deadline(self):
        began = time.monotonic()
        expect_code(lambda: self.inference.Generate(self.request(max_tokens=2000, ignore_eos=True), timeout=0.3),
                    grpc.StatusCode.DEADLINE_EXCEEDED)
        expect(time.monotonic() - began < 2, "the deadline came late")

    def check_unknown_method(self):
        call = self.channel.unary_unary("/baton.v1.Inference/NoSuch", lambda m: m, lambda m: m)
        expect_code(lambda: call(b"", timeout=5), grpc.StatusCode.UNIMPLEMENTED)


CHECKS = ["health", "reflection", "reflection_services", "reflection_descriptors", "compression", "unknown_method",
          "models", "tokenize", "generate", "seed", "bad_requests", "cancel", "deadline"]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--server", default="127.0.0.1:50051", metavar="H:P")
    parser.add_argument("--only", default=",".join(CHECKS), help="checks to run, by commas (default: all)")
    args = parser.parse_args()
    names = args.only.split(",")
    for name in names:
        if name not in CHECKS:
            parser.error(f"unknown check '{name}': expected some of {', '.join(CHECKS)}")
    failed = 0
    with tempfile.TemporaryDirectory() as folder, grpc.insecure_channel(args.server) as channel:
        stranger = Stranger(generate_stubs(folder), channel)
        for name in names:
            try:
                getattr(stranger, "check_" + name)()
                print(f"ok      {name}", flush=True)
            except (AssertionError, grpc.RpcError, StopIteration) as e:
                failed += 1
                text = f"{e.code().name}: {e.details()}" if isinstance(e, grpc.RpcError) else str(e)
                print(f"FAILED  {name}: {text}", flush=True)
    print(f"{len(names) - failed} passed, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
