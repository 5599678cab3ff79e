"""Blobs, data sets and models of a server without workers."""

import hashlib
import os

from foreign_client import expect_error
from lone_server import ROWS, add_model, model_files



def check_blobs(api):
    pb, blob = api.pb, api.blobs
    data = os.urandom(3 << 20)
    digest = hashlib.sha256(data).hexdigest()
    begun = blob.BeginUpload(pb.blob.BeginUploadRequest(sha256=digest, size_bytes=len(data)))
    assert not begun.complete and begun.committed_bytes == 0
    part = blob.Upload(iter([pb.blob.UploadChunk(upload_id=begun.upload_id, offset=0, data=data[:1 << 20])]))
    assert part.committed_bytes == 1 << 20 and not part.complete, part
    state = blob.GetUpload(pb.blob.GetUploadRequest(upload_id=begun.upload_id))
    assert state.committed_bytes == 1 << 20, state
    metadata = expect_error(lambda: blob.Upload(iter([pb.blob.UploadChunk(
        upload_id=begun.upload_id, offset=(1 << 20) + 5, data=b"x")])), "OUT_OF_RANGE", "OFFSET_MISMATCH")
    assert metadata["committed_bytes"] == str(1 << 20), metadata
    expect_error(lambda: blob.Upload(iter([pb.blob.UploadChunk(
        upload_id=begun.upload_id, offset=1 << 20, data=bytes((1 << 20) + 1))])),
        "INVALID_ARGUMENT", "REQUEST_TOO_LARGE", "data")
    expect_error(lambda: blob.Upload(iter([])), "INVALID_ARGUMENT", "SPEC_INVALID", "upload_id")
    assert api.upload(data) == digest
    assert blob.BeginUpload(pb.blob.BeginUploadRequest(sha256=digest, size_bytes=len(data))).complete
    expect_error(lambda: blob.BeginUpload(pb.blob.BeginUploadRequest(sha256="../../etc/passwd", size_bytes=1)),
                 "INVALID_ARGUMENT", "NAME_INVALID", "sha256")
    expect_error(lambda: blob.GetUpload(pb.blob.GetUploadRequest(upload_id="nothing")),
                 "NOT_FOUND", "UPLOAD_NOT_FOUND")
    wrong = blob.BeginUpload(pb.blob.BeginUploadRequest(sha256="0" * 64, size_bytes=1))
    expect_error(lambda: blob.Upload(iter([pb.blob.UploadChunk(
        upload_id=wrong.upload_id, offset=0, data=b"x")])), "DATA_LOSS", "DIGEST_MISMATCH")


def check_datasets(api):
    pb = api.pb.dataset
    first = api.add_dataset(ROWS)
    assert (first.rows, first.format) == (40, "completion"), first
    assert api.add_dataset(ROWS).name == first.name, "the same content twice is one data set"
    named = api.add_dataset(ROWS, dataset_id="orders")
    assert named.name == "datasets/orders"
    expect_error(lambda: api.add_dataset(ROWS[ROWS.index(b'\n') + 1:], dataset_id="orders"), "ALREADY_EXISTS", "DATASET_EXISTS")
    expect_error(lambda: api.add_dataset(ROWS, dataset_id="../x"), "INVALID_ARGUMENT", "NAME_INVALID",
                 "dataset_id")
    expect_error(lambda: api.add_dataset(b'{"text":"a"}\n{"text":1}\n'), "INVALID_ARGUMENT",
                 "DATASET_SCHEMA_MISMATCH", "rows[1].text")
    expect_error(lambda: api.add_dataset(b"\n\n"), "INVALID_ARGUMENT", "DATASET_EMPTY")
    expect_error(lambda: api.add_dataset(b'{"text":"' + b"x" * (5 << 20)), "INVALID_ARGUMENT",
                 "REQUEST_TOO_LARGE", "rows[0]")
    expect_error(lambda: api.datasets.CreateDataset(pb.CreateDatasetRequest(path="/etc/passwd")),
                 "FAILED_PRECONDITION", "PATH_NOT_ALLOWED", "path")
    expect_error(lambda: api.datasets.CreateDataset(pb.CreateDatasetRequest(sha256="1" * 64)),
                 "NOT_FOUND", "BLOB_NOT_FOUND")
    rows = api.datasets.PreviewDataset(pb.PreviewDatasetRequest(name=first.name, rows=2)).rows
    assert list(rows) == ['{"prompt": "q0", "completion": "a0"}', '{"prompt": "q1", "completion": "a1"}']
    page = api.datasets.ListDatasets(pb.ListDatasetsRequest(page_size=1))
    assert len(page.datasets) == 1 and page.next_page_token
    rest = api.datasets.ListDatasets(pb.ListDatasetsRequest(page_token=page.next_page_token))
    assert {d.name for d in [*page.datasets, *rest.datasets]} == {first.name, named.name}
    api.datasets.DeleteDataset(pb.DeleteDatasetRequest(name=named.name))
    expect_error(lambda: api.datasets.GetDataset(pb.GetDatasetRequest(name=named.name)),
                 "NOT_FOUND", "DATASET_NOT_FOUND")
    return first


def check_models(api):
    files = model_files()
    model = add_model(api, files, display_name="tiny")
    assert model.model_type == "llama" and model.parameters > 0 and len(model.files) == 3, model
    assert add_model(api, files).name == model.name, "the same files twice are one model"
    for name, change, reason in (
            ("model.safetensors", None, "MODEL_FILE_INVALID"), ("tokenizer.json", None, "TOKENIZER_UNSUPPORTED"),
            ("model.safetensors", files["model.safetensors"][:-10], "MODEL_FILE_INVALID"),
            ("model.safetensors", b"\xff" * 64, "MODEL_FILE_INVALID"),
            ("tokenizer.json", b'{"model":{"type":"BPE","vocab":{"a":0}}}', "TOKENIZER_UNSUPPORTED"),
            ("config.json", files["config.json"].replace(b'"hidden_size": 64', b'"hidden_size": 128'),
             "MODEL_FILE_INVALID"),
            ("config.json", b'{"model_type":"mamba"}', "UNSUPPORTED_ARCHITECTURE")):
        bad = {k: v for k, v in files.items() if k != name}
        if change is not None:
            bad[name] = change
        expect_error(lambda: add_model(api, bad), "FAILED_PRECONDITION", reason)
    expect_error(lambda: add_model(api, {**files, "a..b": b"x"}), "INVALID_ARGUMENT", "NAME_INVALID",
                 "manifest[3].name")
    expect_error(lambda: add_model(api, files, model_id="No"), "INVALID_ARGUMENT", "NAME_INVALID", "model_id")
    pb = api.pb.model
    other = add_model(api, {**files, "config.json": files["config.json"].replace(b"512", b"256")}, model_id="other")
    page = api.models.ListModels(pb.ListModelsRequest(page_size=1))
    rest = api.models.ListModels(pb.ListModelsRequest(page_token=page.next_page_token))
    assert sorted(m.name for m in [*page.models, *rest.models]) == sorted([model.name, other.name]), (page, rest)
    expect_error(lambda: add_model(api, files, model_id="other"), "ALREADY_EXISTS", "MODEL_EXISTS")
    api.models.DeleteModel(pb.DeleteModelRequest(name=other.name))
    assert [m.name for m in api.models.ListModels(pb.ListModelsRequest()).models] == [model.name]
    return model
