"""RULER's questions: the answers follow from the text, nothing else can be taken for them, and lengths hold."""

import re
from collections import Counter
from random import Random

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from hybrid_jax.data.tokenizer import train_tokenizer
from hybrid_jax.errors import InputError
from hybrid_jax.evaluation.ruler import TASKS, Texts, make_samples, read_haystack


@pytest.fixture(scope="module")
def texts():
    return Texts(read_haystack())


@pytest.fixture(scope="module")
def tokenizer():
    """Words and marks are tokens; numbers of characters do not matter."""
    tokenizer = Tokenizer(models.WordLevel({"?": 0}, unk_token="?"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return tokenizer


def write(task, texts, size=30, length=4096, seed=0):
    return TASKS[task].write(Random(seed), size, length, texts)


NEEDLE = re.compile(r"One of the special magic (?:numbers|uuids) for (\S+) is: (\S+?)\.")


@pytest.mark.parametrize("task", [name for name in TASKS if name.startswith("niah")])
@pytest.mark.parametrize("seed", range(3))
def test_needles_of_the_asked_keys_are_the_answers(texts, task, seed):
    sample = write(task, texts, seed=seed)
    needles = NEEDLE.findall(sample.prompt)
    asked = re.search(r"special magic \w+ for (.*?) mentioned in the provided text\?", sample.prompt)[1]
    queries = asked.replace("and ", "").split(", ")
    assert sorted(value for key, value in needles if key in queries) == sorted(sample.answers)
    expected = {"niah_multivalue": (1, 4), "niah_multiquery": (4, 4), "niah_multikey_1": (1, 4)}
    num_queries, num_needles = expected.get(task, (1, 1))
    num_others = 30 if task in ("niah_multikey_2", "niah_multikey_3") else 0
    assert (len(queries), len(needles)) == (num_queries, num_needles + num_others)
    assert sample.reply == f" {sample.reply.strip()}"
    assert all(each in sample.reply for each in sample.answers)
    assert sample.prompt.endswith(" are" if len(sample.answers) > 1 else " is")


def test_a_token_that_begins_texts_is_counted_before_questions_and_not_before_replies(texts, tokenizer):
    def frame_and_answer(tokenizer):
        with pytest.raises(InputError) as caught:
            make_samples("niah_single_1", tokenizer, 10, 1, texts, with_reply=True)
        return tuple(map(int, re.search(r"frame takes (\d+) and answer (\d+)", str(caught.value)).groups()))

    frame, answer = frame_and_answer(tokenizer)
    tokenizer = Tokenizer.from_str(tokenizer.to_str())
    tokenizer.post_processor = processors.TemplateProcessing("? $A", special_tokens=[("?", 0)])
    assert frame_and_answer(tokenizer) == (frame + 1, answer)


def test_needles_lie_at_any_depth(texts):
    places = []
    for seed in range(40):
        prompt = write("niah_single_1", texts, size=100, seed=seed).prompt
        places.append(prompt.index("One of the special") / len(prompt))
    assert min(places) < 0.1
    assert max(places) > 0.9
    assert 0.3 < sum(places) / 40 < 0.7


def test_variables_that_are_passed_a_value_are_the_answers(texts):
    prompt, answers, reply = write("vt", texts)
    example, question = prompt.split("Memorize and track")[1:]
    for part, expected in ((example, None), (question, answers)):
        value = re.search(r"assigned the value (\d+)", part)[1]
        have = []
        for name, source in re.findall(r"VAR (\w+) = (?:VAR )?(\w+)", part):
            if source == value or source in have:
                have.append(name)
        assert len(have) == 5
        if expected is None:
            assert part.rstrip().endswith(" ".join(have))
        else:
            assert tuple(have) == expected
            assert reply.split() == have


@pytest.mark.parametrize(
    ("length", "num_common", "counts"), [(512, 3, (6, 1)), (1024, 10, (6, 1)), (4096, 10, (30, 3))]
)
def test_common_words_are_the_answers(texts, length, num_common, counts):
    prompt, answers, reply = write("cwe", texts, length=length)
    listed = prompt.split("appear most often.\n")[-1].split("\nQuestion")[0]
    found = Counter(re.findall(r"\d+\. (\D+?)(?= \d+\.|$)", listed))
    assert {word for word, count in found.items() if count == counts[0]} == set(answers)
    assert sorted(found.values()) == [counts[1]] * 30 + [counts[0]] * num_common
    assert re.sub(r" ?\d+\. ", " ", reply).split() == " ".join(answers).split()


@pytest.mark.parametrize("size", [0, 1000])
def test_frequent_words_are_the_answers(texts, size):
    prompt, answers, _ = write("fwe", texts, size=size)
    coded = prompt.split("coded words. ")[1].split("\nQuestion")[0].split()
    (dots, _), *ranked = Counter(coded).most_common(5)
    assert dots == "..."
    assert tuple(word for word, _ in ranked[:3]) == answers
    counts = [count for _, count in ranked]
    assert counts == sorted(set(counts), reverse=True)


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("length", [512, 4096])
def test_samples_fill_a_length(tokenizer, texts, task, length):
    samples = make_samples(task, tokenizer, length, 3, texts)
    lengths = [len(tokenizer.encode(sample.prompt).ids) + TASKS[task].max_new_tokens for sample in samples]
    assert max(lengths) <= length
    assert min(lengths) > 0.75 * length
    assert len({sample.prompt for sample in samples}) == 3
    assert make_samples(task, tokenizer, length, 2, texts) == samples[:2]
    assert make_samples(task, tokenizer, length, 2, texts, seed=1) != samples[:2]


@pytest.mark.slow
@pytest.mark.parametrize("task", ["niah_multikey_3", "vt", "cwe"])
def test_samples_of_pieces_of_words_fill_the_longest_length(texts, task):
    tokenizer = train_tokenizer([read_haystack()[:50_000]], 1000)
    (sample,) = make_samples(task, tokenizer, 65_536, 1, texts)
    num_tokens = len(tokenizer.encode(sample.prompt).ids) + TASKS[task].max_new_tokens
    assert 0.95 * 65_536 < num_tokens <= 65_536


@pytest.mark.parametrize(
    ("task", "length", "num_samples", "message"),
    [
        ("niah", 512, 1, "task: found 'niah', expected one of niah_single_1, .*fwe"),
        ("vt", 512, 0, "num_samples: found 0, expected at least 1"),
        (
            "vt",
            100,
            1,
            r"length: found 100 tokens, expected at least \d{3} for vt, whose frame takes \d+ and answer 30",
        ),
        ("cwe", -5, 1, "length: found -5 tokens, expected at least"),
    ],
)
def test_bad_requests_are_named(tokenizer, texts, task, length, num_samples, message):
    with pytest.raises(InputError, match=message):
        make_samples(task, tokenizer, length, num_samples, texts)


def test_a_haystack_is_a_text_file(tmp_path):
    path = tmp_path / "essay.txt"
    path.write_text("One  sentence.\nAnother? Yes")
    assert Texts(read_haystack(path)).sentences == ["One sentence.", "Another?", "Yes"]
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(InputError, match=r"essay\.txt: expected UTF-8 text"):
        read_haystack(path)
    with pytest.raises(InputError, match="haystack: found no words"):
        Texts(" \n")
