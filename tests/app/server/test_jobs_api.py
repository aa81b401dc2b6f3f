"""The native API: submit, look, steer, follow, results; idempotency, a full queue, one sentence for every fault."""

from __future__ import annotations

import io
import json
import threading

import httpx
import pytest
from PIL import Image
from sfumato.app.jobs import control
from sfumato.app.jobs.store import Store

SUM = {"task": "sum", "request": {"prompt": "mine", "seed": 7}}
PICTURE = {"model": "tiny-sd", "width": 64, "height": 64, "steps": 2, "prompt": "a cube", "seed": 3}


def events_of(stream: httpx.Response) -> list[dict]:
    """Server-sent events until the stream ends."""
    found, now = [], {}
    for line in stream.iter_lines():
        if not line and "event" in now:
            found.append(now)
            now = {}
        elif line and not line.startswith(":"):
            name, _, value = line.partition(": ")
            now[name] = json.loads(value) if name == "data" else value
    return found


def test_a_job_from_submission_to_its_results(client, running, api, wait_until):
    made = client.post("/v1/jobs", json={"task": "generate", "request": PICTURE, "priority": 2})
    assert made.status_code == 201, made.text
    id = made.json()["id"]
    assert made.headers["location"] == f"/v1/jobs/{id}" and made.json()["priority"] == 2
    running()
    job = wait_until(lambda: (job := client.get(f"/v1/jobs/{id}").json())["state"] == "completed" and job)
    assert job["request"]["prompt"] == "a cube" and job["request"]["seed"] == 3
    picture = next(kept for kept in job["artifacts"] if kept["name"] == "0000.png")
    got = client.get(picture["url"])
    assert Image.open(io.BytesIO(got.content)).size == (64, 64)
    assert got.headers["content-type"] == "image/png" and "immutable" in got.headers["cache-control"]
    assert got.headers["content-disposition"].startswith("inline") and len(got.content) == picture["bytes"]
    assert (
        client.get("/v1/jobs", params={"words": "CUBE", "state": "completed"}).json()["jobs"][0]["id"] == id
    )
    assert client.get("/v1/jobs").json()["counts"]["completed"] == 1
    assert client.get(f"/v1/jobs/{id}/preview").status_code == 404


def test_a_new_task_needs_nothing_here(client, running, wait_until):
    """The toy task is a request and a function; the body, the schema and the capabilities are made from them."""
    schema = client.get("/openapi.json").json()
    kinds = schema["components"]["schemas"]
    assert kinds["SumRequest"]["properties"]["steps"]["description"] == "numbers to add"
    body = schema["paths"]["/v1/jobs"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert body["discriminator"]["mapping"]["sum"] == "#/components/schemas/SubmitSum"
    told = client.get("/v1/capabilities").json()
    assert set(told["tasks"]) == {"generate", "world", "sum"} and "cfg" in told["techniques"]
    running()
    id = client.post("/v1/jobs", json=SUM).json()["id"]
    wait_until(lambda: client.get(f"/v1/jobs/{id}").json()["state"] == "completed")
    wrong = client.post("/v1/jobs", json={"task": "sum", "request": {"steps": 0}})
    assert wrong.status_code == 422
    assert wrong.json()["error"]["message"] == "steps: 0 must be at least 1"
    assert wrong.json()["error"]["param"] == "steps"


@pytest.mark.parametrize(
    ("body", "field", "sentence"),
    [
        ({"task": "sculpt", "request": {}}, "task", "task: 'sculpt' is not known; known are 'generate', "),
        ({"request": {}}, "task", "task: None is needed"),
        (
            {"task": "generate", "request": {"prompt": "x", "steps": "many"}},
            "steps",
            "must be a whole number",
        ),
        ({"task": "generate", "request": {"prompt": "x", "width": 1}}, "width", "must be at least 8"),
        (
            {"task": "generate", "request": {"prompt": "x", "stesp": 1}},
            "stesp",
            "is no field of this request",
        ),
        ({"task": "generate", "request": {"prompt": "x", "size": "big"}}, "size", "is not WxH"),
        ({"task": "generate", "request": {"prompt": "x", "model": "still-lief"}}, "model", "did you mean"),
        (
            {"task": "generate", "request": {"prompt": "x", "sampler": "ddmi"}},
            "sampler",
            "did you mean 'ddim'",
        ),
        ({"task": "generate", "request": {"prompt": "x", "sampler": "ddim:q=1"}}, "sampler", "is no setting"),
        (
            {"task": "generate", "request": {"prompt": "x", "device": "/dev/sda"}},
            "device",
            "is no device; write",
        ),
        (
            {"task": "generate", "request": {"prompt": "x", "techniques": ["ulysses"]}},
            "techniques",
            "'ulysses' is not known",
        ),
        (
            {"task": "generate", "request": {"prompt": "x", "techniques": ["ptq4dm"]}},
            "techniques",
            "'ptq4dm' needs seen, which only a run of the model tells: it is a method of `sfumato models quantize`",
        ),
        ({"task": "generate", "request": {"prompt": "\ud800"}}, "prompt", "valid text"),
        ({"task": "world", "request": {"prompt": "x"}, "priority": 10**9}, "priority", "at most 1000"),
        ([], "body", "body"),
    ],
)
def test_a_fault_is_one_sentence_with_its_field(client, body, field, sentence):
    said = client.post("/v1/jobs", content=json.dumps(body), headers={"Content-Type": "application/json"})
    assert said.status_code == 422, said.text
    error = said.json()["error"]
    assert sentence in error["message"] and error["param"] == field, error
    assert "\n" not in error["message"] and "Traceback" not in said.text


def test_a_device_that_its_runner_has_not_is_refused(serve):
    asked = {"task": "generate", "request": {"prompt": "x", "device": "xpu:7", "optimize": "exact"}}
    with serve(runner=True).client() as client:
        said = client.post("/v1/jobs", json=asked)
        assert said.status_code == 422 and said.json()["error"]["param"] == "device", said.text
        assert "device: 'xpu:7' is not there" in said.json()["error"]["message"]
    with serve().client() as client:  # whose runner is another's
        assert client.post("/v1/jobs", json=asked).status_code == 201


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[" * 100_000, b'{"task": 1e999}', b"\xff\xfe", b'{"task": "sum", "request": NaN}'],
)
def test_what_is_no_json_is_refused(client, content):
    said = client.post("/v1/jobs", content=content, headers={"Content-Type": "application/json"})
    assert said.status_code in (400, 422) and said.json()["error"]["message"], said.text


def test_what_is_not_there_is_404(client):
    for path in (
        "/v1/jobs/7",
        "/v1/jobs/7/events",
        "/v1/jobs/7/preview",
        f"/v1/artifacts/{'0' * 64}",
        "/nothing",
    ):
        said = client.get(path)
        assert said.status_code == 404 and said.json()["error"]["type"] == "not_found", path
    assert client.post("/v1/jobs/7/cancel").status_code == 404
    assert client.get(f"/v1/jobs/{10**30}").status_code == 422
    assert client.delete("/v1/jobs").status_code == 405


def test_steering(client):
    a, b = (client.post("/v1/jobs", json=SUM).json()["id"] for _ in range(2))
    assert client.post(f"/v1/jobs/{a}/pause").json()["held"] is True
    assert client.post(f"/v1/jobs/{a}/resume").json()["held"] is False
    assert client.post(f"/v1/jobs/{b}/move/first").status_code == 200
    assert [job["id"] for job in client.get("/v1/queue").json()["jobs"]] == [b, a]
    client.post(f"/v1/jobs/{b}/move/last")
    assert [job["id"] for job in client.get("/v1/queue").json()["jobs"]] == [a, b]
    assert client.post(f"/v1/jobs/{a}/cancel").json()["state"] == "cancelled"
    again = client.post(f"/v1/jobs/{a}/cancel")
    assert again.status_code == 409 and "is cancelled already" in again.json()["error"]["message"]
    assert client.post(f"/v1/jobs/{a}/retry").json()["state"] == "queued"
    paused = client.post("/v1/jobs", json={**SUM, "paused": True}).json()
    assert paused["held"] is True


def test_a_finished_job_is_deleted_with_its_results(client, running, api, wait_until):
    """What another job has too stays; what an open job starts from can't be deleted."""
    keyed = {"headers": {"Idempotency-Key": "k"}}
    first, twin = (client.post("/v1/jobs", json={"task": "generate", "request": PICTURE}, **more).json()["id"]
                   for more in (keyed, {}))  # fmt: skip
    assert client.delete(f"/v1/jobs/{first}").status_code == 409
    running()
    jobs = [wait_until(lambda id=id: done(client, id)) for id in (first, twin)]
    picture = next(kept for kept in jobs[0]["artifacts"] if kept["name"] == "0000.png")
    small = client.get(picture["thumbnail"])
    assert small.headers["content-type"] == "image/webp" and "immutable" in small.headers["cache-control"]
    assert Image.open(io.BytesIO(small.content)).size == (64, 64)
    manifest = next(kept for kept in jobs[0]["artifacts"] if kept["name"] == "manifest.json")
    assert manifest["thumbnail"] is None and client.get(f"{manifest['url']}/thumbnail").status_code == 404
    held = {"model": "tiny-sd", "prompt": "x", "image": picture["id"]}
    waits = client.post("/v1/jobs", json={"task": "generate", "request": held, "paused": True}).json()["id"]
    said = client.delete(f"/v1/jobs/{first}")
    assert (
        said.status_code == 409 and f"job {waits} starts from its result" in said.json()["error"]["message"]
    )
    client.post(f"/v1/jobs/{waits}/cancel")
    assert client.delete(f"/v1/jobs/{first}").status_code == 204
    assert (
        client.get(f"/v1/jobs/{first}").status_code == 404 == client.delete(f"/v1/jobs/{first}").status_code
    )
    assert client.get(picture["url"]).status_code == 200, "the twin has the same bytes"
    again = client.post("/v1/jobs", json={"task": "generate", "request": PICTURE}, **keyed)
    assert again.status_code == 201 and again.json()["id"] > waits, "a key whose job is gone is free again"
    wait_until(lambda: done(client, again.json()["id"]))
    for id in (twin, again.json()["id"]):
        assert client.delete(f"/v1/jobs/{id}").status_code == 204
    assert client.get(picture["url"]).status_code == 404 == client.get(picture["thumbnail"]).status_code
    left = [file for part in ("artifacts", "thumbnails") for file in (api.home / part).rglob("*.*")]
    assert left == [] and "deleted" in {event.kind for event in api.store.events()}


def done(client, id: int):
    job = client.get(f"/v1/jobs/{id}").json()
    return job if job["state"] == "completed" else None


def test_cancel_lands_in_a_running_job(client, running, wait_until):
    running()
    id = client.post("/v1/jobs", json={"task": "sum", "request": {"steps": 10**9}}).json()["id"]
    wait_until(lambda: client.get(f"/v1/jobs/{id}").json()["step"] > 10)
    client.post(f"/v1/jobs/{id}/cancel")
    wait_until(lambda: client.get(f"/v1/jobs/{id}").json()["state"] == "cancelled", 5)


def test_events_and_where_a_broken_stream_goes_on(client, running, api, wait_until):
    id = client.post("/v1/jobs", json={"task": "generate", "request": {**PICTURE, "steps": 30}}).json()["id"]
    running()
    with client.stream("GET", f"/v1/jobs/{id}/events") as stream:
        assert stream.headers["content-type"].startswith("text/event-stream")
        found = events_of(stream)
    kinds = [event["event"] for event in found]
    assert kinds[0] == "queued" and kinds[-1] == "end" and "running" in kinds and "completed" in kinds
    steps = [event["data"]["step"] for event in found if event["event"] == "progress"]
    assert steps == sorted(steps) and len(set(steps)) > 3 and steps[-1] == 30
    last = next(event["id"] for event in found if event["event"] == "running")
    with client.stream("GET", f"/v1/jobs/{id}/events", headers={"Last-Event-ID": last}) as stream:
        rest = [event["event"] for event in events_of(stream)]
    assert rest[-1] == "end" and "running" not in rest and "queued" not in rest
    assert [kind for kind in rest if kind != "progress"] == [
        kind for kind in kinds[kinds.index("running") + 1 :] if kind != "progress"
    ]


def test_all_events_tell_of_later_jobs(client, api):
    client.post("/v1/jobs", json=SUM)
    seen: list[str] = []
    ready = threading.Event()

    def follow() -> None:
        with api.client() as other, other.stream("GET", "/v1/events") as stream:
            ready.set()
            for line in stream.iter_lines():
                seen.append(line)
                if line.startswith("data:"):
                    return

    thread = threading.Thread(target=follow)
    thread.start()
    assert ready.wait(10)
    id = client.post("/v1/jobs", json=SUM).json()["id"]
    thread.join(10)
    assert json.loads(seen[-1].removeprefix("data: "))["job"] == id


def test_the_same_key_is_the_same_job(client, api):
    keyed = {"headers": {"Idempotency-Key": "once"}}
    first = client.post("/v1/jobs", json={"task": "sum", "request": {}}, **keyed).json()
    again = client.post("/v1/jobs", json={"task": "sum", "request": {}}, **keyed).json()
    assert first["id"] == again["id"] and first["request"]["seed"] == again["request"]["seed"]
    other = client.post("/v1/jobs", json={"task": "sum", "request": {"steps": 9}}, **keyed)
    assert other.status_code == 422 and "came with another request" in other.json()["error"]["message"]
    assert len(api.store.queue()) == 1


def test_the_same_key_at_once_is_the_same_job(api):
    ids: list[int] = []

    def submit() -> None:
        with api.client() as own:
            ids.append(own.post("/v1/jobs", json=SUM, headers={"Idempotency-Key": "k"}).json()["id"])

    threads = [threading.Thread(target=submit) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(ids) == 8 and len(set(ids)) == 1


def test_a_full_queue_says_when_to_come_again(serve):
    with serve(queue=2).client() as client:
        assert [client.post("/v1/jobs", json=SUM).status_code for _ in range(3)] == [201, 201, 429]
        said = client.post("/v1/jobs", json=SUM)
        assert int(said.headers["retry-after"]) >= 1
        assert "2 jobs wait, 2 are allowed" in said.json()["error"]["message"]


def test_what_other_processes_do_is_seen_at_once(client, api, wait_until):
    id = client.post("/v1/jobs", json=SUM).json()["id"]
    assert client.get(f"/v1/jobs/{id}").json()["state"] == "queued"
    control.cancel(Store(api.home), id)
    assert client.get(f"/v1/jobs/{id}").json()["state"] == "cancelled"


def test_health_and_metrics(client):
    assert client.get("/healthz").json() == {"ok": True}
    assert client.get("/readyz").json() == {"ok": True, "problems": []}
    client.post("/v1/jobs", json=SUM)
    client.get("/v1/jobs/1")
    text = client.get("/metrics").text
    assert 'sfumato_jobs{state="queued"} 1.0' in text
    assert 'sfumato_requests_total{method="GET",route="/v1/jobs/{id}",status="200"} 1.0' in text
    assert 'sfumato_request_seconds_count{route="/v1/jobs"} 1.0' in text
