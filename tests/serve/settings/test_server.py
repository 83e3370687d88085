"""What a server, its models and their priorities cannot be set to."""

from __future__ import annotations

from typing import Any

import pytest

from edgeserve.errors import UsageError
from edgeserve.serve.access.keys import is_loopback
from edgeserve.serve.settings.reading import settings_from


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"http_port": -1}, "http_port -1 is not a valid port: expected 0 to 65535"),
        ({"http_port": 65536}, "http_port 65536 is not a valid port"),
        ({"instances": -1}, "instances -1 is not a valid number: expected 0 or more"),
        ({"max_batch": -1}, "max_batch -1 is not a valid number"),
        (
            {"batch_delay": 11},
            "batch_delay 11.0 is not a valid number of seconds: expected 0 to 10",
        ),
        (
            {"preferred_batches": [0]},
            "preferred_batches 0 is not a valid number: expected 1 or more",
        ),
        ({"priority_levels": 0}, "priority_levels 0 is not a valid number: expected 1 to 1000"),
        ({"default_priority": 2}, "default_priority must be 1 to priority_levels"),
        ({"priority": [{"level": 2}]}, "level 2: level must be 1 to priority_levels"),
        (
            {"priority": [{"level": 1, "queue": 0}]},
            "level 1: queue 0 is not a valid number",
        ),
        ({"priority": [{"level": 1, "timeout": -1}]}, "level 1: timeout -1.0 is not a valid"),
        ({"priority": [{"level": 1}, {"level": 1}]}, "tables are about the same level"),
        ({"weight": 0}, "weight 0.0 is not a valid number: expected more than 0"),
        ({"versions": "newest"}, "versions 'newest' is not valid: expected latest"),
        ({"memory_budget": "2 gigs"}, "memory_budget '2 gigs' is not a valid size"),
        ({"cache": -1}, "cache '-1' is not a valid size"),
        ({"name": "../x"}, "cannot be a model's name"),
        ({"name": "x", "bundles": ["b.edge"]}, "name can be set for one bundle only"),
        (
            {"model": [{"bundle": "b.edge", "queue": 0}]},
            "queue 0 is not a valid number: expected 1 or more",
        ),
        ({"queue": 0}, "queue 0 is not a valid number: expected 1 or more"),
        ({"max_body": 0}, "max_body 0 is not a valid number of bytes"),
        ({"threads": -1}, "threads -1 is not a valid number"),
        ({"timeout": -0.5}, "timeout -0.5 is not a valid number of seconds: expected 0 or more"),
        ({"drain_timeout": -1}, "drain_timeout -1.0 is not a valid number of seconds"),
        ({"host": "0.0.0.0"}, "0.0.0.0 is open to the network"),
    ],
)
def test_what_cannot_work_is_refused(values: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words) as caught:
        settings_from({"bundle": "model.edge", **values})
    assert caught.value.exit_code == 2


@pytest.mark.parametrize("key", ["timeout", "drain_timeout"])
def test_not_a_number_is_no_time(key: str) -> None:
    with pytest.raises(UsageError, match=key):
        settings_from({"bundle": "model.edge", key: float("nan")})


@pytest.mark.parametrize(
    "values",
    [
        {"http_port": 0},
        {"http_port": 65535},
        {"instances": 0},
        {"queue": 1},
        {"max_body": 1},
        {"threads": 0},
        {"timeout": 0},
        {"drain_timeout": 0.0},
    ],
)
def test_the_bounds_themselves_are_taken(values: dict[str, Any]) -> None:
    settings = settings_from({"bundle": "model.edge", **values})
    assert {k: getattr(settings, k) for k in values} == values


def test_no_bundle_says_both_ways_to_name_one() -> None:
    with pytest.raises(UsageError, match="no bundle to serve") as caught:
        settings_from({"http_port": 0})
    assert "edgeserve run NAME.edge" in (caught.value.hint or "")


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.2", "127.255.255.254", "::1", "localhost"])
def test_loopback_needs_no_leave(host: str) -> None:
    assert is_loopback(host)
    assert settings_from({"bundle": "model.edge", "host": host}).host == host


@pytest.mark.parametrize(
    "host",
    ["0.0.0.0", "::", "", "10.0.0.1", "192.168.1.7", "fe80::1", "example.org", "localhost.evil.org",
     "127.0.0.1.nip.io", "0", "127.1", "2130706433"],
)  # fmt: skip
def test_every_other_host_needs_insecure(host: str) -> None:
    with pytest.raises(UsageError, match="open to the network") as caught:
        settings_from({"bundle": "model.edge", "host": host})
    assert "--insecure" in (caught.value.hint or "")
    assert settings_from({"bundle": "model.edge", "host": host, "insecure": True}).host == host


@pytest.mark.parametrize(("own", "levels"), [({}, [3]), ({"priority": [{"level": 2}]}, [2])])
def test_tables_about_priorities_that_a_model_does_not_have_are_not_for_it(
    own: dict[str, object], levels: list[int]
) -> None:
    settings = settings_from(
        {
            "bundle": "a.edge", "priority_levels": 3, "priority": [{"level": 3, "queue": 9}],
            "model": [{"name": "m", "bundle": "b.edge", "priority_levels": 2, **own}],
        }
    )  # fmt: skip
    settings.check()
    assert [p.level for p in settings.priority] == [3]
    assert [p.level for p in settings.of(settings.model[0]).priority] == levels[: bool(own)]
