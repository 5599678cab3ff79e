"""A server of its own, and a worker played by hand: what server_alone.py checks with."""

import hashlib
import importlib
import json
import pathlib
import signal
import struct
import subprocess
import tempfile
import time
import urllib.request
import uuid

import client

PROFILE = json.dumps({"backend": "cpu", "body": "avx2", "build": "test", "threads": 1, "act_bytes": 2,
                      "fixed_bytes": 50 << 20, "capacity_bytes": 300 << 20})
ROWS = b"".join(b'{"prompt": "q%d", "completion": "a%d"}\n' % (i, i) for i in range(40))


class Server:
    """nibble-server on ephemeral ports in a directory of its own."""

    started = []

    def __init__(self, binary, *flags):
        Server.started.append(self)
        self.binary = binary
        self.flags = flags
        self.data = pathlib.Path(tempfile.mkdtemp(prefix="nibble-alone-"))
        self.process = None

    def start(self, *more):
        info = self.data / "run" / "server.json"
        info.unlink(missing_ok=True)
        self.log = open(self.data / "log", "ab")
        self.process = subprocess.Popen(
            [self.binary, "--data-dir", self.data, "--listen", "127.0.0.1:0", "--http-listen", "127.0.0.1:0",
             "--lease-seconds", "6", "--metrics-job-linger", "3", "--watch-heartbeat-seconds", "1",
             "--min-free-mb", "0", *self.flags, *more], stdout=self.log, stderr=self.log)
        end = time.monotonic() + 20 * client.PATIENCE
        while not info.exists():
            assert self.process.poll() is None, (self.data / "log").read_text()
            assert time.monotonic() < end, "the server did not come up"
            time.sleep(0.02)
        self.info = json.loads(info.read_text())
        self.address = f"127.0.0.1:{self.info['port']}"
        return self

    def get(self, path):
        with urllib.request.urlopen(f"http://127.0.0.1:{self.info['http_port']}{path}", timeout=10) as answer:
            return answer.read().decode()

    def stop(self, how=signal.SIGTERM):
        self.process.send_signal(how)
        code = self.process.wait(30 * client.PATIENCE)
        self.log.close()
        return code


class PlayedWorker:
    """Speaks WorkerService by hand."""

    def __init__(self, address, name="w1", channel=None):
        import grpc
        self.pb = importlib.import_module("nibble.worker.v1.worker_pb2")
        stubs = importlib.import_module("nibble.worker.v1.worker_pb2_grpc")
        self.stub = stubs.WorkerServiceStub(channel or grpc.insecure_channel(address))
        self.name, self.incarnation, self.revision, self.running = name, uuid.uuid4().hex, 0, {}
        self.profile = {}  # what is other than in PROFILE

    def register(self):
        return self.stub.Register(self.pb.RegisterRequest(
            worker_id=self.name, incarnation=self.incarnation, version="test", shares_file_system=True,
            devices=[self.pb.DeviceProfile(id="cpu0", backend="cpu", body="avx2", description="test CPU",
                                           capacity_bytes=300 << 20,
                                           profile_json=json.dumps(json.loads(PROFILE) | self.profile))]))

    def synchronize(self):
        answer = self.stub.Synchronize(self.pb.SynchronizeRequest(
            worker_id=self.name, incarnation=self.incarnation, known_revision=self.revision,
            attempts=self.running.values()))
        self.revision = answer.revision
        return answer

    def wait_for(self, condition, timeout=20):
        end = time.monotonic() + timeout * client.PATIENCE
        while time.monotonic() < end:
            answer = self.synchronize()
            for assignment in answer.assignments:
                self.running[(assignment.job_id, assignment.epoch)] = self.pb.RunningAttempt(
                    job_id=assignment.job_id, epoch=assignment.epoch, device_id=assignment.device_id,
                    phase=self.pb.TRAINING)
            found = [a for a in answer.assignments if condition(a)]
            if found:
                return found[0]
        raise AssertionError(f"no such assignment; the last answer was {answer}")

    def let_go(self, assignment):
        self.running.pop((assignment.job_id, assignment.epoch), None)

    def fence(self, a):
        return self.pb.Fence(job_id=a.job_id, epoch=a.epoch, worker_id=self.name,
                             incarnation=self.incarnation, token=a.token)

    def report(self, assignment, metrics=(), **report):
        return self.stub.ReportProgress(self.pb.ReportProgressRequest(
            fence=self.fence(assignment), metrics=metrics, **report))

    def step(self, n, **more):
        return self.pb.StepMetric(step=n, loss=3.0 / n, gradient_norm=1.0, learning_rate=1e-4, tokens=100,
                                  target_tokens=80, step_time_us=10000, time_us=time.time_ns() // 1000,
                                  used_bytes=1 << 28, phases=self.pb.StepPhases(
                                      linear_us=6000, attention_us=2500, data_us=1000), **more)

    def put(self, assignment, name, data):
        digest = hashlib.sha256(data).hexdigest()
        begun = self.stub.BeginBlob(self.pb.BeginBlobRequest(
            fence=self.fence(assignment), sha256=digest, size_bytes=len(data)))
        if not begun.complete:
            done = self.stub.PutBlob(iter([
                self.pb.BlobChunk(upload_id=begun.upload_id, offset=at, data=data[at:at + client.CHUNK])
                for at in range(begun.committed_bytes, len(data), client.CHUNK)]))
            assert done.complete, done
        return self.pb.BlobRef(name=name, sha256=digest, size_bytes=len(data))

    def fetch(self, digest):
        return b"".join(part.data for part in self.stub.FetchBlob(
            self.pb.FetchBlobRequest(worker_id=self.name, sha256=digest)))


def model_files():
    """A whole model of one small layer, weights zero."""
    config = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 256,
              "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 1, "num_attention_heads": 2,
              "num_key_value_heads": 1, "max_position_embeddings": 512, "rms_norm_eps": 1e-5,
              "rope_theta": 10000.0, "tie_word_embeddings": True, "hidden_act": "silu"}
    shapes = {"model.embed_tokens.weight": [256, 64], "model.norm.weight": [64]}
    layer = "model.layers.0."
    for name, shape in {"input_layernorm": [64], "post_attention_layernorm": [64],
                        "self_attn.q_proj": [64, 64], "self_attn.k_proj": [32, 64],
                        "self_attn.v_proj": [32, 64], "self_attn.o_proj": [64, 64],
                        "mlp.gate_proj": [128, 64], "mlp.up_proj": [128, 64],
                        "mlp.down_proj": [64, 128]}.items():
        shapes[layer + name + ".weight"] = shape
    header, at = {}, 0
    for name, shape in shapes.items():
        size = 2
        for extent in shape:
            size *= extent
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(header).encode()
    tokenizer = {"model": {"type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 2}, "merges": ["a b"]}}
    return {"config.json": json.dumps(config).encode(), "tokenizer.json": json.dumps(tokenizer).encode(),
            "model.safetensors": struct.pack("<Q", len(text)) + text + bytes(at)}


def add_model(api, files, **more):
    manifest = [api.pb.model.ModelFile(name=name, size_bytes=len(data), sha256=api.upload(data))
                for name, data in files.items()]
    return api.models.RegisterModel(api.pb.model.RegisterModelRequest(manifest=manifest, **more))


def spec_of(api, model, dataset):
    spec = api.pb.job.JobSpec(base_model=model.name, dataset=dataset.name)
    spec.lora.r, spec.data.sequence_len, spec.training.max_steps = 4, 64, 20
    return spec
