"""The schema holds under fire: Schemathesis draws requests from it, and none is answered with a 5xx."""

from __future__ import annotations

import time

import httpx
import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis.checks import not_a_server_error

SECONDS = 25.0
STREAMS = ("/v1/events", "/v1/jobs/{id}/events")
"""They do not end by themselves."""
WAITING = ("/v1/images/generations", "/v1/images/edits", "/sdapi/v1/txt2img", "/sdapi/v1/img2img")
"""They wait for a job, so a sound request is given up soon."""


@pytest.mark.slow
def test_no_request_is_answered_with_5xx(serve):
    api = serve(queue=50, rate=10**6, reads=10**6)
    schema = schemathesis.openapi.from_dict(httpx.get(f"{api.url}/openapi.json").json())
    schema.config.update(base_url=api.url)
    operations = [found.ok() for found in schema.get_all_operations()]
    operations = [operation for operation in operations if operation.path not in STREAMS]
    assert len(operations) > 25
    until, tried, codes = time.monotonic() + SECONDS, 0, set()
    for operation in operations:

        @settings(
            max_examples=12,
            deadline=None,
            database=None,
            derandomize=True,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        @given(case=operation.as_strategy())
        def shoot(case: schemathesis.Case) -> None:
            nonlocal tried
            if time.monotonic() > until:
                return
            try:
                answer = case.call(timeout=0.5 if case.operation.path in WAITING else 20)
            except requests.exceptions.Timeout:
                assert case.operation.path in WAITING
                return
            tried += 1
            codes.add(answer.status_code)
            case.validate_response(answer, checks=[not_a_server_error])
            assert "Traceback" not in answer.text

        shoot()
    print(f"{tried} requests, {sorted(codes)}")
    assert tried > 150 and {200, 201, 404, 422} <= codes
