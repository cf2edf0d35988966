"""The exposition has the families that dashboards are built on."""

from __future__ import annotations

from prometheus_client.parser import text_string_to_metric_families

from ktd.http.metrics import EngineSample, Metrics


async def scraped(rig, session) -> dict[tuple, float]:
    async with session.get(f"{rig.url}/metrics") as answer:
        assert answer.headers["Content-Type"].startswith("text/plain")
        text = await answer.text()
    return {
        (sample.name, *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


async def test_experts_and_placement(rig):
    """Pairs by layer and tier, hit ratio, residency, generation, swaps."""
    async with rig.serving() as session:
        values = await scraped(rig, session)
    assert values["ktd_build_info", "1.2.3"] == 1
    assert values["ktd_engine_ready",] == 1
    assert values["ktd_placement_generation",] == 7
    assert values["ktd_expert_activations_total", "1", "gpu"] == 30
    assert values["ktd_expert_activations_total", "1", "cpu"] == 10
    assert values["ktd_expert_hit_ratio", "1"] == 0.75
    assert values["ktd_expert_hit_ratio", "3"] == 0
    assert values["ktd_experts_resident", "gpu"] == 6
    assert values["ktd_experts_resident", "cpu"] == 64
    assert values["ktd_expert_swaps_total", "succeeded"] == 5
    assert values["ktd_expert_swap_bytes_total",] == 4096
    assert values["ktd_expert_move_calls_total",] == 6
    assert values["ktd_expert_move_call_seconds_total",] == 0.25


async def test_requests_are_counted_by_status(rig):
    """Each /v1 request that reached the engine counts once, with its time to the first byte."""
    async with rig.serving() as session:
        for status in (200, 200, 404):
            async with session.get(f"{rig.url}/v1/x?status={status}") as answer:
                await answer.read()
        values = await scraped(rig, session)
    assert values["ktd_requests_total", "200"] == 2
    assert values["ktd_requests_total", "404"] == 1
    assert values["ktd_request_ttft_seconds_count",] == 3
    assert values["ktd_requests_in_flight",] == 0


def test_an_engine_that_never_ran_is_no_error():
    """Metrics can be scraped before anything was loaded."""

    class Nothing:
        def sample(self) -> EngineSample:
            return EngineSample(info={})

        def in_flight(self) -> int:
            return 0

    text = Metrics(Nothing()).text().decode()
    assert "ktd_engine_ready 0.0" in text
    assert "_created" not in text


def test_names_have_no_colons_and_counters_end_in_total():
    """Prometheus' conventions: colons are for recording rules."""

    class Nothing:
        def sample(self) -> EngineSample:
            return EngineSample(info={})

        def in_flight(self) -> int:
            return 0

    for family in text_string_to_metric_families(Metrics(Nothing()).text().decode()):
        assert ":" not in family.name
        if family.type == "counter":
            assert all(sample.name.endswith("_total") for sample in family.samples)
