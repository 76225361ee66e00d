"""The list of safeguards fits the code, the tests, and docs/guarantees.md."""

from __future__ import annotations

import re

import pytest

from tests.mutations import ROOT, markdown_table, mutated
from tests.safeguards import MUTATIONS, Mutation

BEGIN, END = "<!-- mutations: begin -->\n", "\n<!-- mutations: end -->"


def test_the_table_in_the_guarantees_is_the_list() -> None:
    text = (ROOT / "docs/guarantees.md").read_text()
    assert text.partition(BEGIN)[2].partition(END)[0] == markdown_table()


def test_every_mutation_has_a_name_of_its_own() -> None:
    names = [mutation.name for mutation in MUTATIONS]
    assert len(set(names)) == len(names) >= 20


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.name)
def test_each_old_text_stands_once_in_its_file_and_the_new_one_compiles(mutation: Mutation) -> None:
    source = (ROOT / mutation.file).read_text()
    changed = mutated(mutation, source)
    assert changed != source
    compile(changed, mutation.file, "exec")


def test_every_test_of_a_mutation_exists_and_belongs_to_every_commit() -> None:
    for test in (test for mutation in MUTATIONS for test in mutation.tests):
        path, _, name = test.partition("::")
        assert not path.startswith(("tests/chaos/", "tests/kafka/")), test
        assert re.search(rf"^ *(async )?def {name.rpartition('::')[2]}\(", (ROOT / path).read_text(), re.MULTILINE), (
            test
        )


def test_a_mutation_whose_code_has_moved_fails_loudly() -> None:
    mutation = Mutation("moved", "A safeguard.", "bcs/errors.py", "old", "new", ())
    for source in ("", "old old"):
        with pytest.raises(ValueError, match=r"moved.*bcs/errors\.py"):
            mutated(mutation, source)
