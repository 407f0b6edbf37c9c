"""The house holds: a file imports lower floors only, and some rooms never import jax."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "invcoder_jax"
FLOORS = {
    0: "errors records settings artifacts progress prompts codeblocks tokenization corpora",
    1: "mesh",
    2: "model checkpoint",
    3: "generation scoring training sandbox evaluation",
    4: "stages",
    5: "pipeline report doors cli",
}
FLOOR = {room: floor for floor, rooms in FLOORS.items() for room in rooms.split()}
NO_JAX = {room for room, floor in FLOOR.items() if floor == 0} | {"sandbox", "evaluation", "report"}
FREE_OF_EACH_OTHER = {"generation", "scoring", "training"}  # the engines
ORDER_INSIDE = {5: ("report", "pipeline", "doors", "cli"), 3: ("sandbox", "evaluation")}
FILES = sorted(p for p in PACKAGE.rglob("*.py") if p != PACKAGE / "__init__.py")


def room_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names |= {node.module or ""} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def rooms_used(path: Path) -> set[str]:
    used = {name.split(".")[1] for name in imported(path) if name.startswith("invcoder_jax.")}
    return {room for room in used if room in FLOOR} - {room_of(path)}


def test_every_room_has_a_floor():
    assert {room_of(path) for path in FILES} == set(FLOOR)


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_a_file_imports_lower_floors_only(path):
    room = room_of(path)
    for other in rooms_used(path):
        assert FLOOR[other] <= FLOOR[room], f"{room} (floor {FLOOR[room]}) imports {other}"
        assert not {room, other} <= FREE_OF_EACH_OTHER, f"engine {room} imports engine {other}"
        order = ORDER_INSIDE.get(FLOOR[room], ())
        if FLOOR[other] == FLOOR[room] and room in order and other in order:
            assert order.index(other) < order.index(room), f"{room} imports {other}"


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_text_and_judging_rooms_do_not_import_jax(path):
    if room_of(path) in NO_JAX:
        jax_like = {"jax", "flax", "optax", "orbax"}
        assert not {name.split(".")[0] for name in imported(path)} & jax_like
