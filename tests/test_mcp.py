"""The demo's endpoints as tools of the Model Context Protocol, called through its own client."""

from __future__ import annotations

import asyncio
import base64
from pathlib import Path

import mcp
import pytest
from causalclipseg.demo import tour
from demo_driver import running_app


@pytest.fixture(scope="module")
def address(tiny_model_dir):
    with running_app(tiny_model_dir, "--mcp") as address:
        yield address


async def _with_session(address, use):
    from mcp.client.streamable_http import streamablehttp_client

    async with streamablehttp_client(f"{address}/gradio_api/mcp/") as (read, write, _), mcp.ClientSession(read, write) as session:
        await session.initialize()
        return await use(session)


def test_three_tools_with_their_arguments_described(address):
    listed = asyncio.run(_with_session(address, lambda session: session.list_tools()))
    tools = {tool.name: tool for tool in listed.tools}
    assert sorted(name.rpartition("_")[2] for name in tools) == ["explain", "intervene", "segment"]
    segment = next(tool for name, tool in tools.items() if name.endswith("segment"))
    assert set(segment.inputSchema["properties"]) == {"image", "report", "threshold"}
    for tool in tools.values():
        assert "Not for clinical use" in tool.description
        assert all(argument.get("description") and argument.get("type") for argument in tool.inputSchema["properties"].values()), tool.inputSchema


def test_a_tool_answers_and_refuses(address):
    async def use(session):
        name = next(tool.name for tool in (await session.list_tools()).tools if tool.name.endswith("segment"))
        picture = "data:image/png;base64," + base64.b64encode(Path(tour.shipped_examples()[0]["image"]).read_bytes()).decode()
        report = "Infection of the left lung."
        good = await session.call_tool(name, {"image": picture, "report": report, "threshold": 0.5})
        bad = [await session.call_tool(name, {"image": image, "report": report, "threshold": 0.5})
               for image in ("/etc/passwd", tour.shipped_examples()[0]["image"], "file:///etc/passwd", f"{address}/static/img/api-logo.svg")]  # fmt: skip
        return good, bad

    good, bad = asyncio.run(_with_session(address, use))
    said = " ".join(part.text for part in good.content if part.type == "text")
    assert not good.isError and "area_fraction" in said and "image.png" in said
    for answer in bad:
        assert answer.isError and "root:" not in str(answer.content), answer
